//! Messages of sessions: read from their events, and so nobody's to change.

use axum::Json;
use axum::extract::State;
use caisson_domain::id::SessionId;
use caisson_domain::input::InputState;
use caisson_domain::principal::Principal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::query::Page;
use super::refusal::{Refusal, RefusedBody};
use super::{Call, Dialect, names, run};
use crate::auth::{Reader, Writer};
use crate::conversation::{self, Bounds, MessageView, Role, ToolCallView, ToolResultView};
use crate::state::App;

/// What is read of a session. Pages by number have to be cut out of the whole.
const READ: Bounds =
    Bounds { items: 5_000, bytes: 16 * 1024 * 1024, events: 20_000, read_bytes: 64 * 1024 * 1024 };
/// Messages of a page when the caller names no number.
const PAGE_ITEMS: u32 = 50;

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct SaidMessage {
    /// Its id.
    pub id: String,
    /// The session.
    pub session_id: String,
    /// `user` or `assistant`; what tools gave back is the assistant's.
    pub role: String,
    /// The text.
    pub content: String,
    /// The same.
    pub text_content: String,
    /// Who speaks for the assistant.
    pub assistant_name: Option<String>,
    /// Always null.
    pub media_contents: Option<Vec<String>>,
    /// Tools that it calls.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_calls: Option<Vec<Value>>,
    /// What they gave back.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_outputs: Option<Vec<Value>>,
    /// Always null.
    pub system_prompt: Option<String>,
    /// When it was said.
    pub created_at: String,
    /// The run.
    pub run_id: String,
}

/// A page of messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct NumberedMessages {
    /// The messages.
    pub messages: Vec<SaidMessage>,
    /// How many were read, at most 5,000.
    pub total: i64,
    /// Which page this is.
    pub page: i64,
    /// Items of a page.
    pub page_size: u32,
    /// How many pages there are.
    pub total_pages: i64,
    /// Whether there is a page behind this one.
    pub has_next: bool,
    /// Whether there is a page before this one.
    pub has_prev: bool,
}

/// A call of a tool, as clients read it.
pub(super) fn call(call: &ToolCallView) -> Value {
    json!({ "tool_call_id": call.id, "tool_name": call.name, "args": call.input })
}

/// What a tool gave back, as clients read it.
pub(super) fn output(result: &ToolResultView) -> Value {
    json!({ "tool_call_id": result.call_id, "content": result.text, "is_error": result.is_error })
}

impl SaidMessage {
    fn new(message: &MessageView, session: &SessionId, dialect: Dialect, hide_tools: bool) -> Option<Self> {
        let content = message.text.clone().unwrap_or_default();
        // It has no word for what was sent and never said.
        if message.state == Some(InputState::Undelivered) || (hide_tools && content.is_empty()) {
            return None;
        }
        let user = message.role == Role::User;
        let shown = |values: Vec<Value>| (!values.is_empty() && !hide_tools).then_some(values);
        Some(Self {
            id: id(session, message.seq),
            session_id: session.to_string(),
            role: if user { "user" } else { "assistant" }.to_owned(),
            text_content: content.clone(),
            content,
            assistant_name: (!user).then(|| names::AGENT.to_owned()),
            media_contents: None,
            tool_calls: shown(message.tool_calls.iter().map(call).collect()),
            tool_outputs: shown(message.tool_results.iter().map(output).collect()),
            system_prompt: None,
            created_at: dialect.time(message.at_ms),
            run_id: message.run_id.to_string(),
        })
    }
}

/// The id of a message: its session's digits and its number.
fn id(session: &SessionId, seq: i64) -> String {
    format!("msg_{}_{seq}", session.as_str().trim_start_matches("ses_"))
}

fn parse(id: &str) -> Option<(SessionId, i64)> {
    let (digits, seq) = id.strip_prefix("msg_")?.split_once('_')?;
    Some((format!("ses_{digits}").parse().ok()?, seq.parse().ok().filter(|seq| *seq > 0)?))
}

/// The messages of a session that were read.
pub(super) struct Said {
    pub(super) items: Vec<SaidMessage>,
    /// Whether there are more.
    pub(super) more: bool,
}

/// Reads a session that is the caller's, within [`READ`].
pub(super) async fn read(
    app: &App,
    caller: &Principal,
    session: &SessionId,
    (dialect, hide_tools): (Dialect, bool),
) -> Result<Said, Refusal> {
    let part = conversation::read(app, (&caller.project, session), 0, READ).await?;
    let shown = |message: &MessageView| SaidMessage::new(message, session, dialect, hide_tools);
    Ok(Said { items: part.items.iter().filter_map(shown).collect(), more: part.next_after.is_some() })
}

/// One page of them, the newest first if the order falls.
pub(super) fn page(mut items: Vec<SaidMessage>, page: Page, falling: bool) -> Vec<SaidMessage> {
    if falling {
        items.reverse();
    }
    let skip = usize::try_from(page.skip()).unwrap_or(usize::MAX);
    items.into_iter().skip(skip).take(page.size as usize).collect()
}

