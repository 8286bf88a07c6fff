//! The API's client: sessions.

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};

use super::Client;

/// Most sessions of a page.
const PAGE: u32 = 200;

impl Client {
    /// Lists the newest sessions.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn sessions(&self, limit: u32) -> anyhow::Result<Vec<Value>> {
        let request = self.request(Method::GET, "/v1/sessions")?.query(&[("limit", limit.to_string())]);
        self.items(request).await
    }

    /// One session.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn session(&self, id: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, &format!("/v1/sessions/{id}"))?).await
    }

    /// The session's newest runs.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn runs_of(&self, session: &str) -> anyhow::Result<Vec<super::RunInfo>> {
        let request = self.request(Method::GET, "/v1/runs")?.query(&[("session", session)]);
        self.items(request).await
    }

    /// What was said in a session behind a cursor, and the next one.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn messages(&self, id: &str, cursor: Option<&str>) -> anyhow::Result<Value> {
        let request = self.request(Method::GET, &format!("/v1/sessions/{id}/messages"))?;
        self.json(request.query(&[("limit", Some("200")), ("cursor", cursor)])).await
    }

    /// Forks a session and returns the new one.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn fork_session(&self, id: &str, branch: Option<&str>) -> anyhow::Result<Value> {
        let body = branch.map_or_else(|| json!({}), |branch| json!({ "branch": branch }));
        self.json(self.request(Method::POST, &format!("/v1/sessions/{id}/fork"))?.json(&body)).await
    }

    /// Deletes a session.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn delete_session(&self, id: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, &format!("/v1/sessions/{id}"))?).await.map(drop)
    }

    /// Finds the session that `text` names: a whole id, the end of one among the newest 200, or the newest.
    ///
    /// # Errors
    /// None or several match.
    pub(crate) async fn find_session(&self, text: Option<&str>) -> anyhow::Result<String> {
        let id = |session: &Value| session["id"].as_str().unwrap_or_default().to_owned();
        let Some(text) = text else {
            let newest = self.sessions(1).await?;
            return newest
                .first()
                .map(id)
                .context("there are no sessions yet; submit a run with `caisson run`");
        };
        if text.parse::<caisson_domain::id::SessionId>().is_ok() {
            return Ok(text.to_owned());
        }
        let ids = self.sessions(PAGE).await?.iter().map(id).collect::<Vec<_>>();
        let mut matching = ids.into_iter().filter(|id| id.ends_with(text));
        match (matching.next(), matching.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => bail!("\"{text}\" matches several sessions; give more digits"),
            (None, _) => bail!("no recent session ends with \"{text}\"; `caisson session list` lists them"),
        }
    }
}
