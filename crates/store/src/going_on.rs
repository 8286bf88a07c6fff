//! Sessions that go on, are forked and are deleted.

use caisson_domain::git::BranchName;
use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::limits::FORKS_WITHOUT_RUN;
use caisson_domain::run::RunSpec;

use crate::database::{Tx, sql};
use crate::retention::DELETE_SESSION;
use crate::rows::{Columns, document};
use crate::{Actor, NewAudit, SandboxState, Store, StoreError, Topic, audit, sandboxes};

/// Most files of deleted sessions listed at once.
pub const REMOVALS_PAGE: u32 = 200;

/// What the next run of a session goes on with.
#[derive(Debug, Clone, PartialEq)]
pub struct GoOn {
    /// The specification of its last run; in a fork without runs, that of the other session's, with branches of its own and
    /// without a prompt.
    pub spec: RunSpec,
    /// Whether neither workspace nor conversation are kept any more.
    pub expired: bool,
}

/// What came of forking a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkSession {
    /// The project has no such session.
    Unknown,
    /// A run of it is queued or running.
    Busy,
    /// No run of it has archived a conversation, or it is not kept any more.
    NoConversation,
    /// It has no repository that the fork could take its files from.
    NoRepository,
    /// Its runs work on that branch.
    SameBranch,
    /// The project has [`FORKS_WITHOUT_RUN`] forks that never had a run.
    TooMany,
    /// There is a new session.
    Forked {
        /// The new one.
        session: SessionId,
    },
}

/// What came of deleting a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteSession {
    /// The project has no such session.
    Unknown,
    /// A run of it is queued or running.
    Busy,
    /// A sandbox of it is still there, which is taken away in a moment; one that waited for another run is told to end.
    SandboxLeft,
    /// It is gone; its files go as soon as the servers that have them come to it.
    Deleted,
}

/// Files of a deleted session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesLeft {
    /// Workspace and home.
    Volume(SessionId),
    /// What was kept for a run.
    Artifacts(RunId),
}

const GO_ON: &str = "select id, coalesce((select run.spec from run where run.session_id = session.id \
       order by run.id desc limit 1), fork_spec) as spec, \
     volume_deleted_at_ms is not null \
       and not exists (select 1 from transcript where transcript.session_id = session.id) as expired \
     from session where project_id = $1 and id = $2";

const IS_BUSY: &str = "select count(*) from run where session_id = $1 and status in ('queued', 'running')";

const PUSHED_LAST: &str = "select pushed_commit from run where session_id = $1 and branch = $2 and pushed_commit is not null \
     order by id desc limit 1";

const HAS_TRANSCRIPT: &str = "select count(*) from transcript where session_id = $1";

/// No index is of forks alone: as many sessions are read as the project has.
const UNUSED_FORKS: &str = "select count(*) from session where project_id = $1 and forked_from is not null \
     and not exists (select 1 from run where run.session_id = session.id)";

const FORK: &str = "insert into session (id, project_id, workflow, repository, branch, conversation, created_at_ms, \
       updated_at_ms, forked_from, fork_spec, fork_commit) \
     select $2, project_id, workflow, repository, $3, conversation, $4, $4, id, $5, $6 from session where id = $1";

const COPY_TRANSCRIPT: &str = "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) \
     select $2, project_id, run_id, size_bytes, sha256, created_at_ms from transcript where session_id = $1";

const COPY_PARTS: &str = "insert into transcript_part (session_id, number, project_id, content) \
     select $2, number, project_id, content from transcript_part where session_id = $1";

/// A session whose volume was removed and which goes on has one again, in time.
const CALL: &str = "update session set volume_deleted_at_ms = null where project_id = $1 and id = $2";

const IN_PROJECT: &str = "select count(*) from session where project_id = $1 and id = $2";

const SANDBOXES_LEFT: &str = "select count(*) from sandbox where session_id = $1 and state <> 'destroyed'";

const SANDBOXES_ALIVE: &str =
    "select id from sandbox where session_id = $1 and state in ('creating', 'running') order by id";

const SERVERS: &str = "select distinct server_id as id from sandbox where session_id = $1 order by 1";

const LEAVE_VOLUME: &str = "insert into removal (server_id, kind, name, project_id, created_at_ms) \
     select server_id, 'volume', session_id, project_id, $2 from session_files where session_id = $1 and kind = 'volumes'";

