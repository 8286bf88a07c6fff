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
use crate::{Actor, NewAudit, Store, StoreError, Topic, audit};

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
    /// Held by those of them that began today, in micro-USD.
    pub reserved_today_micro_usd: i64,
    /// Whether the settings hold the budget for all of its runs.
    pub total_is_setting: bool,
    /// Whether the settings hold the budget of each day.
    pub day_is_setting: bool,
}

/// One budget of a project, in micro-USD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spending {
    /// What may be spent; none: no bound.
    pub budget_micro_usd: Option<i64>,
    /// Whether the settings hold it.
    pub is_setting: bool,
    /// What is spent.
    pub spent_micro_usd: i64,
    /// What calls under way hold.
    pub reserved_micro_usd: i64,
}

impl ProjectSpending {
    /// In all.
    #[must_use]
    pub const fn total(&self) -> Spending {
        Spending {
            budget_micro_usd: self.budgets.total_micro_usd,
            is_setting: self.total_is_setting,
            spent_micro_usd: self.spent_micro_usd,
            reserved_micro_usd: self.reserved_micro_usd,
        }
    }

    /// Today.
    #[must_use]
    pub const fn today(&self) -> Spending {
        Spending {
            budget_micro_usd: self.budgets.day_micro_usd,
            is_setting: self.day_is_setting,
            spent_micro_usd: self.spent_today_micro_usd,
            reserved_micro_usd: self.reserved_today_micro_usd,
        }
    }
}

/// What becomes of one budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetChange {
    /// It stays.
    Keep,
    /// It bounds nothing any more.
    Unbound,
    /// It is so much, in micro-USD; a number beyond 0 to [`PROJECT_BUDGET_MICRO_USD_MAX`] is moved to the nearest bound.
    Bound(i64),
}

impl BudgetChange {
    fn of(self, current: Option<i64>) -> Option<i64> {
        match self {
            Self::Keep => current,
            Self::Unbound => None,
            Self::Bound(micro) => Some(bounded(micro)),
        }
    }
}

/// What came of changing a project's budgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeBudgets {
    /// They are as wanted.
    Done(ProjectSpending),
    /// The settings hold this one and say something else; nothing is changed.
    Held(BudgetScope),
}

const BUDGETS: &str = "select id, budget_micro_usd, day_budget_micro_usd, cost_micro_usd, \
     budget_is_setting, day_budget_is_setting, \
     (select cost_micro_usd from project_day where project_id = id and day = $2) as day_cost_micro_usd, \
     (select cast(sum(reserved_micro_usd) as bigint) from usage where project_id = project.id and state = 'pending') \
       as reserved_micro_usd, \
     (select cast(sum(reserved_micro_usd) as bigint) from usage where project_id = project.id and state = 'pending' \
       and begun_at_ms >= $2 * $3 and begun_at_ms < ($2 + 1) * $3) as day_reserved_micro_usd from project where id = $1";

const SET: &str = "update project set budget_micro_usd = $2, day_budget_micro_usd = $3, budget_is_setting = $4, \
     day_budget_is_setting = $5 where id = $1";

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
            .bind(DAY_MS)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(spending).transpose()
    }

    /// Sets the budgets that the settings name, from the next reservation on; `false` if they were so already. One that they
    /// do not name stays as the API has set it, and goes if it was the settings' before. Numbers beyond 0 to
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
        let mut tx = self.begin().await?;
        let current = current(&mut tx, project).await?;
        let named = |setting: Option<i64>, was_setting, now: Option<i64>| match setting {
            Some(micro) => Some(bounded(micro)),
            None if was_setting => None,
            None => now,
        };
        let wanted = ProjectSpending {
            budgets: ProjectBudgets {
                total_micro_usd: named(
                    budgets.total_micro_usd,
                    current.total_is_setting,
                    current.budgets.total_micro_usd,
                ),
                day_micro_usd: named(
                    budgets.day_micro_usd,
                    current.day_is_setting,
                    current.budgets.day_micro_usd,
                ),
            },
            total_is_setting: budgets.total_micro_usd.is_some(),
            day_is_setting: budgets.day_micro_usd.is_some(),
            ..current
        };
        if wanted == current {
            tx.rollback().await?;
            return Ok(false);
        }
        write(&mut tx, project, &wanted, Actor::Operator).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Changes budgets for whoever calls the API, from the next reservation on.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such project.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn change_budgets(
        &self,
        project: &ProjectId,
        total: BudgetChange,
        day: BudgetChange,
        by: Actor,
    ) -> Result<ChangeBudgets, StoreError> {
        let mut tx = self.begin().await?;
        let current = current(&mut tx, project).await?;
        let (before, after) = (
            current.budgets,
            ProjectBudgets {
                total_micro_usd: total.of(current.budgets.total_micro_usd),
                day_micro_usd: day.of(current.budgets.day_micro_usd),
            },
        );
        let held = [
            (
                BudgetScope::Project,
                current.total_is_setting && before.total_micro_usd != after.total_micro_usd,
            ),
            (BudgetScope::Day, current.day_is_setting && before.day_micro_usd != after.day_micro_usd),
        ];
        if let Some((scope, _)) = held.into_iter().find(|(_, held)| *held) {
            tx.rollback().await?;
            return Ok(ChangeBudgets::Held(scope));
        }
        let wanted = ProjectSpending { budgets: after, ..current };
        if before == after {
            tx.rollback().await?;
        } else {
            write(&mut tx, project, &wanted, by).await?;
            tx.commit().await?;
        }
        Ok(ChangeBudgets::Done(wanted))
    }
}

fn bounded(micro_usd: i64) -> i64 {
    micro_usd.clamp(0, PROJECT_BUDGET_MICRO_USD_MAX)
}

