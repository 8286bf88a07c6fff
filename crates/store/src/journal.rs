//! The journal of a sandbox: batches of what the shim has to tell, each stored exactly once.

use caisson_domain::check_result::CheckResult;
use caisson_domain::checks::{Check, stands};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ProjectId, RunId, SandboxId};
use caisson_domain::input::InputState;
use caisson_domain::limits::{RUN_EVENT_BYTES, RUN_EVENT_RESERVED_BYTES, RUN_EVENTS, RUN_EVENTS_RESERVED};
use caisson_domain::protocol::{NoteLevel, Outcome};
use caisson_domain::run::Phase;
use serde_json::{Value, json};

use crate::database::{Hold, Tx, sql};
use crate::rows::{Columns, document};
use crate::{
    Actor, NewApproval, NewAudit, SandboxState, Store, StoreError, Topic, approvals, audit, events, inputs,
};

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
    /// How far an input is.
    Input {
        /// Its number in the session.
        seq: i64,
        /// How far.
        state: InputState,
    },
    /// The agent asks before it uses a tool. Kept for a run whose workflow has it ask.
    Asked(NewApproval),
    /// The agent no longer waits for what it asked.
    AskedNoMore {
        /// Its own name for it.
        request: String,
    },
    /// The run's structured output. The first one counts.
    Output(Value),
    /// How the repository's checks ended. The last word counts.
    Checks(Vec<CheckResult>),
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
    /// Nothing was stored, and nothing ever will be: the sandbox is destroyed, or it has no run and the batch starts an
    /// agent. So an agent's start is never acknowledged to a sandbox whose run was taken from it.
    Withdrawn {
        /// The offset up to which the journal is stored.
        acknowledged: u64,
    },
}

const OFFSET: &str = "select journal_offset from sandbox where id = $1";

const OPEN: &str = "select sandbox.id, sandbox.session_id, sandbox.journal_offset, sandbox.state, run.id as run_id, \
     run.attempt, run.event_items, run.event_bytes, run.events_full from sandbox left join run on run.sandbox_id = sandbox.id and run.status = 'running' where sandbox.id = $1";

const AWAITED: &str = "select run.id, run.attempt from sandbox join run on run.sandbox_id = sandbox.id and run.status = 'running' \
     where sandbox.id = $1 and sandbox.journal_offset = $2 and sandbox.state <> 'destroyed' and run.outcome is null";

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
            sql::query_scalar(OFFSET).bind(sandbox.as_str()).fetch_optional(self.reader()).await?;
        // The sandbox sends nothing again that lies before it.
        self.settled().await?;
        let offset = offset.ok_or_else(|| StoreError::missing("sandbox", sandbox.as_str()))?;
        u64::try_from(offset)
            .map_err(|error| StoreError::corrupt(format!("sandbox.journal_offset of {sandbox}"), error))
    }

    /// The run and attempt whose outcome a batch at `offset` of the sandbox's journal would be stored with; none if no outcome
    /// would count there. It stands until the next batch is stored or the run ends.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn awaits_outcome(
        &self,
        sandbox: &SandboxId,
        offset: u64,
    ) -> Result<Option<(RunId, i64)>, StoreError> {
        // No journal is that long.
        let Ok(offset) = i64::try_from(offset) else { return Ok(None) };
        let awaited = sql::query(AWAITED).bind(sandbox.as_str()).bind(offset);
        let Some(row) = awaited.fetch_optional(self.reader()).await? else { return Ok(None) };
        let columns = Columns::of("run", &row)?;
        Ok(Some((columns.parse("id")?, columns.get("attempt")?)))
    }

    /// Stores the batch that covers the bytes from `offset` to `end` of the sandbox's journal: events, effects and the
    /// new offset together. What the sandbox says beyond [`RUN_EVENTS`] and [`RUN_EVENT_BYTES`] is acknowledged and not
    /// kept, but for what moves the run; one event tells of it.
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
        let mut tx = self.begin_in(Hold::SessionOfSandbox(sandbox)).await?;
        let row = sql::query(OPEN).bind(sandbox.as_str()).fetch_optional(&mut *tx.db).await?;
        let row = row.ok_or_else(|| StoreError::missing("sandbox", sandbox.as_str()))?;
        let columns = Columns::of("sandbox", &row)?;
        let acknowledged: u64 = columns.number("journal_offset")?;
        if acknowledged != offset && stands(Check::JournalOffset) {
            tx.rollback().await?;
            return Ok(JournalAppend::Behind { acknowledged });
        }
        let mut skipped = entries.len();
        let run = columns.parse_optional::<RunId>("run_id")?;
        if is_withdrawn(columns.parse("state")?, run.is_some(), &entries) {
            tx.rollback().await?;
            return Ok(JournalAppend::Withdrawn { acknowledged });
        }
        if let Some(run) = run {
            let attempt = columns.get::<i64>("attempt")?;
            let ours = |entry: &JournalEntry| {
                (entry.run == run && entry.attempt == attempt) || !stands(Check::JournalRun)
            };
            let ours: Vec<JournalEntry> = entries.into_iter().filter(ours).collect();
            skipped -= ours.len();
            for entry in &ours {
                apply(&mut tx, entry).await?;
                if !stands(Check::CountedUsage) {
                    believe_cost(&mut tx, entry).await?;
                }
                if !stands(Check::AuditSource) {
                    believe_note(&mut tx, entry).await?;
                }
            }
            let mut room = Room::read(&columns)?;
            let events = room.keep(ours);
            if room.told_now {
                sql::query(FULL).bind(run.as_str()).execute(&mut *tx.db).await?;
            }
            events::append(&mut tx, &columns.parse("session_id")?, &run, &events).await?;
        }
        sql::query(ADVANCE).bind(sandbox.as_str()).bind(new_offset).execute(&mut *tx.db).await?;
        tx.commit().await?;
        Ok(JournalAppend::Stored { acknowledged: end, skipped: skipped as u64 })
    }
}

