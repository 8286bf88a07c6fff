//! Waiting runs: how many may wait, at which place one stands, and about when it starts.

use caisson_domain::id::{ProjectId, RunId};
use caisson_domain::queue::{ESTIMATE_RUNS_MIN, QueueLimits};

use crate::database::{Tx, sql};
use crate::removal::nameable;
use crate::{Store, StoreError};

/// Where a waiting run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// How many runs are about to start up to this one, itself included; 1 for the next. What a busy branch or a cap holds
    /// back is counted as well; of each project [`PLACES_COUNTED`](caisson_domain::queue::PLACES_COUNTED) at most.
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
    /// The runs that this was seen of, the last that ended: [`ESTIMATE_RUNS_MIN`] to [`ESTIMATE_RUNS`](caisson_domain::queue::ESTIMATE_RUNS).
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

/// Where a run stands, all of it seen at one moment: of its own project, what comes before it; of each other one, what
/// comes before the n-th run of one with a weight, which is `its weight / weight` as many turns; and what tells about when it
/// starts. Each count is bounded, and reads an index that holds nothing but what waits, runs, or has ended. The bounds
/// (`PLACES_COUNTED`, `ESTIMATE_RUNS`) stand here as numbers: with parameters PostgreSQL makes a new plan for every call,
/// which takes longer than to follow it.
pub(crate) const PLACE: &str = "with own as materialized (select project.weight, 1 + (select count(*) from (select 1 \
       from run as ahead where ahead.project_id = $1 and ahead.status = 'queued' and ahead.not_before_ms <= $3 \
       and (ahead.queue_rank_ms, ahead.id) < (run.queue_rank_ms, run.id) limit 2000) as counted) as place \
     from run, project where run.project_id = $1 and run.id = $2 and run.status = 'queued' \
       and run.not_before_ms <= $3 and project.id = run.project_id), \
   other as materialized (select own.place * project.weight / own.weight as turns, \
       (select count(*) from (select 1 from run as waiting where waiting.project_id = project.id \
         and waiting.status = 'queued' and waiting.not_before_ms <= $3 limit 2000) as counted) as waits \
     from own, project where project.id <> $1), \
   ended as materialized (select finished_at_ms - started_at_ms as took_ms from run \
     where finished_at_ms is not null and started_at_ms is not null order by finished_at_ms desc limit 20) \
   select place, \
     (select cast(coalesce(sum(case when turns < waits then turns else waits end), 0) as bigint) from other), \
     (select count(*) from run as live where live.status = 'running'), \
     (select count(*) from ended), (select cast(coalesce(sum(took_ms), 0) as bigint) from ended) from own";

/// Of what waits, which is bounded.
pub(crate) const OLDEST: &str =
    "select min(created_at_ms) from run where status = 'queued' and not_before_ms <= $1";

pub(crate) const QUEUED: &str =
    "select count(*) from (select 1 from run where status = 'queued' limit $1) as waiting";

pub(crate) const QUEUED_OF: &str = "select count(*) from (select 1 from run where project_id = $1 and status = 'queued' limit $2) as waiting";

const MAX_QUEUED: &str = "select max_queued from project where id = $1";

/// Whether there is more than one is all that counts.
const PROJECTS_COUNTED: &str =
    concat!("select count(*) from (select 1 from project where ", nameable!(), " limit 2) as counted");

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
        let found: Option<(i64, i64, i64, i64, i64)> = sql::query_as(PLACE)
            .bind(project.as_str())
            .bind(run.as_str())
            .bind(self.now_ms())
            .fetch_optional(self.reader())
            .await?;
        Ok(found.map(|(own, others, running, measured, total_ms)| {
            let position = own + others;
            QueuePlace { position, estimate: estimate(position, running, (measured, total_ms)) }
        }))
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

fn estimate(position: i64, running: i64, (runs_measured, total_ms): (i64, i64)) -> Option<QueueEstimate> {
    if running < 1 || runs_measured < ESTIMATE_RUNS_MIN {
        return None;
    }
    let mean_run_ms = (total_ms / runs_measured).max(0);
    let seconds = mean_run_ms.saturating_mul(position).div_euclid(running.saturating_mul(1_000));
    Some(QueueEstimate { seconds, mean_run_ms, runs_measured, running })
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
    let mut most = own.flatten();
    if most.is_none() {
        let projects: i64 = sql::query_scalar(PROJECTS_COUNTED).fetch_one(&mut *tx.db).await?;
        most = limits.queued_per_project(projects);
    }
    let Some(most) = most else { return Ok(None) };
    let waiting: i64 =
        sql::query_scalar(QUEUED_OF).bind(project.as_str()).bind(most).fetch_one(&mut *tx.db).await?;
    Ok((waiting >= most).then_some(Full::Project))
}
