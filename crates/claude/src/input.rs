//! What the CLI is told on standard input: every function gives one whole line, its end included.
//!
//! A line that is not JSON kills the CLI, so nothing else may be written there.

use serde::Serialize;
use serde_json::{Value, json};

use crate::limits::PROMPT_BYTES_MAX;
use crate::uuid::Uuid;

/// Why a text cannot be a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// There is nothing in it.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// It is longer than [`PROMPT_BYTES_MAX`].
    #[error("the prompt has {bytes} bytes, more than {PROMPT_BYTES_MAX}")]
    PromptTooLong {
        /// Its length.
        bytes: usize,
    },
}

/// Writes a prompt.
///
/// The CLI answers a prompt with an id by [`crate::CommandLifecycle`] events and names the id in the result. An id
/// that the session has seen before, in this process or an earlier one, is not answered again.
///
/// A prompt that begins with a slash would be taken for a command of the CLI (`/model`, `/clear`), which the sender of
/// a task must not give: a space before the slash makes it a text, and nothing else is changed.
///
/// # Errors
/// [`InputError`] if the text is blank or too long.
pub fn user_prompt(uuid: &Uuid, text: &str) -> Result<String, InputError> {
    user_prompt_with(uuid, text, &[])
}

/// An image of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptImage<'a> {
    /// One of `image/png`, `image/jpeg`, `image/gif` and `image/webp`.
    pub media_type: &'a str,
    /// Its bytes in base64 (RFC 4648, section 4).
    pub base64: &'a str,
}

/// Writes a prompt with images, which come before the text. The CLI (2.1.330) makes an image smaller that has a side of more than
/// 2000 pixels or more than about 500 kB, and passes any other on as it is.
///
/// # Errors
/// As [`user_prompt`].
pub fn user_prompt_with<'a>(
    uuid: &Uuid,
    text: &str,
    images: &[PromptImage<'a>],
) -> Result<String, InputError> {
    if text.trim().is_empty() {
        return Err(InputError::EmptyPrompt);
    }
    if text.len() > PROMPT_BYTES_MAX {
        return Err(InputError::PromptTooLong { bytes: text.len() });
    }
    let guard = if text.starts_with('/') { " " } else { "" };
    let image = |image: &PromptImage<'a>| {
        let source = Source { kind: "base64", media_type: image.media_type, data: image.base64 };
        Block::Image { source }
    };
    let mut content: Vec<Block<'_>> = images.iter().map(image).collect();
    content.push(Block::Text { text: format!("{guard}{text}") });
    let message = Message { role: "user", content };
    Ok(line(&Prompt { kind: "user", uuid: uuid.as_str(), message }))
}

/// A prompt as the CLI reads it. The order of an image's fields is the one in which the CLI echoes them.
#[derive(Serialize)]
struct Prompt<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    uuid: &'a str,
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Block<'a> {
    Image { source: Source<'a> },
    Text { text: String },
}

#[derive(Serialize)]
struct Source<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    media_type: &'a str,
    data: &'a str,
}

/// Asks for what the CLI can do, and gets it before the first prompt.
#[must_use]
pub fn initialize(request_id: &str) -> String {
    request(request_id, "initialize")
}

/// Ends the running turn; the session stays usable. Without a running turn nothing happens, and prompts that wait are
/// taken up next.
#[must_use]
pub fn interrupt(request_id: &str) -> String {
    request(request_id, "interrupt")
}

/// Asks how the MCP servers are, before the first prompt as well; [`crate::server_statuses`] reads the answer.
#[must_use]
pub fn mcp_status(request_id: &str) -> String {
    request(request_id, "mcp_status")
}

/// Interrupts the running turn, if any, and ends the process.
#[must_use]
pub fn end_session(request_id: &str) -> String {
    request(request_id, "end_session")
}

/// Answers a request of the CLI.
#[must_use]
pub fn answer_success(request_id: &str, response: &Value) -> String {
    answer(&json!({ "subtype": "success", "request_id": request_id, "response": response }))
}

/// Answers a request of the CLI that it cannot be done. To `can_use_tool` this is a denial.
#[must_use]
pub fn answer_error(request_id: &str, message: &str) -> String {
    answer(&json!({ "subtype": "error", "request_id": request_id, "error": message }))
}

/// Lets a tool be used that the CLI asks about (`can_use_tool`), with this input.
#[must_use]
pub fn allow_tool(request_id: &str, input: &Value) -> String {
    answer_success(request_id, &json!({ "behavior": "allow", "updatedInput": input }))
}

/// Keeps a tool from being used that the CLI asks about; the model is told the message as the tool's result.
#[must_use]
pub fn deny_tool(request_id: &str, message: &str) -> String {
    answer_success(request_id, &json!({ "behavior": "deny", "message": message }))
}

