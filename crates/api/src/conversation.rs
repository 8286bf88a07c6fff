//! `/v1/sessions/{id}/messages`: a session's events as a conversation that people can read.
//!
//! Nothing is stored for it: the task is the run's, messages of people and the agent's own lines are events. What the
//! agent says comes out of its sandbox, so it is shown and never acted on.

use axum::Json;
use axum::extract::State;
use caisson_domain::attachment::Attachment;
use caisson_domain::event::{Event, EventKind};
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::input::InputState;
use caisson_domain::json::values;
use caisson_domain::run::cut;
use caisson_store::{EventsOf, Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::agent_line::AgentLine;
use crate::attachments::{self, AttachmentView};
use crate::auth::Reader;
use crate::events::{READ_BYTES, SCANNED_EVENTS};
use crate::extract::{Params, SessionPath, unknown_session};
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Problem};
use crate::state::App;

/// Longest text of a message, and longest input of a tool, in bytes.
pub(crate) const MESSAGE_TEXT_BYTES: usize = 64 * 1024;
/// Bytes of text after which a page ends, whatever was asked for; the message that reaches it is still in it.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// What each value within a tool's input counts as, beside its text: as a tree it takes up to four times that.
const VALUE_BYTES: usize = 160;
/// Events that are looked through for one page.
const PAGE_EVENTS: usize = 5_000;
/// Bytes of events that are looked through for one page, whatever is shown of them; the event that reaches them is still looked at.
const PAGE_READ_BYTES: usize = 16 * 1024 * 1024;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever asked for the run, or gave its agent a message.
    User,
    /// The agent.
    Assistant,
    /// A tool that the agent called.
    Tool,
}

/// One thing that was said in a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageView {
    /// The number of the event that it is read from, so messages are in order and numbers are left out.
    pub seq: i64,
    /// The run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// When it was written down, Unix ms.
    pub at_ms: i64,
    /// Who says it.
    pub role: Role,
    /// How far it is, if it was sent to the agent as an input: what is `undelivered` was never said to it. None of all else.
    #[schema(value_type = Option<crate::schema::InputState>)]
    pub state: Option<InputState>,
    /// What is said; none if it only calls tools, or tells of their results.
    pub text: Option<String>,
    /// What came with it, without its bytes; left out if nothing did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<AttachmentView>>)]
    pub attachments: Vec<AttachmentView>,
    /// Tools that the agent calls.
    pub tool_calls: Vec<ToolCallView>,
    /// What tools gave back.
    pub tool_results: Vec<ToolResultView>,
    /// Whether something of it was left out because it is longer than 64 KiB, or has too many values; the event has all of it.
    pub cut: bool,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallView {
    /// What the result refers to.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What it is given; null if that is too long.
    pub input: Value,
}

/// What a tool gave back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolResultView {
    /// The call.
    pub call_id: String,
    /// What it says; images and the like are left out.
    pub text: String,
    /// Whether it failed.
    pub is_error: bool,
}

/// A page of messages, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessagePage {
    /// The messages. Sessions tell of much that nobody says, so a page may be short although another follows.
    pub items: Vec<MessageView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

/// Read a session's messages
///
/// The session as a conversation, oldest first: tasks and messages of people, with how far they are, the agent's texts, its calls of tools and
/// what they gave back. The agent's thinking and its subagents' talk are in the events alone.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/messages", tag = "sessions", operation_id = "read_messages",
    params(
        ("id" = String, Path, description = "The session's id"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Most items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = MessagePage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such session", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "As many conversations are being read as may be at once (`long_reads_full`)", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn read_messages(
    State(app): State<App>,
    Reader(caller): Reader,
    SessionPath(id): SessionPath,
    mut params: Params,
) -> Result<Json<MessagePage>, ApiError> {
    let page = PageQuery::<i64>::take(&mut params);
    params.finish()?;
    let session = app.store().session(&caller.project, &id).await?.ok_or_else(unknown_session)?;
    let bounds = Bounds {
        items: page.limit as usize,
        bytes: PAGE_BYTES,
        events: PAGE_EVENTS,
        read_bytes: PAGE_READ_BYTES,
    };
    let part = read(&app, (&caller.project, &session.id), page.after.unwrap_or(0), bounds).await?;
    let next_cursor = part.next_after.map(|after| encode(&after.to_string()));
    Ok(Json(MessagePage { items: part.items, next_cursor }))
}

/// How much is read: until one of them is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Messages.
    pub(crate) items: usize,
    /// Bytes of what is shown.
    pub(crate) bytes: usize,
    /// Events that are looked through.
    pub(crate) events: usize,
    /// Bytes of their details.
    pub(crate) read_bytes: usize,
}

