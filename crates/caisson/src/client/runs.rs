//! Runs, their events and what was kept for them.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use caisson_domain::id::SessionId;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CALL_TIMEOUT, Client};

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

impl Client {
    /// Submits a run.
    ///
    /// # Errors
    /// The server's problem, in its own words.
    pub(crate) async fn create_run(&self, body: &Value, idempotency_key: &str) -> anyhow::Result<RunInfo> {
        let request = self.request(Method::POST, "/v1/runs")?.header("idempotency-key", idempotency_key);
        self.upload(request, body).await
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

    /// Finds the run that something can be told to: of a session the one that runs, else the next one; the run that `text` names
    /// otherwise, as [`Self::find_run`] does; without a text the newest that runs, else the newest that waits.
    ///
    /// # Errors
    /// None or several match, or none is live.
    pub(crate) async fn find_live_run(&self, text: Option<&str>) -> anyhow::Result<String> {
        let session = text.and_then(|text| text.parse::<SessionId>().ok());
        if text.is_some() && session.is_none() {
            return self.find_run(text).await;
        }
        for status in ["running", "queued"] {
            let mut request =
                self.request(Method::GET, "/v1/runs")?.query(&[("status", status), ("limit", "200")]);
            if let Some(session) = &session {
                request = request.query(&[("session", session.as_str())]);
            }
            let mut live: Vec<RunInfo> = self.items(request).await?;
            if session.is_some() {
                // Runs of a session start in the order in which they came.
                live.reverse();
            }
            if let Some(run) = live.into_iter().next() {
                return Ok(run.id);
            }
        }
        match session {
            Some(session) => bail!(
                "no run of session {session} is live, so that nothing can be told to it; go on with it by: caisson run --session {session}"
            ),
            None => {
                bail!("no run is live, so that nothing can be told to one; submit one with `caisson run`")
            }
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
}
