//! What was seen from outside of a sandbox that waits: nothing may live in it that did not when it began to, and hardly anything may
//! work. Whatever the shim in it believes, the engine counts. Pure.

use caisson_sandbox::SandboxUsage;
use tokio::time::Instant;

/// CPU time that a sandbox may use from the first look on, in microseconds: the shim asks for work every half minute, which takes it
/// less than a millisecond, and an agent that is held takes none.
const CPU_MICROS: u64 = 250_000;
/// The part of the time that it may use beyond that: a hundredth of one processor.
const CPU_PARTS: u64 = 100;

/// What was seen of a sandbox while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    since: Instant,
    /// The least CPU time that was counted: where no group counts, that of processes which are gone may go as well.
    cpu_micros: u64,
    /// The fewest processes and threads.
    pids: u64,
}

impl Seen {
    /// The first look.
    pub(super) fn first(usage: &SandboxUsage, now: Instant) -> Self {
        Self { since: now, cpu_micros: usage.cpu_micros, pids: usage.pids }
    }

    /// Takes in another look; why the sandbox may not wait any longer, if it may not.
    pub(super) fn again(&mut self, usage: &SandboxUsage, now: Instant) -> Option<&'static str> {
        self.pids = self.pids.min(usage.pids);
        self.cpu_micros = self.cpu_micros.min(usage.cpu_micros);
        if usage.pids > self.pids {
            return Some("something lives in it that did not before");
        }
        let waited = u64::try_from(now.duration_since(self.since).as_micros()).unwrap_or(u64::MAX);
        let used = usage.cpu_micros - self.cpu_micros;
        (used > CPU_MICROS + waited / CPU_PARTS).then_some("something works in it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn usage(pids: u64, cpu_micros: u64) -> SandboxUsage {
        SandboxUsage { memory_bytes: 1, memory_peak_bytes: None, cpu_micros, pids, pids_refused: None }
    }

    #[test]
    fn nothing_more_may_live_than_at_the_quietest_look() {
        let now = Instant::now();
        let mut seen = Seen::first(&usage(12, 0), now);
        assert_eq!(seen.again(&usage(12, 0), now), None);
        assert_eq!(seen.again(&usage(10, 0), now), None, "what was still ending has ended");
        assert!(seen.again(&usage(11, 0), now).unwrap().contains("lives"));
    }

    #[test]
    fn hardly_any_cpu_time_may_be_used() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1000);
        let mut seen = Seen::first(&usage(2, 5_000_000), now);
        assert_eq!(seen.again(&usage(2, 5_000_000 + CPU_MICROS), now), None, "at the bound");
        assert!(seen.again(&usage(2, 5_000_001 + CPU_MICROS), now).unwrap().contains("works"));
        let most = 5_000_000 + CPU_MICROS + 1_000_000_000 / CPU_PARTS;
        assert_eq!(seen.again(&usage(2, most), later), None);
        assert!(seen.again(&usage(2, most + 1), later).is_some());
        // Those that were counted are gone, and what others use counts from there.
        assert_eq!(seen.again(&usage(2, 1_000_000), now), None);
        assert!(seen.again(&usage(2, 1_000_001 + CPU_MICROS), now).is_some());
    }
}
