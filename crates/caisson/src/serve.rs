//! The composition root: store, engine, gateway, worker and API in one process.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use caisson_api::{AgentInfo, ApiConfig, ApiLimits, ServeLimits};
use caisson_domain::budget::ProjectBudgets;
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::limits::{PAGE_ITEMS, PROJECTS};
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_domain::workflow::Workflow;
use caisson_gateway::{Gateway, GatewayConfig, GitIdentity};
use caisson_store::{Clock, Look, Store};
use caisson_worker::{DiskCaps, Parts, Probe, Timing, UidPlan, Worker, WorkerConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agents::Agents;
use crate::audit_head::{HeadKeeper, check_place, keeper_or_warn};
use crate::engines::{ActiveEngine, Purpose};
use crate::exposure;
use crate::inputs::{self, Inputs};
use crate::log;
use crate::server_id::server_id;
use crate::settings::Settings;
use crate::shim;
use crate::vault::{has_model_credential, unlock};

/// How long a stopping server waits for its tasks.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where the API listens.
    pub address: SocketAddr,
    /// The store, for what runs in the same process.
    pub store: Store,
    head: Option<Arc<HeadKeeper>>,
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
        let inputs = read_inputs(&settings)?;
        let certificate = inputs.certificate.clone();
        for weakness in exposure::weaknesses(&settings) {
            warn!("{weakness}");
        }
        make_directory(&settings.state_dir)?;
        check_place(&settings.state_dir, &settings.audit_head())?;
        let lock = lock_state(&settings.state_dir)?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("{} cannot be listened on; choose another address with --listen", settings.listen)
        })?;
        let address = listener.local_addr()?;
        let store = open_store(&settings).await?;
        unlock(&settings, &store).await?;
        for weakness in exposure::weaknesses_of_store(&store).await? {
            warn!("{weakness}");
        }
        put_workflows(&store, &inputs.workflows).await?;
        let id = server_id(&settings.state_dir, &store).await?;
        let head = keep_audit(&settings, &store, &id).await?;
        // Audited, so not before the store knows whose chain it writes.
        put_budgets(&store, &settings).await?;
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());

        let engine = ActiveEngine::choose(&settings, &id, Some(&store), Purpose::Serving).await?;
        let caps = disk_caps(&settings).await?;
        let weaknesses = engine.weaknesses().into_iter().chain(caps.weakness());
        warn_of(weaknesses, &inputs, has_model_credential(&store).await?);
        Gateway::start(gateway_config(&settings, &inputs, &id), store.clone(), &tracker, cancel.clone())
            .await
            .context("the gateway cannot start")?;
        let probe = Arc::new(Checks {
            engine: engine.clone(),
            agents: Agents::new(settings.agents_dir()),
            agent_version: settings.agent_version.clone(),
        });
        let worker = worker_config(&settings, &inputs.shim, (&id, caps), &engine)?;
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
        let limits = ServeLimits {
            connections: settings.api.connections,
            connections_per_peer: settings.api.connections_per_peer,
            ..ServeLimits::default()
        };
        let scheme = if let Some(certificate) = certificate {
            let config = certificate.server_config()?;
            tracker.spawn(certificate.follow(cancel.clone()));
            tracker.spawn(caisson_api::serve_tls(listener, router, limits, config, stop));
            "https"
        } else {
            tracker.spawn(caisson_api::serve(listener, router, limits, stop));
            "http"
        };
        if let Some(head) = head.clone() {
            let (store, stop) = (store.clone(), cancel.clone());
            tracker.spawn(async move { head.follow(&store, &stop).await });
        }
        tracker.close();
        info!(address = %address, server.id = %id, "listening on {scheme}://{address}");
        Ok(Self { address, store, head, tracker, cancel, _lock: lock })
    }

    /// Stops every part. Sandboxes stay alive: the next start takes them over.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        if tokio::time::timeout(STOP_WAIT, self.tracker.wait()).await.is_err() {
            warn!("some tasks did not end in time; they are left behind");
        }
        if let Some(head) = &self.head {
            // What was recorded while the parts stopped.
            head.keep_or_log(&self.store).await;
        }
        self.store.close().await.ok();
    }
}

/// Opens the server's chain of the audit log, and what keeps its head.
///
/// # Errors
/// The database cannot be written.
pub(crate) async fn keep_audit(
    settings: &Settings,
    store: &Store,
    server: &ServerId,
) -> anyhow::Result<Option<Arc<HeadKeeper>>> {
    store.keep_audit(server).await.context("the audit log cannot be opened")?;
    Ok(keeper_or_warn(&settings.state_dir, &settings.audit_head(), server).map(Arc::new))
}

