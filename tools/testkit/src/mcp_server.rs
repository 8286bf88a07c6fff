//! An MCP server over streamable HTTP that wants a header, with a memory of what it was sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Longest request that is read, in bytes.
const REQUEST_BYTES: usize = 1024 * 1024;
/// What the server calls its one session.
const SESSION: &str = "testkit-session-1";
/// Where it is.
const PATH: &str = "/team/mcp";

/// A running MCP server with one tool, `echo`; it ends with its runtime.
#[derive(Debug)]
pub struct McpServer {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<ServerState>,
}

#[derive(Debug)]
struct ServerState {
    header: String,
    value: String,
    heard: Mutex<Vec<HeardRequest>>,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct HeardRequest {
    /// Its method and path.
    pub line: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// What was called; empty without a body.
    pub call: String,
    /// Its status.
    pub status: u16,
}

impl McpServer {
    /// Serves whoever sends `value` in the header of that name.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(header: &str, value: &str) -> anyhow::Result<Self> {
        let state = Arc::new(ServerState {
            header: header.to_owned(),
            value: value.to_owned(),
            heard: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(serve).with_state(Arc::clone(&state));
        #[expect(clippy::disallowed_methods, reason = "the server lives as long as its test's runtime")]
        drop(tokio::spawn(async move { axum::serve(listener, router).await }));
        Ok(Self { address, state })
    }

    /// Its URL on a host of that name.
    #[must_use]
    pub fn url(&self, host: &str) -> String {
        format!("http://{host}:{}{PATH}", self.address.port())
    }

    /// Every request so far.
    #[must_use]
    pub fn heard(&self) -> Vec<HeardRequest> {
        self.state.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let message: Value = match axum::body::to_bytes(body, REQUEST_BYTES).await {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
    };
    let knows =
        parts.headers.get(&state.header).is_some_and(|value| value.as_bytes() == state.value.as_bytes());
    let response = if !knows {
        let challenge =
            "Bearer resource_metadata=\"http://127.0.0.1:1/.well-known/oauth-protected-resource\"";
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
    } else if parts.uri.path() != PATH {
        StatusCode::NOT_FOUND.into_response()
    } else if parts.method == Method::DELETE {
        StatusCode::NO_CONTENT.into_response()
    } else if parts.method != Method::POST {
        StatusCode::METHOD_NOT_ALLOWED.into_response()
    } else {
        answer(&parts.headers, &message, &state.value)
    };
    let call = message["method"].as_str().unwrap_or_default().to_owned();
    let heard = HeardRequest { line, headers: parts.headers, call, status: response.status().as_u16() };
    state.heard.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
    response
}

/// Speaks MCP of 2025-11-25: a session by a header, a tool's answer as a stream of one message.
fn answer(headers: &HeaderMap, message: &Value, secret: &str) -> Response {
    let method = message["method"].as_str().unwrap_or_default();
    let Some(id) = message.get("id") else { return StatusCode::ACCEPTED.into_response() };
    let in_session = headers.get("mcp-session-id").is_some_and(|session| session == SESSION);
    let result = match method {
        "initialize" => json!({
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "testkit", "version": "1"},
        }),
        "tools/list" if in_session => json!({"tools": [{
            "name": "echo",
            "description": "Says it again",
            "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
        }]}),
        "tools/call" if in_session => {
            let text = message["params"]["arguments"]["text"].as_str().unwrap_or_default();
            // As a careless server does, it says what it was sent.
            let said = format!("outside heard {text} from {secret}");
            json!({"content": [{"type": "text", "text": said}]})
        }
        _ => {
            let error = json!({"code": -32601, "message": "there is no such method"});
            return axum::Json(json!({"jsonrpc": "2.0", "id": id, "error": error})).into_response();
        }
    };
    let reply = json!({"jsonrpc": "2.0", "id": id, "result": result});
    match method {
        "initialize" => ([("mcp-session-id", SESSION)], axum::Json(reply)).into_response(),
        "tools/call" => {
            let event = format!("event: message\ndata: {reply}\n\n");
            ([(header::CONTENT_TYPE, "text/event-stream")], event).into_response()
        }
        _ => axum::Json(reply).into_response(),
    }
}
