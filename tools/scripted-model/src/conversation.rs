//! What a Messages API request says about the conversation it continues.
//!
//! The client is Claude Code 2.1.330, whose requests carry more than prompts in `role: "user"` messages: tool results,
//! and reminders in `<system-reminder>` tags. Both are told apart from what a person asked. What a person says while a turn
//! goes on comes in a `role: "system"` message, and is a prompt of its own here.

use serde::Deserialize;

/// The scenario marker in a prompt: `[[scn:NAME]]`.
const MARKER_START: &str = "[[scn:";
const MARKER_END: &str = "]]";
/// What stands before it.
const WITHIN_TURN: &str = "The user sent a new message while you were working:";
const REMINDER: &str = "<system-reminder>";
/// What stands in place of the rest of a turn that was interrupted; what a person says next follows in the same message.
const INTERRUPTED: &str = "[Request interrupted by user";
/// What stands before the agent's working directory in the text the CLI sends about its environment.
const DIRECTORY_LABEL: &str = "Primary working directory: ";

/// The parts of a request that decide about the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conversation {
    /// The model asked for.
    pub(crate) model: String,
    /// Whether the reply is to be streamed.
    pub(crate) stream: bool,
    /// The scenario named by the prompts, if any.
    pub(crate) scenario: Option<String>,
    /// The prompts since that scenario began, oldest first.
    pub(crate) prompts: Vec<String>,
    /// Replies to the latest prompt so far.
    pub(crate) answered: usize,
    /// The agent's working directory, where the request tells it.
    pub(crate) directory: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    system: Content,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

impl Default for Content {
    fn default() -> Self {
        Self::Blocks(Vec::new())
    }
}

impl Content {
    fn texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::Blocks(blocks) => {
                blocks.iter().filter(|block| block.kind == "text").map(|block| block.text.as_str()).collect()
            }
        }
    }

    fn has_tool_result(&self) -> bool {
        matches!(self, Self::Blocks(blocks) if blocks.iter().any(|block| block.kind == "tool_result"))
    }
}

impl Message {
    /// Returns the words of a person, or `None` for tool results, reminders and other roles.
    fn prompt(&self) -> Option<String> {
        if self.role == "system" {
            let said = self.content.texts().into_iter().find(|text| text.starts_with(WITHIN_TURN))?;
            return Some(said.to_owned());
        }
        let texts = self.content.texts();
        let interrupted = texts.iter().any(|text| text.starts_with(INTERRUPTED));
        if self.role != "user" || (self.content.has_tool_result() && !interrupted) {
            return None;
        }
        let said = |text: &&str| ![REMINDER, INTERRUPTED].iter().any(|no| text.trim_start().starts_with(no));
        Some(texts.into_iter().filter(said).collect::<Vec<_>>().join("\n")).filter(|text| !text.is_empty())
    }
}

impl Conversation {
    /// Reads a request body.
    ///
    /// Prompts without a reply between them (the first was interrupted) count as one, and the last one's words stand.
    /// A marker holds until a later prompt names another scenario.
    ///
    /// # Errors
    /// The parser's words when the body is not a Messages API request.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        let request: Request = serde_json::from_slice(body)?;
        let mut conversation = Self {
            directory: request.directory(),
            model: request.model,
            stream: request.stream,
            scenario: None,
            prompts: Vec::new(),
            answered: 0,
        };
        for message in &request.messages {
            if message.role == "assistant" {
                conversation.answered += 1;
            } else if let Some(prompt) = message.prompt() {
                conversation.add_prompt(prompt);
            }
        }
        Ok(conversation)
    }

    fn add_prompt(&mut self, prompt: String) {
        if self.answered == 0 {
            self.prompts.pop();
        }
        let marked = marker(&prompt);
        if marked.is_some() && marked != self.scenario {
            self.scenario = marked;
            self.prompts.clear();
        }
        self.prompts.push(prompt);
        self.answered = 0;
    }
}

impl Request {
    fn directory(&self) -> Option<String> {
        let messages = self.messages.iter().filter(|message| message.role != "assistant");
        let contents = std::iter::once(&self.system).chain(messages.map(|message| &message.content));
        let mut texts = contents.flat_map(Content::texts);
        texts.find_map(|text| {
            let (_, rest) = text.split_once(DIRECTORY_LABEL)?;
            let directory = rest.lines().next()?.trim_end();
            directory.starts_with('/').then(|| directory.to_owned())
        })
    }
}

