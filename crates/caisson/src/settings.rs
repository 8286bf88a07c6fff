//! The server's configuration: defaults, then a TOML file, then `CAISSON_*` variables, then flags.
//!
//! Every key is known; an unknown one is an error. What cannot be read is reported together, and then what does not
//! fit. Secrets come from files or, for the model's key, a variable; they are never shown.

mod api;
mod budget;
pub(crate) mod database;
pub(crate) mod egress;
mod images;
mod keep_alive;
pub(crate) mod mcp;
mod metrics;
mod queue;
mod retention;
mod secrets;
mod servers;
mod sources;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use caisson_domain::limits::SERVER_LOST_MS_DEFAULT;
use caisson_domain::provider::ProviderTool;
use caisson_domain::queue::QueueLimits;
use caisson_domain::server::Role;
use caisson_domain::workflow::WORKSPACE_MIB;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use crate::logins::without_logins;
use crate::presets::Clients;
use crate::roles::Roles;
use api::Api;
use budget::Budget;
use retention::Retention;

pub(crate) use api::Tls;
pub(crate) use secrets::read_secret;

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
    /// How long the sandbox of a run that succeeded waits for the session's next run, in seconds, 0 to 86400. Default 0: it does
    /// not. `CAISSON_KEEP_ALIVE_S`.
    pub keep_alive_s: u32,
    /// Sandboxes that wait at the same time, 1 to 256, within the slots that no run has. Default 4. `CAISSON_KEEP_ALIVE_SANDBOXES`.
    pub keep_alive_sandboxes: usize,
    /// The most memory that sandboxes which wait may have together, in MiB, 64 to 16777216. Default 2048.
    /// `CAISSON_KEEP_ALIVE_MEMORY_MIB`.
    pub keep_alive_memory_mib: u32,
    /// How long a server that shares the database may be silent, in seconds, before another writes its runs off and may take
    /// its sessions up, 40 to 604800; the same for all of them. Default 600. `CAISSON_SERVER_LOST_AFTER_S`.
    pub server_lost_after_s: u32,
    /// What makes sandboxes: `auto`, `docker` or `local`. Default `auto`: Docker where an engine answers, else local. `CAISSON_ENGINE`.
    pub engine: EngineChoice,
    /// Image of sandboxes whose workflow and run name none. Default: the one `caisson image build` makes. `CAISSON_DEFAULT_IMAGE`.
    pub default_image: Option<String>,
    /// Images that a repository may choose by its `.caisson.yaml`, beside the default one: names, or beginnings that end with `/*` or
    /// `:*`. Default: none. `CAISSON_REPOSITORY_IMAGES`, separated by spaces.
    pub repository_images: Vec<String>,
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
    /// Directory of what runs leave, which several servers may share; it must be there. Default: one of the server's own, in its
    /// state directory. `CAISSON_ARTIFACTS_DIR`.
    pub artifacts_dir: Option<PathBuf>,
    /// Version of Claude Code that runs use. `CAISSON_AGENT_VERSION`.
    pub agent_version: String,
    /// Directory with further workflows, `*.md`. `CAISSON_WORKFLOWS_DIR`.
    pub workflows_dir: Option<PathBuf>,
    /// Price list as JSON; default: the one that ships. `CAISSON_PRICES_FILE`.
    pub prices_file: Option<PathBuf>,
    /// First uid of sandboxes when the server runs as root; each session has its own. Default 200000. `CAISSON_UID_BASE`.
    pub uid_base: u32,
    /// File that the signed head of the audit log is kept in. Default: `audit_head` in the state directory; better a place
    /// that whoever can write the database cannot write. `CAISSON_AUDIT_HEAD`.
    pub audit_head: Option<PathBuf>,
    /// The database.
    pub database: database::Database,
    /// The HTTP API.
    pub api: Api,
    /// TLS of the API.
    pub tls: Tls,
    /// What may be spent on the model API.
    pub budget: Budget,
    /// How many runs may run and wait.
    pub queue: QueueLimits,
    /// How long things are kept.
    pub retention: Retention,
    /// What there is to watch.
    pub metrics: metrics::Metrics,
    /// Bounds that keep others safe.
    pub limits: Limits,
    /// File with the master key that credentials are sealed with; it must be there. Default: `master.key` in the state
    /// directory, made at the first start. `CAISSON_MASTER_KEY_FILE`.
    pub master_key_file: Option<PathBuf>,
    /// The Docker Engine.
    pub docker: Docker,
    /// The local engine.
    pub local: Local,
    /// The model API.
    pub model: Model,
    /// Git hosts.
    pub git: Git,
    /// Where tools in sandboxes may go.
    pub egress: egress::Egress,
    /// Which MCP servers workflows may name.
    pub mcp: mcp::Mcp,
    /// What this process does.
    #[serde(skip)]
    pub roles: Roles,
    /// Where the package managers' configuration is, for presets.
    #[serde(skip)]
    pub clients: Clients,
    /// The file that they were read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// Bounds that keep others safe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// The most that a session's workspace and home may hold together, in MiB, 64 to 1048576; workflows and runs may ask for
    /// less. Default 10240. `CAISSON_LIMITS__WORKSPACE_MIB`.
    pub workspace_mib: u32,
    /// Whether sessions get file systems of their own where that can be had; else what they hold is measured. Default true.
    /// `CAISSON_LIMITS__VOLUMES`.
    pub volumes: bool,
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
#[serde(try_from = "String")]
pub(crate) enum EngineChoice {
    /// Docker where a Docker Engine answers, else local.
    Auto,
    /// A Docker Engine.
    Docker,
    /// Bubblewrap over this machine's own programs; no daemon, no image, no root needed.
    Local,
}

