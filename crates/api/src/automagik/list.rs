//! The list of runs, by page number.

use axum::Json;
use axum::extract::State;
use caisson_domain::principal::Principal;
use caisson_domain::run::{RunStatus, cut};
use caisson_store::{Direction, NUMBERED_ROWS, NumberedFilter, RunOrder};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::query::Page;
use super::refusal::{Refusal, RefusedBody};
use super::run::Shown;
use super::{Call, Dialect};
use crate::auth::Reader;
use crate::runs::LISTED_TEXT_BYTES;
use crate::state::App;

/// Characters of a task that stand for a result that is not there yet.
const TASK_CHARS: usize = 100;
/// Runs of a page when the caller names no number.
const PAGE_RUNS: u32 = 20;
/// What a list can be narrowed to.
const STATUSES: [(&str, (RunStatus, bool)); 7] = [
    ("pending", (RunStatus::Queued, false)),
    ("running", (RunStatus::Running, false)),
    ("completed", (RunStatus::Succeeded, false)),
    ("failed", (RunStatus::Failed, false)),
    ("timeout", (RunStatus::Failed, true)),
    ("killed", (RunStatus::Cancelled, false)),
    ("cancelled", (RunStatus::Cancelled, false)),
];
const ORDERS: [(&str, RunOrder); 4] = [
    ("started_at", RunOrder::Created),
    ("completed_at", RunOrder::Finished),
    ("execution_time", RunOrder::Duration),
    ("total_cost", RunOrder::Cost),
];
const DIRECTIONS: [(&str, Direction); 2] = [("asc", Direction::Rising), ("desc", Direction::Falling)];

/// A page of runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct NumberedRuns {
    /// The runs.
    pub runs: Vec<ListedRun>,
    /// How many runs there are, at most 100,000.
    pub total_count: i64,
    /// The same.
    pub total: i64,
    /// Which page this is.
    pub page: i64,
    /// Items of a page.
    pub page_size: u32,
    /// Whether there is another.
    pub has_next: bool,
    /// The same once more, for the clients that look here.
    pub pagination: Pagination,
}

/// Where a page is in its list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Pagination {
    /// Which page this is.
    pub page: i64,
    /// Items of a page.
    pub page_size: u32,
    /// How many items there are.
    pub total: i64,
    /// How many pages they make.
    pub total_pages: i64,
    /// Whether there is a page behind this one.
    pub has_next: bool,
    /// Whether there is a page before this one.
    pub has_prev: bool,
}

impl Pagination {
    fn new(page: Page, total: i64) -> Self {
        Self {
            page: page.number,
            page_size: page.size,
            total,
            total_pages: page.pages(total),
            has_next: page.has_next(total),
            has_prev: page.number > 1,
        }
    }
}

/// A run in a list; long texts are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ListedRun {
    /// Its id.
    pub run_id: String,
    /// Its session.
    pub session_id: String,
    /// The session's name.
    pub session_name: Option<String>,
    /// The workflow as it was asked for.
    pub workflow_name: String,
    /// Where it stands.
    pub status: String,
    /// The task.
    pub message: String,
    /// On whose behalf.
    pub user_id: Option<String>,
    /// When it was accepted.
    pub started_at: String,
    /// When it ended.
    pub completed_at: Option<String>,
    /// Seconds.
    pub execution_time: f64,
    /// Seconds.
    pub execution_time_seconds: f64,
    /// All tokens.
    pub total_tokens: i64,
    /// All tokens.
    pub tokens: i64,
    /// Tokens of input that was not cached.
    pub input_tokens: i64,
    /// Tokens of output.
    pub output_tokens: i64,
    /// US dollars.
    pub total_cost: f64,
    /// Model calls.
    pub turns: i64,
    /// Null: the run's status tells it.
    pub tool_calls: Option<i64>,
    /// Null: the run's status tells it.
    pub tools_used: Option<Vec<String>>,
    /// The agent's last words, or what it works on.
    pub result: String,
    /// The model asked for.
    pub ai_model: Option<String>,
    /// The repository.
    pub git_repo: Option<String>,
    /// The same.
    pub repository_url: Option<String>,
    /// The branch that its work goes to.
    pub git_branch: Option<String>,
    /// Null: the run's patch tells it.
    pub git_diff_summary: Option<String>,
    /// Always null: paths of the server are nobody's business.
    pub workspace_path: Option<String>,
    /// Always true: a session keeps its workspace.
    pub workspace_persistent: bool,
    /// Always false.
    pub workspace_cleaned_up: bool,
    /// Why it failed.
    pub error_message: Option<String>,
    /// The last commit pushed.
    pub final_commit_hash: Option<String>,
}

