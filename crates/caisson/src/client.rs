//! The API's client: what the commands on the terminal call.

mod workflows;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use caisson_domain::sse;

/// How long one call may take, unless it follows events.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the first reconnect of a followed run; it doubles up to [`RECONNECT_MAX`].
const RECONNECT_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between reconnects.
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// Reconnects in a row without a single event before following gives up.
const RECONNECTS: u32 = 60;

/// Talks to one server with one key.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: Url,
    key: String,
    http: reqwest::Client,
}

/// A run as the API shows it; fields this client does not know are kept in `rest`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunInfo {
    /// Its id.
    pub id: String,
    /// Its status.
    pub status: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

impl RunInfo {
    /// A text field.
    #[must_use]
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.rest.get(name).and_then(Value::as_str)
    }

    /// A number field.
    #[must_use]
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.rest.get(name).and_then(Value::as_i64)
    }

    /// Whether the run has ended.
    #[must_use]
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "cancelled")
    }
}

/// A file kept for a run, as the API shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ArtifactInfo {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// Unix ms.
    pub created_at_ms: i64,
}

/// A list as the API shows it.
#[derive(Debug, Deserialize)]
struct Items<T> {
    items: Vec<T>,
}

/// The bytes of an artifact, as they come.
#[derive(Debug)]
pub(crate) struct Chunks(reqwest::Response);

impl Chunks {
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// The connection broke, or brought nothing for [`CALL_TIMEOUT`].
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        let chunk = tokio::time::timeout(CALL_TIMEOUT, self.0.chunk()).await;
        chunk.context("the server sends nothing more")?.context("the connection to the server broke")
    }
}

/// One event as the API shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EventInfo {
    /// Its number.
    pub seq: i64,
    /// When, Unix ms.
    pub at_ms: i64,
    /// What it tells of.
    pub kind: String,
    /// The details.
    pub data: Value,
}

/// What following a run brings.
#[derive(Debug, Clone)]
pub(crate) enum Followed {
    /// A numbered event.
    Event(EventInfo),
    /// A piece of live text: kind and text.
    Delta(String, String),
}