/// Answers a request of the CLI that nobody here knows what to do with, so that its turn goes on.
#[must_use]
pub fn answer_unsupported(request_id: &str, subtype: &str) -> String {
    answer(&json!({
        "subtype": "error",
        "request_id": request_id,
        "error": format!("unsupported request: {subtype}"),
        "error_code": "unsupported_request",
    }))
}

fn request(request_id: &str, subtype: &str) -> String {
    let request = json!({ "subtype": subtype });
    line(&json!({ "type": "control_request", "request_id": request_id, "request": request }))
}

fn answer(response: &Value) -> String {
    line(&json!({ "type": "control_response", "response": response }))
}

/// One line. JSON escapes line feeds and carriage returns by itself; the line separators that Unicode adds, and at
/// which some readers also split, are escaped here. They occur only within strings.
fn line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).expect("a message is texts under text keys");
    for (separator, escape) in [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")] {
        if line.contains(separator) {
            line = line.replace(separator, escape);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uuid() -> Uuid {
        Uuid::parse("0192f0c1-2345-7abc-8def-0123456789ab").unwrap()
    }

    fn assert_one_line(line: &str) -> Value {
        let body = line.strip_suffix('\n').expect("a line ends");
        assert!(!body.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']), "{body:?}");
        serde_json::from_str(body).expect("a line is JSON")
    }

    #[test]
    fn every_message_is_one_line_of_json() {
        let id = "a\nb\u{2028}";
        let lines = [
            user_prompt(&uuid(), "two\nlines\r\u{85}\u{2028}\u{2029}").unwrap(),
            initialize(id),
            mcp_status(id),
            interrupt(id),
            end_session(id),
            answer_success(id, &json!({ "behavior": "allow", "updatedInput": { "a": "\n" } })),
            answer_error(id, "no\nno"),
            answer_unsupported(id, "new\nkind"),
        ];
        let values: Vec<Value> = lines.iter().map(|line| assert_one_line(line)).collect();
        insta::with_settings!({ sort_maps => true }, { insta::assert_json_snapshot!("messages", values) });
    }

    #[test]
    fn a_prompt_never_begins_with_a_slash() {
        let text = |prompt: &str| {
            let line = user_prompt(&uuid(), prompt).unwrap();
            assert_one_line(&line)["message"]["content"][0]["text"].as_str().unwrap().to_owned()
        };
        assert_eq!(text("/model opus"), " /model opus");
        assert_eq!(text("/"), " /");
        assert_eq!(text(" /model"), " /model");
        assert_eq!(text("fix a/b"), "fix a/b");
        assert_eq!(text("--help"), "--help");
    }

    #[test]
    fn images_come_before_the_text_of_a_prompt() {
        let images = [("image/png", "iVBO"), ("image/webp", "UklG")];
        let images = images.map(|(media_type, base64)| PromptImage { media_type, base64 });
        let value = assert_one_line(&user_prompt_with(&uuid(), "/look", &images).unwrap());
        let block = |media_type, data| json!({ "type": "image", "source": { "type": "base64", "media_type": media_type, "data": data } });
        let text = json!({ "type": "text", "text": " /look" });
        assert_eq!(
            value["message"]["content"],
            json!([block("image/png", "iVBO"), block("image/webp", "UklG"), text])
        );
        assert_eq!(user_prompt_with(&uuid(), " ", &images), Err(InputError::EmptyPrompt));
    }

    #[test]
    fn a_prompt_has_a_beginning_and_an_end() {
        assert_eq!(user_prompt(&uuid(), ""), Err(InputError::EmptyPrompt));
        assert_eq!(user_prompt(&uuid(), " \n\t"), Err(InputError::EmptyPrompt));
        assert!(user_prompt(&uuid(), &"x".repeat(PROMPT_BYTES_MAX)).is_ok());
        let bytes = PROMPT_BYTES_MAX + 1;
        assert_eq!(user_prompt(&uuid(), &"x".repeat(bytes)), Err(InputError::PromptTooLong { bytes }));
    }

    proptest! {
        #[test]
        fn any_prompt_arrives_unchanged_on_one_line(text in "\\PC*|[\\x00-\\x{2fff}]{1,40}") {
            prop_assume!(!text.trim().is_empty());
            let value = assert_one_line(&user_prompt(&uuid(), &text).unwrap());
            let sent = value["message"]["content"][0]["text"].as_str().unwrap();
            prop_assert_eq!(sent.strip_prefix(' ').filter(|s| s.starts_with('/')).unwrap_or(sent),
                text.strip_prefix(' ').filter(|s| s.starts_with('/')).unwrap_or(&text));
            prop_assert!(!sent.starts_with('/'));
        }
    }
}
