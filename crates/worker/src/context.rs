//! What every part of the worker shares.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use caisson_domain::id::SandboxId;
use caisson_sandbox::{Engine, SandboxUsage};
use caisson_store::{Random, Store, StoreError};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::config::{Timing, WorkerConfig};
use crate::dirs::Dirs;
use crate::disk::places::Places;
use crate::health::{Health, Probe};
use crate::holds::Holds;
use crate::kept::Shelf;
use crate::pressure::Pressure;
use crate::steps::{Step, StepHook};
use crate::unowned::InHand;

/// Longest look at what a sandbox uses.
const LOOK: Duration = Duration::from_secs(1);

/// Sandboxes that are being made and started at one time, until their agents have: starting is what costs CPU.
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
    /// The sandboxes that wait for another run.
    pub(crate) kept: Shelf,
    pub(crate) health: Health,
    pub(crate) slots: Arc<Semaphore>,
    /// Those of them that runs have.
    pub(crate) slots_taken: Arc<AtomicUsize>,
    pub(crate) starts: Arc<Semaphore>,
    pub(crate) pressure: Pressure,
    pub(crate) teardowns: Arc<Semaphore>,
    /// The living sandboxes as users of the disk.
    pub(crate) places: Places,
    /// Whether the server's disk is near its floor.
    pub(crate) near_floor: watch::Sender<bool>,
    /// Asks for a reconcile pass now.
    pub(crate) reconcile: Notify,
    /// The runs that this process sees to.
    pub(crate) in_hand: InHand,
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

    /// What a sandbox uses; none if the engine does not tell, or not within [`LOOK`]: a run waits for it.
    pub(crate) async fn usage(&self, sandbox: &SandboxId) -> Option<SandboxUsage> {
        tokio::time::timeout(LOOK, self.engine.usage(sandbox)).await.ok()?.ok()
    }

    /// Announces a step to the hook, if there is one.
    pub(crate) async fn step(&self, step: Step) {
        if let Some(hook) = &self.hook {
            hook.reached(step).await;
        }
    }

    /// Waits, unless the server goes down.
    pub(crate) async fn pause(&self, wait: Duration) -> Result<(), Halt> {
        pause(&self.cancel, wait).await
    }

    /// Asks the store until it answers: a run in hand is never given up because the database is away.
    pub(crate) async fn insist<T, C, F>(&self, doing: &'static str, call: C) -> Result<T, Halt>
    where
        T: Send,
        C: Fn() -> F + Send,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        insist(&self.cancel, Backoff::new(self.timing()), doing, call).await
    }
}

async fn pause(cancel: &CancellationToken, wait: Duration) -> Result<(), Halt> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Halt::Shutdown),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

async fn insist<T, C, F>(
    cancel: &CancellationToken,
    mut backoff: Backoff,
    doing: &'static str,
    call: C,
) -> Result<T, Halt>
where
    T: Send,
    C: Fn() -> F + Send,
    F: Future<Output = Result<T, StoreError>> + Send,
{
    loop {
        match call().await {
            Ok(answer) => return Ok(answer),
            // A server whose database a later version has migrated ends in a moment, and leaves its runs to that version's.
            Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Migration(_))) => {
                let wait = backoff.next();
                warn!(error = described(&error), "could not {doing}, trying again in {wait:?}");
                pause(cancel, wait).await?;
            }
            Err(error @ StoreError::Corrupt { .. }) => {
                error!(error = described(&error), "cannot {doing}");
                return Err(Halt::Corrupt(error));
            }
        }
    }
}

/// An answer of the store, and when it was asked for: a lease counts from then, however long the answer was on its way.
#[derive(Debug)]
pub(crate) struct Asked<T> {
    pub(crate) answer: T,
    pub(crate) at: Instant,
}

/// Asks the store once.
pub(crate) async fn asked<T>(
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<Asked<T>, StoreError> {
    let at = Instant::now();
    Ok(Asked { answer: call.await?, at })
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

/// An error with its causes, in one sentence.
pub(crate) fn described(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_bound() {
        let mut backoff = Backoff::new(&Timing::default());
        let waits: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_from_before_the_question() {
        let before = Instant::now();
        let slow = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Ok(7)
        };
        let Asked { answer, at } = asked(slow).await.unwrap();
        assert_eq!((answer, at, before.elapsed()), (7, before, Duration::from_secs(9)));
    }

    async fn closed_store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("db"), caisson_store::Clock::system()).await.unwrap();
        store.close().await.unwrap();
        (root, store)
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_asked_until_it_answers() {
        let (_root, away) = closed_store().await;
        let asked = AtomicUsize::new(0);
        let call = || async {
            if asked.fetch_add(1, Ordering::SeqCst) < 3 {
                away.ping().await?;
            }
            Ok(7)
        };
        let backoff = Backoff { wait: Duration::from_millis(1), most: Duration::from_millis(1) };
        let answer = insist(&CancellationToken::new(), backoff, "ask", call).await;
        assert!(matches!(answer, Ok(7)), "{answer:?}");
        assert_eq!(asked.into_inner(), 4);
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_asking_but_not_before_one_try() {
        let (_root, away) = closed_store().await;
        let cancel = CancellationToken::new();
        cancel.cancel();
        let asked = AtomicUsize::new(0);
        let call = || {
            asked.fetch_add(1, Ordering::SeqCst);
            away.ping()
        };
        let answer = insist(&cancel, Backoff::new(&Timing::default()), "ask", call).await;
        assert!(matches!(answer, Err(Halt::Shutdown)), "{answer:?}");
        assert_eq!(asked.into_inner(), 1);
    }

    #[tokio::test]
    async fn a_damaged_row_is_asked_for_once() {
        let asked = AtomicUsize::new(0);
        let call = || async {
            asked.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(StoreError::Corrupt { what: "run.phase".to_owned(), source: "no phase".into() })
        };
        let answer = insist(&CancellationToken::new(), Backoff::new(&Timing::default()), "ask", call).await;
        let Err(Halt::Corrupt(error)) = answer else { panic!("{answer:?}") };
        assert_eq!(described(&error), "the database is corrupt: run.phase: no phase");
        assert_eq!(asked.into_inner(), 1);
    }
}
