//! Sessions as the API reads them.

use caisson_domain::fork::Older;
use caisson_domain::git::{BranchName, Repository};
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::run::RunStatus;
use caisson_domain::usage::UsageTotals;

use crate::database::{Row, sql};
use crate::going_on::expired;
use crate::rows::Columns;
use crate::{Store, StoreError};

/// A session as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The tenant.
    pub project: ProjectId,
    /// The workflow its runs follow.
    pub workflow: String,
    /// The repository its workspace holds.
    pub repository: Option<Repository>,
    /// The branch its runs work on.
    pub branch: Option<BranchName>,
    /// How many runs it has.
    pub runs: i64,
    /// Its newest run.
    pub last_run: Option<RunId>,
    /// Where the newest run stands.
    pub last_status: Option<RunStatus>,
    /// Tokens and cost of all its runs.
    pub usage: UsageTotals,
    /// Unix ms.
    pub created_at_ms: i64,
    /// Time of its last event, Unix ms.
    pub updated_at_ms: i64,
    /// A small number unique to it in this store, from 0: the worker adds it to its uid base.
    pub uid: i64,
    /// Of a fork, the session that it comes from, which may be gone.
    pub forked_from: Option<SessionId>,
    /// Of a fork, what it began with.
    pub fork: Option<ForkOf>,
    /// Whether nothing is kept of it that a run could go on with: neither workspace nor conversation.
    pub expired: bool,
}

/// What a fork began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkOf {
    /// The commit that its files come from; none: its base's last, when its first run starts.
    pub commit: Option<String>,
    /// What of it was older than the other; none: neither.
    pub older: Option<Older>,
}

macro_rules! select_session {
    () => {
        concat!(
            "select ",
            expired!(),
            " as expired, id, number, project_id, workflow, repository, branch, calls, estimated_calls, input_tokens, \
         output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, \
         created_at_ms, updated_at_ms, forked_from, fork_commit, fork_older, \
         (select count(*) from run where run.session_id = session.id) as runs, \
         (select run.id from run where run.session_id = session.id order by run.id desc limit 1) as last_run, \
         (select run.status from run where run.session_id = session.id order by run.id desc limit 1) as last_status \
         from session "
        )
    };
}

pub(crate) const ONE: &str = concat!(select_session!(), "where project_id = $1 and id = $2");

/// Comes behind every id of a session, whose digits end at `f`.
const BEHIND_ALL: &str = "ses_g";

pub(crate) const LIST: &str =
    concat!(select_session!(), "where project_id = $1 and id < $2 order by id desc limit $3");

/// Pages by number, for [`Store::numbered_sessions`].
pub(crate) const NUMBERED_RISING: &str =
    concat!(select_session!(), "where project_id = $1 order by id limit $2 offset $3");
/// The same, newest first.
pub(crate) const NUMBERED_FALLING: &str =
    concat!(select_session!(), "where project_id = $1 order by id desc limit $2 offset $3");

impl Store {
    /// The session, if it belongs to the project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn session(&self, project: &ProjectId, id: &SessionId) -> Result<Option<Session>, StoreError> {
        let row =
            sql::query(ONE).bind(project.as_str()).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(session).transpose()
    }

    /// The project's sessions, newest first, beginning behind `after`; bounded like [`Store::list_runs`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_sessions(
        &self,
        project: &ProjectId,
        after: Option<&SessionId>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let rows = sql::query(LIST)
            .planned_for_its_values()
            .bind(project.as_str())
            .bind(after.map_or(BEHIND_ALL, SessionId::as_str))
            .bind(limit.min(PAGE_ITEMS + 1))
            .fetch_all(self.lists())
            .await?;
        rows.iter().map(session).collect()
    }
}

pub(crate) fn session(row: &Row) -> Result<Session, StoreError> {
    let columns = Columns::of("session", row)?;
    let forked_from = columns.parse_optional("forked_from")?;
    let fork = match &forked_from {
        Some(_) => {
            Some(ForkOf { commit: columns.get("fork_commit")?, older: columns.parse_optional("fork_older")? })
        }
        None => None,
    };
    Ok(Session {
        id: columns.parse("id")?,
        project: columns.parse("project_id")?,
        workflow: columns.get("workflow")?,
        repository: columns.parse_optional("repository")?,
        branch: columns.parse_optional("branch")?,
        runs: columns.get("runs")?,
        last_run: columns.parse_optional("last_run")?,
        last_status: columns.parse_optional("last_status")?,
        usage: columns.usage()?,
        created_at_ms: columns.get("created_at_ms")?,
        updated_at_ms: columns.get("updated_at_ms")?,
        uid: uid_offset(columns.get("number")?),
        forked_from,
        fork,
        expired: columns.flag("expired")?,
    })
}

/// Sessions are numbered from 1, uids are counted from 0.
pub(crate) const fn uid_offset(number: i64) -> i64 {
    number - 1
}
