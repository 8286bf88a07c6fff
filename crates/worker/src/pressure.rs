//! Puts starts off while the machine has no CPU to spare. Starting is what costs most of it: a burst of starts would take it from the
//! sessions that already work, and everything that they wait for would come late.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Where Linux tells how the time of all processors was spent, the host's also in a container (proc(5)).
const STAT: &str = "/proc/stat";
/// Shortest time over which it is looked at: what is counted has steps of 10 ms.
const WINDOW: Duration = Duration::from_millis(200);
/// A start is not put off unless another one was within this time: it is bursts that hurt.
const LATELY: Duration = Duration::from_secs(5);
/// Share of all processors' time from which on there is none to spare, in per cent.
const BUSY_PERCENT: u64 = 90;

/// How the processors' time was spent since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    idle: u64,
    all: u64,
}

impl Times {
    /// Reads the first line of the file: user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in these.
    fn parse(stat: &str) -> Option<Self> {
        let mut words = stat.lines().next()?.split_ascii_whitespace();
        (words.next()? == "cpu").then_some(())?;
        let ticks: Vec<u64> = words.take(8).map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let idle = ticks.get(3)?.saturating_add(*ticks.get(4)?);
        Some(Self { idle, all: ticks.iter().fold(0, |all, ticks| all.saturating_add(*ticks)) })
    }

    /// Whether less than the rest of [`BUSY_PERCENT`] was idle since then.
    fn busy_since(self, then: Self) -> bool {
        let [idle, all] = [self.idle.saturating_sub(then.idle), self.all.saturating_sub(then.all)];
        all > 0 && idle.saturating_mul(100) < all.saturating_mul(100 - BUSY_PERCENT)
    }
}

/// Who asks before a start.
#[derive(Debug)]
pub(crate) struct Pressure {
    stat: PathBuf,
    /// One start asks at a time: the next one is to see what it costs.
    turn: Semaphore,
    /// The last look, and how the time had been spent until then.
    last: Mutex<Option<(Instant, Times)>>,
}

impl Pressure {
    pub(crate) fn of_the_machine() -> Self {
        Self::told_by(STAT.into())
    }

    fn told_by(stat: PathBuf) -> Self {
        Self { stat, turn: Semaphore::new(1), last: Mutex::new(None) }
    }

    /// Waits until there is CPU for one more start, for `patience` at most: then it goes on regardless, because a machine that others
    /// keep busy must not stop the queue. Starts ask one after another. Where the machine does not tell, nothing is waited for.
    ///
    /// # Cancel safety
    /// Safe: a look that was begun counts for the next one.
    pub(crate) async fn wait(&self, patience: Duration) {
        // It is never closed.
        let Ok(_turn) = self.turn.acquire().await else { return };
        let until = Instant::now() + patience;
        loop {
            let Some(now) = self.look() else { return };
            let last = self.last();
            let Some((at, then)) = last.filter(|(at, _)| at.elapsed() < LATELY) else { break };
            let looked = at.elapsed() >= WINDOW;
            if Instant::now() >= until || (looked && !now.busy_since(then)) {
                break;
            }
            if looked {
                self.keep(now);
            }
            let next = if looked { WINDOW } else { WINDOW.saturating_sub(at.elapsed()) };
            tokio::time::sleep_until(until.min(Instant::now() + next)).await;
        }
        if let Some(now) = self.look() {
            self.keep(now);
        }
    }

    fn look(&self) -> Option<Times> {
        Times::parse(&std::fs::read_to_string(&self.stat).ok()?)
    }

    fn last(&self) -> Option<(Instant, Times)> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, times: Times) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), times));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn tell(file: &Path, idle: u64, busy: u64) {
        fs::write(file, format!("cpu  {busy} 0 0 {idle} 0 0 0 0 7 7\ncpu0 1 2 3\n")).unwrap();
    }

    async fn waited(pressure: &Pressure, patience: Duration) -> Duration {
        let began = Instant::now();
        pressure.wait(patience).await;
        began.elapsed()
    }

    #[test]
    fn busy_is_what_leaves_less_than_a_tenth_idle() {
        let then = Times { idle: 10, all: 100 };
        assert!(!Times { idle: 20, all: 200 }.busy_since(then), "at the bound");
        assert!(Times { idle: 19, all: 200 }.busy_since(then));
        assert!(!then.busy_since(then), "no time has passed");
    }

    #[test]
    fn the_machine_tells_its_times_and_others_are_not_understood() {
        let text = "cpu  1 2 3 40 50 6 7 8 9 10\ncpu0 1\n";
        assert_eq!(Times::parse(text), Some(Times { idle: 90, all: 117 }));
        for bad in ["", "intr 1 2 3 4 5", "cpu 1 2 3", "cpu 1 2 3 x 5"] {
            assert_eq!(Times::parse(bad), None, "{bad:?}");
        }
        assert!(Pressure::of_the_machine().look().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_in_a_burst_waits_while_the_machine_is_busy_and_no_longer_than_its_patience() {
        let directory = tempfile::tempdir().unwrap();
        let stat = directory.path().join("stat");
        let pressure = Pressure::told_by(stat.clone());
        let patience = Duration::from_secs(3);
        tell(&stat, 1000, 1000);
        assert_eq!(waited(&pressure, patience).await, Duration::ZERO, "the first one");
        tell(&stat, 1005, 2000);
        // Nothing moves any more, but what moved within the first window was busy.
        assert_eq!(waited(&pressure, patience).await, WINDOW * 2, "until a window was not busy");
        let moving = async {
            for step in 2_u64..=40 {
                tell(&stat, 1005, step * 1000);
                tokio::time::sleep(WINDOW / 2).await;
            }
        };
        let (waited_for, ()) = tokio::join!(waited(&pressure, patience), moving);
        assert_eq!(waited_for, patience);
        tokio::time::advance(LATELY).await;
        tell(&stat, 1005, 90_000);
        assert_eq!(waited(&pressure, patience).await, Duration::ZERO, "nothing was started lately");
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_machine_does_not_tell_nothing_is_waited_for() {
        let pressure = Pressure::told_by("/nonexistent/stat".into());
        for _ in 0..2 {
            assert_eq!(waited(&pressure, Duration::from_secs(3)).await, Duration::ZERO);
        }
    }
}
