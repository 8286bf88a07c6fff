//! The composition root: store, engine, gateway, worker and API in one process.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use caisson_api::{AgentInfo, ApiConfig, ApiLimits, ServeLimits};
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_domain::workflow::Workflow;
use caisson_gateway::{Gateway, GatewayConfig, GitIdentity};
use caisson_store::{Clock, Store};
use caisson_worker::{Parts, Probe, Timing, UidPlan, Worker, WorkerConfig};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agents::Agents;
use crate::engines::ActiveEngine;
use crate::inputs::{self, Inputs};
use crate::server_id::server_id;
use crate::settings::Settings;

/// How long a stopping server waits for its tasks.
const STOP_WAIT: Duration = Duration::from_secs(10);
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
        let inputs = inputs::read(&settings)?;
        make_directory(&settings.state_dir)?;
        let lock = lock_state(&settings.state_dir)?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("{} cannot be listened on; choose another address with --listen", settings.listen)
        })?;
        let address = listener.local_addr()?;
        let store = open_store(&settings.state_dir).await?;
        put_workflows(&store, &inputs.workflows).await?;
        let id = server_id(&settings.state_dir, &store).await?;
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());

        let engine = ActiveEngine::choose(&settings, &id, Some(&store)).await?;
        for weakness in engine.weaknesses() {
            warn!("weaker than it could be: {weakness}");
        }
        Gateway::start(gateway_config(&settings, &inputs, &id), store.clone(), &tracker, cancel.clone())
            .await
            .context("the gateway cannot start")?;
        let probe = Arc::new(Checks {
            engine: engine.clone(),
            agents: Agents::new(settings.agents_dir()),
            agent_version: settings.agent_version.clone(),
        });
        let worker = worker_config(&settings, &inputs.shim, &id, &engine)?;
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
            caisson_api::router(api_config(&settings, &inputs, &engine), store.clone(), cancel.clone());
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

async fn put_workflows(store: &Store, workflows: &[Workflow]) -> anyhow::Result<()> {
    let project = ProjectId::default_project();
    for workflow in workflows {
        let stored = store.workflow(&project, &workflow.name).await?;
        if stored.is_none_or(|stored| stored.workflow != *workflow) {
            store.put_workflow(&project, workflow).await?;
        }
    }
    Ok(())
}

fn api_config(settings: &Settings, inputs: &Inputs, engine: &ActiveEngine) -> ApiConfig {
    let agents = Agents::new(settings.agents_dir());
    let version = agents.installed(&settings.agent_version).map(|manifest| manifest.version);
    ApiConfig {
        allow: inputs.allow.clone(),
        default_repository: inputs.default_repository.clone(),
        artifacts_dir: settings.state_dir.join("artifacts"),
        without_images: engine.default_image().is_none(),
        agent: AgentInfo { version },
        limits: ApiLimits::default(),
    }
}

fn gateway_config(settings: &Settings, inputs: &Inputs, id: &ServerId) -> GatewayConfig {
    if inputs.model.credential.is_none() {
        warn!("no model credential is configured: agents will be refused; set model.api_key_file");
    }
    GatewayConfig {
        server: id.clone(),
        doors_dir: settings.state_dir.join("doors"),
        quarantine_dir: settings.state_dir.join("quarantine"),
        artifacts_dir: settings.state_dir.join("artifacts"),
        model: inputs.model.clone(),
        prices: inputs.prices.clone(),
        git: inputs.git.clone(),
        identity: GitIdentity {
            name: settings.git.author_name.clone(),
            email: settings.git.author_email.clone(),
        },
    }
}

fn worker_config(
    settings: &Settings,
    shim: &Path,
    id: &ServerId,
    engine: &ActiveEngine,
) -> anyhow::Result<WorkerConfig> {
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
        shim: install_shim(settings, shim)?,
        agent_dir: Some(agents.directory(&settings.agent_version)),
        uids,
        min_free_disk_bytes: settings.min_free_disk_mib.saturating_mul(1024 * 1024),
        timing: Timing::default(),
    })
}

/// Copies the shim into the state directory under its content's hash: a living sandbox keeps the one it was started
/// with, whatever is built or installed later.
fn install_shim(settings: &Settings, shim: &Path) -> anyhow::Result<PathBuf> {
    let bytes = fs::read(shim)?;
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
