//! What the settings name, read and found fit. `serve` starts with it, and `doctor` tells of it: what one finds wrong the
//! other does as well. Nothing is made or changed here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use caisson_domain::git::{AllowList, Repository};
use caisson_domain::redact;
use caisson_domain::usage::PriceTable;
use caisson_domain::workflow::Workflow;
use caisson_gateway::{
    EgressUpstreams, Gateway, GitCredential, GitUpstreams, ModelCredential, ModelUpstream, PushRules,
};

use crate::settings::{self, Settings};

/// The workflows that ship with Caisson.
const SHIPPED_WORKFLOWS: [&str; 1] = [include_str!("../../../workflows/bug-fixer.md")];
/// Most workflow files read from a directory.
const WORKFLOW_FILES: usize = 200;

/// What a server starts with.
pub(crate) struct Inputs {
    /// Repositories that runs may name, links resolved.
    pub allow: AllowList,
    /// The repository of runs that name none.
    pub default_repository: Option<Repository>,
    /// Workflows, the shipped ones first.
    pub workflows: Vec<Workflow>,
    /// What tokens cost.
    pub prices: PriceTable,
    /// The model API.
    pub model: ModelUpstream,
    /// The git hosts.
    pub git: GitUpstreams,
    /// Where tools may go.
    pub egress: EgressUpstreams,
    /// What people should know of where tools may go.
    pub egress_notes: Vec<String>,
    /// The shim's binary.
    pub shim: PathBuf,
}

/// A part of [`Inputs`], in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
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
    /// Whether the gateway takes URLs, credentials, certificates and proxies.
    Gateway,
    /// The workflows.
    Workflows,
}

impl Part {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 8] = [
        Self::Shim,
        Self::Model,
        Self::Prices,
        Self::Repositories,
        Self::GitHosts,
        Self::Egress,
        Self::Gateway,
        Self::Workflows,
    ];

    /// Its name for people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Model => "model",
            Self::Prices => "prices",
            Self::Repositories => "repositories",
            Self::GitHosts => "git hosts",
            Self::Egress => "egress",
            Self::Gateway => "gateway",
            Self::Workflows => "workflows",
        }
    }
}

/// Everything that keeps a server from starting with its settings.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub Vec<(Part, anyhow::Error)>);

impl Faults {
    fn keep<T>(&mut self, part: Part, read: anyhow::Result<T>) -> Option<T> {
        read.map_err(|error| self.0.push((part, error))).ok()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the server cannot start with these settings:")?;
        self.0.iter().try_for_each(|(part, error)| write!(out, "\n  - {}: {error:#}", part.name()))
    }
}

impl std::error::Error for Faults {}

/// Reads every part.
///
/// # Errors
/// [`Faults`], every one of them.
pub(crate) fn read(settings: &Settings) -> Result<Inputs, Faults> {
    let mut faults = Faults::default();
    let shim = faults.keep(Part::Shim, find_shim(settings));
    let model = faults.keep(Part::Model, model(settings));
    let prices = faults.keep(Part::Prices, prices(settings));
    let repositories = faults.keep(Part::Repositories, repositories(settings));
    let allow = repositories.as_ref().map(|(allow, _)| allow.clone()).unwrap_or_default();
    let git = faults.keep(Part::GitHosts, git(settings, allow));
    let egress = faults.keep(Part::Egress, settings.egress.upstreams(&settings.clients));
    if let (Some(model), Some(git), Some((egress, _))) = (&model, &git, &egress) {
        // The state directory may not be there yet.
        let apart = GitUpstreams { forbidden: Vec::new(), ..git.clone() };
        faults.keep(Part::Gateway, Gateway::check(model, &apart, egress).map_err(Into::into));
        let secrets = caisson_gateway::secrets(model, git, egress);
        faults.keep(
            Part::Gateway,
            redact::check(&secrets).context("a credential cannot be kept out of the record"),
        );
    }
    let workflows = faults.keep(Part::Workflows, workflows(settings.workflows_dir.as_deref()));
    match (shim, model, prices, repositories, git, egress, workflows) {
        (
            Some(shim),
            Some(model),
            Some(prices),
            Some((allow, default_repository)),
            Some(git),
            Some((egress, egress_notes)),
            Some(workflows),
        ) if faults.0.is_empty() => Ok(Inputs {
            allow,
            default_repository,
            workflows,
            prices,
            model,
            git,
            egress,
            egress_notes,
            shim,
        }),
        _ => Err(faults),
    }
}

