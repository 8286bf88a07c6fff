//! A line of the agent, as far as somebody reads it. It comes out of a sandbox, so it may be anything: only one block of it at a time
//! becomes more than text, since as a tree a line may take a hundred times its memory.

use std::borrow::Cow;

use caisson_domain::json::{JSON_VALUES, values};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

/// What a line says, and by whom.
#[derive(Debug)]
pub(crate) struct AgentLine<'a> {
    /// `assistant`, `user` or something else.
    pub(crate) kind: Cow<'a, str>,
    /// Whether a subagent says it.
    pub(crate) of_subagent: bool,
    content: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    parent_tool_use_id: Option<IgnoredAny>,
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Vec<&'a RawValue>,
}

impl<'a> AgentLine<'a> {
    /// None if it is no message of blocks.
    pub(crate) fn of(line: &'a str) -> Option<Self> {
        let Line { kind, parent_tool_use_id, message } = serde_json::from_str(line).ok()?;
        Some(Self { kind, of_subagent: parent_tool_use_id.is_some(), content: message.content })
    }

    /// Its blocks, one after the other; none in the place of one that has too many values, or lies too deep, to be shown.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Option<Value>> {
        self.content.iter().map(|block| {
            let text = block.get();
            (values(text.as_bytes()) <= JSON_VALUES).then(|| serde_json::from_str(text).ok()).flatten()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_block_of_too_many_values_is_told_as_missing_and_the_others_are_read() {
        let line = |items: usize| {
            let block = json!({ "type": "x", "list": vec![0; items] });
            json!({ "type": "user", "message": { "content": [block, { "type": "text" }] } }).to_string()
        };
        let read = |text: &str| AgentLine::of(text).unwrap().blocks().collect::<Vec<_>>();
        // The block itself, its list and its type.
        let fits = read(&line(JSON_VALUES - 3));
        assert_eq!(fits[0].as_ref().unwrap()["list"].as_array().unwrap().len(), JSON_VALUES - 3);
        let more = read(&line(JSON_VALUES - 2));
        assert_eq!(more, [None, Some(json!({ "type": "text" }))]);
    }

    #[test]
    fn whatever_else_a_line_has_is_not_read() {
        let many = vec![0; JSON_VALUES];
        let line =
            json!({ "type": "user", "tool_use_result": many, "message": { "content": [7], "usage": many } });
        let deep = line
            .to_string()
            .replace("\"usage\":", &format!("\"deep\":{}{},\"usage\":", "[".repeat(300), "]".repeat(300)));
        let read = AgentLine::of(&deep).unwrap();
        assert_eq!((read.kind.as_ref(), read.of_subagent), ("user", false));
        assert_eq!(read.blocks().collect::<Vec<_>>(), [Some(json!(7))]);
    }

    #[test]
    fn a_subagents_line_is_known_and_what_is_no_message_is_none() {
        let of = |parent: &str| {
            format!(r#"{{"type":"assistant","parent_tool_use_id":{parent},"message":{{"content":[]}}}}"#)
        };
        assert!(AgentLine::of(&of("\"t1\"")).unwrap().of_subagent);
        assert!(!AgentLine::of(&of("null")).unwrap().of_subagent);
        for none in ["", "7", "[1]", r#"{"type":"system"}"#, r#"{"type":"user","message":{"content":"x"}}"#] {
            assert!(AgentLine::of(none).is_none(), "{none}");
        }
    }
}
