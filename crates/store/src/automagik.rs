//! What the Automagik-compatible API keeps of a run beside the run, and its pages by number.

use std::sync::Arc;

use caisson_domain::id::{ProjectId, SessionId};
use caisson_domain::run::{Run, RunStatus};

use crate::attachments::Making;
use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, run_columns};
use crate::{CreateRun, NewRun, RepeatWindow, Session, Store, StoreError, rows, sessions};

/// Most rows that a list by page number counts: its total is at most this.
pub const COUNTED_ROWS: i64 = 100_000;
/// Most rows of a list by page number that are read at once, each of which may hold a long prompt.
pub const NUMBERED_ROWS: u32 = 25;

/// The words with which a client of the compatible API asked for a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The workflow as it was called: a name, or an alias.
    pub workflow_name: String,
    /// The session's name for people.
    pub session_name: Option<String>,
    /// For whom; any text.
    pub user: Option<String>,
}

/// A run that a client of the compatible API asks for.
#[derive(Debug, Clone)]
pub struct AskedRun {
    /// The run.
    pub run: NewRun,
    /// The words.
    pub asked: Asked,
    /// The session that it goes on with, of the same project, workflow, repository and branch; none for a new one.
    pub session: Option<SessionId>,
    /// How long its idempotency key is remembered.
    pub window: RepeatWindow,
}

/// A run and the words with which it was asked for; none for a run of the native API.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberedRun {
    /// The run.
    pub run: Run,
    /// The words.
    pub asked: Option<Asked>,
}

/// A session with the words of its newest run.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberedSession {
    /// The session.
    pub session: Session,
    /// The words.
    pub asked: Option<Asked>,
}

/// By what a list of runs is sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunOrder {
    /// When it was created.
    #[default]
    Created,
    /// When it ended; runs that have not come last when the order falls.
    Finished,
    /// How long it has taken.
    Duration,
    /// What it has cost.
    Cost,
}

/// Which way a list goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// The smallest first.
    Rising,
    /// The largest first.
    #[default]
    Falling,
}

/// Which runs a list by page number has. Each field that is set narrows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberedFilter {
    /// Runs that stand there.
    pub status: Option<RunStatus>,
    /// Runs that ended because their time was over.
    pub timed_out: bool,
    /// Runs of that workflow, or asked for by that name.
    pub workflow: Option<String>,
    /// Runs asked for on behalf of that user.
    pub user: Option<String>,
}

macro_rules! numbered_where {
    () => {
        "where project_id = $1 and ($2 is null or status = $2) \
         and ($3 is null or workflow = $3 or exists (select 1 from automagik_run as asked \
           where asked.run_id = run.id and asked.workflow_name = $3)) \
         and ($4 is null or exists (select 1 from automagik_run as asked \
           where asked.run_id = run.id and asked.user_id = $4)) \
         and ($5 = 0 or failure like '{\"kind\":\"timeout\"%') "
    };
}

/// Binds what [`numbered_where`] asks for behind the project.
macro_rules! bound {
    ($query:expr, $filter:expr) => {
        $query
            .bind($filter.status.map(RunStatus::as_str))
            .bind($filter.workflow.as_deref())
            .bind($filter.user.as_deref())
            .bind(i64::from($filter.timed_out))
    };
}

const COUNT: &str =
    concat!("select count(*) from (select 1 from run ", numbered_where!(), "limit $6) as counted");

macro_rules! asked_columns {
    ($run:literal) => {
        concat!(
            "(select asked.workflow_name from automagik_run as asked where asked.run_id = ",
            $run,
            ") as asked_workflow, (select asked.session_name from automagik_run as asked where asked.run_id = ",
            $run,
            ") as asked_session, (select asked.user_id from automagik_run as asked where asked.run_id = ",
            $run,
            ") as asked_user"
        )
    };
}

const PAGE: &str =
    concat!("select ", run_columns!(), ", ", asked_columns!("run.id"), " from run ", numbered_where!());

const ONE: &str = concat!(
    "select ",
    run_columns!(),
    ", ",
    asked_columns!("run.id"),
    " from run where project_id = $1 and id = $2"
);

const COUNT_SESSIONS: &str =
    "select count(*) from (select 1 from session where project_id = $1 limit $2) as counted";

const BY_NAME: &str = "select session_id from automagik_run where project_id = $1 and session_name = $2 \
     order by session_id desc limit 1";

const ASKED_OF_SESSION: &str = "select run_id, workflow_name as asked_workflow, session_name as asked_session, \
     user_id as asked_user from automagik_run where session_id = $1 order by run_id desc limit 1";

const INSERT: &str = "insert into automagik_run (run_id, project_id, session_id, workflow_name, session_name, user_id) \
     values ($1, $2, $3, $4, $5, $6)";

impl Store {
    /// Queues a run like [`Store::create_run`], in a new session or behind the runs of one that is there, and keeps the
    /// words with which it was asked for.
    ///
    /// # Errors
    /// As [`Store::create_run`].
    /// # Cancel safety
    /// As [`Store::create_run`].
    pub async fn create_asked_run(&self, asked: AskedRun) -> Result<CreateRun, StoreError> {
        let AskedRun { run, asked, session, window } = asked;
        let making = Making { session, asked: Some(asked), window, attachments: Vec::new() };
        self.create(run, making).await
    }

