//! The parts of what is read, and everything that is wrong with them.

use std::collections::HashSet;
use std::fmt;

use crate::logins::without_logins;

/// A part of [`Inputs`](super::Inputs), in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Values of the settings themselves.
    Settings,
    /// The shim's binary.
    Shim,
    /// The model API's credential and certificates.
    Model,
    /// The price list.
    Prices,
    /// The allow-list and the default repository.
    Repositories,
    /// The git hosts' credentials and certificates.
    GitHosts,
    /// Where tools may go.
    Egress,
    /// Which MCP servers workflows may name.
    Mcp,
    /// Whether the gateway takes URLs, credentials, certificates and proxies.
    Gateway,
    /// The workflows.
    Workflows,
    /// The API's certificate and its key.
    Tls,
}

impl Part {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 11] = [
        Self::Settings,
        Self::Shim,
        Self::Model,
        Self::Prices,
        Self::Repositories,
        Self::GitHosts,
        Self::Egress,
        Self::Mcp,
        Self::Gateway,
        Self::Workflows,
        Self::Tls,
    ];

    /// Its name for people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Shim => "shim",
            Self::Model => "model",
            Self::Prices => "prices",
            Self::Repositories => "repositories",
            Self::GitHosts => "git hosts",
            Self::Egress => "egress",
            Self::Mcp => "MCP",
            Self::Gateway => "gateway",
            Self::Workflows => "workflows",
            Self::Tls => "TLS",
        }
    }
}

/// Everything that keeps a server from starting with its settings.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub Vec<(Part, anyhow::Error)>);

impl Faults {
    pub(super) fn keep<T>(&mut self, part: Part, read: anyhow::Result<T>) -> Option<T> {
        read.map_err(|error| self.0.push((part, error))).ok()
    }

    pub(super) fn keep_all<T>(&mut self, part: Part, read: Result<T, Vec<anyhow::Error>>) -> Option<T> {
        read.map_err(|errors| self.0.extend(errors.into_iter().map(|error| (part, error)))).ok()
    }

    /// Those of a part, in one line; none if it has none.
    pub(crate) fn of(&self, part: Part) -> Option<String> {
        let told: Vec<_> =
            self.0.iter().filter(|(of, _)| *of == part).map(|(_, error)| format!("{error:#}")).collect();
        (!told.is_empty()).then(|| without_logins(&told.join("; ")))
    }
}

/// What was read, or everything that is wrong with it.
pub(super) fn whole<T>(read: T, faults: Vec<anyhow::Error>) -> Result<T, Vec<anyhow::Error>> {
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

impl fmt::Display for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the server cannot start with these settings:")?;
        let mut told = HashSet::new();
        for (part, error) in &self.0 {
            let text = without_logins(&format!("{error:#}"));
            let begin = format!("{}: ", part.name());
            let begin = if *part == Part::Settings || text.starts_with(&begin) { "" } else { &begin };
            // Two parts may read the same setting.
            if told.insert(text.clone()) {
                write!(out, "\n  - {begin}{text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
