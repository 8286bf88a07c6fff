//! Waiting for a share of a budget that other calls hold.

use std::pin::pin;
use std::time::Duration;

use caisson_domain::budget::OverBudget;
use caisson_store::{DoorRun, StoreError, Topic};
use tokio::time::Instant;

use crate::bounds::BUDGET_POLL;
use crate::hold::hold;
use crate::shared::Shared;

/// Why a call has no share.
#[derive(Debug)]
pub(super) enum NoShare {
    /// The run has ended meanwhile.
    NoRun,
    /// A budget has no room for it.
    Budget(OverBudget),
    /// The client left, or the server stops, while it waited.
    Left,
    /// The store failed.
    Store(StoreError),
}

/// Shares of several sizes, the largest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// How many.
    pub(super) count: usize,
    /// What the smallest one needs, in micro-USD.
    pub(super) least_micro_usd: i64,
}

/// Who waits, and how long.
#[derive(Clone, Copy)]
pub(super) struct Wait<'w> {
    pub(super) shared: &'w Shared,
    pub(super) run: &'w DoorRun,
    pub(super) patience: Duration,
}

impl Wait<'_> {
    /// Takes the largest share, or waits for it while others hold it, within the patience; then, or when nobody else holds
    /// any, takes the first smaller one that fits. `take` is given its number, from 0. So at the end of a budget one call after the other uses what is left, where all
    /// of them at once would each be cut. `gone` ends the wait.
    pub(super) async fn share<T, F, O>(
        &self,
        sizes: Sizes,
        gone: impl Future<Output = ()> + Send,
        take: O,
    ) -> Result<T, NoShare>
    where
        F: Future<Output = Result<Result<T, OverBudget>, StoreError>> + Send,
        O: Fn(usize, bool) -> F + Send + Sync,
    {
        let shared = self.shared;
        let mut gone = pin!(gone);
        let until = Instant::now() + self.patience;
        let mut room = shared.store.watch(Topic::Budget(self.run.project.clone()));
        let take = &take;
        let take = |size, only_alone| async move {
            let taken = hold(&shared.cancel, shared.bounds.store_hold, || take(size, only_alone)).await;
            taken.map_err(NoShare::Store)
        };
        loop {
            let mut over = match take(0, false).await? {
                Ok(taken) => return Ok(taken),
                Err(over) => over,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || over.reserved_micro_usd == 0 {
                for number in 1..sizes.count {
                    over = match take(number, !left.is_zero()).await? {
                        Ok(taken) => return Ok(taken),
                        Err(over) => over,
                    };
                }
            }
            let hopeless = over.spent_micro_usd.saturating_add(sizes.least_micro_usd) > over.budget_micro_usd;
            if left.is_zero() || hopeless || over.reserved_micro_usd == 0 {
                return Err(NoShare::Budget(over));
            }
            tokio::select! {
                () = room.changed(left.min(BUDGET_POLL)) => {}
                () = &mut gone => return Err(NoShare::Left),
                () = shared.cancel.cancelled() => return Err(NoShare::Left),
            }
        }
    }
}
