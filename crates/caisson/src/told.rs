//! What of the agent's messages was told as a whole: live text of it that comes now is late.

use std::collections::VecDeque;

use serde_json::Value;

use crate::client::LiveText;

/// How many messages are remembered; live text waits for a moment alone.
pub(crate) const MESSAGES: usize = 16;

/// The last messages, newest first, and how many blocks of each were told.
#[derive(Debug, Default)]
pub(crate) struct Told(VecDeque<(String, u32)>);

impl Told {
    /// Notes a line of the agent's output. Each line of a message is one of its blocks, in order.
    pub(crate) fn note(&mut self, line: &Value) {
        let Some(id) = line["message"]["id"].as_str().filter(|_| line["type"] == "assistant") else { return };
        if let Some((_, blocks)) = self.0.iter_mut().find(|(told, _)| told == id) {
            *blocks += 1;
            return;
        }
        self.0.truncate(MESSAGES - 1);
        self.0.push_front((id.to_owned(), 1));
    }

    /// Whether the block was told that this is a piece of.
    pub(crate) fn has(&self, live: &LiveText) -> bool {
        let told = self.0.iter().find(|(id, _)| !id.is_empty() && *id == live.message_id);
        told.is_some_and(|(_, blocks)| live.block < *blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_last_messages_are_remembered() {
        let mut told = Told::default();
        let live = |id: usize| LiveText {
            kind: "text".to_owned(),
            message_id: id.to_string(),
            block: 0,
            text: "x".to_owned(),
        };
        for id in 0..=MESSAGES {
            told.note(&json!({"type": "assistant", "message": {"id": id.to_string()}}));
        }
        assert!(!told.has(&live(0)) && told.has(&live(1)) && told.has(&live(MESSAGES)));
        told.note(&json!({"type": "user", "message": {"id": "mine"}}));
        assert_eq!(told.0.len(), MESSAGES);
    }
}
