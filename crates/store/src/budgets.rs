//! Budgets: whether there is room for what a call needs, beside what is spent and what calls under way hold.
//!
//! Everything is decided in the transaction that writes the reservation down, alone with the budgets: under the write lock,
//! or where sessions do not wait for one another under a lock on the project's row.

use caisson_domain::budget::{
    BudgetScope, DAY_MS, OverBudget, PROJECT_BUDGET_MICRO_USD_MAX, ProjectBudgets, day_of,
};
use caisson_domain::id::{ProjectId, RunId};

use crate::database::{Row, Tx, sql};
use crate::rows::Columns;
use crate::{Store, StoreError, Topic, audit};

/// What a project has spent, and what its calls under way hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectSpending {
    /// What may be spent.
    pub budgets: ProjectBudgets,
    /// Spent in all, in micro-USD.
    pub spent_micro_usd: i64,
    /// Spent by calls that began today (UTC), in micro-USD.
    pub spent_today_micro_usd: i64,
    /// Held by calls under way, in micro-USD.
    pub reserved_micro_usd: i64,
}

const BUDGETS: &str = "select id, budget_micro_usd, day_budget_micro_usd, cost_micro_usd, \
     (select cost_micro_usd from project_day where project_id = id and day = $2) as day_cost_micro_usd, \
     (select cast(sum(reserved_micro_usd) as bigint) from usage where project_id = project.id and state = 'pending') \
       as reserved_micro_usd from project where id = $1";

const SET: &str = "update project set budget_micro_usd = $2, day_budget_micro_usd = $3 where id = $1";

impl Store {
    /// What the project may spend and has spent; `None` if there is no such project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn project_spending(&self, project: &ProjectId) -> Result<Option<ProjectSpending>, StoreError> {
        let row = sql::query(BUDGETS)
            .bind(project.as_str())
            .bind(day_of(self.now_ms()))
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(spending).transpose()
    }

    /// Sets the project's budgets, from the next reservation on; `false` if they were so already. Numbers beyond 0 to
    /// [`PROJECT_BUDGET_MICRO_USD_MAX`] are moved to the nearest bound.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn set_budgets(
        &self,
        project: &ProjectId,
        budgets: &ProjectBudgets,
    ) -> Result<bool, StoreError> {
        let bound = |micro: Option<i64>| micro.map(|micro| micro.clamp(0, PROJECT_BUDGET_MICRO_USD_MAX));
        let wanted = ProjectBudgets {
            total_micro_usd: bound(budgets.total_micro_usd),
            day_micro_usd: bound(budgets.day_micro_usd),
        };
        let mut tx = self.begin().await?;
        let row = sql::query(BUDGETS)
            .bind(project.as_str())
            .bind(day_of(tx.now_ms))
            .fetch_optional(&mut *tx.db)
            .await?;
        let row = row.ok_or_else(|| StoreError::missing("project", project.as_str()))?;
        if spending(&row)?.budgets == wanted {
            tx.rollback().await?;
            return Ok(false);
        }
        sql::query(SET)
            .bind(project.as_str())
            .bind(wanted.total_micro_usd)
            .bind(wanted.day_micro_usd)
            .execute(&mut *tx.db)
            .await?;
        audit::record(&mut tx, project, audit::OPERATOR, ("project.budget", project.as_str())).await?;
        tx.wake(Topic::Budget(project.clone()));
        tx.commit().await?;
        Ok(true)
    }
}

fn spending(row: &Row) -> Result<ProjectSpending, StoreError> {
    let columns = Columns::of("project", row)?;
    Ok(ProjectSpending {
        budgets: ProjectBudgets {
            total_micro_usd: columns.get("budget_micro_usd")?,
            day_micro_usd: columns.get("day_budget_micro_usd")?,
        },
        spent_micro_usd: columns.get("cost_micro_usd")?,
        spent_today_micro_usd: columns.get::<Option<i64>>("day_cost_micro_usd")?.unwrap_or(0),
        reserved_micro_usd: columns.get::<Option<i64>>("reserved_micro_usd")?.unwrap_or(0),
    })
}

/// A reservation to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'n> {
    pub(crate) run: &'n RunId,
    /// The call's own row, which does not count as another call; empty for a call that has none yet.
    pub(crate) call: &'n str,
    /// When the call began, Unix ms.
    pub(crate) begun_at_ms: i64,
    pub(crate) micro_usd: i64,
    /// Whether nobody else may hold any of the budgets.
    pub(crate) only_alone: bool,
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Nothing bounds the run.
    Unbounded,
    /// The reservation fits.
    Fits,
    /// It does not.
    Over(OverBudget),
}