impl ListedRun {
    fn new(shown: &Shown, dialect: Dialect) -> Self {
        let run = &shown.run;
        let short = |text: &str| cut(text, LISTED_TEXT_BYTES).to_owned();
        let repository = run.spec.repository.as_ref().map(ToString::to_string);
        let task: String = run.spec.prompt.chars().take(TASK_CHARS).collect();
        Self {
            run_id: run.id.to_string(),
            session_id: run.session.to_string(),
            session_name: shown.session_name(),
            workflow_name: shown.workflow_name().to_owned(),
            status: dialect.status(run.status).to_owned(),
            message: short(&run.spec.prompt),
            user_id: shown.user(),
            started_at: dialect.time(run.created_at_ms),
            completed_at: run.finished_at_ms.map(|at| dialect.time(at)),
            execution_time: shown.execution_s(),
            execution_time_seconds: shown.execution_s(),
            total_tokens: shown.total_tokens(),
            tokens: shown.total_tokens(),
            input_tokens: shown.input_tokens(),
            output_tokens: run.usage.tokens.output,
            total_cost: shown.cost_usd(),
            turns: shown.turns(),
            tool_calls: None,
            tools_used: None,
            result: run.result.as_deref().map_or_else(|| format!("Processing: {task}..."), short),
            ai_model: run.spec.model.clone(),
            git_repo: repository.clone(),
            repository_url: repository,
            git_branch: run.spec.branch.as_ref().map(ToString::to_string),
            git_diff_summary: None,
            workspace_path: None,
            workspace_persistent: true,
            workspace_cleaned_up: false,
            error_message: shown.error().as_deref().map(short),
            final_commit_hash: run.pushed_commit.clone(),
        }
    }
}

/// List runs by page number
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/runs", tag = "automagik", operation_id = "automagik_list_runs",
    params(
        ("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$"),
        ("page" = Option<i64>, Query, description = "From 1", minimum = 1, maximum = 10000),
        ("page_size" = Option<i64>, Query, description = "20 if left out", minimum = 1, maximum = 100),
        ("status" = Option<String>, Query, description = "Only runs that stand there", pattern = "^(pending|running|completed|failed|timeout|killed|cancelled)$"),
        ("workflow_name" = Option<String>, Query, description = "Only runs of that workflow, or asked for by that name"),
        ("user_id" = Option<String>, Query, description = "Only runs on behalf of that user"),
        ("sort_by" = Option<String>, Query, description = "`started_at` if left out", pattern = "^(started_at|completed_at|execution_time|total_cost)$"),
        ("sort_order" = Option<String>, Query, description = "`desc` if left out", pattern = "^(asc|desc)$"),
    ),
    responses(
        (status = 200, description = "A page", body = NumberedRuns),
        (status = 400, description = "A parameter that cannot be used", body = RefusedBody),
    ),
)]
pub(crate) async fn list_runs(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, mut query, .. }: Call,
) -> Result<Json<NumberedRuns>, Refusal> {
    let page = query.page(PAGE_RUNS);
    let status = query.choice("status", &STATUSES);
    let filter = NumberedFilter {
        status: status.map(|(status, _)| status),
        timed_out: status.is_some_and(|(_, timed_out)| timed_out),
        workflow: query.text("workflow_name"),
        user: query.text("user_id"),
    };
    let order = query.choice("sort_by", &ORDERS).unwrap_or_default();
    let direction = query.choice("sort_order", &DIRECTIONS).unwrap_or_default();
    query.finish_plainly()?;
    let runs = read(&app, &caller, (&filter, order, direction), (page, dialect)).await?;
    let total = app.store().count_runs(&caller.project, &filter).await?;
    let pagination = Pagination::new(page, total);
    Ok(Json(NumberedRuns {
        runs,
        total_count: total,
        total,
        page: page.number,
        page_size: page.size,
        has_next: pagination.has_next,
        pagination,
    }))
}

/// Reads one page in short steps, each made small before the next is read.
async fn read(
    app: &App,
    caller: &Principal,
    (filter, order, direction): (&NumberedFilter, RunOrder, Direction),
    (page, dialect): (Page, Dialect),
) -> Result<Vec<ListedRun>, Refusal> {
    let store = app.store();
    let mut runs = Vec::new();
    let mut missing = page.size;
    while missing > 0 {
        let limit = missing.min(NUMBERED_ROWS);
        let skip = page.skip() + i64::from(page.size - missing);
        let found = store.numbered_runs(&caller.project, filter, (order, direction), (skip, limit)).await?;
        let last = found.len() < limit as usize;
        runs.extend(
            found.into_iter().map(|found| ListedRun::new(&Shown::new(found, store.now_ms()), dialect)),
        );
        if last {
            break;
        }
        missing -= limit;
    }
    Ok(runs)
}
