//! One run in this worker's hands: its lease, what is known of it, and what the worker tells about it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::SandboxId;
use caisson_domain::run::Run;
use caisson_store::{Claimed, HomeEpoch, Progress, Topic, Watch};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::context::{Asked, Backoff, Context, Halt, described};
use crate::disk::Cap;
use crate::disk::places::Entered;
use crate::judge::{Disk, Facts};

/// Name of the sandbox's id in the details of the worker's events; the store looks for it there.
pub(crate) const SANDBOX: &str = "sandbox";

/// One run in this worker's hands.
pub(crate) struct Attempt {
    pub(crate) ctx: Arc<Context>,
    pub(crate) run: Run,
    pub(crate) epoch: HomeEpoch,
    pub(crate) session_offset: i64,
    /// Whether an earlier process had it: then what was to be told may have been told.
    pub(crate) adopted: bool,
    /// Its place among the runs in hand.
    slot: Slot,
    /// When its lease began, by the worker's own clock.
    leased: Instant,
    /// The sandbox that is attended to, also while the run is nobody's.
    attended: Mutex<Option<Arc<Entered>>>,
}

/// A place among the runs in hand, which whoever sees to the run may give back before its end is seen to.
pub(crate) type Slot = Arc<Mutex<Option<Taken>>>;

/// A slot that a run has. Whoever looks for a run to claim has one as well, which is not counted here.
pub(crate) struct Taken {
    _slot: OwnedSemaphorePermit,
    all: Arc<AtomicUsize>,
}

