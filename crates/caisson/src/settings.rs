//! The server's configuration: defaults, then a TOML file, then `CAISSON_*` variables, then flags.
//!
//! Every key is known; an unknown one is an error. What cannot be read is reported together, and then what does not
//! fit. Secrets come from files or, for the model's key, a variable; they are never shown.

mod sources;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

/// Everything `caisson serve` can be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Directory that holds the database, the sessions and everything else that must last. Default: `/var/lib/caisson` for
    /// root, else `caisson` in the user's state directory. `CAISSON_STATE_DIR`.
    pub state_dir: PathBuf,
    /// Address of the API. Default `127.0.0.1:7070`. `CAISSON_LISTEN`.
    pub listen: SocketAddr,
    /// Runs at the same time, 1 to 256. Default 8. `CAISSON_SLOTS`.
    pub slots: usize,
    /// What makes sandboxes: `auto`, `docker` or `local`. Default `auto`: Docker where an engine answers, else local. `CAISSON_ENGINE`.
    pub engine: EngineChoice,
    /// Image of sandboxes whose workflow and run name none. Default: the one `caisson image build` makes. `CAISSON_DEFAULT_IMAGE`.
    pub default_image: Option<String>,
    /// Repositories that runs may name: URLs, or URLs that end with `/*`. Default: none. `CAISSON_REPOSITORIES`, separated by spaces.
    pub repositories: Vec<String>,
    /// Directories on this machine whose repositories runs may name by path. Default: none. `CAISSON_ALLOW_REPO`, separated by spaces.
    pub allow_repo: Vec<PathBuf>,
    /// Repository of runs that name none. `CAISSON_DEFAULT_REPOSITORY`.
    pub default_repository: Option<String>,
    /// Free space of the state directory below which nothing is placed, in MiB. Default 1024. `CAISSON_MIN_FREE_DISK_MIB`.
    pub min_free_disk_mib: u64,
    /// The shim's binary. Default: `caisson-shim` beside this program. `CAISSON_SHIM`.
    pub shim: Option<PathBuf>,
    /// Directory of installed agents. Default: `agents` in the state directory. `CAISSON_AGENTS_DIR`.
    pub agents_dir: Option<PathBuf>,
    /// Version of Claude Code that runs use. `CAISSON_AGENT_VERSION`.
    pub agent_version: String,
    /// Directory with further workflows, `*.md`. `CAISSON_WORKFLOWS_DIR`.
    pub workflows_dir: Option<PathBuf>,
    /// Price list as JSON; default: the one that ships. `CAISSON_PRICES_FILE`.
    pub prices_file: Option<PathBuf>,
    /// First uid of sandboxes when the server runs as root; each session has its own. Default 200000. `CAISSON_UID_BASE`.
    pub uid_base: u32,
    /// The Docker Engine.
    pub docker: Docker,
    /// The local engine.
    pub local: Local,
    /// The model API.
    pub model: Model,
    /// Git hosts.
    pub git: Git,
}

/// The Docker Engine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Docker {
    /// Its socket, `unix:///…`. Default: `DOCKER_HOST`, else `unix:///var/run/docker.sock`. `CAISSON_DOCKER__HOST`.
    pub host: Option<String>,
}

/// What makes sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EngineChoice {
    /// Docker where a Docker Engine answers, else local.
    Auto,
    /// A Docker Engine.
    Docker,
    /// Bubblewrap over this machine's own programs; no daemon, no image, no root needed.
    Local,
}

/// The local engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Local {
    /// Bubblewrap's path. Default: `bwrap` of the system. `CAISSON_LOCAL__BUBBLEWRAP`.
    pub bubblewrap: Option<PathBuf>,
    /// Further files and directories that sandboxes see, read-only and at the same place. Default: none.
    /// `CAISSON_LOCAL__READ_ONLY`, separated by spaces.
    pub read_only: Vec<PathBuf>,
    /// Directories that sandboxes see, read-only, and whose `bin` comes first in their search path. Default: none.
    /// `CAISSON_LOCAL__TOOLCHAINS`, separated by spaces.
    pub toolchains: Vec<PathBuf>,
    /// Whether control groups are used where they can be had. Default true. `CAISSON_LOCAL__CONTROL_GROUPS`.
    pub control_groups: bool,
}

