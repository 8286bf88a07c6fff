//! The journal of a sandbox: batches of what the shim has to tell, each stored exactly once.

use caisson_domain::event::NewEvent;
use caisson_domain::id::{RunId, SandboxId};
use caisson_domain::protocol::Outcome;
use caisson_domain::run::Phase;

use crate::{Store, StoreError};

/// One entry of a journal.
#[derive(Debug, Clone)]
pub struct JournalEntry {
    /// The run it is about.
    pub run: RunId,
    /// The attempt it is about.
    pub attempt: i64,
    /// The event that tells of it.
    pub event: Option<NewEvent>,
    /// What it changes.
    pub effect: JournalEffect,
}

/// What an entry changes. Nothing here is trusted: each has its outside check elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalEffect {
    /// Nothing.
    None,
    /// The run entered a phase.
    Phase(Phase),
    /// The workspace is checked out.
    Prepared {
        /// The commit the work starts from.
        base_commit: Option<String>,
    },
    /// The prompt goes to the agent as soon as this is stored.
    AgentStarted,
    /// The shim is done with the run. The first outcome counts.
    Finished(Outcome),
}

/// What came of appending to a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalAppend {
    /// Stored.
    Stored {
        /// The offset of the next batch.
        acknowledged: u64,
        /// Entries left out, because their run is not running in this sandbox in that attempt.
        skipped: u64,
    },
    /// Nothing was stored: the batch does not begin where the last one ended.
    Behind {
        /// The offset of the next batch.
        acknowledged: u64,
    },
}

impl Store {
    /// The offset at which the sandbox's next batch must begin.
    ///
    /// # Errors
    /// As every read; [`StoreError::Corrupt`] if there is no such sandbox.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn journal_offset(&self, _sandbox: &SandboxId) -> Result<u64, StoreError> {
        todo!("journal_offset")
    }

    /// Stores the batch that covers the bytes from `offset` to `end` of the sandbox's journal: events, effects and the
    /// new offset together.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such sandbox or `end` lies before `offset`.
    /// # Cancel safety
    /// Safe: a repeated batch is answered with [`JournalAppend::Behind`].
    pub async fn append_journal(
        &self,
        _sandbox: &SandboxId,
        _offset: u64,
        _end: u64,
        _entries: Vec<JournalEntry>,
    ) -> Result<JournalAppend, StoreError> {
        todo!("append_journal")
    }
}
