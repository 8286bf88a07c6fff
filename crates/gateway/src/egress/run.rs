//! The way outside of one run: its bounds, its ledger, and its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::egress::Wanted;
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ProjectId, RunId};
use caisson_domain::redact::LiveSecrets;
use caisson_domain::run::Run;
use caisson_store::{Store, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use super::ledger::{Ledger, Moved, Noted};
use crate::bounds::{Bounds, EGRESS_CONNECTIONS, EGRESS_TOLD_MOST};
use crate::first::FirstUse;
use crate::shared::{Door, event};

/// One run's way outside, as long as this process serves it.
#[derive(Debug)]
pub(crate) struct RunEgress {
    run: RunId,
    project: ProjectId,
    /// The run is over; nothing goes out any more, and what is open is cut.
    over: CancellationToken,
    /// [`EGRESS_CONNECTIONS`].
    slots: Arc<Semaphore>,
    total: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// [`crate::bounds::EGRESS_TOTAL`], [`crate::bounds::EGRESS_SENT_BYTES`], [`crate::bounds::EGRESS_RECEIVED_BYTES`].
    bounds: (u64, u64, u64),
    ledger: Mutex<Ledger>,
    secrets: LiveSecrets,
}

/// One connection on its way: it has a slot and is counted.
#[derive(Debug)]
pub(super) struct Passage {
    egress: Arc<RunEgress>,
    moved: Arc<Moved>,
    touched: Mutex<Instant>,
    _slot: OwnedSemaphorePermit,
}

impl RunEgress {
    fn new(run: &Run, bounds: &Bounds, secrets: &LiveSecrets) -> Self {
        Self {
            run: run.id.clone(),
            project: run.project.clone(),
            over: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(EGRESS_CONNECTIONS)),
            total: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            bounds: (bounds.egress_total, bounds.egress_sent_bytes, bounds.egress_received_bytes),
            ledger: Mutex::default(),
            secrets: secrets.clone(),
        }
    }

    /// That of the run, begun if there is none. A sandbox has one run at a time: that of another one is over.
    pub(super) fn of(door: &Arc<Door>, run: &Run) -> Arc<Self> {
        let mut current = door.egress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = current.as_ref().filter(|known| known.run == run.id) {
            return Arc::clone(known);
        }
        let fresh = Arc::new(Self::new(run, &door.shared.bounds, &door.shared.secrets));
        if let Some(before) = current.replace(Arc::clone(&fresh)) {
            before.over.cancel();
        }
        door.shared.tracker.spawn(keep(Arc::clone(door), Arc::clone(&fresh)));
        fresh
    }

    /// Takes a slot and counts a connection; beside it the record of the first one of its kind.
    pub(super) fn admit(self: &Arc<Self>, wanted: &Wanted) -> Result<(Passage, FirstUse), Fault> {
        if self.over.is_cancelled() {
            return Err(Fault::Over);
        }
        self.spent()?;
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Fault::TooManyAtOnce)?;
        let (moved, record) = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).begin(wanted)?;
        self.total.fetch_add(1, Ordering::Relaxed);
        let touched = Mutex::new(Instant::now());
        Ok((Passage { egress: Arc::clone(self), moved, touched, _slot: slot }, record))
    }

    fn spent(&self) -> Result<(), Fault> {
        let (total, sent, received) = self.bounds;
        if self.total.load(Ordering::Relaxed) >= total {
            return Err(Fault::TooManyConnections { bound: total });
        }
        if self.sent.load(Ordering::Relaxed) > sent {
            return Err(Fault::TooMuchSent { bound: sent });
        }
        if self.received.load(Ordering::Relaxed) > received {
            return Err(Fault::TooMuchReceived { bound: received });
        }
        Ok(())
    }

    /// Ends when the run is over.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Writes down who got out for the first time, before they do.
    pub(super) async fn audit_use(&self, store: &Store, wanted: &Wanted) -> Result<(), StoreError> {
        store.audit(&self.project, self.run.as_str(), "egress.allow", &wanted.target.to_string()).await
    }

    /// Tells of a denial: the first of its kind by an event and in the audit log, those behind it by their count.
    pub(super) async fn deny(&self, store: &Store, asked: &str, wanted: Option<&Wanted>, fault: &Fault) {
        let noted = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).deny(asked, wanted, fault);
        let Noted::First(data) = noted else { return };
        let subject = wanted.map_or_else(|| "unreadable".to_owned(), |wanted| wanted.target.to_string());
        let subject = format!("{subject} {}", fault.reason());
        let subject = self.secrets.redactor().text(&subject).into_owned();
        let audited = store.audit(&self.project, self.run.as_str(), "egress.deny", &subject).await;
        let told =
            store.append_gateway_event(&self.run, event(&self.secrets, EventKind::EgressDenied, &data)).await;
        if let Err(error) = audited.and(told) {
            tracing::warn!(run.id = %self.run, error = %error, "a denied connection of {} was not written down", self.run);
        }
    }

    /// Tells what was moved since the last time, and at the end how often was denied what was told of once.
    async fn tell(&self, store: &Store, last: bool) {
        let events: Vec<NewEvent> = {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let used =
                ledger.used().into_iter().map(|data| event(&self.secrets, EventKind::EgressUsed, &data));
            let mut events: Vec<_> = used.collect();
            if last {
                let repeated = ledger.repeated();
                events
                    .extend(repeated.iter().map(|data| event(&self.secrets, EventKind::EgressDenied, data)));
            }
            events
        };
        for told in events {
            if let Err(error) = store.append_gateway_event(&self.run, told).await {
                tracing::warn!(run.id = %self.run, error = %error, "what {} moved was not written down", self.run);
            }
        }
    }

    /// Cuts what is open, and tells the rest.
    async fn finish(&self, store: &Store, grace: Duration) {
        self.over.cancel();
        let all = u32::try_from(EGRESS_CONNECTIONS).unwrap_or(u32::MAX);
        // Whoever does not let go in time is counted without its last bytes.
        drop(timeout(grace, self.slots.acquire_many(all)).await);
        self.tell(store, true).await;
    }
}