impl TryFrom<String> for EngineChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        <Self as clap::ValueEnum>::from_str(&text, false)
            .map_err(|_| format!("engine is \"{}\"; give auto, docker or local", text.escape_debug()))
    }
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
    /// What agents may have the provider do outside. Default: nothing. `CAISSON_MODEL__PROVIDER_TOOLS`.
    pub provider_tools: Vec<String>,
}

impl Model {
    pub(crate) fn provider_tools(&self) -> Vec<ProviderTool> {
        egress::parsed(&self.provider_tools)
    }
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
    /// JSON file with further rules for secrets; none by default. `CAISSON_GIT__SECRET_RULES_FILE`.
    pub secret_rules_file: Option<PathBuf>,
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
    /// `--only`.
    pub only: Vec<Role>,
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
    /// Reads file and variables, applies the flags, and looks whether every value fits.
    ///
    /// # Errors
    /// One error that lists every fault with its remedy.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: &Environment,
        overrides: Overrides,
    ) -> anyhow::Result<Self> {
        let settings = Self::read(file, environment, overrides)?;
        let faults = settings.faults();
        anyhow::ensure!(
            faults.is_empty(),
            "the configuration has faults:\n  - {}",
            without_logins(&faults.join("\n  - "))
        );
        Ok(settings)
    }

    /// Reads file and variables, and applies the flags. Values that do not fit are for [`Settings::faults`] to tell.
    ///
    /// # Errors
    /// One error that lists everything that cannot be read.
    pub(crate) fn read(
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
        settings.roles = Roles::only(overrides.only);
        if settings.docker.host.is_none() {
            settings.docker.host = environment.get("DOCKER_HOST").map(str::to_owned);
        }
        settings.clients = Clients::new(Path::new("/"), &environment.variables);
        settings.state_dir = std::path::absolute(&settings.state_dir)?;
        settings.artifacts_dir = settings.artifacts_dir.map(std::path::absolute).transpose()?;
        settings.file = file.map(Path::to_owned);
        Ok(settings)
    }

    /// Directory of installed agents.
    #[must_use]
    pub(crate) fn agents_dir(&self) -> PathBuf {
        self.agents_dir.clone().unwrap_or_else(|| self.state_dir.join("agents"))
    }

    /// File of the audit log's signed head.
    #[must_use]
    pub(crate) fn audit_head(&self) -> PathBuf {
        self.audit_head.clone().unwrap_or_else(|| self.state_dir.join("audit_head"))
    }

    /// What is the server's alone: its state, its secrets, the file that may hold some, and the engine's socket.
    ///
    /// # Errors
    /// The working directory, which relative paths start from, is gone.
    pub(crate) fn own_paths(&self) -> std::io::Result<Vec<PathBuf>> {
        let model = [&self.model.api_key_file, &self.model.auth_token_file];
        let files = [&self.file, &self.tls.key_file, &self.master_key_file, &self.database.url_file]
            .into_iter()
            .chain(model);
        let tokens = self.git.credentials.iter().map(|credential| &credential.token_file);
        let outside = self.egress.credentials.iter().map(|credential| &credential.token_file);
        let paths =
            files.flatten().chain(tokens).chain(outside).chain([&self.state_dir]).chain(&self.artifacts_dir);
        let socket = self.docker.host.as_deref().and_then(|host| host.strip_prefix("unix://"));
        paths.map(PathBuf::as_path).chain(socket.map(Path::new)).map(std::path::absolute).collect()
    }

    /// Every value that does not fit, with its remedy. What the settings name (files, directories, repositories) is not
    /// looked at.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !(1..=256).contains(&self.slots) {
            faults.push(format!("slots is {}; give 1 to 256", self.slots));
        }
        self.check_keep_alive(&mut faults);
        if self.uid_base < 1000 {
            faults.push(format!(
                "uid_base is {}; give at least 1000, so that no system user is hit",
                self.uid_base
            ));
        }
        self.check_servers(&mut faults);
        faults.extend(images::faults(&self.repository_images));
        self.budget.check(&mut faults);
        self.retention.check(&mut faults);
        self.database.check(&mut faults);
        queue::check(&self.queue, &mut faults);
        if !WORKSPACE_MIB.contains(&self.limits.workspace_mib) {
            faults.push(format!(
                "limits.workspace_mib is {}; give {} to {}",
                self.limits.workspace_mib,
                WORKSPACE_MIB.start(),
                WORKSPACE_MIB.end()
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
        faults.extend(egress::faults_of::<ProviderTool>("model.provider_tools", &self.model.provider_tools));
        if !matches!(self.model.base_url.scheme(), "http" | "https") {
            faults.push(format!("model.base_url \"{}\" is neither http nor https", self.model.base_url));
        }
        if !(1..=1024).contains(&self.git.max_file_mib) {
            faults.push(format!("git.max_file_mib is {}; give 1 to 1024", self.git.max_file_mib));
        }
        self.check_api(&mut faults);
        self.egress.check(&mut faults);
        self.mcp.check(&mut faults);
        faults
    }
}

/// Version of Claude Code that this release was tested with.
pub(crate) const AGENT_VERSION: &str = "2.1.330";

fn defaults(
    builder: config::ConfigBuilder<config::builder::DefaultState>,
    environment: &Environment,
) -> Result<config::ConfigBuilder<config::builder::DefaultState>, config::ConfigError> {
    let empty: Vec<String> = Vec::new();
    let git = ["git.credentials", "git.forbidden_paths", "git.secret_rules_off"];
    let egress =
        ["egress.allow", "egress.presets", "egress.allow_private", "egress.hosts", "egress.credentials"];
    let others = ["local.read_only", "local.toolchains", "mcp.allow", "mcp.allow_private"];
    let mut builder = builder;
    for list in git.into_iter().chain(egress).chain(others) {
        builder = builder.set_default(list, empty.clone())?;
    }
    let nothing = || config::Value::new(None, config::ValueKind::Table(config::Map::new()));
    builder
        .set_default("state_dir", environment.default_state_dir())?
        .set_default("listen", "127.0.0.1:7070")?
        .set_default("slots", 8)?
        .set_default("keep_alive_s", 0)?
        .set_default("keep_alive_sandboxes", 4)?
        .set_default("keep_alive_memory_mib", 2048)?
        .set_default("server_lost_after_s", SERVER_LOST_MS_DEFAULT / 1000)?
        .set_default("repositories", empty.clone())?
        .set_default("repository_images", empty.clone())?
        .set_default("allow_repo", empty.clone())?
        .set_default("min_free_disk_mib", 1024)?
        .set_default("agent_version", AGENT_VERSION)?
        .set_default("uid_base", 200_000)?
        .set_default("engine", "auto")?
        .set_default("api.rate_per_minute", 3000)?
        .set_default("api.connections", 1024)?
        .set_default("api.connections_per_peer", 256)?
        .set_default("api.key_percent", 25)?
        .set_default("api.cors_origins", empty.clone())?
        .set_default("api.automagik", true)?
        .set_default("tls", nothing())?
        .set_default("budget", nothing())?
        .set_default("retention", nothing())?
        .set_default("database", nothing())?
        .set_default("queue", nothing())?
        .set_default("metrics", nothing())?
        .set_default("limits.workspace_mib", 10_240)?
        .set_default("limits.volumes", true)?
        .set_default("docker", nothing())?
        .set_default("local.control_groups", true)?
        .set_default("model.base_url", "https://api.anthropic.com")?
        .set_default("model.provider_tools", Vec::<String>::new())?
        .set_default("git.max_file_mib", 100)?
        .set_default("git.any_submodules", false)?
        .set_default("git.author_name", "Caisson")?
        .set_default("git.author_email", "caisson@localhost")
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
