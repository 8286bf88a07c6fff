//! Runs and sessions as the API makes, reads and cancels them.

use std::ops::ControlFlow;

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::git::{BranchName, Repository};
use caisson_domain::id::{ApiKeyId, ProjectId, RunId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::protocol::{InputBody, StopReason};
use caisson_domain::queue::rank_ms;
use caisson_domain::run::{Run, RunSpec, RunStatus};
use caisson_domain::usage::UsageTotals;
use serde_json::json;

use crate::attachments::Making;
use crate::database::sql::Connection;
use crate::database::{Tx, sql};
use crate::events::Ended;
use crate::going_on::Call;
use crate::idempotency::{self, Made, Remembered, RepeatWindow};
use crate::random::uuid_v4;
use crate::rows::{document, run_columns};
use crate::waiting::{self, Full};
use crate::{
    Actor, NewAudit, Store, StoreError, Topic, attachments, audit, automagik, events, going_on, rows,
    run_lists, usage,
};

/// A run to be made.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The tenant.
    pub project: ProjectId,
    /// The key that asked for it; none for the operator of the machine.
    pub created_by: Option<ApiKeyId>,
    /// What it is asked to do. With a repository and without a branch, the store fills in
    /// `caisson/<workflow>/<short run id>`.
    pub spec: RunSpec,
    /// What makes a repetition of the request harmless.
    pub idempotency: Option<Idempotency>,
}

/// An idempotency key and what it was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key, unique in its project.
    pub key: String,
    /// SHA-256 of the request, as hexadecimal digits.
    pub request_sha256: String,
}

/// What came of making a run.
#[derive(Debug, Clone, PartialEq)]
pub enum CreateRun {
    /// It is queued.
    Created(Run),
    /// The same request was served before: this is its run, as it stands now.
    Replayed(Run),
    /// The idempotency key was used with another request.
    KeyReused,
    /// As many runs wait as may.
    QueueFull,
    /// As many runs of the project wait as may.
    ProjectQueueFull,
    /// The same request was served before, and its run was deleted with its session.
    Deleted,
    /// The project has no such session to go on with.
    NoSession,
    /// Neither workspace nor conversation of the session are kept.
    SessionExpired,
    /// The project keeps as many bytes of attachments as it may.
    AttachmentsFull,
}

/// Which runs to list. Each field that is set narrows the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Runs that stand there.
    pub status: Option<RunStatus>,
    /// Runs of that workflow.
    pub workflow: Option<String>,
    /// Runs of that session.
    pub session: Option<SessionId>,
    /// Runs on that repository, spelled as [`caisson_domain::git::Repository`] displays it.
    pub repository: Option<String>,
}

/// What came of asking for a run's end.
#[derive(Debug, Clone, PartialEq)]
pub enum CancelRun {
    /// The project has no such run.
    Unknown,
    /// It had ended before.
    Final(Run),
    /// It was waiting and is cancelled now.
    Cancelled(Run),
    /// It is running and has been told to stop.
    Requested(Run),
}

pub(crate) const ONE: &str =
    concat!("select ", run_columns!(), " from run where project_id = $1 and id = $2");

/// Comes behind every id of a run, whose digits end at `f`.
const BEHIND_ALL: &str = "run_g";

impl Store {
    /// Queues a run in a new session.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// A dropped call may have queued the run; with an idempotency key, asking again finds it.
    pub async fn create_run(&self, new: NewRun) -> Result<CreateRun, StoreError> {
        Box::pin(self.create_run_with(new, None, Vec::new())).await
    }

    /// Queues a run behind those of a session of the same project, repository and branch.
    ///
    /// # Errors
    /// As [`Store::create_run`].
    /// # Cancel safety
    /// As [`Store::create_run`].
    pub async fn create_run_in(&self, session: SessionId, new: NewRun) -> Result<CreateRun, StoreError> {
        Box::pin(self.create_run_with(new, Some(session), Vec::new())).await
    }

