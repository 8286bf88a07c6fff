//! `/v1/budget`: what the runs of the caller's project may spend on the model API, together.

use axum::Json;
use axum::extract::State;
use caisson_domain::budget::{BudgetScope, DAY_MS, PROJECT_BUDGET_MICRO_USD_MAX, day_of};
use caisson_domain::id::ProjectId;
use caisson_store::{Actor, BudgetChange, ChangeBudgets, ProjectSpending, Spending};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::auth::{Administrator, Reader};
use crate::extract::{Fields, JsonObject, NoParams, whole_number};
use crate::problem::{ApiError, BoxError, Faults, Problem};
use crate::state::App;

/// What the runs of a project may spend on the model API, in micro-USD (millionths of a dollar), and have spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetView {
    /// The project.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// In all, for as long as the project exists.
    pub total: BudgetPart,
    /// Today, from midnight to midnight UTC. A call counts for the day in which it began.
    pub day: BudgetPart,
    /// When the day ends, Unix ms.
    pub day_ends_at_ms: i64,
}

/// One budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetPart {
    /// How much may be spent; none: no bound.
    pub budget_micro_usd: Option<i64>,
    /// Whether the server's settings hold it: then it is changed there.
    pub is_setting: bool,
    /// What is spent.
    pub spent_micro_usd: i64,
    /// What calls under way hold of it.
    pub reserved_micro_usd: i64,
    /// What is neither spent nor held, 0 at least; none: no bound.
    pub left_micro_usd: Option<i64>,
}

/// Budgets to be set. One that is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetBudget {
    /// In all, in micro-USD, 0 to 10^15; null: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_000_i64, example = 250_000_000)]
    pub total_micro_usd: Option<i64>,
    /// Each day from midnight to midnight UTC, in micro-USD, 0 to 10^15; null: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_000_i64, example = 20_000_000)]
    pub day_micro_usd: Option<i64>,
}

impl From<Spending> for BudgetPart {
    fn from(spending: Spending) -> Self {
        let Spending { budget_micro_usd, is_setting, spent_micro_usd, reserved_micro_usd } = spending;
        let used = spent_micro_usd.saturating_add(reserved_micro_usd);
        let left_micro_usd = budget_micro_usd.map(|budget| budget.saturating_sub(used).max(0));
        Self { budget_micro_usd, is_setting, spent_micro_usd, reserved_micro_usd, left_micro_usd }
    }
}

/// Get the project's budgets
///
/// What its runs may spend, in all and today, what they have spent, and what their calls under way hold.
#[utoipa::path(
    get, path = "/v1/budget", tag = "budget", operation_id = "get_budget",
    responses((status = 200, description = "The budgets", body = BudgetView)),
)]
pub(crate) async fn get_budget(
    State(app): State<App>,
    Reader(caller): Reader,
    _: NoParams,
) -> Result<Json<BudgetView>, ApiError> {
    let spending = app.store().project_spending(&caller.project).await?;
    view(&app, caller.project, spending)
}

/// Set the project's budgets
///
/// Calls of its runs, also of those that run, have them from the next one on. Needs the scope `admin`. A budget that the
/// server's settings hold is changed there and not here.
#[utoipa::path(
    put, path = "/v1/budget", tag = "budget", operation_id = "set_budget",
    request_body = SetBudget,
    responses(
        (status = 200, description = "The budgets as they are now", body = BudgetView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The server's settings hold the budget", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn set_budget(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
    JsonObject(mut fields): JsonObject,
) -> Result<Json<BudgetView>, ApiError> {
    let mut faults = Faults::default();
    let total = change("total_micro_usd", &mut fields, &mut faults);
    let day = change("day_micro_usd", &mut fields, &mut faults);
    fields.finish(&mut faults);
    if !faults.is_empty() {
        return Err(ApiError::InvalidBudget(faults));
    }
    match app.store().change_budgets(&caller.project, total, day, Actor::Key(caller.key)).await? {
        ChangeBudgets::Held(scope) => Err(held(scope)),
        ChangeBudgets::Done(spending) => view(&app, caller.project, Some(spending)),
    }
}

/// Takes a budget: absent, null or a number.
fn change(name: &'static str, fields: &mut Fields, faults: &mut Faults) -> BudgetChange {
    match fields.take_value(name) {
        None => BudgetChange::Keep,
        Some(Value::Null) => BudgetChange::Unbound,
        Some(value) => {
            let range = 0..=PROJECT_BUDGET_MICRO_USD_MAX;
            let micro = whole_number(&value).filter(|micro| range.contains(micro));
            if micro.is_none() {
                let message = format!(
                    "it is neither null nor a whole number from 0 to {PROJECT_BUDGET_MICRO_USD_MAX}, in micro-USD"
                );
                faults.add(name, "out_of_range", message);
            }
            micro.map_or(BudgetChange::Keep, BudgetChange::Bound)
        }
    }
}

fn held(scope: BudgetScope) -> ApiError {
    let key = if scope == BudgetScope::Day { "day_micro_usd" } else { "project_micro_usd" };
    let detail = format!(
        "nothing was changed: the server's settings hold budget.{key} (CAISSON_BUDGET__{}); change it there and restart the \
         server, or take it out of them, and it is set here",
        key.to_uppercase()
    );
    ApiError::Conflict { code: "budget_in_settings", detail }
}

fn view(
    app: &App,
    project: ProjectId,
    spending: Option<ProjectSpending>,
) -> Result<Json<BudgetView>, ApiError> {
    let missing = || ApiError::internal(BoxError::from("the project of an API key is missing"));
    let spending = spending.ok_or_else(missing)?;
    let day_ends_at_ms = (day_of(app.store().now_ms()) + 1) * DAY_MS;
    let (total, day) = (spending.total().into(), spending.today().into());
    Ok(Json(BudgetView { project, total, day, day_ends_at_ms }))
}
