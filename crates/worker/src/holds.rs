//! Which sandboxes this process has its hands on, so that reconciling and placing never disturb a live one.
//!
//! A sandbox is held before anything of it exists and until nothing of it is left. So whoever lists what exists first,
//! and looks here afterwards, finds every sandbox that is in use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::{SandboxId, SessionId};
use tokio::sync::watch;

/// All sandboxes that this process has its hands on.
#[derive(Debug, Clone)]
pub(crate) struct Holds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entries: Mutex<HashMap<SandboxId, Entry>>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Entry {
    session: Option<SessionId>,
    hand: Hand,
}

/// Who sees to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    /// A task of this process, by its [`Hold`].
    Held,
    /// Nobody for now: destroying it failed, and it must be tried again.
    Stuck,
}

/// A session's other sandbox, which must be gone before a new one may use the same workspace.
#[derive(Debug)]
pub(crate) enum Predecessor {
    /// A task sees to it: wait.
    Busy,
    /// Nobody did; the caller does now.
    Yours(Hold),
}

/// The right to act on one sandbox. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    sandbox: SandboxId,
}

impl Holds {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { entries: Mutex::default(), changed: watch::Sender::new(()) }))
    }

    /// Takes a sandbox that nobody sees to: a new one, an adopted one, one that is stuck. None if a task holds it.
    pub(crate) fn take(&self, sandbox: &SandboxId, session: Option<&SessionId>) -> Option<Hold> {
        let mut entries = self.entries();
        if entries.get(sandbox).is_some_and(|entry| entry.hand == Hand::Held) {
            return None;
        }
        let known = entries.get(sandbox).and_then(|entry| entry.session.clone());
        let session = known.or_else(|| session.cloned());
        entries.insert(sandbox.clone(), Entry { session, hand: Hand::Held });
        Some(Hold { holds: self.clone(), sandbox: sandbox.clone() })
    }

    /// Any sandbox of the session.
    pub(crate) fn predecessor(&self, session: &SessionId) -> Option<Predecessor> {
        let mut entries = self.entries();
        let of_session = |(_, entry): &(&SandboxId, &mut Entry)| entry.session.as_ref() == Some(session);
        let (sandbox, entry) = entries.iter_mut().find(of_session)?;
        Some(match entry.hand {
            Hand::Held => Predecessor::Busy,
            Hand::Stuck => {
                entry.hand = Hand::Held;
                Predecessor::Yours(Hold { holds: self.clone(), sandbox: sandbox.clone() })
            }
        })
    }

    /// Is told whenever a sandbox is let go. Subscribe before asking for a [`Predecessor`].
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SandboxId, Entry>> {
        // Every change is a single insertion, removal or assignment: a panic elsewhere cannot leave half of one.
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// The sandbox held.
    pub(crate) fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    /// Lets go of a sandbox that could not be destroyed: the next reconcile pass tries again, and until then its
    /// session gets no other one.
    pub(crate) fn stick(self) {
        if let Some(entry) = self.holds.entries().get_mut(&self.sandbox) {
            entry.hand = Hand::Stuck;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut entries = self.holds.entries();
        if entries.get(&self.sandbox).is_some_and(|entry| entry.hand == Hand::Held) {
            entries.remove(&self.sandbox);
        }
        drop(entries);
        self.holds.0.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (SandboxId, SessionId) {
        (SandboxId::new(1, [1; 10]), SessionId::new(1, [2; 10]))
    }

    #[test]
    fn a_sandbox_is_held_once_and_free_after_the_hold() {
        let holds = Holds::new();
        let (sandbox, session) = ids();
        let changes = holds.changes();
        let hold = holds.take(&sandbox, Some(&session)).unwrap();
        assert!(holds.take(&sandbox, None).is_none());
        assert!(matches!(holds.predecessor(&session), Some(Predecessor::Busy)));
        assert!(!changes.has_changed().unwrap());
        drop(hold);
        assert!(changes.has_changed().unwrap());
        assert!(holds.predecessor(&session).is_none());
        assert!(holds.take(&sandbox, None).is_some());
    }

    #[test]
    fn a_stuck_sandbox_blocks_its_session_until_somebody_takes_it() {
        let holds = Holds::new();
        let (sandbox, session) = ids();
        holds.take(&sandbox, Some(&session)).unwrap().stick();
        let Some(Predecessor::Yours(hold)) = holds.predecessor(&session) else { panic!("not offered") };
        assert!(holds.take(&sandbox, None).is_none(), "one at a time");
        hold.stick();
        let hold = holds.take(&sandbox, None).unwrap();
        assert!(matches!(holds.predecessor(&session), Some(Predecessor::Busy)), "its session is remembered");
        drop(hold);
        assert!(holds.predecessor(&session).is_none());
    }
}
