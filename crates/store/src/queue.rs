//! The queue: keep, place, give back and finish runs that were claimed. Each method is fenced by home and lease epoch.

use caisson_domain::check_result::CheckResult;
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{RunId, SandboxId, ServerId};
use caisson_domain::limits::{LEASE_MS, RESULT_TEXT_BYTES};
use caisson_domain::protocol::{Outcome, StopReason};
use caisson_domain::queue::CLAIM_ATTEMPTS;
use caisson_domain::run::{Failure, FailureKind, Phase, Run, RunStatus, cut};
use serde_json::{Value, json};

use crate::database::{Hold, Row, Tx, sql};
use crate::events::Ended;
use crate::rows::{Columns, document, run_columns};
use crate::sessions::uid_offset;
use crate::{
    HomeEpoch, SandboxState, Store, StoreError, Topic, approvals, damage, events, files, rows, runs,
    sandboxes, usage,
};

/// A run that the caller owns now.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// The run.
    pub run: Run,
    /// What fences every later call about it.
    pub epoch: HomeEpoch,
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
    /// The structured output that the shim told, once it has.
    pub output: Option<Value>,
    /// How the repository's checks ended, as the shim told it last; empty if none were run.
    pub checks: Vec<CheckResult>,
    /// The commit pushed to the run's branch, as the gateway saw it.
    pub pushed_commit: Option<String>,
    /// Whether a push was forwarded of which nobody has seen the end yet.
    pub push_pending: bool,
    /// When the lease ends unless it is extended, Unix ms.
    pub lease_expires_at_ms: i64,
    /// HTTP status of the last settled model call, 0 if it got no reply; none before the first. A call settled because
    /// its server had died does not count: it says nothing about the provider.
    pub provider_status: Option<u16>,
    /// Why the gateway gave up the run's model calls for good, if no call was answered since.
    pub model_failure: Option<Failure>,
    /// When the first approval that waits has its default answer, Unix ms; none if none waits.
    pub approval_expires_at_ms: Option<i64>,
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

const INSERT_ATTEMPT: &str = "insert into attempt (run_id, number, project_id, session_id, server_id, started_at_ms) \
     values ($1, $2, $3, $4, $5, $6)";

const ADOPT: &str = concat!(
    "update run set lease_epoch = lease_epoch + 1, lease_expires_at_ms = $2 \
     where status = 'running' and home_server_id = $1 returning ",
    run_columns!()
);

const HEARTBEAT: &str = "update run set lease_expires_at_ms = $3 \
     where id = $1 and lease_epoch = $2 and home_server_id = $4 and status = 'running' returning lease_expires_at_ms";

const PLACE: &str = "update run set sandbox_id = $3 \
     where id = $1 and lease_epoch = $2 and home_server_id = $4 and status = 'running'";

const PROGRESS: &str = "select id, cancel_requested_at_ms, stop_requested_at_ms, agent_started, phase, outcome, output, checks, \
     pushed_commit, pending_push is not null as push_pending, lease_expires_at_ms, provider_status, model_failure, \
     (select min(expires_at_ms) from approval where approval.run_id = run.id and approval.state = 'waiting') \
       as approval_expires_at_ms from run \
     where id = $1 and lease_epoch = $2 and home_server_id = $3 and status = 'running'";

impl Store {
    /// Takes over every running run whose home is `server`, with new epochs and leases: for a server that has just
    /// started. No event tells of it and the attempt stays the same, since the sandbox goes on undisturbed. Oldest
    /// first; as many as the server has slots. A run that cannot be read ends as failed instead.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: adopting again raises the epochs again.
    pub async fn adopt(&self, server: &ServerId) -> Result<Vec<Claimed>, StoreError> {
        let mut tx = self.begin().await?;
        let rows =
            sql::query(ADOPT).bind(server.as_str()).bind(tx.now_ms + LEASE_MS).fetch_all(&mut *tx.db).await?;
        let mut adopted = Vec::with_capacity(rows.len());
        for row in &rows {
            match claimed(&mut tx, row).await {
                Ok(claimed) => adopted.push(claimed),
                Err(StoreError::Corrupt { what, source }) => {
                    damage::end_row(&mut tx, row, (&what, &source)).await?;
                }
                Err(error) => return Err(error),
            }
        }
        adopted.sort_by(|left, right| left.run.id.cmp(&right.run.id));
        tx.commit().await?;
        Ok(adopted)
    }

