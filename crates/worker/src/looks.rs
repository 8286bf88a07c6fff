//! When the queue is asked for a run although nothing tells that something is new in it.

use std::time::Duration;

use tokio::time::Instant;

/// A claim takes the lock that everybody waits for. What waits and is held back, by its branch, its session or a cap, may be
/// held back for hours, and what lets it go tells of it: so a claim that has found nothing of it is not made again at each look.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Until when only a hint is a reason to claim.
    rest_until: Option<Instant>,
}

impl Looks {
    /// Whether a claim is to be made now.
    pub(crate) fn is_time(&self, hinted: bool) -> bool {
        hinted || self.rest_until.is_none_or(|until| Instant::now() >= until)
    }

    /// A claim found nothing.
    pub(crate) fn found_nothing(&mut self, hinted: bool, rest: Duration) {
        if !hinted {
            self.rest_until = Some(Instant::now() + rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(1);
    const REST: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_has_the_lock_taken_every_five_seconds_and_a_hint_at_once() {
        let mut looks = Looks::default();
        let mut claims = Vec::new();
        for second in 0..12 {
            if looks.is_time(false) {
                claims.push(second);
                looks.found_nothing(false, REST);
            }
            assert!(looks.is_time(true), "a hint is never too early");
            tokio::time::advance(LOOK).await;
        }
        assert_eq!(claims, [0, 5, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_that_came_to_nothing_puts_no_other_look_off() {
        let mut looks = Looks::default();
        looks.found_nothing(true, REST);
        assert!(looks.is_time(false));
        looks.found_nothing(false, REST);
        looks.found_nothing(true, REST);
        tokio::time::advance(REST.checked_sub(LOOK).unwrap()).await;
        assert!(!looks.is_time(false));
        tokio::time::advance(LOOK).await;
        assert!(looks.is_time(false));
    }
}