/// The shim that the settings name, or the one beside this program.
fn find_shim(settings: &Settings) -> anyhow::Result<PathBuf> {
    let path = match &settings.shim {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("caisson-shim"),
    };
    ensure!(
        path.is_file(),
        "the shim \"{}\" is missing; build it with `make build`, or name it with CAISSON_SHIM",
        path.display()
    );
    Ok(path)
}

fn model(settings: &Settings) -> anyhow::Result<ModelUpstream> {
    let model = &settings.model;
    let credential = match (&model.api_key_file, &model.api_key, &model.auth_token_file) {
        (Some(file), _, _) => Some(ModelCredential::ApiKey(settings::read_secret(file)?)),
        (None, Some(key), _) => Some(ModelCredential::ApiKey(key.clone())),
        (None, None, Some(file)) => Some(ModelCredential::Bearer(settings::read_secret(file)?)),
        (None, None, None) => None,
    };
    Ok(ModelUpstream {
        base_url: model.base_url.clone(),
        credential,
        outbound_proxy: model.outbound_proxy.clone(),
        extra_ca_pem: read_pem(model.extra_ca_file.as_deref())?,
    })
}

fn prices(settings: &Settings) -> anyhow::Result<PriceTable> {
    let Some(file) = &settings.prices_file else { return Ok(PriceTable::shipped()) };
    let text = fs::read_to_string(file).with_context(|| format!("\"{}\" cannot be read", file.display()))?;
    PriceTable::from_json(&text).with_context(|| format!("\"{}\" cannot be used", file.display()))
}

/// The allow-list, with links resolved, and the default repository. What agents write lies below the state directory,
/// and git runs hooks of the repositories that it is given: the two must have nothing in common.
fn repositories(settings: &Settings) -> anyhow::Result<(AllowList, Option<Repository>)> {
    let state_dir = resolved(&settings.state_dir)?;
    let resolve = |directory: &PathBuf| {
        directory.canonicalize().with_context(|| format!("\"{}\" cannot be resolved", directory.display()))
    };
    let directories: Vec<PathBuf> = settings.allow_repo.iter().map(resolve).collect::<anyhow::Result<_>>()?;
    for directory in &directories {
        ensure!(
            !directory.starts_with(&state_dir) && !state_dir.starts_with(directory),
            "allow_repo \"{}\" and the state directory \"{}\" lie within one another; repositories must be kept apart from what agents write",
            directory.display(),
            state_dir.display()
        );
    }
    let allow = AllowList::new(&settings.repositories, directories)?;
    let Some(text) = &settings.default_repository else { return Ok((allow, None)) };
    let repository: Repository = text.parse().context("default_repository cannot be used")?;
    ensure!(
        allow.allows(&repository),
        "default_repository \"{repository}\" is not among the allowed ones; add it to repositories or allow_repo"
    );
    Ok((allow, Some(repository)))
}

/// A path with every link resolved, as far as it is there.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    let there = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    let there = there.canonicalize().with_context(|| format!("\"{}\" cannot be resolved", path.display()))?;
    // Joining nothing would put a slash behind it.
    Ok(if rest.as_os_str().is_empty() { there } else { there.join(rest) })
}

