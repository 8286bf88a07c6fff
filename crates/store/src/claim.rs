//! Claiming: which run starts next, and whether one may.
//!
//! A claim is one transaction under the store's write lock: caps, branch, session and turns are looked at and changed with
//! nobody between, over all servers. Nothing of it is kept in memory. Why turns are taken this way: docs/adr/0016.

use caisson_domain::id::ServerId;
use caisson_domain::limits::{LEASE_MS, PROJECTS, SERVER_SILENT_MS};
use caisson_domain::queue::{QueueLimits, Standing};

use crate::database::{Row, Tx, sql};
use crate::queue::{Claimed, start};
use crate::rows::{Columns, run_columns};
use crate::{Store, StoreError, damage, drain};

pub(crate) const RUNNING: &str = "select count(*) from run where status = 'running'";

const AHEAD: &str = "select coalesce(max(turn), 0) from project";

/// Projects that have a run whose time has come. The credential is the one that the gateway would take for a model call
/// now: the newest of the project's own, and else the one of the settings.
pub(crate) const PROJECTS_WAITING: &str = "select project.id, weight, turn, max_running, \
     (select count(*) from run where run.project_id = project.id and run.status = 'running') as running, \
     coalesce((select max(credential.id) from credential where credential.project_id = project.id \
       and credential.kind in ('model_api_key', 'model_oauth')), '') as model_credential_id \
     from project where exists (select 1 from run where run.project_id = project.id and run.status = 'queued' \
       and run.not_before_ms <= $1) order by project.id limit $2";

pub(crate) const RUNNING_WITH: &str =
    "select count(*) from run where status = 'running' and model_credential_id = $1";

/// The first run of a project that may start. A branch is a mutex over all projects, since the repository is one. A session
/// whose agent has worked last on another server, as the first entry of an index tells, waits for that one, until it is lost ($7) and the claimer has witnessed all of its
/// silence: its workspace is there, and whoever was away itself, as when the database was, cannot tell who else was.
///
/// A claim keeps everybody else's from the write lock, and as many runs may wait for one branch as may wait at all. So what runs is read
/// once, which is little, and for each that waits it is only looked up, and all that is looked at is in the index of those that wait.
pub(crate) const CLAIM: &str = concat!(
    "update run set status = 'running', phase = 'prepare', lease_epoch = lease_epoch + 1, attempt = attempt + 1, \
     lease_expires_at_ms = $2, home_server_id = $1, started_at_ms = coalesce(started_at_ms, $3), \
     model_credential_id = $6 \
     where status = 'queued' and id = (select waiting.id from run as waiting \
       where waiting.project_id = $4 and waiting.status = 'queued' and waiting.not_before_ms <= $3 \
       and waiting.session_id not in (select live.session_id from run as live where live.status = 'running') \
       and (waiting.repository_key is null or waiting.branch is null or (waiting.repository_key, waiting.branch) not in \
         (select live.repository_key, live.branch from run as live where live.status = 'running' \
           and live.repository_key is not null and live.branch is not null)) \
       and (waiting.repository_key is null or ($5 > 0 and waiting.repository_key not in \
         (select live.repository_key from run as live where live.status = 'running' and live.repository_key is not null \
           and $5 <= (select count(*) from run as same where same.status = 'running' \
             and same.repository_key = live.repository_key)))) \
       and not exists (select 1 from server as home where home.id = (select begun.server_id from attempt as begun \
           where begun.session_id = waiting.session_id and begun.agent_started_at_ms is not null \
           order by begun.agent_started_at_ms desc limit 1) and home.id <> $1 \
         and (home.seen_at_ms > $7 or not exists (select 1 from server_role as claimer where claimer.server_id = $1 \
           and claimer.seen_at_ms >= $8 and claimer.alive_since_ms <= $7))) \
       order by waiting.queue_rank_ms, waiting.id limit 1) returning ",
    run_columns!()
);

/// Whether a run's time has come and the server may claim. What a branch, a session or a cap holds back is not looked at.
const SOME_WAIT: &str = "select 1 where exists (select 1 from run where status = 'queued' and not_before_ms <= $2) \
     and not exists (select 1 from queue_state where drained_at_ms is not null) \
     and not exists (select 1 from server where id = $1 and drained_at_ms is not null)";

const TAKE_TURN: &str = "update project set turn = $2 where id = $1";

/// A project that has a run whose time has come.
struct Waiting {
    project: String,
    standing: Standing,
    max_running: Option<i64>,
    model_credential: String,
}

impl Waiting {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let columns = Columns::of("project", row)?;
        Ok(Self {
            project: columns.get("id")?,
            standing: Standing {
                weight: columns.get::<i64>("weight")?.max(1),
                running: columns.get("running")?,
                turn: columns.get("turn")?,
            },
            max_running: columns.get("max_running")?,
            model_credential: columns.get("model_credential_id")?,
        })
    }
}

