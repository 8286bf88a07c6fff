//! A raw HTTP client that sees where a reply breaks off.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use scripted_model::{Options, ScriptedModel};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

/// Longest time any wait of a test may take before it counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A reply, as far as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its end.
    pub(crate) complete: bool,
}

impl Received {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// Undoes the compression, which must be whole.
    pub(crate) fn decompressed(mut self) -> Self {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(self.body.as_slice()).read_to_end(&mut plain).expect("a gzip body");
        self.body = plain;
        self
    }

    /// The events of a streamed reply: each name with its data, which repeats the name.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).expect("UTF-8");
        let event = |frame: &str| {
            let (name, data) = frame.split_once('\n').expect("two lines");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        };
        text.split_terminator("\n\n").map(event).collect()
    }

    /// Puts together the text of a streamed reply.
    pub(crate) fn text(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| event["delta"]["text"].as_str().map(ToOwned::to_owned))
            .collect()
    }
}

/// A connection that sends one request after the other.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: TaskTracker,
}

impl Connection {
    pub(crate) async fn open(model: &ScriptedModel) -> Self {
        let stream = TcpStream::connect(model.address().expect("an address")).await.expect("a connection");
        Self::over(stream).await
    }

    pub(crate) async fn open_unix(path: &std::path::Path) -> Self {
        Self::over(UnixStream::connect(path).await.expect("a connection")).await
    }

    async fn over<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("a handshake");
        let driver = TaskTracker::new();
        driver.spawn(connection);
        driver.close();
        Self { sender, driver }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await.expect("in time")
    }

    /// Sends a request and reads the reply to its end, or to where it breaks off.
    pub(crate) async fn exchange(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Received> {
        let (parts, mut body) = self.send(request).await?.into_parts();
        let mut received =
            Received { status: parts.status, headers: parts.headers, body: Vec::new(), complete: true };
        while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.expect("in time") {
            match frame {
                Ok(frame) => received.body.extend(frame.into_data().expect("no trailers")),
                Err(_) => received.complete = false,
            }
        }
        Ok(received)
    }

    /// Waits until the other side has closed the connection.
    pub(crate) async fn closed(self) {
        drop(self.sender);
        tokio::time::timeout(PATIENCE, self.driver.wait()).await.expect("in time");
    }
}

/// Starts a server with these scenarios and no delays beside those it is asked for.
pub(crate) async fn start(scenarios: Value) -> ScriptedModel {
    start_with(Options { inline_scenarios: vec![scenarios.to_string()], ..Options::default() }).await
}

pub(crate) async fn start_with(options: Options) -> ScriptedModel {
    ScriptedModel::start(options).await.expect("a server")
}

pub(crate) fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
    request.body(Full::from(body.to_string())).expect("a request")
}

/// The body of a request with one prompt.
pub(crate) fn prompt(text: &str, stream: bool) -> Value {
    json!({"model": "claude-opus-5-5", "stream": stream, "messages": [{"role": "user", "content": text}]})
}

/// Asks for a streamed reply of a scenario.
pub(crate) fn streamed(scenario: &str) -> Request<Full<Bytes>> {
    post(&format!("/s/{scenario}/run/v1/messages?beta=true"), &prompt("hi", true))
}

/// Asks for a whole reply of a scenario.
pub(crate) fn whole(scenario: &str) -> Request<Full<Bytes>> {
    post(&format!("/s/{scenario}/run/v1/messages?beta=true"), &prompt("hi", false))
}

/// One request over a connection of its own.
pub(crate) async fn ask(model: &ScriptedModel, request: Request<Full<Bytes>>) -> Received {
    Connection::open(model).await.exchange(request).await.expect("a reply")
}