    /// Queues a run, in a new session unless one is named, and keeps the words with which it was asked for.
    pub(crate) async fn create(
        &self,
        mut new: NewRun,
        Making { session, asked, window, attachments }: Making,
    ) -> Result<CreateRun, StoreError> {
        let encoded = attachments::encoded(&attachments);
        let mut tx = self.begin().await?;
        if let Some(idempotency) = &new.idempotency
            && let Some(answer) = replay(&mut tx.db, tx.now_ms, &new.project, (idempotency, window)).await?
        {
            tx.rollback().await?;
            return Ok(answer);
        }
        if let Some(full) = waiting::full(&mut tx, &new.project, &self.queue_limits()).await? {
            tx.rollback().await?;
            return Ok(match full {
                Full::Queue => CreateRun::QueueFull,
                Full::Project => CreateRun::ProjectQueueFull,
            });
        }
        if attachments::full(&mut tx, &new.project, None, &attachments).await?.is_some() {
            tx.rollback().await?;
            return Ok(CreateRun::AttachmentsFull);
        }
        new.spec.attachments = attachments::numbered(&attachments, 0);
        let mut run = new_run(&tx, new.project, new.spec)?;
        let mut told = vec![events::queued(&run)];
        match session {
            Some(session) => match going_on::call(&mut tx, &run.project, &session).await? {
                Call::Unknown => return Ok(CreateRun::NoSession),
                Call::Expired => return Ok(CreateRun::SessionExpired),
                Call::On { behind, note } => {
                    if let Some(last) = behind {
                        // Runs of a session start in the order of their ids, also those of one millisecond.
                        run.id = run.id.max(last.successor());
                    }
                    run.session = session;
                    told.extend(note);
                }
            },
            None => insert_session(&mut tx, &run).await?,
        }
        insert_run(&mut tx, &run, new.created_by.as_ref()).await?;
        attachments::insert(&mut tx, &run, None, (&run.spec.attachments, &encoded)).await?;
        if let Some(asked) = &asked {
            automagik::remember(&mut tx, &run, asked).await?;
        }
        events::append(&mut tx, &run.session, &run.id, &told).await?;
        let actor = Actor::key_or_operator(new.created_by.as_ref());
        audit::write(&mut tx, &NewAudit::of_run(&run, actor, "run.create")).await?;
        if let Some(idempotency) = &new.idempotency {
            let made = Made::Run(&run.id);
            idempotency::remember(&mut tx, &run.project, made, (idempotency, window)).await?;
        }
        tx.wake(Topic::Queue);
        tx.commit().await?;
        Ok(CreateRun::Created(run))
    }

    /// What was answered to the same key before, if it is still remembered: [`CreateRun::Replayed`] or
    /// [`CreateRun::KeyReused`]. It answers a repeated request that could not be accepted now; `window` is the one that the
    /// request would be made with.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn replayed(
        &self,
        project: &ProjectId,
        idempotency: &Idempotency,
        window: RepeatWindow,
    ) -> Result<Option<CreateRun>, StoreError> {
        let mut db = self.reader().acquire().await?;
        replay(&mut db, self.now_ms(), project, (idempotency, window)).await
    }

    /// The run, if it belongs to the project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn run(&self, project: &ProjectId, id: &RunId) -> Result<Option<Run>, StoreError> {
        let row =
            sql::query(ONE).bind(project.as_str()).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(rows::run).transpose()
    }

    /// The project's runs, newest first, beginning behind `after`. At most one more than [`PAGE_ITEMS`], so that a
    /// caller can ask for one more than it shows.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_runs(
        &self,
        project: &ProjectId,
        filter: &RunFilter,
        after: Option<&RunId>,
        limit: u32,
    ) -> Result<Vec<Run>, StoreError> {
        let mut runs = Vec::new();
        self.each_run(project, filter, (after, limit), |run| runs.push(run)).await?;
        Ok(runs)
    }

    /// Hands over the runs of [`Store::list_runs`] one after another, all as they are at one moment: for whoever keeps less of
    /// each than there is, since one may hold a long prompt.
    ///
    /// # Errors
    /// As every read; some may have been handed over by then.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn each_run(
        &self,
        project: &ProjectId,
        filter: &RunFilter,
        (after, limit): (Option<&RunId>, u32),
        mut each: impl FnMut(Run) + Send,
    ) -> Result<(), StoreError> {
        sql::query(run_lists::text(filter))
            .planned_for_its_values()
            .bind(project.as_str())
            .bind(after.map_or(BEHIND_ALL, RunId::as_str))
            .bind(filter.status.map(RunStatus::as_str))
            .bind(filter.workflow.as_deref())
            .bind(filter.session.as_ref().map(SessionId::as_str))
            .bind(filter.repository.as_deref())
            .bind(limit.min(PAGE_ITEMS + 1))
            .read_each(self.lists(), |row| {
                each(rows::run(&row)?);
                Ok(ControlFlow::Continue(()))
            })
            .await
    }

    /// Asks for a run's end: a queued one is cancelled at once, a running one is told to stop, once. `by` is the key that
    /// asks; none for the operator of the machine. The audit log tells of the first who asked.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn request_cancel(
        &self,
        project: &ProjectId,
        id: &RunId,
        by: Option<&ApiKeyId>,
    ) -> Result<CancelRun, StoreError> {
        let mut tx = self.begin().await?;
        let row =
            sql::query(ONE).bind(project.as_str()).bind(id.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(row) = row else { return Ok(CancelRun::Unknown) };
        let run = rows::run(&row)?;
        let answer = match run.status {
            RunStatus::Succeeded | RunStatus::Failed | RunStatus::Cancelled => {
                return Ok(CancelRun::Final(run));
            }
            RunStatus::Running if run.cancel_requested_at_ms.is_some() => {
                return Ok(CancelRun::Requested(run));
            }
            RunStatus::Queued => CancelRun::Cancelled(cancel_queued(&mut tx, id).await?),
            RunStatus::Running => CancelRun::Requested(cancel_running(&mut tx, id).await?),
        };
        let actor = Actor::key_or_operator(by);
        audit::write(&mut tx, &NewAudit::of_run(&run, actor, "run.cancel")).await?;
        tx.commit().await?;
        Ok(answer)
    }
}

