//! Waiting runs: how many may wait, at which place one stands, and about when it starts.

use caisson_domain::id::{ProjectId, RunId};
use caisson_domain::queue::{ESTIMATE_RUNS, ESTIMATE_RUNS_MIN, PLACES_COUNTED, QueueLimits};

use crate::database::sql::Connection;
use crate::database::{Tx, sql};
use crate::{Store, StoreError};

/// Where a waiting run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// How many runs are about to start up to this one, itself included; 1 for the next. What a busy branch or a cap holds
    /// back is counted as well; of each project [`PLACES_COUNTED`] at most.
    pub position: i64,
    /// About when it starts; none if too little is known.
    pub estimate: Option<QueueEstimate>,
}

/// About when a waiting run starts, from what was seen lately: `mean_run_ms × position / running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueEstimate {
    /// In how many seconds.
    pub seconds: i64,
    /// What a run took from its first start to its end, on average, in milliseconds.
    pub mean_run_ms: i64,
    /// The runs that this was seen of, the last that ended: [`ESTIMATE_RUNS_MIN`] to [`ESTIMATE_RUNS`].
    pub runs_measured: i64,
    /// How many run now, which is taken for how many can.
    pub running: i64,
}

/// What bounds the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Queue,
    Project,
}

const STANDS: &str = "select queue_rank_ms, weight from run, project where run.project_id = $1 and run.id = $2 \
     and run.status = 'queued' and run.not_before_ms <= $3 and project.id = run.project_id";

const BEFORE: &str = "select count(*) from (select 1 from run where project_id = $1 and status = 'queued' \
     and not_before_ms <= $2 and (queue_rank_ms < $3 or (queue_rank_ms = $3 and id < $4)) limit $5) as counted";

/// Of each other project, what comes before the n-th run of one with a weight: it has `its weight / weight` as many turns.
const OTHERS: &str = "select cast(coalesce(sum(case when turns < waits then turns else waits end), 0) as bigint) from \
     (select $3 * weight / $4 as turns, \
       (select count(*) from (select 1 from run where run.project_id = project.id and run.status = 'queued' \
         and run.not_before_ms <= $2 limit $5) as counted) as waits from project where id <> $1) as other";

/// Of what waits, which is bounded.
const OLDEST: &str = "select min(created_at_ms) from run where status = 'queued' and not_before_ms <= $1";

const ENDED: &str = "select count(*), coalesce(cast(sum(finished_at_ms - started_at_ms) as bigint), 0) from \
     (select finished_at_ms, started_at_ms from run where finished_at_ms is not null and started_at_ms is not null \
      order by finished_at_ms desc limit $1) as ended";

const RUNNING: &str = "select count(*) from run where status = 'running'";

const QUEUED: &str = "select count(*) from (select 1 from run where status = 'queued' limit $1) as waiting";

const QUEUED_OF: &str = "select count(*) from (select 1 from run where project_id = $1 and status = 'queued' limit $2) as waiting";

const MAX_QUEUED: &str = "select max_queued from project where id = $1";

impl Store {
    /// Where a waiting run of the project stands; `None` if it does not wait, or its time has not come.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn queue_place(
        &self,
        project: &ProjectId,
        run: &RunId,
    ) -> Result<Option<QueuePlace>, StoreError> {
        let now_ms = self.now_ms();
        let mut db = self.reader().acquire().await?;
        let stands: Option<(i64, i64)> = sql::query_as(STANDS)
            .bind(project.as_str())
            .bind(run.as_str())
            .bind(now_ms)
            .fetch_optional(&mut db)
            .await?;
        let Some((rank_ms, weight)) = stands else { return Ok(None) };
        let before: i64 = sql::query_scalar(BEFORE)
            .bind(project.as_str())
            .bind(now_ms)
            .bind(rank_ms)
            .bind(run.as_str())
            .bind(PLACES_COUNTED)
            .fetch_one(&mut db)
            .await?;
        let own = before + 1;
        let others: i64 = sql::query_scalar(OTHERS)
            .bind(project.as_str())
            .bind(now_ms)
            .bind(own)
            .bind(weight.max(1))
            .bind(PLACES_COUNTED)
            .fetch_one(&mut db)
            .await?;
        let position = own + others;
        Ok(Some(QueuePlace { position, estimate: estimate(&mut db, position).await? }))
    }

    /// When the run was made that has waited longest among those whose time has come, Unix ms; none if none waits.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn oldest_waiting_ms(&self) -> Result<Option<i64>, StoreError> {
        Ok(sql::query_scalar(OLDEST).bind(self.now_ms()).fetch_one(self.reader()).await?)
    }

    /// Bounds the queue. Called once at the start; a store that was told nothing has the bounds of [`QueueLimits`]'s
    /// default.
    pub fn bound_queue(&self, limits: QueueLimits) {
        self.shared.queue_limits.set(limits).ok();
    }

    /// What bounds the queue.
    #[must_use]
    pub fn queue_limits(&self) -> QueueLimits {
        self.shared.queue_limits.get().copied().unwrap_or_default()
    }
}

async fn estimate(db: &mut Connection, position: i64) -> Result<Option<QueueEstimate>, StoreError> {
    let running: i64 = sql::query_scalar(RUNNING).fetch_one(&mut *db).await?;
    let ended: Option<(i64, i64)> = sql::query_as(ENDED).bind(ESTIMATE_RUNS).fetch_optional(&mut *db).await?;
    let (runs_measured, total_ms) = ended.unwrap_or_default();
    if running < 1 || runs_measured < ESTIMATE_RUNS_MIN {
        return Ok(None);
    }
    let mean_run_ms = (total_ms / runs_measured).max(0);
    let seconds = mean_run_ms.saturating_mul(position).div_euclid(running.saturating_mul(1_000));
    Ok(Some(QueueEstimate { seconds, mean_run_ms, runs_measured, running }))
}

/// Whether one more run of a project may wait.
pub(crate) async fn full(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    limits: &QueueLimits,
) -> Result<Option<Full>, StoreError> {
    let waiting: i64 = sql::query_scalar(QUEUED).bind(limits.max_queued).fetch_one(&mut *tx.db).await?;
    if waiting >= limits.max_queued {
        return Ok(Some(Full::Queue));
    }
    let own: Option<Option<i64>> =
        sql::query_scalar(MAX_QUEUED).bind(project.as_str()).fetch_optional(&mut *tx.db).await?;
    let Some(most) = own.flatten().or(limits.max_queued_per_project) else { return Ok(None) };
    let waiting: i64 =
        sql::query_scalar(QUEUED_OF).bind(project.as_str()).bind(most).fetch_one(&mut *tx.db).await?;
    Ok((waiting >= most).then_some(Full::Project))
}
