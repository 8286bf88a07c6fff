//! A fake engine for the faults that a real one cannot be asked for: it listens on a real socket and answers as a test says.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caisson_domain::id::{SandboxId, ServerId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{DockerConfig, DockerEngine};

/// What the fake engine does with a request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// Answers with a status and a body.
    Body(u16, String),
    /// Sends a whole head and half of the body that it promises, and ends the connection.
    Half,
    /// Ends the connection without an answer.
    Cut,
    /// Sends a head and then, for ever, this text after each such time.
    Trickle(Duration, &'static str),
    /// Never answers.
    Hang,
}

/// Answers with a status and JSON.
pub(super) fn reply(status: u16, body: &Value) -> Reply {
    Reply::Body(status, body.to_string())
}

/// The error answer of an engine.
pub(super) fn refusal(status: u16, message: &str) -> Reply {
    reply(status, &json!({ "message": message }))
}

/// The answer to an inspection of a container in this state.
pub(super) fn in_state(state: &Value) -> Reply {
    reply(200, &json!({ "State": state }))
}

/// A fake engine; dropped, it is gone, and its socket refuses connections.
pub(super) struct FakeEngine {
    requests: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl FakeEngine {
    /// Listens in `directory`. `answer` gets `METHOD /path?query` and how many requests there were before.
    pub(super) fn start(
        directory: &Path,
        answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let path = socket(directory);
        // A socket file that its listener left behind, as a killed engine does.
        std::fs::remove_file(&path).ok();
        let listener = UnixListener::bind(path).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, requests.clone(), Arc::new(answer)));
        Self { requests, _serving: serving }
    }

    /// The requests so far, as `METHOD /path?query`.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// An engine that talks to the fake one in `directory`.
pub(super) fn engine(directory: &Path) -> DockerEngine {
    let config = DockerConfig { host: Some(format!("unix://{}", socket(directory).display())) };
    DockerEngine::connect(&config, ServerId::new(1, [9; 10])).unwrap()
}

pub(super) fn sandbox_id() -> SandboxId {
    SandboxId::new(1, [8; 10])
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("engine.sock")
}

type Answer = Arc<dyn Fn(&str, usize) -> Reply + Send + Sync>;

async fn serve(listener: UnixListener, requests: Arc<Mutex<Vec<String>>>, answer: Answer) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_one(stream, requests.clone(), answer.clone()));
    }
}

/// bollard makes a new connection for each request, so one request is all there is to serve.
async fn serve_one(mut stream: UnixStream, requests: Arc<Mutex<Vec<String>>>, answer: Answer) {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(read) => head.extend_from_slice(&piece[..read]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let before = {
        let mut requests = requests.lock().unwrap();
        requests.push(line.clone());
        requests.len() - 1
    };
    let (status, body, promised) = match answer(&line, before) {
        Reply::Body(status, body) => (status, body.clone(), body.len()),
        Reply::Half => (200, "{\"Id\":".to_owned(), 100),
        Reply::Cut => return,
        Reply::Trickle(pause, text) => return trickle(stream, pause, text).await,
        Reply::Hang => std::future::pending().await,
    };
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {promised}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok();
    stream.write_all(body.as_bytes()).await.ok();
    stream.shutdown().await.ok();
    // The rest of a large request, so that the client can write it whole before it reads the answer.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
}

async fn trickle(mut stream: UnixStream, pause: Duration, text: &str) {
    let mut piece =
        "HTTP/1.1 200 x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    while stream.write_all(piece.as_bytes()).await.is_ok() {
        piece = format!("{:x}\r\n{text}\r\n", text.len());
        tokio::time::sleep(pause).await;
    }
}
