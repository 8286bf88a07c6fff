//! Accounting of model calls: a pending row before a request is forwarded, settled once.

use caisson_domain::id::{RunId, ServerId, UsageId};
use caisson_domain::usage::TokenCounts;

use crate::{Store, StoreError};

/// A model call that is about to be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewModelCall {
    /// The model asked for.
    pub model: String,
    /// What holds if nobody settles the call.
    pub estimate: TokenCounts,
    /// Cost of the estimate.
    pub estimate_cost_micro_usd: i64,
}

/// A model call that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledCall {
    /// The model that answered.
    pub model: String,
    /// HTTP status; 0 if there was no reply.
    pub status: u16,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Cost.
    pub cost_micro_usd: i64,
    /// Whether the numbers are an estimate, because the reply was cut.
    pub estimated: bool,
    /// Time to the first byte of the reply, in milliseconds.
    pub first_byte_ms: Option<i64>,
    /// Time to the end, in milliseconds.
    pub duration_ms: i64,
}

impl Store {
    /// Writes down a call before it is forwarded, so that none is ever unmetered, and counts it as begun.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have written the row; it is settled as an estimate at the next start.
    pub async fn begin_model_call(&self, _run: &RunId, _call: &NewModelCall) -> Result<UsageId, StoreError> {
        todo!("begin_model_call")
    }

    /// Settles a call: its numbers are added to run and session, and an event tells of it. `false` if it was settled
    /// before or is not known; then nothing changes.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn settle_model_call(&self, _id: &UsageId, _settled: &SettledCall) -> Result<bool, StoreError> {
        todo!("settle_model_call")
    }

    /// Settles every pending call of the server's runs with its stored estimate and returns how many there were: for a
    /// server that has just started.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn settle_orphaned_calls(&self, _server: &ServerId) -> Result<u64, StoreError> {
        todo!("settle_orphaned_calls")
    }
}
