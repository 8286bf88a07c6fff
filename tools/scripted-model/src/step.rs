//! One reply of the scripted model: what it says, how fast, and what goes wrong on the way.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::usage::Usage;

/// Longest pause a step may name, before its first byte or between two chunks, in milliseconds.
pub const MAX_DELAY_MS: u64 = 600_000;
/// Most times a step may repeat its text.
pub const MAX_TEXT_REPEAT: usize = 100_000;

/// One reply to one request.
#[derive(Debug, Clone)]
pub struct Step {
    /// What the model says.
    pub reply: Reply,
    /// Pause before the first byte of the reply, errors included, in milliseconds.
    pub delay_ms: u64,
    /// Pause before each chunk of text and thinking of a streamed reply, in milliseconds.
    pub chunk_delay_ms: u64,
    /// Whether the reply is compressed whatever the client accepts; `None` leaves it to the server's setting.
    pub gzip: Option<bool>,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// Only the first so many tries of this step meet the fault; `None` means every try.
    pub fault_times: Option<u32>,
}

/// What the model says in one reply.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// A thinking block.
    pub thinking: Option<String>,
    /// A text block; empty means a reply without any block of text.
    pub text: Option<String>,
    /// Tool calls, in order.
    pub tools: Vec<ToolCall>,
    /// Why the model stopped, where it is not `tool_use` or `end_turn` as the blocks suggest.
    pub stop_reason: Option<String>,
    /// Token counts.
    pub usage: Usage,
}

/// A tool call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// Name of the tool.
    pub name: String,
    /// Its input; `$CWD` in any string stands for the agent's working directory.
    pub input: Value,
}

/// What goes wrong with a reply.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An HTTP error instead of a reply.
    Status(HttpError),
    /// The connection is closed at a point of the reply.
    Cut(Cut),
    /// A streamed reply stops in its middle and the connection stays open.
    Stall,
    /// No byte ever comes.
    Hang,
    /// Status 200 with a body that is no message.
    Garbage,
    /// A streamed reply carries an error event after its start.
    StreamError(ErrorBody),
}

/// An HTTP error of the API.
#[derive(Debug, Clone)]
pub struct HttpError {
    /// Status code.
    pub status: StatusCode,
    /// What the body says.
    pub body: ErrorBody,
    /// Further headers, such as `retry-after`.
    pub headers: HeaderMap,
}

/// The `error` object of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// Such as `overloaded_error`.
    #[serde(rename = "type")]
    pub error_type: String,
    /// A sentence.
    pub message: String,
}

/// Where a connection is closed. All but `Headers` touch streamed replies only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Before any byte.
    Headers,
    /// After `message_start`.
    Start,
    /// Half way through the text.
    Text,
    /// Half way through the input of the first tool call.
    Tool,
    /// After the last block, before `message_delta` and `message_stop`.
    BeforeStop,
}

/// Why a step is not usable.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A key is unknown or has a value of another kind.
    #[error("not a step: {0}")]
    Shape(#[from] serde_json::Error),
    /// More than one of the keys that name a fault.
    #[error("a step has at most one of status, overloaded, cut, stall, hang, garbage and sse_error")]
    TwoFaults,
    /// Keys that mean something only beside another.
    #[error("{key} needs {needs}")]
    Needs {
        /// The key that stands alone.
        key: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// Both `tool` and `tools`.
    #[error("a step has tool or tools, not both")]
    ToolTwice,
    /// Nothing to say and nothing that goes wrong for ever.
    #[error("a step needs text, thinking, a tool or a fault without times")]
    Empty,
    /// A number is outside its bounds.
    #[error("{key} must be between {least} and {most}")]
    Range {
        /// The key.
        key: &'static str,
        /// Least value.
        least: u64,
        /// Greatest value.
        most: u64,
    },
    /// A header that cannot be sent.
    #[error("header {name} cannot be sent")]
    Header {
        /// Its name as the scenario has it.
        name: String,
    },
}

/// A step as a scenario file has it: flat, every key optional.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "these are the keys of the file; Fault is what becomes of them"
)]
struct StepFile {
    text: Option<String>,
    text_repeat: usize,
    thinking: Option<String>,
    tool: Option<ToolCall>,
    tools: Vec<ToolCall>,
    stop_reason: Option<String>,
    usage: Usage,
    delay_ms: u64,
    chunk_delay_ms: u64,
    gzip: Option<bool>,
    status: Option<u16>,
    error_type: Option<String>,
    message: Option<String>,
    headers: BTreeMap<String, String>,
    overloaded: bool,
    cut: Option<Cut>,
    stall: bool,
    hang: bool,
    garbage: bool,
    sse_error: Option<ErrorBody>,
    times: Option<u32>,
}