/// A part of a conversation.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) items: Vec<MessageView>,
    /// The event behind which there may be more; none at the end.
    pub(crate) next_after: Option<i64>,
}

/// Reads messages behind the event `after` until one of the bounds is reached. Whoever calls has checked that the session
/// is the project's.
///
/// # Errors
/// [`ApiError::LongReadsFull`]; as every read of the store.
pub(crate) async fn read(
    app: &App,
    (project, session): (&ProjectId, &SessionId),
    after: i64,
    bounds: Bounds,
) -> Result<Part, ApiError> {
    let _place = app.long_read().await?;
    let prompts = Prompts { store: app.store(), project, session };
    let (mut items, mut after, mut bytes, mut looked, mut read_bytes) = (Vec::new(), after, 0, 0, 0);
    loop {
        let missing = u32::try_from(bounds.events - looked).unwrap_or(u32::MAX).min(SCANNED_EVENTS);
        let of = EventsOf::Session(session);
        let events = app.store().listed_events(of, after, (missing, READ_BYTES)).await?;
        if events.is_empty() {
            return Ok(Part { items, next_after: None });
        }
        // Each is dropped before the next one is looked at.
        for event in events {
            after = event.seq;
            looked += 1;
            read_bytes += event.data.get().len();
            if let Some(message) = prompts.message(&event).await? {
                bytes += size(&message);
                items.push(message);
            }
            let is_full = items.len() >= bounds.items || bytes >= bounds.bytes;
            if is_full || looked >= bounds.events || read_bytes >= bounds.read_bytes {
                return Ok(Part { items, next_after: Some(after) });
            }
        }
    }
}

/// Its part of [`PAGE_BYTES`].
fn size(message: &MessageView) -> usize {
    let results: usize = message.tool_results.iter().map(|result| result.text.len()).sum();
    let call = |call: &ToolCallView| {
        let text = call.input.to_string();
        text.len() + VALUE_BYTES * values(text.as_bytes())
    };
    let calls: usize = message.tool_calls.iter().map(call).sum();
    message.text.as_deref().map_or(0, str::len) + results + calls
}

/// The tasks of the runs, each read when its run comes.
struct Prompts<'s> {
    store: &'s Store,
    project: &'s ProjectId,
    session: &'s SessionId,
}

impl Prompts<'_> {
    /// What the event says; none if nobody says anything by it.
    async fn message(&self, event: &Event) -> Result<Option<MessageView>, StoreError> {
        let (mut parts, mut state) = (Parts::default(), None);
        let role = if event.kind == EventKind::RunQueued {
            if let Some(run) = self.store.run(self.project, &event.run).await? {
                parts.say(&run.spec.prompt);
                parts.attachments = run.spec.attachments;
            }
            Role::User
        } else if matches!(event.kind, EventKind::RunMessage | EventKind::InputAccepted) {
            let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
            let Some(text) = data["text"].as_str() else { return Ok(None) };
            parts.say(text);
            // As it stands now, which events behind this one tell.
            if let Some(input) = data["input"].as_i64() {
                state = self.store.input_state(self.session, input).await?;
            }
            parts.attachments = serde_json::from_value(data["attachments"].clone()).unwrap_or_default();
            Role::User
        } else if event.kind == EventKind::AgentLine
            && let Some(role) = parts.take_line(event.data.get())
        {
            role
        } else {
            return Ok(None);
        };
        let Parts { text, attachments, tool_calls, tool_results, cut } = parts;
        let text = (!text.is_empty()).then_some(text);
        Ok(Some(MessageView {
            seq: event.seq,
            run_id: event.run.clone(),
            at_ms: event.at_ms,
            role,
            state,
            text,
            attachments: attachments::views(attachments),
            tool_calls,
            tool_results,
            cut,
        }))
    }
}