/// List a session's messages by page number
///
/// Without a session the list is empty.
#[utoipa::path(
    get, path = "/api/v1/messages", tag = "automagik", operation_id = "automagik_list_messages",
    params(
        ("session_id" = Option<String>, Query, description = "The session"),
        ("page" = Option<i64>, Query, description = "From 1", minimum = 1, maximum = 10000),
        ("page_size" = Option<i64>, Query, description = "50 if left out", minimum = 1, maximum = 100),
        ("sort_desc" = Option<bool>, Query, description = "Whether the newest come first; true if left out"),
    ),
    responses((status = 200, description = "A page", body = NumberedMessages)),
)]
pub(crate) async fn list_messages(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, mut query, .. }: Call,
) -> Result<Json<NumberedMessages>, Refusal> {
    let wanted = query.page(PAGE_ITEMS);
    let falling = query.flag("sort_desc").unwrap_or(true);
    let session = query.text("session_id");
    query.finish()?;
    let session = match session.as_deref().and_then(run::session_id) {
        Some(session) => app.store().session(&caller.project, &session).await?,
        None => None,
    };
    let items = match session {
        Some(session) => read(&app, &caller, &session.id, (dialect, false)).await?.items,
        None => Vec::new(),
    };
    let total = i64::try_from(items.len()).unwrap_or(i64::MAX);
    Ok(Json(NumberedMessages {
        messages: page(items, wanted, falling),
        total,
        page: wanted.number,
        page_size: wanted.size,
        total_pages: wanted.pages(total),
        has_next: wanted.has_next(total),
        has_prev: wanted.number > 1,
    }))
}

/// Get a message
#[utoipa::path(
    get, path = "/api/v1/messages/{id}", tag = "automagik", operation_id = "automagik_get_message",
    params(("id" = String, Path, description = "The message's id")),
    responses((status = 200, description = "The message", body = SaidMessage)),
)]
pub(crate) async fn get_message(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, id, .. }: Call,
) -> Result<Json<SaidMessage>, Refusal> {
    find(&app, &caller, dialect, &id).await.map(Json)
}

async fn find(app: &App, caller: &Principal, dialect: Dialect, id: &str) -> Result<SaidMessage, Refusal> {
    if let Some((session, seq)) = parse(id)
        && app.store().session(&caller.project, &session).await?.is_some()
    {
        let one = Bounds { items: 1, bytes: 1, events: 1, read_bytes: 1 };
        let part = conversation::read(app, (&caller.project, &session), seq - 1, one).await?;
        let found = part.items.iter().find(|message| message.seq == seq);
        if let Some(message) = found.and_then(|found| SaidMessage::new(found, &session, dialect, false)) {
            return Ok(message);
        }
    }
    Err(Refusal::not_found("unknown_message", "Message not found"))
}

/// Refuse to write a message into a record
///
/// A session's messages are read from what happened, so nobody adds one by hand. To say something to an agent that works,
/// give its run a message.
#[utoipa::path(
    post, path = "/api/v1/messages", tag = "automagik", operation_id = "automagik_create_message",
    responses((status = 409, description = "Always", body = RefusedBody)),
)]
pub(crate) async fn create_message(_: Writer) -> Result<Json<SaidMessage>, Refusal> {
    Err(kept())
}

/// Refuse to change a message
#[utoipa::path(
    put, path = "/api/v1/messages/{id}", tag = "automagik", operation_id = "automagik_change_message",
    params(("id" = String, Path, description = "The message's id")),
    responses((status = 409, description = "Always, of a message that there is", body = RefusedBody)),
)]
pub(crate) async fn change_message(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, .. }: Call,
) -> Result<Json<SaidMessage>, Refusal> {
    find(&app, &caller, dialect, &id).await?;
    Err(kept())
}

/// Refuse to delete a message
#[utoipa::path(
    delete, path = "/api/v1/messages/{id}", tag = "automagik", operation_id = "automagik_delete_message",
    params(("id" = String, Path, description = "The message's id")),
    responses((status = 409, description = "Always, of a message that there is", body = RefusedBody)),
)]
pub(crate) async fn delete_message(
    State(app): State<App>,
    Writer(caller): Writer,
    Call { dialect, id, .. }: Call,
) -> Result<Json<SaidMessage>, Refusal> {
    find(&app, &caller, dialect, &id).await?;
    Err(kept())
}

fn kept() -> Refusal {
    Refusal::conflict(
        "messages_kept",
        "messages are read from the record of what happened, which nobody can change; to say something to an agent that \
         works, POST to /api/v1/workflows/claude-code/run/{run}/add-message",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_by_its_session_and_number() {
        let session = SessionId::new(1_790_000_000_000, [7; 10]);
        assert_eq!(parse(&id(&session, 12)), Some((session, 12)));
        for bad in ["", "msg_", "msg_x_1", "12", &id(&SessionId::new(1, [0; 10]), 0)] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
