//! The sandboxes that wait, oldest first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::{SandboxId, SessionId};
use caisson_domain::run::RunSpec;
use caisson_sandbox::SandboxUsage;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::seen::Seen;
use crate::holds::Hold;

/// A sandbox that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) hold: Hold,
    pub(crate) session: SessionId,
    /// What its last run was.
    pub(crate) spec: RunSpec,
    /// What it takes, as far as it is known.
    pub(crate) memory_bytes: u64,
    /// When it began to wait.
    pub(crate) since: Instant,
    /// What was seen of it since; none before the first look.
    pub(crate) seen: Option<Seen>,
    /// Tells whoever watches it that it waits no longer; none before its run has ended.
    pub(crate) watched: Option<DropGuard>,
}

impl Waiting {
    /// Takes in what was seen of it; why it may not wait any longer, if it may not.
    pub(crate) fn look(&mut self, usage: &SandboxUsage) -> Option<&'static str> {
        let now = Instant::now();
        if let Some(seen) = &mut self.seen {
            return seen.again(usage, now);
        }
        self.seen = Some(Seen::first(usage, now));
        None
    }
}

/// All that wait. A session has one at most: its last run had to be over before the next one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Vec<Waiting>>>);

impl Shelf {
    pub(crate) fn put(&self, waiting: Waiting) {
        self.lock().push(waiting);
    }

    /// Takes the one of the session.
    pub(crate) fn take_of(&self, session: &SessionId) -> Option<Waiting> {
        self.take(|waiting| waiting.session == *session)
    }

    /// Whether there is one of the session.
    pub(crate) fn has(&self, session: &SessionId) -> bool {
        self.lock().iter().any(|waiting| waiting.session == *session)
    }

    /// Notes who watches the one of the session, which may be taken by others from here on; its sandbox, if it is still here.
    pub(crate) fn watched(&self, session: &SessionId, taken: DropGuard) -> Option<SandboxId> {
        let mut all = self.lock();
        let waiting = all.iter_mut().find(|waiting| waiting.session == *session)?;
        waiting.watched = Some(taken);
        Some(waiting.hold.sandbox().clone())
    }

    /// Takes the one in this sandbox.
    pub(crate) fn take_sandbox(&self, sandbox: &SandboxId) -> Option<Waiting> {
        self.take(|waiting| waiting.hold.sandbox() == sandbox)
    }

    /// Takes the one that has waited longest.
    pub(crate) fn take_oldest(&self) -> Option<Waiting> {
        self.take(|waiting| waiting.watched.is_some())
    }

    /// Takes the one that has waited longest if they take more than `most` bytes together.
    pub(crate) fn take_beyond(&self, most: u64) -> Option<Waiting> {
        let together =
            self.lock().iter().fold(0_u64, |sum, waiting| sum.saturating_add(waiting.memory_bytes));
        if together > most { self.take_oldest() } else { None }
    }

    /// Notes what a sandbox takes, if it still waits.
    pub(crate) fn note_memory(&self, sandbox: &SandboxId, memory_bytes: impl FnOnce(&RunSpec) -> u64) {
        if let Some(waiting) = self.lock().iter_mut().find(|waiting| waiting.hold.sandbox() == sandbox) {
            waiting.memory_bytes = memory_bytes(&waiting.spec);
        }
    }

