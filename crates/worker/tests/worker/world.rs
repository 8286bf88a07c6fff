//! Everything that a test needs around a server, and what must be true at its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::event::{Event, EventKind};
use caisson_domain::id::{ProjectId, RunId, SandboxId, ServerId, SessionId};
use caisson_domain::limits::EVENT_PAGE_ITEMS;
use caisson_domain::queue::PRIORITY;
use caisson_domain::retention::Retention;
use caisson_domain::run::{Failure, Resources, Run, RunSpec, RunStatus};
use caisson_domain::workflow::Workflow;
use caisson_store::{Clock, CreateRun, NewRun, SandboxState, Store};
use caisson_worker::{DiskCaps, KeepAlive, StepHook, Timing, UidPlan, WorkerConfig};
use serde_json::Value;
use tokio_util::task::TaskTracker;

use crate::engine::FakeEngine;
use crate::server::{Server, Setup};
use crate::shim::Shims;

/// How long anything may take before a test counts it as never.
pub(crate) const NEVER: Duration = Duration::from_secs(30);
/// Between two looks at what another process does.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) struct World {
    // Unmounted before the directory goes.
    _small: Option<SmallDisk>,
    pub(crate) root: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) engine: FakeEngine,
    pub(crate) shims: Shims,
    pub(crate) setup: Setup,
}

