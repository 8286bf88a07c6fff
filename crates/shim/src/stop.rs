//! Telling a live run to stop.

use caisson_domain::protocol::StopReason;
use tokio::sync::watch;
use tokio::time::Instant;

/// Why, and since when.
type Told = (StopReason, Instant);

/// The side that tells. The first reason counts.
#[derive(Debug)]
pub(crate) struct Stopper {
    told: watch::Sender<Option<Told>>,
}

/// The side that is told.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    told: watch::Receiver<Option<Told>>,
}

impl Stopper {
    pub(crate) fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(None);
        (Self { told: sender }, Stop { told: receiver })
    }

    /// Tells the run to stop.
    pub(crate) fn tell(&self, reason: StopReason) {
        self.told.send_if_modified(|told| {
            let first = told.is_none();
            if first {
                *told = Some((reason, Instant::now()));
            }
            first
        });
    }
}

impl Stop {
    /// Waits until the run is told to stop; for ever if it never is.
    ///
    /// # Cancel safety
    /// Safe, and every later call answers the same.
    pub(crate) async fn told(&mut self) -> StopReason {
        let told = self.told.wait_for(Option::is_some).await.map(|told| told.map(|(reason, _)| reason));
        match told {
            Ok(Some(reason)) => reason,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// When the run was told to stop.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.told.borrow().map(|(_, since)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts_and_is_answered_again() {
        let (stopper, mut stop) = Stopper::new();
        stopper.tell(StopReason::Timeout);
        stopper.tell(StopReason::Cancel);
        assert_eq!(stop.told().await, StopReason::Timeout);
        drop(stopper);
        assert_eq!(stop.told().await, StopReason::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_counts_from_the_first_reason() {
        let (stopper, stop) = Stopper::new();
        assert_eq!(stop.since(), None);
        let began = Instant::now();
        stopper.tell(StopReason::Timeout);
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        stopper.tell(StopReason::Cancel);
        assert_eq!(stop.since(), Some(began));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_nobody_stops_is_never_told() {
        let (stopper, mut stop) = Stopper::new();
        drop(stopper);
        let told = tokio::time::timeout(std::time::Duration::from_hours(1), stop.told()).await;
        assert!(told.is_err());
    }
}
