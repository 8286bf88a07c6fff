//! What went wrong with a call, for people.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use serde_json::Value;
use url::Url;

/// What to do where no answer came: whether nobody is there, or whether the two sides do not understand one another.
pub(super) fn unanswered(base: &Url, error: &reqwest::Error) -> String {
    match tls_fault(error) {
        Some(rustls::Error::InvalidCertificate(_)) => format!(
            "the certificate of the server at {base} cannot be trusted; give a PEM file with its authority as --ca-file or \
             CAISSON_CA_FILE, and use a name or address that the certificate has"
        ),
        Some(rustls::Error::InvalidMessage(_)) => format!(
            "what answers at {base} does not speak TLS; if the server has no certificate, set CAISSON_URL to http://…"
        ),
        Some(_) => format!("no TLS connection can be made to the server at {base}"),
        None if error.is_timeout() && !error.is_connect() => format!(
            "the server at {base} did not answer in time, or the connection was too slow for what was sent; try again"
        ),
        None if error.is_connect() => {
            format!("no server answers at {base}; start one with `caisson serve` or set CAISSON_URL")
        }
        None if base.scheme() == "http" => format!(
            "what answers at {base} broke off or does not speak plain HTTP; if the server has a certificate, set \
             CAISSON_URL to https://…"
        ),
        None => format!("the server at {base} broke off before it answered"),
    }
}

/// The fault of TLS among an error's causes.
fn tls_fault(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(fault) = error.downcast_ref() {
            return Some(fault);
        }
        // An I/O error passes over what it is made of.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The server answered and said no: trying again changes nothing, unless it says when it would.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    message: String,
    code: Option<String>,
    /// When to come again, if that may help.
    retry_after: Option<Duration>,
}

impl Refused {
    /// A refusal in these words; `code` is the problem's stable one.
    pub(crate) const fn new(message: String, code: Option<String>) -> Self {
        Self { message, code, retry_after: None }
    }

    /// The same, of a server that says when to come again.
    #[cfg(test)]
    pub(crate) fn for_now(retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new("come again".to_owned(), None) }
    }

    /// Whether the problem's stable code is this one.
    pub(crate) fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// When to come again; none if that changes nothing.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

/// Turns a problem+json answer into an error for people.
pub(super) async fn problem(response: reqwest::Response) -> anyhow::Error {
    let status = response.status();
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = seconds.filter(|_| status == StatusCode::TOO_MANY_REQUESTS).map(Duration::from_secs);
    let body: Value = response.json().await.unwrap_or(Value::Null);
    let detail = body["detail"].as_str().or(body["title"].as_str()).unwrap_or("the server gave no reason");
    let mut message = detail.to_owned();
    for error in body["errors"].as_array().into_iter().flatten() {
        let field = error["field"].as_str().unwrap_or("request");
        let text = error["message"].as_str().unwrap_or_default();
        message = format!("{message}\n  {field}: {text}");
    }
    let code = body["code"].as_str().map(str::to_owned);
    if let Some(code) = &code {
        message = format!("{message} [{code}]");
    }
    if status == StatusCode::UNAUTHORIZED {
        message.push_str("; set CAISSON_API_KEY to a key of this server");
    }
    if code.as_deref() == Some("scope_missing") {
        message.push_str(
            "; `caisson key create NAME --scope SCOPE` on the server's machine makes a key that has it",
        );
    }
    if status.is_server_error() {
        anyhow::anyhow!(message)
    } else {
        Refused { message, code, retry_after }.into()
    }
}
