//! What the gateway asks on behalf of a sandbox: grants, work, inputs, and the facts it saw itself.

use caisson_domain::event::NewEvent;
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::id::{Epoch, RunId, SandboxId};
use caisson_domain::protocol::Input;
use caisson_domain::run::Run;

use crate::{Store, StoreError};

/// What a sandbox should do next.
#[derive(Debug, Clone, PartialEq)]
pub enum NextWork {
    /// Do this run.
    Run {
        /// The run.
        run: Run,
        /// Its epoch now, for diagnostics.
        epoch: Epoch,
        /// The conversation's id in the agent's own format.
        conversation: String,
        /// Whether an earlier attempt of the session may have begun the conversation.
        resume: bool,
    },
    /// End.
    Exit,
    /// Ask again later.
    Nothing,
}

/// A push as the gateway saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRecord {
    /// The full name of the ref.
    pub ref_name: String,
    /// The commit it had.
    pub old: String,
    /// The commit it should get.
    pub new: String,
    /// Whether the git host took it.
    pub ok: bool,
    /// What the git host said.
    pub message: Option<String>,
}

impl Store {
    /// Whether `presented` is the sandbox's living grant of that kind.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check_grant(
        &self,
        _sandbox: &SandboxId,
        _kind: GrantKind,
        _presented: &TokenHash,
    ) -> Result<bool, StoreError> {
        todo!("check_grant")
    }

    /// The running run that is placed in the sandbox. Without one the agent grant opens nothing.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn door_run(&self, _sandbox: &SandboxId) -> Result<Option<Run>, StoreError> {
        todo!("door_run")
    }

    /// What the sandbox should do next. The same run comes again until its outcome is journaled: the shim does each
    /// attempt once. A sandbox that is ending or not known is told to end.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn next_work(&self, _sandbox: &SandboxId) -> Result<NextWork, StoreError> {
        todo!("next_work")
    }

    /// Messages for the running run in the sandbox, numbered beyond `after`, in order; at most
    /// [`caisson_domain::limits::PENDING_INPUTS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn inputs_after(&self, _sandbox: &SandboxId, _after: i64) -> Result<Vec<Input>, StoreError> {
        todo!("inputs_after")
    }

    /// Appends an event that the gateway vouches for, whatever the run's status.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have appended it; repeating it may append it twice.
    pub async fn append_gateway_event(&self, _run: &RunId, _event: NewEvent) -> Result<(), StoreError> {
        todo!("append_gateway_event")
    }

    /// Records a push. One that the git host took, to the run's own branch, while the run is running, becomes the run's
    /// pushed commit.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have recorded it; repeating it may append the event twice.
    pub async fn record_push(&self, _run: &RunId, _push: &PushRecord) -> Result<(), StoreError> {
        todo!("record_push")
    }
}
