//! Access tokens that are refreshed (RFC 6749, section 6).
//!
//! One refresh of a credential is under way at a time, on all servers of a database, in a task of its own: an endpoint may give a
//! new refresh token and forget the old one, so what it answers is stored whatever becomes of the request that wanted it.

use std::sync::Arc;

use caisson_domain::credential::{CredentialSecret, CredentialSettings, TokenFormat};
use caisson_domain::id::RunId;
use caisson_store::{Credential, DoorRun, OpenedCredential};
use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE};
use reqwest::header::HeaderValue;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::{OwnedMutexGuard, oneshot};
use url::Url;
use url::form_urlencoded::Serializer;

use super::flight::Flight;
use super::token::{self, TokenFault};
use super::{CredentialFault, held, note_token_call, open, stored, turn};
use crate::bounds::{OAUTH_LIFETIME_MS, OAUTH_LIFETIME_MS_MOST, OAUTH_SKEW_MS};
use crate::hold::hold;
use crate::shared::Shared;

/// What a token endpoint answers.
#[derive(Deserialize)]
struct Answer {
    access_token: SecretString,
    refresh_token: Option<SecretString>,
    /// Seconds.
    expires_in: Option<i64>,
}

/// The credential with an access token that is good for a while; none if it was removed.
pub(super) async fn fresh(
    (shared, run): (&Arc<Shared>, &DoorRun),
    client: &reqwest::Client,
    seen: OpenedCredential,
) -> Result<Option<OpenedCredential>, CredentialFault> {
    if expires_at_ms(&seen) > shared.store.now_ms() + OAUTH_SKEW_MS {
        return Ok(Some(seen));
    }
    let flight = shared.credentials.flights.take(&seen.credential.id).await;
    // Whoever had the flight before may have refreshed it, or somebody rotated it.
    let Some(opened) = open(shared, &seen.credential).await? else { return Ok(None) };
    let (version, left_ms) = (opened.credential.version, expires_at_ms(&opened) - shared.store.now_ms());
    if left_ms > OAUTH_SKEW_MS || (left_ms > 0 && version > seen.credential.version) {
        return Ok(Some(opened));
    }
    if let Some(fault) = flight.failed_just_now(version) {
        return still_good(opened, left_ms, fault).map(Some);
    }
    match fly((shared, run), client, opened.clone(), flight).await {
        Ok(refreshed) => Ok(refreshed),
        Err(Failed::Token(fault)) => still_good(opened, left_ms, fault).map(Some),
        Err(Failed::Other(fault)) => Err(fault),
    }
}

/// The credential with another access token than the one that was `refused` however long it was said to live; none if it was
/// removed, or if that token is a new one already. Of many calls that were refused at once, one refreshes it.
pub(super) async fn renewed(
    (shared, run): (&Arc<Shared>, &DoorRun),
    client: &reqwest::Client,
    refused: &Credential,
) -> Result<Option<OpenedCredential>, CredentialFault> {
    let flight = shared.credentials.flights.take(&refused.id).await;
    let Some(opened) = open(shared, refused).await? else { return Ok(None) };
    let version = opened.credential.version;
    if version > refused.version {
        return Ok(Some(opened));
    }
    if flight.brought_just_now(version) {
        return Ok(None);
    }
    if let Some(fault) = flight.failed_just_now(version) {
        return Err(CredentialFault::token(&opened.credential, fault));
    }
    fly((shared, run), client, opened, flight).await.map_err(|failed| match failed {
        Failed::Token(fault) => CredentialFault::token(refused, fault),
        Failed::Other(fault) => fault,
    })
}

/// Refreshes in a task of its own, which holds the flight until it has ended.
async fn fly(
    (shared, run): (&Arc<Shared>, &DoorRun),
    client: &reqwest::Client,
    opened: OpenedCredential,
    mut flight: OwnedMutexGuard<Flight>,
) -> Result<Option<OpenedCredential>, Failed> {
    let (sender, receiver) = oneshot::channel();
    let (shared, run, client) = (Arc::clone(shared), run.id.clone(), client.clone());
    shared.tracker.clone().spawn(async move {
        let refreshed = refresh((&shared, &run), &client, &opened).await;
        flight.note(opened.credential.version, refreshed.as_ref().err().and_then(Failed::token));
        if let Ok(Some(brought)) = &refreshed {
            flight.note_brought(brought.credential.version);
        }
        // Whoever wanted it may have left.
        drop(sender.send(refreshed));
    });
    receiver.await.unwrap_or(Err(Failed::Other(CredentialFault::Internal)))
}

/// Why a refresh failed.
pub(super) enum Failed {
    Token(TokenFault),
    Other(CredentialFault),
}

impl Failed {
    const fn token(&self) -> Option<TokenFault> {
        match self {
            Self::Token(fault) => Some(*fault),
            Self::Other(_) => None,
        }
    }
}