    /// The run with the words, if it belongs to the project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn numbered_run(
        &self,
        project: &ProjectId,
        id: &caisson_domain::id::RunId,
    ) -> Result<Option<NumberedRun>, StoreError> {
        let row =
            sql::query(ONE).bind(project.as_str()).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(numbered_run).transpose()
    }

    /// How many runs of the project the filter leaves, at most [`COUNTED_ROWS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn count_runs(&self, project: &ProjectId, filter: &NumberedFilter) -> Result<i64, StoreError> {
        let count = bound!(sql::query_scalar::<i64>(COUNT).bind(project.as_str()), filter);
        Ok(count.bind(COUNTED_ROWS).fetch_one(self.lists()).await?)
    }

    /// The runs behind the first `skip`, at most [`NUMBERED_ROWS`] of them. Runs that are made meanwhile move the others
    /// on, as page numbers have it; runs of equal value come by age.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn numbered_runs(
        &self,
        project: &ProjectId,
        filter: &NumberedFilter,
        (order, direction): (RunOrder, Direction),
        (skip, limit): (i64, u32),
    ) -> Result<Vec<NumberedRun>, StoreError> {
        let text: Arc<str> =
            format!("{PAGE} order by {} limit $6 offset $7", sorted(order, direction)).into();
        let query = bound!(sql::query(sql::Statement::Built(text)).bind(project.as_str()), filter);
        let query = query.bind(limit.min(NUMBERED_ROWS)).bind(skip);
        let query = if order == RunOrder::Duration { query.bind(self.now_ms()) } else { query };
        query.fetch_all(self.lists()).await?.iter().map(numbered_run).collect()
    }

    /// How many sessions the project has, at most [`COUNTED_ROWS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn count_sessions(&self, project: &ProjectId) -> Result<i64, StoreError> {
        let count = sql::query_scalar::<i64>(COUNT_SESSIONS).bind(project.as_str()).bind(COUNTED_ROWS);
        Ok(count.fetch_one(self.lists()).await?)
    }

    /// The project's sessions behind the first `skip`, by age, with the words of their newest run; at most
    /// [`NUMBERED_ROWS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn numbered_sessions(
        &self,
        project: &ProjectId,
        direction: Direction,
        (skip, limit): (i64, u32),
    ) -> Result<Vec<NumberedSession>, StoreError> {
        let text = match direction {
            Direction::Rising => sessions::NUMBERED_RISING,
            Direction::Falling => sessions::NUMBERED_FALLING,
        };
        let rows = sql::query(text)
            .bind(project.as_str())
            .bind(limit.min(NUMBERED_ROWS))
            .bind(skip)
            .fetch_all(self.lists())
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let session = sessions::session(row)?;
            let asked = self.asked_of(&session.id).await?;
            found.push(NumberedSession { session, asked });
        }
        Ok(found)
    }

    /// The newest session of the project that was given this name.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn session_by_name(
        &self,
        project: &ProjectId,
        name: &str,
    ) -> Result<Option<SessionId>, StoreError> {
        let row = sql::query(BY_NAME).bind(project.as_str()).bind(name).fetch_optional(self.reader()).await?;
        row.map(|row| Columns::keyed("automagik_run", &row, "session_id")?.parse("session_id")).transpose()
    }

    /// The words of the session's newest run that has any. Whoever asks has checked that the session is the caller's.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn asked_of(&self, session: &SessionId) -> Result<Option<Asked>, StoreError> {
        let row = sql::query(ASKED_OF_SESSION).bind(session.as_str()).fetch_optional(self.reader()).await?;
        match row {
            Some(row) => asked(&Columns::keyed("automagik_run", &row, "run_id")?),
            None => Ok(None),
        }
    }
}

/// Keeps the words of a run that was just made.
pub(crate) async fn remember(tx: &mut Tx<'_>, run: &Run, asked: &Asked) -> Result<(), StoreError> {
    sql::query(INSERT)
        .bind(run.id.as_str())
        .bind(run.project.as_str())
        .bind(run.session.as_str())
        .bind(asked.workflow_name.as_str())
        .bind(asked.session_name.as_deref())
        .bind(asked.user.as_deref())
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

fn sorted(order: RunOrder, direction: Direction) -> String {
    let way = match direction {
        Direction::Rising => "",
        Direction::Falling => " desc",
    };
    let by = match order {
        RunOrder::Created => return format!("id{way}"),
        RunOrder::Finished => "coalesce(finished_at_ms, 0)",
        RunOrder::Duration => {
            "case when started_at_ms is null then 0 else coalesce(finished_at_ms, $8) - started_at_ms end"
        }
        RunOrder::Cost => "cost_micro_usd",
    };
    format!("{by}{way}, id{way}")
}

fn numbered_run(row: &Row) -> Result<NumberedRun, StoreError> {
    Ok(NumberedRun { run: rows::run(row)?, asked: asked(&Columns::of("run", row)?)? })
}

fn asked(columns: &Columns<'_>) -> Result<Option<Asked>, StoreError> {
    let Some(workflow_name) = columns.get::<Option<String>>("asked_workflow")? else { return Ok(None) };
    Ok(Some(Asked {
        workflow_name,
        session_name: columns.get("asked_session")?,
        user: columns.get("asked_user")?,
    }))
}