/// Of every run, whether it has rows of artifacts or not: retention takes the rows before the files are gone on each server.
const LEAVE_ARTIFACTS: &str = "insert into removal (server_id, kind, name, project_id, created_at_ms) \
     select session_files.server_id, 'artifacts', run.id, run.project_id, $2 from run \
     join session_files on session_files.session_id = run.session_id and session_files.kind = 'artifacts' \
     where run.session_id = $1";

const LEFT: &str =
    "select name, kind from removal where server_id = $1 order by created_at_ms, name limit $2";

const REMOVED: &str = "delete from removal where server_id = $1 and kind = $2 and name = $3";

const HOME: &str = "select server_id as id from attempt where session_id = $1 and agent_started_at_ms is not null \
     and run_id <> $2 order by agent_started_at_ms desc limit 1";

impl Store {
    /// What the next run of the session goes on with; none if the project has no such session.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn go_on(&self, project: &ProjectId, session: &SessionId) -> Result<Option<GoOn>, StoreError> {
        let row = sql::query(GO_ON)
            .bind(project.as_str())
            .bind(session.as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::of("session", &row)?;
        Ok(Some(GoOn { spec: columns.json("spec")?, expired: columns.flag("expired")? }))
    }

    /// Makes a session that goes on where `session` is, with its conversation and, from the branch that it has pushed, its files;
    /// its own runs work on `branch`, or on `caisson/<workflow>/<short session id>`. A sandbox of `session` that waits for another run is
    /// told to end.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have made it; asking again makes another one.
    pub async fn fork_session(
        &self,
        project: &ProjectId,
        session: &SessionId,
        branch: Option<&BranchName>,
        by: Actor,
    ) -> Result<ForkSession, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(GO_ON)
            .bind(project.as_str())
            .bind(session.as_str())
            .fetch_optional(&mut *tx.db)
            .await?;
        let Some(row) = row else { return Ok(ForkSession::Unknown) };
        let mut spec: RunSpec = Columns::of("session", &row)?.json("spec")?;
        if count(&mut tx, IS_BUSY, session).await? > 0 {
            return Ok(ForkSession::Busy);
        }
        if count(&mut tx, HAS_TRANSCRIPT, session).await? == 0 {
            return Ok(ForkSession::NoConversation);
        }
        let (Some(_), Some(old)) = (&spec.repository, spec.branch.take()) else {
            return Ok(ForkSession::NoRepository);
        };
        let fork = SessionId::new(tx.now_ms, tx.random());
        let branch = match branch {
            Some(branch) => branch.clone(),
            None => BranchName::try_from(format!("caisson/{}/{}", spec.workflow.name, fork.short()))
                .map_err(|error| StoreError::corrupt("session.branch", error))?,
        };
        if branch == old {
            return Ok(ForkSession::SameBranch);
        }
        let unused: i64 =
            sql::query_scalar(UNUSED_FORKS).bind(project.as_str()).fetch_one(&mut *tx.db).await?;
        if unused >= FORKS_WITHOUT_RUN {
            return Ok(ForkSession::TooMany);
        }
        let pushed: Option<String> = sql::query_scalar(PUSHED_LAST)
            .bind(session.as_str())
            .bind(old.as_str())
            .fetch_optional(&mut *tx.db)
            .await?;
        if pushed.is_some() {
            spec.base = Some(old);
        }
        spec.branch = Some(branch.clone());
        spec.prompt.clear();
        end_sandboxes(&mut tx, session).await?;
        insert_fork(&mut tx, (session, &fork), (&branch, pushed.as_deref()), &spec).await?;
        let record = NewAudit {
            session: Some(session.clone()),
            host: spec.repository.as_ref().map(audit::host_of),
            ref_name: Some(branch.full_ref()),
            ..NewAudit::new(project, by, "session.fork", fork.as_str())
        };
        audit::write(&mut tx, &record).await?;
        tx.commit().await?;
        Ok(ForkSession::Forked { session: fork })
    }

    /// Removes the session with its runs and everything of them, unless anything of it lives. What was spent stays in the
    /// project's days and total, and the audit log keeps its records. Its files are for [`Store::files_left`].
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: removed or not.
    pub async fn delete_session_of(
        &self,
        project: &ProjectId,
        session: &SessionId,
        by: Actor,
    ) -> Result<DeleteSession, StoreError> {
        let mut tx = self.begin().await?;
        let known: i64 = sql::query_scalar(IN_PROJECT)
            .bind(project.as_str())
            .bind(session.as_str())
            .fetch_one(&mut *tx.db)
            .await?;
        if known == 0 {
            return Ok(DeleteSession::Unknown);
        }
        if count(&mut tx, IS_BUSY, session).await? > 0 {
            return Ok(DeleteSession::Busy);
        }
        if count(&mut tx, SANDBOXES_LEFT, session).await? > 0 {
            end_sandboxes(&mut tx, session).await?;
            tx.commit().await?;
            return Ok(DeleteSession::SandboxLeft);
        }
        let servers = sql::query(SERVERS).bind(session.as_str()).fetch_all(&mut *tx.db).await?;
        for statement in [LEAVE_VOLUME, LEAVE_ARTIFACTS] {
            sql::query(statement).bind(session.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
        }
        for statement in DELETE_SESSION {
            sql::query(statement).bind(session.as_str()).execute(&mut *tx.db).await?;
        }
        let record = NewAudit {
            session: Some(session.clone()),
            ..NewAudit::new(project, by, "session.delete", session.as_str())
        };
        audit::write(&mut tx, &record).await?;
        for row in &servers {
            tx.wake(Topic::Server(Columns::of("sandbox", row)?.parse("id")?));
        }
        tx.commit().await?;
        Ok(DeleteSession::Deleted)
    }

    /// Files of deleted sessions that the server has still to remove, oldest first; at most [`REMOVALS_PAGE`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn files_left(&self, server: &ServerId) -> Result<Vec<FilesLeft>, StoreError> {
        let rows =
            sql::query(LEFT).bind(server.as_str()).bind(REMOVALS_PAGE).fetch_all(self.reader()).await?;
        let read = |row| {
            let columns = Columns::keyed("removal", row, "name")?;
            match columns.get::<&str>("kind")? {
                "volume" => Ok(FilesLeft::Volume(columns.parse("name")?)),
                _ => Ok(FilesLeft::Artifacts(columns.parse("name")?)),
            }
        };
        rows.iter().map(read).collect()
    }

    /// Notes that the server has removed them.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn files_removed(&self, server: &ServerId, files: &FilesLeft) -> Result<(), StoreError> {
        let (kind, name) = match files {
            FilesLeft::Volume(session) => ("volume", session.as_str()),
            FilesLeft::Artifacts(run) => ("artifacts", run.as_str()),
        };
        let mut tx = self.begin().await?;
        sql::query(REMOVED).bind(server.as_str()).bind(kind).bind(name).execute(&mut *tx.db).await?;
        tx.commit().await
    }

    /// The server on which an agent has worked last in another run of the session than this one, whose workspace is there; none
    /// before the first.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn session_home(
        &self,
        session: &SessionId,
        but: &RunId,
    ) -> Result<Option<ServerId>, StoreError> {
        let row =
            sql::query(HOME).bind(session.as_str()).bind(but.as_str()).fetch_optional(self.reader()).await?;
        row.map(|row| Columns::of("attempt", &row)?.parse("id")).transpose()
    }
}

