//! What a client asks for that is not done here, in sentences for the answer.

use std::collections::BTreeMap;

use caisson_domain::run::cut;
use serde_json::Value;

/// Most fields that are named; of further ones only that there are some.
const NAMED: usize = 10;
/// Longest part of a name that is repeated, in bytes.
const NAME_BYTES: usize = 64;
/// Labels of upstream's own, which ask for nothing.
const LABELS: [&str; 4] = ["message_type", "session_origin", "pr_title", "pr_body"];

/// The sentences, each with a space before it; empty if all is done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Undone(String);

impl Undone {
    /// Looks at the fields of a body that nobody took. `goes_on` is whether the run goes on with a session.
    pub(super) fn of(left: BTreeMap<String, Value>, goes_on: bool) -> Self {
        let mut undone = Self::default();
        let mut others = Vec::new();
        for (name, value) in left {
            if !asks(&value) || LABELS.contains(&name.as_str()) {
                continue;
            }
            match name.as_str() {
                "create_pr_on_success" => {
                    undone.say("No pull request is opened here: its work is pushed to a branch of its own.");
                }
                "media_contents" => undone.say(
                    "What is in media_contents is not given to the agent; POST /v1/runs takes attachments.",
                ),
                "system_prompt" => undone.say("system_prompt is not used: the workflow has one of its own."),
                // A new session has nothing that could be left out.
                "message_limit" if !goes_on => {}
                "message_limit" => {
                    undone.say("message_limit is not used: a session goes on with all that was said in it.");
                }
                _ => others.push(cut(&name, NAME_BYTES).escape_debug().to_string()),
            }
        }
        if !others.is_empty() {
            let more = if others.len() > NAMED { " and more" } else { "" };
            others.truncate(NAMED);
            undone.say(&format!("Not used: {}{more}.", others.join(", ")));
        }
        undone
    }

    pub(super) fn say(&mut self, sentence: &str) {
        self.0.push(' ');
        self.0.push_str(sentence);
    }

    /// To be set behind another sentence.
    pub(super) fn behind(&self) -> &str {
        &self.0
    }

    /// By itself; none if all is done.
    pub(super) fn alone(&self) -> Option<String> {
        let text = self.0.trim_start();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Whether a value asks for anything: clients send what is empty for what they leave out.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(body: &Value, goes_on: bool) -> Option<String> {
        let fields: BTreeMap<String, Value> =
            body.as_object().unwrap().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Undone::of(fields, goes_on).alone()
    }

    #[test]
    fn what_asks_for_nothing_is_not_told() {
        let empty = json!({ "create_pr_on_success": false, "pr_title": "t", "media_contents": [], "context": {},
            "system_prompt": "", "unknown": null, "session_origin": "automagik-agent", "message_type": "text" });
        assert_eq!(told(&empty, true), None);
        assert_eq!(told(&json!({ "message_limit": 10 }), false), None, "a new session has no messages");
    }

    #[test]
    fn what_is_not_done_is_told_up_to_the_bound() {
        for (body, part) in [
            (json!({ "create_pr_on_success": true, "pr_title": "t" }), "No pull request is opened"),
            (json!({ "media_contents": [{ "mime_type": "image/png" }] }), "media_contents is not given"),
            (json!({ "system_prompt": "Be brief." }), "system_prompt is not used"),
            (json!({ "message_limit": 10 }), "message_limit is not used"),
            (json!({ "run_count": 2, "context": "x" }), "Not used: context, run_count."),
        ] {
            assert!(told(&body, true).unwrap().contains(part), "{body}");
        }
        let names = |count: usize| -> Value {
            (0..count)
                .map(|number| (format!("f{number:02}"), json!(1)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        assert!(told(&names(NAMED), false).unwrap().ends_with("f09."));
        assert!(told(&names(NAMED + 1), false).unwrap().ends_with("f09 and more."));
        let long = told(&json!({ "n".repeat(NAME_BYTES + 1): 1 }), false).unwrap();
        assert_eq!(long, format!("Not used: {}.", "n".repeat(NAME_BYTES)));
    }
}
