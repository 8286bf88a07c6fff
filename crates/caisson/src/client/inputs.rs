//! Inputs, approvals and messages of the Model Context Protocol.

use std::time::Duration;

use anyhow::Context;
use caisson_domain::approval::RUN_APPROVALS;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Client, time_to_send};

/// How long one message may take besides the time for sending it: a tool may wait for a run.
const MESSAGE_TIMEOUT: Duration = Duration::from_mins(2);

/// A page of what an agent asks.
#[derive(Debug, Deserialize)]
struct Approvals {
    items: Vec<ApprovalInfo>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// What an agent asks, as the API shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ApprovalInfo {
    /// Its id.
    pub id: String,
    /// The tool.
    pub tool: String,
    /// Where it stands.
    pub state: String,
    /// What the agent wants to give to the tool.
    pub input: Value,
    /// Bytes of it that are not shown.
    #[serde(default)]
    pub input_cut_bytes: i64,
    /// Everything else.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

impl Client {
    /// Sends an input to a run.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn send_input(
        &self,
        id: &str,
        body: &Value,
        key: Option<&str>,
    ) -> anyhow::Result<Value> {
        let mut request = self.request(Method::POST, &format!("/v1/runs/{id}/inputs"))?;
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.upload(request, body).await
    }

    /// Lists what a run's agent asked.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn approvals(&self, id: &str) -> anyhow::Result<Vec<ApprovalInfo>> {
        let path = format!("/v1/runs/{id}/approvals");
        let (mut approvals, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut request = self.request(Method::GET, &path)?;
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page: Approvals = self.read(request).await?;
            approvals.extend(page.items);
            cursor = page.next_cursor;
            // A run has so many at most: a server that tells of more is not believed for ever.
            if cursor.is_none() || approvals.len() > RUN_APPROVALS {
                return Ok(approvals);
            }
        }
    }

    /// Answers what a run's agent asked.
    ///
    /// # Errors
    /// The server's problem; it may have been answered before.
    pub(crate) async fn answer(
        &self,
        id: &str,
        approval: &str,
        body: &Value,
    ) -> anyhow::Result<ApprovalInfo> {
        let path = format!("/v1/runs/{id}/approvals/{approval}");
        self.read(self.request(Method::POST, &path)?.json(body)).await
    }

    /// Passes a message of the Model Context Protocol on; none if it has no answer.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn mcp(&self, message: String) -> anyhow::Result<Option<String>> {
        let request = self
            .request(Method::POST, "/mcp")?
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .timeout(MESSAGE_TIMEOUT + time_to_send(message.len()))
            .body(message);
        let response = self.send(request).await?;
        if response.status() == StatusCode::ACCEPTED {
            return Ok(None);
        }
        let answer: Value = response.json().await.with_context(|| self.stranger("what is not JSON"))?;
        Ok(Some(answer.to_string()))
    }
}
