//! Accounting for one try of a model call: a row before it is forwarded, which holds its share of the budgets, kept up
//! with while the reply comes, settled once at its end.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::budget::OverBudget;
use caisson_domain::id::UsageId;
use caisson_domain::run::Run;
use caisson_domain::usage::TokenCounts;
use caisson_store::{BeginCall, CallExtension, ExtendCall, NewModelCall, SettledCall, StoreError, Topic};
use tokio::time::{Instant, timeout};

use super::meter::Reading;
use super::request::Ask;
use super::stream::Reply;
use crate::bounds::{BUDGET_POLL, OUTPUT_SLICE_TOKENS, UNBOUNDED_SLICES};
use crate::hold::hold;
use crate::shared::Shared;

/// The row of one try; none for calls that cost nothing.
pub(super) struct Account {
    shared: Arc<Shared>,
    /// The row, settled or not.
    id: Option<UsageId>,
    pending: Option<Pending>,
    began: Instant,
    first_byte: Option<Duration>,
}

struct Pending {
    id: UsageId,
    run: Run,
    ask: Ask,
    /// Whether a budget bounds it.
    bounded: bool,
    /// Output tokens up to which it holds its share.
    held_output: i64,
    /// What it holds, in micro-USD.
    held_micro_usd: i64,
    /// The reply has told its input, and what is held was put right by it.
    input_known: bool,
}

/// Why a call was not begun.
#[derive(Debug)]
pub(super) enum NotBegun {
    /// The run has ended meanwhile.
    NoRun,
    /// A budget has no room for it.
    Budget(OverBudget),
    /// The client left, or the server stops, while it waited for its share of a budget.
    Left,
    /// The store failed.
    Store(StoreError),
}

impl Account {
    /// Writes the pending row, holding on while the database is away: a call without a row is not forwarded. Where other
    /// calls hold what this one needs, it waits for a bounded time until they have told what they really cost.
    pub(super) async fn begin(
        shared: Arc<Shared>,
        run: &Run,
        ask: Option<Ask>,
        reply: &mut Reply,
    ) -> Result<Self, NotBegun> {
        let pending = match ask {
            None => None,
            Some(ask) => Some(reserve(&shared, run, ask, reply).await?),
        };
        let id = pending.as_ref().map(|pending| pending.id.clone());
        Ok(Self { shared, id, pending, began: Instant::now(), first_byte: None })
    }

    /// A number that differs from call to call, for keeping those apart that failed together.
    pub(super) fn spread(&self) -> u8 {
        let id = self.id.as_ref().map(UsageId::as_str).unwrap_or_default();
        id.bytes().rev().take(2).fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte))
    }

    /// The reply's head is there.
    pub(super) fn answered(&mut self) {
        self.first_byte = Some(self.began.elapsed());
    }

    /// Keeps what is held ahead of what the reply has come to; an error means that it must be cut. Nothing of the reply is
    /// read meanwhile, so that it does not run ahead of its budget.
    pub(super) async fn keep_up(&mut self, reading: &Reading) -> Result<(), OverBudget> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let written = reading.output_so_far();
        let learned = pending.bounded && !pending.input_known && reading.tokens.is_some();
        if reading.exact || (!learned && written < pending.held_output) {
            return Ok(());
        }
        let (held, extension) = pending.next_share(&self.shared, reading, written);
        let until = Instant::now() + self.shared.bounds.extend_hold;
        let mut room = self.shared.store.watch(Topic::Budget(pending.run.project.clone()));
        loop {
            let answer = hold(&self.shared.cancel, self.shared.bounds.store_hold, || {
                self.shared.store.extend_model_call(&pending.id, &extension)
            })
            .await;
            match answer {
                Ok(ExtendCall::Extended) => {
                    pending.held_output = held;
                    pending.held_micro_usd = extension.reserve_micro_usd;
                    pending.input_known = reading.tokens.is_some();
                    return Ok(());
                }
                // The run has ended; its end has settled the call.
                Ok(ExtendCall::Over) => return Ok(()),
                Ok(ExtendCall::Refused(over)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() || !over.may_pass() || self.shared.cancel.is_cancelled() {
                        return Err(over);
                    }
                    room.changed(left.min(BUDGET_POLL)).await;
                }
                // The database is away: the reply goes on, and is settled at its end like any other.
                Err(error) => {
                    tracing::warn!(error = %error, "a model call under way could not be extended");
                    return Ok(());
                }
            }
        }
    }

    /// Settles a call that cost nothing: upstream refused it, or never saw it.
    pub(super) async fn settle_free(&mut self, status: u16) {
        let free = Reading { tokens: Some(TokenCounts::default()), exact: true, ..Reading::default() };
        self.settle(status, &free).await;
    }

    /// Settles with what the reply told. If the database stays away, the row keeps its estimate until the
    /// next start.
    pub(super) async fn settle(&mut self, status: u16, reading: &Reading) {
        let patience = self.shared.bounds.settle_hold;
        if let Err(error) = self.try_settle(status, reading, patience).await {
            tracing::error!(error = %error, "a model call could not be settled; its estimate stands");
        }
    }

    /// Settles before the end of the reply is passed on, so that whoever saw the end finds it counted. Not
    /// for long: after a bounded time the end is passed on and the settling comes after it.
    pub(super) async fn settle_before_end(&mut self, status: u16, reading: &Reading) {
        let patience = self.shared.bounds.end_hold;
        // Late or failed: `settle` tries again at the end.
        if let Ok(Err(error)) = timeout(patience, self.try_settle(status, reading, patience)).await {
            tracing::warn!(error = %error, "a model call is settled late");
        }
    }

    async fn try_settle(
        &mut self,
        status: u16,
        reading: &Reading,
        patience: Duration,
    ) -> Result<(), StoreError> {
        let Some(Pending { id, ask, .. }) = &self.pending else { return Ok(()) };
        let tokens = reading.merged(&ask.estimate);
        let model = reading.model.as_ref().unwrap_or(&ask.model);
        let settled = SettledCall {
            model: model.clone(),
            status,
            tokens,
            cost_micro_usd: self.shared.prices.cost_micro_usd(model, &tokens),
            // The price list has tokens alone.
            estimated: !reading.exact || reading.server_tools,
            first_byte_ms: self.first_byte.map(millis),
            duration_ms: millis(self.began.elapsed()),
        };
        let store = &self.shared.store;
        hold(&self.shared.cancel, patience, || store.settle_model_call(id, &settled)).await?;
        self.pending = None;
        Ok(())
    }
}