/// Short enough for tests, and in the same order as the product's.
fn timing() -> Timing {
    Timing {
        lease: Duration::from_secs(30),
        lease_heartbeat: Duration::from_millis(50),
        health_check: Duration::from_millis(100),
        probe: Duration::from_millis(200),
        queue_poll: LOOK,
        queue_rest: LOOK,
        run_poll: LOOK,
        reconcile: Duration::from_millis(100),
        retry_first: Duration::from_millis(2),
        retry_most: Duration::from_millis(20),
        requeue_first: Duration::from_millis(1),
        requeue_most: Duration::from_millis(10),
        starting: Duration::from_millis(100),
        start_patience: Duration::ZERO,
        stop_grace: Duration::from_millis(100),
        // Clocks of tests that stand still say nothing to this one.
        told_late: Duration::from_mins(1),
        settle: Duration::from_millis(50),
        open_calls: Duration::from_millis(50),
        pending_push: Duration::from_millis(50),
        exit_grace: Duration::from_millis(200),
        predecessor: Duration::from_secs(5),
        disk_look: Duration::from_millis(50),
        disk_look_near: Duration::from_millis(10),
        room_look: Duration::from_millis(50),
        full_patience: Duration::from_millis(200),
        kept_look: Duration::from_mins(1),
        retention: Duration::from_millis(50),
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_clock(Clock::system()).await
    }

    pub(crate) async fn with_clock(clock: Clock) -> Self {
        Self::on(clock, tempfile::tempdir().unwrap(), None).await
    }

    /// Database and state directory on a disk of their own of so many MiB. Only root can mount one.
    pub(crate) async fn on_a_small_disk(mib: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let small = SmallDisk::mount(root.path(), mib);
        Self::on(Clock::system(), root, Some(small)).await
    }

    async fn on(clock: Clock, root: tempfile::TempDir, small: Option<SmallDisk>) -> Self {
        let agent_dir = root.path().join("agent");
        std::fs::create_dir(&agent_dir).unwrap();
        let agent = agent_dir.join("claude");
        std::fs::write(&agent, "x").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&agent, mode).unwrap();
        let database = root.path().join("caisson.db");
        let store = Store::open(&database, clock.clone()).await.unwrap();
        let (engine, starts) = FakeEngine::new();
        let shims = Shims::play(store.clone(), engine.clone(), starts, &TaskTracker::new());
        let mut timing = timing();
        if small.is_some() {
            timing.told_late = Duration::from_millis(100);
        }
        let config = WorkerConfig {
            server: ServerId::new(1, [7; 10]),
            engine_name: "fake".to_owned(),
            slots: 2,
            keep_alive: KeepAlive::OFF,
            state_dir: root.path().join("state"),
            shared_artifacts: None,
            default_image: Some("caisson-sandbox:latest".to_owned()),
            repository_images: vec!["registry.example/team/*".parse().unwrap()],
            weaknesses: vec!["a wall is thin".to_owned()],
            shim: root.path().join("shim"),
            agent_dir: Some(agent_dir),
            uids: own_uids(),
            min_free_disk_bytes: 0,
            workspace_mib: 1024,
            disk_caps: DiskCaps::Measured { reason: "a test".to_owned() },
            retention: Retention::default(),
            timing,
        };
        let setup = Setup { config, database, clock, engine: engine.clone(), probe: None, hook: None };
        Self { _small: small, root, store, engine, shims, setup }
    }

    pub(crate) async fn boot(&self) -> Server {
        Server::boot(self.setup.clone(), self.shims.doors()).await.unwrap()
    }

    pub(crate) async fn boot_with(&self, hook: Arc<dyn StepHook>) -> Server {
        let setup = Setup { hook: Some(hook), ..self.setup.clone() };
        Server::boot(setup, self.shims.doors()).await.unwrap()
    }

    pub(crate) async fn queue(&self) -> RunId {
        self.queue_with(|_| {}).await
    }

    /// A run that is claimed before those of [`World::queue`]: of what is queued within a millisecond, chance says who is first.
    pub(crate) async fn queue_first(&self) -> RunId {
        self.queue_with(|spec| spec.priority = *PRIORITY.end()).await
    }

    pub(crate) async fn queue_with(&self, change: impl FnOnce(&mut RunSpec)) -> RunId {
        let mut spec = RunSpec {
            workflow: Workflow::parse("---\nname: fix\ndescription: d\n---\nFix it.\n").unwrap(),
            prompt: "fix it".to_owned(),
            repository: None,
            base: None,
            anchor: None,
            branch: None,
            model: None,
            max_turns: None,
            image: None,
            timeout_s: 600,
            budget_micro_usd: None,
            budget_soft_percent: None,
            resources: Resources::default(),
            environment: std::collections::BTreeMap::new(),
            priority: 0,
            start_at_ms: None,
            parameters: caisson_domain::parameters::Values::new(),
            output_schema: None,
            attachments: Vec::new(),
            workflow_version: None,
        };
        change(&mut spec);
        let project = ProjectId::default_project();
        let new = NewRun { project, created_by: None, spec, idempotency: None };
        match self.store.create_run(new).await.unwrap() {
            CreateRun::Created(run) => run.id,
            other @ (CreateRun::Replayed(_)
            | CreateRun::KeyReused
            | CreateRun::QueueFull
            | CreateRun::ProjectQueueFull
            | CreateRun::NoSession
            | CreateRun::Deleted
            | CreateRun::SessionExpired
            | CreateRun::AttachmentsFull) => {
                panic!("{other:?}")
            }
        }
    }

    pub(crate) async fn run(&self, id: &RunId) -> Run {
        self.store.run(&ProjectId::default_project(), id).await.unwrap().unwrap()
    }

    pub(crate) async fn cancel(&self, id: &RunId) {
        self.store.request_cancel(&ProjectId::default_project(), id, None).await.unwrap();
    }

    /// Waits for the run's end.
    pub(crate) async fn finished(&self, id: &RunId) -> Run {
        until("the run ends", || async { self.run(id).await.status.is_final() }).await;
        self.run(id).await
    }

    /// Waits for a run that failed, and returns why.
    pub(crate) async fn failed(&self, id: &RunId) -> Failure {
        let run = self.finished(id).await;
        assert_eq!(run.status, RunStatus::Failed);
        run.failure.unwrap()
    }

    /// Waits until the run's agent works.
    pub(crate) async fn agent_works(&self, id: &RunId) {
        until("the agent works", || async { self.shims.agents(id) > 0 }).await;
    }

    /// Waits until the run's agent works and the worker has written down that the sandbox runs.
    pub(crate) async fn attended(&self, id: &RunId) {
        self.agent_works(id).await;
        until("the start is written down", || async {
            let Some(sandbox) = self.run(id).await.sandbox else { return false };
            self.store.sandbox(&sandbox).await.unwrap().unwrap().state == SandboxState::Running
        })
        .await;
    }

    pub(crate) async fn events(&self, id: &RunId) -> Vec<Event> {
        self.store.events(id, 0, EVENT_PAGE_ITEMS).await.unwrap()
    }

    /// The details of the run's events of one kind.
    pub(crate) async fn told(&self, id: &RunId, kind: EventKind) -> Vec<Value> {
        let of_kind = |event: &Event| event.kind == kind;
        let parse = |event: &Event| serde_json::from_str(event.data.get()).unwrap();
        self.events(id).await.iter().filter(|event| of_kind(event)).map(parse).collect()
    }

    /// Waits until nothing is left of any sandbox, and checks that what was done was done once.
    pub(crate) async fn clean(&self) {
        until("all sandboxes are gone", || async { self.engine.ids().is_empty() }).await;
        until("all sandboxes are written down as destroyed", || async {
            self.store.sandboxes_of(&self.setup.config.server).await.unwrap().is_empty()
        })
        .await;
        until("all directories of sandboxes are gone", || async { self.leftovers().is_empty() }).await;
    }

    /// Checks what must be true of every run that has ended.
    pub(crate) async fn told_once(&self, id: &RunId) {
        let events = self.events(id).await;
        let numbers: Vec<i64> = events.iter().map(|event| event.seq).collect();
        let gapless: Vec<i64> = (1..=i64::try_from(events.len()).unwrap()).collect();
        assert_eq!(numbers, gapless);
        assert_eq!(self.told(id, EventKind::RunFinished).await.len(), 1);
        assert_eq!(events.last().unwrap().kind, EventKind::RunFinished);
        for kind in [EventKind::SandboxStarted, EventKind::SandboxExited] {
            let mut sandboxes: Vec<String> =
                self.told(id, kind).await.iter().map(|data| data["sandbox"].to_string()).collect();
            let all = sandboxes.len();
            sandboxes.sort();
            sandboxes.dedup();
            assert_eq!(sandboxes.len(), all, "{kind} twice for one sandbox");
        }
    }

    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        ["sandboxes", "doors", "trash"]
            .iter()
            .flat_map(|part| std::fs::read_dir(self.setup.config.state_dir.join(part)).into_iter().flatten())
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

/// A small disk, unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Self {
        let options = format!("size={mib}m");
        nix::mount::mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("only root can mount a small disk");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has files open keeps them.
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
    }
}

/// Sandboxes belong to whoever runs the tests; root gives each session an own uid.
fn own_uids() -> UidPlan {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if uid == 0 { UidPlan::PerSession { base: 200_000 } } else { UidPlan::Fixed { uid, gid } }
}

pub(crate) fn session_id(number: u8) -> SessionId {
    SessionId::new(1, [number; 10])
}

pub(crate) fn sandbox_id(number: u8) -> SandboxId {
    SandboxId::new(1, [number; 10])
}

/// Looks again and again at what another process does, for a bounded time.
pub(crate) async fn until<F>(what: &str, condition: impl Fn() -> F + Send + Sync)
where
    F: Future<Output = bool> + Send,
{
    let looking = async {
        while !condition().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    assert!(tokio::time::timeout(NEVER, looking).await.is_ok(), "it never happened that {what}");
}
