//! The way to MCP servers of one run: its bounds, what it moved, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use caisson_domain::egress::Target;
use caisson_domain::event::EventKind;
use caisson_domain::redact::ProjectSecrets;
use caisson_domain::run::Run;
use caisson_store::{MovedOutside, Store, StoreError};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::bounds::McpBounds;
use super::fault::Fault;
use crate::first::FirstUse;
use crate::shared::{Door, event};
use crate::way::{self, Common, Way};

/// One run's way to MCP servers, as long as this process serves it.
#[derive(Debug)]
pub(crate) struct RunMcp {
    common: Common,
    requests: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    bounds: McpBounds,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// By the server's name; a workflow has few.
    uses: BTreeMap<String, Use>,
    /// Refusals and failures that were told.
    told: BTreeSet<(String, &'static str)>,
}

#[derive(Debug)]
struct Use {
    target: Target,
    record: FirstUse,
    requests: u64,
    moved: Arc<Moved>,
    /// Requests, sent and received bytes that were told.
    told: (u64, u64, u64),
}

#[derive(Debug, Default)]
struct Moved {
    sent: AtomicU64,
    received: AtomicU64,
}

/// One exchange on its way: it has a slot and is counted.
#[derive(Debug)]
pub(super) struct Passage {
    run: Arc<RunMcp>,
    moved: Arc<Moved>,
    /// Bytes of this exchange.
    own: Moved,
    /// The bound that it met.
    met: OnceLock<Fault>,
    _slot: OwnedSemaphorePermit,
}

impl RunMcp {
    /// `before` is what an earlier process has told of the run: its bounds go on from there.
    fn new(run: &Run, bounds: &McpBounds, secrets: &ProjectSecrets, before: MovedOutside) -> Self {
        Self {
            common: Common::new(run, bounds.streams, secrets),
            requests: AtomicU64::new(before.count),
            sent: AtomicU64::new(before.sent),
            received: AtomicU64::new(before.received),
            bounds: bounds.clone(),
            ledger: Mutex::default(),
        }
    }

    /// That of the run, begun if there is none. A sandbox has one run at a time: that of another one is over.
    pub(super) async fn of(door: &Arc<Door>, run: &Run) -> Result<Arc<Self>, StoreError> {
        if let Some(known) = way::known(&door.mcp, run) {
            return Ok(known);
        }
        let before = door.shared.store.moved_outside(&run.id, EventKind::McpUsed).await?;
        Ok(way::of(door, &door.mcp, run, || Self::new(run, &door.shared.bounds.mcp, &door.secrets, before)))
    }

