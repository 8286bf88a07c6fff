//! The way outside of one run: its bounds, its ledger, and its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::egress::{Target, Wanted};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::redact::ProjectSecrets;
use caisson_domain::run::Run;
use caisson_store::{MovedOutside, Store, StoreError};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::fault::Fault;
use super::ledger::{Ledger, Moved, Noted, Others};
use super::policy::Ground;
use crate::bounds::{Bounds, EGRESS_CONNECTIONS};
use crate::first::FirstUse;
use crate::shared::{Door, Shared, event};
use crate::way::{self, Common, Way};

/// One run's way outside, as long as this process serves it.
#[derive(Debug)]
pub(crate) struct RunEgress {
    common: Common,
    total: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// [`crate::bounds::EGRESS_TOTAL`], [`crate::bounds::EGRESS_SENT_BYTES`], [`crate::bounds::EGRESS_RECEIVED_BYTES`].
    bounds: (u64, u64, u64),
    ledger: Mutex<Ledger>,
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
    /// `before` is what an earlier process has told of the run: its bounds go on from there.
    fn new(run: &Run, bounds: &Bounds, secrets: &ProjectSecrets, before: MovedOutside) -> Self {
        Self {
            common: Common::new(run, EGRESS_CONNECTIONS, secrets),
            total: AtomicU64::new(before.count),
            sent: AtomicU64::new(before.sent),
            received: AtomicU64::new(before.received),
            bounds: (bounds.egress_total, bounds.egress_sent_bytes, bounds.egress_received_bytes),
            ledger: Mutex::default(),
        }
    }

    /// That of the run, begun if there is none. A sandbox has one run at a time: that of another one is over.
    pub(super) async fn of(door: &Arc<Door>, run: &Run) -> Result<Arc<Self>, StoreError> {
        if let Some(known) = way::known(&door.egress, run) {
            return Ok(known);
        }
        let before = door.shared.store.moved_outside(&run.id, EventKind::EgressUsed).await?;
        Ok(way::of(door, &door.egress, run, || Self::new(run, &door.shared.bounds, &door.secrets, before)))
    }

    /// Takes a slot and counts a connection; beside it the record of the first one of its kind.
    pub(super) fn admit(
        self: &Arc<Self>,
        wanted: &Wanted,
        ground: Ground,
    ) -> Result<(Passage, FirstUse), Fault> {
        if self.common.is_over() {
            return Err(Fault::Over);
        }
        self.spent()?;
        let slot = self.common.slot().ok_or(Fault::TooManyAtOnce)?;
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let (moved, record) = ledger.begin(wanted, ground)?;
        drop(ledger);
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
        self.common.over().await;
    }

    /// Writes down who got out for the first time, before they do.
    pub(super) async fn audit_use(
        &self,
        store: &Store,
        wanted: &Wanted,
        ground: Ground,
    ) -> Result<(), StoreError> {
        let target = &wanted.target;
        let subject = match ground {
            Ground::Rule => target.to_string(),
            Ground::Learning => format!("{target} learned"),
        };
        self.common.audit(store, ("egress.allow", "allowed"), &subject, Some(target)).await
    }

    /// Tells of a denial: the first of its kind by an event and in the audit log, those behind it by their count.
    pub(super) async fn deny(&self, shared: &Shared, asked: &str, wanted: Option<&Wanted>, fault: &Fault) {
        let noted = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).deny(asked, wanted, fault);
        shared.count_denied();
        let Noted::First(data) = noted else { return };
        let subject = wanted.map_or_else(|| "unreadable".to_owned(), |wanted| wanted.target.to_string());
        let subject = format!("{subject} {}", fault.reason());
        self.record_denied(&shared.store, &subject, wanted.map(|wanted| &wanted.target), &data).await;
    }

    /// Writes a denial to the audit log and as an event.
    async fn record_denied(&self, store: &Store, subject: &str, target: Option<&Target>, data: &Value) {
        let Common { run, secrets, .. } = &self.common;
        let audited = self.common.audit(store, ("egress.deny", "denied"), subject, target).await;
        let told = store.append_gateway_event(run, event(secrets, EventKind::EgressDenied, data)).await;
        if let Err(error) = audited.and(told) {
            tracing::warn!(run.id = %run, error = %error, "a denied connection of {run} was not written down");
        }
    }
}

impl Way for RunEgress {
    fn common(&self) -> &Common {
        &self.common
    }

    /// At the end also how often was denied what was told of once.
    async fn tell_moved(&self, store: &Store, last: bool) {
        let Common { run, secrets, .. } = &self.common;
        let (events, others) = {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let used = ledger.used().into_iter().map(|data| event(secrets, EventKind::EgressUsed, &data));
            let mut events: Vec<NewEvent> = used.collect();
            let mut others = Vec::new();
            if last {
                let repeated = ledger.repeated();
                events.extend(repeated.iter().map(|data| event(secrets, EventKind::EgressDenied, data)));
                others = ledger.others();
            }
            (events, others)
        };
        for told in events {
            if let Err(error) = store.append_gateway_event(run, told).await {
                tracing::warn!(run.id = %run, error = %error, "what {run} moved was not written down");
            }
        }
        for Others { subject, event } in others {
            self.record_denied(store, &subject, None, &event).await;
        }
    }
}

/// Before a run's outcome is stored; see [`way::before_outcome`].
pub(crate) async fn before_outcome(door: &Door) {
    way::before_outcome(door, &door.egress).await;
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
