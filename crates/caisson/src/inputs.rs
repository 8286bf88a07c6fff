//! What the settings name, read and found fit. `serve` starts with it, and `doctor` tells of it: what one finds wrong the
//! other does as well. Nothing is made or changed here.

mod faults;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::git::{AllowList, Repository};
use caisson_domain::redact;
use caisson_domain::server::Role;
use caisson_domain::usage::PriceTable;
use caisson_domain::workflow::Workflow;
use caisson_gateway::{
    EgressUpstreams, Gateway, GitCredential, GitUpstreams, McpUpstreams, ModelCredential, ModelUpstream,
    PushRules, SECRET_RULES_BYTES, SecretRuleChange,
};
use tracing::{info, warn};

use crate::settings::{self, Settings};
use crate::tls::Certificate;
use crate::workflow_files;
use faults::whole;

pub(crate) use faults::{Faults, Part};

/// The workflows that ship with Caisson.
const SHIPPED_WORKFLOWS: [&str; 3] = [
    include_str!("../../../workflows/bug-fixer.md"),
    include_str!("../../../workflows/code-task.md"),
    include_str!("../../../workflows/pr-reviewer.md"),
];
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
    /// Which MCP servers workflows may name.
    pub mcp: McpUpstreams,
    /// The shim's binary.
    pub shim: PathBuf,
    /// The API's certificate; none for plain HTTP.
    pub certificate: Option<Arc<Certificate>>,
    /// The directory of artifacts that the server shares with others; whoever starts it finds it.
    pub shared_artifacts: Option<SharedArtifacts>,
}

/// Reads every part.
///
/// # Errors
/// [`Faults`], every one of them.
pub(crate) fn read(settings: &Settings) -> Result<Inputs, Faults> {
    let mut faults = Faults(
        settings.faults().into_iter().map(|fault| (Part::Settings, anyhow::Error::msg(fault))).collect(),
    );
    let shim = faults.keep(Part::Shim, find_shim(settings));
    let model = faults.keep(Part::Model, model(settings));
    let prices = faults.keep(Part::Prices, prices(settings));
    let repositories = faults.keep_all(Part::Repositories, repositories(settings));
    let allow = repositories.as_ref().map(|(allow, _)| allow.clone()).unwrap_or_default();
    let git = faults.keep_all(Part::GitHosts, git(settings, allow));
    let egress = faults.keep(Part::Egress, settings.egress.upstreams(&settings.clients));
    let hosts = egress.as_ref().map(|(egress, _)| egress.hosts.clone()).unwrap_or_default();
    let mcp = faults.keep(Part::Mcp, settings.mcp.upstreams(hosts));
    if let (Some(model), Some(git), Some((egress, _)), Some(mcp)) = (&model, &git, &egress, &mcp) {
        // The state directory may not be there yet.
        let apart = GitUpstreams { forbidden: Vec::new(), ..git.clone() };
        faults.keep(Part::Gateway, Gateway::check(model, &apart, egress, mcp).map_err(Into::into));
        let secrets = caisson_gateway::secrets(model, git, egress);
        faults.keep(
            Part::Gateway,
            redact::check(&secrets).context("a credential cannot be kept out of the record"),
        );
    }
    let workflows = faults.keep_all(Part::Workflows, workflows(settings.workflows_dir.as_deref()));
    let certificate = faults.keep(Part::Tls, Certificate::of(settings));
    match (shim, model, prices, repositories, git, egress, mcp, workflows, certificate) {
        (
            Some(shim),
            Some(model),
            Some(prices),
            Some((allow, default_repository)),
            Some(git),
            Some((egress, egress_notes)),
            Some(mcp),
            Some(workflows),
            Some(certificate),
        ) if faults.0.is_empty() => Ok(Inputs {
            allow,
            default_repository,
            workflows,
            prices,
            model,
            git,
            egress,
            egress_notes,
            mcp,
            shim,
            certificate,
            shared_artifacts: None,
        }),
        _ => Err(faults),
    }
}

