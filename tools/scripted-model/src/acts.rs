//! Turns a step into what goes over the wire, without sending anything.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::step::{Cut, ErrorBody, Fault, Reply};
use crate::usage::Usage;

/// The signature of scripted thinking; clients send it back and nobody checks it.
const SIGNATURE: &str = "c2NyaXB0ZWQ=";
/// What the API's identifiers have after their prefix.
const ID_CHARACTERS: usize = 24;
/// Stands in tool inputs for the agent's working directory.
const DIRECTORY_VARIABLE: &str = "$CWD";
/// What `$CWD` becomes when the request does not tell the agent's working directory.
const UNKNOWN_DIRECTORY: &str = "/tmp";

/// One thing to do with a reply.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Send bytes.
    Send(Piece),
    /// Close the connection.
    Cut,
    /// Leave the connection open and send no more.
    Stall,
}

/// Bytes that are sent at once.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// Whether the chunk delay comes first.
    pub(crate) paced: bool,
    /// The counts that a client knows once it has these bytes, and whether they are the last ones.
    pub(crate) usage: Option<(Usage, bool)>,
}

/// What makes one reply differ from another with the same step.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The model asked for, which the reply names.
    pub(crate) model: String,
    /// The agent's working directory.
    pub(crate) directory: Option<String>,
    /// Distinguishes this reply from every other one.
    pub(crate) salt: String,
}

impl Context {
    /// Makes an identifier such as `msg_0123…`, the same for the same salt and label.
    fn id(&self, prefix: &str, label: &str) -> String {
        let digest = hex::encode(Sha256::digest(format!("{}/{label}", self.salt)));
        format!("{prefix}{}", &digest[..ID_CHARACTERS])
    }

    /// The identifier of the reply as a whole, for the `request-id` header.
    pub(crate) fn request_id(&self) -> String {
        self.id("req_", "request")
    }

    fn substituted(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                let directory = self.directory.as_deref().unwrap_or(UNKNOWN_DIRECTORY);
                Value::String(text.replace(DIRECTORY_VARIABLE, directory))
            }
            Value::Array(items) => items.iter().map(|item| self.substituted(item)).collect(),
            Value::Object(map) => {
                map.iter().map(|(key, item)| (key.clone(), self.substituted(item))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn message(&self, content: &[Value], stop_reason: Option<&str>, usage: Usage) -> Value {
        json!({
            "id": self.id("msg_", "message"), "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": stop_reason, "stop_sequence": null, "usage": usage.in_message(),
        })
    }
}

/// Makes the one piece of a reply that is not streamed.
pub(crate) fn whole(reply: &Reply, context: &Context) -> VecDeque<Act> {
    let message = context.message(&blocks(reply, context), Some(stop_reason(reply)), reply.usage);
    VecDeque::from([Act::Send(Piece {
        bytes: message.to_string().into(),
        paced: false,
        usage: Some((reply.usage, true)),
    })])
}

/// Makes a body that is not a message and tells no usage.
pub(crate) fn plain(body: impl Into<Bytes>) -> VecDeque<Act> {
    VecDeque::from([Act::Send(Piece { bytes: body.into(), paced: false, usage: None })])
}

/// Makes the `error` body of the API.
pub(crate) fn error_json(error: &ErrorBody, context: &Context) -> Value {
    json!({
        "type": "error",
        "error": {"type": error.error_type, "message": error.message},
        "request_id": context.request_id(),
    })
}

/// Makes the server-sent events of a streamed reply, with what goes wrong in it.
pub(crate) fn stream(reply: &Reply, fault: Option<&Fault>, context: &Context) -> VecDeque<Act> {
    let mut script = Script { acts: VecDeque::new(), fault, ended: false };
    let message = context.message(&[], None, reply.usage.at_start());
    script.event("message_start", json!({"message": message}), Some((reply.usage.at_start(), false)));
    script.cut_at(Cut::Start);
    script.event("ping", json!({}), None);
    if let Some(Fault::StreamError(error)) = fault {
        script.event("error", json!({"error": {"type": error.error_type, "message": error.message}}), None);
        script.ended = true;
    }
    for (index, block) in blocks(reply, context).into_iter().enumerate() {
        script.block(index, &block);
    }
    script.cut_at(Cut::BeforeStop);
    let delta = json!({"stop_reason": stop_reason(reply), "stop_sequence": null});
    script.event(
        "message_delta",
        json!({"delta": delta, "usage": reply.usage.in_delta()}),
        Some((reply.usage, true)),
    );
    script.event("message_stop", json!({}), None);
    script.acts
}

fn stop_reason(reply: &Reply) -> &str {
    let by_blocks = if reply.tools.is_empty() { "end_turn" } else { "tool_use" };
    reply.stop_reason.as_deref().unwrap_or(by_blocks)
}

fn blocks(reply: &Reply, context: &Context) -> Vec<Value> {
    let thinking = reply
        .thinking
        .iter()
        .map(|thinking| json!({"type": "thinking", "thinking": thinking, "signature": SIGNATURE}));
    let text =
        reply.text.iter().filter(|text| !text.is_empty()).map(|text| json!({"type": "text", "text": text}));
    let tools = reply.tools.iter().enumerate().map(|(index, tool)| {
        let id = context.id("toolu_", &format!("tool {index}"));
        json!({"type": "tool_use", "id": id, "name": tool.name, "input": context.substituted(&tool.input)})
    });
    thinking.chain(text).chain(tools).collect()
}

/// The events of a reply so far. After a cut, a stall or an error event nothing is added any more.
struct Script<'a> {
    acts: VecDeque<Act>,
    fault: Option<&'a Fault>,
    ended: bool,
}

impl Script<'_> {
    fn event(&mut self, kind: &str, fields: Value, usage: Option<(Usage, bool)>) {
        self.push(kind, fields, usage, false);
    }

