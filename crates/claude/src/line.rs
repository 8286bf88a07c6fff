//! One line of the CLI's standard output.

use crate::event::{
    self, ApiRetry, Assistant, CommandLifecycle, ControlRequest, ControlResponse, Init, PermissionDenied,
    ResultLine, StreamDelta, User,
};
use crate::json::Object;

/// What a line is. The caller keeps the line itself: this is a view of it, and what is not named here is only there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A turn begins.
    Init(Init),
    /// A piece of the model's answer.
    Assistant(Assistant),
    /// Results of tools, the echo of a prompt, or a text that the CLI put in.
    User(User),
    /// A piece of an answer that is still being made.
    StreamDelta(StreamDelta),
    /// A model call failed and will be tried again.
    ApiRetry(ApiRetry),
    /// A turn ended.
    Result(Box<ResultLine>),
    /// The CLI asks and waits.
    ControlRequest(ControlRequest),
    /// The CLI no longer waits for the answer to this request.
    ControlCancel {
        /// The request.
        request_id: String,
    },
    /// The CLI answers a request of ours.
    ControlResponse(ControlResponse),
    /// How far a prompt is.
    CommandLifecycle(CommandLifecycle),
    /// A tool call was denied.
    PermissionDenied(PermissionDenied),
    /// Another kind of event, now or in a later version.
    Other {
        /// Its `type`; empty if it has none.
        kind: String,
        /// Its `subtype`.
        subtype: Option<String>,
    },
    /// No JSON object, for example the output of something that writes to the same descriptor.
    NotJson,
}

impl Line {
    /// Tells whether the line is a piece of a message that comes whole later, so that it needs no keeping.
    #[must_use]
    pub fn is_delta(&self) -> bool {
        matches!(self, Self::StreamDelta(_))
    }
}

/// Reads one line, with or without its end. Never fails: what it does not know is [`Line::Other`].
///
/// Bytes that are no UTF-8 are read as U+FFFD, so that one bad byte in a tool's output does not hide a result.
#[must_use]
pub fn parse(line: &[u8]) -> Line {
    let text = String::from_utf8_lossy(line);
    let Some(object) = Object::parse(&text) else {
        return Line::NotJson;
    };
    let kind = object.text_or_empty("type");
    let subtype = object.text("subtype");
    match (kind.as_str(), subtype.as_deref()) {
        ("assistant", _) => Line::Assistant(event::assistant(&object)),
        ("user", _) => Line::User(event::user(&object)),
        ("stream_event", _) => Line::StreamDelta(event::stream_delta(&object)),
        ("result", _) => Line::Result(Box::new(event::result(&object))),
        ("control_request", _) => Line::ControlRequest(event::control_request(&object)),
        ("control_cancel_request", _) => {
            Line::ControlCancel { request_id: object.text_or_empty("request_id") }
        }
        ("control_response", _) => Line::ControlResponse(event::control_response(&object)),
        ("command_lifecycle", _) => Line::CommandLifecycle(event::command_lifecycle(&object)),
        ("system", Some("init")) => Line::Init(event::init(&object)),
        ("system", Some("api_retry")) => Line::ApiRetry(event::api_retry(&object)),
        ("system", Some("permission_denied")) => Line::PermissionDenied(event::permission_denied(&object)),
        _ => Line::Other { kind, subtype },
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