/// The shim that the settings name, or the one beside this program; only a worker needs one.
fn find_shim(settings: &Settings) -> anyhow::Result<PathBuf> {
    if !settings.roles.has(Role::Worker) {
        return Ok(PathBuf::new());
    }
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
        (Some(file), _, _) => {
            Some(ModelCredential::ApiKey(settings::read_secret("model.api_key_file", file)?))
        }
        (None, Some(key), _) => Some(ModelCredential::ApiKey(key.clone())),
        (None, None, Some(file)) => {
            Some(ModelCredential::Bearer(settings::read_secret("model.auth_token_file", file)?))
        }
        (None, None, None) => None,
    };
    Ok(ModelUpstream {
        base_url: model.base_url.clone(),
        credential,
        outbound_proxy: model.outbound_proxy.clone(),
        extra_ca_pem: read_pem("model.extra_ca_file", model.extra_ca_file.as_deref())?,
        provider_tools: model.provider_tools(),
    })
}

fn prices(settings: &Settings) -> anyhow::Result<PriceTable> {
    let Some(file) = &settings.prices_file else { return Ok(PriceTable::shipped()) };
    let text = fs::read_to_string(file)
        .with_context(|| format!("prices_file: \"{}\" cannot be read", file.display()))?;
    PriceTable::from_json(&text)
        .with_context(|| format!("prices_file: \"{}\" cannot be used", file.display()))
}

/// The allow-list, with links resolved, and the default repository. What agents write lies below the state directory,
/// and git runs hooks of the repositories that it is given: the two must have nothing in common.
fn repositories(settings: &Settings) -> Result<(AllowList, Option<Repository>), Vec<anyhow::Error>> {
    let state_dir = resolved(&settings.state_dir).map_err(|error| vec![error])?;
    let (mut directories, mut faults) = (Vec::new(), Vec::new());
    for directory in &settings.allow_repo {
        match allowed_directory(directory, &state_dir) {
            Ok(directory) => directories.push(directory),
            Err(error) => faults.push(error),
        }
    }
    for pattern in &settings.repositories {
        let alone = AllowList::new(std::slice::from_ref(pattern), Vec::new());
        faults.extend(alone.err().map(|error| anyhow::Error::new(error).context("repositories")));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let allow = AllowList::new(&settings.repositories, directories).map_err(|error| vec![error.into()])?;
    let default = default_repository(settings, &allow).map_err(|error| vec![error])?;
    Ok((allow, default))
}

fn allowed_directory(named: &Path, state_dir: &Path) -> anyhow::Result<PathBuf> {
    let shown = named.display();
    let directory = named
        .canonicalize()
        .with_context(|| format!("allow_repo \"{shown}\" cannot be used; name a directory that is there"))?;
    ensure!(directory.is_dir(), "allow_repo \"{shown}\" is no directory");
    ensure!(
        !directory.starts_with(state_dir) && !state_dir.starts_with(&directory),
        "allow_repo \"{shown}\" and the state directory \"{}\" lie within one another; repositories must be kept apart from what agents write",
        state_dir.display()
    );
    Ok(directory)
}

fn default_repository(settings: &Settings, allow: &AllowList) -> anyhow::Result<Option<Repository>> {
    let Some(text) = &settings.default_repository else { return Ok(None) };
    let repository: Repository = text.parse().context("default_repository cannot be used")?;
    ensure!(
        allow.allows(&repository),
        "default_repository \"{repository}\" is not among the allowed ones; add it to repositories or allow_repo"
    );
    Ok(Some(repository))
}

/// A path with every link resolved, as far as it is there.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    let there = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    let there = there.canonicalize().with_context(|| format!("\"{}\" cannot be resolved", path.display()))?;
    // Joining nothing would put a slash behind it.
    Ok(if rest.as_os_str().is_empty() { there } else { there.join(rest) })
}

