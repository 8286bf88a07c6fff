//! The way outside for tools: `CONNECT` and absolute-form requests, carried to the door with the agent grant.
//!
//! Tools know no grant; the shim adds it. That opens nothing to anybody who could not open it himself: the listener is
//! on the loopback device of the sandbox's own network namespace, so that whoever reaches it is a process of this
//! sandbox, and each of those has the grant in its environment anyway. What may go out is decided by the gateway alone.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, PROXY_AUTHORIZATION};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::{OnUpgrade, on};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::door::{Body, BoxError, Door, DoorError, nothing};
use crate::loopback::carried;

/// How long a request is held for a gateway that is away, in milliseconds: a restart of the server. It is held before
/// it is sent and never sent twice, since nobody knows what it does outside.
pub(crate) const HOLD_MS: u64 = 60 * 1000;

/// Carries a request whose line names a host.
///
/// # Errors
/// [`DoorError`] when the gateway was away for [`HOLD_MS`], or broke off.
pub(crate) async fn answer(
    door: &Arc<Door>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, DoorError> {
    let mut connection = held(door).await?;
    let tunnel = (request.method() == Method::CONNECT).then(|| on(&mut request));
    let sent = connection.send_request(outgoing(door, request));
    let mut response = sent.await.map_err(|error| DoorError::Garbled(error.into()))?;
    match tunnel {
        Some(inside) if response.status().is_success() => {
            let outside = on(&mut response);
            door.tracker().spawn(carry(inside, outside));
            Ok(response.map(|_| nothing()))
        }
        Some(_) | None => {
            let headers = std::mem::take(response.headers_mut());
            *response.headers_mut() = carried(headers);
            Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
        }
    }
}

/// A connection to the door, as soon as there is one.
///
/// # Errors
/// [`DoorError`] when the gateway was away for [`HOLD_MS`].
pub(crate) async fn held(door: &Door) -> Result<SendRequest<Body>, DoorError> {
    let until = Instant::now() + Duration::from_millis(HOLD_MS);
    let mut backoff = Backoff::new();
    loop {
        let error = match door.connect().await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let wait = backoff.next();
        if Instant::now() + wait > until {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// The request as the door takes it: its line and its `Host` as they came, for the gateway to compare.
fn outgoing(door: &Door, request: Request<Incoming>) -> Request<Body> {
    let (parts, body) = request.into_parts();
    let hosts: Vec<_> = parts.headers.get_all(HOST).iter().cloned().collect();
    let mut headers: HeaderMap = carried(parts.headers);
    // The body says its length again when it is sent.
    headers.remove(CONTENT_LENGTH);
    for host in hosts {
        headers.append(HOST, host);
    }
    headers.insert(PROXY_AUTHORIZATION, door.grants().agent().clone());
    let body =
        if parts.method == Method::CONNECT { nothing() } else { body.map_err(BoxError::from).boxed_unsync() };
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = headers;
    outgoing
}

/// Carries a tunnel's bytes until both sides have ended or one breaks off. How long it may be silent is the gateway's
/// matter.
async fn carry(inside: OnUpgrade, outside: OnUpgrade) {
    if let (Ok(inside), Ok(outside)) = tokio::join!(inside, outside) {
        let (mut inside, mut outside) = (TokioIo::new(inside), TokioIo::new(outside));
        // Both ends are told by the end of their connection.
        drop(tokio::io::copy_bidirectional(&mut inside, &mut outside).await);
    }
}
