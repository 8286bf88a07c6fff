//! The composition root: store, engine, gateway, worker and API in one process.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use caisson_api::{AgentInfo, ApiConfig, ApiLimits, ServeLimits};
use caisson_domain::git::{AllowList, Repository};
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_domain::usage::PriceTable;
use caisson_domain::workflow::Workflow;
use caisson_gateway::{
    Gateway, GatewayConfig, GitCredential, GitIdentity, GitUpstreams, ModelCredential, ModelUpstream,
};
use caisson_store::{Clock, Store};
use caisson_worker::{Parts, Probe, Timing, UidPlan, Worker, WorkerConfig};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agents::Agents;
use crate::engines::ActiveEngine;
use crate::settings::{self, Settings};

/// How long a stopping server waits for its tasks.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// The workflows that ship with Caisson.
const SHIPPED_WORKFLOWS: [&str; 1] = [include_str!("../../../workflows/bug-fixer.md")];
/// Most workflow files read from a directory.
const WORKFLOW_FILES: usize = 200;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where the API listens.
    pub address: SocketAddr,
    /// The store, for what runs in the same process.
    pub store: Store,
    tracker: TaskTracker,
    cancel: CancellationToken,
    // The lock is given back when the server is dropped.
    _lock: fs::File,
}

impl Server {
    /// Starts every part. Living sandboxes of an earlier process are taken over.
    ///
    /// # Errors
    /// The state directory is in use or cannot be used, the address is taken, or a file that the settings name is bad.
    pub(crate) async fn start(settings: Settings) -> anyhow::Result<Self> {
        make_directory(&settings.state_dir)?;
        let lock = lock_state(&settings.state_dir)?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("{} cannot be listened on; choose another address with --listen", settings.listen)
        })?;
        let address = listener.local_addr()?;
        let store = open_store(&settings.state_dir).await?;
        load_workflows(&store, settings.workflows_dir.as_deref()).await?;
        let id = server_id(&settings.state_dir, store.now_ms())?;
        let allow = allow_list(&settings)?;
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());

        let engine = ActiveEngine::choose(&settings, &id, &store).await?;
        for weakness in engine.weaknesses() {
            warn!("weaker than it could be: {weakness}");
        }
        Gateway::start(gateway_config(&settings, &id, &allow)?, store.clone(), &tracker, cancel.clone())
            .await
            .context("the gateway cannot start")?;
        let probe = Arc::new(Checks {
            engine: engine.clone(),
            agents: Agents::new(settings.agents_dir()),
            agent_version: settings.agent_version.clone(),
        });
        let worker = worker_config(&settings, &id, &engine)?;
        let parts = Parts {
            store: store.clone(),
            engine: engine.engine(),
            probe: Some(probe),
            tracker: tracker.clone(),
            cancel: cancel.clone(),
            hook: None,
        };
        Worker::start(worker, parts).await.context("the worker cannot start")?;

        let router =
            caisson_api::router(api_config(&settings, allow, &engine)?, store.clone(), cancel.clone());
        let stop = cancel.clone();
        tracker.spawn(async move {
            caisson_api::serve(listener, router, ServeLimits::default(), stop).await;
        });
        tracker.close();
        info!(address = %address, server.id = %id, "listening on http://{address}");
        Ok(Self { address, store, tracker, cancel, _lock: lock })
    }

    /// Stops every part. Sandboxes stay alive: the next start takes them over.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        if tokio::time::timeout(STOP_WAIT, self.tracker.wait()).await.is_err() {
            warn!("some tasks did not end in time; they are left behind");
        }
        self.store.close().await.ok();
    }
}

/// Opens the store of a state directory.
///
/// # Errors
/// The directory or the database cannot be used.
pub(crate) async fn open_store(state_dir: &Path) -> anyhow::Result<Store> {
    make_directory(state_dir)?;
    Store::open(&state_dir.join("caisson.db"), Clock::system())
        .await
        .with_context(|| format!("the database in \"{}\" cannot be opened", state_dir.display()))
}

fn make_directory(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("the state directory \"{}\" cannot be made", directory.display()))
}

