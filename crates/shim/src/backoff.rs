//! Waiting between tries.

use std::time::Duration;

/// First wait, in milliseconds: a restarting server is seen again at once.
pub(crate) const FIRST_MS: u64 = 50;
/// Longest wait, in milliseconds.
pub(crate) const LONGEST_MS: u64 = 1000;

/// Waits that double from [`FIRST_MS`] to [`LONGEST_MS`].
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next_ms: u64,
}

impl Backoff {
    /// Starts with the first wait.
    pub(crate) const fn new() -> Self {
        Self { next_ms: FIRST_MS }
    }

    /// The wait before the next try.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = Duration::from_millis(self.next_ms);
        self.next_ms = (self.next_ms * 2).min(LONGEST_MS);
        wait
    }

    /// Begins anew after a success.
    pub(crate) fn reset(&mut self) {
        self.next_ms = FIRST_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..7).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 50);
    }
}
