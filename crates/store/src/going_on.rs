//! Sessions that go on and are deleted.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::fork::Older;
use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::protocol::NoteLevel;
use caisson_domain::run::RunSpec;
use serde_json::json;

use crate::database::{Tx, sql};
use crate::rows::Columns;
use crate::{Actor, NewAudit, SandboxState, Store, StoreError, Topic, audit, removal, sandboxes};

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

/// What came of deleting a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteSession {
    /// The project has no such session.
    Unknown,
    /// A run of it is queued or running.
    Busy,
    /// A sandbox of it is still there: one that waited for another run is told to end, others are taken away in a moment, or their
    /// server is away and not lost yet.
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

/// Whether nothing is left of what a session had: no archived conversation, and no workspace on a server that is not forgotten.
/// One that never had either has not expired: no agent has worked in it, and it is no fork. Counts are of few rows, and read by
/// index for each session of a list, where `PostgreSQL` would read all of what `exists` asks for.
macro_rules! expired {
    () => {
        "((select count(*) from transcript where transcript.session_id = session.id) = 0 \
          and (select count(*) from session_files join server on server.id = session_files.server_id \
            where session_files.session_id = session.id and session_files.kind = 'volumes' \
            and session_files.removal_begun_at_ms = 0 and server.forgotten_at_ms is null) = 0 \
          and (forked_from is not null or (select count(*) from attempt where attempt.session_id = session.id \
            and attempt.agent_started_at_ms is not null) > 0))"
    };
}
pub(crate) use expired;

pub(crate) const GO_ON: &str = concat!(
    "select id, coalesce((select run.spec from run where run.session_id = session.id \
       order by run.id desc limit 1), fork_spec) as spec, ",
    expired!(),
    " as expired from session where project_id = $1 and id = $2"
);

pub(crate) const IS_BUSY: &str =
    "select count(*) from run where session_id = $1 and status in ('queued', 'running')";

/// What a session is asked when another run is to go on with it.
const CALL: &str = concat!(
    "select id, ",
    expired!(),
    " as expired, last_seq, fork_older, (select max(run.id) from run where run.session_id = session.id) as last_run \
     from session where project_id = $1 and id = $2"
);

const IN_PROJECT: &str = "select count(*) from session where project_id = $1 and id = $2";

/// A lost server cannot take its sandboxes away, and destroys those that the store does not know when it comes back.
const SANDBOXES_LEFT: &str = "select sandbox.id, case when server.seen_at_ms > $2 or exists (select 1 from server_role \
       where server_role.server_id = server.id and server_role.seen_at_ms > $2) then 1 else 0 end as heard_of \
     from sandbox join server on server.id = sandbox.server_id \
     where sandbox.session_id = $1 and sandbox.state <> 'destroyed' order by sandbox.id";

/// Those that have files of it, whether it had a sandbox there or not.
const SERVERS: &str = "select distinct server_id as id from session_files where session_id = $1 order by 1";

const SANDBOXES_ALIVE: &str =
    "select id from sandbox where session_id = $1 and state in ('creating', 'running') order by id";

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

    /// Removes the session with its runs and everything of them, unless anything of it lives: it is hidden at once, and what it has
    /// many rows of goes step by step, by [`Store::remove_some`] if it is much. What was spent stays in the
    /// project's days and total, and the audit log keeps its records; keys of its requests are remembered for their time. Its files
    /// are for [`Store::files_left`].
    ///
    /// Sandboxes on a server that has been silent for [`Store::server_lost_after_ms`] count as destroyed: when it comes back it
    /// destroys those that it finds by its engine's list, and removes the files.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: hidden or not; the rest is found again.
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
        if !let_go(&mut tx, session, self.server_lost_after_ms()).await? {
            end_sandboxes(&mut tx, session).await?;
            tx.commit().await?;
            return Ok(DeleteSession::SandboxLeft);
        }
        let servers = sql::query(SERVERS).bind(session.as_str()).fetch_all(&mut *tx.db).await?;
        for statement in [LEAVE_VOLUME, LEAVE_ARTIFACTS] {
            sql::query(statement).bind(session.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
        }
        removal::hide(&mut tx, session).await?;
        let record = NewAudit {
            session: Some(session.clone()),
            ..NewAudit::new(project, by, "session.delete", session.as_str())
        };
        audit::write(&mut tx, &record).await?;
        for row in &servers {
            tx.wake(Topic::Server(Columns::of("session_files", row)?.parse("id")?));
        }
        tx.commit().await?;
        self.remove_at_once().await;
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

/// How a session stands to another run.
#[derive(Debug)]
pub(crate) enum Call {
    /// The project has no such session.
    Unknown,
    /// Nothing of it is kept.
    Expired,
    /// It goes on.
    On {
        /// The last of its runs, which the new one comes behind.
        behind: Option<RunId>,
        /// What the first run of a fork has to be told of.
        note: Option<NewEvent>,
    },
}

/// Looks whether the session goes on with another run.
pub(crate) async fn call(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    session: &SessionId,
) -> Result<Call, StoreError> {
    let query = sql::query(CALL).bind(project.as_str()).bind(session.as_str());
    let Some(row) = query.fetch_optional(&mut *tx.db).await? else { return Ok(Call::Unknown) };
    let columns = Columns::of("session", &row)?;
    if columns.flag("expired")? {
        return Ok(Call::Expired);
    }
    let is_first = columns.get::<i64>("last_seq")? == 0;
    let older = columns.parse_optional::<Older>("fork_older")?.filter(|_| is_first);
    let note = older.map(|older| {
        NewEvent::new(EventKind::Note, &json!({ "level": NoteLevel::Warn, "message": older.meaning() }))
    });
    Ok(Call::On { behind: columns.parse_optional("last_run")?, note })
}

/// Tells the sandboxes of a session without a running run to end: they wait for one.
pub(crate) async fn end_sandboxes(tx: &mut Tx<'_>, session: &SessionId) -> Result<(), StoreError> {
    let rows = sql::query(SANDBOXES_ALIVE).bind(session.as_str()).fetch_all(&mut *tx.db).await?;
    for row in &rows {
        let sandbox = Columns::of("sandbox", row)?.parse("id")?;
        sandboxes::advance(tx, &sandbox, SandboxState::Stopping).await?;
    }
    Ok(())
}

/// Lets go of the session's sandboxes on lost servers; `false` if it has one on another.
async fn let_go(tx: &mut Tx<'_>, session: &SessionId, lost_after_ms: i64) -> Result<bool, StoreError> {
    let query = sql::query(SANDBOXES_LEFT).bind(session.as_str()).bind(tx.now_ms - lost_after_ms);
    let rows = query.fetch_all(&mut *tx.db).await?;
    let mut lost = Vec::with_capacity(rows.len());
    for row in &rows {
        let columns = Columns::of("sandbox", row)?;
        if columns.flag("heard_of")? {
            return Ok(false);
        }
        lost.push(columns.parse("id")?);
    }
    for sandbox in &lost {
        sandboxes::advance(tx, sandbox, SandboxState::Destroyed).await?;
    }
    Ok(true)
}

pub(crate) async fn count(
    tx: &mut Tx<'_>,
    statement: &'static str,
    session: &SessionId,
) -> Result<i64, StoreError> {
    Ok(sql::query_scalar(statement).bind(session.as_str()).fetch_one(&mut *tx.db).await?)
}