/// What was answered to the same key before, if it is still remembered.
async fn replay(
    db: &mut Connection,
    now_ms: i64,
    project: &ProjectId,
    asked: (&Idempotency, RepeatWindow),
) -> Result<Option<CreateRun>, StoreError> {
    let (run, while_live) = match idempotency::find(db, now_ms, project, asked).await? {
        None => return Ok(None),
        Some(Remembered::Other | Remembered::Fork(_)) => return Ok(Some(CreateRun::KeyReused)),
        Some(Remembered::Deleted) => return Ok(Some(CreateRun::Deleted)),
        Some(Remembered::Run { run, while_live }) => (run, while_live),
    };
    let row = sql::query(ONE).bind(project.as_str()).bind(run.as_str()).fetch_optional(&mut *db).await?;
    // Without a transaction it may be deleted between the two reads.
    let Some(row) = row else { return Ok((!while_live).then_some(CreateRun::Deleted)) };
    let run = rows::run(&row)?;
    Ok((!while_live || !run.status.is_final()).then_some(CreateRun::Replayed(run)))
}

fn new_run(tx: &Tx<'_>, project: ProjectId, mut spec: RunSpec) -> Result<Run, StoreError> {
    let id = RunId::new(tx.now_ms, tx.random());
    if spec.branch.is_none() && spec.repository.is_some() {
        let branch = format!("caisson/{}/{}", spec.workflow.name, id.short());
        let branch =
            BranchName::try_from(branch).map_err(|error| StoreError::corrupt("run.branch", error))?;
        spec.branch = Some(branch);
    }
    Ok(Run {
        id,
        project,
        session: SessionId::new(tx.now_ms, tx.random()),
        spec,
        status: RunStatus::Queued,
        phase: None,
        waiting: None,
        failure: None,
        result: None,
        output: None,
        checks: Vec::new(),
        repository_image: None,
        attempt: 0,
        agent_started: false,
        cancel_requested_at_ms: None,
        home: None,
        sandbox: None,
        base_commit: None,
        pushed_commit: None,
        usage: UsageTotals::default(),
        created_at_ms: tx.now_ms,
        started_at_ms: None,
        finished_at_ms: None,
    })
}

const INSERT_SESSION: &str = "insert into session \
     (id, project_id, workflow, repository, branch, conversation, created_at_ms, updated_at_ms) \
     values ($1, $2, $3, $4, $5, $6, $7, $7)";

