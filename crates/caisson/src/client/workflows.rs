//! The API's client: workflows.

use reqwest::Method;
use serde_json::Value;

use super::Client;

impl Client {
    /// The project's workflows, by name.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn workflows(&self) -> anyhow::Result<Vec<Value>> {
        self.items(self.request(Method::GET, "/v1/workflows")?).await
    }

    /// One workflow.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn workflow(&self, name: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, &place(name))?).await
    }

    /// Gives a workflow to the project.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn put_workflow(&self, name: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::PUT, &place(name))?.json(body)).await
    }

    /// Takes a workflow of the project's own away.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn remove_workflow(&self, name: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, &place(name))?).await.map(drop)
    }
}

/// What is no name in the path is no name of a workflow either, and the server says so.
fn place(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let name: String = name.bytes().map(|byte| if plain(byte) { char::from(byte) } else { '_' }).collect();
    format!("/v1/workflows/{name}")
}
