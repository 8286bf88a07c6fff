//! The API's client: reports of usage.

use reqwest::Method;
use serde_json::Value;

use super::Client;

impl Client {
    /// Reads a page of a report.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn usage(&self, query: &[(&'static str, String)]) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, "/v1/usage")?.query(query)).await
    }
}
