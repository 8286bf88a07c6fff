//! What every part of the worker shares.

use std::sync::Arc;
use std::time::Duration;

use caisson_sandbox::Engine;
use caisson_store::{Random, Store, StoreError};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::config::{Timing, WorkerConfig};
use crate::dirs::Dirs;
use crate::health::{Health, Probe};
use crate::holds::Holds;
use crate::steps::{Step, StepHook};

/// Sandboxes that are being made and started at one time: starting is what costs CPU.
pub const STARTS: usize = 2;
/// Finished runs whose sandboxes are being taken away at one time. A slot is free as soon as its run is finished and one
/// of these places is, so that there are at most slots + `TEARDOWNS` sandboxes.
pub const TEARDOWNS: usize = 8;

/// What every part of the worker shares.
pub(crate) struct Context {
    pub(crate) config: WorkerConfig,
    pub(crate) store: Store,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) probe: Option<Arc<dyn Probe>>,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) hook: Option<Arc<dyn StepHook>>,
    pub(crate) dirs: Dirs,
    pub(crate) holds: Holds,
    pub(crate) health: Health,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) starts: Semaphore,
    pub(crate) teardowns: Arc<Semaphore>,
    /// Asks for a reconcile pass now.
    pub(crate) reconcile: Notify,
    pub(crate) random: Random,
}

/// Why work on a run stopped without an end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The server is going down: everything stays as it is, for the next start to find.
    Shutdown,
    /// The store holds something that cannot be; trying again cannot help.
    Corrupt(StoreError),
}

impl Context {
    pub(crate) fn timing(&self) -> &Timing {
        &self.config.timing
    }

    /// Announces a step to the hook, if there is one.
    pub(crate) async fn step(&self, step: Step) {
        if let Some(hook) = &self.hook {
            hook.reached(step).await;
        }
    }

    /// Waits, unless the server goes down.
    pub(crate) async fn pause(&self, wait: Duration) -> Result<(), Halt> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Halt::Shutdown),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    /// Asks the store until it answers: a run in hand is never given up because the database is away.
    pub(crate) async fn insist<T, C, F>(&self, doing: &'static str, call: C) -> Result<T, Halt>
    where
        T: Send,
        C: Fn() -> F + Send,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let mut backoff = Backoff::new(self.timing());
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) => {
                    let wait = backoff.next();
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "could not {doing}, trying again in {wait:?}"
                    );
                    self.pause(wait).await?;
                }
                Err(error @ (StoreError::Corrupt { .. } | StoreError::Migration(_))) => {
                    error!(error = &error as &dyn std::error::Error, "cannot {doing}");
                    return Err(Halt::Corrupt(error));
                }
            }
        }
    }
}

/// Growing waits between attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    wait: Duration,
    most: Duration,
}

impl Backoff {
    /// Waits from [`Timing::retry_first`] to [`Timing::retry_most`].
    pub(crate) fn new(timing: &Timing) -> Self {
        Self { wait: timing.retry_first, most: timing.retry_most }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.wait.min(self.most);
        self.wait = wait.saturating_mul(2);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_bound() {
        let mut backoff = Backoff::new(&Timing::default());
        let waits: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