impl Client {
    /// A client for the server at `base`.
    ///
    /// # Errors
    /// No key was given, the file with the authority cannot be used, or the HTTP client cannot be made.
    pub(crate) fn new(base: Url, key: Option<String>, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(key) = key.filter(|key| !key.is_empty()) else {
            bail!(
                "no API key; make one on the server's machine with `caisson key create NAME`, then set CAISSON_API_KEY"
            );
        };
        let mut builder = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(10));
        if let Some(file) = ca_file {
            let pem =
                std::fs::read(file).with_context(|| format!("\"{}\" cannot be read", file.display()))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("\"{}\" is no PEM file of certificates", file.display()))?;
            ensure!(
                !authorities.is_empty(),
                "\"{}\" holds no certificate; give a PEM file with the certificate of the server's authority",
                file.display()
            );
            builder = builder.tls_certs_merge(authorities);
        }
        let http = builder.build()?;
        Ok(Self { base, key, http })
    }

    fn url(&self, path: &str) -> anyhow::Result<Url> {
        self.base.join(path).with_context(|| format!("\"{}\" is not a server address", self.base))
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        Ok(self.http.request(method, self.url(path)?).bearer_auth(&self.key))
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let response = request.send().await.map_err(|error| {
            let message = unanswered(&self.base, &error);
            anyhow::Error::new(error).context(message)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/problem+json") {
            let status = response.status();
            let message = self.stranger(&format!("with status {status} and without a reason"));
            // A gateway between may say so for a while.
            return Err(if status.is_server_error() {
                anyhow::anyhow!(message)
            } else {
                Refused { message, code: None }.into()
            });
        }
        Err(problem(response).await)
    }

    async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.send(request.timeout(CALL_TIMEOUT)).await?;
        response.json().await.with_context(|| self.stranger("what is not JSON"))
    }

    /// Reads what a Caisson server would answer.
    async fn read<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let answer = self.json(request).await?;
        serde_json::from_value(answer).with_context(|| self.stranger("other JSON"))
    }

    /// Reads the items of a list.
    async fn items<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<Vec<T>> {
        Ok(self.read::<Items<T>>(request).await?.items)
    }

    fn stranger(&self, what: &str) -> String {
        format!("{} answers {what}, as no Caisson server does; check CAISSON_URL", self.base)
    }

    /// Submits a run.
    ///
    /// # Errors
    /// The server's problem, in its own words.
    pub(crate) async fn create_run(&self, body: &Value, idempotency_key: &str) -> anyhow::Result<RunInfo> {
        let request =
            self.request(Method::POST, "/v1/runs")?.json(body).header("idempotency-key", idempotency_key);
        self.read(request).await
    }

    /// Reads a run.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn run(&self, id: &str) -> anyhow::Result<RunInfo> {
        self.read(self.request(Method::GET, &format!("/v1/runs/{id}"))?).await
    }

    /// Lists the newest runs.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn list_runs(&self, status: Option<&str>, limit: u32) -> anyhow::Result<Vec<RunInfo>> {
        let mut request = self.request(Method::GET, "/v1/runs")?.query(&[("limit", limit.to_string())]);
        if let Some(status) = status {
            request = request.query(&[("status", status)]);
        }
        self.items(request).await
    }

    /// Reads the project's budgets.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn budget(&self) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, "/v1/budget")?).await
    }

    /// Sets the project's budgets.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn set_budget(&self, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::PUT, "/v1/budget")?.json(body)).await
    }

    /// Reads the queue, or does something to it and reads it then: `drain` or `resume`, with what is sent along.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn queue(&self, change: Option<(&str, &Value)>) -> anyhow::Result<Value> {
        self.json(match change {
            None => self.request(Method::GET, "/v1/queue")?,
            Some((verb, body)) => self.request(Method::POST, &format!("/v1/queue/{verb}"))?.json(body),
        })
        .await
    }

    /// All servers. Errors are the server's problem.
    pub(crate) async fn servers(&self) -> anyhow::Result<Vec<Value>> {
        let (mut servers, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut request = self.request(Method::GET, "/v1/servers")?.query(&[("limit", "200")]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page = self.json(request).await?;
            servers.extend(page["items"].as_array().into_iter().flatten().cloned());
            let Some(next) = page["next_cursor"].as_str() else { return Ok(servers) };
            cursor = Some(next.to_owned());
        }
    }

    /// Finds the run that `text` names: a whole id, the end of one among the newest 200, or the newest.
    ///
    /// # Errors
    /// None or several match.
    pub(crate) async fn find_run(&self, text: Option<&str>) -> anyhow::Result<String> {
        let Some(text) = text else {
            let newest = self.list_runs(None, 1).await?.into_iter().next();
            return newest.map(|run| run.id).context("there are no runs yet; submit one with `caisson run`");
        };
        if text.parse::<caisson_domain::id::RunId>().is_ok() {
            return Ok(text.to_owned());
        }
        let mut matching: Vec<_> =
            self.list_runs(None, 200).await?.into_iter().filter(|run| run.id.ends_with(text)).collect();
        match (matching.pop(), matching.is_empty()) {
            (Some(run), true) => Ok(run.id),
            (Some(_), false) => bail!("\"{text}\" matches several runs; give more digits"),
            (None, _) => bail!("no recent run ends with \"{text}\"; `caisson ps` lists them"),
        }
    }

    /// Asks for a run's end.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn cancel(&self, id: &str) -> anyhow::Result<RunInfo> {
        self.read(self.request(Method::POST, &format!("/v1/runs/{id}/cancel"))?).await
    }

    /// Reads a run's patch.
    ///
    /// # Errors
    /// The server's problem; there is none before the run has published its work.
    pub(crate) async fn diff(&self, id: &str) -> anyhow::Result<String> {
        let request = self.request(Method::GET, &format!("/v1/runs/{id}/diff"))?.timeout(CALL_TIMEOUT);
        Ok(self.send(request).await?.text().await?)
    }

    /// Lists what was kept for a run.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn artifacts(&self, id: &str) -> anyhow::Result<Vec<ArtifactInfo>> {
        self.items(self.request(Method::GET, &format!("/v1/runs/{id}/artifacts"))?).await
    }

    /// Begins to read an artifact.
    ///
    /// # Errors
    /// The server's problem; there may be no such artifact.
    pub(crate) async fn artifact(&self, id: &str, name: &str) -> anyhow::Result<Chunks> {
        // A path would lose them, and mean the list.
        ensure!(!matches!(name, "" | "." | ".."), "\"{name}\" is no artifact's name");
        let mut url = self.url(&format!("/v1/runs/{id}/artifacts"))?;
        url.path_segments_mut().map_err(|()| anyhow::anyhow!("the server's address has no path"))?.push(name);
        let request = self.http.get(url).bearer_auth(&self.key);
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.send(request)).await;
        Ok(Chunks(answer.context("the server does not answer")??))
    }

    /// Reads all events of a run after `after`.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn events(&self, id: &str, mut after: i64) -> anyhow::Result<Vec<EventInfo>> {
        let mut all = Vec::new();
        loop {
            let request = self
                .request(Method::GET, &format!("/v1/runs/{id}/events"))?
                .query(&[("after", after), ("limit", 500)]);
            let items: Vec<EventInfo> = self.items(request).await?;
            let Some(last) = items.last() else { return Ok(all) };
            after = last.seq;
            all.extend(items);
        }
    }

    /// Follows a run from its first event until it ends, over reconnects, and calls `show` with each thing once.
    ///
    /// # Errors
    /// The server refuses, or stays away for [`RECONNECTS`] tries.
    /// # Cancel safety
    /// Safe: dropping it only ends the stream.
    pub(crate) async fn follow(
        &self,
        id: &str,
        mut after: i64,
        mut show: impl FnMut(&Followed),
    ) -> anyhow::Result<()> {
        let (mut pause, mut failures) = (RECONNECT_FIRST, 0);
        loop {
            let before = after;
            match self.follow_once(id, &mut after, &mut show).await {
                Ok(true) => return Ok(()),
                Err(error) if error.is::<Refused>() || failures >= RECONNECTS => return Err(error),
                Ok(false) | Err(_) => {}
            }
            if after > before {
                (pause, failures) = (RECONNECT_FIRST, 0);
            }
            failures += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection; true when the run's end was seen.
    async fn follow_once(
        &self,
        id: &str,
        after: &mut i64,
        show: &mut impl FnMut(&Followed),
    ) -> anyhow::Result<bool> {
        let request = self
            .request(Method::GET, &format!("/v1/runs/{id}/events"))?
            .header("accept", "text/event-stream")
            .header("last-event-id", after.to_string());
        let mut body = self.send(request).await?.bytes_stream();
        let mut parser = sse::Parser::default();
        while let Some(chunk) = body.next().await {
            for message in parser.push(&chunk?)? {
                match message.event.as_deref() {
                    Some("end") => return Ok(true),
                    Some("delta") => {
                        let delta: Value = serde_json::from_str(&message.data)?;
                        let field = |name: &str| delta[name].as_str().unwrap_or_default().to_owned();
                        show(&Followed::Delta(field("kind"), field("text")));
                    }
                    Some(_) | None => {
                        let event = read_event(&message);
                        *after = event.seq.max(*after);
                        show(&Followed::Event(event));
                    }
                }
            }
        }
        Ok(false)
    }
}

/// What to do where no answer came: whether nobody is there, or whether the two sides do not understand one another.
fn unanswered(base: &Url, error: &reqwest::Error) -> String {
    match tls_fault(error) {
        Some(rustls::Error::InvalidCertificate(_)) => format!(
            "the certificate of the server at {base} cannot be trusted; give a PEM file with its authority as --ca-file or \
             CAISSON_CA_FILE, and use a name or address that the certificate has"
        ),
        Some(rustls::Error::InvalidMessage(_)) => format!(
            "what answers at {base} does not speak TLS; if the server has no certificate, set CAISSON_URL to http://…"
        ),
        Some(_) => format!("no TLS connection can be made to the server at {base}"),
        None if error.is_connect() || error.is_timeout() => {
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

/// An event of the stream. One that cannot be read is shown as such: asking again would bring the same.
fn read_event(message: &sse::Message) -> EventInfo {
    serde_json::from_str(&message.data).unwrap_or_else(|error| EventInfo {
        seq: message.id.as_deref().and_then(|id| id.parse().ok()).unwrap_or(0),
        at_ms: 0,
        kind: "note".to_owned(),
        data: serde_json::json!({"message": format!("an event cannot be read: {error}")}),
    })
}

/// The server answered and said no: trying again changes nothing.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    message: String,
    code: Option<String>,
}

impl Refused {
    /// Whether the problem's stable code is this one.
    pub(crate) fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

/// Turns a problem+json answer into an error for people.
async fn problem(response: reqwest::Response) -> anyhow::Error {
    let status = response.status();
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
    if status.is_server_error() { anyhow::anyhow!(message) } else { Refused { message, code }.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_cannot_be_read_keeps_its_number() {
        let message =
            sse::Message { id: Some("7".to_owned()), data: "{\"n\":1e999}".to_owned(), event: None };
        let event = read_event(&message);
        assert_eq!((event.seq, event.kind.as_str()), (7, "note"));
    }

    #[test]
    fn a_file_without_a_certificate_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        std::fs::write(&file, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        let base: Url = "https://localhost:1".parse().unwrap();
        let made = Client::new(base, Some("csk_x".to_owned()), Some(&file));
        let said = made.err().unwrap().to_string();
        assert!(said.contains("key.pem") && said.contains("holds no certificate"), "{said}");
    }
}
