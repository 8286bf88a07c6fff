//! Soft limits: once a run has used its share of a budget, its agent is told to wrap up, once for all attempts and servers.

use caisson_domain::budget::{BudgetScope, DAY_MS, SoftBudget, day_of};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ProjectId, RunId, SandboxId, SessionId};
use caisson_domain::protocol::InputBody;
use serde_json::json;

use crate::budgets::LOCK_PROJECT;
use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, document};
use crate::runs::{INSERT_INPUT, NEXT_INPUT};
use crate::{StoreError, Topic, events};

/// What a run that may still be told has used of each budget. `$2` is the day of the call, from `$3` to `$4`: what was spent
/// before the run counts for the day of its first call alone. Sums are made only where there is a budget. A run whose shim is
/// done, or that was told to stop, is told nothing more.
const USED: &str = "select run.id, run.session_id, run.project_id, run.sandbox_id, budget_soft_percent, \
     run.budget_micro_usd as run_budget, run.cost_micro_usd as run_spent, 0 as run_before, \
     case when run.budget_micro_usd is not null then (select cast(sum(come_to_micro_usd) as bigint) from usage \
       where run_id = run.id and state = 'pending') end as run_under_way, \
     project.budget_micro_usd as project_budget, project.cost_micro_usd as project_spent, \
     project_spent_before_micro_usd as project_before, \
     case when project.budget_micro_usd is not null then (select cast(sum(come_to_micro_usd) as bigint) from usage \
       where project_id = project.id and state = 'pending') end as project_under_way, \
     day_budget_micro_usd as day_budget, \
     (select cost_micro_usd from project_day where project_id = project.id and day = $2) as day_spent, \
     case when first_call_day = $2 then day_spent_before_micro_usd else 0 end as day_before, \
     case when day_budget_micro_usd is not null then (select cast(sum(come_to_micro_usd) as bigint) from usage \
       where project_id = project.id and state = 'pending' and begun_at_ms >= $3 and begun_at_ms < $4) end \
       as day_under_way \
     from run join project on project.id = run.project_id where run.id = $1 and status = 'running' \
     and budget_soft_percent < 100 and budget_soft_at_ms is null and outcome is null and stop_requested_at_ms is null \
     and (run.budget_micro_usd is not null or project.budget_micro_usd is not null or day_budget_micro_usd is not null)";

const TOLD: &str = "update run set budget_soft_at_ms = $2 where id = $1 and budget_soft_at_ms is null";

/// Tells the run's agent to wrap up if it has used its share of a budget and was not told before. `begun_at_ms` is when the
/// call began whose cost has grown.
pub(crate) async fn look(tx: &mut Tx<'_>, run: &RunId, begun_at_ms: i64) -> Result<(), StoreError> {
    // Two runs whose replies grow at once must not both miss what they come to together.
    tx.lock_rows(LOCK_PROJECT, run.as_str()).await?;
    let day = day_of(begun_at_ms);
    let row = sql::query(USED)
        .bind(run.as_str())
        .bind(day)
        .bind(day * DAY_MS)
        .bind((day + 1) * DAY_MS)
        .fetch_optional(&mut *tx.db)
        .await?;
    let Some(row) = row else { return Ok(()) };
    match nearest(&row)? {
        Some(soft) => tell(tx, run, &row, &soft).await,
        None => Ok(()),
    }
}

/// Of the budgets whose share is used, the one with the least left.
fn nearest(row: &Row) -> Result<Option<SoftBudget>, StoreError> {
    let columns = Columns::of("run", row)?;
    let number = |name: &str| columns.get::<Option<i64>>(name);
    let percent = columns.number("budget_soft_percent")?;
    let mut nearest: Option<SoftBudget> = None;
    for (scope, [budget, spent, before, under_way]) in [
        (BudgetScope::Run, ["run_budget", "run_spent", "run_before", "run_under_way"]),
        (BudgetScope::Day, ["day_budget", "day_spent", "day_before", "day_under_way"]),
        (BudgetScope::Project, ["project_budget", "project_spent", "project_before", "project_under_way"]),
    ] {
        let Some(budget_micro_usd) = number(budget)? else { continue };
        let soft = SoftBudget {
            scope,
            percent,
            budget_micro_usd,
            before_micro_usd: number(before)?.unwrap_or(0),
            spent_micro_usd: number(spent)?.unwrap_or(0),
            under_way_micro_usd: number(under_way)?.unwrap_or(0),
        };
        if soft.is_reached() && nearest.is_none_or(|other| soft.left_micro_usd() < other.left_micro_usd()) {
            nearest = Some(soft);
        }
    }
    Ok(nearest)
}

async fn tell(tx: &mut Tx<'_>, run: &RunId, row: &Row, soft: &SoftBudget) -> Result<(), StoreError> {
    let columns = Columns::of("run", row)?;
    let session: SessionId = columns.parse("session_id")?;
    let project: ProjectId = columns.parse("project_id")?;
    if sql::query(TOLD).bind(run.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?.rows_affected() != 1 {
        return Ok(());
    }
    let body = document("input.body", &InputBody::Steer { text: soft.wrap_up() })?;
    let seq: Option<i64> = sql::query_scalar(NEXT_INPUT)
        .bind(session.as_str())
        .bind(run.as_str())
        .bind(body.as_str())
        .fetch_optional(&mut *tx.db)
        .await?;
    let Some(seq) = seq else { return Ok(()) };
    sql::query(INSERT_INPUT)
        .bind(session.as_str())
        .bind(seq)
        .bind(project.as_str())
        .bind(run.as_str())
        .bind(tx.now_ms)
        .bind(body)
        .execute(&mut *tx.db)
        .await?;
    events::append(tx, &session, run, &[event(soft)]).await?;
    tx.wake(Topic::Run(run.clone()));
    if columns.get::<Option<String>>("sandbox_id")?.is_some() {
        tx.wake(Topic::Sandbox(columns.parse::<SandboxId>("sandbox_id")?));
    }
    Ok(())
}

fn event(soft: &SoftBudget) -> NewEvent {
    let data = json!({
        "scope": soft.scope,
        "percent": soft.percent,
        "budget_micro_usd": soft.budget_micro_usd,
        "before_micro_usd": soft.before_micro_usd,
        "spent_micro_usd": soft.spent_micro_usd,
        "under_way_micro_usd": soft.under_way_micro_usd,
    });
    NewEvent::new(EventKind::RunBudgetSoft, &data)
}