/// Whether the sandbox's run may be somebody else's now. A run goes back to the queue only after its sandbox is written
/// down as destroyed; one that has ended leaves a sandbox that may say its last words.
fn is_withdrawn(state: SandboxState, has_run: bool, entries: &[JournalEntry]) -> bool {
    let starts_agent = || entries.iter().any(|entry| entry.effect == JournalEffect::AgentStarted);
    match state {
        SandboxState::Creating | SandboxState::Running | SandboxState::Stopping => !has_run && starts_agent(),
        SandboxState::Destroyed => true,
    }
}

const FULL: &str = "update run set events_full = 1 where id = $1";

/// How much a run may still have told.
struct Room {
    items: i64,
    bytes: i64,
    /// Whether an event has told that the bound was reached.
    told: bool,
    /// Whether this batch tells so.
    told_now: bool,
}

impl Room {
    fn read(columns: &Columns<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            items: columns.get("event_items")?,
            bytes: columns.get("event_bytes")?,
            told: columns.flag("events_full")?,
            told_now: false,
        })
    }

    /// The events for which there is room, and where the first one is left out the event that tells so.
    fn keep(&mut self, entries: Vec<JournalEntry>) -> Vec<NewEvent> {
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(event) = entry.event else { continue };
            if self.takes(&event, is_reserved_for(&event, &entry.effect)) {
                kept.push(event);
            } else if !self.told {
                (self.told, self.told_now) = (true, true);
                kept.push(full());
            }
        }
        kept
    }

    fn takes(&mut self, event: &NewEvent, reserved: bool) -> bool {
        let (more_items, more_bytes) =
            if reserved { (RUN_EVENTS_RESERVED, RUN_EVENT_RESERVED_BYTES) } else { (0, 0) };
        let bytes = self.bytes.saturating_add(events::bytes(event));
        if !stands(Check::RecordBounds) {
            return true;
        }
        if self.items >= RUN_EVENTS + more_items || bytes > RUN_EVENT_BYTES + more_bytes {
            return false;
        }
        self.items += 1;
        self.bytes = bytes;
        true
    }
}

/// Whether it moves the run, or ends what did: the sandbox has little of that to say, unless it lies.
fn is_reserved_for(event: &NewEvent, effect: &JournalEffect) -> bool {
    *effect != JournalEffect::None || matches!(event.kind, EventKind::AgentExited | EventKind::GitCommit)
}

fn full() -> NewEvent {
    let message = format!(
        "the run has told {RUN_EVENTS} events or {} MiB of them; from here on only what moves the run is kept",
        RUN_EVENT_BYTES / (1024 * 1024)
    );
    NewEvent::new(EventKind::Note, &json!({ "level": NoteLevel::Warn, "message": message }))
}

const CLAIMED: &str = "update run set cost_micro_usd = cost_micro_usd + $2 where id = $1";

