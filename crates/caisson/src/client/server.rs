//! What belongs to a project or to the servers: budgets, the queue, the servers themselves.

use reqwest::Method;
use serde_json::Value;

use super::{CALL_TIMEOUT, Client};

impl Client {
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

    /// Has a lost server listed no more.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn forget_server(&self, id: &str) -> anyhow::Result<()> {
        let mut url = self.url("/v1/servers")?;
        url.path_segments_mut().map_err(|()| anyhow::anyhow!("the server's address has no path"))?.push(id);
        let request = self.http.delete(url).bearer_auth(&self.key).timeout(CALL_TIMEOUT);
        self.send(request).await.map(drop)
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
}