fn git(settings: &Settings, allow: AllowList) -> Result<GitUpstreams, Vec<anyhow::Error>> {
    let (mut credentials, mut faults) = (Vec::new(), Vec::new());
    for credential in &settings.git.credentials {
        match settings::read_secret("git.credentials.token_file", &credential.token_file) {
            Ok(token) => credentials.push(GitCredential {
                url_prefix: credential.url_prefix.clone(),
                username: credential.username.clone(),
                token,
            }),
            Err(error) => faults.push(error),
        }
    }
    let mut kept = |error| faults.push(error);
    let own = [Some(&settings.state_dir), settings.artifacts_dir.as_ref()].into_iter().flatten();
    let forbidden = own.filter_map(|own| resolved(own).map_err(&mut kept).ok()).collect();
    let extra_ca = read_pem("git.extra_ca_file", settings.git.extra_ca_file.as_deref());
    let extra_ca_pem = extra_ca.map_err(&mut kept).ok().flatten();
    let secret_rules = secret_rules(settings).map_err(kept).unwrap_or_default();
    let upstreams = GitUpstreams {
        credentials,
        forbidden,
        allow,
        outbound_proxy: settings.git.outbound_proxy.clone(),
        extra_ca_pem,
        git_program: PathBuf::from("git"),
        pushes: PushRules {
            forbidden_paths: settings.git.forbidden_paths.clone(),
            file_bytes: u64::from(settings.git.max_file_mib) * 1024 * 1024,
            secret_rules,
            any_submodules: settings.git.any_submodules,
        },
    };
    whole(upstreams, faults)
}

/// The rules for secrets that the settings turn off, and what their file adds.
fn secret_rules(settings: &Settings) -> anyhow::Result<Vec<SecretRuleChange>> {
    let off = settings.git.secret_rules_off.iter().cloned().map(SecretRuleChange::Off);
    let Some(file) = &settings.git.secret_rules_file else { return Ok(off.collect()) };
    let shown = || format!("git.secret_rules_file: \"{}\"", file.display());
    let opened = fs::File::open(file).with_context(|| format!("{} cannot be read", shown()))?;
    let mut bytes = Vec::new();
    // One byte more tells that there is more.
    let mut bounded = opened.take(SECRET_RULES_BYTES as u64 + 1);
    bounded.read_to_end(&mut bytes).with_context(|| format!("{} cannot be read", shown()))?;
    let of_file = SecretRuleChange::read(&bytes).with_context(|| format!("{} cannot be used", shown()))?;
    Ok(off.chain(of_file).collect())
}

pub(crate) fn read_pem(key: &str, file: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    file.map(|file| fs::read(file).with_context(|| format!("{key}: \"{}\" cannot be read", file.display())))
        .transpose()
}

fn workflows(directory: Option<&Path>) -> Result<Vec<Workflow>, Vec<anyhow::Error>> {
    let (mut workflows, mut faults) = (Vec::new(), Vec::new());
    let files = directory.map_or(Ok(Vec::new()), workflow_files).map_err(|error| vec![error])?;
    let shipped = SHIPPED_WORKFLOWS
        .iter()
        .map(|text| ("shipped".to_owned(), Ok(workflow_files::file((*text).to_owned()))));
    let own = files.into_iter().filter_map(|path| {
        let origin = path.display().to_string();
        match workflow_files::read(&path) {
            Ok(found) if !found.active => {
                info!("the workflow of \"{origin}\" is not offered: its config.json says \"active\": false");
                None
            }
            Ok(found) => {
                for note in &found.notes {
                    warn!("of the workflow of \"{origin}\": {note}");
                }
                Some((origin, Ok(found)))
            }
            Err(error) => Some((origin, Err(error))),
        }
    });
    for (origin, found) in shipped.chain(own) {
        match found.and_then(|found| workflow_files::parse(&found, &origin)) {
            Ok(workflow) => workflows.push(workflow),
            Err(error) => faults.push(error),
        }
    }
    whole(workflows, faults)
}

