//! Accounting for one try of a model call: a row before it is forwarded, which holds its share of the budgets, kept up
//! with while the reply comes, settled once at its end.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::budget::OverBudget;
use caisson_domain::id::UsageId;
use caisson_domain::run::cut;
use caisson_domain::usage::TokenCounts;
use caisson_store::{BeginCall, CallExtension, DoorRun, ExtendCall, NewModelCall, SettledCall, StoreError};
use tokio::time::{Instant, timeout};

use super::ask::Ask;
use super::meter::Reading;
use super::share::{NoShare, Sizes, Wait};
use super::stream::Reply;
use crate::bounds::{MODEL_NAME_BYTES, OUTPUT_CRUMB_TOKENS, OUTPUT_LAST_TOKENS, OUTPUT_SLICE_TOKENS};
use crate::hold::hold;
use crate::shared::Shared;

/// Why a reply must be cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CutOff {
    /// There is no room for more of it.
    OverBudget(OverBudget),
    /// Its run has ended, and nothing is counted of it any more.
    RunOver,
}

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
    run: DoorRun,
    ask: Ask,
    /// Whether a budget bounds it.
    bounded: bool,
    /// Output tokens up to which it holds its share.
    held_output: i64,
    /// When it took its last share.
    since: Instant,
    /// The reply has told its input, and what is held was put right by it.
    input_known: bool,
}