    /// Takes in what was seen of a sandbox, if it still waits; why it may not wait any longer, if it may not.
    pub(crate) fn look(&self, sandbox: &SandboxId, usage: &SandboxUsage) -> Option<&'static str> {
        let mut all = self.lock();
        let waiting = all.iter_mut().find(|waiting| waiting.hold.sandbox() == sandbox)?;
        waiting.memory_bytes = usage.memory_bytes;
        waiting.look(usage)
    }

    /// How many wait whose runs have ended.
    pub(crate) fn count(&self) -> usize {
        self.lock().iter().filter(|waiting| waiting.watched.is_some()).count()
    }

    fn take(&self, wanted: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let mut all = self.lock();
        let at = all.iter().position(wanted)?;
        Some(all.remove(at))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // Every change is a single insertion, removal or assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::holds::Holds;
    use tokio_util::sync::CancellationToken;

    fn waiting(holds: &Holds, number: u8, memory_bytes: u64) -> (Waiting, CancellationToken) {
        let (sandbox, session) = (SandboxId::new(1, [number; 10]), SessionId::new(1, [number; 10]));
        let token = CancellationToken::new();
        let waiting = Waiting {
            hold: holds.take(&sandbox, Some(&session)).unwrap(),
            session,
            spec: spec(),
            memory_bytes,
            since: Instant::now(),
            seen: None,
            watched: Some(token.clone().drop_guard()),
        };
        (waiting, token)
    }

    pub(crate) fn spec() -> RunSpec {
        crate::judge::tests::spec()
    }

    #[tokio::test]
    async fn each_is_found_by_its_session_and_its_sandbox_and_told_when_it_is_taken() {
        let (shelf, holds) = (Shelf::default(), Holds::new());
        let (one, one_taken) = waiting(&holds, 1, 0);
        let (two, two_taken) = waiting(&holds, 2, 0);
        let (session, sandbox) = (one.session.clone(), two.hold.sandbox().clone());
        shelf.put(one);
        shelf.put(two);
        assert!(shelf.take_of(&SessionId::new(1, [3; 10])).is_none());
        let taken = shelf.take_of(&session).unwrap();
        assert!(!one_taken.is_cancelled(), "it is in the taker's hands");
        drop(taken);
        assert!(one_taken.is_cancelled() && !two_taken.is_cancelled());
        assert!(shelf.take_of(&session).is_none() && shelf.count() == 1);
        drop(shelf.take_sandbox(&sandbox).unwrap());
        assert!(two_taken.is_cancelled() && shelf.take_oldest().is_none());
    }

    #[tokio::test]
    async fn the_oldest_goes_first_and_only_beyond_the_bound() {
        let (shelf, holds) = (Shelf::default(), Holds::new());
        for number in 1..=3 {
            shelf.put(waiting(&holds, number, 10).0);
        }
        let third = SandboxId::new(1, [3; 10]);
        assert!(shelf.take_beyond(30).is_none(), "at the bound");
        shelf.note_memory(&third, |spec| u64::from(spec.resources.memory_mib));
        let memory = u64::from(spec().resources.memory_mib);
        assert!(shelf.take_beyond(20 + memory).is_none());
        assert_eq!(*shelf.take_beyond(19 + memory).unwrap().hold.sandbox(), SandboxId::new(1, [1; 10]));
        assert!(shelf.take_beyond(10 + memory).is_none());
        assert_eq!(*shelf.take_oldest().unwrap().hold.sandbox(), SandboxId::new(1, [2; 10]));
        assert_eq!(*shelf.take_beyond(0).unwrap().hold.sandbox(), third, "the last one too");
        assert!(shelf.take_beyond(0).is_none());
    }

    #[tokio::test]
    async fn nobody_but_the_session_takes_one_whose_run_has_not_ended() {
        let (shelf, holds) = (Shelf::default(), Holds::new());
        let (mut one, taken) = waiting(&holds, 1, 10);
        let guard = one.watched.take().unwrap();
        let session = one.session.clone();
        shelf.put(one);
        assert!(shelf.take_oldest().is_none() && shelf.take_beyond(0).is_none() && shelf.count() == 0);
        assert_eq!(shelf.watched(&session, guard), Some(SandboxId::new(1, [1; 10])));
        assert_eq!(shelf.count(), 1);
        assert!(shelf.take_of(&session).is_some() && taken.is_cancelled());
        assert!(shelf.watched(&session, CancellationToken::new().drop_guard()).is_none());
    }
}