fn git(settings: &Settings, allow: AllowList) -> anyhow::Result<GitUpstreams> {
    let credential = |credential: &settings::GitCredential| {
        Ok(GitCredential {
            url_prefix: credential.url_prefix.clone(),
            username: credential.username.clone(),
            token: settings::read_secret(&credential.token_file)?,
        })
    };
    Ok(GitUpstreams {
        credentials: settings.git.credentials.iter().map(credential).collect::<anyhow::Result<_>>()?,
        forbidden: vec![resolved(&settings.state_dir)?],
        allow,
        outbound_proxy: settings.git.outbound_proxy.clone(),
        extra_ca_pem: read_pem(settings.git.extra_ca_file.as_deref())?,
        git_program: PathBuf::from("git"),
        pushes: PushRules {
            forbidden_paths: settings.git.forbidden_paths.clone(),
            file_bytes: u64::from(settings.git.max_file_mib) * 1024 * 1024,
            secret_rules_off: settings.git.secret_rules_off.clone(),
            any_submodules: settings.git.any_submodules,
        },
    })
}

fn read_pem(file: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    file.map(|file| fs::read(file).with_context(|| format!("\"{}\" cannot be read", file.display())))
        .transpose()
}

fn workflows(directory: Option<&Path>) -> anyhow::Result<Vec<Workflow>> {
    let mut texts: Vec<(String, String)> =
        SHIPPED_WORKFLOWS.iter().map(|text| ("shipped".to_owned(), (*text).to_owned())).collect();
    if let Some(directory) = directory {
        let unread = || format!("the workflows directory \"{}\" cannot be read", directory.display());
        let entries = fs::read_dir(directory).with_context(unread)?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "md"))
            .collect();
        files.sort();
        ensure!(
            files.len() <= WORKFLOW_FILES,
            "\"{}\" holds more than {WORKFLOW_FILES} workflows",
            directory.display()
        );
        for file in files {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("\"{}\" cannot be read", file.display()))?;
            texts.push((file.display().to_string(), text));
        }
    }
    let parse = |(origin, text): (String, String)| {
        Workflow::parse(&text).with_context(|| format!("the workflow of \"{origin}\" cannot be used"))
    };
    texts.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Environment, Overrides};

    fn settings(state_dir: &Path, allow: &Path) -> Settings {
        let overrides = Overrides {
            state_dir: Some(state_dir.to_owned()),
            allow_repo: vec![allow.to_owned()],
            ..Overrides::default()
        };
        Settings::load(None, &Environment { variables: Vec::new(), root: false }, overrides).unwrap()
    }

    #[test]
    fn repositories_and_state_may_not_lie_within_one_another() {
        let root = tempfile::tempdir().unwrap();
        let (state, apart) = (root.path().join("state"), root.path().join("repositories"));
        for directory in [&state, &apart, &state.join("inner")] {
            fs::create_dir(directory).unwrap();
        }
        assert!(repositories(&settings(&state, &apart)).is_ok());
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&state, &link).unwrap();
        let new = link.join("new");
        for (state, overlapping) in [
            (&state, &state),
            (&state, &root.path().to_owned()),
            (&state, &state.join("inner")),
            (&state, &link),
            (&new, &state),
        ] {
            let error = repositories(&settings(state, overlapping)).unwrap_err().to_string();
            assert!(error.contains("kept apart"), "{}: {error}", overlapping.display());
        }
    }

    #[test]
    fn a_default_repository_must_be_one_and_be_allowed() {
        let root = tempfile::tempdir().unwrap();
        let allowed = root.path().join("repositories");
        fs::create_dir(&allowed).unwrap();
        let with = |text: &str| {
            let settings = settings(&root.path().join("state"), &allowed);
            repositories(&Settings { default_repository: Some(text.to_owned()), ..settings })
        };
        let inside = allowed.canonicalize().unwrap().join("x");
        assert!(with(inside.to_str().unwrap()).unwrap().1.is_some());
        assert!(with("/elsewhere").unwrap_err().to_string().contains("not among the allowed"));
        assert!(with("nonsense").unwrap_err().to_string().contains("default_repository"));
    }
}
