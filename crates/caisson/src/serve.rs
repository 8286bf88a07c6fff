//! The composition root: store, engine, gateway, worker and API in one process, or some of them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use caisson_api::config::{STREAMS, part};
use caisson_api::{AgentInfo, ApiConfig, ApiLimits, MetricsFor, ServeLimits};
use caisson_domain::budget::ProjectBudgets;
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::limits::{PAGE_ITEMS, PROJECTS};
use caisson_domain::server::Role;
use caisson_domain::workflow::Workflow;
use caisson_gateway::{Gateway, GatewayConfig, GitIdentity};
use caisson_store::{Clock, Store};
use caisson_worker::{DiskCaps, KeepAlive, Parts, Timing, UidPlan, Worker, WorkerConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agents::Agents;
use crate::artifacts::{self, Watched};
use crate::audit_head::{HeadKeeper, check_place, keeper_or_warn};
use crate::engines::{ActiveEngine, Purpose};
use crate::exposure;
use crate::inputs::{self, Inputs};
use crate::log;
use crate::probe::Checks;
use crate::roles::{self, lock_state};
use crate::server_id::{known_server_id, server_id};
use crate::settings::database::Place;
use crate::settings::{EngineChoice, Settings};
use crate::shared_paths::SharedPaths;
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
    head: Arc<Head>,
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// Why it must not go on, once there is a reason.
    must_end: watch::Sender<Option<String>>,
    // They are given back when the server is dropped.
    _locks: Vec<fs::File>,
}

/// The head of the server's audit log, which one of its processes keeps.
#[derive(Debug)]
struct Head {
    keeper: Option<Arc<HeadKeeper>>,
    /// That this is the process.
    place: OnceLock<fs::File>,
}

impl Head {
    async fn follow(&self, state_dir: &Path, store: &Store, stop: &CancellationToken) {
        let Some(keeper) = &self.keeper else { return };
        if let Some(place) = roles::sole_keeper(state_dir, stop).await
            && self.place.set(place).is_ok()
        {
            keeper.follow(store, stop).await;
        }
    }

    /// Signs what was recorded while the parts stopped.
    async fn end(&self, store: &Store) {
        if let Some(keeper) = self.keeper.as_ref().filter(|_| self.place.get().is_some()) {
            keeper.keep_or_log(store).await;
        }
    }
}

