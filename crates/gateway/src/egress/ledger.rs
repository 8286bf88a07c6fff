//! What a run's tools moved and were refused: counted, coalesced and bounded, so that an agent that tries for ever fills
//! no database.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use caisson_domain::egress::{Host, RULE_PATH_BYTES, Rule, Target, Via, Wanted, common_path, path_above};
use caisson_domain::run::cut;
use serde_json::{Value, json};

use super::address;
use super::fault::Fault;
use super::policy::Ground;
use crate::bounds::{EGRESS_DENIALS, EGRESS_TARGETS, EGRESS_USED_ITEMS, EXCERPT_BYTES};
use crate::first::FirstUse;

/// Bytes of one kind of use.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct UseKey {
    target: Target,
    via: &'static str,
    /// None for a tunnel.
    method: Option<String>,
    ground: Ground,
}

#[derive(Debug, Default)]
struct Use {
    moved: Arc<Moved>,
    record: FirstUse,
    connections: u64,
    /// What all paths so far have in common.
    path: Option<String>,
    /// Connections, sent and received bytes that were told.
    told: (u64, u64, u64),
}

/// What is refused for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct DenialKey {
    target: String,
    via: &'static str,
    method: Option<String>,
    reason: &'static str,
}

#[derive(Debug)]
struct Denial {
    /// The latest one's, with the path that all have in common.
    wanted: Option<Wanted>,
    fault: Fault,
    untold: u64,
}

/// What is refused alike where there is no room for more kinds. The agent chooses none of it: all of it is of closed lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OtherKey {
    via: &'static str,
    reason: &'static str,
    /// Which addresses that are not public it is of, if it is.
    inside: Option<&'static str>,
}

impl OtherKey {
    fn of(via: &'static str, wanted: Option<&Wanted>, fault: &Fault) -> Self {
        let inside = match (fault, wanted.map(|wanted| &wanted.target.host)) {
            (Fault::PrivateAddress { what, .. }, _) => Some(*what),
            (_, Some(Host::Address(address))) => address::refused(*address, &[]),
            (_, Some(Host::Name(_)) | None) => None,
        };
        Self { via, reason: fault.reason(), inside }
    }
}

/// Denials that were counted without their names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Others {
    /// Of the record in the audit log.
    pub(super) subject: String,
    pub(super) event: Value,
}

/// A first denial, or one like those before.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Noted {
    /// It is to be told at once.
    First(Value),
    /// It is counted.
    Again,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    uses: BTreeMap<UseKey, Use>,
    denials: BTreeMap<DenialKey, Denial>,
    /// Denials beyond [`EGRESS_DENIALS`] kinds: how many of each came behind the first, which was told, and were not told yet.
    others: BTreeMap<OtherKey, u64>,
}

impl Ledger {
    /// Counts a use; beside its bytes the record of the first one of its kind.
    ///
    /// # Errors
    /// [`Fault::TooManyTargets`] beyond [`EGRESS_TARGETS`] kinds.
    pub(super) fn begin(&mut self, wanted: &Wanted, ground: Ground) -> Result<(Arc<Moved>, FirstUse), Fault> {
        let (method, path) = parts(&wanted.via);
        let key = UseKey { target: wanted.target.clone(), via: wanted.via.as_str(), method, ground };
        if !self.uses.contains_key(&key) && self.uses.len() >= EGRESS_TARGETS {
            return Err(Fault::TooManyTargets);
        }
        let entry = self.uses.entry(key).or_default();
        entry.connections += 1;
        entry.path = match (entry.path.take(), path) {
            (Some(known), Some(path)) => Some(common_path(&known, path)),
            (known, path) => known.or_else(|| path.map(str::to_owned)),
        };
        Ok((Arc::clone(&entry.moved), entry.record.clone()))
    }

    /// Counts a denial. Where there is no room for more kinds, the first of each reason and way is still told, with its host.
    pub(super) fn deny(&mut self, asked: &str, wanted: Option<&Wanted>, fault: &Fault) -> Noted {
        let method = wanted.and_then(|wanted| parts(&wanted.via).0);
        let target = wanted.map_or_else(|| asked.to_owned(), |wanted| wanted.target.to_string());
        let via = wanted.map_or("", |wanted| wanted.via.as_str());
        let key = DenialKey { target, via, method, reason: fault.reason() };
        if let Some(known) = self.denials.get_mut(&key) {
            known.untold += 1;
            if let (Some(before), Some(now)) = (&mut known.wanted, wanted)
                && let (Some(path), (_, Some(new))) = (path_of(&mut before.via), parts(&now.via))
            {
                *path = common_path(path, new);
            }
            return Noted::Again;
        }
        let first = denied(&key.target, wanted, fault, 1);
        if self.denials.len() >= EGRESS_DENIALS {
            return match self.others.entry(OtherKey::of(via, wanted, fault)) {
                Entry::Occupied(mut known) => {
                    *known.get_mut() += 1;
                    Noted::Again
                }
                Entry::Vacant(fresh) => {
                    fresh.insert(0);
                    Noted::First(first)
                }
            };
        }
        let kept = wanted.cloned().map(|mut wanted| {
            if let Some(path) = path_of(&mut wanted.via) {
                *path = path_above(path, RULE_PATH_BYTES).to_owned();
            }
            wanted
        });
        self.denials.insert(key, Denial { wanted: kept, fault: fault.clone(), untold: 0 });
        Noted::First(first)
    }