impl Account {
    /// Writes the pending row, holding on while the database is away: a call without a row is not forwarded. Where other
    /// calls hold what this one needs, it waits for a bounded time until they have told what they really cost.
    pub(super) async fn begin(
        shared: Arc<Shared>,
        run: &DoorRun,
        ask: Option<Ask>,
        reply: &mut Reply,
    ) -> Result<Self, NoShare> {
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
    pub(super) async fn keep_up(&mut self, reading: &Reading) -> Result<(), CutOff> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let written = reading.output_so_far();
        let learned = pending.bounded && !pending.input_known && reading.tokens.is_some();
        if reading.exact || !pending.ask.streamed || (!learned && written < pending.held_output) {
            return Ok(());
        }
        if !pending.bounded && pending.since.elapsed() < self.shared.bounds.note_every {
            return Ok(());
        }
        let store = &self.shared.store;
        let shares = [OUTPUT_SLICE_TOKENS, OUTPUT_LAST_TOKENS, OUTPUT_CRUMB_TOKENS].map(|slice| {
            // What is only put right by the input holds no more output than before.
            let held = if written < pending.held_output {
                pending.held_output
            } else {
                pending.output_with(written, slice)
            };
            (held, pending.extension(&self.shared, reading, held))
        });
        let sizes = Sizes { count: shares.len(), least_micro_usd: shares[2].1.reserve_micro_usd };
        let wait = Wait { shared: &self.shared, run: &pending.run, patience: self.shared.bounds.extend_hold };
        let (id, shares) = (&pending.id, &shares);
        let take = |size: usize, only_alone| async move {
            let (held, extension) = &shares[size];
            let extension = CallExtension { only_alone, ..extension.clone() };
            Ok(match store.extend_model_call(id, &extension).await? {
                ExtendCall::Extended => Ok(Some(*held)),
                ExtendCall::Over => Ok(None),
                ExtendCall::Refused(over) => Err(over),
            })
        };
        let extended = wait.share(sizes, std::future::pending(), take).await;
        match extended {
            Ok(Some(held)) => {
                pending.held_output = held;
                pending.since = Instant::now();
                pending.input_known = reading.tokens.is_some();
                Ok(())
            }
            Ok(None) => Err(CutOff::RunOver),
            // What is written and paid for may still turn out to be all.
            Err(NoShare::Budget(_)) if written == pending.held_output => Ok(()),
            Err(NoShare::Budget(over)) => Err(CutOff::OverBudget(over)),
            Err(NoShare::Store(error)) => {
                // The reply goes on, and is settled at its end like any other.
                tracing::warn!(error = %error, "a model call under way could not be extended");
                Ok(())
            }
            // The server stops, and cuts what is under way by itself.
            Err(NoShare::Left | NoShare::NoRun) => Ok(()),
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
        let Some(Pending { id, run, ask, .. }) = &self.pending else { return Ok(()) };
        let bill = reading.last_bill(ask, &self.shared.prices);
        let settled = SettledCall {
            model: kept_model(&self.shared, run, reading.model.as_ref().unwrap_or(&ask.model)),
            status,
            tokens: bill.tokens,
            cost_micro_usd: bill.cost_micro_usd,
            estimated: bill.estimated,
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
    /// Output tokens to hold a share for: a slice more than are written, but no more than were asked for.
    fn output_with(&self, written: i64, slice: i64) -> i64 {
        let most = self.ask.output_most.unwrap_or(i64::MAX);
        // What is written already is never more than what is held, whatever was asked for.
        written.saturating_add(slice).min(most).max(written.saturating_add(1))
    }

    /// What the call holds next, at the prices of the model that answers.
    fn extension(&self, shared: &Shared, reading: &Reading, output: i64) -> CallExtension {
        let (ask, prices) = (&self.ask, &shared.prices);
        let bill = reading.bill_if_cut(ask, output, prices);
        // Until the reply has told its input, and all of it, what was reserved for that stays reserved.
        let known = reading.tokens.is_some() && ask.apart_input == 0;
        let model = reading.model.as_ref().unwrap_or(&ask.model);
        let needed = if known { 0 } else { ask.needed_micro_usd(model, output, prices) };
        CallExtension {
            estimate: bill.tokens,
            estimate_cost_micro_usd: bill.cost_micro_usd,
            come_to_micro_usd: reading.bill(ask, reading.output_so_far(), prices).cost_micro_usd,
            reserve_micro_usd: bill.cost_micro_usd.max(needed),
            only_alone: false,
        }
    }
}

async fn reserve(shared: &Shared, run: &DoorRun, ask: Ask, reply: &mut Reply) -> Result<Pending, NoShare> {
    let outputs = ask.reserved_output();
    let needed = outputs.map(|output| ask.needed_micro_usd(&ask.model, output, &shared.prices));
    let call = NewModelCall {
        model: kept_model(shared, run, &ask.model),
        estimate: ask.estimate,
        estimate_cost_micro_usd: shared.prices.cost_micro_usd(&ask.model, &ask.estimate),
        reserve_micro_usd: needed[0],
        only_alone: false,
    };
    let wait = Wait { shared, run, patience: shared.bounds.budget_hold };
    let sizes = Sizes { count: needed.len(), least_micro_usd: needed[1] };
    let call = &call;
    let take = |size: usize, only_alone| async move {
        let call = NewModelCall { reserve_micro_usd: needed[size], only_alone, ..call.clone() };
        Ok(match shared.store.begin_model_call(&run.id, &call).await? {
            BeginCall::Begun { id, bounded } => Ok(Some((id, bounded, size))),
            BeginCall::NotRunning => Ok(None),
            BeginCall::Refused(over) => Err(over),
        })
    };
    let begun = wait.share(sizes, reply.closed(), take).await?;
    let (id, bounded, size) = begun.ok_or(NoShare::NoRun)?;
    Ok(Pending {
        id,
        run: run.clone(),
        bounded,
        held_output: outputs[size],
        since: Instant::now(),
        input_known: false,
        ask,
    })
}

/// A model's name as it is stored and shown: a request may name a secret in its place. Whole secrets go before it is cut, and no
/// beginning of one does: whoever reads names would learn of each guess whether it is right.
fn kept_model(shared: &Shared, run: &DoorRun, name: &str) -> String {
    let redactor = shared.secrets.of(&run.project).redactor();
    cut(&redactor.text(name), MODEL_NAME_BYTES).to_owned()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
