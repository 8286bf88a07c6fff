//! `/model`: the model API, bytes unchanged, real key added, usage metered.

mod account;
mod ask;
mod bill;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod memory_tests;
mod meter;
mod provider;
mod reach;
mod request;
mod retry;
mod share;
mod sse;
mod stream;
mod usage;
mod words;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::checks::{Check, stands};
use caisson_domain::event::EventKind;
use caisson_domain::provider::ProviderTool;
use caisson_store::{CredentialUse, DoorRun};
use futures_util::future::try_join;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use self::request::Route;
use crate::body::Body;
use crate::bounds::{INLINE_BYTES, MODEL_BODY_BYTES};
use crate::config::{GatewayError, ModelUpstream, check_url, client};
use crate::control::{heavy, read_body};
use crate::credentials::{self, CredentialFault, ModelRoute, TokenFault, ToldCredential};
use crate::grants;
use crate::problem::{Refusal, Unanswered, bare};
use crate::shared::Door;

/// The model API as this gateway reaches it.
pub(crate) struct ModelSide {
    pub(crate) client: reqwest::Client,
    /// As configured.
    pub(crate) upstream: ModelUpstream,
    credential: Option<(HeaderName, HeaderValue)>,
    /// Bytes of requests that may be kept to be sent again.
    copies: Arc<Semaphore>,
}

impl ModelSide {
    pub(crate) fn new(upstream: &ModelUpstream, copies_bytes: usize) -> Result<Self, GatewayError> {
        check_url("the model API's URL", &upstream.base_url)?;
        let pem = upstream.extra_ca_pem.as_deref();
        let client = client("the model API", upstream.outbound_proxy.as_ref(), pem)?;
        let credential =
            upstream.credential.as_ref().map(crate::config::ModelCredential::header).transpose()?;
        let copies = Arc::new(Semaphore::new(copies_bytes));
        Ok(Self { client, upstream: upstream.clone(), credential, copies })
    }
}

/// One call on its way: a task of its own, so that it is settled whatever becomes of the connection it came
/// by.
struct Call {
    door: Arc<Door>,
    run: DoorRun,
    route: ModelRoute,
    request: reqwest::Request,
    /// None if the call costs nothing.
    ask: Option<ask::Ask>,
    /// The sandbox's share of calls and of memory; the latter is given back once the request is sent.
    permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Answers a request below `/model`; `rest` is its path there.
///
/// # Errors
/// [`Unanswered`] if the server stops before there is a reply.
pub(crate) async fn answer(
    door: &Arc<Door>,
    request: Request<Incoming>,
    rest: &str,
) -> Result<Response<Body>, Unanswered> {
    match forward(door, request, rest).await {
        Ok(response) => Ok(response),
        Err(refusal) if door.shared.leaves(&refusal) => Err(Unanswered),
        Err(refusal) => Ok(refusal.without(&door.secrets).into_model_response()),
    }
}

async fn forward(
    door: &Arc<Door>,
    request: Request<Incoming>,
    rest: &str,
) -> Result<Response<Body>, Refusal> {
    let call = match request::route(request.method(), rest) {
        Some(route) if route != Route::Head => prepare(door, request, route, rest).await?,
        other => {
            if other == Some(Route::Head) {
                grants::not_bare(request.headers())?;
            }
            grants::knock(door, request.headers()).await?;
            return other.map(|_| bare(StatusCode::OK)).ok_or_else(|| {
                let message =
                    "the gateway forwards v1/messages, v1/messages/count_tokens and v1/models, and nothing else";
                Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
            });
        }
    };
    let (head, reply) = oneshot::channel();
    door.shared.tracker.spawn(stream::carry(call, head));
    reply.await.unwrap_or_else(|_| {
        let message = "the call was given up inside the server";
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message))
    })
}

/// Reads the request and makes the one that goes upstream: the same bytes, with the real credential.
async fn prepare(
    door: &Arc<Door>,
    request: Request<Incoming>,
    route: Route,
    rest: &str,
) -> Result<Call, Refusal> {
    let (head, body) = request.into_parts();
    let is_small = body.size_hint().upper().is_some_and(|bytes| bytes <= INLINE_BYTES as u64);
    let (knocking, reading) = (grants::knock(door, &head.headers), read(door, route, body));
    let ((run, told), read) = if is_small {
        // It is read while the store is asked; whatever is in it, a refusal of the grant comes first.
        try_join(knocking, async { Ok(reading.await) }).await?
    } else {
        (knocking.await?, reading.await)
    };
    let Read { bytes, wanted, ask, permits } = read?;
    let allowed = &door.shared.model.upstream.provider_tools;
    if let Some(tool) = wanted.iter().find(|tool| !allowed.contains(tool))
        && stands(Check::ProviderTools)
    {
        return Err(no_provider_tool(door, &run, *tool).await);
    }
    let route = noted_route(door, &run, told.as_ref()).await?;
    let url = request::upstream_url(&route.base_url, rest, head.uri.query());
    let mut headers = request::request_headers(&head.headers);
    route.add_to(&mut headers);
    let mut upstream = reqwest::Request::new(head.method, url);
    *upstream.headers_mut() = headers;
    if !bytes.is_empty() {
        *upstream.body_mut() = Some(bytes.into());
    }
    Ok(Call { door: Arc::clone(door), run, route, request: upstream, ask, permits })
}