impl Pending {
    /// What the call holds next: what it has come to and another slice of output, at the prices of the model that answers.
    fn next_share(&self, shared: &Shared, reading: &Reading, written: i64) -> (i64, CallExtension) {
        let slice = OUTPUT_SLICE_TOKENS * if self.bounded { 1 } else { UNBOUNDED_SLICES };
        let most = self.ask.output_most.unwrap_or(i64::MAX);
        // What is written already is never more than what is held, whatever was asked for.
        let held = written.saturating_add(slice).min(most).max(written.saturating_add(1));
        let tokens = TokenCounts { output: held, ..reading.tokens.unwrap_or(self.ask.estimate) };
        let model = reading.model.as_ref().unwrap_or(&self.ask.model);
        let cost_micro_usd = shared.prices.cost_micro_usd(model, &tokens);
        let extension = CallExtension {
            estimate: tokens,
            estimate_cost_micro_usd: cost_micro_usd,
            // Until the reply has told its input, what was reserved for it stays reserved.
            reserve_micro_usd: if reading.tokens.is_some() {
                cost_micro_usd
            } else {
                cost_micro_usd.max(self.held_micro_usd)
            },
        };
        (held, extension)
    }
}

async fn reserve(shared: &Shared, run: &Run, ask: Ask, reply: &mut Reply) -> Result<Pending, NotBegun> {
    let needed = ask.needed_micro_usd(&shared.prices);
    let call = NewModelCall {
        model: ask.model.clone(),
        estimate: ask.estimate,
        estimate_cost_micro_usd: shared.prices.cost_micro_usd(&ask.model, &ask.estimate),
        reserve_micro_usd: needed,
    };
    let until = Instant::now() + shared.bounds.budget_hold;
    let mut room = shared.store.watch(Topic::Budget(run.project.clone()));
    loop {
        let begun =
            hold(&shared.cancel, shared.bounds.store_hold, || shared.store.begin_model_call(&run.id, &call))
                .await
                .map_err(NotBegun::Store)?;
        match begun {
            BeginCall::NotRunning => return Err(NotBegun::NoRun),
            BeginCall::Begun { id, bounded } => {
                return Ok(Pending {
                    id,
                    run: run.clone(),
                    bounded,
                    held_output: ask.held_output(),
                    held_micro_usd: needed,
                    input_known: false,
                    ask,
                });
            }
            BeginCall::Refused(over) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() || !over.may_pass() {
                    return Err(NotBegun::Budget(over));
                }
                tokio::select! {
                    () = room.changed(left.min(BUDGET_POLL)) => {}
                    () = reply.closed() => return Err(NotBegun::Left),
                    () = shared.cancel.cancelled() => return Err(NotBegun::Left),
                }
            }
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