    /// Takes a slot and counts a request; beside it the record of the first one to this server.
    pub(super) fn admit(
        self: &Arc<Self>,
        server: &str,
        target: &Target,
    ) -> Result<(Passage, FirstUse), Fault> {
        if self.common.is_over() {
            return Err(Fault::Over);
        }
        let McpBounds { requests, sent_bytes, received_bytes, .. } = self.bounds;
        if self.requests.load(Ordering::Relaxed) >= requests {
            return Err(Fault::TooManyRequests { bound: requests });
        }
        if self.sent.load(Ordering::Relaxed) > sent_bytes {
            return Err(Fault::TooMuchSent { bound: sent_bytes });
        }
        if self.received.load(Ordering::Relaxed) > received_bytes {
            return Err(Fault::TooMuchReceived { bound: received_bytes });
        }
        let slot = self.common.slot().ok_or(Fault::TooManyAtOnce { bound: self.bounds.streams })?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut ledger = self.lock();
        let used = ledger.uses.entry(server.to_owned()).or_insert_with(|| Use {
            target: target.clone(),
            record: FirstUse::default(),
            requests: 0,
            moved: Arc::default(),
            told: (0, 0, 0),
        });
        used.requests += 1;
        let (record, moved) = (used.record.clone(), Arc::clone(&used.moved));
        drop(ledger);
        let passage = Passage {
            run: Arc::clone(self),
            moved,
            own: Moved::default(),
            met: OnceLock::new(),
            _slot: slot,
        };
        Ok((passage, record))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the run is over.
    pub(super) async fn over(&self) {
        self.common.over().await;
    }

    /// Writes down that a server is asked for the first time, before it is.
    pub(super) async fn audit_use(
        &self,
        store: &Store,
        server: &str,
        target: &Target,
    ) -> Result<(), StoreError> {
        self.common.audit(store, ("mcp.allow", "allowed"), &format!("{server} {target}"), Some(target)).await
    }

    /// Tells of a refusal or a failure, each kind once for each server: by an event, and a refusal in the audit log as well.
    pub(super) async fn tell(&self, door: &Door, server: &str, target: Option<&Target>, fault: &Fault) {
        let kind = (server.to_owned(), fault.code());
        let fresh = {
            let mut ledger = self.lock();
            ledger.told.len() < self.bounds.told && ledger.told.insert(kind)
        };
        if !fresh {
            if fault.is_denial() {
                door.shared.count_denied();
            }
            return;
        }
        let run = &self.common.run;
        let host = target.map_or_else(String::new, ToString::to_string);
        let refusal = fault.refusal(server, &host);
        if !fault.is_denial() {
            let data = json!({
                "upstream": "mcp", "server": server, "kind": refusal.code, "status": refusal.status.as_u16(),
                "message": refusal.message,
            });
            return door.tell(run, EventKind::GatewayUpstreamFailed, data).await;
        }
        let reason = refusal.code.trim_start_matches("mcp_");
        let subject = format!("{server} {host} {reason}");
        let audited = self.common.audit(&door.shared.store, ("mcp.deny", "denied"), &subject, target).await;
        if let Err(error) = audited {
            tracing::warn!(run.id = %run, error = %error, "a refused MCP request of {run} was not audited");
        }
        let remedy = fault.remedy();
        let data = json!({
            "server": server,
            "host": target.map(|target| target.host.to_string()),
            "port": target.map(|target| target.port),
            "reason": reason,
            "setting": remedy.as_ref().map(|(setting, _)| *setting),
            "rule": remedy.as_ref().map(|(_, rule)| rule),
            "message": refusal.message,
        });
        door.tell(run, EventKind::McpDenied, data).await;
    }

    fn moved(&self) -> Vec<Value> {
        let mut items = Vec::new();
        for (server, used) in &mut self.lock().uses {
            let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let now = (used.requests, load(&used.moved.sent), load(&used.moved.received));
            if now != used.told {
                items.push(json!({
                    "server": server,
                    "host": used.target.host.to_string(),
                    "port": used.target.port,
                    "requests": now.0 - used.told.0,
                    "sent_bytes": now.1 - used.told.1,
                    "received_bytes": now.2 - used.told.2,
                }));
                used.told = now;
            }
        }
        items
    }
}

impl Way for RunMcp {
    fn common(&self) -> &Common {
        &self.common
    }

    async fn tell_moved(&self, store: &Store, _last: bool) {
        let items = self.moved();
        if items.is_empty() {
            return;
        }
        let Common { run, secrets, .. } = &self.common;
        let told = event(secrets, EventKind::McpUsed, &json!({ "items": items }));
        if let Err(error) = store.append_gateway_event(run, told).await {
            tracing::warn!(run.id = %run, error = %error, "what {run} moved to MCP servers was not written down");
        }
    }
}

/// Before a run's outcome is stored; see [`way::before_outcome`].
pub(crate) async fn before_outcome(door: &Door) {
    way::before_outcome(door, &door.mcp).await;
}

impl Passage {
    /// Counts bytes on their way out.
    pub(super) fn sent(&self, bytes: usize) -> Result<(), Fault> {
        let (own, run) = (self.run.bounds.request_bytes, self.run.bounds.sent_bytes);
        let bytes = bytes as u64;
        if add(&self.own.sent, bytes) > own {
            return Err(self.meet(Fault::RequestTooLarge { bound: own }));
        }
        if add(&self.run.sent, bytes) > run {
            return Err(self.meet(Fault::TooMuchSent { bound: run }));
        }
        add(&self.moved.sent, bytes);
        Ok(())
    }

    /// Counts bytes on their way in.
    pub(super) fn received(&self, bytes: usize) -> Result<(), Fault> {
        let (own, run) = (self.run.bounds.reply_bytes, self.run.bounds.received_bytes);
        let bytes = bytes as u64;
        if add(&self.own.received, bytes) > own {
            return Err(self.meet(Fault::ReplyTooLarge { bound: own }));
        }
        if add(&self.run.received, bytes) > run {
            return Err(self.meet(Fault::TooMuchReceived { bound: run }));
        }
        add(&self.moved.received, bytes);
        Ok(())
    }

    fn meet(&self, fault: Fault) -> Fault {
        self.met.get_or_init(|| fault).clone()
    }

    /// How long its request may be.
    pub(super) fn request_bytes(&self) -> u64 {
        self.run.bounds.request_bytes
    }

    /// The bound that the exchange met.
    pub(super) fn met(&self) -> Option<Fault> {
        self.met.get().cloned()
    }

    /// The run's way to MCP servers.
    pub(super) fn run(&self) -> &Arc<RunMcp> {
        &self.run
    }
}

fn add(count: &AtomicU64, bytes: u64) -> u64 {
    count.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes)
}
