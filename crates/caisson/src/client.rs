//! The API's client: what the commands on the terminal call.

mod faults;
mod follow;
mod inputs;
mod runs;
mod server;
mod sessions;
mod usage;
mod workflows;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

pub(crate) use faults::Refused;
pub(crate) use follow::Followed;
pub(crate) use inputs::ApprovalInfo;
pub(crate) use runs::{ArtifactInfo, Chunks, EventInfo, RunInfo};

/// How long one call may take, unless it follows events.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Talks to one server with one key.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: Url,
    key: String,
    http: reqwest::Client,
}

/// A list as the API shows it.
#[derive(Debug, Deserialize)]
struct Items<T> {
    items: Vec<T>,
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
            let message = faults::unanswered(&self.base, &error);
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
                Refused::new(message, None).into()
            });
        }
        Err(faults::problem(response).await)
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
