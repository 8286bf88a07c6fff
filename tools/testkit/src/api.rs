//! The API as a test calls it: plain JSON, whole answers.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// A server's API with one key.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    key: String,
    http: reqwest::Client,
}

/// An answer: status, headers of interest, body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; null if it is not JSON.
    pub body: Value,
}

impl Api {
    /// The API at `base` with `key`.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(base: &str, key: &str) -> anyhow::Result<Self> {
        // Each test is its own process under one runner and shares one under another.
        rustls::crypto::ring::default_provider().install_default().ok();
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { base: base.to_owned(), key: key.to_owned(), http })
    }

    /// Reads a path.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        answer(self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.key)).await
    }

    /// Reads a path whose answer is no JSON.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.key);
        let response = request.timeout(Duration::from_secs(30)).send().await?.error_for_status()?;
        Ok(response.bytes().await?.to_vec())
    }

    /// Posts a JSON body.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        answer(self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.key).json(body)).await
    }

    /// Puts a JSON body.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        answer(self.http.put(format!("{}{path}", self.base)).bearer_auth(&self.key).json(body)).await
    }

    /// Submits a run and returns its id.
    ///
    /// # Errors
    /// It is not accepted.
    pub async fn submit(&self, body: &Value) -> anyhow::Result<String> {
        let created = self.post("/v1/runs", body).await?;
        if created.status != 202 {
            bail!("the run was not accepted: {} {}", created.status, created.body);
        }
        Ok(created.body["id"].as_str().context("no id")?.to_owned())
    }

    /// Waits until `wanted` says yes to the run, looking every 50 ms.
    ///
    /// # Errors
    /// It does not come to that in `at_most`; the error holds the run.
    pub async fn wait_run(
        &self,
        id: &str,
        at_most: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let start = Instant::now();
        let mut last = Value::Null;
        while start.elapsed() < at_most {
            if let Ok(answer) = self.get(&format!("/v1/runs/{id}")).await {
                last = answer.body;
                if wanted(&last) {
                    return Ok(last);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("run {id} did not come to what was waited for in {at_most:?}: {last:#}")
    }

    /// Waits for the run's end.
    ///
    /// # Errors
    /// It does not end in `at_most`.
    pub async fn wait_end(&self, id: &str, at_most: Duration) -> anyhow::Result<Value> {
        self.wait_run(id, at_most, |run| {
            matches!(run["status"].as_str(), Some("succeeded" | "failed" | "cancelled"))
        })
        .await
    }

    /// Waits for an event that `wanted` says yes to.
    ///
    /// # Errors
    /// None comes in `at_most`; the error holds the kinds seen.
    pub async fn wait_event(
        &self,
        id: &str,
        at_most: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let start = Instant::now();
        let mut seen = Vec::new();
        while start.elapsed() < at_most {
            seen = self.events(id).await.unwrap_or_default();
            if let Some(event) = seen.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let kinds: Vec<_> = seen.iter().map(|event| event["kind"].clone()).collect();
        bail!("run {id} had no such event in {at_most:?}; it has {kinds:?}")
    }

    /// Opens the live stream of a run's events, from the first one on; it has no time limit.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn open_events(&self, id: &str) -> anyhow::Result<reqwest::Response> {
        let request = self.http.get(format!("{}/v1/runs/{id}/events", self.base)).bearer_auth(&self.key);
        Ok(request.header("accept", "text/event-stream").send().await?.error_for_status()?)
    }

    /// Opens the live stream of a run's events behind the one with this number; it has no time limit, but a server that
    /// does not answer is not waited for.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub async fn open_events_after(&self, id: &str, after: i64) -> anyhow::Result<reqwest::Response> {
        let request = self.http.get(format!("{}/v1/runs/{id}/events", self.base)).bearer_auth(&self.key);
        let request = request.header("accept", "text/event-stream").header("last-event-id", after);
        let opened = tokio::time::timeout(Duration::from_secs(5), request.send()).await;
        Ok(opened.context("the server does not answer")??.error_for_status()?)
    }

    /// Every event of a run, oldest first.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn events(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(0, |event| event["seq"].as_i64().unwrap_or(0));
            let page = self.get(&format!("/v1/runs/{id}/events?after={after}&limit=500")).await?;
            let items = page.body["items"].as_array().context("no items")?.clone();
            if items.is_empty() {
                return Ok(all);
            }
            all.extend(items);
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
    let response = request.timeout(Duration::from_secs(30)).send().await?;
    let status = response.status().as_u16();
    let body = response.json().await.unwrap_or(Value::Null);
    Ok(Answer { status, body })
}
