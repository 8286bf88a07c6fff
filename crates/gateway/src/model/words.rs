//! What the model API says when it refuses: read within bounds, and fit to be shown.

use caisson_domain::redact::Redactor;
use http::StatusCode;
use serde_json::Value;
use tokio::time::timeout;

use crate::bounds::{WORDS, WORDS_BYTES};

/// Longest sentence taken from a refusal, in characters.
const SENTENCE_CHARS: usize = 500;

/// Reads the beginning of a refusal's body and finds its sentence, without live secrets should they be in it.
pub(super) async fn words(mut upstream: reqwest::Response, redactor: &Redactor) -> String {
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
    sentence(status, &body, redactor)
}

/// One line: the status, and what the body says. Secrets go before anything is cut, since the beginning of one would not be
/// found any more; so does one that the end of what was read cuts off.
fn sentence(status: StatusCode, body: &[u8], redactor: &Redactor) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let error = json.as_ref().and_then(|json| json.get("error"));
    let said = error.and_then(|error| error.get("message").and_then(Value::as_str).or(error.as_str()));
    let kind = error.and_then(|error| error.get("type")).and_then(Value::as_str);
    let text = match (kind, said) {
        (Some(kind), Some(said)) => format!("{kind}: {said}"),
        (None, Some(said)) => said.to_owned(),
        (_, None) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = redactor.cut_text(&text);
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

    const KEY: &str = "sk-canary-of-the-api";

    fn of(body: &str) -> String {
        let redactor = Redactor::new([&secrecy::SecretString::from(KEY)]);
        sentence(StatusCode::TOO_MANY_REQUESTS, body.as_bytes(), &redactor)
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
            of(&format!(r#"{{"error":{{"message":"key {KEY} is bad"}}}}"#)),
            "HTTP 429, key [redacted] is bad"
        );
        for (fill, secret) in (400..500).flat_map(|fill| [(fill, KEY.to_owned()), (fill, hex::encode(KEY))]) {
            let said = of(&format!(r#"{{"error":{{"message":"{}{secret}"}}}}"#, "x".repeat(fill)));
            assert!(!said.contains("sk-") && !said.contains(&secret[..6]), "{said}");
        }
        // Cut off where reading ends, behind nothing that is shown.
        let fill = " ".repeat(WORDS_BYTES - 12);
        assert_eq!(of(&format!("no{fill}{}", &KEY[..10])), "HTTP 429, no [redacted]");
        assert_eq!(of(&"x".repeat(WORDS_BYTES)).chars().count(), "HTTP 429, ".len() + SENTENCE_CHARS);
    }
}
