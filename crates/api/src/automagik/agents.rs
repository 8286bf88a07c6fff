//! The agent as one of upstream's agents: listed, described, and run without a word about workflows.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::id::RunId;
use caisson_domain::principal::Principal;
use caisson_domain::run::{Run, RunStatus};
use caisson_store::Asked;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Duration;
use utoipa::ToSchema;

use super::body::{Sent, number, text};
use super::refusal::{Refusal, RefusedBody};
use super::run::{Shown, find, wait};
use super::start::{NAME_CHARS, StartedRun, Wish, accept, start};
use super::undone::Undone;
use super::{Call, names, run};
use crate::auth::{Reader, Writer};
use crate::conversation::{self, Bounds};
use crate::extract::Fields;
use crate::problem::Faults;
use crate::runs::CreateRun;
use crate::state::App;

/// How long a caller waits for an agent at most.
const ANSWER_WAIT: Duration = Duration::from_mins(10);
/// What is told of an agent's tools.
const TOLD: Bounds =
    Bounds { items: 500, bytes: 4 * 1024 * 1024, events: 5_000, read_bytes: 16 * 1024 * 1024 };
/// For people.
const DESCRIPTION: &str = "Claude Code in a sealed sandbox, on a repository and a branch of its own";

/// An agent in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ListedAgent {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct DescribedAgent {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The model; null: each workflow says.
    pub model: Option<String>,
    /// For people.
    pub description: String,
    /// Its version; null when it is not installed.
    pub version: Option<String>,
    /// Always empty.
    #[schema(value_type = Object)]
    pub config: Value,
    /// Whether it is installed.
    pub active: bool,
    /// Null: each workflow has its own.
    pub system_prompt: Option<String>,
    /// Always null.
    pub error_message: Option<String>,
    /// Always null.
    pub error_webhook_url: Option<String>,
    /// Null: it was not made by anybody.
    pub created_at: Option<String>,
    /// The same.
    pub updated_at: Option<String>,
}

/// A task for the agent, or, with `workflow_name` and `message`, one for a workflow. Other fields are ignored, which the answer says of
/// those that ask for anything.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RunAgent {
    /// The task.
    pub message_content: Option<String>,
    /// The workflow to follow, with `message` for the task.
    pub workflow_name: Option<String>,
    /// The task of `workflow_name`.
    pub message: Option<String>,
    /// The session to go on with, if there is such a one.
    pub session_id: Option<String>,
    /// Whether to begin a new session whatever `session_id` says.
    pub force_new_session: Option<bool>,
    /// A name for the session.
    #[schema(max_length = 500)]
    pub session_name: Option<String>,
    /// On whose behalf: a text or a number.
    #[schema(value_type = Option<Value>)]
    pub user_id: Option<Value>,
    /// Most turns.
    #[schema(minimum = 1, maximum = 200)]
    pub max_turns: Option<u32>,
}

/// What an agent answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct AgentAnswer {
    /// Its last words, or why it failed.
    pub message: String,
    /// The session, to go on with.
    pub session_id: String,
    /// Whether it did what it was asked to.
    pub success: bool,
    /// Tools that it called.
    #[schema(value_type = Vec<Object>)]
    pub tool_calls: Vec<Value>,
    /// What they gave back.
    #[schema(value_type = Vec<Object>)]
    pub tool_outputs: Vec<Value>,
    /// On whose behalf.
    pub user_id: Option<String>,
    /// Tokens and cost.
    #[schema(value_type = Object)]
    pub usage: Value,
    /// The run.
    pub run_id: String,
    /// What of the request was not done, in sentences; left out if there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_done: Option<String>,
}

/// A run that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct AgentStarted {
    /// The run.
    pub run_id: String,
    /// `pending`; of a request that was repeated, where its run stands.
    pub status: String,
    /// In a sentence, and what of the request was not done.
    pub message: String,
    /// The agent.
    pub agent_name: String,
    /// The session.
    pub session_id: String,
}

/// Where a run of the agent stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct AgentRunStatus {
    /// The run.
    pub run_id: String,
    /// Where it stands.
    pub status: String,
    /// The agent.
    pub agent_name: String,
    /// When it was accepted.
    pub created_at: String,
    /// When it was started.
    pub started_at: Option<String>,
    /// When it ended.
    pub completed_at: Option<String>,
    /// The agent's last words.
    pub result: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Turns and phase.
    #[schema(value_type = Object)]
    pub progress: Value,
    /// The session.
    pub session_id: String,
}

/// List agents
#[utoipa::path(
    get, path = "/api/v1/agents", tag = "automagik", operation_id = "automagik_list_agents",
    responses((status = 200, description = "The agents", body = Vec<ListedAgent>)),
)]
pub(crate) async fn list_agents(_: Reader) -> Json<Vec<ListedAgent>> {
    listed()
}