/// Makes the state directory and opens the store.
///
/// # Errors
/// The directory or the database cannot be used.
pub(crate) async fn open_store(settings: &Settings) -> anyhow::Result<Store> {
    make_directory(&settings.state_dir)?;
    let place = settings.database_place()?;
    if !settings.database.migrate
        && let Look::Behind { migrations } = place.look(Clock::system()).await?
    {
        anyhow::bail!(
            "{place} lacks {migrations} migrations, and database.migrate is false; run `caisson db migrate`"
        );
    }
    place.open(Clock::system()).await.with_context(|| format!("the database cannot be opened: {place}"))
}

pub(crate) fn make_directory(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("the state directory \"{}\" cannot be made", directory.display()))
}

/// One server to a state directory: two would give the same sandboxes orders.
///
/// # Errors
/// Another server has it, or it cannot be written.
pub(crate) fn lock_state(state_dir: &Path) -> anyhow::Result<fs::File> {
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

/// Every project has the server's workflows.
async fn put_workflows(store: &Store, workflows: &[Workflow]) -> anyhow::Result<()> {
    // One page: there are no more projects.
    const { assert!(PROJECTS <= PAGE_ITEMS as i64) };
    for project in store.list_projects(None, PAGE_ITEMS).await? {
        for workflow in workflows {
            let stored = store.workflow(&project.id, &workflow.name).await?;
            if stored.is_none_or(|stored| stored.workflow != *workflow) {
                store.put_workflow(&project.id, workflow).await?;
            }
        }
    }
    Ok(())
}

/// What the settings say of the default project's budgets; what they do not say is for the API to set.
async fn put_budgets(store: &Store, settings: &Settings) -> anyhow::Result<()> {
    let budgets = ProjectBudgets {
        total_micro_usd: settings.budget.project_micro_usd,
        day_micro_usd: settings.budget.day_micro_usd,
    };
    if store.set_budgets(&ProjectId::default_project(), &budgets).await? {
        info!(?budgets, "the default project has other budgets now");
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
        budget_soft_percent: Some(settings.budget.soft_percent),
        retention: settings.retention.policy(),
        agent: AgentInfo { version },
        cors_origins: settings.api.cors_origins.clone(),
        tls: settings.tls.cert_file.is_some(),
        limits: ApiLimits { rate_per_minute: settings.api.rate_per_minute, ..ApiLimits::default() },
    }
}

fn gateway_config(settings: &Settings, inputs: &Inputs, id: &ServerId) -> GatewayConfig {
    GatewayConfig {
        server: id.clone(),
        doors_dir: settings.state_dir.join("doors"),
        quarantine_dir: settings.state_dir.join("quarantine"),
        artifacts_dir: settings.state_dir.join("artifacts"),
        model: inputs.model.clone(),
        prices: inputs.prices.clone(),
        git: inputs.git.clone(),
        egress: inputs.egress.clone(),
        mcp: inputs.mcp.clone(),
        secrets: log::secrets().clone(),
        identity: GitIdentity {
            name: settings.git.author_name.clone(),
            email: settings.git.author_email.clone(),
        },
    }
}

/// What whoever started the server should know.
fn warn_of(weaknesses: impl Iterator<Item = String>, inputs: &Inputs, stored_model_credential: bool) {
    for weakness in weaknesses {
        warn!("weaker than it could be: {weakness}");
    }
    for note in &inputs.egress_notes {
        warn!("{note}");
    }
    if inputs.model.credential.is_none() && !stored_model_credential {
        warn!(
            "no model credential is there: agents will be refused; add one with `caisson credential add`, or set model.api_key_file"
        );
    }
}

/// What the settings name; from then on the log shows no secret of it.
fn read_inputs(settings: &Settings) -> anyhow::Result<Inputs> {
    let inputs = inputs::read(settings)?;
    let secrets = caisson_gateway::secrets(&inputs.model, &inputs.git, &inputs.egress);
    log::secrets().replace(&secrets);
    Ok(inputs)
}

/// How sessions can be kept within their bounds, tried in the state directory.
async fn disk_caps(settings: &Settings) -> anyhow::Result<DiskCaps> {
    let (wanted, directory) = (settings.limits.volumes, settings.state_dir.join("volumes"));
    make_directory(&directory)?;
    Ok(tokio::task::spawn_blocking(move || DiskCaps::find(wanted, &directory)).await?)
}

fn worker_config(
    settings: &Settings,
    shim: &Path,
    (id, caps): (&ServerId, DiskCaps),
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
        weaknesses: engine.weaknesses().into_iter().chain(caps.weakness()).collect(),
        shim: install_shim(settings, shim)?,
        agent_dir: Some(agents.directory(&settings.agent_version)),
        uids,
        workspace_mib: settings.limits.workspace_mib,
        disk_caps: caps,
        retention: settings.retention.policy(),
        min_free_disk_bytes: settings.min_free_disk_mib.saturating_mul(1024 * 1024),
        timing: Timing::default(),
    })
}

fn install_shim(settings: &Settings, shim: &Path) -> anyhow::Result<PathBuf> {
    let directory = settings.state_dir.join("shim");
    make_directory(&directory)?;
    shim::install(&directory, shim)
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
