//! What the CLI tells, line by line, in types. Only what a driver acts on or shows is here; the caller keeps the line.

use crate::json::{self, Object};
use crate::limits::PREVIEW_BYTES_MAX;

/// A prompt's turn begins. Comes once per prompt, not once per process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// The session.
    pub session_id: String,
    /// The model in use.
    pub model: String,
    /// The permission mode in the CLI's words; `default` is called `manual` on its command line.
    pub permission_mode: String,
    /// The tools it has. `Task` here is called `Agent` where it is used.
    pub tools: Vec<String>,
    /// The MCP servers and how they are. A failed one is seen nowhere else, and the turn goes on without it.
    pub mcp_servers: Vec<McpServer>,
    /// The CLI's version.
    pub version: String,
}

/// One MCP server, as [`Init`] tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpServer {
    /// Its name.
    pub name: String,
    /// `connected`, `failed`, `pending` or another word.
    pub status: String,
}

/// A piece of the model's answer: one event per block, all blocks of one answer with the same `message_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assistant {
    /// The model API's id of the message.
    pub message_id: String,
    /// The model, or `<synthetic>` for a text of the CLI's own, such as an error.
    pub model: String,
    /// What was said.
    pub blocks: Vec<Block>,
    /// The line's own id, which the CLI's record of the conversation has as well; empty if it has none.
    pub uuid: String,
    /// The tool call whose subagent speaks; none for the agent itself.
    pub parent_tool_use_id: Option<String>,
    /// The kind of a failed model call (`rate_limit`, `server_error`, …) whose text the blocks hold.
    pub error: Option<String>,
}

/// A block of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Text.
    Text(String),
    /// Thinking.
    Thinking(String),
    /// A call of a tool.
    ToolUse {
        /// Ties the call to its [`ToolResult`].
        id: String,
        /// The tool.
        name: String,
        /// Its input: JSON as it was printed, however deep.
        input: String,
    },
    /// A kind that is not known here.
    Other {
        /// Its name; empty if it has none.
        kind: String,
    },
}

/// A message in the user's role: results of tools, an echo of a prompt, or a text that the CLI put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The message's id; that of the prompt in an echo.
    pub uuid: String,
    /// Results of tools.
    pub results: Vec<ToolResult>,
    /// The beginning of the message's own text, at most [`PREVIEW_BYTES_MAX`] bytes.
    pub text: String,
    /// The tool call whose subagent is meant; none for the agent itself.
    pub parent_tool_use_id: Option<String>,
    /// An echo of what was written to standard input.
    pub is_replay: bool,
    /// A text of the CLI's own, such as a nudge after a cut answer.
    pub is_synthetic: bool,
}

/// The result of one tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// The call.
    pub tool_use_id: String,
    /// Whether it failed; a command's exit code other than 0 counts as failed.
    pub is_error: bool,
    /// The beginning of its text, at most [`PREVIEW_BYTES_MAX`] bytes.
    pub preview: String,
}

/// A piece of an answer that is still being made. The whole comes later as [`Assistant`], so these need no keeping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamDelta {
    /// The model API's id of the message. A call that is tried again has a new one.
    pub message_id: String,
    /// Which of the message's blocks it is a piece of, from 0; each becomes an [`Assistant`] of its own, in this order.
    pub block: u32,
    /// What came.
    pub delta: Delta,
    /// The tool call whose subagent speaks; none for the agent itself.
    pub parent_tool_use_id: Option<String>,
}

/// What a [`StreamDelta`] brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More text.
    Text(String),
    /// More thinking.
    Thinking(String),
    /// A frame (`message_start`, `content_block_stop`, …) or a piece of a tool's input.
    Other {
        /// The frame's name.
        event: String,
    },
}

/// A model call failed and will be tried again: the live sign that the API is in trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRetry {
    /// Which try failed, from 1.
    pub attempt: u32,
    /// How many there are.
    pub max_retries: u32,
    /// Wait before the next one, in milliseconds.
    pub retry_delay_ms: u64,
    /// The HTTP status; none if there was no answer.
    pub status: Option<u16>,
    /// The kind of failure.
    pub error: String,
}