async fn current(tx: &mut Tx<'_>, project: &ProjectId) -> Result<ProjectSpending, StoreError> {
    let row = sql::query(BUDGETS)
        .bind(project.as_str())
        .bind(day_of(tx.now_ms))
        .bind(DAY_MS)
        .fetch_optional(&mut *tx.db)
        .await?;
    spending(&row.ok_or_else(|| StoreError::missing("project", project.as_str()))?)
}

/// Writes the budgets down, and in the audit log how much they are now.
async fn write(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    wanted: &ProjectSpending,
    by: Actor,
) -> Result<(), StoreError> {
    let ProjectBudgets { total_micro_usd, day_micro_usd } = wanted.budgets;
    sql::query(SET)
        .bind(project.as_str())
        .bind(total_micro_usd)
        .bind(day_micro_usd)
        .bind(i64::from(wanted.total_is_setting))
        .bind(i64::from(wanted.day_is_setting))
        .execute(&mut *tx.db)
        .await?;
    let amount = |micro: Option<i64>| micro.map_or_else(|| "none".to_owned(), |micro| micro.to_string());
    let subject =
        format!("total_micro_usd={} day_micro_usd={}", amount(total_micro_usd), amount(day_micro_usd));
    audit::write(tx, &NewAudit::new(project, by, "project.budget", &subject)).await?;
    tx.wake(Topic::Budget(project.clone()));
    Ok(())
}

fn spending(row: &Row) -> Result<ProjectSpending, StoreError> {
    let columns = Columns::of("project", row)?;
    let sum = |name: &str| Ok::<_, StoreError>(columns.get::<Option<i64>>(name)?.unwrap_or(0));
    Ok(ProjectSpending {
        budgets: ProjectBudgets {
            total_micro_usd: columns.get("budget_micro_usd")?,
            day_micro_usd: columns.get("day_budget_micro_usd")?,
        },
        spent_micro_usd: columns.get("cost_micro_usd")?,
        spent_today_micro_usd: sum("day_cost_micro_usd")?,
        reserved_micro_usd: sum("reserved_micro_usd")?,
        reserved_today_micro_usd: sum("day_reserved_micro_usd")?,
        total_is_setting: columns.flag("budget_is_setting")?,
        day_is_setting: columns.flag("day_budget_is_setting")?,
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

pub(crate) use room_columns;

/// The columns of a pending call.
macro_rules! pending_columns {
    () => {
        "(id, project_id, session_id, run_id, server_id, state, model, input_tokens, output_tokens, cache_read_tokens, \
         cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, reserved_micro_usd)"
    };
}
pub(crate) use pending_columns;

const ROOM: &str = concat!(
    "select run.id, run.session_id, ",
    room_columns!(),
    " from run where run.id = $1 and run.status = 'running'"
);

/// Counts the call as begun in the same statement: each one is a wait for whoever calls. The first one notes what was spent
/// before the run. Once the shim is done with the run none begins, so that whoever ends it finds out about all there are.
const BEGUN: &str = concat!(
    "update run set calls = calls + 1, first_call_day = coalesce(first_call_day, $3), \
     project_spent_before_micro_usd = coalesce(project_spent_before_micro_usd, \
       (select cost_micro_usd from project where project.id = run.project_id)), \
     day_spent_before_micro_usd = coalesce(day_spent_before_micro_usd, \
       (select cost_micro_usd from project_day where project_id = run.project_id and day = $3), 0) \
     where id = $1 and status = 'running' and outcome is null returning run.id, run.session_id, ",
    room_columns!()
);

/// Looks whether a longer reservation fits into every budget there is; none if the run is not running.
pub(crate) async fn room(tx: &mut Tx<'_>, need: Need<'_>) -> Result<Option<Room>, StoreError> {
    let Some(row) = look(tx, ROOM, need).await? else { return Ok(None) };
    let room = judge(&Columns::of("run", &row)?, need)?;
    Ok(Some(who_holds(tx, need.run, room).await?))
}

/// Counts a call of the run as begun and looks whether its reservation fits; with the run's session. None if the run is not
/// running, or has an outcome. Where there is no room, the caller must roll back.
pub(crate) async fn begin(tx: &mut Tx<'_>, need: Need<'_>) -> Result<Option<(String, Room)>, StoreError> {
    let Some(row) = look(tx, BEGUN, need).await? else { return Ok(None) };
    let columns = Columns::of("run", &row)?;
    let (session, room) = (columns.get("session_id")?, judge(&columns, need)?);
    Ok(Some((session, who_holds(tx, need.run, room).await?)))
}

/// Asked only once there is no room, so that calls that fit do not wait for it.
const HOLDERS: &str = "select id, budget_is_setting, day_budget_is_setting from project \
     where id = (select project_id from run where run.id = $1)";

/// Adds whether the settings hold the budget in which there is no room.
async fn who_holds(tx: &mut Tx<'_>, run: &RunId, room: Room) -> Result<Room, StoreError> {
    let Room::Over(over) = room else { return Ok(room) };
    let column = match over.scope {
        BudgetScope::Run => return Ok(room),
        BudgetScope::Project => "budget_is_setting",
        BudgetScope::Day => "day_budget_is_setting",
    };
    let row = sql::query(HOLDERS).bind(run.as_str()).fetch_one(&mut *tx.db).await?;
    Ok(Room::Over(OverBudget { is_setting: Columns::of("project", &row)?.flag(column)?, ..over }))
}

/// Keeps the budgets that bound the run's project to this transaction, where there are any.
pub(crate) const LOCK_PROJECT: &str = "select 1 from project where id = (select project_id from run where run.id = $1) \
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
            is_setting: false,
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