impl Store {
    /// Claims the next run whose session and branch are free and for which every cap has room, with a new epoch, a new
    /// attempt and a lease of [`LEASE_MS`]; `None` if there is none, or if the server is drained. Projects take turns by
    /// their weights; within one, priority and waiting time decide. A run that cannot be read ends as failed on the way,
    /// so that it stops no other one.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if the server is not registered.
    /// # Cancel safety
    /// A dropped call may have claimed the run; [`Store::adopt`] finds it at the next start.
    pub async fn claim(&self, server: &ServerId) -> Result<Option<Claimed>, StoreError> {
        // Bounded: a row that cannot be read has ended before the next one is looked for.
        loop {
            let mut tx = self.begin().await?;
            let rules = Rules { limits: self.queue_limits(), lost_after_ms: self.server_lost_after_ms() };
            let Some(row) = next(&mut tx, server, &rules).await? else {
                tx.rollback().await?;
                return Ok(None);
            };
            tx.mark().await?;
            match start(&mut tx, &row, server).await {
                Ok(claimed) => {
                    tx.commit().await?;
                    return Ok(Some(claimed));
                }
                Err(StoreError::Corrupt { what, source }) => {
                    tx.undo().await?;
                    damage::end_row(&mut tx, &row, (&what, &source)).await?;
                    tx.commit().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a claim of the server's may find something: nothing that is claimed is overlooked, though a claim may find
    /// nothing all the same. It takes no lock: whoever has heard of nothing new asks this before it claims, so that idle
    /// servers keep nobody waiting.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn may_claim(&self, server: &ServerId) -> Result<bool, StoreError> {
        let query = sql::query(SOME_WAIT).bind(server.as_str()).bind(self.now_ms());
        Ok(query.fetch_optional(self.reader()).await?.is_some())
    }
}

/// What bounds a claim.
struct Rules {
    limits: QueueLimits,
    /// A server is lost that was silent for so long.
    lost_after_ms: i64,
}

/// Moves the next run to `running`, and its project one turn on.
async fn next(tx: &mut Tx<'_>, server: &ServerId, rules: &Rules) -> Result<Option<Row>, StoreError> {
    let Rules { limits, lost_after_ms } = rules;
    if drain::is_drained(tx, server).await? {
        return Ok(None);
    }
    if let Some(most) = limits.max_running {
        let running: i64 = sql::query_scalar(RUNNING).fetch_one(&mut *tx.db).await?;
        if running >= most {
            return Ok(None);
        }
    }
    let (waiting, ahead) = in_turn(tx).await?;
    for project in waiting {
        let most = project.max_running.or(limits.max_running_per_project);
        if most.is_some_and(|most| project.standing.running >= most)
            || credential_is_full(tx, &project.model_credential, limits).await?
        {
            continue;
        }
        let row = sql::query(CLAIM)
            .bind(server.as_str())
            .bind(tx.now_ms + LEASE_MS)
            .bind(tx.now_ms)
            .bind(project.project.as_str())
            .bind(limits.max_running_per_repository.unwrap_or(i64::MAX))
            .bind(project.model_credential.as_str())
            .bind(tx.now_ms - lost_after_ms)
            .bind(tx.now_ms - SERVER_SILENT_MS)
            .fetch_optional(&mut *tx.db)
            .await?;
        if row.is_some() {
            sql::query(TAKE_TURN)
                .bind(project.project.as_str())
                .bind(project.standing.turn_after(ahead))
                .execute(&mut *tx.db)
                .await?;
            return Ok(row);
        }
    }
    Ok(None)
}

/// The projects that have something to start, whose turn it is first; and how far the one ahead of all has got.
async fn in_turn(tx: &mut Tx<'_>) -> Result<(Vec<Waiting>, i64), StoreError> {
    let rows = sql::query(PROJECTS_WAITING).bind(tx.now_ms).bind(PROJECTS).fetch_all(&mut *tx.db).await?;
    let mut waiting = rows.iter().map(Waiting::read).collect::<Result<Vec<_>, _>>()?;
    let ahead: i64 = sql::query_scalar(AHEAD).fetch_one(&mut *tx.db).await?;
    // Stable, so equal ones stay in the order of their names.
    waiting.sort_by(|left, right| left.standing.compare(&right.standing, ahead));
    Ok((waiting, ahead))
}

async fn credential_is_full(
    tx: &mut Tx<'_>,
    credential: &str,
    limits: &QueueLimits,
) -> Result<bool, StoreError> {
    let Some(most) = limits.max_running_per_credential else { return Ok(false) };
    let running: i64 = sql::query_scalar(RUNNING_WITH).bind(credential).fetch_one(&mut *tx.db).await?;
    Ok(running >= most)
}
