//! Messages to a run that goes on.

use axum::Json;
use axum::extract::State;
use caisson_domain::id::RunId;
use caisson_domain::limits;
use caisson_domain::principal::Principal;
use caisson_store::{MessageQueue, SendMessage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::Sent;
use super::refusal::{Refusal, RefusedBody};
use super::run::find;
use super::time::seconds;
use super::{Call, Dialect};
use crate::auth::{Reader, Writer};
use crate::problem::Faults;
use crate::state::App;

/// A message for a run.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct AddMessage {
    /// `user` or `system`; the agent is given both alike.
    #[schema(pattern = "^(user|system)$")]
    pub message_type: Option<String>,
    /// The text.
    #[schema(pattern = r"^[^\x00]*[^\x00\s][^\x00]*$")]
    pub content: String,
}

/// A message for a run, as clients of July 2025 send it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct InjectMessage {
    /// The text, at most 10,000 characters.
    #[schema(max_length = 10000, pattern = r"^[^\x00]*[^\x00\s][^\x00]*$")]
    pub message: String,
}

/// A message that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct AddedMessage {
    /// Always true.
    pub success: bool,
    /// In a sentence.
    pub message: String,
    /// Messages that wait for the agent's start.
    pub queue_size: i64,
    /// The run.
    pub run_id: String,
    /// The messages so far.
    pub queue_stats: MessageQueueStats,
}

/// The messages of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct MessageQueueView {
    /// Always true.
    pub success: bool,
    /// The run.
    pub run_id: String,
    /// The messages so far.
    pub queue_stats: MessageQueueStats,
}

/// The messages of a run in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct MessageQueueStats {
    /// The run.
    pub run_id: String,
    /// Messages that wait for the agent's start; a running agent is given each at once.
    pub current_size: i64,
    /// Messages in all.
    pub total_added: i64,
    /// Messages that do not wait.
    pub total_consumed: i64,
    /// How long the oldest one has waited, in seconds.
    pub oldest_message_age: Option<f64>,
}

impl MessageQueueStats {
    fn new(run: &RunId, queue: MessageQueue, now_ms: i64) -> Self {
        Self {
            run_id: run.to_string(),
            current_size: queue.waiting,
            total_added: queue.added,
            total_consumed: queue.added - queue.waiting,
            oldest_message_age: queue.oldest_waiting_at_ms.map(|at| seconds(now_ms - at)),
        }
    }
}

/// Give a run's agent a message
#[utoipa::path(
    post, path = "/api/v1/{surface}/claude-code/run/{id}/add-message", tag = "automagik", operation_id = "automagik_add_message",
    request_body = AddMessage,
    params(
        ("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
    ),
    responses(
        (status = 200, description = "It is on its way", body = AddedMessage),
        (status = 400, description = "An empty text, another type, or a run that has ended", body = RefusedBody),
    ),
)]
pub(crate) async fn add_message(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, .. }: Call,
    sent: Sent,
) -> Result<Json<AddedMessage>, Refusal> {
    let (mut fields, mut faults) = (sent.fields, Faults::default());
    let kind: Option<String> = fields.take("message_type", &mut faults);
    let content: Option<String> = fields.require("content", &mut faults);
    let Some(content) = content.filter(|_| faults.is_empty()) else { return Err(Refusal::body(faults)) };
    if kind.is_some_and(|kind| !matches!(kind.as_str(), "user" | "system")) {
        return Err(Refusal::bad_request("message_type", "message_type must be 'user' or 'system'"));
    }
    send(&app, &caller, (&id, &content), dialect).await
}

/// Give a run's agent a message, by another name
#[utoipa::path(
    post, path = "/api/v1/{surface}/claude-code/run/{id}/inject-message", tag = "automagik", operation_id = "automagik_inject_message",
    request_body = InjectMessage,
    params(
        ("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
    ),
    responses(
        (status = 200, description = "It is on its way", body = AddedMessage),
        (status = 400, description = "An empty text, or a run that has ended", body = RefusedBody),
    ),
)]
pub(crate) async fn inject_message(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, .. }: Call,
    sent: Sent,
) -> Result<Json<AddedMessage>, Refusal> {
    let (mut fields, mut faults) = (sent.fields, Faults::default());
    let content = super::body::text(&mut fields, "message", 10_000, &mut faults);
    if content.is_none() && faults.is_empty() {
        faults.add("message", "missing", "Field required");
    }
    let Some(content) = content.filter(|_| faults.is_empty()) else { return Err(Refusal::body(faults)) };
    send(&app, &caller, (&id, &content), dialect).await
}

async fn send(
    app: &App,
    caller: &Principal,
    (id, text): (&str, &str),
    dialect: Dialect,
) -> Result<Json<AddedMessage>, Refusal> {
    let shown = find(app.store(), caller, id).await?;
    let bad = |detail: String| Err(Refusal::bad_request("message", detail));
    if text.trim().is_empty() || text.contains('\0') {
        return bad("Message content cannot be empty, or hold a null character".to_owned());
    }
    if text.len() > limits::PROMPT_BYTES {
        return bad(format!("Message content is longer than {} bytes", limits::PROMPT_BYTES));
    }
    let run = shown.run.id;
    match app.store().send_message(&caller.project, &run, text, &caller.key).await? {
        SendMessage::Sent(queue) => Ok(Json(AddedMessage {
            success: true,
            message: "Message added: the agent gets it within its turn".to_owned(),
            queue_size: queue.waiting,
            run_id: run.to_string(),
            queue_stats: MessageQueueStats::new(&run, queue, app.store().now_ms()),
        })),
        SendMessage::Over(run) => {
            let status = dialect.status(run.status);
            bad(format!("Cannot add a message to a run that is {status}, or is ending"))
        }
        SendMessage::Full => bad(format!(
            "The run was given {} messages, or {} wait for its agent to start",
            limits::RUN_MESSAGES,
            limits::RUN_MESSAGES_WAITING
        )),
        SendMessage::Unknown => Err(Refusal::not_found("unknown_run", format!("Run {run} not found"))),
    }
}

/// Get a run's messages in numbers
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/run/{id}/message-queue", tag = "automagik", operation_id = "automagik_message_queue",
    params(
        ("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$"),
        ("id" = String, Path, description = "The run's id, or a session's"),
    ),
    responses((status = 200, description = "The numbers", body = MessageQueueView)),
)]
pub(crate) async fn message_queue(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { id, .. }: Call,
) -> Result<Json<MessageQueueView>, Refusal> {
    let shown = find(app.store(), &caller, &id).await?;
    let found = app.store().message_queue(&caller.project, &shown.run.id).await?;
    let (run, queue) = found.ok_or_else(|| Refusal::not_found("unknown_run", "Run not found"))?;
    let queue_stats = MessageQueueStats::new(&run.id, queue, app.store().now_ms());
    Ok(Json(MessageQueueView { success: true, run_id: run.id.to_string(), queue_stats }))
}