impl Default for StepFile {
    fn default() -> Self {
        Self {
            text: None,
            text_repeat: 1,
            thinking: None,
            tool: None,
            tools: Vec::new(),
            stop_reason: None,
            usage: Usage::default(),
            delay_ms: 0,
            chunk_delay_ms: 0,
            gzip: None,
            status: None,
            error_type: None,
            message: None,
            headers: BTreeMap::new(),
            overloaded: false,
            cut: None,
            stall: false,
            hang: false,
            garbage: false,
            sse_error: None,
            times: None,
        }
    }
}

impl Step {
    /// Reads a step from its JSON form.
    ///
    /// # Errors
    /// [`StepError`] when a key is unknown, out of bounds or contradicts another.
    pub fn from_value(value: Value) -> Result<Self, StepError> {
        let mut file: StepFile = serde_json::from_value(value)?;
        let fault = file.take_fault()?;
        let (delay_ms, chunk_delay_ms) = file.delays()?;
        let (gzip, fault_times) = (file.gzip, file.times);
        if fault_times.is_some() && fault.is_none() {
            return Err(StepError::Needs { key: "times", needs: "a fault" });
        }
        let reply = file.into_reply()?;
        let says_nothing = reply.thinking.is_none() && reply.text.is_none() && reply.tools.is_empty();
        if says_nothing && (fault.is_none() || fault_times.is_some()) {
            return Err(StepError::Empty);
        }
        match fault {
            Some(Fault::Cut(Cut::Text)) if reply.text.as_deref().unwrap_or_default().is_empty() => {
                Err(StepError::Needs { key: "cut: text", needs: "text" })
            }
            Some(Fault::Cut(Cut::Tool)) if reply.tools.is_empty() => {
                Err(StepError::Needs { key: "cut: tool", needs: "a tool" })
            }
            Some(Fault::Stall) if says_nothing => Err(StepError::Needs { key: "stall", needs: "a reply" }),
            _ => Ok(Self { reply, delay_ms, chunk_delay_ms, gzip, fault, fault_times }),
        }
    }
}

impl StepFile {
    fn take_fault(&mut self) -> Result<Option<Fault>, StepError> {
        let mut faults = Vec::new();
        if let Some(status) = self.status {
            faults.push(Fault::Status(self.take_http_error(status)?));
        } else if self.error_type.is_some() || self.message.is_some() || !self.headers.is_empty() {
            return Err(StepError::Needs { key: "error_type, message or headers", needs: "status" });
        }
        if self.overloaded {
            faults.push(Fault::Status(HttpError::overloaded()));
        }
        faults.extend(self.cut.map(Fault::Cut));
        faults.extend(self.stall.then_some(Fault::Stall));
        faults.extend(self.hang.then_some(Fault::Hang));
        faults.extend(self.garbage.then_some(Fault::Garbage));
        faults.extend(self.sse_error.take().map(Fault::StreamError));
        let fault = faults.pop();
        if faults.is_empty() { Ok(fault) } else { Err(StepError::TwoFaults) }
    }

    fn take_http_error(&mut self, status: u16) -> Result<HttpError, StepError> {
        let status = StatusCode::from_u16(status)
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error())
            .ok_or(StepError::Range { key: "status", least: 400, most: 599 })?;
        let error_type =
            self.error_type.take().ok_or(StepError::Needs { key: "status", needs: "error_type" })?;
        let message = self.message.take().ok_or(StepError::Needs { key: "status", needs: "message" })?;
        let mut headers = HeaderMap::new();
        for (name, value) in std::mem::take(&mut self.headers) {
            let Ok((header, value)) = name
                .parse::<HeaderName>()
                .map_err(drop)
                .and_then(|header| value.parse::<HeaderValue>().map_err(drop).map(|value| (header, value)))
            else {
                return Err(StepError::Header { name });
            };
            headers.insert(header, value);
        }
        Ok(HttpError { status, body: ErrorBody { error_type, message }, headers })
    }

    fn delays(&self) -> Result<(u64, u64), StepError> {
        for (key, value) in [("delay_ms", self.delay_ms), ("chunk_delay_ms", self.chunk_delay_ms)] {
            if value > MAX_DELAY_MS {
                return Err(StepError::Range { key, least: 0, most: MAX_DELAY_MS });
            }
        }
        Ok((self.delay_ms, self.chunk_delay_ms))
    }

    fn into_reply(mut self) -> Result<Reply, StepError> {
        if self.tool.is_some() && !self.tools.is_empty() {
            return Err(StepError::ToolTwice);
        }
        if !(1..=MAX_TEXT_REPEAT).contains(&self.text_repeat) {
            return Err(StepError::Range { key: "text_repeat", least: 1, most: MAX_TEXT_REPEAT as u64 });
        }
        self.tools.extend(self.tool);
        Ok(Reply {
            thinking: self.thinking.filter(|thinking| !thinking.is_empty()),
            text: self.text.map(|text| text.repeat(self.text_repeat)),
            tools: self.tools,
            stop_reason: self.stop_reason,
            usage: self.usage,
        })
    }
}

