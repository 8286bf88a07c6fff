//! Where a run stands, in the shapes of all generations at once: nested as the last one has it, flat as those before.

use axum::Json;
use axum::extract::State;
use caisson_domain::principal::Principal;
use caisson_domain::run::{Run, cut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::progress::Progress;
use super::query::Query;
use super::refusal::Refusal;
use super::run::{Shown, find};
use super::{Call, Dialect, Surface};
use crate::auth::Reader;
use crate::state::App;

/// Longest output that the nested result shows, in bytes.
const OUTPUT_BYTES: usize = 500;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct RunStatusView {
    /// Its id.
    pub run_id: String,
    /// Its session.
    pub session_id: String,
    /// `pending`, `running`, `completed`, `failed` or `killed` (`cancelled` below `/automagik-v2`).
    pub status: String,
    /// The workflow as it was asked for.
    pub workflow_name: String,
    /// The session's name.
    pub session_name: Option<String>,
    /// On whose behalf.
    pub user_id: Option<String>,
    /// The task.
    pub message: String,
    /// When it was accepted.
    pub started_at: String,
    /// When it ended.
    pub completed_at: Option<String>,
    /// Time of its last event.
    pub updated_at: String,
    /// The same.
    pub last_activity: String,
    /// Seconds.
    pub execution_time_seconds: f64,
    /// Seconds.
    pub execution_time: f64,
    /// Seconds.
    pub elapsed_seconds: f64,
    /// Nested, for the last generation.
    pub progress: ProgressView,
    /// Nested, for the last generation.
    pub metrics: MetricsView,
    /// An object below `workflows`; below `agent` the agent's last words, or null.
    pub result: Value,
    /// Model calls so far.
    pub turns: i64,
    /// The same.
    pub current_turn: i64,
    /// The same.
    pub current_turns: i64,
    /// Most turns; 200 for a run without such a bound.
    pub max_turns: u32,
    /// What it is doing.
    pub current_phase: String,
    /// In a sentence.
    pub current_action: String,
    /// In a few words.
    pub progress_indicator: String,
    /// Tools that the agent called.
    pub tools_used: Vec<String>,
    /// How often it called any.
    pub tool_calls: i64,
    /// US dollars.
    pub cost: f64,
    /// All tokens.
    pub tokens: i64,
    /// Percent.
    pub cache_efficiency: f64,
    /// The sandbox.
    pub container_id: Option<String>,
    /// Of the agent's process.
    pub exit_code: Option<i64>,
    /// Commits that were pushed.
    pub git_commits: Vec<String>,
    /// The last commit pushed.
    pub git_sha_end: Option<String>,
    /// Repository, branch and commit.
    pub git_info: Value,
    /// Always null: paths of the server are nobody's business.
    pub workspace_path: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The same.
    pub error_message: Option<String>,
    /// Below `agent`, of a run that has ended: times and kinds of its last thousand events.
    pub logs: Option<String>,
    /// Always null: the session's own id goes on with it.
    pub claude_session_id: Option<String>,
    /// More, for whoever asks with `debug`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<Value>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ProgressView {
    /// Model calls so far.
    pub turns: i64,
    /// Most turns, if there is such a bound.
    pub max_turns: Option<u32>,
    /// What it is doing, told by the tools that it calls.
    pub current_phase: String,
    /// What it did before.
    pub phases_completed: Vec<String>,
    /// Whether it runs.
    pub is_running: bool,
    /// Turns of those that it may take, in percent.
    pub completion_percentage: f64,
}

/// What a run has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct MetricsView {
    /// US dollars, as the gateway counted them.
    pub cost_usd: f64,
    /// Tokens, as the gateway counted them.
    pub tokens: TokensView,
    /// Tools that the agent called.
    pub tools_used: Vec<String>,
    /// Always null: it is not measured.
    pub api_duration_ms: Option<i64>,
    /// Always null: nobody knows what it would mean.
    pub performance_score: Option<f64>,
}

/// Tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct TokensView {
    /// All of them.
    pub total: i64,
    /// Of input that was not cached.
    pub input: i64,
    /// Of output.
    pub output: i64,
    /// Of input written to the cache.
    pub cache_created: i64,
    /// Of input read from the cache.
    pub cache_read: i64,
    /// Percent of the cached input that was read.
    pub cache_efficiency: f64,
}

/// Get where a run stands
///
/// The id of a session stands for its newest run.
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/run/{id}/status", tag = "automagik", operation_id = "automagik_run_status",
    params(
        ("surface" = String, Path, description = "`workflows`, or `agent` for early clients, whose `result` is a text", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
        ("debug" = Option<bool>, Query, description = "Whether to tell more"),
        ("detailed" = Option<bool>, Query, description = "Taken; everything is told anyway"),
        ("enhanced" = Option<bool>, Query, description = "Taken; everything is told anyway"),
    ),
    responses((status = 200, description = "Where it stands", body = RunStatusView)),
)]
pub(crate) async fn run_status(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { surface, dialect, id, query, .. }: Call,
) -> Result<Json<RunStatusView>, Refusal> {
    read(&app, &caller, (surface, dialect), (&id, query)).await
}

/// Get where a run stands, by another name
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/run/{id}/enhanced-status", tag = "automagik", operation_id = "automagik_enhanced_status",
    params(
        ("surface" = String, Path, description = "`workflows`, or `agent` for early clients, whose `result` is a text", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
        ("debug" = Option<bool>, Query, description = "Whether to tell more"),
    ),
    responses((status = 200, description = "Where it stands", body = RunStatusView)),
)]
pub(crate) async fn enhanced_status(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { surface, dialect, id, query, .. }: Call,
) -> Result<Json<RunStatusView>, Refusal> {
    read(&app, &caller, (surface, dialect), (&id, query)).await
}

async fn read(
    app: &App,
    caller: &Principal,
    (surface, dialect): (Surface, Dialect),
    (id, mut query): (&str, Query),
) -> Result<Json<RunStatusView>, Refusal> {
    let debug = query.flag("debug").unwrap_or(false);
    for taken in ["detailed", "enhanced"] {
        query.flag(taken);
    }
    query.finish()?;
    let shown = find(app.store(), caller, id).await?;
    let progress = Progress::read(app, &shown.run.id, dialect).await?;
    let debug = debug.then(|| debugged(&shown, &progress));
    Ok(Json(RunStatusView { debug, ..view(&shown, progress, surface, dialect) }))
}