/// The end of a turn. One process prints several. What it means is for [`crate::judge`] to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultLine {
    /// `success` does not mean success: a failed model call is printed as `success` with `is_error`.
    pub subtype: String,
    /// Whether the turn failed; a result that does not say counts as failed.
    pub is_error: bool,
    /// Why the turn ended.
    pub terminal_reason: Option<String>,
    /// Why the last answer ended, in the model API's words.
    pub stop_reason: Option<String>,
    /// The last text, or the failure's; none when `errors` says it.
    pub text: Option<String>,
    /// What the agent gave to the tool for structured output, as JSON; none if it was not asked for any, or gave none.
    pub structured_output: Option<String>,
    /// What went wrong.
    pub errors: Vec<String>,
    /// HTTP status of the model call that failed.
    pub api_error_status: Option<u16>,
    /// Its error type, in the model API's words.
    pub api_error_type: Option<String>,
    /// The CLI's word for a failure without an answer (`connection_failed`, `max_output_tokens`).
    pub api_error: Option<String>,
    /// Model answers in this turn.
    pub num_turns: u32,
    /// Number of this result in its process, from 0.
    pub result_index: Option<u32>,
    /// Turns that still wait. Prompts that wait are not counted in it.
    pub queued_turn_count: u32,
    /// The prompts it answers: none if the prompts had no ids or something else began the turn.
    pub prompts: Vec<String>,
    /// What began the turn if no prompt did, for example `task-notification`.
    pub origin: Option<String>,
    /// Tool calls that were denied.
    pub permission_denials: Vec<Denial>,
    /// How often a safety classifier stopped the model.
    pub safety_stops: u32,
}

/// A denied tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The tool.
    pub tool_name: String,
    /// The call.
    pub tool_use_id: String,
}

/// The CLI asks and waits. Unanswered, its turn never ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlRequest {
    /// Ties the answer to the request.
    pub request_id: String,
    /// `can_use_tool`, `hook_callback`, `mcp_message` or another word.
    pub subtype: String,
    /// The tool that asks for permission.
    pub tool_name: Option<String>,
    /// The whole request: JSON as it was printed.
    pub request: String,
}

/// The CLI's answer to a request of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlResponse {
    /// The request.
    pub request_id: String,
    /// What was wrong with it; none if it was done.
    pub error: Option<String>,
    /// What the CLI answers: JSON as it was printed.
    pub response: Option<String>,
}

/// How far a prompt is. Only prompts with an id have this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLifecycle {
    /// The prompt.
    pub command_uuid: String,
    /// How far it is.
    pub state: CommandState,
}

/// How far a prompt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandState {
    /// The CLI has read it.
    Queued,
    /// The model works on it.
    Started,
    /// It is done; its result may come before or after this.
    Completed,
    /// It failed, was interrupted, or was taken back before it started.
    Cancelled,
    /// A word that is not known here.
    Other(String),
}

/// A tool call was denied. It comes again in [`ResultLine::permission_denials`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionDenied {
    /// The tool.
    pub tool_name: String,
    /// The call.
    pub tool_use_id: String,
    /// What the model is told.
    pub message: String,
}

/// Cuts a text to at most `bytes`, at the end of a character.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let end = (0..=bytes).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

pub(crate) fn init(line: &Object<'_>) -> Init {
    let server = |server: Object<'_>| McpServer {
        name: server.text_or_empty("name"),
        status: server.text_or_empty("status"),
    };
    Init {
        session_id: line.text_or_empty("session_id"),
        model: line.text_or_empty("model"),
        permission_mode: line.text_or_empty("permissionMode"),
        tools: line.texts("tools"),
        mcp_servers: line.objects("mcp_servers").into_iter().map(server).collect(),
        version: line.text_or_empty("claude_code_version"),
    }
}

pub(crate) fn assistant(line: &Object<'_>) -> Assistant {
    let message = line.object("message");
    let of_message = |name| message.as_ref().map(|m| m.text_or_empty(name)).unwrap_or_default();
    let blocks = message.as_ref().map(|m| m.objects("content")).unwrap_or_default();
    Assistant {
        message_id: of_message("id"),
        model: of_message("model"),
        blocks: blocks.iter().map(block).collect(),
        uuid: line.text_or_empty("uuid"),
        parent_tool_use_id: line.text("parent_tool_use_id"),
        error: line.text("error"),
    }
}

fn block(block: &Object<'_>) -> Block {
    let kind = block.text_or_empty("type");
    match kind.as_str() {
        "text" => Block::Text(block.text_or_empty("text")),
        "thinking" => Block::Thinking(block.text_or_empty("thinking")),
        "tool_use" => Block::ToolUse {
            id: block.text_or_empty("id"),
            name: block.text_or_empty("name"),
            input: block.raw("input").unwrap_or("{}").to_owned(),
        },
        _ => Block::Other { kind },
    }
}

pub(crate) fn user(line: &Object<'_>) -> User {
    let message = line.object("message");
    let content = message.as_ref().and_then(|m| m.raw("content")).unwrap_or("null");
    let mut results = Vec::new();
    for block in json::list(content).into_iter().filter_map(Object::parse) {
        if let Some(tool_use_id) = block.text("tool_use_id") {
            let is_error = block.flag("is_error").unwrap_or(false);
            let preview = preview(block.raw("content").unwrap_or("null"));
            results.push(ToolResult { tool_use_id, is_error, preview });
        }
    }
    User {
        uuid: line.text_or_empty("uuid"),
        results,
        text: preview(content),
        parent_tool_use_id: line.text("parent_tool_use_id"),
        is_replay: line.flag("isReplay").unwrap_or(false),
        is_synthetic: line.flag("isSynthetic").unwrap_or(false),
    }
}

