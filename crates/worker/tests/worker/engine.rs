//! An engine whose sandboxes are entries in a map. It outlives every server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use caisson_domain::id::{SandboxId, SessionId};
use caisson_sandbox::{Engine, EngineError, Exit, Liveness, OwnedSandbox, SandboxSpec, SandboxUsage};
use tokio::sync::{mpsc, watch};

/// What an engine is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Start,
    Destroy,
    Stop,
}

/// What goes wrong with the next call of a kind.
#[derive(Debug, Clone)]
pub(crate) enum Mishap {
    Unavailable,
    ImageMissing,
    BadSpec,
    Refused,
    Panic,
    /// It works, but the answer is lost.
    Unheard,
}

/// What a sandbox uses in which nothing works.
pub(crate) const QUIET: SandboxUsage = SandboxUsage {
    memory_bytes: 1,
    memory_peak_bytes: None,
    cpu_micros: 1_000_000,
    pids: 12,
    pids_refused: None,
};

/// The engine; clones share it.
#[derive(Clone)]
pub(crate) struct FakeEngine(Arc<Inner>);

struct Inner {
    sandboxes: Mutex<BTreeMap<SandboxId, Fake>>,
    mishaps: Mutex<VecDeque<(Call, Mishap)>>,
    made: Mutex<Vec<SandboxSpec>>,
    down: AtomicBool,
    create_gate: watch::Sender<bool>,
    destroy_gate: watch::Sender<bool>,
    creating: AtomicUsize,
    most_creating: AtomicUsize,
    most_living: AtomicUsize,
    lists: AtomicUsize,
    /// What every sandbox uses; none: the engine does not tell.
    usage: Mutex<Option<SandboxUsage>>,
    /// How often somebody was told.
    usages: AtomicUsize,
    started: mpsc::UnboundedSender<SandboxSpec>,
}

struct Fake {
    session: SessionId,
    spec: Option<SandboxSpec>,
    state: watch::Sender<Liveness>,
}