/// The body of a call, and what is in it.
struct Read {
    bytes: Bytes,
    /// What it would have the provider do.
    wanted: BTreeSet<ProviderTool>,
    /// What it is counted as; none if it costs nothing.
    ask: Option<ask::Ask>,
    /// As [`Call::permits`].
    permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

async fn read(door: &Arc<Door>, route: Route, body: Incoming) -> Result<Read, Refusal> {
    let slot = timeout(door.shared.bounds.store_hold, Arc::clone(&door.calls).acquire_owned()).await;
    let Ok(Ok(slot)) = slot else {
        let message = "too many model calls of this sandbox are under way; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    let (bytes, share) = read_body(door, body, MODEL_BODY_BYTES).await?;
    let permits = (slot, share);
    if !matches!(route, Route::Messages | Route::CountTokens) {
        return Ok(Read { bytes, wanted: BTreeSet::new(), ask: None, permits });
    }
    let copy = bytes.clone();
    let look = move || (provider::wanted(&copy), (route == Route::Messages).then(|| ask::peek(&copy)));
    let (wanted, ask) = heavy(bytes.len(), look).await?;
    let wanted = wanted.map_err(|provider::Unreadable| {
        let most = provider::DEPTH;
        Refusal::bad_request(format!(
            "the body of a model call must be one JSON object, with content {most} levels deep at most"
        ))
    })?;
    // What the provider brings is read with all that went before.
    let ask = ask.map(|ask| if wanted.is_empty() { ask } else { ask.read_twice() });
    Ok(Read { bytes, wanted, ask, permits })
}

/// Tells of a call that would have the provider do something outside, and makes the refusal of it.
async fn no_provider_tool(door: &Door, run: &DoorRun, tool: ProviderTool) -> Refusal {
    let data = json!({"what": "model call", "rule": "provider_tools", "tool": tool, "setting": "model.provider_tools"});
    door.tell(&run.id, EventKind::GatewayDenied, data).await;
    let message = format!(
        "this call asks the model API's provider for {tool}, which would reach outside past the rules for this sandbox; \
         the operator can allow it by model.provider_tools"
    );
    // Not 403, which the agent would take for its own credential's fault.
    Refusal::new(StatusCode::BAD_REQUEST, "provider_tool", message)
}

/// With what the call is sent, counted, and told in the audit log if it is the first time.
async fn noted_route(
    door: &Door,
    run: &DoorRun,
    told: Option<&ToldCredential>,
) -> Result<ModelRoute, Refusal> {
    let route = credential_route(door, run, told).await?;
    let host = route.base_url.host_str().unwrap_or_default().to_owned();
    let used = CredentialUse { credential: route.name.clone(), host, purpose: "model" };
    door.shared.note_use(&run.id, &used).await?;
    Ok(route)
}

/// The store's credential, else the configuration's.
async fn credential_route(
    door: &Door,
    run: &DoorRun,
    told: Option<&ToldCredential>,
) -> Result<ModelRoute, Refusal> {
    let side = &door.shared.model;
    match credentials::model(door, run, told).await {
        Ok(Some(route)) => Ok(route),
        Ok(None) => {
            let header = side.credential.clone().ok_or_else(|| {
                let message = "the server has no credential for the model API; add one with `caisson credential add`, or \
                               set one in its configuration";
                Refusal::new(StatusCode::FORBIDDEN, "no_credential", message)
            })?;
            let (client, base_url) = (side.client.clone(), side.upstream.base_url.clone());
            let route = ModelRoute::of_settings(client, base_url, header);
            match credentials::used_configured(&door.shared, &route.name, run).await {
                Ok(()) => Ok(route),
                Err(fault) => Err(no_credential(door, run, &fault).await),
            }
        }
        Err(fault) => Err(no_credential(door, run, &fault).await),
    }
}

/// Tells of a credential that cannot be used and makes the refusal of it.
async fn no_credential(door: &Door, run: &DoorRun, fault: &CredentialFault) -> Refusal {
    let (status, code, kind) = match fault {
        CredentialFault::Away => {
            return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", fault.message());
        }
        CredentialFault::Token { fault: TokenFault::Unreachable, .. } => {
            (StatusCode::BAD_GATEWAY, "model_unreachable", "connect")
        }
        // The agent would retry a 500 for minutes, and nothing changes before somebody acts.
        CredentialFault::Internal | CredentialFault::Token { .. } | CredentialFault::Unusable { .. } => {
            (StatusCode::FORBIDDEN, "model_auth", "auth")
        }
    };
    let message = fault.message();
    let data = json!({"upstream": "model", "kind": kind, "status": fault.status(), "message": message});
    door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
    Refusal::new(status, code, message)
}