async fn insert_session(tx: &mut Tx<'_>, run: &Run) -> Result<(), StoreError> {
    let conversation = uuid_v4(tx.random());
    sql::query(INSERT_SESSION)
        .bind(run.session.as_str())
        .bind(run.project.as_str())
        .bind(run.spec.workflow.name.as_str())
        .bind(run.spec.repository.as_ref().map(ToString::to_string))
        .bind(run.spec.branch.as_ref().map(BranchName::as_str))
        .bind(conversation)
        .bind(tx.now_ms)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

const INSERT_RUN: &str = "insert into run \
     (id, project_id, session_id, workflow, repository, repository_key, branch, status, not_before_ms, created_at_ms, \
     created_by, spec, budget_micro_usd, budget_soft_percent, queue_rank_ms) \
     values ($1, $2, $3, $4, $5, $6, $7, 'queued', $13, $8, $9, $10, $11, coalesce($12, 100), $14)";

async fn insert_run(tx: &mut Tx<'_>, run: &Run, created_by: Option<&ApiKeyId>) -> Result<(), StoreError> {
    // A run whose start is put off begins to wait only then.
    let waits_since_ms = run.spec.start_at_ms.map_or(tx.now_ms, |start_ms| start_ms.max(tx.now_ms));
    sql::query(INSERT_RUN)
        .bind(run.id.as_str())
        .bind(run.project.as_str())
        .bind(run.session.as_str())
        .bind(run.spec.workflow.name.as_str())
        .bind(run.spec.repository.as_ref().map(ToString::to_string))
        .bind(run.spec.repository.as_ref().map(Repository::key))
        .bind(run.spec.branch.as_ref().map(BranchName::as_str))
        .bind(tx.now_ms)
        .bind(created_by.map(ApiKeyId::as_str))
        .bind(document("run.spec", &run.spec)?)
        .bind(run.spec.budget_micro_usd)
        .bind(run.spec.budget_soft_percent)
        .bind(waits_since_ms)
        .bind(rank_ms(waits_since_ms, run.spec.priority))
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

const CANCEL_QUEUED: &str = concat!(
    "update run set status = 'cancelled', cancel_requested_at_ms = $2, finished_at_ms = $2 \
     where id = $1 and status = 'queued' returning ",
    run_columns!()
);

async fn cancel_queued(tx: &mut Tx<'_>, id: &RunId) -> Result<Run, StoreError> {
    // An attempt that went back to the queue may have left calls open.
    usage::settle_open(tx, id.as_str()).await?;
    let row = sql::query(CANCEL_QUEUED).bind(id.as_str()).bind(tx.now_ms).fetch_one(&mut *tx.db).await?;
    let run = rows::run(&row)?;
    events::append_end(tx, &run.session, id, &Ended::of(&run)).await?;
    tx.wake(Topic::Run(id.clone()));
    tx.wake(Topic::Queue);
    Ok(run)
}

const CANCEL_RUNNING: &str = concat!(
    "update run set cancel_requested_at_ms = $2 where id = $1 and status = 'running' returning ",
    run_columns!()
);

async fn cancel_running(tx: &mut Tx<'_>, id: &RunId) -> Result<Run, StoreError> {
    let row = sql::query(CANCEL_RUNNING).bind(id.as_str()).bind(tx.now_ms).fetch_one(&mut *tx.db).await?;
    let run = rows::run(&row)?;
    stop(tx, &run, StopReason::Cancel).await?;
    tx.wake(Topic::Run(id.clone()));
    Ok(run)
}

/// The session's next number for an input, unless the run was given the same one before.
pub(crate) const NEXT_INPUT: &str = "update session set last_input_seq = last_input_seq + 1 \
     where id = $1 and not exists (select 1 from input where run_id = $2 and body = $3) returning last_input_seq";

pub(crate) const INSERT_INPUT: &str = "insert into input (session_id, seq, project_id, run_id, created_at_ms, body) \
     values ($1, $2, $3, $4, $5, $6)";

const STOP_REQUESTED: &str =
    "update run set stop_requested_at_ms = coalesce(stop_requested_at_ms, $2) where id = $1";

/// Tells the sandbox of a running run to stop, once for each reason; `false` if it was told before.
pub(crate) async fn stop(tx: &mut Tx<'_>, run: &Run, reason: StopReason) -> Result<bool, StoreError> {
    let body = document("input.body", &InputBody::Stop { reason })?;
    let seq: Option<i64> = sql::query_scalar(NEXT_INPUT)
        .bind(run.session.as_str())
        .bind(run.id.as_str())
        .bind(body.as_str())
        .fetch_optional(&mut *tx.db)
        .await?;
    let Some(seq) = seq else { return Ok(false) };
    sql::query(INSERT_INPUT)
        .bind(run.session.as_str())
        .bind(seq)
        .bind(run.project.as_str())
        .bind(run.id.as_str())
        .bind(tx.now_ms)
        .bind(body)
        .execute(&mut *tx.db)
        .await?;
    sql::query(STOP_REQUESTED).bind(run.id.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
    let event = NewEvent::new(EventKind::RunStopRequested, &json!({ "reason": reason }));
    events::append(tx, &run.session, &run.id, &[event]).await?;
    tx.wake(Topic::Run(run.id.clone()));
    if let Some(sandbox) = &run.sandbox {
        tx.wake(Topic::Sandbox(sandbox.clone()));
    }
    Ok(true)
}
