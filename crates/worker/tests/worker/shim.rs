//! Plays the shims of all sandboxes, with the gateway's checks in between.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::id::{RunId, SandboxId};
use caisson_domain::protocol::{Ending, InputBody, Outcome, StopReason, environment};
use caisson_domain::run::{Phase, Run};
use caisson_sandbox::SandboxSpec;
use caisson_store::{JournalAppend, JournalEffect, JournalEntry, NextWork, Store};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::engine::FakeEngine;

/// Between two looks at the store: hints do not cross from one process to another.
const LOOK: Duration = Duration::from_millis(5);

/// What the agent of a run does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Play {
    /// Does its work and says so.
    Complete,
    /// Works until it is released, or told to stop and obeys.
    Work { obeys: bool },
    /// The shim dies before the agent is started.
    DieEarly(i64),
    /// The shim dies while the agent works; by want of memory, or not.
    DieLate { code: i64, oom: bool },
    /// Does its work, and has its agent wait for another run.
    Keep,
    /// Waits for its release before the agent is started, and then completes.
    Linger,
    /// Completes, and then does not end when it is told to.
    Deaf,
    /// Dies while its last words are still on their way.
    LastWords,
    /// Says this.
    Say(Ending),
    /// Says this before the agent is started.
    SayEarly(Ending),
    /// Waits for its release, and says that this commit is pushed.
    Push(String),
}

/// What all shims share.
#[derive(Clone)]
pub(crate) struct Shims(Arc<Inner>);

struct Inner {
    plays: Mutex<HashMap<RunId, Vec<Play>>>,
    default: Mutex<Play>,
    release: watch::Sender<bool>,
    doors: watch::Sender<bool>,
    /// How often an agent was started, by run.
    agents: Mutex<BTreeMap<RunId, usize>>,
    /// How many shims ended because the door was closed to them.
    refused: AtomicUsize,
    engine: FakeEngine,
    store: Store,
}

impl Shims {
    /// Plays every sandbox that the engine starts, for as long as the test's runtime lives.
    pub(crate) fn play(
        store: Store,
        engine: FakeEngine,
        mut starts: mpsc::UnboundedReceiver<SandboxSpec>,
        tracker: &TaskTracker,
    ) -> Self {
        let inner = Inner {
            plays: Mutex::default(),
            default: Mutex::new(Play::Complete),
            release: watch::Sender::new(false),
            doors: watch::Sender::new(false),
            agents: Mutex::default(),
            refused: AtomicUsize::new(0),
            engine,
            store,
        };
        let shims = Self(Arc::new(inner));
        let (all, each) = (shims.clone(), tracker.clone());
        tracker.spawn(async move {
            while let Some(spec) = starts.recv().await {
                each.spawn(Shim::new(all.0.clone(), spec).live());
            }
        });
        shims
    }

    /// What runs do that have no play of their own.
    pub(crate) fn by_default(&self, play: Play) {
        *self.0.default.lock().unwrap() = play;
    }

    /// What the attempts of a run do, the first one first.
    pub(crate) fn of(&self, run: &RunId, plays: Vec<Play>) {
        self.0.plays.lock().unwrap().insert(run.clone(), plays);
    }

    /// Lets go of whatever waits for its release, from now on.
    pub(crate) fn release(&self) {
        self.0.release.send_replace(true);
    }

    /// The doors: open while a server lives.
    pub(crate) fn doors(&self) -> watch::Sender<bool> {
        self.0.doors.clone()
    }

    /// How many shims ended because the door was closed to them.
    pub(crate) fn refused(&self) -> usize {
        self.0.refused.load(Ordering::SeqCst)
    }

    /// How often the agent of a run was started.
    pub(crate) fn agents(&self, run: &RunId) -> usize {
        self.0.agents.lock().unwrap().get(run).copied().unwrap_or(0)
    }
}

struct Shim {
    all: Arc<Inner>,
    sandbox: SandboxId,
    control: TokenHash,
    offset: u64,
    /// Attempts that were played.
    done: Vec<(RunId, i64)>,
    deaf: bool,
}

/// The sandbox is gone, or the door is closed to it for good.
struct Over;

impl Shim {
    fn new(all: Arc<Inner>, spec: SandboxSpec) -> Self {
        let grant = spec.environment.iter().find(|(name, _)| name == environment::CONTROL_GRANT);
        let control = TokenHash::of(&grant.unwrap().1);
        Self { all, sandbox: spec.id, control, offset: 0, done: Vec::new(), deaf: false }
    }