/// Finds the last marker in a prompt.
fn marker(prompt: &str) -> Option<String> {
    let (_, rest) = prompt.rsplit_once(MARKER_START)?;
    let (name, _) = rest.split_once(MARKER_END)?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn user(text: &str) -> Value {
        json!({"role": "user", "content": text})
    }

    fn reply() -> Value {
        json!({"role": "assistant", "content": [{"type": "text", "text": "[[scn:assistant]]"}]})
    }

    fn result() -> Value {
        json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "[[scn:result]]"}]})
    }

    fn parse(messages: &[Value]) -> Conversation {
        Conversation::parse(json!({"model": "m", "messages": messages}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn replies_are_counted_since_the_latest_prompt() {
        let parsed = parse(&[user("a"), reply(), result(), reply(), result()]);
        assert_eq!((parsed.prompts.len(), parsed.answered), (1, 2));
        let parsed = parse(&[user("a"), reply(), result(), reply(), user("b")]);
        assert_eq!((parsed.prompts, parsed.answered), (vec!["a".to_owned(), "b".to_owned()], 0));
    }

    #[test]
    fn what_follows_an_interruption_is_a_prompt_though_it_comes_with_the_tools_result() {
        let cut = json!([
            {"type": "tool_result", "tool_use_id": "t", "content": "stopped"},
            {"type": "text", "text": "[Request interrupted by user for tool use]"},
        ]);
        let alone = json!({"role": "user", "content": cut});
        assert_eq!(parse(&[user("a"), reply(), alone]).prompts, ["a"]);
        let mut with_words = cut;
        with_words.as_array_mut().unwrap().push(json!({"type": "text", "text": "b"}));
        let parsed = parse(&[user("a"), reply(), json!({"role": "user", "content": with_words})]);
        assert_eq!((parsed.prompts, parsed.answered), (vec!["a".to_owned(), "b".to_owned()], 0));
    }

    #[test]
    fn reminders_and_tool_results_are_no_prompts() {
        let reminder = json!({"role": "user", "content": [
            {"type": "text", "text": " <system-reminder>x</system-reminder>"},
            {"type": "text", "text": "do it"},
        ]});
        let parsed = parse(&[user("<system-reminder>y</system-reminder>"), reminder, reply(), result()]);
        assert_eq!((parsed.prompts, parsed.answered), (vec!["do it".to_owned()], 1));
        assert_eq!(parsed.scenario, None);
    }

    #[test]
    fn what_a_person_says_while_the_agent_works_is_a_prompt() {
        let said = format!("{WITHIN_TURN}\nhurry\n\nThis is how Claude Code surfaces it.");
        let mut messages = vec![
            json!({"role": "user", "content": "do it"}),
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]}),
            json!({"role": "system", "content": [{"type": "text", "text": said}]}),
        ];
        let parsed = parse(&messages);
        assert_eq!((parsed.prompts, parsed.answered), (vec!["do it".to_owned(), said.clone()], 0));
        messages.push(json!({"role": "assistant", "content": "yes"}));
        messages.push(json!({"role": "system", "content": "Today is another day."}));
        let parsed = parse(&messages);
        assert_eq!((parsed.prompts.len(), parsed.answered), (2, 1));
    }

    #[test]
    fn interrupted_prompts_count_as_one() {
        let parsed = parse(&[user("a"), user("[Request interrupted by user]"), user("b")]);
        assert_eq!(parsed.prompts, vec!["b".to_owned()]);
        let environment = json!({"role": "system", "content": "x"});
        let parsed = parse(&[user("a"), environment, user("b"), reply()]);
        assert_eq!((parsed.prompts, parsed.answered), (vec!["b".to_owned()], 1));
    }

    #[test]
    fn a_marker_holds_until_another_one_and_numbers_prompts_anew() {
        let parsed = parse(&[user("x [[scn:one]]"), reply(), user("y"), reply()]);
        assert_eq!((parsed.scenario.as_deref(), parsed.prompts.len()), (Some("one"), 2));
        let parsed = parse(&[user("[[scn:one]]"), reply(), user("[[scn:a]] then [[scn:two]]")]);
        assert_eq!((parsed.scenario.as_deref(), parsed.prompts.len()), (Some("two"), 1));
        let parsed = parse(&[user("[[scn:one]]"), reply(), user("[[scn:one]]")]);
        assert_eq!((parsed.scenario.as_deref(), parsed.prompts.len()), (Some("one"), 2));
        assert_eq!(marker("[[scn:open"), None);
    }

    #[test]
    fn the_working_directory_is_found_where_the_client_puts_it() {
        let text = "# Environment\n - Primary working directory: /srv/a b/c\n - Platform: linux";
        let in_message = parse(&[user("hi"), json!({"role": "system", "content": text})]);
        assert_eq!(in_message.directory.as_deref(), Some("/srv/a b/c"));
        let body = json!({"messages": [], "system": [{"type": "text", "text": text}]}).to_string();
        assert_eq!(Conversation::parse(body.as_bytes()).unwrap().directory.as_deref(), Some("/srv/a b/c"));
        assert_eq!(parse(&[user("Primary working directory: relative")]).directory, None);
    }

    #[test]
    fn a_body_without_messages_is_refused() {
        let error = Conversation::parse(b"{\"model\":\"m\"}").expect_err("no messages").to_string();
        assert!(error.starts_with("missing field `messages`"), "{error}");
    }
}