impl FakeEngine {
    /// An engine, and the sandboxes it starts.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<SandboxSpec>) {
        let (started, starts) = mpsc::unbounded_channel();
        let inner = Inner {
            sandboxes: Mutex::default(),
            mishaps: Mutex::default(),
            made: Mutex::default(),
            down: AtomicBool::new(false),
            create_gate: watch::Sender::new(true),
            destroy_gate: watch::Sender::new(true),
            lists: AtomicUsize::new(0),
            usage: Mutex::new(Some(QUIET)),
            usages: AtomicUsize::new(0),
            creating: AtomicUsize::new(0),
            most_creating: AtomicUsize::new(0),
            most_living: AtomicUsize::new(0),
            started,
        };
        (Self(Arc::new(inner)), starts)
    }

    /// The next call of this kind goes wrong.
    pub(crate) fn next(&self, call: Call, mishap: Mishap) {
        self.0.mishaps.lock().unwrap().push_back((call, mishap));
    }

    /// Whether the engine answers at all.
    pub(crate) fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::SeqCst);
    }

    /// Whether creating goes on; closed, it waits.
    pub(crate) fn set_create_gate(&self, open: bool) {
        self.0.create_gate.send_replace(open);
    }

    /// Whether destroying goes on; closed, it waits.
    pub(crate) fn set_destroy_gate(&self, open: bool) {
        self.0.destroy_gate.send_replace(open);
    }

    /// What every sandbox uses from now on; none: the engine does not tell.
    pub(crate) fn set_usage(&self, usage: Option<SandboxUsage>) {
        *self.0.usage.lock().unwrap() = usage;
    }

    /// How often somebody has asked what a sandbox uses.
    pub(crate) fn usages(&self) -> usize {
        self.0.usages.load(Ordering::SeqCst)
    }

    /// How often somebody has asked for the list of sandboxes.
    pub(crate) fn lists(&self) -> usize {
        self.0.lists.load(Ordering::SeqCst)
    }

    /// Creations under way now, and the most there ever were at once.
    pub(crate) fn creations(&self) -> (usize, usize) {
        (self.0.creating.load(Ordering::SeqCst), self.0.most_creating.load(Ordering::SeqCst))
    }

    /// The most sandboxes there ever were at once.
    pub(crate) fn most_living(&self) -> usize {
        self.0.most_living.load(Ordering::SeqCst)
    }

    /// Every specification that a sandbox was made from.
    pub(crate) fn made(&self) -> Vec<SandboxSpec> {
        self.0.made.lock().unwrap().clone()
    }

    pub(crate) fn ids(&self) -> Vec<SandboxId> {
        self.sandboxes().keys().cloned().collect()
    }

    /// A sandbox that carries the server's label, though no store knows of it.
    pub(crate) fn plant(&self, sandbox: &SandboxId, session: &SessionId) {
        let state = watch::Sender::new(Liveness::Running);
        self.sandboxes().insert(sandbox.clone(), Fake { session: session.clone(), spec: None, state });
    }

    /// What there is of a sandbox whose server died while it was being made.
    pub(crate) fn plant_half_made(&self, sandbox: &SandboxId, session: &SessionId) {
        let unknown = Exit { code: None, oom_killed: false, finished_at_ms: None };
        let state = watch::Sender::new(Liveness::Exited(unknown));
        self.sandboxes().insert(sandbox.clone(), Fake { session: session.clone(), spec: None, state });
    }

    /// The sandbox is gone, as if somebody had removed it.
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        self.sandboxes().remove(sandbox);
    }

    /// The sandbox's first process ends.
    pub(crate) fn exit(&self, sandbox: &SandboxId, code: i64, oom_killed: bool) {
        if let Some(fake) = self.sandboxes().get(sandbox) {
            fake.state.send_if_modified(|state| {
                let living = *state == Liveness::Running;
                if living {
                    *state = Liveness::Exited(Exit { code: Some(code), oom_killed, finished_at_ms: None });
                }
                living
            });
        }
    }

    /// Whether the sandbox's first process lives.
    pub(crate) fn is_running(&self, sandbox: &SandboxId) -> bool {
        self.sandboxes().get(sandbox).is_some_and(|fake| *fake.state.borrow() == Liveness::Running)
    }

    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Fake>> {
        self.0.sandboxes.lock().unwrap()
    }

    fn reachable(&self, operation: &'static str) -> Result<(), EngineError> {
        if self.0.down.load(Ordering::SeqCst) { Err(unavailable(operation)) } else { Ok(()) }
    }

    fn mishap(&self, call: Call) -> Option<Mishap> {
        let mut mishaps = self.0.mishaps.lock().unwrap();
        let index = mishaps.iter().position(|(for_call, _)| *for_call == call)?;
        mishaps.remove(index).map(|(_, mishap)| mishap)
    }
}

async fn pass(gate: &watch::Sender<bool>) {
    gate.subscribe().wait_for(|open| *open).await.map(drop).unwrap();
}

fn unavailable(operation: &'static str) -> EngineError {
    EngineError::Unavailable { operation, host: "nowhere".to_owned(), source: "it is down".into() }
}

