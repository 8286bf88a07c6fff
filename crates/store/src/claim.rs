//! Claiming: which run starts next, and whether one may.
//!
//! A claim is one transaction under the store's write lock: caps, branch, session and turns are looked at and changed with
//! nobody between, over all servers. Nothing of it is kept in memory. Why turns are taken this way: docs/adr/0016.

use caisson_domain::id::ServerId;
use caisson_domain::limits::{LEASE_MS, PROJECTS};
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
/// whose agent has worked on another server waits for that one, until it is lost ($7): its workspace is there.
pub(crate) const CLAIM: &str = concat!(
    "update run set status = 'running', phase = 'prepare', lease_epoch = lease_epoch + 1, attempt = attempt + 1, \
     lease_expires_at_ms = $2, home_server_id = $1, started_at_ms = coalesce(started_at_ms, $3), \
     model_credential_id = $6 \
     where status = 'queued' and id = (select waiting.id from run as waiting \
       where waiting.project_id = $4 and waiting.status = 'queued' and waiting.not_before_ms <= $3 \
       and not exists (select 1 from run as live where live.status = 'running' \
         and live.session_id = waiting.session_id) \
       and not exists (select 1 from run as live where live.status = 'running' \
         and live.repository_key = waiting.repository_key and live.branch = waiting.branch) \
       and (waiting.repository_key is null or $5 > (select count(*) from run as live \
         where live.status = 'running' and live.repository_key = waiting.repository_key)) \
       and not exists (select 1 from attempt as begun, server as home where begun.session_id = waiting.session_id \
         and begun.agent_started_at_ms is not null and home.id = begun.server_id and home.id <> $1 \
         and home.seen_at_ms > $7 and not exists (select 1 from attempt as later \
           where later.session_id = begun.session_id and later.agent_started_at_ms > begun.agent_started_at_ms)) \
       order by waiting.queue_rank_ms, waiting.id limit 1) returning ",
    run_columns!()
);

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
            let Some(row) =
                next(&mut tx, server, (&self.queue_limits(), self.server_lost_after_ms())).await?
            else {
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
}

/// Moves the next run to `running`, and its project one turn on; a server is lost that was silent for `lost_after_ms`.
async fn next(
    tx: &mut Tx<'_>,
    server: &ServerId,
    (limits, lost_after_ms): (&QueueLimits, i64),
) -> Result<Option<Row>, StoreError> {
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
