//! What the model API says when it refuses: read within bounds, and fit to be shown.

use http::{HeaderValue, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use crate::bounds::{WORDS, WORDS_BYTES};

/// Longest sentence taken from a refusal, in characters.
const SENTENCE_CHARS: usize = 500;

/// Reads the beginning of a refusal's body and finds its sentence. The real credential is taken out, should it be in it.
pub(super) async fn words(mut upstream: reqwest::Response, credential: &HeaderValue) -> String {
    let status = upstream.status();
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = upstream.chunk().await {
            let room = WORDS_BYTES - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() >= WORDS_BYTES {
                return;
            }
        }
    };
    // What came in time is enough.
    drop(timeout(WORDS, read).await);
    let secret = credential.to_str().ok().map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
    sentence(status, &body, secret)
}

/// One line: the status, and what the body says.
fn sentence(status: StatusCode, body: &[u8], secret: Option<&str>) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let error = json.as_ref().and_then(|json| json.get("error"));
    let said = error.and_then(|error| error.get("message").and_then(Value::as_str).or(error.as_str()));
    let kind = error.and_then(|error| error.get("type")).and_then(Value::as_str);
    let text = match (kind, said) {
        (Some(kind), Some(said)) => format!("{kind}: {said}"),
        (None, Some(said)) => said.to_owned(),
        (_, None) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => text.replace(secret, "[credential]"),
        None => text,
    };
    let plain = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = plain.collect::<Vec<_>>().join(" ");
    let line: String = line.chars().take(SENTENCE_CHARS).collect();
    if line.is_empty() {
        format!("HTTP {}", status.as_u16())
    } else {
        format!("HTTP {}, {line}", status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> String {
        sentence(StatusCode::TOO_MANY_REQUESTS, body.as_bytes(), Some("sk-canary"))
    }

    #[test]
    fn the_sentence_of_a_refusal_is_found_in_its_body() {
        let body = r#"{"type":"error","error":{"type":"rate_limit_error","message":"Slow\n down"}}"#;
        assert_eq!(of(body), "HTTP 429, rate_limit_error: Slow down");
        assert_eq!(of(r#"{"error":"no"}"#), "HTTP 429, no");
        assert_eq!(of("<html>\u{1b}[31m busy</html>"), "HTTP 429, <html> [31m busy</html>");
        assert_eq!(of(""), "HTTP 429");
    }

    #[test]
    fn it_is_short_and_without_the_credential() {
        assert_eq!(
            of(r#"{"error":{"message":"key sk-canary is bad"}}"#),
            "HTTP 429, key [credential] is bad"
        );
        assert_eq!(of(&"x".repeat(WORDS_BYTES)).chars().count(), "HTTP 429, ".len() + SENTENCE_CHARS);
    }
}
