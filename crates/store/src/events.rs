//! Reading and appending events.

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

use caisson_domain::check_result::CheckResult;
use caisson_domain::event::{Event, EventKind, NewEvent};
use caisson_domain::id::{RunId, SandboxId, SessionId};
use caisson_domain::limits::EVENT_PAGE_ITEMS;
use caisson_domain::run::{Failure, Run, RunStatus};
use caisson_domain::usage::UsageTotals;
use serde::Serialize;
use serde_json::{Value, json};

use crate::database::sql::Reader;
use crate::database::{Tx, sql};
use crate::{Store, StoreError, Topic, audit, inputs, meters, rows};

pub(crate) const OF_RUN: &str = "select session_id, seq, run_id, at_ms, kind, data from event \
     where run_id = $1 and seq > $2 order by seq limit $3";

pub(crate) const OF_SESSION: &str = "select session_id, seq, run_id, at_ms, kind, data from event \
     where session_id = $1 and seq > $2 order by seq limit $3";

/// Whose events are read.
#[derive(Debug, Clone, Copy)]
pub enum EventsOf<'a> {
    /// One run's.
    Run(&'a RunId),
    /// Those of all runs of a session.
    Session(&'a SessionId),
}

/// The two kinds are named so that their own small index is used; the guard keeps all other data, which need not be
/// JSON by the database's rules, from being read.
macro_rules! tells_of_sandbox {
    ($named:literal) => {
        concat!(
            "select exists (select 1 from event where run_id = $1 and kind = $2 \
             and kind in ('sandbox.started', 'sandbox.exited') and case when kind = $2 then ",
            $named,
            " = $3 end)"
        )
    };
}
const TELLS_OF_SANDBOX: sql::Statement = sql::Statement::Each {
    sqlite: tells_of_sandbox!("json_extract(data, '$.sandbox')"),
    postgres: tells_of_sandbox!("cast(data as json) ->> 'sandbox'"),
};

impl Store {
    /// The events of one run behind `after`, in order. At most one more than [`EVENT_PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn events(&self, run: &RunId, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.read_events(OF_RUN, run.as_str(), after, limit).await
    }

    /// The events of a whole session behind `after`, in order; bounded like [`Store::events`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn session_events(
        &self,
        session: &SessionId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.read_events(OF_SESSION, session.as_str(), after, limit).await
    }

    /// The next events behind `after`, in order, until there are `items` or they have `bytes` of details: the one that reaches
    /// them is the last. None at all only at the end. For whoever keeps what was read while a client takes its time, since one
    /// event may be a line of a megabyte.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn events_within(
        &self,
        of: EventsOf<'_>,
        after: i64,
        within: (u32, usize),
    ) -> Result<Vec<Event>, StoreError> {
        self.read_within(self.reader(), of, after, within).await
    }

    /// The same over the connections of lists: for whoever looks through many events, so that small reads do not wait for it.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn listed_events(
        &self,
        of: EventsOf<'_>,
        after: i64,
        within: (u32, usize),
    ) -> Result<Vec<Event>, StoreError> {
        self.read_within(self.lists(), of, after, within).await
    }

    /// Whether the run has an event of `kind`, one of the worker's own about sandboxes, that names `sandbox`.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn tells_of_sandbox(
        &self,
        run: &RunId,
        kind: EventKind,
        sandbox: &SandboxId,
    ) -> Result<bool, StoreError> {
        let told: i64 = sql::query_scalar(TELLS_OF_SANDBOX)
            .bind(run.as_str())
            .bind(kind.as_str())
            .bind(sandbox.as_str())
            .fetch_one(self.reader())
            .await?;
        Ok(told != 0)
    }

    async fn read_events(
        &self,
        sql: &'static str,
        of: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let limit = limit.min(EVENT_PAGE_ITEMS + 1);
        let rows = sql::query(sql).bind(of).bind(after).bind(limit).fetch_all(self.reader()).await?;
        // A reader goes on behind the last number that it has seen: none may come twice, with another event.
        self.settled().await?;
        rows.iter().map(rows::event).collect()
    }

    async fn read_within(
        &self,
        reader: &Reader,
        of: EventsOf<'_>,
        after: i64,
        (items, bytes): (u32, usize),
    ) -> Result<Vec<Event>, StoreError> {
        let (text, of) = match of {
            EventsOf::Run(run) => (OF_RUN, run.as_str()),
            EventsOf::Session(session) => (OF_SESSION, session.as_str()),
        };
        let items = items.min(EVENT_PAGE_ITEMS + 1);
        let (mut events, mut read): (Vec<Event>, usize) = (Vec::new(), 0);
        sql::query(text)
            .bind(of)
            .bind(after)
            .bind(items)
            .read_each(reader, |row| {
                let event = rows::event(&row)?;
                read += event.data.get().len();
                events.push(event);
                Ok::<_, StoreError>(if read < bytes {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                })
            })
            .await?;
        self.settled().await?;
        Ok(events)
    }
}

const NUMBER: &str = "update session set last_seq = last_seq + $2, updated_at_ms = $3 where id = $1 \
     returning last_seq, project_id";