impl Server {
    /// Starts every part that the settings name. Living sandboxes of an earlier process are taken over.
    ///
    /// # Errors
    /// The state directory is in use or cannot be used, the address is taken, or a file that the settings name is bad.
    pub(crate) async fn start(settings: Settings) -> anyhow::Result<Self> {
        let mut inputs = read_inputs(&settings)?;
        roles::check(&settings)?;
        for weakness in exposure::weaknesses(&settings) {
            warn!("{weakness}");
        }
        make_directory(&settings.state_dir)?;
        check_place(&settings.state_dir, &settings.audit_head())?;
        let locks = roles::lock(&settings)?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("{} cannot be listened on; choose another address with --listen", settings.listen)
        })?;
        let address = listener.local_addr()?;
        let store = open_own_store(&settings).await?;
        store.set_server_lost_after_ms(i64::from(settings.server_lost_after_s) * 1000);
        unlock(&settings, &store).await?;
        for weakness in exposure::weaknesses_of_store(&store).await? {
            warn!("{weakness}");
        }
        let id = server_id(&settings.state_dir, &store).await?;
        // A copy that is refused has written nothing.
        roles::alone(&store, &settings.state_dir, &roles::presence(&settings, &id)).await?;
        inputs.shared_artifacts = artifacts::at_start(&settings, &store, &id).await?;
        put_workflows(&store, &inputs.workflows).await?;
        let head = keep_audit(&settings, &store, &id).await?;
        // Audited, so not before the store knows whose chain it writes.
        put_budgets(&store, &settings).await?;
        let head = Arc::new(Head { keeper: head, place: OnceLock::new() });
        let server = Self {
            address,
            store,
            head,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            must_end: watch::Sender::new(None),
            _locks: locks,
        };
        let images = server.start_parts(&settings, &inputs, &id).await?;
        server.listen(listener, &settings, (&inputs, &id, images))?;
        server.tracker.close();
        info!(address = %address, server.id = %id, "server {id} is here, as {}", settings.roles);
        Ok(server)
    }

    /// Starts gateway and worker, and what tells of this process; returns whether sandboxes are made of images.
    async fn start_parts(&self, settings: &Settings, inputs: &Inputs, id: &ServerId) -> anyhow::Result<bool> {
        let (store, tracker, cancel) = (&self.store, &self.tracker, &self.cancel);
        let images = if settings.roles.has(Role::Worker) {
            let engine = ActiveEngine::choose(settings, id, Some(store), Purpose::Serving).await?;
            let paths = engine.shared_paths(&settings.state_dir);
            if let Some(paths) = &paths {
                paths.at_start().await?;
            }
            let caps = disk_caps(settings).await?;
            let weaknesses = engine.weaknesses().into_iter().chain(caps.weakness());
            warn_of(weaknesses, inputs, has_model_credential(store).await?);
            self.start_gateway(settings, inputs, id).await?;
            let worker = worker_config(settings, inputs, (id, caps), &engine)?;
            let images = engine.default_image().is_some();
            if let Some(keeper) = engine.image_keeper(settings, store) {
                tracker.spawn(keeper.keep(cancel.clone()));
            }
            self.start_worker(settings, worker, (engine, paths)).await?;
            images
        } else {
            warn_of(std::iter::empty(), inputs, has_model_credential(store).await?);
            self.start_gateway(settings, inputs, id).await?;
            // Nobody here knows better; the worker that takes a run does.
            settings.engine != EngineChoice::Local
        };
        let (told, stop, must_end) = (store.clone(), cancel.clone(), self.must_end.clone());
        let (presence, state_dir) = (roles::presence(settings, id), settings.state_dir.clone());
        tracker.spawn(async move {
            must_end.send_replace(roles::keep(&told, &presence, &state_dir, &stop).await);
        });
        let (head, store, stop) = (Arc::clone(&self.head), store.clone(), cancel.clone());
        let state_dir = settings.state_dir.clone();
        tracker.spawn(async move { head.follow(&state_dir, &store, &stop).await });
        Ok(images)
    }

    /// Starts the gateway, or what takes the secrets that it would use out of this process's log.
    async fn start_gateway(&self, settings: &Settings, inputs: &Inputs, id: &ServerId) -> anyhow::Result<()> {
        if !settings.roles.has(Role::Gateway) {
            // The log of this process may repeat what it stores for others or was sent.
            let looked_for =
                caisson_gateway::look_for_secrets(&self.store, log::secrets(), &self.tracker, &self.cancel);
            return looked_for.await.context("the credentials cannot be read, which the log must not show");
        }
        let config = gateway_config(settings, inputs, id);
        Gateway::start(config, self.store.clone(), &self.tracker, self.cancel.clone())
            .await
            .context("the gateway cannot start")?;
        Ok(())
    }

    async fn start_worker(
        &self,
        settings: &Settings,
        config: WorkerConfig,
        (engine, paths): (ActiveEngine, Option<SharedPaths>),
    ) -> anyhow::Result<()> {
        let gateway_apart = !settings.roles.has(Role::Gateway);
        let probe = Arc::new(Checks {
            engine: engine.clone(),
            paths,
            agents: Agents::new(settings.agents_dir()),
            agent_version: settings.agent_version.clone(),
            gateway: gateway_apart.then(|| (self.store.clone(), config.server.clone())),
            artifacts: config.shared_artifacts.clone().map(Watched::new),
        });
        let parts = Parts {
            store: self.store.clone(),
            engine: engine.engine(),
            probe: Some(probe),
            tracker: self.tracker.clone(),
            cancel: self.cancel.clone(),
            hook: None,
        };
        Worker::start(config, parts).await.context("the worker cannot start")?;
        Ok(())
    }

    /// Serves the API, or the health checks alone where it is not among the parts.
    fn listen(
        &self,
        listener: TcpListener,
        settings: &Settings,
        (inputs, id, images): (&Inputs, &ServerId, bool),
    ) -> anyhow::Result<()> {
        let config = api_config(settings, inputs, (id, images));
        let (store, stop) = (self.store.clone(), self.cancel.clone());
        let router = if settings.roles.has(Role::Api) {
            caisson_api::router(config, store, stop.clone())
        } else {
            caisson_api::health_router(config, store, stop.clone())
        };
        let limits = ServeLimits {
            connections: settings.api.connections,
            connections_per_peer: settings.api.connections_per_peer,
            connections_per_key: part(settings.api.connections, settings.api.key_percent),
            ..ServeLimits::default()
        };
        let scheme = if let Some(certificate) = inputs.certificate.clone() {
            let config = certificate.server_config()?;
            self.tracker.spawn(certificate.follow(stop.clone()));
            self.tracker.spawn(caisson_api::serve_tls(listener, router, limits, config, stop));
            "https"
        } else {
            self.tracker.spawn(caisson_api::serve(listener, router, limits, stop));
            "http"
        };
        info!("listening on {scheme}://{}", self.address);
        Ok(())
    }

    /// Waits until the server must not go on, and answers why and what to do.
    pub(crate) async fn must_end(&self) -> String {
        let mut reason = self.must_end.subscribe();
        let told = reason.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match told {
            Some(reason) => reason,
            // The sender lives as long as the server.
            None => std::future::pending().await,
        }
    }

    /// Stops every part. Sandboxes stay alive: the next start takes them over.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        if tokio::time::timeout(STOP_WAIT, self.tracker.wait()).await.is_err() {
            warn!("some tasks did not end in time; they are left behind");
        }
        self.head.end(&self.store).await;
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

