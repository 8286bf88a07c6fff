//! The journal of a sandbox: batches of what the shim has to tell, each stored exactly once.

use caisson_domain::event::NewEvent;
use caisson_domain::id::{RunId, SandboxId};
use caisson_domain::protocol::Outcome;
use caisson_domain::run::Phase;

use crate::database::Tx;
use crate::rows::{Columns, document};
use crate::{Store, StoreError, Topic, events};

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

const OFFSET: &str = "select journal_offset from sandbox where id = $1";

const OPEN: &str = "select sandbox.id, sandbox.session_id, sandbox.journal_offset, run.id as run_id, run.attempt \
     from sandbox left join run on run.sandbox_id = sandbox.id and run.status = 'running' where sandbox.id = $1";

const ADVANCE: &str = "update sandbox set journal_offset = $2 where id = $1";

impl Store {
    /// The offset at which the sandbox's next batch must begin.
    ///
    /// # Errors
    /// As every read; [`StoreError::Corrupt`] if there is no such sandbox.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn journal_offset(&self, sandbox: &SandboxId) -> Result<u64, StoreError> {
        let offset: Option<i64> =
            sqlx::query_scalar(OFFSET).bind(sandbox.as_str()).fetch_optional(self.reader()).await?;
        let offset = offset.ok_or_else(|| StoreError::missing("sandbox", sandbox.as_str()))?;
        u64::try_from(offset)
            .map_err(|error| StoreError::corrupt(format!("sandbox.journal_offset of {sandbox}"), error))
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
        sandbox: &SandboxId,
        offset: u64,
        end: u64,
        entries: Vec<JournalEntry>,
    ) -> Result<JournalAppend, StoreError> {
        let new_offset = i64::try_from(end).ok().filter(|_| end >= offset);
        let Some(new_offset) = new_offset else {
            let what = format!("the journal batch of {sandbox}");
            return Err(StoreError::corrupt(what, format!("it ends at {end} and begins at {offset}")));
        };
        let mut tx = self.begin().await?;
        let row = sqlx::query(OPEN).bind(sandbox.as_str()).fetch_optional(&mut *tx.db).await?;
        let row = row.ok_or_else(|| StoreError::missing("sandbox", sandbox.as_str()))?;
        let columns = Columns::of("sandbox", &row)?;
        let acknowledged: u64 = columns.number("journal_offset")?;
        if acknowledged != offset {
            tx.rollback().await?;
            return Ok(JournalAppend::Behind { acknowledged });
        }
        let mut skipped = entries.len();
        if let Some(run) = columns.parse_optional::<RunId>("run_id")? {
            let attempt = columns.get::<i64>("attempt")?;
            let ours = |entry: &JournalEntry| entry.run == run && entry.attempt == attempt;
            let ours: Vec<JournalEntry> = entries.into_iter().filter(ours).collect();
            skipped -= ours.len();
            for entry in &ours {
                apply(&mut tx, entry).await?;
            }
            let events: Vec<NewEvent> = ours.into_iter().filter_map(|entry| entry.event).collect();
            events::append(&mut tx, &columns.parse("session_id")?, &run, &events).await?;
        }
        sqlx::query(ADVANCE).bind(sandbox.as_str()).bind(new_offset).execute(&mut *tx.db).await?;
        tx.commit().await?;
        Ok(JournalAppend::Stored { acknowledged: end, skipped: skipped as u64 })
    }
}

const PHASE: &str = "update run set phase = $2 where id = $1";

const PREPARED: &str = "update run set base_commit = $2 where id = $1";

const AGENT_STARTED: &str = "update run set agent_started = 1 where id = $1";

const ATTEMPT_STARTED: &str = "update attempt set agent_started_at_ms = coalesce(agent_started_at_ms, $3) \
     where run_id = $1 and number = $2";

const FINISHED: &str = "update run set outcome = $2 where id = $1 and outcome is null";

async fn apply(tx: &mut Tx<'_>, entry: &JournalEntry) -> Result<(), StoreError> {
    let run = entry.run.as_str();
    match &entry.effect {
        JournalEffect::None => return Ok(()),
        JournalEffect::Phase(phase) => {
            sqlx::query(PHASE).bind(run).bind(phase.as_str()).execute(&mut *tx.db).await?;
        }
        JournalEffect::Prepared { base_commit } => {
            sqlx::query(PREPARED).bind(run).bind(base_commit.as_deref()).execute(&mut *tx.db).await?;
        }
        JournalEffect::AgentStarted => {
            sqlx::query(AGENT_STARTED).bind(run).execute(&mut *tx.db).await?;
            sqlx::query(ATTEMPT_STARTED)
                .bind(run)
                .bind(entry.attempt)
                .bind(tx.now_ms)
                .execute(&mut *tx.db)
                .await?;
        }
        JournalEffect::Finished(outcome) => {
            let outcome = document("run.outcome", outcome)?;
            sqlx::query(FINISHED).bind(run).bind(outcome).execute(&mut *tx.db).await?;
        }
    }
    tx.wake(Topic::Run(entry.run.clone()));
    Ok(())
}
