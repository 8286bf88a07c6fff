//! `/mcp`: this API for agents, by the Model Context Protocol over streamable HTTP.
//!
//! The protocol asks little of a server that offers tools and nothing else, so it is written out here: each POST is one message
//! and has its answer as JSON; there is no session, and no stream that the server would open by itself. Source:
//! modelcontextprotocol.io, specification 2025-06-18, "Transports", "Lifecycle" and "Tools".

mod rpc;
mod tools;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use caisson_domain::attachment::ATTACHMENT_BODY_BYTES;
use caisson_domain::limits::API_BODY_BYTES;
use caisson_domain::principal::{Principal, Scope};
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::auth::Reader;
use crate::body::{Large, read_large};
use crate::extract::{NoParams, is_json};
use crate::problem::{ApiError, Problem};
use crate::state::App;
use rpc::{Message, RpcError};

/// Versions of the protocol that are spoken, the one that is offered first.
const VERSIONS: [&str; 2] = ["2025-06-18", "2025-11-25"];
/// Header with the version that was agreed on.
const VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// What an agent is told of the server.
const INSTRUCTIONS: &str = "Caisson runs coding agents, each in a sealed sandbox, on tasks that you submit. Submit a task, then ask for \
     its result: a run takes minutes. Its events tell what its agent does meanwhile.";

/// Speak with the server by the Model Context Protocol
///
/// One JSON-RPC message a request, of the protocol's version 2025-06-18 or 2025-11-25; the tools are `submit`, `status`, `events`,
/// `result` and `cancel`. A faulty request is answered with 200 and an error of JSON-RPC; what is no message at all, with a problem.
#[utoipa::path(
    post, path = "/mcp", tag = "mcp", operation_id = "mcp",
    request_body(content = Object, description = "A message of JSON-RPC 2.0"),
    params(
        ("Mcp-Protocol-Version" = Option<String>, Header, description = "The version that was agreed on", pattern = "^(2025-06-18|2025-11-25)$"),
    ),
    responses(
        (status = 200, description = "The answer to a request", body = Object),
        (status = 202, description = "A notification was taken in"),
        (status = 400, description = "Not JSON, or a version that is not spoken", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 21 MiB, or than 4 MiB with a key that cannot submit, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "JSON that is no message of JSON-RPC 2.0", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn message(
    State(app): State<App>,
    Reader(caller): Reader,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    check_origin(&app, request.headers())?;
    check_version(request.headers())?;
    if !is_json(request.headers()) {
        return Err(ApiError::MediaType);
    }
    let (parts, body) = request.into_parts();
    // Only who may submit has attachments to send.
    let most_bytes = if caller.may(Scope::RunsWrite) { ATTACHMENT_BODY_BYTES } else { API_BODY_BYTES };
    let Large { bytes, place } = read_large(&app, &parts, body, most_bytes).await?;
    let message = Message::parse(&bytes)?;
    drop(bytes);
    match message {
        // There is nothing that a client could tell which would change anything here.
        Message::Notification => Ok(StatusCode::ACCEPTED.into_response()),
        Message::Request { id, method, params } => {
            let answer = answer(&app, &caller, &method, (params, place)).await;
            Ok(Json(rpc::response(&id, answer)).into_response())
        }
    }
}

/// The protocol wants it looked at: a page must not use a server by way of somebody's browser.
fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let allowed =
        origin.to_str().is_ok_and(|origin| app.config().cors_origins.iter().any(|own| own == origin));
    if allowed { Ok(()) } else { Err(ApiError::OriginRefused) }
}

fn check_version(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(version) = headers.get(VERSION_HEADER) else { return Ok(()) };
    if version.to_str().is_ok_and(|version| VERSIONS.contains(&version)) {
        return Ok(());
    }
    Err(ApiError::Header {
        code: "mcp_version_unknown",
        message: format!(
            "the MCP-Protocol-Version header names none of the versions that are spoken: {}",
            VERSIONS.join(", ")
        ),
    })
}

async fn answer(
    app: &App,
    caller: &Principal,
    method: &str,
    (params, place): (Value, Option<OwnedSemaphorePermit>),
) -> Result<Value, RpcError> {
    match method {
        "initialize" => initialize(&params),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools::list() })),
        "tools/call" => tools::call(app, caller, (params, place)).await,
        _ => Err(RpcError::method(method)),
    }
}

fn initialize(params: &Value) -> Result<Value, RpcError> {
    let asked = params["protocolVersion"]
        .as_str()
        .ok_or_else(|| RpcError::params("params.protocolVersion is missing: the version that you speak"))?;
    let version = if VERSIONS.contains(&asked) { asked } else { VERSIONS[0] };
    Ok(json!({
        "protocolVersion": version,
        "capabilities": { "tools": {} },
        "serverInfo": { "name": "caisson", "title": "Caisson", "version": env!("CARGO_PKG_VERSION") },
        "instructions": INSTRUCTIONS,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_spoken_is_agreed_on_and_for_another_one_the_first_is_offered() {
        let of = |asked: &str| initialize(&json!({ "protocolVersion": asked })).unwrap();
        for version in VERSIONS {
            assert_eq!(of(version)["protocolVersion"], version);
        }
        assert_eq!(of("1999-01-01")["protocolVersion"], VERSIONS[0]);
        assert_eq!(initialize(&json!({})).unwrap_err().code(), rpc::INVALID_PARAMS);
    }
}