/// What a message is made of.
#[derive(Debug, Default)]
struct Parts {
    text: String,
    attachments: Vec<Attachment>,
    tool_calls: Vec<ToolCallView>,
    tool_results: Vec<ToolResultView>,
    cut: bool,
}

impl Parts {
    fn say(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let room = MESSAGE_TEXT_BYTES.saturating_sub(self.text.len());
        let kept = cut(text, room);
        self.cut |= kept.len() < text.len();
        self.text.push_str(kept);
    }

    /// Takes a line of the agent; none if nothing is said by it.
    fn take_line(&mut self, line: &str) -> Option<Role> {
        let line = AgentLine::of(line).filter(|line| !line.of_subagent)?;
        let role = match line.kind.as_ref() {
            "assistant" => Role::Assistant,
            "user" => Role::Tool,
            _ => return None,
        };
        for block in line.blocks() {
            match block {
                Some(block) => self.take_block(&block, role),
                // It is in the events all the same.
                None => self.cut = true,
            }
        }
        let said = !self.text.is_empty() || !self.tool_calls.is_empty() || !self.tool_results.is_empty();
        said.then_some(role)
    }

    fn take_block(&mut self, block: &Value, role: Role) {
        let text = |name: &str| block[name].as_str().unwrap_or_default().to_owned();
        match (block["type"].as_str(), role) {
            (Some("text"), Role::Assistant) => self.say(block["text"].as_str().unwrap_or_default()),
            (Some("tool_use"), Role::Assistant) => {
                let long = block["input"].to_string().len() > MESSAGE_TEXT_BYTES;
                self.cut |= long;
                let input = if long { Value::Null } else { block["input"].clone() };
                self.tool_calls.push(ToolCallView { id: text("id"), name: text("name"), input });
            }
            (Some("tool_result"), Role::Tool) => {
                let whole = result_text(&block["content"]);
                let kept = cut(&whole, MESSAGE_TEXT_BYTES).to_owned();
                self.cut |= kept.len() < whole.len();
                let is_error = block["is_error"].as_bool().unwrap_or(false);
                self.tool_results.push(ToolResultView { call_id: text("tool_use_id"), text: kept, is_error });
            }
            _ => {}
        }
    }
}