    async fn live(mut self) {
        // A shim that is refused asks again; here its sandbox is destroyed soon, so it just ends.
        if self.serve().await.is_err() && self.all.engine.is_running(&self.sandbox) {
            self.all.refused.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn serve(&mut self) -> Result<(), Over> {
        loop {
            self.pass_door().await?;
            match self.all.store.next_work(&self.sandbox).await.unwrap() {
                NextWork::Exit if self.deaf => return Ok(()),
                NextWork::Exit => {
                    self.all.engine.exit(&self.sandbox, 0, false);
                    return Ok(());
                }
                NextWork::Run { run, .. } if !self.done.contains(&(run.id.clone(), run.attempt)) => {
                    self.done.push((run.id.clone(), run.attempt));
                    self.work(&run).await?;
                }
                NextWork::Run { .. } | NextWork::Nothing => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits for an open door, and shows the control grant there.
    async fn pass_door(&self) -> Result<(), Over> {
        let mut doors = self.all.doors.subscribe();
        doors.wait_for(|open| *open).await.map_err(|_| Over)?;
        let store = &self.all.store;
        let alive = self.all.engine.is_running(&self.sandbox);
        let granted = store.check_grant(&self.sandbox, GrantKind::Control, &self.control).await.unwrap();
        if alive && granted { Ok(()) } else { Err(Over) }
    }

    async fn work(&mut self, run: &Run) -> Result<(), Over> {
        let play = {
            let mut plays = self.all.plays.lock().unwrap();
            let own = plays.get_mut(&run.id).filter(|own| !own.is_empty()).map(|own| own.remove(0));
            own.unwrap_or_else(|| self.all.default.lock().unwrap().clone())
        };
        self.deaf = play == Play::Deaf;
        self.tell(run, JournalEffect::Phase(Phase::Prepare)).await?;
        if play == Play::Linger {
            self.released(run, false).await?;
        }
        if let Play::DieEarly(code) = play {
            self.all.engine.exit(&self.sandbox, code, false);
            return Err(Over);
        }
        if let Play::SayEarly(ending) = play {
            let outcome = Outcome { ending, result: None, head: None, pushed: false, kept: false };
            return self.tell(run, JournalEffect::Finished(outcome)).await;
        }
        self.start_agent(run).await?;
        let (last_words, kept) = (play == Play::LastWords, play == Play::Keep);
        let head = if let Play::Push(head) = &play { Some(head.clone()) } else { None };
        let ending = match play {
            Play::Complete | Play::Keep | Play::Deaf | Play::Linger | Play::LastWords | Play::DieEarly(_) => {
                Ending::Completed
            }
            Play::Say(ending) | Play::SayEarly(ending) => ending,
            Play::DieLate { code, oom } => {
                self.all.engine.exit(&self.sandbox, code, oom);
                return Err(Over);
            }
            Play::Work { obeys } => match self.released(run, obeys).await? {
                Some(reason) => Ending::Stopped(reason),
                None => Ending::Completed,
            },
            Play::Push(_) => {
                self.released(run, false).await?;
                Ending::Completed
            }
        };
        let pushed = head.is_some();
        let outcome = Outcome { ending, result: Some("done".to_owned()), head, pushed, kept };
        if last_words {
            self.all.engine.exit(&self.sandbox, 1, false);
            tokio::time::sleep(LOOK).await;
            return self.append(run, JournalEffect::Finished(outcome)).await;
        }
        self.tell(run, JournalEffect::Finished(outcome)).await
    }

    /// Starts the agent once that is acknowledged, as a real shim does.
    async fn start_agent(&mut self, run: &Run) -> Result<(), Over> {
        self.tell(run, JournalEffect::AgentStarted).await?;
        *self.all.agents.lock().unwrap().entry(run.id.clone()).or_default() += 1;
        Ok(())
    }

    /// Waits for the release, or for being told to stop.
    async fn released(&self, run: &Run, obeys: bool) -> Result<Option<StopReason>, Over> {
        let mut release = self.all.release.subscribe();
        loop {
            if tokio::time::timeout(LOOK, release.wait_for(|released| *released)).await.is_ok() {
                return Ok(None);
            }
            if !self.all.engine.is_running(&self.sandbox) {
                return Err(Over);
            }
            let inputs = self.all.store.inputs_after(&self.sandbox, 0).await.unwrap();
            let stop = inputs.iter().rfind(|input| input.run == run.id);
            if let Some(InputBody::Stop { reason }) = stop.map(|input| &input.body)
                && obeys
                && *self.all.doors.borrow()
            {
                return Ok(Some(*reason));
            }
        }
    }

    async fn tell(&mut self, run: &Run, effect: JournalEffect) -> Result<(), Over> {
        self.pass_door().await?;
        self.append(run, effect).await
    }

    /// What the gateway does behind the door.
    async fn append(&mut self, run: &Run, effect: JournalEffect) -> Result<(), Over> {
        let kind = match &effect {
            JournalEffect::AgentStarted => EventKind::AgentStarted,
            JournalEffect::Phase(_) => EventKind::RunPhase,
            JournalEffect::None
            | JournalEffect::Prepared { .. }
            | JournalEffect::Output(_)
            | JournalEffect::Checks(_)
            | JournalEffect::Input { .. }
            | JournalEffect::Asked(_)
            | JournalEffect::AskedNoMore { .. }
            | JournalEffect::Finished(_) => EventKind::Note,
        };
        let event = Some(NewEvent::new(kind, &json!({})));
        let entry = JournalEntry { run: run.id.clone(), attempt: run.attempt, event, effect };
        let end = self.offset + 1;
        match self.all.store.append_journal(&self.sandbox, self.offset, end, vec![entry]).await.unwrap() {
            JournalAppend::Stored { skipped: 0, .. } => {
                self.offset = end;
                Ok(())
            }
            JournalAppend::Stored { .. } | JournalAppend::Behind { .. } | JournalAppend::Withdrawn { .. } => {
                Err(Over)
            }
        }
    }
}
