//! The queue: claim, keep, place, give back and finish runs. Each method but claiming is fenced by the lease epoch.

use caisson_domain::event::NewEvent;
use caisson_domain::id::{Epoch, RunId, SandboxId, ServerId};
use caisson_domain::protocol::{Outcome, StopReason};
use caisson_domain::run::{Failure, Phase, Run, RunStatus};

use crate::{Store, StoreError};

/// A run that the caller owns now.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// The run.
    pub run: Run,
    /// The fencing number for every later call about it.
    pub epoch: Epoch,
    /// When the lease ends unless it is extended, Unix ms.
    pub lease_expires_at_ms: i64,
    /// A small number unique to the session in this store, from 0: the worker adds it to its uid base.
    pub session_uid_offset: i64,
}

/// What an owner has to know about its run while it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Whether somebody asked for the run's end.
    pub cancel_requested: bool,
    /// When the run was first told to stop in this attempt, Unix ms.
    pub stop_requested_at_ms: Option<i64>,
    /// Whether the prompt may have reached the agent.
    pub agent_started: bool,
    /// What the run is doing.
    pub phase: Option<Phase>,
    /// How the shim's part ended, once it has.
    pub outcome: Option<Outcome>,
    /// The commit pushed to the run's branch, as the gateway saw it.
    pub pushed_commit: Option<String>,
    /// When the lease ends unless it is extended, Unix ms.
    pub lease_expires_at_ms: i64,
    /// HTTP status of the last settled model call, 0 if it got no reply; none before the first. A call settled because
    /// its server had died does not count: it says nothing about the provider.
    pub provider_status: Option<u16>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// A final status.
    pub status: RunStatus,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The agent's last words, cut to [`caisson_domain::limits::RESULT_TEXT_BYTES`].
    pub result: Option<String>,
}

impl Store {
    /// Claims the oldest waiting run whose session and branch are free, with a new epoch, a new attempt and a lease of
    /// [`caisson_domain::limits::LEASE_MS`]; `None` if there is none.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if the server is not registered.
    /// # Cancel safety
    /// A dropped call may have claimed the run; [`Store::adopt`] finds it at the next start.
    pub async fn claim(&self, _server: &ServerId) -> Result<Option<Claimed>, StoreError> {
        todo!("claim")
    }

    /// Takes over every running run whose home is `server`, with new epochs and leases: for a server that has just
    /// started. No event tells of it and the attempt stays the same, since the sandbox goes on undisturbed.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: adopting again raises the epochs again.
    pub async fn adopt(&self, _server: &ServerId) -> Result<Vec<Claimed>, StoreError> {
        todo!("adopt")
    }

    /// Extends the lease by [`caisson_domain::limits::LEASE_MS`] and returns its new end (Unix ms); `None` if the
    /// caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: extended or not.
    pub async fn heartbeat(&self, _run: &RunId, _epoch: Epoch) -> Result<Option<i64>, StoreError> {
        todo!("heartbeat")
    }

    /// Notes the sandbox that the run is in, which delivers the run to it; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if the sandbox is not one of the run's session.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn place(&self, _run: &RunId, _epoch: Epoch, _sandbox: &SandboxId) -> Result<bool, StoreError> {
        todo!("place")
    }

    /// What the owner has to know now; `None` if the caller has lost the run.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn progress(&self, _run: &RunId, _epoch: Epoch) -> Result<Option<Progress>, StoreError> {
        todo!("progress")
    }

    /// Tells the run's sandbox to stop, once for each reason; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn request_stop(
        &self,
        _run: &RunId,
        _epoch: Epoch,
        _reason: StopReason,
    ) -> Result<bool, StoreError> {
        todo!("request_stop")
    }

    /// Gives the run back to the queue, to be claimed again after `delay_ms`; `false` if the caller has lost the run or
    /// its agent was started. A run that somebody has asked to cancel is not queued again but ends as cancelled.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: given back or not.
    pub async fn requeue(
        &self,
        _run: &RunId,
        _epoch: Epoch,
        _reason: &str,
        _delay_ms: i64,
    ) -> Result<bool, StoreError> {
        todo!("requeue")
    }

    /// Ends the run; `false` if the caller has lost it.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if `finish.status` is not final.
    /// # Cancel safety
    /// Safe: ended or not.
    pub async fn finish(&self, _run: &RunId, _epoch: Epoch, _finish: &Finish) -> Result<bool, StoreError> {
        todo!("finish")
    }

    /// Appends an event of the worker's own; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have appended it; repeating it may append it twice.
    pub async fn append_run_event(
        &self,
        _run: &RunId,
        _epoch: Epoch,
        _event: NewEvent,
    ) -> Result<bool, StoreError> {
        todo!("append_run_event")
    }
}