/// A result is a text, or a list of which texts are wanted.
fn result_text(content: &Value) -> String {
    if let Some(text) = content.as_str() {
        return text.to_owned();
    }
    let blocks = content.as_array().into_iter().flatten();
    let texts: Vec<&str> = blocks.filter_map(|block| block["text"].as_str()).collect();
    texts.join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use caisson_store::Clock;
    use serde_json::json;
    use tokio_util::sync::CancellationToken;
    use utoipa::openapi::OpenApi;

    use super::*;
    use crate::automagik;
    use crate::config::{ApiConfig, LONG_READS};

    fn line(value: &Value) -> (Option<Role>, Parts) {
        let mut parts = Parts::default();
        (parts.take_line(&value.to_string()), parts)
    }

    #[test]
    fn texts_calls_and_results_are_said_and_nothing_else() {
        let blocks = json!([
            {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "Read", "input": {"file_path": "x"}},
        ]);
        let (role, parts) = line(&json!({"type": "assistant", "message": {"content": blocks}}));
        assert_eq!((role, parts.text.as_str()), (Some(Role::Assistant), "I look."));
        assert_eq!(
            (parts.tool_calls[0].name.as_str(), &parts.tool_calls[0].input),
            ("Read", &json!({"file_path": "x"}))
        );
        let blocks = json!([
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}, {"type": "image"}], "is_error": true},
            {"type": "tool_result", "tool_use_id": "t2", "content": "b"},
        ]);
        let (role, parts) = line(&json!({"type": "user", "message": {"content": blocks}}));
        let results: Vec<_> =
            parts.tool_results.iter().map(|result| (result.text.as_str(), result.is_error)).collect();
        assert_eq!((role, results), (Some(Role::Tool), vec![("a", true), ("b", false)]));
        for nothing in [
            json!({"type": "system", "subtype": "init"}),
            json!({"type": "assistant", "message": {"content": [{"type": "thinking", "thinking": "x"}]}}),
            json!({"type": "assistant", "parent_tool_use_id": "t1", "message": {"content": [{"type": "text", "text": "x"}]}}),
            json!({"type": "user", "message": {"content": "a replayed prompt"}}),
            json!([1]),
        ] {
            assert_eq!(line(&nothing).0, None, "{nothing}");
        }
    }

    #[test]
    fn texts_and_inputs_are_cut_at_their_bound_and_say_so() {
        let of = |bytes: usize| {
            let text = "x".repeat(bytes);
            line(&json!({"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}})).1
        };
        assert!(!of(MESSAGE_TEXT_BYTES).cut);
        let long = of(MESSAGE_TEXT_BYTES + 1);
        assert_eq!((long.cut, long.text.len()), (true, MESSAGE_TEXT_BYTES));
        let input = json!({"content": "x".repeat(MESSAGE_TEXT_BYTES)});
        let blocks = json!([{"type": "tool_use", "id": "t", "name": "Write", "input": input}]);
        let (_, parts) = line(&json!({"type": "assistant", "message": {"content": blocks}}));
        assert_eq!((parts.cut, &parts.tool_calls[0].input), (true, &Value::Null));
    }
    #[test]
    fn what_has_too_many_values_is_left_out_and_what_has_many_counts_as_more_than_its_text() {
        let of = |items: usize| {
            let input = json!({ "list": vec![0; items] });
            let blocks = json!([{"type": "tool_use", "id": "t", "name": "x", "input": input}]);
            line(&json!({"type": "assistant", "message": {"content": blocks}}))
        };
        let (role, parts) = of(20_000);
        assert_eq!((role, parts.cut, parts.tool_calls.len()), (None, true, 0));
        let (_, parts) = of(1_000);
        assert!(!parts.cut);
        let message = MessageView {
            seq: 1,
            run_id: RunId::new(1, [0; 10]),
            at_ms: 1,
            role: Role::Assistant,
            state: None,
            text: None,
            attachments: Vec::new(),
            tool_calls: parts.tool_calls,
            tool_results: Vec::new(),
            cut: false,
        };
        assert!(size(&message) > 1_000 * VALUE_BYTES);
    }

    #[tokio::test]
    async fn a_conversation_and_a_runs_progress_wait_for_a_place_and_are_refused_when_none_becomes_free() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store.db"), Clock::system()).await.unwrap();
        let mut config = ApiConfig::default();
        config.limits.long_read_wait = Duration::from_millis(20);
        let app = App::new(config, store, CancellationToken::new(), &OpenApi::default());
        let bounds = Bounds { items: 1, bytes: 1, events: 1, read_bytes: 1 };
        let (project, session) = (ProjectId::default_project(), SessionId::new(1, [1; 10]));
        let run = RunId::new(1, [1; 10]);
        let mut places = Vec::new();
        for _ in 0..LONG_READS {
            assert!(read(&app, (&project, &session), 0, bounds).await.is_ok());
            places.push(app.long_read().await.unwrap());
        }
        let refused = read(&app, (&project, &session), 0, bounds).await;
        assert!(matches!(refused, Err(ApiError::LongReadsFull)), "{refused:?}");
        let refused = automagik::look_through(&app, &run).await;
        assert!(matches!(refused, Err(ApiError::LongReadsFull)), "{refused:?}");
        places.pop();
        assert!(read(&app, (&project, &session), 0, bounds).await.is_ok());
        automagik::look_through(&app, &run).await.unwrap();
    }
}