/// The beginning of a content's text: the CLI writes contents as a string or as a list of blocks.
fn preview(content: &str) -> String {
    let mut text = json::text(content).unwrap_or_default();
    for block in json::list(content).into_iter().filter_map(Object::parse) {
        if text.len() > PREVIEW_BYTES_MAX {
            break;
        }
        text.push_str(&block.text_or_empty("text"));
    }
    cut(&text, PREVIEW_BYTES_MAX).to_owned()
}

pub(crate) fn stream_delta(line: &Object<'_>) -> StreamDelta {
    let event = line.object("event");
    let name = event.as_ref().map(|e| e.text_or_empty("type")).unwrap_or_default();
    let delta = event.as_ref().and_then(|e| e.object("delta"));
    let delta = match delta.as_ref().and_then(|d| d.text("type")).as_deref() {
        Some("text_delta") => Delta::Text(text_of(delta.as_ref(), "text")),
        Some("thinking_delta") => Delta::Thinking(text_of(delta.as_ref(), "thinking")),
        Some(_) | None => Delta::Other { event: name },
    };
    let message_id = line.text_or_empty("api_message_id");
    let block = event.as_ref().and_then(|event| event.number("index")).unwrap_or_default();
    StreamDelta { message_id, block, delta, parent_tool_use_id: line.text("parent_tool_use_id") }
}

fn text_of(object: Option<&Object<'_>>, name: &str) -> String {
    object.map(|object| object.text_or_empty(name)).unwrap_or_default()
}

pub(crate) fn api_retry(line: &Object<'_>) -> ApiRetry {
    ApiRetry {
        attempt: line.number("attempt").unwrap_or(0),
        max_retries: line.number("max_retries").unwrap_or(0),
        retry_delay_ms: line.number("retry_delay_ms").unwrap_or(0),
        status: line.number("error_status"),
        error: line.text_or_empty("error"),
    }
}

pub(crate) fn result(line: &Object<'_>) -> ResultLine {
    let mut prompts = line.texts("user_message_uuids");
    if prompts.is_empty() {
        prompts.extend(line.text("user_message_uuid"));
    }
    let denial = |denial: Object<'_>| Denial {
        tool_name: denial.text_or_empty("tool_name"),
        tool_use_id: denial.text_or_empty("tool_use_id"),
    };
    ResultLine {
        subtype: line.text_or_empty("subtype"),
        is_error: line.flag("is_error").unwrap_or(true),
        terminal_reason: line.text("terminal_reason"),
        stop_reason: line.text("stop_reason"),
        text: line.text("result"),
        structured_output: line.raw("structured_output").map(str::to_owned),
        errors: line.texts("errors"),
        api_error_status: line.number("api_error_status"),
        api_error_type: line.text("api_error_type"),
        api_error: line.text("api_error"),
        num_turns: line.number("num_turns").unwrap_or(0),
        result_index: line.number("result_index"),
        queued_turn_count: line.number("queued_turn_count").unwrap_or(0),
        prompts,
        origin: line.object("origin").map(|origin| origin.text_or_empty("kind")),
        permission_denials: line.objects("permission_denials").into_iter().map(denial).collect(),
        safety_stops: line.number("safety_stops").unwrap_or(0),
    }
}

pub(crate) fn control_request(line: &Object<'_>) -> ControlRequest {
    let request = line.object("request");
    ControlRequest {
        request_id: line.text_or_empty("request_id"),
        subtype: text_of(request.as_ref(), "subtype"),
        tool_name: request.as_ref().and_then(|r| r.text("tool_name")),
        request: line.raw("request").unwrap_or("null").to_owned(),
    }
}

pub(crate) fn control_response(line: &Object<'_>) -> ControlResponse {
    let response = line.object("response");
    let failed = response.as_ref().is_none_or(|r| r.text("subtype").as_deref() != Some("success"));
    ControlResponse {
        request_id: text_of(response.as_ref(), "request_id"),
        error: failed.then(|| text_of(response.as_ref(), "error")),
        response: response.as_ref().and_then(|r| r.raw("response")).map(str::to_owned),
    }
}

pub(crate) fn command_lifecycle(line: &Object<'_>) -> CommandLifecycle {
    let state = line.text_or_empty("state");
    let state = match state.as_str() {
        "queued" => CommandState::Queued,
        "started" => CommandState::Started,
        "completed" => CommandState::Completed,
        "cancelled" => CommandState::Cancelled,
        _ => CommandState::Other(state),
    };
    CommandLifecycle { command_uuid: line.text_or_empty("command_uuid"), state }
}

pub(crate) fn permission_denied(line: &Object<'_>) -> PermissionDenied {
    PermissionDenied {
        tool_name: line.text_or_empty("tool_name"),
        tool_use_id: line.text_or_empty("tool_use_id"),
        message: line.text_or_empty("message"),
    }
}
