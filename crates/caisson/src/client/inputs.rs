//! The API's client: what a live run is told.

use reqwest::Method;
use serde_json::{Value, json};

use super::{CALL_TIMEOUT, Client};

impl Client {
    /// Sends an input to a live run: `steer`, `queue` or `interrupt`. The key makes a repeat harmless.
    ///
    /// # Errors
    /// The server's problem.
    pub(crate) async fn send_input(
        &self,
        id: &str,
        (kind, text): (&str, &str),
        key: &str,
    ) -> anyhow::Result<()> {
        let body: Value = json!({ "kind": kind, "text": text });
        let request = self.request(Method::POST, &format!("/v1/runs/{id}/inputs"))?.json(&body);
        self.send(request.header("idempotency-key", key).timeout(CALL_TIMEOUT)).await.map(drop)
    }
}
