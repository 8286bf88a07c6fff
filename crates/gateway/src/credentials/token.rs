//! One call to whoever gives tokens: bounded in time and size, and nothing of the answer is logged.

use std::time::Duration;

use reqwest::StatusCode;
use secrecy::zeroize::Zeroizing;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::bounds::TOKEN_REPLY_BYTES;

/// Why there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenFault {
    /// The answer was no.
    #[error(
        "the request was refused (status {status}); look whether the credential is right and still valid, and rotate it"
    )]
    Refused { status: u16 },
    /// No answer, or a failure.
    #[error("whoever gives it cannot be reached from the server or fails; check the URL and the network")]
    Unreachable,
    /// An answer without a token.
    #[error("the answer has no token; check the URL")]
    Unreadable,
}

/// Sends the request and reads the JSON that answers it.
pub(super) async fn call<T: DeserializeOwned>(
    client: &reqwest::Client,
    request: reqwest::Request,
    patience: Duration,
) -> Result<T, TokenFault> {
    timeout(patience, exchange(client, request)).await.unwrap_or(Err(TokenFault::Unreachable))
}

async fn exchange<T: DeserializeOwned>(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> Result<T, TokenFault> {
    let unreachable = |error: reqwest::Error| {
        tracing::debug!(error = %error.without_url(), "a token endpoint broke off");
        TokenFault::Unreachable
    };
    let mut response = client.execute(request).await.map_err(unreachable)?;
    let status = response.status();
    match status {
        StatusCode::OK | StatusCode::CREATED => {}
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => return Err(TokenFault::Unreachable),
        _ if status.is_server_error() => return Err(TokenFault::Unreachable),
        _ => return Err(TokenFault::Refused { status: status.as_u16() }),
    }
    let mut text = Zeroizing::new(Vec::with_capacity(TOKEN_REPLY_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if text.len() + chunk.len() > TOKEN_REPLY_BYTES {
            return Err(TokenFault::Unreadable);
        }
        text.extend_from_slice(&chunk);
    }
    // The parser's message could quote the token.
    serde_json::from_slice(&text).map_err(|_| TokenFault::Unreadable)
}
