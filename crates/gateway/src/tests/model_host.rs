//! A small Messages API server: it answers as told and remembers what it was sent.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// One piece of a reply.
#[derive(Clone)]
pub(crate) enum Piece {
    Bytes(Bytes),
    /// Nothing more, for longer than any test takes.
    Silence,
    /// The connection breaks.
    Cut,
    /// Wait until the test says so.
    Gate(Arc<tokio::sync::Notify>),
}

pub(crate) fn piece(text: &str) -> Piece {
    Piece::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) pieces: Vec<Piece>,
    /// Never answers at all.
    pub(crate) hangs: bool,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) struct ModelHost {
    pub(crate) url: url::Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: JoinSet<()>,
}

pub(crate) const START: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-opus-5-5\",\"usage\":",
    "{\"input_tokens\":100,\"output_tokens\":2,\"cache_read_input_tokens\":40}}}\n\n"
);
pub(crate) const TEXT: &str = concat!(
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,",
    "\"delta\":{\"type\":\"text_delta\",\"text\":\"hello\"}}\n\n"
);
pub(crate) const END: &str = concat!(
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},",
    "\"usage\":{\"output_tokens\":50}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
);

impl Script {
    pub(crate) fn stream(pieces: Vec<Piece>) -> Self {
        let headers = vec![("content-type", "text/event-stream"), ("request-id", "req_1")];
        Self { status: 200, headers, pieces, hangs: false }
    }

    pub(crate) fn json(status: u16, text: &str) -> Self {
        let headers = vec![("content-type", "application/json")];
        Self { status, headers, pieces: vec![piece(text)], hangs: false }
    }
}

impl ModelHost {
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_with(vec![script]).await
    }

    /// Answers each request with the next script; the last one repeats.
    pub(crate) async fn start_with(scripts: Vec<Script>) -> Self {
        Self::start_choosing(move |number, _| scripts[number.min(scripts.len() - 1)].clone()).await
    }

    /// Answers each request by its headers.
    pub(crate) async fn start_judging(
        judge: impl Fn(&HeaderMap) -> Script + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::start_choosing(move |_, headers| judge(headers)).await
    }

    async fn start_choosing(
        choose: impl Fn(usize, &HeaderMap) -> Script + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap()).parse().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let app = axum::Router::new().fallback(move |request: Request<axum::body::Body>| {
            let log = Arc::clone(&log);
            let number = log.lock().unwrap().len();
            let script = choose(number, request.headers());
            async move { answer(script, &log, request).await }
        });
        let mut task = JoinSet::new();
        task.spawn(async move { drop(axum::serve(listener, app).await) });
        Self { url, seen, _task: task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    script: Script,
    log: &Mutex<Vec<Seen>>,
    request: Request<axum::body::Body>,
) -> Response<axum::body::Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    log.lock().unwrap().push(Seen { uri: parts.uri.to_string(), headers: parts.headers, body });
    if script.hangs {
        std::future::pending::<()>().await;
    }
    let chunks = stream::iter(script.pieces).filter_map(|piece| async move {
        match piece {
            Piece::Bytes(bytes) => Some(Ok(bytes)),
            Piece::Silence => std::future::pending().await,
            Piece::Cut => {
                // Let what was written so far leave first.
                tokio::task::yield_now().await;
                Some(Err(std::io::Error::other("cut")))
            }
            Piece::Gate(gate) => {
                gate.notified().await;
                None
            }
        }
    });
    let mut response = Response::new(axum::body::Body::from_stream(chunks));
    *response.status_mut() = StatusCode::from_u16(script.status).unwrap();
    for (name, value) in script.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}
