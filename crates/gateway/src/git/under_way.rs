//! Which runs have a push on its way through this process, and after whose pending push it asks.
//!
//! A git host that is at work on a push does not show it yet: a look at its refs means something only when nothing is
//! under way here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use caisson_domain::id::RunId;
use tokio::sync::watch;

/// The pushes of this process. Bounded by its sandboxes and by what each may have under way.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    /// How many of a run are being forwarded.
    forwarded: watch::Sender<HashMap<RunId, usize>>,
    /// Runs whose pending push is asked after.
    followed: Mutex<HashSet<RunId>>,
}

/// A push on its way, until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    pushes: Arc<Pushes>,
    run: RunId,
}

impl Pushes {
    pub(super) fn begin(self: &Arc<Self>, run: &RunId) -> UnderWay {
        self.forwarded.send_modify(|runs| *runs.entry(run.clone()).or_default() += 1);
        UnderWay { pushes: Arc::clone(self), run: run.clone() }
    }

    pub(super) fn any_of(&self, run: &RunId) -> bool {
        self.forwarded.borrow().contains_key(run)
    }

    /// Waits until no push of the run is under way.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub(super) async fn none_of(&self, run: &RunId) {
        let mut forwarded = self.forwarded.subscribe();
        // It fails when the sender is gone, which is here.
        drop(forwarded.wait_for(|runs| !runs.contains_key(run)).await);
    }

    /// Whether somebody has to begin to ask after the run's pending push.
    pub(super) fn follow(&self, run: &RunId) -> bool {
        self.followed.lock().is_ok_and(|mut runs| runs.insert(run.clone()))
    }

    /// Nobody asks any more.
    pub(super) fn leave(&self, run: &RunId) {
        if let Ok(mut runs) = self.followed.lock() {
            runs.remove(run);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pushes.forwarded.send_modify(|runs| {
            let left = runs.get(&self.run).map_or(0, |count| count.saturating_sub(1));
            if left == 0 {
                runs.remove(&self.run);
            } else {
                runs.insert(self.run.clone(), left);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_run_has_pushes_under_way_until_the_last_one_is_over() {
        let (run, other) = (RunId::new(1, [1; 10]), RunId::new(1, [2; 10]));
        let pushes = Arc::new(Pushes::default());
        let none = |run| pushes.none_of(run).now_or_never().is_some();
        assert!(none(&run));
        let (first, second) = (pushes.begin(&run), pushes.begin(&run));
        assert!(!none(&run) && none(&other));
        drop(first);
        assert!(!none(&run));
        drop(second);
        assert!(none(&run));
        assert!(pushes.forwarded.borrow().is_empty(), "it does not grow");
    }

    #[test]
    fn one_asks_after_the_push_of_a_run() {
        let run = RunId::new(1, [1; 10]);
        let pushes = Pushes::default();
        assert!(pushes.follow(&run) && !pushes.follow(&run));
        pushes.leave(&run);
        assert!(pushes.follow(&run));
    }
}