/// The model API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    /// Its base URL. Default: Anthropic's. `CAISSON_MODEL__BASE_URL`.
    pub base_url: Url,
    /// File with the API key. `CAISSON_MODEL__API_KEY_FILE`.
    pub api_key_file: Option<PathBuf>,
    /// The API key itself; prefer the file. `CAISSON_MODEL__API_KEY`.
    pub api_key: Option<SecretString>,
    /// File with a bearer token, instead of a key. `CAISSON_MODEL__AUTH_TOKEN_FILE`.
    pub auth_token_file: Option<PathBuf>,
    /// Proxy on the way out. `CAISSON_MODEL__OUTBOUND_PROXY`.
    pub outbound_proxy: Option<Url>,
    /// PEM file with further certificate authorities. `CAISSON_MODEL__EXTRA_CA_FILE`.
    pub extra_ca_file: Option<PathBuf>,
}

/// Git hosts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Git {
    /// Credentials, each for the URLs below a prefix.
    pub credentials: Vec<GitCredential>,
    /// Proxy on the way out. `CAISSON_GIT__OUTBOUND_PROXY`.
    pub outbound_proxy: Option<Url>,
    /// PEM file with further certificate authorities. `CAISSON_GIT__EXTRA_CA_FILE`.
    pub extra_ca_file: Option<PathBuf>,
    /// Author of the commits that Caisson makes. `CAISSON_GIT__AUTHOR_NAME`.
    pub author_name: String,
    /// The author's address. `CAISSON_GIT__AUTHOR_EMAIL`.
    pub author_email: String,
    /// Patterns of paths that no push may change; none by default. `CAISSON_GIT__FORBIDDEN_PATHS`.
    pub forbidden_paths: Vec<String>,
    /// Largest file in a push, in MiB, 1 to 1024; 100 by default. `CAISSON_GIT__MAX_FILE_MIB`.
    pub max_file_mib: u32,
    /// Rules for secrets that are not applied; none by default. `CAISSON_GIT__SECRET_RULES_OFF`.
    pub secret_rules_off: Vec<String>,
    /// Whether a push may add submodules from everywhere; false by default. `CAISSON_GIT__ANY_SUBMODULES`.
    pub any_submodules: bool,
}

/// One git credential.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GitCredential {
    /// `https://git.example.com/` or deeper.
    pub url_prefix: Url,
    /// User name sent with the token.
    #[serde(default = "token_user")]
    pub username: String,
    /// File with the token.
    pub token_file: PathBuf,
}

fn token_user() -> String {
    "x-access-token".to_owned()
}

/// Values given as flags; they win.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--allow-repo`.
    pub allow_repo: Vec<PathBuf>,
    /// `--engine`.
    pub engine: Option<EngineChoice>,
}

/// The process's environment, as far as settings need it.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    /// Every variable.
    pub variables: Vec<(String, String)>,
    /// Whether the process runs as root.
    pub root: bool,
}

impl Environment {
    /// A variable's value.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn default_state_dir(&self) -> String {
        if self.root {
            return "/var/lib/caisson".to_owned();
        }
        match (self.get("XDG_STATE_HOME"), self.get("HOME")) {
            (Some(state), _) if !state.is_empty() => format!("{state}/caisson"),
            (_, Some(home)) => format!("{home}/.local/state/caisson"),
            (_, None) => ".caisson".to_owned(),
        }
    }
}