const COUNT: &str =
    "update run set event_items = event_items + $2, event_bytes = event_bytes + $3 where id = $1";

/// Numbers `events` in their session without a gap, stamps, appends and counts them.
pub(crate) async fn append(
    tx: &mut Tx<'_>,
    session: &SessionId,
    run: &RunId,
    events: &[NewEvent],
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let count =
        i64::try_from(events.len()).map_err(|error| StoreError::corrupt("a batch of events", error))?;
    let numbered: Option<(i64, String)> = sql::query_as(NUMBER)
        .bind(session.as_str())
        .bind(count)
        .bind(tx.now_ms)
        .fetch_optional(&mut *tx.db)
        .await?;
    let (last, project) = numbered.ok_or_else(|| StoreError::missing("session", session.as_str()))?;
    let mut seq = last - count;
    let mut rest = events;
    while !rest.is_empty() {
        let size = rest.len().ilog2().min(LARGEST_INSERT);
        let (now, later) = rest.split_at(1 << size);
        let mut query = sql::query(sql::Statement::Built(Arc::clone(&INSERTS[size as usize])))
            .bind(session.as_str())
            .bind(project.as_str())
            .bind(run.as_str())
            .bind(tx.now_ms);
        for event in now {
            seq += 1;
            query = query.bind(seq).bind(event.kind.as_str()).bind(event.data.get());
        }
        query.execute(&mut *tx.db).await?;
        rest = later;
    }
    let bytes: i64 = events.iter().map(bytes).sum();
    sql::query(COUNT).bind(run.as_str()).bind(count).bind(bytes).execute(&mut *tx.db).await?;
    tx.count(&meters::EVENTS, Vec::new(), count);
    tx.wake(Topic::Session(session.clone()));
    Ok(())
}

/// What an event adds to the bytes of its run.
pub(crate) fn bytes(event: &NewEvent) -> i64 {
    i64::try_from(event.data.get().len()).unwrap_or(i64::MAX)
}

/// The largest insertion has two to the power of this many rows.
const LARGEST_INSERT: u32 = 6;

/// Insertions of 1, 2, 4 … rows: few enough that every one stays prepared. The texts hold nothing but placeholders.
static INSERTS: LazyLock<Vec<Arc<str>>> =
    LazyLock::new(|| (0..=LARGEST_INSERT).map(|size| insert(1 << size).into()).collect());

fn insert(rows: usize) -> String {
    let values: Vec<String> = (0..rows)
        .map(|row| format!("($1, $2, $3, $4, ${}, ${}, ${})", 3 * row + 5, 3 * row + 6, 3 * row + 7))
        .collect();
    let columns = "session_id, project_id, run_id, at_ms, seq, kind, data";
    format!("insert into event ({columns}) values {}", values.join(", "))
}

/// What tells of a run's acceptance.
pub(crate) fn queued(run: &Run) -> NewEvent {
    let spec = &run.spec;
    let data =
        json!({ "workflow": spec.workflow.name, "repository": spec.repository, "branch": spec.branch });
    NewEvent::new(EventKind::RunQueued, &data)
}

/// What is told of a run's end.
#[derive(Serialize)]
pub(crate) struct Ended<'r> {
    pub(crate) status: RunStatus,
    pub(crate) failure: Option<&'r Failure>,
    pub(crate) result: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<&'r Value>,
    #[serde(skip_serializing_if = "<[CheckResult]>::is_empty")]
    pub(crate) checks: &'r [CheckResult],
    pub(crate) pushed_commit: Option<&'r str>,
    pub(crate) usage: &'r UsageTotals,
}

impl<'r> Ended<'r> {
    pub(crate) fn of(run: &'r Run) -> Self {
        Self {
            status: run.status,
            failure: run.failure.as_ref(),
            result: run.result.as_deref(),
            output: run.output.as_ref(),
            checks: &run.checks,
            pushed_commit: run.pushed_commit.as_deref(),
            usage: &run.usage,
        }
    }

    /// What tells of it: the run's last event.
    fn event(&self) -> NewEvent {
        NewEvent::new(EventKind::RunFinished, &json!(self))
    }
}

/// Appends what tells of a run's end, behind what tells of inputs that were on their way, and counts the end: the one way in
/// which every run ends.
pub(crate) async fn append_end(
    tx: &mut Tx<'_>,
    session: &SessionId,
    run: &RunId,
    ended: &Ended<'_>,
) -> Result<(), StoreError> {
    inputs::end(tx, session, run).await?;
    audit::write_totals(tx, run).await?;
    append(tx, session, run, &[ended.event()]).await?;
    let failure = ended.failure.map_or("", |failure| failure.kind.as_str());
    let labels = vec![("status", ended.status.as_str().to_owned()), ("failure", failure.to_owned())];
    tx.count(&meters::RUNS_ENDED, labels, 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insertion_has_a_placeholder_for_every_value() {
        assert_eq!(
            insert(2),
            "insert into event (session_id, project_id, run_id, at_ms, seq, kind, data) \
             values ($1, $2, $3, $4, $5, $6, $7), ($1, $2, $3, $4, $8, $9, $10)"
        );
    }
}