/// A token that could not be refreshed is used as long as it lives.
fn still_good(
    opened: OpenedCredential,
    left_ms: i64,
    fault: TokenFault,
) -> Result<OpenedCredential, CredentialFault> {
    let told = CredentialFault::token(&opened.credential, fault);
    if left_ms > 0 { Ok(opened) } else { Err(told) }
}

const fn expires_at_ms(opened: &OpenedCredential) -> i64 {
    match &opened.secret {
        CredentialSecret::Oauth { expires_at_ms, .. } => *expires_at_ms,
        CredentialSecret::Value { .. } | CredentialSecret::PrivateKey { .. } => i64::MAX,
    }
}

/// Refreshes once no other server does, and takes what one has stored meanwhile: also where the endpoint refused, since then it
/// may have been another server that it gave a token to.
async fn refresh(
    (shared, run): (&Shared, &RunId),
    client: &reqwest::Client,
    opened: &OpenedCredential,
) -> Result<Option<OpenedCredential>, Failed> {
    let credential = &opened.credential;
    let Some(turn) = turn::take(shared, credential).await? else {
        return open(shared, credential).await.map_err(Failed::Other);
    };
    let refreshed = refresh_in_turn((shared, run), client, opened).await;
    let Err(Failed::Token(fault)) = refreshed else {
        if refreshed.is_err() {
            turn::end(shared, credential, turn).await;
        }
        return refreshed;
    };
    turn::end(shared, credential, turn).await;
    match open(shared, credential).await.map_err(Failed::Other)? {
        Some(now) if now.credential.version == credential.version => Err(Failed::Token(fault)),
        changed => Ok(changed),
    }
}

/// Refreshes and stores. What somebody rotated to meanwhile counts more.
async fn refresh_in_turn(
    (shared, run): (&Shared, &RunId),
    client: &reqwest::Client,
    opened: &OpenedCredential,
) -> Result<Option<OpenedCredential>, Failed> {
    let credential = &opened.credential;
    let unusable = || Failed::Other(CredentialFault::unusable(credential));
    let CredentialSettings::ModelOauth { token_url, client_id, token_format, .. } = &credential.settings
    else {
        return Err(unusable());
    };
    let CredentialSecret::Oauth { refresh_token, proxy_login, .. } = &opened.secret else {
        return Err(unusable());
    };
    note_token_call(shared, run, (credential, token_url)).await.map_err(Failed::Other)?;
    let request = request(token_url, *token_format, refresh_token, client_id.as_deref());
    let answer: Answer =
        token::call(client, request, shared.bounds.token_call).await.map_err(Failed::Token)?;
    let lifetime_ms = answer.expires_in.map_or(OAUTH_LIFETIME_MS, |seconds| seconds.saturating_mul(1000));
    let secret = CredentialSecret::Oauth {
        access_token: answer.access_token,
        refresh_token: answer.refresh_token.unwrap_or_else(|| refresh_token.clone()),
        expires_at_ms: shared.store.now_ms() + lifetime_ms.clamp(0, OAUTH_LIFETIME_MS_MOST),
        proxy_login: proxy_login.clone(),
    };
    let store = &shared.store;
    let written = hold(&shared.cancel, shared.bounds.settle_hold, || async {
        held(store.renew_credential(credential, &secret).await)
    });
    let written = written.await.map_err(|error| Failed::Other(CredentialFault::store(&error)))?;
    match written.map_err(|error| Failed::Other(CredentialFault::vault(credential, &error)))? {
        Some(credential) => {
            tracing::info!(credential.id = %credential.id, "refreshed the credential {}", credential.id);
            let renewed = OpenedCredential { credential, secret };
            shared.secrets.keep(&renewed.credential.project, stored(&renewed), store.now_ms());
            Ok(Some(renewed))
        }
        None => open(shared, credential).await.map_err(Failed::Other),
    }
}

fn request(
    url: &Url,
    format: TokenFormat,
    refresh_token: &SecretString,
    client_id: Option<&str>,
) -> reqwest::Request {
    let mut pairs = vec![("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())];
    pairs.extend(client_id.map(|id| ("client_id", id)));
    let (kind, body) = match format {
        TokenFormat::Form => {
            let mut form = Serializer::new(String::new());
            form.extend_pairs(pairs);
            ("application/x-www-form-urlencoded", form.finish())
        }
        TokenFormat::Json => {
            let object: serde_json::Map<_, _> =
                pairs.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
            ("application/json", serde_json::Value::Object(object).to_string())
        }
    };
    let body = Zeroizing::new(body);
    let mut request = reqwest::Request::new(Method::POST, url.clone());
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    *request.body_mut() = Some(body.as_bytes().to_vec().into());
    request
}
