//! The agent's way to the MCP servers of its workflow: `/mcp/<name>`, carried to the door.
//!
//! A request is sent once, since nobody knows what a tool does: while the gateway is away it is held before it is sent, and a
//! gateway that goes away afterwards is an error of the tool.

use std::sync::Arc;

use caisson_domain::protocol::DoorProblem;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};

use crate::activity::Activity;
use crate::door::{Body, BoxError, Door, DoorError, HOST_NAME, whole};
use crate::loopback::{PROBLEM_BYTES, carried};
use crate::outside::held;

/// What the codes of the gateway's refusals begin with, in which an MCP server has no say.
const CODES: &str = "mcp_";

/// Carries a request whose path is below `/mcp/`.
///
/// # Errors
/// [`DoorError`] when the gateway was away for too long, or broke off.
pub(crate) async fn answer(
    (door, activity): (&Arc<Door>, &Activity),
    request: Request<Incoming>,
) -> Result<Response<Body>, DoorError> {
    let server = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let mut connection = held(door).await?;
    let sent = connection.send_request(outgoing(door, request)).await;
    let mut response = sent.map_err(|error| DoorError::Garbled(error.into()))?;
    let headers = std::mem::take(response.headers_mut());
    *response.headers_mut() = carried(headers);
    // The gateway says how long a refusal is; what a server answers comes piece by piece.
    let short = response.body().size_hint().exact().is_some_and(|length| length <= PROBLEM_BYTES as u64);
    let json = short && response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if response.status().as_u16() < 400 || !json {
        if response.status().is_success() {
            activity.mcp_reached(&server);
        }
        return Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    }
    // A refusal is kept for whoever has to say why a run did not begin.
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, PROBLEM_BYTES).collect().await.map_err(DoorError::Garbled)?.to_bytes();
    if let Some(problem) =
        serde_json::from_slice(&body).ok().filter(|problem: &DoorProblem| problem.code.starts_with(CODES))
    {
        activity.mcp_refused(&server, problem);
    }
    Ok(Response::from_parts(parts, whole(body)))
}

fn outgoing(door: &Door, request: Request<Incoming>) -> Request<Body> {
    let (parts, body) = request.into_parts();
    let mut headers: HeaderMap = carried(parts.headers);
    // The body says its length again when it is sent.
    headers.remove(CONTENT_LENGTH);
    headers.insert(HOST, HOST_NAME);
    // Whoever asks over the loopback address is of this sandbox, as for git; what they would log in with goes no further.
    headers.insert(AUTHORIZATION, door.grants().agent().clone());
    let mut outgoing = Request::new(body.map_err(BoxError::from).boxed_unsync());
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = parts.uri;
    *outgoing.headers_mut() = headers;
    outgoing
}