impl HttpError {
    /// The API's answer when it has no capacity: status 529.
    fn overloaded() -> Self {
        let status = StatusCode::from_u16(529).expect("529 is a status code");
        let body = ErrorBody { error_type: "overloaded_error".to_owned(), message: "Overloaded".to_owned() };
        Self { status, body, headers: HeaderMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(value: Value) -> String {
        Step::from_value(value).expect_err("unusable").to_string()
    }

    #[test]
    fn a_step_keeps_what_it_says() {
        let step = Step::from_value(json!({
            "thinking": "t", "text": "ab", "text_repeat": 2, "tool": {"name": "Bash", "input": {}},
            "delay_ms": 1, "chunk_delay_ms": 2, "gzip": true, "cut": "before_stop", "times": 3,
        }))
        .unwrap();
        assert_eq!(step.reply.text.as_deref(), Some("abab"));
        assert_eq!(step.reply.tools[0].name, "Bash");
        assert_eq!((step.delay_ms, step.chunk_delay_ms, step.gzip), (1, 2, Some(true)));
        assert!(matches!(step.fault, Some(Fault::Cut(Cut::BeforeStop))));
        assert_eq!(step.fault_times, Some(3));
    }

    #[test]
    fn overloaded_is_short_for_529() {
        let step = Step::from_value(json!({"overloaded": true})).unwrap();
        let Some(Fault::Status(error)) = step.fault else { panic!("no status fault") };
        assert_eq!((error.status.as_u16(), error.body.error_type.as_str()), (529, "overloaded_error"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(error(json!({"txet": "a"})).starts_with("not a step: unknown field `txet`"));
        assert!(
            error(json!({"text": "a", "cut": "start", "hang": true}))
                .starts_with("a step has at most one of")
        );
        assert_eq!(error(json!({"text": "a", "times": 1})), "times needs a fault");
        assert_eq!(
            error(json!({"text": "a", "message": "m"})),
            "error_type, message or headers needs status"
        );
        assert_eq!(error(json!({"status": 500, "message": "m"})), "status needs error_type");
        assert_eq!(error(json!({"status": 500, "error_type": "e"})), "status needs message");
        assert_eq!(error(json!({"cut": "text"})), "cut: text needs text");
        assert_eq!(error(json!({"text": "a", "cut": "tool"})), "cut: tool needs a tool");
        assert_eq!(error(json!({"stall": true})), "stall needs a reply");
        let tool = json!({"name": "Bash", "input": {}});
        assert_eq!(error(json!({"tool": tool, "tools": [tool]})), "a step has tool or tools, not both");
        assert!(error(json!({})).starts_with("a step needs text"));
        assert!(error(json!({"overloaded": true, "times": 1})).starts_with("a step needs text"));
        let odd = json!({"status": 429, "error_type": "e", "message": "m", "headers": {"a b": "c"}});
        assert_eq!(error(odd), "header a b cannot be sent");
    }

    #[test]
    fn delays_are_bounded() {
        assert!(Step::from_value(json!({"text": "a", "delay_ms": MAX_DELAY_MS})).is_ok());
        assert_eq!(
            error(json!({"text": "a", "delay_ms": MAX_DELAY_MS + 1})),
            "delay_ms must be between 0 and 600000"
        );
        assert_eq!(
            error(json!({"text": "a", "chunk_delay_ms": MAX_DELAY_MS + 1})),
            "chunk_delay_ms must be between 0 and 600000"
        );
    }

    #[test]
    fn repeats_and_statuses_are_bounded() {
        assert!(Step::from_value(json!({"text": "a", "text_repeat": MAX_TEXT_REPEAT})).is_ok());
        for repeat in [0, MAX_TEXT_REPEAT + 1] {
            assert!(
                error(json!({"text": "a", "text_repeat": repeat})).starts_with("text_repeat must be between")
            );
        }
        let status = |status: u16| json!({"status": status, "error_type": "e", "message": "m"});
        assert!(Step::from_value(status(400)).is_ok());
        assert!(Step::from_value(status(599)).is_ok());
        for odd in [399, 600] {
            assert_eq!(error(status(odd)), "status must be between 400 and 599");
        }
    }
}