/// One server to a state directory: two would give the same sandboxes orders.
fn lock_state(state_dir: &Path) -> anyhow::Result<fs::File> {
    let path = state_dir.join("lock");
    let file = fs::File::create(&path)
        .with_context(|| format!("\"{}\" cannot be written; choose another --state-dir", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => anyhow::bail!(
            "another server uses the state directory \"{}\"; stop it or choose another --state-dir",
            state_dir.display()
        ),
        Err(fs::TryLockError::Error(error)) => Err(error).context("the state directory cannot be locked"),
    }
}

/// The id of the server that uses a state directory, if one ever did.
#[must_use]
pub(crate) fn known_server_id(state_dir: &Path) -> Option<ServerId> {
    fs::read_to_string(state_dir.join("server_id")).ok()?.trim().parse().ok()
}

/// The id that stays with the state directory.
fn server_id(state_dir: &Path, now_ms: i64) -> anyhow::Result<ServerId> {
    let path = state_dir.join("server_id");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| {
            format!("\"{}\" does not hold a server id; restore it from a backup", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = ServerId::new(now_ms, rand::random());
            let staged = state_dir.join("server_id.new");
            fs::write(&staged, id.as_str())?;
            fs::File::open(&staged)?.sync_all()?;
            fs::rename(staged, &path)?;
            // The name must last as well: a new id would orphan everything that carries this one.
            fs::File::open(state_dir)?.sync_all()?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("\"{}\" cannot be read", path.display())),
    }
}

async fn load_workflows(store: &Store, directory: Option<&Path>) -> anyhow::Result<()> {
    let project = ProjectId::default_project();
    let mut texts: Vec<(String, String)> =
        SHIPPED_WORKFLOWS.iter().map(|text| ("shipped".to_owned(), (*text).to_owned())).collect();
    if let Some(directory) = directory {
        let entries = fs::read_dir(directory)
            .with_context(|| format!("the workflows directory \"{}\" cannot be read", directory.display()))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "md"))
            .collect();
        files.sort();
        anyhow::ensure!(
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
    for (origin, text) in texts {
        let workflow =
            Workflow::parse(&text).with_context(|| format!("the workflow of \"{origin}\" cannot be used"))?;
        let stored = store.workflow(&project, &workflow.name).await?;
        if stored.is_none_or(|stored| stored.workflow != workflow) {
            store.put_workflow(&project, &workflow).await?;
        }
    }
    Ok(())
}

/// The allow-list, with links resolved. What agents write lies below the state directory, and git runs hooks of the
/// repositories that it is given: the two must have nothing in common.
fn allow_list(settings: &Settings) -> anyhow::Result<AllowList> {
    let state_dir = settings.state_dir.canonicalize()?;
    let directories: Vec<PathBuf> = settings
        .allow_repo
        .iter()
        .map(|directory| {
            directory
                .canonicalize()
                .with_context(|| format!("\"{}\" cannot be resolved", directory.display()))
        })
        .collect::<anyhow::Result<_>>()?;
    for directory in &directories {
        anyhow::ensure!(
            !directory.starts_with(&state_dir) && !state_dir.starts_with(directory),
            "allow_repo \"{}\" and the state directory \"{}\" lie within one another; repositories must be kept apart from what agents write",
            directory.display(),
            state_dir.display()
        );
    }
    Ok(AllowList::new(&settings.repositories, directories)?)
}

fn api_config(settings: &Settings, allow: AllowList, engine: &ActiveEngine) -> anyhow::Result<ApiConfig> {
    let default_repository: Option<Repository> = settings
        .default_repository
        .as_deref()
        .map(str::parse)
        .transpose()
        .context("default_repository cannot be used")?;
    let agents = Agents::new(settings.agents_dir());
    let version = agents.installed(&settings.agent_version).map(|manifest| manifest.version);
    Ok(ApiConfig {
        allow,
        default_repository,
        artifacts_dir: settings.state_dir.join("artifacts"),
        without_images: engine.default_image().is_none(),
        agent: AgentInfo { version },
        limits: ApiLimits::default(),
    })
}

fn gateway_config(settings: &Settings, id: &ServerId, allow: &AllowList) -> anyhow::Result<GatewayConfig> {
    let model = &settings.model;
    let credential = match (&model.api_key_file, &model.api_key, &model.auth_token_file) {
        (Some(file), _, _) => Some(ModelCredential::ApiKey(settings::read_secret(file)?)),
        (None, Some(key), _) => Some(ModelCredential::ApiKey(key.clone())),
        (None, None, Some(file)) => Some(ModelCredential::Bearer(settings::read_secret(file)?)),
        (None, None, None) => None,
    };
    if credential.is_none() {
        warn!("no model credential is configured: agents will be refused; set model.api_key_file");
    }
    let prices = match &settings.prices_file {
        Some(file) => PriceTable::from_json(&fs::read_to_string(file)?)
            .with_context(|| format!("\"{}\" cannot be used", file.display()))?,
        None => PriceTable::shipped(),
    };
    let credentials = settings
        .git
        .credentials
        .iter()
        .map(|credential| {
            Ok(GitCredential {
                url_prefix: credential.url_prefix.clone(),
                username: credential.username.clone(),
                token: settings::read_secret(&credential.token_file)?,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(GatewayConfig {
        server: id.clone(),
        doors_dir: settings.state_dir.join("doors"),
        artifacts_dir: settings.state_dir.join("artifacts"),
        model: ModelUpstream {
            base_url: model.base_url.clone(),
            credential,
            outbound_proxy: model.outbound_proxy.clone(),
            extra_ca_pem: read_pem(model.extra_ca_file.as_deref())?,
        },
        prices,
        git: GitUpstreams {
            credentials,
            forbidden: vec![settings.state_dir.canonicalize()?],
            allow: allow.clone(),
            outbound_proxy: settings.git.outbound_proxy.clone(),
            extra_ca_pem: read_pem(settings.git.extra_ca_file.as_deref())?,
            git_program: PathBuf::from("git"),
        },
        identity: GitIdentity {
            name: settings.git.author_name.clone(),
            email: settings.git.author_email.clone(),
        },
    })
}

fn read_pem(file: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    file.map(|file| fs::read(file).with_context(|| format!("\"{}\" cannot be read", file.display())))
        .transpose()
}

fn worker_config(settings: &Settings, id: &ServerId, engine: &ActiveEngine) -> anyhow::Result<WorkerConfig> {
    let agents = Agents::new(settings.agents_dir());
    let uids = if nix::unistd::geteuid().is_root() {
        UidPlan::PerSession { base: settings.uid_base }
    } else {
        UidPlan::Fixed { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    };
    Ok(WorkerConfig {
        server: id.clone(),
        engine_name: engine.name().to_owned(),
        slots: settings.slots,
        state_dir: settings.state_dir.clone(),
        default_image: engine.default_image(),
        weaknesses: engine.weaknesses(),
        shim: install_shim(settings)?,
        agent_dir: Some(agents.directory(&settings.agent_version)),
        uids,
        min_free_disk_bytes: settings.min_free_disk_mib.saturating_mul(1024 * 1024),
        timing: Timing::default(),
    })
}

/// The shim that the settings name, or the one beside this program.
///
/// # Errors
/// There is none.
pub(crate) fn find_shim(settings: &Settings) -> anyhow::Result<PathBuf> {
    let path = match &settings.shim {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("caisson-shim"),
    };
    anyhow::ensure!(
        path.is_file(),
        "the shim \"{}\" is missing; build it with `make build`, or name it with CAISSON_SHIM",
        path.display()
    );
    Ok(path)
}

/// Copies the shim into the state directory under its content's hash: a living sandbox keeps the one it was started
/// with, whatever is built or installed later.
fn install_shim(settings: &Settings) -> anyhow::Result<PathBuf> {
    let bytes = fs::read(find_shim(settings)?)?;
    let hash = hex::encode(Sha256::digest(&bytes));
    let directory = settings.state_dir.join("shim");
    make_directory(&directory)?;
    let place = directory.join(&hash[..16]);
    if !place.is_file() {
        let staged = tempfile::NamedTempFile::new_in(&directory)?;
        fs::write(staged.path(), bytes)?;
        fs::set_permissions(staged.path(), fs::Permissions::from_mode(0o555))?;
        staged.persist(&place).context("the shim cannot be installed")?;
    }
    Ok(place)
}

/// What keeps this server from placing runs, asked again and again by the worker.
#[derive(Debug)]
pub(crate) struct Checks {
    /// The engine.
    pub engine: ActiveEngine,
    /// Installed agents.
    pub agents: Agents,
    /// The version that runs use.
    pub agent_version: String,
}

#[async_trait::async_trait]
impl Probe for Checks {
    async fn problems(&self) -> Vec<PlacementProblem> {
        let mut problems = self.engine.problems().await;
        if self.agents.installed(&self.agent_version).is_none() {
            let version = &self.agent_version;
            let message = format!(
                "Claude Code {version} is not installed; run `caisson agent install --version {version}`"
            );
            problems.push(PlacementProblem { code: ProblemCode::AgentMissing, message });
        }
        problems
    }
}

/// An error with its causes, in one line.
#[must_use]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
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
        assert!(allow_list(&settings(&state, &apart)).is_ok());
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&state, &link).unwrap();
        for overlapping in [&state, root.path(), &state.join("inner"), &link] {
            let error = allow_list(&settings(&state, overlapping)).unwrap_err().to_string();
            assert!(error.contains("kept apart"), "{}: {error}", overlapping.display());
        }
    }

    #[test]
    fn a_server_keeps_its_id_and_refuses_a_damaged_one() {
        let root = tempfile::tempdir().unwrap();
        let id = server_id(root.path(), 1).unwrap();
        assert_eq!(server_id(root.path(), 2).unwrap(), id);
        fs::write(root.path().join("server_id"), "srv_x").unwrap();
        assert!(server_id(root.path(), 3).unwrap_err().to_string().contains("backup"));
    }
}