impl Settings {
    /// Reads file and variables, and applies the flags.
    ///
    /// # Errors
    /// One error that lists every fault with its remedy.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: &Environment,
        overrides: Overrides,
    ) -> anyhow::Result<Self> {
        let mut settings = sources::read(file, environment)?;
        if let Some(directory) = overrides.state_dir {
            settings.state_dir = directory;
        }
        if let Some(listen) = overrides.listen {
            settings.listen = listen;
        }
        if let Some(engine) = overrides.engine {
            settings.engine = engine;
        }
        settings.allow_repo.extend(overrides.allow_repo);
        if settings.docker.host.is_none() {
            settings.docker.host = environment.get("DOCKER_HOST").map(str::to_owned);
        }
        settings.state_dir = std::path::absolute(&settings.state_dir)?;
        settings.check()?;
        Ok(settings)
    }

    /// Directory of installed agents.
    #[must_use]
    pub(crate) fn agents_dir(&self) -> PathBuf {
        self.agents_dir.clone().unwrap_or_else(|| self.state_dir.join("agents"))
    }

    fn check(&self) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        if !(1..=256).contains(&self.slots) {
            faults.push(format!("slots is {}; give 1 to 256", self.slots));
        }
        if self.uid_base < 1000 {
            faults.push(format!(
                "uid_base is {}; give at least 1000, so that no system user is hit",
                self.uid_base
            ));
        }
        let secrets = [
            self.model.api_key_file.is_some(),
            self.model.api_key.is_some(),
            self.model.auth_token_file.is_some(),
        ];
        if secrets.iter().filter(|given| **given).count() > 1 {
            faults.push(
                "model has more than one of api_key_file, api_key and auth_token_file; keep one".to_owned(),
            );
        }
        if !matches!(self.model.base_url.scheme(), "http" | "https") {
            faults.push(format!("model.base_url \"{}\" is neither http nor https", self.model.base_url));
        }
        if !(1..=1024).contains(&self.git.max_file_mib) {
            faults.push(format!("git.max_file_mib is {}; give 1 to 1024", self.git.max_file_mib));
        }
        for directory in &self.allow_repo {
            if !directory.is_dir() {
                faults.push(format!("allow_repo names \"{}\", which is no directory", directory.display()));
            }
        }
        for file in [
            &self.model.api_key_file,
            &self.model.auth_token_file,
            &self.model.extra_ca_file,
            &self.git.extra_ca_file,
            &self.prices_file,
        ]
        .into_iter()
        .flatten()
        .chain(self.git.credentials.iter().map(|credential| &credential.token_file))
        {
            if let Err(error) = std::fs::File::open(file) {
                faults.push(format!("the file \"{}\" cannot be read: {error}", file.display()));
            }
        }
        anyhow::ensure!(faults.is_empty(), "the configuration has faults:\n  - {}", faults.join("\n  - "));
        Ok(())
    }
}

/// Version of Claude Code that this release was tested with.
pub(crate) const AGENT_VERSION: &str = "2.1.330";

fn defaults(
    builder: config::ConfigBuilder<config::builder::DefaultState>,
    environment: &Environment,
) -> Result<config::ConfigBuilder<config::builder::DefaultState>, config::ConfigError> {
    let empty: Vec<String> = Vec::new();
    let nothing = || config::Value::new(None, config::ValueKind::Table(config::Map::new()));
    builder
        .set_default("state_dir", environment.default_state_dir())?
        .set_default("listen", "127.0.0.1:7070")?
        .set_default("slots", 8)?
        .set_default("repositories", empty.clone())?
        .set_default("allow_repo", empty.clone())?
        .set_default("min_free_disk_mib", 1024)?
        .set_default("agent_version", AGENT_VERSION)?
        .set_default("uid_base", 200_000)?
        .set_default("engine", "auto")?
        .set_default("docker", nothing())?
        .set_default("local.read_only", empty.clone())?
        .set_default("local.toolchains", empty.clone())?
        .set_default("local.control_groups", true)?
        .set_default("model.base_url", "https://api.anthropic.com")?
        .set_default("git.credentials", empty.clone())?
        .set_default("git.forbidden_paths", empty.clone())?
        .set_default("git.secret_rules_off", empty)?
        .set_default("git.max_file_mib", 100)?
        .set_default("git.any_submodules", false)?
        .set_default("git.author_name", "Caisson")?
        .set_default("git.author_email", "caisson@localhost")
}

/// Reads a secret from a file: its text without the final line end.
///
/// # Errors
/// The file cannot be read, is empty or has more than one line.
pub(crate) fn read_secret(file: &Path) -> anyhow::Result<SecretString> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("the secret file \"{}\" cannot be read", file.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(
        !text.is_empty() && !text.contains('\n'),
        "the secret file \"{}\" must hold exactly one line",
        file.display()
    );
    Ok(text.to_owned().into())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