/// List agents, as early clients do
#[utoipa::path(
    get, path = "/api/v1/agent/list", tag = "automagik", operation_id = "automagik_list_agents_early",
    responses((status = 200, description = "The agents", body = Vec<ListedAgent>)),
)]
pub(crate) async fn list_agents_early(_: Reader) -> Json<Vec<ListedAgent>> {
    listed()
}

fn listed() -> Json<Vec<ListedAgent>> {
    let (id, name) = (names::AGENT_NUMBER, names::AGENT.to_owned());
    Json(vec![ListedAgent { id, name, description: DESCRIPTION.to_owned() }])
}

/// Get an agent
#[utoipa::path(
    get, path = "/api/v1/agent/{id}", tag = "automagik", operation_id = "automagik_get_agent",
    params(("id" = String, Path, description = "Its name or number")),
    responses((status = 200, description = "The agent", body = DescribedAgent)),
)]
pub(crate) async fn get_agent(
    State(app): State<App>,
    _: Reader,
    Call { id, .. }: Call,
) -> Result<Json<DescribedAgent>, Refusal> {
    check_agent(&id)?;
    let version = app.config().agent.version.clone();
    Ok(Json(DescribedAgent {
        id: names::AGENT_NUMBER,
        name: names::AGENT.to_owned(),
        kind: "claude_code".to_owned(),
        model: None,
        description: DESCRIPTION.to_owned(),
        active: version.is_some(),
        version,
        config: json!({}),
        system_prompt: None,
        error_message: None,
        error_webhook_url: None,
        created_at: None,
        updated_at: None,
    }))
}

fn check_agent(id: &str) -> Result<(), Refusal> {
    if names::is_agent(id) {
        return Ok(());
    }
    let id: String = id.chars().take(64).collect();
    Err(Refusal::not_found("unknown_agent", format!("Agent {} not found", id.escape_debug())))
}

/// Run the agent, or start a workflow
///
/// With `message_content` it answers when the run has ended, after ten minutes at most; the run goes on if the caller does
/// not wait. With `workflow_name` it starts that workflow and answers at once.
#[utoipa::path(
    post, path = "/api/v1/agent/{id}/run", tag = "automagik", operation_id = "automagik_run_agent",
    request_body = RunAgent,
    params(("id" = String, Path, description = "The agent's name or number")),
    responses(
        (status = 200, description = "What it answered, or the run that was started", content(
            (AgentAnswer = "application/json"), (StartedRun = "application/json"),
        )),
        (status = 504, description = "The run goes on; ask for its status", body = RefusedBody),
    ),
)]
pub(crate) async fn run_agent(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, query, headers, .. }: Call,
    sent: Sent,
) -> Result<Response, Refusal> {
    check_agent(&id)?;
    let Sent { mut fields, mark } = sent;
    let mut faults = Faults::default();
    if let Some(workflow) = fields.take::<String>("workflow_name", &mut faults) {
        let sent = Sent { fields, mark };
        return Ok(start(&app, caller, dialect, (&workflow, query, &headers, sent)).await?.into_response());
    }
    let (run, undone) = begin(&app, &caller, (fields, faults), (&headers, &mark)).await?;
    let shown = wait(&app, &caller, &run.id, ANSWER_WAIT).await?;
    if !shown.run.status.is_final() {
        let detail = format!("The run goes on; ask for /api/v1/run/{}/status", run.id);
        return Err(Refusal::Told { status: StatusCode::GATEWAY_TIMEOUT, code: "run_goes_on", detail });
    }
    let answer = answer(&app, &caller, &shown).await?;
    Ok(Json(AgentAnswer { not_done: undone.alone(), ..answer }).into_response())
}

/// Run the agent without waiting for it
#[utoipa::path(
    post, path = "/api/v1/agent/{id}/run/async", tag = "automagik", operation_id = "automagik_run_agent_async",
    request_body = RunAgent,
    params(("id" = String, Path, description = "The agent's name or number")),
    responses((status = 200, description = "The run that was started", body = AgentStarted)),
)]
pub(crate) async fn run_agent_async(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, headers, .. }: Call,
    sent: Sent,
) -> Result<Json<AgentStarted>, Refusal> {
    check_agent(&id)?;
    let (run, undone) =
        begin(&app, &caller, (sent.fields, Faults::default()), (&headers, &sent.mark)).await?;
    let stop = if undone.behind().is_empty() { "" } else { "." };
    Ok(Json(AgentStarted {
        run_id: run.id.to_string(),
        status: dialect.status(run.status).to_owned(),
        message: format!("Agent {} started{stop}{}", names::AGENT, undone.behind()),
        agent_name: names::AGENT.to_owned(),
        session_id: run.session.to_string(),
    }))
}

