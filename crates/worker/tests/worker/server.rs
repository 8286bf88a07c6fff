//! A server that can be killed where it stands.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use caisson_domain::server::PlacementProblem;
use caisson_store::{Clock, Store};
use caisson_worker::{Parts, Probe, Step, StepHook, Worker, WorkerConfig, WorkerError};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::FakeEngine;

/// How long a dropped server's file system work may take to end.
const LAST_WORK: Duration = Duration::from_secs(10);

/// What a server is started with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) config: WorkerConfig,
    pub(crate) database: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) engine: FakeEngine,
    pub(crate) probe: Option<Arc<dyn Probe>>,
    pub(crate) hook: Option<Arc<dyn StepHook>>,
}

/// A running server.
pub(crate) struct Server {
    end: Option<oneshot::Sender<Ending>>,
    thread: Option<JoinHandle<()>>,
    /// The store that its worker has: hints do not cross from one process to another.
    store: Store,
    /// Whether the gateway's doors are open: only while a server lives.
    doors: watch::Sender<bool>,
}

enum Ending {
    Kill,
    Shutdown,
}

impl Server {
    /// Starts a server and returns when its worker has started.
    pub(crate) async fn boot(setup: Setup, doors: watch::Sender<bool>) -> Result<Self, WorkerError> {
        let (end, ended) = oneshot::channel();
        let (ready, started) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(setup, ready, ended));
            runtime.shutdown_timeout(LAST_WORK);
        });
        let store = started.await.unwrap()?;
        doors.send_replace(true);
        Ok(Self { end: Some(end), thread: Some(thread), store, doors })
    }

    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    /// Drops everything the server does where it stands.
    pub(crate) fn kill(mut self) {
        self.finish(Ending::Kill);
    }

    /// Ends the server in good order.
    pub(crate) fn shut_down(mut self) {
        self.finish(Ending::Shutdown);
    }

    fn finish(&mut self, ending: Ending) {
        self.doors.send_replace(false);
        if let Some(end) = self.end.take() {
            drop(end.send(ending));
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.finish(Ending::Kill);
        }
    }
}

async fn serve(
    setup: Setup,
    ready: oneshot::Sender<Result<Store, WorkerError>>,
    ended: oneshot::Receiver<Ending>,
) {
    let store = Store::open(&setup.database, setup.clock).await.unwrap();
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let parts = Parts {
        store: store.clone(),
        engine: Arc::new(setup.engine),
        probe: setup.probe,
        tracker: tracker.clone(),
        cancel: cancel.clone(),
        hook: setup.hook,
    };
    let worker = Worker::start(setup.config, parts).await;
    drop(ready.send(worker.map(|_started| store.clone())));
    if matches!(ended.await, Ok(Ending::Shutdown)) {
        cancel.cancel();
        tracker.close();
        tracker.wait().await;
        store.close().await.unwrap();
    }
}

/// Stops the world at a step, and tells of it.
pub(crate) struct StopAt {
    step: Step,
    hit: Mutex<Option<oneshot::Sender<()>>>,
}

impl StopAt {
    pub(crate) fn hook(step: Step) -> (Arc<dyn StepHook>, oneshot::Receiver<()>) {
        let (hit, reached) = oneshot::channel();
        (Arc::new(Self { step, hit: Mutex::new(Some(hit)) }), reached)
    }
}

#[async_trait]
impl StepHook for StopAt {
    async fn reached(&self, step: Step) {
        if step != self.step {
            return;
        }
        let hit = self.hit.lock().unwrap().take();
        if let Some(hit) = hit {
            hit.send(()).unwrap();
            std::future::pending::<()>().await;
        }
    }
}

/// Holds the world at a step until it is told to go on.
pub(crate) struct HoldAt {
    step: Step,
    held: watch::Sender<bool>,
    go: watch::Sender<bool>,
}

impl HoldAt {
    pub(crate) fn step(step: Step) -> Arc<Self> {
        Arc::new(Self { step, held: watch::Sender::new(false), go: watch::Sender::new(false) })
    }

    /// Waits until the world is held.
    pub(crate) async fn held(&self) {
        self.held.subscribe().wait_for(|held| *held).await.map(drop).unwrap();
    }

    /// Lets the world go on, for good.
    pub(crate) fn go(&self) {
        self.go.send_replace(true);
    }
}

#[async_trait]
impl StepHook for HoldAt {
    async fn reached(&self, step: Step) {
        if step == self.step {
            self.held.send_replace(true);
            self.go.subscribe().wait_for(|go| *go).await.map(drop).unwrap();
        }
    }
}

/// Notes every step.
#[derive(Default)]
pub(crate) struct Steps(Mutex<Vec<Step>>);

impl Steps {
    pub(crate) fn seen(&self) -> Vec<Step> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl StepHook for Steps {
    async fn reached(&self, step: Step) {
        self.0.lock().unwrap().push(step);
    }
}

/// A probe whose answer the test sets; none means that it never answers.
#[derive(Default)]
pub(crate) struct FakeProbe(Mutex<Option<Vec<PlacementProblem>>>);

impl FakeProbe {
    pub(crate) fn answering(problems: Option<Vec<PlacementProblem>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(problems)))
    }

    pub(crate) fn answer(&self, problems: Vec<PlacementProblem>) {
        *self.0.lock().unwrap() = Some(problems);
    }
}

#[async_trait]
impl Probe for FakeProbe {
    async fn problems(&self) -> Vec<PlacementProblem> {
        let answer = self.0.lock().unwrap().clone();
        match answer {
            Some(problems) => problems,
            None => std::future::pending().await,
        }
    }
}