    /// What was moved since the last time, in pieces that each make one event.
    pub(super) fn used(&mut self) -> Vec<Value> {
        let mut items = Vec::new();
        for (key, entry) in &mut self.uses {
            let moved = &entry.moved;
            let now = (
                entry.connections,
                moved.sent.load(Ordering::Relaxed),
                moved.received.load(Ordering::Relaxed),
            );
            let (connections, sent, received) =
                (now.0 - entry.told.0, now.1 - entry.told.1, now.2 - entry.told.2);
            if (connections, sent, received) == (0, 0, 0) {
                continue;
            }
            entry.told = now;
            let mut item = json!({
                "host": key.target.host.to_string(), "port": key.target.port, "via": key.via, "method": key.method,
                "path": entry.path, "connections": connections, "sent_bytes": sent, "received_bytes": received,
            });
            if key.ground == Ground::Learning {
                item["learned"] = Value::Bool(true);
            }
            items.push(item);
        }
        items.chunks(EGRESS_USED_ITEMS).map(|items| json!({"items": items})).collect()
    }

    /// Denials that were counted and not told.
    pub(super) fn repeated(&mut self) -> Vec<Value> {
        let mut told = Vec::new();
        for (key, denial) in &mut self.denials {
            let count = std::mem::take(&mut denial.untold);
            if count > 0 {
                told.push(denied(&key.target, denial.wanted.as_ref(), &denial.fault, count));
            }
        }
        told
    }

    /// The same of those for whose kinds there was no room.
    pub(super) fn others(&mut self) -> Vec<Others> {
        let counted = self.others.iter_mut().map(|(key, count)| (*key, std::mem::take(count)));
        counted.filter(|(_, count)| *count > 0).map(|(key, count)| others(key, count)).collect()
    }
}

fn others(key: OtherKey, count: u64) -> Others {
    let OtherKey { via, reason, inside } = key;
    let to = inside.map_or_else(String::new, |inside| format!(" to {inside}"));
    let message = format!(
        "requests{to} that were refused for this reason, behind the first of them: more than {EGRESS_DENIALS} kinds were refused, \
         so they are told by their count alone"
    );
    let via = (!via.is_empty()).then_some(via);
    let way = via.map_or_else(String::new, |via| format!(" {via}"));
    Others {
        subject: format!("others{to}{way} {reason} ({count} more)"),
        event: json!({"host": null, "port": null, "via": via, "reason": reason, "message": message, "count": count}),
    }
}

/// The details of an `egress.denied` event.
fn denied(asked: &str, wanted: Option<&Wanted>, fault: &Fault, count: u64) -> Value {
    let asked: String = asked.chars().filter(|c| !c.is_control()).collect();
    let asked = cut(&asked, EXCERPT_BYTES);
    // The rule covers all that was asked so far.
    let remedy = match (fault, wanted) {
        (Fault::NotAllowed { .. } | Fault::NoTunnel { .. }, Some(wanted)) => {
            Some(("egress.allow", Rule::exactly(wanted).to_string()))
        }
        (Fault::NotInWorkflow { .. }, Some(wanted)) => {
            Some(("caisson.egress", Rule::exactly(wanted).to_string()))
        }
        _ => fault.remedy(),
    };
    let (method, path) = wanted.map_or((None, None), |wanted| parts(&wanted.via));
    let via = wanted.map(|wanted| wanted.via.as_str());
    let mut told = json!({
        "host": wanted.map_or_else(|| asked.to_owned(), |wanted| wanted.target.host.to_string()),
        "port": wanted.map(|wanted| wanted.target.port), "via": via, "method": method,
        "path": path, "reason": fault.reason(),
        "setting": remedy.as_ref().map(|(setting, _)| setting), "rule": remedy.as_ref().map(|(_, rule)| rule),
        "message": fault.message(asked), "count": count,
    });
    if let Fault::NoTunnel { url, .. } = fault {
        told["instead"] = url.as_str().into();
    }
    told
}

/// Method and path of a request; no more of the path than a rule could have.
fn parts(via: &Via) -> (Option<String>, Option<&str>) {
    match via {
        Via::Tunnel => (None, None),
        Via::Http { method, path } | Via::Https { method, path } => {
            (Some(method.clone()), Some(path_above(path, RULE_PATH_BYTES)))
        }
    }
}

fn path_of(via: &mut Via) -> Option<&mut String> {
    match via {
        Via::Tunnel => None,
        Via::Http { path, .. } | Via::Https { path, .. } => Some(path),
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
