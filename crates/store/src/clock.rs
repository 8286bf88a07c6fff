//! The store's clock: one replaceable function, read once per transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the store reads the time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// The machine's clock, and how far a database's clock that is followed is ahead of it, in milliseconds. In tests the machine's
    /// clock is wrong by so much.
    System {
        ahead_ms: Arc<AtomicI64>,
        wrong_by_ms: i64,
    },
    Fixed(Arc<AtomicI64>),
}

/// Moves a [`Clock`] that stands still by itself.
#[derive(Debug, Clone)]
pub struct ClockHandle(Arc<AtomicI64>);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::system_wrong_by(0)
    }

    /// The machine's clock as it would be if it were ahead by so many milliseconds, or behind by as many below zero: for tests of
    /// who goes by which clock.
    #[must_use]
    pub fn system_wrong_by(wrong_by_ms: i64) -> Self {
        Self(Source::System { ahead_ms: Arc::default(), wrong_by_ms })
    }

    /// A clock that stands at `now_ms` (Unix ms) until its handle moves it.
    #[must_use]
    pub fn fixed_at(now_ms: i64) -> (Self, ClockHandle) {
        let now = Arc::new(AtomicI64::new(now_ms));
        (Self(Source::Fixed(Arc::clone(&now))), ClockHandle(now))
    }

    /// The time, Unix ms. Not monotonic: the machine's clock may jump either way.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Source::System { ahead_ms, wrong_by_ms } => {
                system_now_ms().saturating_add(*wrong_by_ms).saturating_add(ahead_ms.load(Ordering::Relaxed))
            }
            Source::Fixed(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Follows a database's clock, which is the only one that several servers share, and returns its time. A clock that
    /// stands still goes on doing so.
    pub(crate) fn follow(&self, database_ms: i64) -> i64 {
        match &self.0 {
            Source::System { ahead_ms, wrong_by_ms } => {
                let machine_ms = system_now_ms().saturating_add(*wrong_by_ms);
                ahead_ms.store(database_ms.saturating_sub(machine_ms), Ordering::Relaxed);
                database_ms
            }
            Source::Fixed(now) => now.load(Ordering::SeqCst),
        }
    }
}

impl ClockHandle {
    /// Moves the clock by `ms`, which may be negative.
    pub fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the clock to `now_ms` (Unix ms).
    pub fn set(&self, now_ms: i64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one source of time that the rule speaks of")]
fn system_now_ms() -> i64 {
    // A machine set to before 1970 reads as 1970: every comparison still works.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_clock_moves_only_by_its_handle() {
        let (clock, handle) = Clock::fixed_at(1_000);
        let copy = clock.clone();
        assert_eq!(clock.now_ms(), 1_000);
        handle.advance(-400);
        assert_eq!(copy.now_ms(), 600);
        handle.set(5);
        assert_eq!(clock.now_ms(), 5);
    }

    #[test]
    fn a_system_clock_follows_a_database_and_a_fixed_one_does_not() {
        let clock = Clock::system();
        let copy = clock.clone();
        assert_eq!(clock.follow(5_000_000_000_000), 5_000_000_000_000);
        assert!((5_000_000_000_000..5_000_000_060_000).contains(&copy.now_ms()));
        let other = Clock::system().now_ms();
        assert!(other < 5_000_000_000_000, "only the clocks of one store");
        let wrong = Clock::system_wrong_by(-300_000);
        assert!((290_000..310_000).contains(&(other - wrong.now_ms())));
        assert_eq!(wrong.follow(5_000_000_000_000), 5_000_000_000_000);
        assert!((5_000_000_000_000..5_000_000_060_000).contains(&wrong.now_ms()), "and then it is right");
        let (clock, _) = Clock::fixed_at(7);
        assert_eq!((clock.follow(5_000), clock.now_ms()), (7, 7));
    }

    #[test]
    fn the_system_clock_is_in_this_century() {
        assert!(Clock::system().now_ms() > 1_600_000_000_000);
    }
}