/// Has the session go on with another run; `false` if the project has no such session.
pub(crate) async fn call(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    session: &SessionId,
) -> Result<bool, StoreError> {
    let called = sql::query(CALL).bind(project.as_str()).bind(session.as_str()).execute(&mut *tx.db).await?;
    Ok(called.rows_affected() == 1)
}

/// Tells the sandboxes of a session without a running run to end: they wait for one.
async fn end_sandboxes(tx: &mut Tx<'_>, session: &SessionId) -> Result<(), StoreError> {
    let rows = sql::query(SANDBOXES_ALIVE).bind(session.as_str()).fetch_all(&mut *tx.db).await?;
    for row in &rows {
        let sandbox = Columns::of("sandbox", row)?.parse("id")?;
        sandboxes::advance(tx, &sandbox, SandboxState::Stopping).await?;
    }
    Ok(())
}

async fn insert_fork(
    tx: &mut Tx<'_>,
    (session, fork): (&SessionId, &SessionId),
    (branch, pushed): (&BranchName, Option<&str>),
    spec: &RunSpec,
) -> Result<(), StoreError> {
    sql::query(FORK)
        .bind(session.as_str())
        .bind(fork.as_str())
        .bind(branch.as_str())
        .bind(tx.now_ms)
        .bind(document("session.fork_spec", spec)?)
        .bind(pushed)
        .execute(&mut *tx.db)
        .await?;
    for statement in [COPY_TRANSCRIPT, COPY_PARTS] {
        sql::query(statement).bind(session.as_str()).bind(fork.as_str()).execute(&mut *tx.db).await?;
    }
    Ok(())
}

async fn count(tx: &mut Tx<'_>, statement: &'static str, session: &SessionId) -> Result<i64, StoreError> {
    Ok(sql::query_scalar(statement).bind(session.as_str()).fetch_one(&mut *tx.db).await?)
}