impl Taken {
    pub(crate) fn new(slot: OwnedSemaphorePermit, all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self { _slot: slot, all: Arc::clone(all) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseEnd {
    /// By the worker's own clock: the run is nobody's until somebody takes it up.
    Over,
    /// The store says that the run has ended or is somebody else's.
    Taken,
}

impl Attempt {
    pub(crate) fn new(ctx: Arc<Context>, claimed: Asked<Claimed>, adopted: bool, slot: Slot) -> Self {
        let Asked { answer, at: leased } = claimed;
        let Claimed { run, epoch, lease_expires_at_ms: _, session_uid_offset } = answer;
        let attended = Mutex::default();
        Self { ctx, run, epoch, session_offset: session_uid_offset, adopted, slot, leased, attended }
    }

    /// The same run, taken up again after its lease was over.
    pub(crate) fn again(self, claimed: Asked<Claimed>) -> Self {
        let attended = Mutex::new(self.attended());
        Self { attended, ..Self::new(self.ctx, claimed, true, self.slot) }
    }

    /// Gives its place among the runs in hand back.
    pub(crate) fn give_back_slot(&self) {
        drop(self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Begins to attend to a sandbox, or goes on.
    pub(crate) fn attend(&self, sandbox: &SandboxId) -> Arc<Entered> {
        let mut attended = self.attended.lock().unwrap_or_else(PoisonError::into_inner);
        match &*attended {
            Some(place) if place.sandbox == *sandbox => Arc::clone(place),
            Some(_) | None => Arc::clone(attended.insert(Arc::new(self.ctx.places.enter(sandbox)))),
        }
    }

    /// Attends to its sandbox no more.
    pub(crate) fn leave(&self) {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The sandbox that is attended to.
    pub(crate) fn attended(&self) -> Option<Arc<Entered>> {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the run's time limit passes, by the store's clock. It begins with the first claim.
    pub(crate) fn deadline_ms(&self) -> i64 {
        let started_at_ms = self.run.started_at_ms.unwrap_or(self.run.created_at_ms);
        started_at_ms.saturating_add(i64::from(self.run.spec.timeout_s) * 1000)
    }

    /// The most that the session may hold, as far as it is up to this run.
    pub(crate) fn cap(&self) -> Cap {
        Cap::of(self.run.spec.resources.workspace_mib, self.ctx.config.workspace_mib)
    }

    /// What the store knows now; none if the run is lost.
    pub(crate) async fn progress(&self) -> Result<Option<Progress>, Halt> {
        let (store, run, epoch) = (&self.ctx.store, &self.run.id, self.epoch);
        self.ctx.insist("read a run's progress", move || store.progress(run, epoch)).await
    }

    pub(crate) fn facts<'a>(&'a self, progress: &'a Progress) -> Facts<'a> {
        let timing = self.ctx.timing();
        Facts {
            spec: &self.run.spec,
            attempt: self.run.attempt,
            progress,
            now_ms: self.ctx.store.now_ms(),
            deadline_ms: self.deadline_ms(),
            requeue: (timing.requeue_first, timing.requeue_most),
            disk: Disk::default(),
            pids_refused: 0,
        }
    }

    /// Extends the lease for as long as it is waited on; returns how it ended. From then on the run is not ours to act
    /// upon.
    ///
    /// A store that does not answer is asked again sooner, and not waited for beyond the lease.
    pub(crate) async fn keep_lease(&self) -> LeaseEnd {
        let timing = self.ctx.timing();
        let mut until = self.leased + timing.lease;
        let mut wait = timing.lease_heartbeat;
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(Instant::now() + wait)).await;
            // Whatever the answer, the lease is counted from before the question.
            let begun = Instant::now();
            wait = timing.retry_most.min(timing.lease_heartbeat);
            let beat = self.ctx.store.heartbeat(&self.run.id, self.epoch);
            match tokio::time::timeout_at(until, beat).await {
                Ok(Ok(Some(_))) => (until, wait) = (begun + timing.lease, timing.lease_heartbeat),
                Ok(Ok(None)) => return LeaseEnd::Taken,
                Ok(Err(error)) => {
                    warn!(run.id = %self.run.id, error = described(&error), "could not extend the lease of run {}", self.run.id);
                }
                Err(_) => {
                    warn!(run.id = %self.run.id, "could not extend the lease of run {}: the database does not answer", self.run.id);
                }
            }
        }
        LeaseEnd::Over
    }

    /// Writes an event about a sandbox, once: where an earlier try may have written it, what is written is looked at
    /// first. `false` if the run is lost.
    pub(crate) async fn tell(
        &self,
        sandbox: &SandboxId,
        kind: EventKind,
        mut data: Value,
    ) -> Result<bool, Halt> {
        data[SANDBOX] = Value::from(sandbox.as_str());
        let event = NewEvent::new(kind, &data);
        let mut backoff = Backoff::new(self.ctx.timing());
        let mut doubtful = self.adopted;
        loop {
            if doubtful && self.told(sandbox, kind).await? {
                return Ok(true);
            }
            match self.ctx.store.append_run_event(&self.run.id, self.epoch, event.clone()).await {
                Ok(ours) => return Ok(ours),
                Err(error) => {
                    warn!(run.id = %self.run.id, error = described(&error), "could not write an event of run {}", self.run.id);
                    doubtful = true;
                    self.ctx.pause(backoff.next()).await?;
                }
            }
        }
    }

    /// Whether the run has an event of this kind about this sandbox.
    async fn told(&self, sandbox: &SandboxId, kind: EventKind) -> Result<bool, Halt> {
        let (store, run) = (&self.ctx.store, &self.run.id);
        self.ctx.insist("look for an event", move || store.tells_of_sandbox(run, kind, sandbox)).await
    }

    /// Waits, for a bounded time, until no model call of the run is under way, so that its end tells what they cost and
    /// not what they were estimated at. Without one it costs a single small read.
    pub(crate) async fn settle_calls(&self) -> Result<(), Halt> {
        let (ctx, run) = (&self.ctx, &self.run.id);
        let store = &ctx.store;
        let mut wait = self.bounded_wait(ctx.timing().open_calls);
        while ctx.insist("look for open model calls", move || store.has_open_calls(run)).await? {
            if !wait.changed().await? {
                info!(run.id = %run, "run {run} ends with open model calls, which count as estimated");
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the store knows of the run before it ends: as [`Attempt::settle_push`].
    pub(crate) async fn settled_progress(&self) -> Result<Option<Progress>, Halt> {
        match self.progress().await? {
            Some(progress) => self.settle_push(progress).await,
            None => Ok(None),
        }
    }

    /// Waits, for a bounded time, until no push of the run is pending, since nothing is recorded after its end: the
    /// gateway sees to that, or asks the git host what became of it. Returns what the store knows then; none if the run
    /// is lost. Without a pending push it costs nothing.
    pub(crate) async fn settle_push(&self, known: Progress) -> Result<Option<Progress>, Halt> {
        let run = &self.run.id;
        let mut progress = known;
        let mut wait = self.bounded_wait(self.ctx.timing().pending_push);
        while progress.push_pending {
            if !wait.changed().await? {
                warn!(run.id = %run, "run {run} ends with a pending push; what becomes of it is not recorded");
                break;
            }
            match self.progress().await? {
                Some(now) => progress = now,
                None => return Ok(None),
            }
        }
        Ok(Some(progress))
    }

    fn bounded_wait(&self, patience: Duration) -> BoundedWait<'_> {
        let until = Instant::now() + patience;
        BoundedWait { ctx: &self.ctx, watch: self.ctx.store.watch(Topic::Run(self.run.id.clone())), until }
    }
}

/// A wait, in several steps, for something in the store that concerns a run.
struct BoundedWait<'a> {
    ctx: &'a Context,
    watch: Watch,
    until: Instant,
}

impl BoundedWait<'_> {
    /// Waits for a hint, or for as long as one may be missed; `false` if the time is over.
    async fn changed(&mut self) -> Result<bool, Halt> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        tokio::select! {
            biased;
            () = self.ctx.cancel.cancelled() => Err(Halt::Shutdown),
            () = self.watch.changed(left.min(self.ctx.timing().run_poll)) => Ok(true),
        }
    }
}
