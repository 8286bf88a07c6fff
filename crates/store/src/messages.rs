//! Messages that people give to a run's agent while it works.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ApiKeyId, ProjectId, RunId};
use caisson_domain::limits::{RUN_MESSAGES, RUN_MESSAGES_WAITING};
use caisson_domain::protocol::InputBody;
use caisson_domain::run::Run;
use serde_json::json;

use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, document, run_columns};
use crate::runs::{INSERT_INPUT, NEXT_INPUT};
use crate::{Actor, NewAudit, Store, StoreError, Topic, audit, events, rows};

/// How long the same text to the same run is taken for a repetition, in milliseconds.
const REPEAT_MS: i64 = 15_000;

/// What a run was told by people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageQueue {
    /// Messages in all.
    pub added: i64,
    /// Messages that wait because the agent has not started.
    pub waiting: i64,
    /// When the oldest that waits was sent, Unix ms.
    pub oldest_waiting_at_ms: Option<i64>,
}

/// What came of sending a message.
#[derive(Debug, Clone, PartialEq)]
pub enum SendMessage {
    /// The project has no such run.
    Unknown,
    /// It has ended, or ends now.
    Over(Box<Run>),
    /// It was given [`RUN_MESSAGES`], or [`RUN_MESSAGES_WAITING`] wait already.
    Full,
    /// It is on its way to the agent, or waits for its start; also when the same text was sent a moment ago.
    Sent(MessageQueue),
}

const RUN: &str = concat!(
    "select ",
    run_columns!(),
    ", case when outcome is not null or stop_requested_at_ms is not null then 1 else 0 end as ending \
     from run where project_id = $1 and id = $2"
);

/// The server's own word about a budget is given to the agent the same way, at the moment that the run's row names.
const QUEUE: &str = "select count(*) as added, min(created_at_ms) as oldest from input \
     where run_id = $1 and body like '{\"kind\":\"steer\"%' \
     and created_at_ms <> (select coalesce(budget_soft_at_ms, -1) from run where id = $1)";

const REPEATED: &str = "select count(*) from input where run_id = $1 and body = $2 and created_at_ms > $3";

pub(crate) const NUMBER: &str =
    "update session set last_input_seq = last_input_seq + 1 where id = $1 returning last_input_seq";

impl Store {
    /// Gives the agent of a queued or running run a text within its turn. `by` is the key that sends it.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have sent it; sending the same again within a quarter of a minute sends it once.
    pub async fn send_message(
        &self,
        project: &ProjectId,
        id: &RunId,
        text: &str,
        by: &ApiKeyId,
    ) -> Result<SendMessage, StoreError> {
        let mut tx = self.begin().await?;
        let row =
            sql::query(RUN).bind(project.as_str()).bind(id.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(row) = row else { return Ok(SendMessage::Unknown) };
        let run = rows::run(&row)?;
        if run.status.is_final() || Columns::of("run", &row)?.flag("ending")? {
            return Ok(SendMessage::Over(Box::new(run)));
        }
        let body = document("input.body", &InputBody::Steer { text: text.to_owned() })?;
        let queue = queue(&mut tx, &run).await?;
        let repeated: i64 = sql::query_scalar(REPEATED)
            .bind(id.as_str())
            .bind(body.as_str())
            .bind(tx.now_ms - REPEAT_MS)
            .fetch_one(&mut *tx.db)
            .await?;
        if repeated > 0 {
            return Ok(SendMessage::Sent(queue));
        }
        if queue.added >= RUN_MESSAGES || queue.waiting >= RUN_MESSAGES_WAITING {
            return Ok(SendMessage::Full);
        }
        insert(&mut tx, &run, body).await?;
        let event = NewEvent::new(EventKind::RunMessage, &json!({ "text": text }));
        events::append(&mut tx, &run.session, &run.id, &[event]).await?;
        audit::write(&mut tx, &NewAudit::of_run(&run, Actor::Key(by.clone()), "run.message")).await?;
        tx.wake(Topic::Run(run.id.clone()));
        if let Some(sandbox) = &run.sandbox {
            tx.wake(Topic::Sandbox(sandbox.clone()));
        }
        let now_ms = tx.now_ms;
        tx.commit().await?;
        let waits = !run.agent_started;
        Ok(SendMessage::Sent(MessageQueue {
            added: queue.added + 1,
            waiting: queue.waiting + i64::from(waits),
            oldest_waiting_at_ms: queue.oldest_waiting_at_ms.or(waits.then_some(now_ms)),
        }))
    }

    /// What the run was told by people, if it belongs to the project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn message_queue(
        &self,
        project: &ProjectId,
        id: &RunId,
    ) -> Result<Option<(Run, MessageQueue)>, StoreError> {
        let Some(run) = self.run(project, id).await? else { return Ok(None) };
        let row = sql::query(QUEUE).bind(id.as_str()).fetch_one(self.reader()).await?;
        let queue = read_queue(&row, &run)?;
        Ok(Some((run, queue)))
    }
}

async fn queue(tx: &mut Tx<'_>, run: &Run) -> Result<MessageQueue, StoreError> {
    let row = sql::query(QUEUE).bind(run.id.as_str()).fetch_one(&mut *tx.db).await?;
    read_queue(&row, run)
}

fn read_queue(row: &Row, run: &Run) -> Result<MessageQueue, StoreError> {
    let added: i64 = row.get("added")?;
    let oldest: Option<i64> = row.get("oldest")?;
    let waits = !run.agent_started && !run.status.is_final();
    Ok(MessageQueue {
        added,
        waiting: if waits { added } else { 0 },
        oldest_waiting_at_ms: oldest.filter(|_| waits),
    })
}

pub(crate) async fn insert(tx: &mut Tx<'_>, run: &Run, body: String) -> Result<(), StoreError> {
    let seq: i64 = sql::query_scalar(NUMBER).bind(run.session.as_str()).fetch_one(&mut *tx.db).await?;
    put(tx, run, seq, body).await
}

/// As [`insert`], unless the run was given the same one before.
pub(crate) async fn insert_once(tx: &mut Tx<'_>, run: &Run, body: String) -> Result<(), StoreError> {
    let seq: Option<i64> = sql::query_scalar(NEXT_INPUT)
        .bind(run.session.as_str())
        .bind(run.id.as_str())
        .bind(body.as_str())
        .fetch_optional(&mut *tx.db)
        .await?;
    match seq {
        Some(seq) => put(tx, run, seq, body).await,
        None => Ok(()),
    }
}

async fn put(tx: &mut Tx<'_>, run: &Run, seq: i64, body: String) -> Result<(), StoreError> {
    sql::query(INSERT_INPUT)
        .bind(run.session.as_str())
        .bind(seq)
        .bind(run.project.as_str())
        .bind(run.id.as_str())
        .bind(tx.now_ms)
        .bind(body)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}