fn error(mishap: &Mishap, image: &str) -> EngineError {
    match mishap {
        Mishap::Unavailable | Mishap::Unheard => unavailable("trying"),
        Mishap::ImageMissing => EngineError::ImageMissing { image: image.to_owned() },
        Mishap::BadSpec => {
            EngineError::BadSpec(caisson_sandbox::check_image_name("../x").unwrap_err().into())
        }
        Mishap::Refused => EngineError::Refused { operation: "trying", message: "not today".to_owned() },
        Mishap::Panic => panic!("the engine's client has a fault"),
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn create(&self, spec: &SandboxSpec) -> Result<(), EngineError> {
        self.reachable("creating")?;
        let now = self.0.creating.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_creating.fetch_max(now, Ordering::SeqCst);
        pass(&self.0.create_gate).await;
        self.0.creating.fetch_sub(1, Ordering::SeqCst);
        let mishap = self.mishap(Call::Create);
        if let Some(mishap) = &mishap
            && !matches!(mishap, Mishap::Unheard)
        {
            return Err(error(mishap, spec.image.as_deref().unwrap_or_default()));
        }
        let state = watch::Sender::new(Liveness::Created);
        let fake = Fake { session: spec.session.clone(), spec: Some(spec.clone()), state };
        {
            let mut sandboxes = self.sandboxes();
            let others = sandboxes.values().filter(|fake| fake.session == spec.session).count();
            assert_eq!(others, 0, "two sandboxes on one workspace");
            assert!(sandboxes.insert(spec.id.clone(), fake).is_none(), "an id used twice");
            self.0.most_living.fetch_max(sandboxes.len(), Ordering::SeqCst);
        }
        self.0.made.lock().unwrap().push(spec.clone());
        mishap.map_or(Ok(()), |mishap| Err(error(&mishap, spec.image.as_deref().unwrap_or_default())))
    }

    async fn start(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.reachable("starting")?;
        let mishap = self.mishap(Call::Start);
        if let Some(mishap) = &mishap
            && !matches!(mishap, Mishap::Unheard)
        {
            return Err(error(mishap, ""));
        }
        let spec = {
            let sandboxes = self.sandboxes();
            let fake = sandboxes.get(id).ok_or_else(|| EngineError::NotFound { id: id.clone() })?;
            fake.state.send_replace(Liveness::Running);
            fake.spec.clone()
        };
        if let Some(spec) = spec {
            // Nobody plays shims in some tests.
            drop(self.0.started.send(spec));
        }
        mishap.map_or(Ok(()), |mishap| Err(error(&mishap, "")))
    }

    async fn wait(&self, id: &SandboxId) -> Result<Exit, EngineError> {
        self.reachable("waiting")?;
        let gone = || EngineError::NotFound { id: id.clone() };
        let mut state = self.sandboxes().get(id).map(|fake| fake.state.subscribe()).ok_or_else(gone)?;
        let ended = state.wait_for(|state| matches!(state, Liveness::Exited(_))).await.map(|state| *state);
        match ended {
            Ok(Liveness::Exited(exit)) => Ok(exit),
            Ok(Liveness::Created | Liveness::Running) | Err(_) => Err(gone()),
        }
    }

    async fn stop(&self, id: &SandboxId, _grace_s: u32) -> Result<(), EngineError> {
        self.reachable("stopping")?;
        if let Some(mishap) = self.mishap(Call::Stop) {
            return Err(error(&mishap, ""));
        }
        if !self.sandboxes().contains_key(id) {
            return Err(EngineError::NotFound { id: id.clone() });
        }
        self.exit(id, 137, false);
        Ok(())
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.reachable("destroying")?;
        if let Some(mishap) = self.mishap(Call::Destroy) {
            return Err(error(&mishap, ""));
        }
        pass(&self.0.destroy_gate).await;
        self.sandboxes().remove(id);
        Ok(())
    }

    async fn list_owned(&self) -> Result<Vec<OwnedSandbox>, EngineError> {
        self.0.lists.fetch_add(1, Ordering::SeqCst);
        self.reachable("listing")?;
        let owned = |(id, fake): (&SandboxId, &Fake)| OwnedSandbox {
            id: id.clone(),
            session: Some(fake.session.clone()),
            liveness: *fake.state.borrow(),
        };
        Ok(self.sandboxes().iter().map(owned).collect())
    }

    async fn usage(&self, id: &SandboxId) -> Result<SandboxUsage, EngineError> {
        self.reachable("measuring")?;
        let usage = *self.0.usage.lock().unwrap();
        self.0.usages.fetch_add(1, Ordering::SeqCst);
        let running = self.is_running(id);
        usage.filter(|_| running).ok_or_else(|| EngineError::NotRunning { id: id.clone() })
    }
}
