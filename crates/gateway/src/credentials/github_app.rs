//! Installation tokens of a GitHub App: signed for with the app's key, kept until shortly before they end.
//!
//! <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app>

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use caisson_domain::credential::{CredentialSecret, CredentialSettings};
use caisson_domain::id::RunId;
use caisson_domain::redact::{Held, Origin};
use caisson_store::{DoorRun, OpenedCredential, SigningKey};
use http::Method;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use reqwest::header::HeaderValue;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;
use url::Url;

use super::time::utc_ms;
use super::token::{self, TokenFault};
use super::{CredentialFault, note_token_call};
use crate::bounds::INSTALLATION_TOKEN_SKEW_MS;
use crate::config::secret_header;
use crate::shared::Shared;

/// GitHub refuses requests without one.
const AGENT: &str = concat!("caisson/", env!("CARGO_PKG_VERSION"));
/// How far back the app's own token is dated, in seconds, for a clock that is ahead.
const BACKDATED_S: i64 = 60;
/// How long the app's own token lives, in seconds: GitHub takes at most ten minutes.
const APP_TOKEN_S: i64 = 9 * 60;

#[derive(Deserialize)]
struct Answer {
    token: SecretString,
    expires_at: String,
}

/// The app's installation token, had for `run` if there is none yet.
pub(super) async fn token(
    shared: &Arc<Shared>,
    run: &DoorRun,
    opened: OpenedCredential,
) -> Result<SecretString, CredentialFault> {
    let credential = opened.credential.clone();
    let mut flight = shared.credentials.flights.take(&credential.id).await;
    if let Some((version, token, expires_at_ms)) = &flight.minted
        && *version == credential.version
        && *expires_at_ms > shared.store.now_ms() + INSTALLATION_TOKEN_SKEW_MS
    {
        return Ok(token.clone());
    }
    if let Some(fault) = flight.failed_just_now(credential.version) {
        return Err(CredentialFault::token(&credential, fault));
    }
    let (sender, receiver) = oneshot::channel();
    let (shared, run) = (Arc::clone(shared), run.id.clone());
    let version = credential.version;
    shared.tracker.clone().spawn(async move {
        if let Err(fault) = note(&shared, &run, &opened).await {
            drop(sender.send(Err(fault)));
            return;
        }
        let minted = mint(&shared, &opened).await;
        if let Ok((token, expires_at_ms)) = &minted {
            let (credential, origin) = (opened.credential.id.clone(), Origin::Issued);
            let held = Held { credential, origin, version: *expires_at_ms, secrets: vec![token.clone()] };
            shared.secrets.keep(&opened.credential.project, held, shared.store.now_ms());
        }
        flight.note(version, minted.as_ref().err().and_then(|fault| *fault));
        flight.minted =
            minted.as_ref().ok().map(|(token, expires_at_ms)| (version, token.clone(), *expires_at_ms));
        // Whoever wanted it may have left; the next one finds it.
        let told = minted.map(|(token, _)| token).map_err(|fault| match fault {
            Some(fault) => CredentialFault::token(&opened.credential, fault),
            None => CredentialFault::unusable(&opened.credential),
        });
        drop(sender.send(told));
    });
    receiver.await.unwrap_or(Err(CredentialFault::Internal))
}

/// Writes down that the app's key signs for a token.
async fn note(shared: &Shared, run: &RunId, opened: &OpenedCredential) -> Result<(), CredentialFault> {
    let credential = &opened.credential;
    let CredentialSettings::GitGithubApp { api_base_url, .. } = &credential.settings else {
        return Err(CredentialFault::unusable(credential));
    };
    note_token_call(shared, run, (credential, api_base_url)).await
}

/// Asks for a token; no fault of the endpoint if the request cannot even be made.
async fn mint(shared: &Shared, opened: &OpenedCredential) -> Result<(SecretString, i64), Option<TokenFault>> {
    let request = request(opened, shared.store.now_ms() / 1000).ok_or(None)?;
    let answer: Answer =
        token::call(&shared.git.client, request, shared.bounds.token_call).await.map_err(Some)?;
    let expires_at_ms = utc_ms(&answer.expires_at).ok_or(Some(TokenFault::Unreadable))?;
    let id = &opened.credential.id;
    tracing::info!(credential.id = %id, "got an installation token for the credential {id}");
    Ok((answer.token, expires_at_ms))
}

fn request(opened: &OpenedCredential, now_s: i64) -> Option<reqwest::Request> {
    let CredentialSettings::GitGithubApp { api_base_url, app_id, installation_id, .. } =
        &opened.credential.settings
    else {
        return None;
    };
    let CredentialSecret::PrivateKey { private_key } = &opened.secret else { return None };
    let app_token = app_token(&SigningKey::from_pem(private_key).ok()?, app_id, now_s)?;
    let mut request = reqwest::Request::new(Method::POST, below(api_base_url, *installation_id));
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, secret_header("an app's token", &format!("Bearer {app_token}")).ok()?);
    headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
    headers.insert("x-github-api-version", HeaderValue::from_static("2022-11-28"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    Some(request)
}

fn below(base: &Url, installation: u64) -> Url {
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/');
    url.set_path(&format!("{path}/app/installations/{installation}/access_tokens"));
    url
}

/// A JSON Web Token by which the app proves who it is.
fn app_token(key: &SigningKey, app_id: &str, now_s: i64) -> Option<String> {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({"alg": "RS256", "typ": "JWT"}));
    let claims = part(json!({"iat": now_s - BACKDATED_S, "exp": now_s + APP_TOKEN_S, "iss": app_id}));
    let signed = format!("{head}.{claims}");
    let signature = key.sign(signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