    /// Extends the lease by [`LEASE_MS`] and returns its new end (Unix ms); `None` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: extended or not.
    pub async fn heartbeat(&self, run: &RunId, epoch: HomeEpoch) -> Result<Option<i64>, StoreError> {
        let mut tx = self.begin_in(Hold::SessionOfRun(run)).await?;
        let expires_at_ms = sql::query_scalar(HEARTBEAT)
            .bind(run.as_str())
            .bind(epoch.number)
            .bind(tx.now_ms + LEASE_MS)
            .bind(epoch.home())
            .fetch_optional(&mut *tx.db)
            .await?;
        tx.commit().await?;
        Ok(expires_at_ms)
    }

    /// Notes the sandbox that the run is in, which delivers the run to it; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if the sandbox is not one of the run's session.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn place(
        &self,
        run: &RunId,
        epoch: HomeEpoch,
        sandbox: &SandboxId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let placed = sql::query(PLACE)
            .bind(run.as_str())
            .bind(epoch.number)
            .bind(sandbox.as_str())
            .bind(epoch.home())
            .execute(&mut *tx.db)
            .await?
            .rows_affected()
            == 1;
        if placed {
            tx.wake(Topic::Sandbox(sandbox.clone()));
            tx.wake(Topic::Run(run.clone()));
        }
        tx.commit().await?;
        Ok(placed)
    }

    /// What the owner has to know now; `None` if the caller has lost the run.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn progress(&self, run: &RunId, epoch: HomeEpoch) -> Result<Option<Progress>, StoreError> {
        let query = sql::query(PROGRESS).bind(run.as_str()).bind(epoch.number).bind(epoch.home());
        let row = query.fetch_optional(self.reader()).await?;
        row.as_ref().map(progress).transpose()
    }

    /// Tells the run's sandbox to stop, once for each reason; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn request_stop(
        &self,
        run: &RunId,
        epoch: HomeEpoch,
        reason: StopReason,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(run) = owned(&mut tx, run, epoch).await? else { return Ok(false) };
        if runs::stop(&mut tx, &run, reason).await? {
            tx.commit().await?;
        }
        Ok(true)
    }

    /// Gives the run back to the queue, to be claimed again after `delay_ms`; `false` if the caller has lost the run or
    /// its agent was started. A run that somebody has asked to cancel is not queued again but ends as cancelled, and one
    /// that was claimed [`CLAIM_ATTEMPTS`] times as failed.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: given back or not.
    pub async fn requeue(
        &self,
        run: &RunId,
        epoch: HomeEpoch,
        reason: &str,
        delay_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(run) = owned(&mut tx, run, epoch).await? else { return Ok(false) };
        if run.agent_started {
            return Ok(false);
        }
        give_back(&mut tx, &run, reason, delay_ms).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Ends the run; `false` if the caller has lost it. Model calls that are still open are settled with their estimates
    /// first, so that the event of the end has the whole usage and is the run's last one.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if `finish.status` is not final, or if the run cannot be read: then
    /// [`Store::end_unread`] ends it.
    /// # Cancel safety
    /// Safe: ended or not.
    pub async fn finish(&self, run: &RunId, epoch: HomeEpoch, finish: &Finish) -> Result<bool, StoreError> {
        if !finish.status.is_final() {
            let what = format!("the new status of {run}");
            return Err(StoreError::corrupt(what, format!("{} is not final", finish.status)));
        }
        let mut tx = self.begin().await?;
        let Some(run) = owned(&mut tx, run, epoch).await? else { return Ok(false) };
        end(&mut tx, &run, finish).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Appends an event of the worker's own; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have appended it; repeating it may append it twice.
    pub async fn append_run_event(
        &self,
        run: &RunId,
        epoch: HomeEpoch,
        event: NewEvent,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin_in(Hold::SessionOfRun(run)).await?;
        let Some(run) = owned(&mut tx, run, epoch).await? else { return Ok(false) };
        events::append(&mut tx, &run.session, &run.id, &[event]).await?;
        tx.commit().await?;
        Ok(true)
    }
}

const OWNED: &str = concat!(
    "select ",
    run_columns!(),
    " from run where id = $1 and lease_epoch = $2 and home_server_id = $3 and status = 'running'"
);

/// The run, if it is running and `epoch` is still its epoch at its home. The transaction holds the write lock, so what it reads
/// here stays true until it commits.
pub(crate) async fn owned(tx: &mut Tx<'_>, run: &RunId, epoch: HomeEpoch) -> Result<Option<Run>, StoreError> {
    let query = sql::query(OWNED).bind(run.as_str()).bind(epoch.number).bind(epoch.home());
    let row = query.fetch_optional(&mut *tx.db).await?;
    row.as_ref().map(rows::run).transpose()
}

/// What a claim writes besides the run itself.
pub(crate) async fn start(tx: &mut Tx<'_>, row: &Row, server: &ServerId) -> Result<Claimed, StoreError> {
    let claimed = claimed(tx, row).await?;
    let run = &claimed.run;
    sql::query(INSERT_ATTEMPT)
        .bind(run.id.as_str())
        .bind(run.attempt)
        .bind(run.project.as_str())
        .bind(run.session.as_str())
        .bind(server.as_str())
        .bind(tx.now_ms)
        .execute(&mut *tx.db)
        .await?;
    files::keep(tx, run, server).await?;
    let started = NewEvent::new(EventKind::RunStarted, &json!({ "attempt": run.attempt }));
    events::append(tx, &run.session, &run.id, &[started]).await?;
    tx.wake(Topic::Run(run.id.clone()));
    Ok(claimed)
}

const SESSION_NUMBER: &str = "select number from session where id = $1";

pub(crate) async fn claimed(tx: &mut Tx<'_>, row: &Row) -> Result<Claimed, StoreError> {
    let run = rows::run(row)?;
    let number: Option<i64> =
        sql::query_scalar(SESSION_NUMBER).bind(run.session.as_str()).fetch_optional(&mut *tx.db).await?;
    let number = number.ok_or_else(|| StoreError::missing("session", run.session.as_str()))?;
    let home = run.home.as_ref().ok_or_else(|| StoreError::missing("the home of run", run.id.as_str()))?;
    let epoch = HomeEpoch::new(rows::epoch(row)?.0, home);
    Ok(Claimed {
        run,
        epoch,
        lease_expires_at_ms: tx.now_ms + LEASE_MS,
        session_uid_offset: uid_offset(number),
    })
}

fn progress(row: &Row) -> Result<Progress, StoreError> {
    let columns = Columns::of("run", row)?;
    let status: Option<i64> = columns.get("provider_status")?;
    Ok(Progress {
        cancel_requested: columns.get::<Option<i64>>("cancel_requested_at_ms")?.is_some(),
        stop_requested_at_ms: columns.get("stop_requested_at_ms")?,
        agent_started: columns.flag("agent_started")?,
        phase: columns.parse_optional("phase")?,
        outcome: columns.json_optional("outcome")?,
        output: columns.json_optional("output")?,
        checks: columns.json_optional("checks")?.unwrap_or_default(),
        pushed_commit: columns.get("pushed_commit")?,
        push_pending: columns.flag("push_pending")?,
        lease_expires_at_ms: columns.get("lease_expires_at_ms")?,
        provider_status: status.map(|_| columns.number("provider_status")).transpose()?,
        model_failure: columns.json_optional("model_failure")?,
        approval_expires_at_ms: columns.get("approval_expires_at_ms")?,
    })
}

const GIVE_BACK: &str = "update run set status = 'queued', phase = null, waiting = null, lease_expires_at_ms = null, \
     stop_requested_at_ms = null, home_server_id = null, sandbox_id = null, base_commit = null, outcome = null, output = null, \
     checks = null, pending_push = null, not_before_ms = $2 where id = $1 and status = 'running'";

/// Gives a run back to the queue, or ends it where it must not go there. Its agent must not have been started, and cannot be
/// from here on: whatever still lives of its sandbox opens nothing any more.
pub(crate) async fn give_back(
    tx: &mut Tx<'_>,
    run: &Run,
    reason: &str,
    delay_ms: i64,
) -> Result<(), StoreError> {
    if let Some(sandbox) = &run.sandbox {
        sandboxes::advance(tx, sandbox, SandboxState::Destroyed).await?;
    }
    if run.cancel_requested_at_ms.is_some() {
        let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
        return end(tx, run, &finish).await;
    }
    if run.attempt >= CLAIM_ATTEMPTS {
        // Whatever it is that stops its agent from being started would go on for ever.
        let message = format!(
            "the run was taken from the queue {CLAIM_ATTEMPTS} times and its agent never started; see the server's log for why"
        );
        let failure = Failure::new(FailureKind::Internal, message).with_evidence(reason);
        let finish = Finish { status: RunStatus::Failed, failure: Some(failure), result: None };
        return end(tx, run, &finish).await;
    }
    sql::query(GIVE_BACK)
        .bind(run.id.as_str())
        .bind(tx.now_ms.saturating_add(delay_ms))
        .execute(&mut *tx.db)
        .await?;
    let event = NewEvent::new(EventKind::RunRequeued, &json!({ "reason": reason }));
    events::append(tx, &run.session, &run.id, &[event]).await?;
    leave(tx, run).await
}

const END: &str = concat!(
    "update run set status = $2, failure = $3, result = $4, finished_at_ms = $5, phase = null, waiting = null, \
     output = case when $2 = 'succeeded' then output end, lease_expires_at_ms = null, pending_push = null where id = $1 and status = 'running' returning ",
    run_columns!()
);

pub(crate) async fn end(tx: &mut Tx<'_>, run: &Run, finish: &Finish) -> Result<(), StoreError> {
    let failure = finish.failure.as_ref().map(|failure| document("run.failure", failure)).transpose()?;
    usage::settle_open(tx, run.id.as_str()).await?;
    let row = sql::query(END)
        .bind(run.id.as_str())
        .bind(finish.status.as_str())
        .bind(failure)
        .bind(finish.result.as_deref().map(|text| cut(text, RESULT_TEXT_BYTES)))
        .bind(tx.now_ms)
        .fetch_one(&mut *tx.db)
        .await?;
    let ended = rows::run(&row)?;
    events::append_end(tx, &ended.session, &ended.id, &Ended::of(&ended)).await?;
    leave(tx, run).await
}

async fn leave(tx: &mut Tx<'_>, run: &Run) -> Result<(), StoreError> {
    release(tx, run.id.as_str(), run.attempt).await?;
    if let Some(sandbox) = &run.sandbox {
        tx.wake(Topic::Sandbox(sandbox.clone()));
    }
    Ok(())
}

/// What people sent is kept: it is for the run, whichever sandbox it is in.
const DROP_INPUTS: &str = "delete from input where run_id = $1 and kind is null";

const END_ATTEMPT: &str = "update attempt set ended_at_ms = $3 where run_id = $1 and number = $2";

/// What all ways out of `running` share: the attempt is over, nothing is left to be told to its sandbox, and session
/// and branch are free for others.
pub(crate) async fn release(tx: &mut Tx<'_>, run: &str, attempt: i64) -> Result<(), StoreError> {
    sql::query(DROP_INPUTS).bind(run).execute(&mut *tx.db).await?;
    approvals::withdraw_all(tx, run).await?;
    sql::query(END_ATTEMPT).bind(run).bind(attempt).bind(tx.now_ms).execute(&mut *tx.db).await?;
    tx.wake(Topic::Queue);
    if let Ok(run) = run.parse() {
        tx.wake(Topic::Run(run));
    }
    Ok(())
}
