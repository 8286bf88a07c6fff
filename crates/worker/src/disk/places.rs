//! The sandboxes in this worker's hands, seen as users of the disk, and why one of them is to end.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_domain::id::SandboxId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Amount, Bound, Room};

/// How far back the growth of a sandbox is looked at.
pub const GROWTH_WINDOW: Duration = Duration::from_secs(5);
/// Measurements of one sandbox that are remembered.
const SAMPLES: usize = 64;

/// Why the worker itself ends a sandbox, whether or not the store can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its time limit passed, and it did not stop.
    Time,
    /// Its room is full.
    Full(Bound, Room),
    /// The server's disk runs full, and of those that grow it is the largest.
    Floor {
        /// Free space that was left, in bytes.
        free_bytes: u64,
        /// What the sandbox had.
        used: Amount,
    },
}

/// All living sandboxes of this worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<HashMap<SandboxId, Arc<Place>>>>);

/// One living sandbox.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) sandbox: SandboxId,
    samples: Mutex<VecDeque<(Instant, Amount)>>,
    cut: watch::Sender<Option<Cut>>,
    ended: AtomicBool,
}

/// A sandbox as long as somebody sees to it.
#[derive(Debug)]
pub(crate) struct Entered {
    places: Places,
    place: Arc<Place>,
}

/// How large a sandbox is, and how much larger than before.
#[derive(Debug, Clone)]
pub(crate) struct Growth {
    pub(crate) place: Arc<Place>,
    pub(crate) used: Amount,
    /// Within [`GROWTH_WINDOW`].
    pub(crate) grown: Amount,
}

impl Places {
    /// Enters a sandbox; it leaves when the answer is dropped.
    pub(crate) fn enter(&self, sandbox: &SandboxId) -> Entered {
        let place = Arc::new(Place {
            sandbox: sandbox.clone(),
            samples: Mutex::default(),
            cut: watch::Sender::new(None),
            ended: AtomicBool::new(false),
        });
        self.lock().insert(sandbox.clone(), Arc::clone(&place));
        Entered { places: self.clone(), place }
    }

    /// Whether the sandbox is still seen to.
    pub(crate) fn has(&self, sandbox: &SandboxId) -> bool {
        self.lock().contains_key(sandbox)
    }

    /// Those that have been measured and are not to end already.
    pub(crate) fn growths(&self) -> Vec<Growth> {
        self.lock().values().filter_map(Growth::of).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Place>>> {
        // Every change is a single insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Notes what a sandbox has.
    pub(crate) fn note(&self, used: Amount) {
        let mut samples = self.samples();
        let now = Instant::now();
        // One from before the window is kept, as what the growth is counted from.
        while samples.len() >= SAMPLES
            || samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= GROWTH_WINDOW)
        {
            samples.pop_front();
        }
        samples.push_back((now, used));
    }

    /// Has the sandbox end; the first reason counts.
    pub(crate) fn cut(&self, why: Cut) {
        self.cut.send_if_modified(|cut| {
            let first = cut.is_none();
            if first {
                *cut = Some(why);
            }
            first
        });
    }

    /// Why the sandbox is to end, if it is.
    pub(crate) fn why(&self) -> Option<Cut> {
        *self.cut.borrow()
    }

    /// Waits until the sandbox is to end.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn is_cut(&self) -> Cut {
        let cut = self.cut.subscribe().wait_for(Option::is_some).await.map(|cut| *cut);
        match cut {
            Ok(Some(why)) => why,
            // The sender is in self.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Notes that the sandbox was killed: whatever it was, it grows no more.
    pub(crate) fn killed(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether the worker has killed it.
    pub(crate) fn was_killed(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<(Instant, Amount)>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Growth {
    fn of(place: &Arc<Place>) -> Option<Self> {
        if place.why().is_some() {
            return None;
        }
        let (before, used) = {
            let samples = place.samples();
            (samples.front()?.1, samples.back()?.1)
        };
        let grown = Amount {
            bytes: used.bytes.saturating_sub(before.bytes),
            files: used.files.saturating_sub(before.files),
            too_deep: false,
        };
        Some(Self { place: Arc::clone(place), used, grown })
    }
}

impl std::ops::Deref for Entered {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        // A later owner of the same sandbox stays.
        if places.get(&self.place.sandbox).is_some_and(|there| Arc::ptr_eq(there, &self.place)) {
            places.remove(&self.place.sandbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(number: u8) -> SandboxId {
        SandboxId::new(1, [number; 10])
    }

    fn amount(bytes: u64) -> Amount {
        Amount { bytes, files: bytes / 10, too_deep: false }
    }

    #[tokio::test(start_paused = true)]
    async fn growth_is_counted_from_just_before_the_window() {
        let places = Places::default();
        let place = places.enter(&sandbox(1));
        assert!(places.growths().is_empty(), "it has not been measured");
        for bytes in [100, 200, 300, 400] {
            place.note(amount(bytes));
            tokio::time::advance(GROWTH_WINDOW / 2).await;
        }
        let growth = &places.growths()[0];
        assert_eq!((growth.used.bytes, growth.grown.bytes), (400, 200));
        place.note(amount(50));
        assert_eq!(places.growths()[0].grown.bytes, 0, "what shrinks does not grow");
        for _ in 0..2 * SAMPLES {
            place.note(amount(50));
        }
        assert_eq!(place.samples().len(), SAMPLES);
    }

    #[tokio::test]
    async fn the_first_reason_counts_and_whoever_is_to_end_is_no_candidate() {
        let places = Places::default();
        let place = places.enter(&sandbox(1));
        place.note(amount(1));
        place.cut(Cut::Time);
        place.cut(Cut::Floor { free_bytes: 0, used: Amount::default() });
        assert_eq!(place.is_cut().await, Cut::Time);
        assert!(places.growths().is_empty());
    }

    #[test]
    fn a_sandbox_leaves_with_its_owner_unless_there_is_a_later_one() {
        let places = Places::default();
        let first = places.enter(&sandbox(1));
        let second = places.enter(&sandbox(1));
        drop(first);
        assert!(places.has(&sandbox(1)));
        drop(second);
        assert!(!places.has(&sandbox(1)));
    }
}
