//! Accounting for one model call: a row before it is forwarded, settled once at its end.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::id::{RunId, UsageId};
use caisson_domain::usage::TokenCounts;
use caisson_store::{NewModelCall, SettledCall, StoreError};
use tokio::time::{Instant, timeout};

use super::meter::Reading;
use super::request::Ask;
use crate::hold::hold;
use crate::shared::Shared;

/// The row of one call; none for calls that cost nothing.
pub(super) struct Account {
    shared: Arc<Shared>,
    pending: Option<Pending>,
    began: Instant,
    first_byte: Option<Duration>,
}

struct Pending {
    id: UsageId,
    ask: Ask,
}

impl Account {
    /// Writes the pending row, holding on while the database is away: a call without a row is not forwarded. `None` if
    /// the run has ended meanwhile.
    pub(super) async fn begin(
        shared: Arc<Shared>,
        run: &RunId,
        ask: Option<Ask>,
    ) -> Result<Option<Self>, StoreError> {
        let pending = match ask {
            None => None,
            Some(ask) => {
                let call = NewModelCall {
                    model: ask.model.clone(),
                    estimate: ask.estimate,
                    estimate_cost_micro_usd: shared.prices.cost_micro_usd(&ask.model, &ask.estimate),
                };
                let store = &shared.store;
                let begun =
                    hold(&shared.cancel, shared.bounds.store_hold, || store.begin_model_call(run, &call))
                        .await?;
                let Some(id) = begun else { return Ok(None) };
                Some(Pending { id, ask })
            }
        };
        Ok(Some(Self { shared, pending, began: Instant::now(), first_byte: None }))
    }

    /// The reply's head is there.
    pub(super) fn answered(&mut self) {
        self.first_byte = Some(self.began.elapsed());
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
        let Some(Pending { id, ask }) = &self.pending else { return Ok(()) };
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

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