/// Before a run's outcome is stored: its way outside is cut, so that what is told of it is whole.
pub(crate) async fn before_outcome(door: &Door) {
    let current = door.egress.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(egress) = current {
        egress.finish(&door.shared.store, door.shared.bounds.grace).await;
    }
}

/// Tells from time to time what was moved, and notices that the run is over although nobody said so.
async fn keep(door: Arc<Door>, egress: Arc<RunEgress>) {
    let (store, bounds) = (&door.shared.store, &door.shared.bounds);
    let mut wait = bounds.egress_told_first;
    let mut tell_at = Instant::now() + wait;
    loop {
        tokio::select! {
            () = egress.over.cancelled() => break,
            () = door.closed.cancelled() => break,
            () = sleep(bounds.egress_check) => {}
        }
        match store.door_run(&door.sandbox).await {
            Ok(Some(run)) if run.id == egress.run => {}
            // The next look tells.
            Err(error) => tracing::debug!(error = %error, "a run could not be looked at"),
            Ok(_) => break,
        }
        if Instant::now() >= tell_at {
            egress.tell(store, false).await;
            wait = (wait * 2).min(EGRESS_TOLD_MOST);
            tell_at = Instant::now() + wait;
        }
    }
    egress.finish(store, bounds.grace).await;
}

impl Passage {
    /// Counts bytes on their way out.
    pub(super) fn sent(&self, bytes: usize) -> Result<(), Fault> {
        let bound = self.egress.bounds.1;
        let fits = self.count((&self.egress.sent, &self.moved.sent), bytes, bound);
        if fits { Ok(()) } else { Err(Fault::TooMuchSent { bound }) }
    }

    /// Counts bytes on their way in.
    pub(super) fn received(&self, bytes: usize) -> Result<(), Fault> {
        let bound = self.egress.bounds.2;
        let fits = self.count((&self.egress.received, &self.moved.received), bytes, bound);
        if fits { Ok(()) } else { Err(Fault::TooMuchReceived { bound }) }
    }

    /// Whether the bytes still fit. Those that do not are counted for the run, which has spent its share, and not as moved.
    fn count(&self, (all, kind): (&AtomicU64, &AtomicU64), bytes: usize, bound: u64) -> bool {
        let bytes = bytes as u64;
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let fits = all.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= bound;
        if fits {
            kind.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Ends when nothing has moved for `idle`, in either direction.
    pub(super) async fn idle(&self, idle: Duration) {
        loop {
            let touched = *self.touched.lock().unwrap_or_else(PoisonError::into_inner);
            let until = touched + idle;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// The run's way outside.
    pub(super) fn egress(&self) -> &Arc<RunEgress> {
        &self.egress
    }
}