fn workflow_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unread = || format!("workflows_dir: \"{}\" cannot be read", directory.display());
    let entries = fs::read_dir(directory).with_context(unread)?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "md") || workflow_files::is_folder(path))
        .collect();
    files.sort();
    ensure!(
        files.len() <= WORKFLOW_FILES,
        "workflows_dir: \"{}\" holds more than {WORKFLOW_FILES} workflows",
        directory.display()
    );
    Ok(files)
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
            let error = repositories(&settings(state, overlapping)).unwrap_err();
            assert!(error[0].to_string().contains("kept apart"), "{}: {error:?}", overlapping.display());
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
        let fault = |text: &str| with(text).unwrap_err()[0].to_string();
        assert!(fault("/elsewhere").contains("not among the allowed"));
        assert!(fault("nonsense").contains("default_repository"));
    }

    #[test]
    fn further_rules_for_secrets_are_read_and_told_of_with_their_file() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("rules.json");
        let of = |text: &[u8]| {
            fs::write(&file, text).unwrap();
            let mut settings = settings(&root.path().join("state"), root.path());
            settings.git.secret_rules_file = Some(file.clone());
            settings.git.secret_rules_off = vec!["generic-secret".to_owned()];
            secret_rules(&settings)
        };
        let rule = br#"[{"id": "own-token", "keywords": ["own_"], "pattern": "(own_[0-9a-f]{8})"}]"#;
        let changes = of(rule).unwrap();
        assert_eq!(changes.len(), 2);
        assert!(matches!(&changes[0], SecretRuleChange::Off(name) if name == "generic-secret"));
        let known =
            format!(r#"{{"rules": {}, "known": ["{}"]}}"#, str::from_utf8(rule).unwrap(), "0".repeat(64));
        assert!(matches!(&of(known.as_bytes()).unwrap()[..], [_, _, SecretRuleChange::Known(_)]));
        let mut largest = rule.to_vec();
        largest.resize(SECRET_RULES_BYTES, b' ');
        assert_eq!(of(&largest).unwrap().len(), 2);
        largest.extend("\u{e9}".bytes());
        for (text, part) in [
            (&largest[..], "longer than 262144 bytes"),
            (br#"[{"keywords": ["own_"], "pattern": "(own_)"}]"#, "missing field `id`"),
            (br#"[{"id": "own", "keywords": ["own_"], "pattern": "(own_"}]"#, "no regular expression"),
            (
                br#"[{"id": "own", "keywords": ["k"], "pattern": "([a-z]{1000}){1000}"}]"#,
                "the rule \"own\" cannot be used: its pattern needs more than 1048576 bytes of memory",
            ),
            (br#"{"known": ["abc"]}"#, "number 1 of its known texts"),
            (b"\xff", "expected value"),
        ] {
            let told = format!("{:#}", of(text).unwrap_err());
            assert!(told.starts_with("git.secret_rules_file: \"") && told.contains("rules.json"), "{told}");
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn faults_of_every_stage_are_told_together_and_with_their_settings() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| root.path().join(name).display().to_string();
        fs::create_dir(root.path().join("workflows")).unwrap();
        for name in ["one.md", "two.md"] {
            fs::write(root.path().join("workflows").join(name), "no front matter").unwrap();
        }
        let gone = |name: &str| (name.to_owned(), place(&format!("gone/{}", name.to_lowercase())));
        let mut variables = vec![
            ("CAISSON_SLOTS".to_owned(), "0".to_owned()),
            ("CAISSON_REPOSITORIES".to_owned(), "nonsense https://*.example/x".to_owned()),
            ("CAISSON_ALLOW_REPO".to_owned(), format!("{} {}", place("gone/a"), place("gone/b"))),
            ("CAISSON_WORKFLOWS_DIR".to_owned(), place("workflows")),
        ];
        variables.extend(
            [
                "SHIM",
                "MODEL__API_KEY_FILE",
                "PRICES_FILE",
                "GIT__EXTRA_CA_FILE",
                "GIT__SECRET_RULES_FILE",
                "TLS__CERT_FILE",
                "TLS__KEY_FILE",
            ]
            .map(|name| gone(&format!("CAISSON_{name}"))),
        );
        let environment = Environment { variables, root: false };
        let read_settings = Settings::read(None, &environment, Overrides::default()).unwrap();
        let told = read(&read_settings).err().unwrap().to_string();
        for part in [
            "\n  - slots is 0",
            "shim: the shim \"",
            "model.api_key_file: ",
            "prices_file: ",
            "git.extra_ca_file: ",
            "git.secret_rules_file: ",
            "tls.cert_file: ",
            "tls.key_file: ",
            "\"nonsense\"",
            "https://*.example/x",
            "allow_repo \"",
            "gone/a\"",
            "gone/b\"",
            "one.md",
            "two.md",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("repositories: repositories: "), "{told}");
        let mut missing = Settings { workflows_dir: Some(root.path().join("none")), ..read_settings };
        missing.tls.key_file = None;
        let faults = read(&missing).err().unwrap();
        assert_eq!(faults.to_string().matches("tls has only one").count(), 1, "{faults}");
        let told = faults.of(Part::Workflows).unwrap();
        assert!(told.starts_with("workflows_dir: "), "{told}");
    }
}
