//! A run's way outside, wherever it leads: one of each kind for a door, told of from time to time, and cut when the run ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::egress::Target;
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::redact::ProjectSecrets;
use caisson_domain::run::Run;
use caisson_store::{Actor, NewAudit, Store, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::bounds::EGRESS_TOLD_MOST;
use crate::shared::Door;

/// What every kind of way has.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) run: RunId,
    session: SessionId,
    project: ProjectId,
    pub(crate) secrets: ProjectSecrets,
    /// The run is over; nothing goes out any more, and what is open is cut.
    over: CancellationToken,
    slots: Arc<Semaphore>,
    most: u32,
}

impl Common {
    /// For at most `most` connections at once.
    pub(crate) fn new(run: &Run, most: usize, secrets: &ProjectSecrets) -> Self {
        Self {
            run: run.id.clone(),
            session: run.session.clone(),
            project: run.project.clone(),
            secrets: secrets.clone(),
            over: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(most)),
            most: u32::try_from(most).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Ends when the run is over.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Writes a record of the run to the audit log: what it was let do or not, and with which host, if that could be read. The
    /// agent may choose the name of a host, so no live secret is kept of either.
    pub(crate) async fn audit(
        &self,
        store: &Store,
        (action, decision): (&str, &'static str),
        subject: &str,
        target: Option<&Target>,
    ) -> Result<(), StoreError> {
        let redactor = self.secrets.redactor();
        let clean = |text: &str| redactor.text(text).into_owned();
        let record = NewAudit {
            run: Some(self.run.clone()),
            session: Some(self.session.clone()),
            host: target.map(|target| clean(&target.host.to_string())),
            decision: Some(decision),
            ..NewAudit::new(&self.project, Actor::Server, action, &clean(subject))
        };
        store.append_audit(&record).await
    }

    /// A place for one connection; none if all are taken.
    pub(crate) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }
}

/// One kind of way of one run, as long as this process serves it.
pub(crate) trait Way: Send + Sync + 'static {
    /// What it has in common with the others.
    fn common(&self) -> &Common;

    /// Tells what was moved since the last time; at the end of the run for the `last` time.
    fn tell_moved(&self, store: &Store, last: bool) -> impl Future<Output = ()> + Send;
}

/// The run's way, if there is one.
pub(crate) fn known<W: Way>(place: &Mutex<Option<Arc<W>>>, run: &Run) -> Option<Arc<W>> {
    let current = place.lock().unwrap_or_else(PoisonError::into_inner);
    current.as_ref().filter(|known| known.common().run == run.id).map(Arc::clone)
}

/// The run's way, begun if there is none. A sandbox has one run at a time: that of another one is over.
pub(crate) fn of<W: Way>(
    door: &Arc<Door>,
    place: &Mutex<Option<Arc<W>>>,
    run: &Run,
    begin: impl FnOnce() -> W,
) -> Arc<W> {
    let mut current = place.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = current.as_ref().filter(|known| known.common().run == run.id) {
        return Arc::clone(known);
    }
    let fresh = Arc::new(begin());
    if let Some(before) = current.replace(Arc::clone(&fresh)) {
        before.common().over.cancel();
    }
    door.shared.tracker.spawn(keep(Arc::clone(door), Arc::clone(&fresh)));
    fresh
}

/// Before a run's outcome is stored: its way is cut, so that what is told of it is whole.
pub(crate) async fn before_outcome<W: Way>(door: &Door, place: &Mutex<Option<Arc<W>>>) {
    let current = place.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(way) = current {
        finish(&*way, &door.shared.store, door.shared.bounds.grace).await;
    }
}

/// Tells from time to time what was moved, and notices that the run is over although nobody said so.
async fn keep<W: Way>(door: Arc<Door>, way: Arc<W>) {
    let (store, bounds, common) = (&door.shared.store, &door.shared.bounds, way.common());
    let mut wait = bounds.egress_told_first;
    let mut tell_at = Instant::now() + wait;
    loop {
        tokio::select! {
            () = common.over.cancelled() => break,
            () = door.closed.cancelled() => break,
            () = sleep(bounds.egress_check) => {}
        }
        match store.door_run(&door.sandbox).await {
            Ok(Some(run)) if run.id == common.run => {}
            // The next look tells.
            Err(error) => tracing::debug!(error = %error, "a run could not be looked at"),
            Ok(_) => break,
        }
        if Instant::now() >= tell_at {
            way.tell_moved(store, false).await;
            wait = (wait * 2).min(EGRESS_TOLD_MOST);
            tell_at = Instant::now() + wait;
        }
    }
    finish(&*way, store, bounds.grace).await;
}

/// Cuts what is open, and tells the rest.
async fn finish<W: Way>(way: &W, store: &Store, grace: Duration) {
    let common = way.common();
    common.over.cancel();
    // Whoever does not let go in time is counted without its last bytes.
    drop(timeout(grace, common.slots.acquire_many(common.most)).await);
    way.tell_moved(store, true).await;
}