/// Reads a task for the agent and queues it.
async fn begin(
    app: &App,
    caller: &Principal,
    (mut fields, mut faults): (Fields, Faults),
    sent: (&HeaderMap, &str),
) -> Result<(Run, Undone), Refusal> {
    let prompt: String = fields.require("message_content", &mut faults).unwrap_or_default();
    if prompt.trim().is_empty() && !faults.mention("message_content") {
        faults.add("message_content", "string_too_short", "it is blank; say what the agent should do");
    }
    let max_turns = number(&mut fields, "max_turns", &(1..=200), &mut faults);
    let session: Option<String> = fields.take("session_id", &mut faults);
    let new_session = fields.take("force_new_session", &mut faults).unwrap_or(false);
    let asked = Asked {
        workflow_name: String::new(),
        session_name: text(&mut fields, "session_name", NAME_CHARS, &mut faults),
        user: user(&mut fields, &mut faults),
    };
    if !faults.is_empty() {
        return Err(Refusal::body(faults));
    }
    let mut workflow = names::default_workflow(app.store(), caller).await?;
    let mut session = session.as_deref().filter(|_| !new_session).and_then(run::session_id);
    if let Some(id) = &session {
        match app.store().session(&caller.project, id).await? {
            Some(found) => workflow = found.workflow,
            // These clients make up ids of sessions that are to be.
            None => session = None,
        }
    }
    let asked = Asked { workflow_name: workflow.clone(), ..asked };
    let undone = Undone::of(fields.left(), session.is_some());
    let request = CreateRun { workflow, prompt, max_turns, ..CreateRun::default() };
    Ok((accept(app, caller.clone(), Wish::new(request, asked, session), sent).await?.run, undone))
}

fn user(fields: &mut Fields, faults: &mut Faults) -> Option<String> {
    match fields.take_value("user_id")? {
        Value::Null => None,
        Value::String(text) if text.chars().count() <= NAME_CHARS && !text.contains('\0') => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::String(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            let message = format!("it is neither a text of at most {NAME_CHARS} characters nor a number");
            faults.add("user_id", "wrong_type", message);
            None
        }
    }
}

async fn answer(app: &App, caller: &Principal, shown: &Shown) -> Result<AgentAnswer, Refusal> {
    let run = &shown.run;
    let (tool_calls, tool_outputs) = tools(app, caller, &run.id, run).await?;
    let message = run.result.clone().unwrap_or_else(|| shown.sentence());
    Ok(AgentAnswer {
        message,
        session_id: run.session.to_string(),
        success: run.status == RunStatus::Succeeded,
        tool_calls,
        tool_outputs,
        user_id: shown.user(),
        usage: json!({
            "input_tokens": shown.input_tokens(), "output_tokens": run.usage.tokens.output,
            "cache_creation_tokens": shown.cache_created(), "cache_read_tokens": run.usage.tokens.cache_read,
            "total_tokens": shown.total_tokens(), "cost_usd": shown.cost_usd(), "request_count": run.usage.calls,
        }),
        run_id: run.id.to_string(),
        not_done: None,
    })
}

/// What the agent called in this run, and what that gave back.
async fn tools(
    app: &App,
    caller: &Principal,
    id: &RunId,
    run: &Run,
) -> Result<(Vec<Value>, Vec<Value>), Refusal> {
    let first = app.store().events(id, 0, 1).await?;
    let before = first.first().map_or(0, |event| event.seq - 1);
    let part = conversation::read(app, (&caller.project, &run.session), before, TOLD).await?;
    let of_run = part.items.into_iter().filter(|message| message.run_id == *id);
    let (mut calls, mut outputs) = (Vec::new(), Vec::new());
    for message in of_run {
        calls.extend(message.tool_calls.iter().map(super::messages::call));
        outputs.extend(message.tool_results.iter().map(super::messages::output));
    }
    Ok((calls, outputs))
}

/// Get where a run of the agent stands
#[utoipa::path(
    get, path = "/api/v1/run/{id}/status", tag = "automagik", operation_id = "automagik_agent_run_status",
    params(("id" = String, Path, description = "The run's id, or a session's")),
    responses((status = 200, description = "Where it stands", body = AgentRunStatus)),
)]
pub(crate) async fn agent_run_status(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, id, .. }: Call,
) -> Result<Json<AgentRunStatus>, Refusal> {
    let shown = find(app.store(), &caller, &id).await?;
    let run = &shown.run;
    Ok(Json(AgentRunStatus {
        run_id: run.id.to_string(),
        status: dialect.status(run.status).to_owned(),
        agent_name: names::AGENT.to_owned(),
        created_at: dialect.time(run.created_at_ms),
        started_at: run.started_at_ms.map(|at| dialect.time(at)),
        completed_at: run.finished_at_ms.map(|at| dialect.time(at)),
        result: run.result.clone(),
        error: shown.error(),
        progress: json!({ "turns": shown.turns(), "max_turns": shown.max_turns(), "phase": run.phase }),
        session_id: run.session.to_string(),
    }))
}