fn view(shown: &Shown, progress: Progress, surface: Surface, dialect: Dialect) -> RunStatusView {
    let run = &shown.run;
    let status = dialect.status(run.status);
    let (phase, before) = progress.phases(run);
    let updated_at = dialect.time(progress.last_at_ms.unwrap_or(run.created_at_ms));
    let early = surface == Surface::Agent && run.status.is_final();
    let logs = early.then(|| Vec::from(progress.log.clone()).join("\n"));
    let seconds = shown.execution_s();
    RunStatusView {
        run_id: run.id.to_string(),
        session_id: run.session.to_string(),
        status: status.to_owned(),
        workflow_name: shown.workflow_name().to_owned(),
        session_name: shown.session_name(),
        user_id: shown.user(),
        message: run.spec.prompt.clone(),
        started_at: dialect.time(run.created_at_ms),
        completed_at: run.finished_at_ms.map(|at| dialect.time(at)),
        last_activity: updated_at.clone(),
        updated_at,
        execution_time_seconds: seconds,
        execution_time: seconds,
        elapsed_seconds: seconds,
        progress: progress_view(shown, phase, &before),
        metrics: metrics_view(shown, &progress.tools),
        result: result(shown, surface, status),
        turns: shown.turns(),
        current_turn: shown.turns(),
        current_turns: shown.turns(),
        max_turns: shown.max_turns(),
        current_phase: phase.to_owned(),
        current_action: shown.sentence(),
        progress_indicator: format!("Turn {}, {} tool calls", shown.turns(), progress.tool_calls),
        tools_used: progress.tools,
        tool_calls: progress.tool_calls,
        cost: shown.cost_usd(),
        tokens: shown.total_tokens(),
        cache_efficiency: shown.cache_efficiency(),
        container_id: run.sandbox.as_ref().map(ToString::to_string),
        exit_code: progress.exit_code,
        git_commits: run.pushed_commit.iter().cloned().collect(),
        git_sha_end: run.pushed_commit.clone(),
        git_info: git_info(run),
        workspace_path: None,
        error: shown.error(),
        error_message: shown.error(),
        logs,
        claude_session_id: None,
        debug: None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of turns")]
fn progress_view(shown: &Shown, phase: &str, before: &[&str]) -> ProgressView {
    let done = shown.turns() as f64 / f64::from(shown.max_turns());
    let ended = shown.run.status.is_final();
    ProgressView {
        turns: shown.turns(),
        max_turns: shown.run.spec.max_turns,
        current_phase: phase.to_owned(),
        phases_completed: before.iter().map(|phase| (*phase).to_owned()).collect(),
        is_running: shown.run.status == caisson_domain::run::RunStatus::Running,
        completion_percentage: if ended { 100.0 } else { (done * 100.0).round().min(99.0) },
    }
}

fn metrics_view(shown: &Shown, tools: &[String]) -> MetricsView {
    MetricsView {
        cost_usd: shown.cost_usd(),
        tokens: TokensView {
            total: shown.total_tokens(),
            input: shown.input_tokens(),
            output: shown.run.usage.tokens.output,
            cache_created: shown.cache_created(),
            cache_read: shown.run.usage.tokens.cache_read,
            cache_efficiency: shown.cache_efficiency(),
        },
        tools_used: tools.to_vec(),
        api_duration_ms: None,
        performance_score: None,
    }
}

fn git_info(run: &Run) -> Value {
    json!({
        "repository": run.spec.repository.as_ref().map(ToString::to_string),
        "base": run.spec.base.as_ref().map(ToString::to_string),
        "branch": run.spec.branch.as_ref().map(ToString::to_string),
        "base_commit": run.base_commit,
        "commit": run.pushed_commit,
    })
}

fn result(shown: &Shown, surface: Surface, status: &'static str) -> Value {
    let run = &shown.run;
    if surface == Surface::Agent {
        return json!(run.result);
    }
    json!({
        "success": run.status == caisson_domain::run::RunStatus::Succeeded,
        "completion_type": shown.completion_type(status),
        "message": shown.sentence(),
        "final_output": run.result.as_deref().map(|text| cut(text, OUTPUT_BYTES)),
        "files_created": [],
        "files_changed": [],
        "git_commits": run.pushed_commit.iter().collect::<Vec<_>>(),
    })
}

fn debugged(shown: &Shown, progress: &Progress) -> Value {
    let run = &shown.run;
    json!({
        "session_info": {"session_id": run.session, "session_name": shown.session_name(), "user_id": shown.user()},
        "execution_details": {
            "attempt": run.attempt, "phase": run.phase, "waiting": run.waiting, "agent_started": run.agent_started,
            "timeout_s": run.spec.timeout_s, "workflow": run.spec.workflow.name,
        },
        "tool_usage": progress.calls_of,
        "timing_analysis": {
            "created_at_ms": run.created_at_ms, "started_at_ms": run.started_at_ms, "finished_at_ms": run.finished_at_ms,
        },
        "cost_breakdown": {"total_cost_usd": shown.cost_usd(), "estimated_calls": run.usage.estimated_calls},
        "error_analysis": {
            "kind": run.failure.as_ref().map(|failure| failure.kind),
            "retry_can_help": run.failure.as_ref().map(|failure| failure.retry_can_help),
        },
    })
}
