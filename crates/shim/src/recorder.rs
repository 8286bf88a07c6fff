//! Writing records of one run.

use std::sync::Arc;

use caisson_domain::id::RunId;
use caisson_domain::protocol::{JournalBody, JournalRecord, NoteLevel};
use caisson_domain::run::Phase;

use crate::journal::{Journal, WriteError};

/// Writes records of one attempt of a run.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    journal: Arc<Journal>,
    run: RunId,
    attempt: i64,
}

impl Recorder {
    pub(crate) fn new(journal: &Arc<Journal>, run: &RunId, attempt: i64) -> Self {
        Self { journal: Arc::clone(journal), run: run.clone(), attempt }
    }

    /// Writes a record; answers the offset behind it.
    ///
    /// # Errors
    /// [`WriteError`] when the disk stays full or fails.
    ///
    /// # Cancel safety
    /// The record was either written or not.
    pub(crate) async fn write(&self, body: JournalBody) -> Result<u64, WriteError> {
        let record = JournalRecord { run: self.run.clone(), attempt: self.attempt, body };
        self.journal.append(&record).await
    }

    /// Writes that the run entered a phase.
    ///
    /// # Errors
    /// As [`Recorder::write`].
    pub(crate) async fn phase(&self, phase: Phase) -> Result<u64, WriteError> {
        self.write(JournalBody::Phase { phase }).await
    }

    /// Writes something worth telling people.
    ///
    /// # Errors
    /// As [`Recorder::write`].
    pub(crate) async fn note(&self, level: NoteLevel, message: impl Into<String>) -> Result<u64, WriteError> {
        self.write(JournalBody::Note { level, message: message.into() }).await
    }

    /// Waits until the gateway has stored everything before `offset`.
    pub(crate) async fn stored(&self, offset: u64) {
        self.journal.acknowledged(offset).await;
    }

    /// Whether the journal has no room: the agent's silence is then not its own.
    pub(crate) fn is_full(&self) -> bool {
        self.journal.is_full()
    }
}