    fn push(&mut self, kind: &str, mut fields: Value, usage: Option<(Usage, bool)>, paced: bool) {
        if self.ended {
            return;
        }
        fields["type"] = json!(kind);
        let bytes = format!("event: {kind}\ndata: {fields}\n\n").into();
        self.acts.push_back(Act::Send(Piece { bytes, paced, usage }));
    }

    fn cut_at(&mut self, point: Cut) {
        if matches!(self.fault, Some(Fault::Cut(cut)) if *cut == point) {
            self.end_with(Act::Cut);
        }
    }

    fn stall(&mut self) {
        if matches!(self.fault, Some(Fault::Stall)) {
            self.end_with(Act::Stall);
        }
    }

    fn end_with(&mut self, act: Act) {
        if !self.ended {
            self.acts.push_back(act);
            self.ended = true;
        }
    }

    fn block(&mut self, index: usize, block: &Value) {
        let mut start = block.clone();
        let (deltas, cut) = match block["type"].as_str() {
            Some("text") => {
                start["text"] = json!("");
                (word_deltas("text_delta", "text", &block["text"]), Some(Cut::Text))
            }
            Some("thinking") => {
                start["thinking"] = json!("");
                start["signature"] = json!("");
                let mut deltas = word_deltas("thinking_delta", "thinking", &block["thinking"]);
                deltas.push(json!({"type": "signature_delta", "signature": block["signature"]}));
                (deltas, None)
            }
            _ => {
                start["input"] = json!({});
                let input = block["input"].to_string();
                let delta = |half| json!({"type": "input_json_delta", "partial_json": half});
                (halves(&input).map(delta).into(), Some(Cut::Tool))
            }
        };
        let paced = block["type"] != "tool_use";
        self.event("content_block_start", json!({"index": index, "content_block": start}), None);
        let middle = deltas.len() / 2;
        for (number, delta) in deltas.into_iter().enumerate() {
            if number == middle {
                if let Some(point) = cut {
                    self.cut_at(point);
                }
                self.stall();
            }
            self.push("content_block_delta", json!({"index": index, "delta": delta}), None, paced);
        }
        self.event("content_block_stop", json!({"index": index}), None);
    }
}

fn word_deltas(kind: &str, key: &str, text: &Value) -> Vec<Value> {
    let text = text.as_str().unwrap_or_default();
    words(text).into_iter().map(|word| json!({"type": kind, key: word})).collect()
}

