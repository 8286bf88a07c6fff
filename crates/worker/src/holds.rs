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
    /// Nobody for now: somebody has to look at it again.
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

/// The right to act on one sandbox.
///
/// Dropped without a word, for whatever reason, it leaves the sandbox stuck: a reconcile pass looks at it again, and until
/// then its session gets no other one.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    sandbox: SandboxId,
    /// Whether the sandbox need not be remembered after the hold.
    forget: bool,
    /// Whether the sandbox was stuck when it was taken.
    was_stuck: bool,
}

impl Holds {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { entries: Mutex::default(), changed: watch::Sender::new(()) }))
    }

    /// Takes a sandbox that nobody sees to: a new one, an adopted one, one that is stuck. None if a task holds it.
    pub(crate) fn take(&self, sandbox: &SandboxId, session: Option<&SessionId>) -> Option<Hold> {
        let mut entries = self.entries();
        let (known, was_stuck) = match entries.get(sandbox) {
            Some(Entry { hand: Hand::Held, .. }) => return None,
            Some(Entry { hand: Hand::Stuck, session }) => (session.clone(), true),
            None => (None, false),
        };
        let session = known.or_else(|| session.cloned());
        entries.insert(sandbox.clone(), Entry { session, hand: Hand::Held });
        Some(self.hold(sandbox, was_stuck))
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
                Predecessor::Yours(self.hold(sandbox, true))
            }
        })
    }

    /// Whether there is any sandbox of the session.
    pub(crate) fn has_session(&self, session: &SessionId) -> bool {
        self.entries().values().any(|entry| entry.session.as_ref() == Some(session))
    }

    /// The sandboxes that are stuck.
    pub(crate) fn stuck(&self) -> Vec<SandboxId> {
        let stuck =
            |(sandbox, entry): (&SandboxId, &Entry)| (entry.hand == Hand::Stuck).then(|| sandbox.clone());
        self.entries().iter().filter_map(stuck).collect()
    }

    /// Is told whenever a sandbox is let go. Subscribe before asking for a [`Predecessor`].
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn hold(&self, sandbox: &SandboxId, was_stuck: bool) -> Hold {
        Hold { holds: self.clone(), sandbox: sandbox.clone(), forget: false, was_stuck }
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

    /// The session of the sandbox held, if it is known.
    pub(crate) fn session(&self) -> Option<SessionId> {
        self.holds.entries().get(&self.sandbox).and_then(|entry| entry.session.clone())
    }

    /// Lets go of a sandbox of which nothing is left.
    pub(crate) fn release(mut self) {
        self.forget = true;
    }

    /// Lets go of a sandbox without having done anything to it: one that was stuck is stuck again.
    pub(crate) fn put_back(mut self) {
        self.forget = !self.was_stuck;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut entries = self.holds.entries();
        if self.forget {
            entries.remove(&self.sandbox);
        } else if let Some(entry) = entries.get_mut(&self.sandbox) {
            entry.hand = Hand::Stuck;
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
    fn a_sandbox_is_held_once_and_free_after_its_release() {
        let holds = Holds::new();
        let (sandbox, session) = ids();
        let changes = holds.changes();
        let hold = holds.take(&sandbox, Some(&session)).unwrap();
        assert!(holds.take(&sandbox, None).is_none());
        assert!(matches!(holds.predecessor(&session), Some(Predecessor::Busy)));
        assert!(!changes.has_changed().unwrap());
        hold.release();
        assert!(changes.has_changed().unwrap());
        assert!(holds.predecessor(&session).is_none() && holds.stuck().is_empty());
        assert!(holds.take(&sandbox, None).is_some());
    }

    #[test]
    fn a_dropped_hold_blocks_its_session_until_somebody_takes_it() {
        let holds = Holds::new();
        let (sandbox, session) = ids();
        drop(holds.take(&sandbox, Some(&session)));
        assert_eq!(holds.stuck(), std::slice::from_ref(&sandbox));
        let Some(Predecessor::Yours(hold)) = holds.predecessor(&session) else { panic!("not offered") };
        assert!(holds.take(&sandbox, None).is_none() && holds.stuck().is_empty(), "one at a time");
        drop(hold);
        let hold = holds.take(&sandbox, None).unwrap();
        assert!(matches!(holds.predecessor(&session), Some(Predecessor::Busy)), "its session is remembered");
        hold.release();
        assert!(holds.predecessor(&session).is_none());
    }

    #[test]
    fn a_sandbox_that_is_put_back_is_as_it_was() {
        let holds = Holds::new();
        let (sandbox, session) = ids();
        holds.take(&sandbox, Some(&session)).unwrap().put_back();
        assert!(holds.predecessor(&session).is_none(), "it was not held before");
        drop(holds.take(&sandbox, Some(&session)));
        holds.take(&sandbox, None).unwrap().put_back();
        assert!(matches!(holds.predecessor(&session), Some(Predecessor::Yours(_))), "it is still stuck");
    }
}
