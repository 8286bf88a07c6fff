//! The checks of the trusted side that an adversary meets, by name.
//!
//! `make adversary` has to show that each attempt is stopped by the check that is said to stop it. For that a build with the
//! feature `checks-off` can leave checks out, and there the attempt gets through. Every other build has every check:
//! [`stands`] is `true` there, and the compiler takes the question away.

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Whether a request at the door has this sandbox's living grant of the right kind.
    Grant,
    /// Whether a push is for the run's own branch.
    OwnBranch,
    /// Whether a push is for a branch whose files steer agents.
    TrustedBranch,
    /// Whether a request for git is for the run's own repository.
    OwnRepository,
    /// Whether a push removes its branch.
    NoDelete,
    /// Whether a push has one command.
    OneRef,
    /// Git's own checks of what a push holds.
    Fsck,
    /// How large and deep what a push holds may be.
    PushBounds,
    /// What git may take of the machine while it looks at a push.
    PushMemory,
    /// Secrets in a push.
    Secrets,
    /// Submodules from elsewhere in a push.
    Submodules,
    /// Files in a push that are too large.
    FileSize,
    /// Changes of forbidden paths in a push.
    ForbiddenPaths,
    /// Whether a push takes away commits that the run did not push.
    Rewrites,
    /// How long a request's head may be.
    Heads,
    /// The hosts that tools may reach.
    EgressRules,
    /// The addresses that names may lead to.
    EgressAddresses,
    /// Whether a connection goes to the addresses that were checked, and not to what the name leads to by then.
    EgressPinned,
    /// Whether a request to the outside is taken apart and put together again.
    EgressFraming,
    /// Whether `Host` names what the request line names.
    EgressHost,
    /// The hosts that workflows' MCP servers may be on.
    McpHosts,
    /// Whether a path names an MCP server and nothing below it.
    McpPath,
    /// Whether an MCP server is one of the run's own workflow.
    McpServers,
    /// The tools of an MCP server that the run's workflow takes away.
    McpTools,
    /// Whether the journal goes on where it is acknowledged.
    JournalOffset,
    /// Whether the journal's entries are of the run that runs in the sandbox.
    JournalRun,
    /// Whether an artifact is of the run that runs in the sandbox.
    ArtifactRun,
    /// Whether an artifact's name stays in its directory.
    ArtifactName,
    /// Whether a reported push was carried.
    ReportedPush,
    /// Whether a model call has the model API's provider reach outside.
    ProviderTools,
    /// What a terminal would obey in what is printed of a run.
    PrintedText,
    /// Whether a browser is told that an answer of the API is data.
    AnswersAreData,
    /// Whether what a run has cost is counted at the door, and not told by its agent.
    CountedUsage,
    /// How much a run's record keeps.
    RecordBounds,
    /// Links to elsewhere, where the server measures what lies in a workspace.
    Links,
    /// Whether what a sandbox tells is kept out of the audit log.
    AuditSource,
}

impl Check {
    /// Every check.
    pub const ALL: [Self; 36] = [
        Self::Grant,
        Self::OwnBranch,
        Self::TrustedBranch,
        Self::OwnRepository,
        Self::NoDelete,
        Self::OneRef,
        Self::Fsck,
        Self::PushBounds,
        Self::PushMemory,
        Self::Secrets,
        Self::Submodules,
        Self::FileSize,
        Self::ForbiddenPaths,
        Self::Rewrites,
        Self::Heads,
        Self::EgressRules,
        Self::EgressAddresses,
        Self::EgressPinned,
        Self::EgressFraming,
        Self::EgressHost,
        Self::McpHosts,
        Self::McpPath,
        Self::McpServers,
        Self::McpTools,
        Self::JournalOffset,
        Self::JournalRun,
        Self::ArtifactRun,
        Self::ArtifactName,
        Self::ReportedPush,
        Self::ProviderTools,
        Self::PrintedText,
        Self::AnswersAreData,
        Self::CountedUsage,
        Self::RecordBounds,
        Self::Links,
        Self::AuditSource,
    ];

    /// Its name, in small letters with underscores.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::OwnBranch => "own_branch",
            Self::TrustedBranch => "trusted_branch",
            Self::OwnRepository => "own_repository",
            Self::NoDelete => "no_delete",
            Self::OneRef => "one_ref",
            Self::Fsck => "fsck",
            Self::PushBounds => "push_bounds",
            Self::PushMemory => "push_memory",
            Self::Secrets => "secrets",
            Self::Submodules => "submodules",
            Self::FileSize => "file_size",
            Self::ForbiddenPaths => "forbidden_paths",
            Self::Rewrites => "rewrites",
            Self::Heads => "heads",
            Self::EgressRules => "egress_rules",
            Self::EgressAddresses => "egress_addresses",
            Self::EgressPinned => "egress_pinned",
            Self::EgressFraming => "egress_framing",
            Self::EgressHost => "egress_host",
            Self::McpHosts => "mcp_hosts",
            Self::McpPath => "mcp_path",
            Self::McpServers => "mcp_servers",
            Self::McpTools => "mcp_tools",
            Self::JournalOffset => "journal_offset",
            Self::JournalRun => "journal_run",
            Self::ArtifactRun => "artifact_run",
            Self::ArtifactName => "artifact_name",
            Self::ReportedPush => "reported_push",
            Self::ProviderTools => "provider_tools",
            Self::PrintedText => "printed_text",
            Self::AnswersAreData => "answers_are_data",
            Self::CountedUsage => "counted_usage",
            Self::RecordBounds => "record_bounds",
            Self::Links => "links",
            Self::AuditSource => "audit_source",
        }
    }

    /// The check of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.name() == name)
    }
}

/// Whether the check is made: always, but in a build with the feature `checks-off`.
#[cfg(not(feature = "checks-off"))]
#[must_use]
pub const fn stands(_: Check) -> bool {
    true
}

#[cfg(feature = "checks-off")]
pub use off::{leave_out, stands};

#[cfg(feature = "checks-off")]
mod off {
    use std::sync::OnceLock;

    use super::Check;

    static OFF: OnceLock<Vec<Check>> = OnceLock::new();

    /// Whether the check is made.
    pub fn stands(check: Check) -> bool {
        !OFF.get().is_some_and(|off| off.contains(&check))
    }

    /// Leaves checks out from now on; the first call counts.
    ///
    /// # Errors
    /// The name that is no check's.
    pub fn leave_out(names: &str) -> Result<(), String> {
        let names = names.split(',').filter(|name| !name.is_empty());
        let off: Result<Vec<_>, _> =
            names.map(|name| Check::named(name).ok_or_else(|| name.to_owned())).collect();
        OFF.get_or_init(|| off.clone().unwrap_or_default());
        off.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name_of_its_own_and_stands() {
        for check in Check::ALL {
            assert_eq!(Check::named(check.name()), Some(check));
            assert!(stands(check), "{check:?}");
        }
        assert_eq!(Check::named("none"), None);
    }
}
