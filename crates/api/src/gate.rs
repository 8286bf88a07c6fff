//! Which connections are let in, and which make room for them.
//!
//! A connection on which a key was accepted is *proven* and is never cut for another; of those, one key may have a part. One that only waits for a request
//! may be: whoever opens many and says little takes places from themselves and not from callers with a key. Some places
//! are for proven connections alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::ApiKeyId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::access::Peer;
use crate::config::{RESERVED_PART, ServeLimits};
use crate::shares::{Share, Shares};

/// The places for connections.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: usize,
    unproven_places: usize,
    per_peer: usize,
    of_keys: Shares,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<u64, Open>,
    peers: HashMap<Peer, usize>,
    unproven: usize,
}

#[derive(Debug)]
struct Open {
    peer: Peer,
    /// What it takes of its key's share, once a key was accepted on it.
    proven: Option<Share>,
    /// Requests under way on it.
    serving: u32,
    /// Orders the connections by the time since which they have waited for a request.
    waiting_since: u64,
    cut: CancellationToken,
}

/// What came of letting a connection in.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It has a place.
    Entered(Entry),
    /// Its address has too many already.
    Refused,
    /// Every place is taken by somebody who is not cut for it; [`Gate::freed`] tells when to try again.
    Full,
}

/// A connection's place. It is given back when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Entry(Arc<Held>);

#[derive(Debug)]
struct Held {
    gate: Gate,
    id: u64,
    cut: CancellationToken,
    pressed: bool,
}

/// A request under way; the connection waits for the next one when it is dropped.
#[derive(Debug)]
pub(crate) struct Serving(Entry);

impl Gate {
    pub(crate) fn new(limits: &ServeLimits) -> Self {
        let places = limits.connections.max(1);
        Self(Arc::new(Inner {
            places,
            unproven_places: (places - places / RESERVED_PART).max(1),
            per_peer: limits.connections_per_peer.max(1),
            of_keys: Shares::of(limits.connections_per_key),
            state: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// Lets a connection of `peer` in, if there is a place or one can be made.
    pub(crate) fn admit(&self, peer: Peer) -> Admission {
        let inner = &*self.0;
        let mut state = self.lock();
        if state.peers.get(&peer).is_some_and(|open| *open >= inner.per_peer)
            && !state.cut_oldest(|open| open.peer == peer)
        {
            return Admission::Refused;
        }
        let full =
            |state: &State| state.open.len() >= inner.places || state.unproven >= inner.unproven_places;
        if full(&state) {
            // Whoever holds the most gives way first.
            let most = state.peers.values().copied().max().unwrap_or(0);
            let crowd: Vec<Peer> =
                state.peers.iter().filter(|(_, open)| **open == most).map(|(peer, _)| *peer).collect();
            if !state.cut_oldest(|open| crowd.contains(&open.peer)) {
                state.cut_oldest(|_| true);
            }
        }
        if full(&state) {
            return Admission::Full;
        }
        let cut = CancellationToken::new();
        let pressed = state.unproven > inner.unproven_places / 2;
        let id = state.tick();
        let open = Open { peer, proven: None, serving: 0, waiting_since: id, cut: cut.clone() };
        state.open.insert(id, open);
        state.unproven += 1;
        *state.peers.entry(peer).or_default() += 1;
        Admission::Entered(Entry(Arc::new(Held { gate: self.clone(), id, cut, pressed })))
    }

    /// Returns when a place was freed since the last call.
    /// # Cancel safety
    /// Safe: what was freed meanwhile is told by the next call.
    pub(crate) async fn freed(&self) {
        self.0.freed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the counts behind: they change together, without a call between.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes the place of the unproven connection that has waited longest for a request, among those that `which` says.
    fn cut_oldest(&mut self, which: impl Fn(&Open) -> bool) -> bool {
        let waiting =
            self.open.iter().filter(|(_, open)| open.proven.is_none() && open.serving == 0 && which(open));
        let Some(id) = waiting.min_by_key(|(_, open)| open.waiting_since).map(|(id, _)| *id) else {
            return false;
        };
        if let Some(open) = self.remove(id) {
            open.cut.cancel();
        }
        true
    }

    fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.unproven -= usize::from(open.proven.is_none());
        if let Some(count) = self.peers.get_mut(&open.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&open.peer);
            }
        }
        Some(open)
    }
}

impl Entry {
    /// A key was accepted on the connection. `false` if the key has as many connections as one may: then this one stays
    /// unproven, and nothing that lasts may be done on it.
    pub(crate) fn prove(&self, key: &ApiKeyId) -> bool {
        let gate = &self.0.gate;
        let mut state = gate.lock();
        // One that has made room ends in a moment.
        let Some(open) = state.open.get_mut(&self.0.id) else { return true };
        if open.proven.is_some() {
            return true;
        }
        let Some(share) = gate.0.of_keys.take(key) else { return false };
        open.proven = Some(share);
        state.unproven -= 1;
        drop(state);
        gate.0.freed.notify_one();
        true
    }

    /// A request has come.
    pub(crate) fn serve(&self) -> Serving {
        if let Some(open) = self.0.gate.lock().open.get_mut(&self.0.id) {
            open.serving += 1;
        }
        Serving(self.clone())
    }

    /// Returns when the connection has to make room.
    /// # Cancel safety
    /// Safe: repeatable.
    pub(crate) async fn cut(&self) {
        self.0.cut.cancelled().await;
    }

    /// Whether places were scarce when it came in.
    pub(crate) fn is_pressed(&self) -> bool {
        self.0.pressed
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let held = &self.0.0;
        let mut state = held.gate.lock();
        let now = state.tick();
        if let Some(open) = state.open.get_mut(&held.id) {
            open.serving -= 1;
            open.waiting_since = now;
            drop(state);
            // It may make room now.
            held.gate.0.freed.notify_one();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have made room before: then the place is another's.
        if self.gate.lock().remove(self.id).is_some() {
            self.gate.0.freed.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