/// Makes the state directory and opens the store, for commands.
///
/// # Errors
/// The directory or the database cannot be used, or it is of an earlier version and a server uses it.
pub(crate) async fn open_store(settings: &Settings) -> anyhow::Result<Store> {
    make_directory(&settings.state_dir)?;
    let place = settings.database_place()?;
    // What cannot be looked at is told by the opening.
    let is_behind = settings.database.migrate && place.is_file_behind().await.unwrap_or(false);
    // A server of the version before would write to tables that it does not know.
    let migrating = is_behind.then(|| lock_state(&settings.state_dir)).transpose();
    let _lock = migrating.with_context(|| {
        format!(
            "{place} is of an earlier version, and a server uses it; once that is stopped, run `caisson db migrate`, or start \
             the server of this version"
        )
    })?;
    open_at(settings, place).await
}

/// The same for the process that has the locks of its parts of the server: before it migrates the database it waits for
/// nobody's silence but that of others.
async fn open_own_store(settings: &Settings) -> anyhow::Result<Store> {
    let server = known_server_id(&settings.state_dir)?;
    open_at(settings, settings.database_place()?.used_by(server.as_ref(), settings.roles.each())).await
}

async fn open_at(settings: &Settings, place: Place) -> anyhow::Result<Store> {
    if !settings.database.migrate
        && let Some(lack) = place.lack().await?
    {
        anyhow::bail!("{place} {lack}, and database.migrate is false; run `caisson db migrate`");
    }
    let opened = place.open(Clock::system()).await;
    let store = opened.with_context(|| format!("the database cannot be opened: {place}"))?;
    store.bound_queue(settings.queue);
    Ok(store)
}

pub(crate) fn make_directory(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("the state directory \"{}\" cannot be made", directory.display()))
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

fn api_config(settings: &Settings, inputs: &Inputs, (id, images): (&ServerId, bool)) -> ApiConfig {
    let agents = Agents::new(settings.agents_dir());
    let version = agents.installed(&settings.agent_version).map(|manifest| manifest.version);
    ApiConfig {
        allow: inputs.allow.clone(),
        default_repository: inputs.default_repository.clone(),
        server: Some(id.clone()),
        artifacts_dir: artifacts::own_directory(settings, id),
        shared_artifacts: inputs.shared_artifacts.clone(),
        state_dir: settings.state_dir.clone(),
        without_images: !images,
        budget_soft_percent: Some(settings.budget.soft_percent),
        retention: settings.retention.policy(),
        agent: AgentInfo { version },
        without_automagik: !settings.api.automagik,
        metrics_for: if settings.metrics.public { MetricsFor::Everyone } else { MetricsFor::Operators },
        cors_origins: settings.api.cors_origins.clone(),
        tls: settings.tls.cert_file.is_some(),
        limits: ApiLimits {
            rate_per_minute: settings.api.rate_per_minute,
            streams_per_key: part(STREAMS, settings.api.key_percent),
            ..ApiLimits::default()
        },
    }
}

fn gateway_config(settings: &Settings, inputs: &Inputs, id: &ServerId) -> GatewayConfig {
    GatewayConfig {
        server: id.clone(),
        doors_dir: settings.state_dir.join("doors"),
        quarantine_dir: settings.state_dir.join("quarantine"),
        artifacts_dir: artifacts::own_directory(settings, id),
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
        keep_alive: settings.keep_alive_s > 0,
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
    inputs: &Inputs,
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
        keep_alive: KeepAlive {
            time: Duration::from_secs(u64::from(settings.keep_alive_s)),
            sandboxes: settings.keep_alive_sandboxes,
            memory_bytes: u64::from(settings.keep_alive_memory_mib) * 1024 * 1024,
        },
        state_dir: settings.state_dir.clone(),
        shared_artifacts: inputs.shared_artifacts.clone(),
        default_image: engine.default_image(),
        repository_images: settings.repository_images(),
        weaknesses: engine.weaknesses().into_iter().chain(caps.weakness()).collect(),
        shim: install_shim(settings, &inputs.shim)?,
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

/// An error with its causes, in one line.
#[must_use]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