/// Splits a text into words that keep the blanks after them; put together they are the text.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let blank = rest[word..].find(char::is_whitespace).map_or(rest.len(), |at| word + at);
        let next = rest[blank..].find(|c: char| !c.is_whitespace()).map_or(rest.len(), |at| blank + at);
        let (head, tail) = rest.split_at(next);
        words.push(head);
        rest = tail;
    }
    words
}

fn halves(text: &str) -> [&str; 2] {
    let middle = text.ceil_char_boundary(text.len() / 2);
    let (first, second) = text.split_at(middle);
    [first, second]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;

    fn context() -> Context {
        Context { model: "m".to_owned(), directory: Some("/srv/it".to_owned()), salt: "s".to_owned() }
    }

    fn step(value: Value) -> Step {
        Step::from_value(value).expect("a step")
    }

    fn events(step: &Step) -> Vec<String> {
        let name = |act: &Act| match act {
            Act::Send(piece) => {
                let text = String::from_utf8_lossy(&piece.bytes).into_owned();
                text.lines().next().and_then(|line| line.strip_prefix("event: ")).unwrap_or("?").to_owned()
            }
            Act::Cut => "CUT".to_owned(),
            Act::Stall => "STALL".to_owned(),
        };
        stream(&step.reply, step.fault.as_ref(), &context()).iter().map(name).collect()
    }

    #[test]
    fn words_put_together_are_the_text() {
        for text in ["", "one", " lead and  gaps\n\ttrail  ", "   ", "häß lich"] {
            assert_eq!(words(text).concat(), text);
        }
        assert_eq!(words("a b"), ["a ", "b"]);
    }

    #[test]
    fn halves_keep_characters_whole() {
        assert_eq!(halves("aé").concat(), "aé");
        assert_eq!(halves("{}"), ["{", "}"]);
    }

    #[test]
    fn a_stream_has_every_block_and_its_end() {
        let step = step(
            json!({"thinking": "a b", "text": "c", "tool": {"name": "T", "input": {"p": ["$CWD/x", 1]}}}),
        );
        let delta = "content_block_delta";
        assert_eq!(
            events(&step),
            [
                "message_start",
                "ping",
                "content_block_start",
                delta,
                delta,
                delta,
                "content_block_stop",
                "content_block_start",
                delta,
                "content_block_stop",
                "content_block_start",
                delta,
                delta,
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        );
        let message: Value = match &whole(&step.reply, &context())[0] {
            Act::Send(piece) => serde_json::from_slice(&piece.bytes).unwrap(),
            Act::Cut | Act::Stall => panic!("no piece"),
        };
        assert_eq!(message["content"][2]["input"], json!({"p": ["/srv/it/x", 1]}));
        assert_eq!(message["stop_reason"], "tool_use");
    }

    #[test]
    fn faults_end_the_stream_at_their_point() {
        let (start, delta) = ("content_block_start", "content_block_delta");
        let cut = |point: &str| step(json!({"text": "a b", "cut": point}));
        assert_eq!(events(&cut("start")), ["message_start", "CUT"]);
        assert_eq!(events(&cut("text")), ["message_start", "ping", start, delta, "CUT"]);
        let whole_block = ["message_start", "ping", start, delta, delta, "content_block_stop", "CUT"];
        assert_eq!(events(&cut("before_stop")), whole_block);
        let tool = step(json!({"tool": {"name": "T", "input": {}}, "cut": "tool"}));
        assert_eq!(events(&tool), ["message_start", "ping", start, delta, "CUT"]);
        let stall = step(json!({"text": "a b", "stall": true}));
        assert_eq!(events(&stall), ["message_start", "ping", start, delta, "STALL"]);
        let error = step(json!({"text": "a", "sse_error": {"type": "e", "message": "m"}}));
        assert_eq!(events(&error), ["message_start", "ping", "error"]);
    }

    #[test]
    fn identifiers_differ_between_replies_and_not_between_two_renderings_of_one() {
        let other = Context { salt: "t".to_owned(), ..context() };
        assert_eq!(context().request_id(), context().request_id());
        assert_ne!(context().request_id(), other.request_id());
        assert_eq!(context().request_id().len(), "req_".len() + ID_CHARACTERS);
    }
}
