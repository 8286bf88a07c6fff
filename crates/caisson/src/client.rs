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
use caisson_api::config::{BODY_BYTES_PER_S, LARGE_BODY_WAIT};
use caisson_domain::limits::API_BODY_BYTES;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

pub(crate) use faults::Refused;
pub(crate) use follow::{Followed, LiveText};
pub(crate) use inputs::ApprovalInfo;
pub(crate) use runs::{ArtifactInfo, Chunks, EventInfo, RunInfo};

/// How long one call may take, unless it follows events or sends much.
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
        self.json_within(request, CALL_TIMEOUT).await
    }

    async fn json_within(&self, request: RequestBuilder, limit: Duration) -> anyhow::Result<Value> {
        let response = self.send(request.timeout(limit)).await?;
        response.json().await.with_context(|| self.stranger("what is not JSON"))
    }

    /// Sends what may be long, in the time that the server has for it, and reads what a Caisson server would answer.
    async fn upload<T: DeserializeOwned>(&self, request: RequestBuilder, body: &Value) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body)?;
        let limit = time_to_send(body.len());
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        let answer = self.json_within(request, limit).await?;
        serde_json::from_value(answer).with_context(|| self.stranger("other JSON"))
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

/// How long a call may take that sends so many bytes: as long as the server reads them, which it does as long as [`BODY_BYTES_PER_S`]
/// come, and a large body may have to wait for its turn.
fn time_to_send(bytes: usize) -> Duration {
    let sending = Duration::from_secs(bytes as u64 / u64::from(BODY_BYTES_PER_S));
    let waiting = if bytes > API_BODY_BYTES { LARGE_BODY_WAIT } else { Duration::ZERO };
    CALL_TIMEOUT + sending + waiting
}

#[cfg(test)]
mod tests {
    use caisson_api::config::BODY_READ;
    use caisson_domain::attachment::ATTACHMENT_BODY_BYTES;

    use super::*;

    #[test]
    fn a_call_that_sends_much_has_as_long_as_the_server_reads_it() {
        assert_eq!(time_to_send(1000), CALL_TIMEOUT);
        assert_eq!(time_to_send(API_BODY_BYTES), CALL_TIMEOUT + Duration::from_secs(64));
        let longest = BODY_READ + LARGE_BODY_WAIT + Duration::from_secs(336);
        assert!(time_to_send(ATTACHMENT_BODY_BYTES) >= longest);
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