/// What there is room for, as columns of a query on one run; `$2` is the call's own row, `$3` its day, from `$4` to `$5`.
/// Each sum is made only where there is a budget to compare it with.
macro_rules! room_columns {
    () => {
        "run.budget_micro_usd as run_budget, run.cost_micro_usd as run_spent, \
         case when run.budget_micro_usd is not null then (select cast(sum(reserved_micro_usd) as bigint) from usage \
           where run_id = run.id and state = 'pending' and id <> $2) end as run_reserved, \
         (select budget_micro_usd from project where project.id = run.project_id) as project_budget, \
         (select cost_micro_usd from project where project.id = run.project_id) as project_spent, \
         case when (select budget_micro_usd from project where project.id = run.project_id) is not null then \
           (select cast(sum(reserved_micro_usd) as bigint) from usage \
           where project_id = run.project_id and state = 'pending' and id <> $2) end as project_reserved, \
         (select day_budget_micro_usd from project where project.id = run.project_id) as day_budget, \
         (select cost_micro_usd from project_day where project_id = run.project_id and day = $3) as day_spent, \
         case when (select day_budget_micro_usd from project where project.id = run.project_id) is not null then \
           (select cast(sum(reserved_micro_usd) as bigint) from usage \
           where project_id = run.project_id and state = 'pending' and id <> $2 \
           and begun_at_ms >= $4 and begun_at_ms < $5) end as day_reserved"
    };
}

const ROOM: &str = concat!(
    "select run.id, run.session_id, ",
    room_columns!(),
    " from run where run.id = $1 and run.status = 'running'"
);

/// Counts the call as begun in the same statement: each one is a wait for whoever calls.
const BEGUN: &str = concat!(
    "update run set calls = calls + 1 where id = $1 and status = 'running' returning run.id, run.session_id, ",
    room_columns!()
);

/// Looks whether a longer reservation fits into every budget there is; none if the run is not running.
pub(crate) async fn room(tx: &mut Tx<'_>, need: Need<'_>) -> Result<Option<Room>, StoreError> {
    let row = look(tx, ROOM, need).await?;
    row.map(|row| judge(&Columns::of("run", &row)?, need)).transpose()
}

/// Counts a call of the run as begun and looks whether its reservation fits; with the run's session. None if the run is not
/// running. Where there is no room, the caller must roll back.
pub(crate) async fn begin(tx: &mut Tx<'_>, need: Need<'_>) -> Result<Option<(String, Room)>, StoreError> {
    let Some(row) = look(tx, BEGUN, need).await? else { return Ok(None) };
    let columns = Columns::of("run", &row)?;
    Ok(Some((columns.get("session_id")?, judge(&columns, need)?)))
}

/// Keeps the budgets that bound the run's project to this transaction, where there are any.
const LOCK_PROJECT: &str = "select 1 from project where id = (select project_id from run where run.id = $1) \
     and (budget_micro_usd is not null or day_budget_micro_usd is not null) for no key update";

async fn look(tx: &mut Tx<'_>, sql: &'static str, need: Need<'_>) -> Result<Option<Row>, StoreError> {
    tx.lock_rows(LOCK_PROJECT, need.run.as_str()).await?;
    let day = day_of(need.begun_at_ms);
    let row = sql::query(sql)
        .bind(need.run.as_str())
        .bind(need.call)
        .bind(day)
        .bind(day * DAY_MS)
        .bind((day + 1) * DAY_MS)
        .fetch_optional(&mut *tx.db)
        .await?;
    Ok(row)
}

fn judge(columns: &Columns<'_>, need: Need<'_>) -> Result<Room, StoreError> {
    let number = |name: &str| columns.get::<Option<i64>>(name);
    let mut room = Room::Unbounded;
    for (scope, [budget, spent, reserved]) in [
        (BudgetScope::Run, ["run_budget", "run_spent", "run_reserved"]),
        (BudgetScope::Day, ["day_budget", "day_spent", "day_reserved"]),
        (BudgetScope::Project, ["project_budget", "project_spent", "project_reserved"]),
    ] {
        let Some(budget_micro_usd) = number(budget)? else { continue };
        let over = OverBudget {
            scope,
            budget_micro_usd,
            spent_micro_usd: number(spent)?.unwrap_or(0),
            reserved_micro_usd: number(reserved)?.unwrap_or(0),
            needed_micro_usd: need.micro_usd,
        };
        let wanted =
            over.spent_micro_usd.saturating_add(over.reserved_micro_usd).saturating_add(need.micro_usd);
        let full = wanted > budget_micro_usd || (need.only_alone && over.reserved_micro_usd > 0);
        room = match room {
            // Of two, the one that waiting does not help is told.
            Room::Over(first) if !full || !first.may_pass() => Room::Over(first),
            _ if full => Room::Over(over),
            Room::Over(_) | Room::Unbounded | Room::Fits => Room::Fits,
        };
    }
    Ok(room)
}

const ADD_TO_PROJECT: &str = "update project set cost_micro_usd = cost_micro_usd + $2 where id = $1";

const ADD_TO_DAY: &str = "insert into project_day (project_id, day, cost_micro_usd) values ($1, $2, $3) \
     on conflict (project_id, day) do update set cost_micro_usd = project_day.cost_micro_usd + excluded.cost_micro_usd";

/// Counts what a call that is over cost. Whoever waits for room looks again.
pub(crate) async fn spend(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    begun_at_ms: i64,
    cost_micro_usd: i64,
) -> Result<(), StoreError> {
    sql::query(ADD_TO_PROJECT).bind(project.as_str()).bind(cost_micro_usd).execute(&mut *tx.db).await?;
    sql::query(ADD_TO_DAY)
        .bind(project.as_str())
        .bind(day_of(begun_at_ms))
        .bind(cost_micro_usd)
        .execute(&mut *tx.db)
        .await?;
    tx.wake(Topic::Budget(project.clone()));
    Ok(())
}