/// Counts what an agent says that its run has cost, as nobody does but a control that leaves the check out.
async fn believe_cost(tx: &mut Tx<'_>, entry: &JournalEntry) -> Result<(), StoreError> {
    let Some(event) = entry.event.as_ref().filter(|event| event.kind == EventKind::AgentLine) else {
        return Ok(());
    };
    let line: serde_json::Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let claimed = line["total_cost_usd"].as_u64().and_then(|usd| i64::try_from(usd).ok()).unwrap_or_default();
    sql::query(CLAIMED)
        .bind(entry.run.as_str())
        .bind(claimed.saturating_mul(1_000_000))
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

/// Records in the audit log what a sandbox tells, as nobody does but a control that leaves the check out.
async fn believe_note(tx: &mut Tx<'_>, entry: &JournalEntry) -> Result<(), StoreError> {
    let Some(event) = entry.event.as_ref().filter(|event| event.kind == EventKind::Note) else {
        return Ok(());
    };
    let line: serde_json::Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let subject = line["message"].as_str().unwrap_or_default();
    let project = ProjectId::default_project();
    audit::write(tx, &NewAudit::new(&project, Actor::Server, "key.revoke", subject)).await
}

const PHASE: &str = "update run set phase = $2 where id = $1";

/// From the agent's start on nobody else says it.
const PREPARED: &str = "update run set base_commit = $2 where id = $1 and agent_started = 0";

const AGENT_STARTED: &str = "update run set agent_started = 1 where id = $1";

const ATTEMPT_STARTED: &str = "update attempt set agent_started_at_ms = coalesce(agent_started_at_ms, $3) \
     where run_id = $1 and number = $2";

const OUTPUT: &str = "update run set output = $2 where id = $1 and output is null";

const CHECKS: &str = "update run set checks = $2 where id = $1 and outcome is null";

const FINISHED: &str = "update run set outcome = $2 where id = $1 and outcome is null";

async fn apply(tx: &mut Tx<'_>, entry: &JournalEntry) -> Result<(), StoreError> {
    let run = entry.run.as_str();
    match &entry.effect {
        JournalEffect::None => return Ok(()),
        JournalEffect::Phase(phase) => {
            sql::query(PHASE).bind(run).bind(phase.as_str()).execute(&mut *tx.db).await?;
        }
        JournalEffect::Prepared { base_commit } => {
            sql::query(PREPARED).bind(run).bind(base_commit.as_deref()).execute(&mut *tx.db).await?;
        }
        JournalEffect::AgentStarted => {
            sql::query(AGENT_STARTED).bind(run).execute(&mut *tx.db).await?;
            sql::query(ATTEMPT_STARTED)
                .bind(run)
                .bind(entry.attempt)
                .bind(tx.now_ms)
                .execute(&mut *tx.db)
                .await?;
        }
        JournalEffect::Input { seq, state } => {
            inputs::acknowledge(tx, &entry.run, *seq, *state).await?;
        }
        JournalEffect::Asked(new) => approvals::requested(tx, &entry.run, new).await?,
        JournalEffect::AskedNoMore { request } => approvals::withdrawn(tx, &entry.run, request).await?,
        JournalEffect::Output(output) => {
            let output = document("run.output", output)?;
            sql::query(OUTPUT).bind(run).bind(output).execute(&mut *tx.db).await?;
        }
        JournalEffect::Checks(results) => {
            let results = document("run.checks", results)?;
            sql::query(CHECKS).bind(run).bind(results).execute(&mut *tx.db).await?;
        }
        JournalEffect::Finished(outcome) => {
            let outcome = document("run.outcome", outcome)?;
            sql::query(FINISHED).bind(run).bind(outcome).execute(&mut *tx.db).await?;
        }
    }
    tx.wake(Topic::Run(entry.run.clone()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(items: i64, bytes: i64) -> Room {
        Room { items, bytes, told: false, told_now: false }
    }

    #[test]
    fn a_run_tells_so_many_events_and_what_moves_it_has_room_behind_them() {
        let event = NewEvent::new(EventKind::Note, &json!({ "message": "x" }));
        let size = events::bytes(&event);
        let mut by_number = room(RUN_EVENTS - 1, 0);
        assert!(by_number.takes(&event, false), "the last one");
        assert!(!by_number.takes(&event, false));
        assert!(by_number.takes(&event, true));
        by_number.items = RUN_EVENTS + RUN_EVENTS_RESERVED - 1;
        assert!(by_number.takes(&event, true), "the last one that moves the run");
        assert!(!by_number.takes(&event, true));
        let mut by_size = room(0, RUN_EVENT_BYTES - size);
        assert!(by_size.takes(&event, false), "to the last byte");
        assert!(!by_size.takes(&event, false));
        by_size.bytes = RUN_EVENT_BYTES + RUN_EVENT_RESERVED_BYTES - size;
        assert!(by_size.takes(&event, true), "to the last byte");
        assert!(!by_size.takes(&event, true));
        assert!(!by_size.told, "only what is kept tells");
    }
}
