//! A router on a store in a temporary directory, and clients for it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use caisson_api::{AgentInfo, ApiConfig, ServeLimits};
use caisson_domain::event::{Delta, DeltaKind, EventKind, NewEvent};
use caisson_domain::git::AllowList;
use caisson_domain::grant::{GrantKind, Token};
use caisson_domain::id::{ApiKeyId, ProjectId, RunId, SandboxId, ServerId, SessionId};
use caisson_domain::principal::Scope;
use caisson_domain::run::{Run, RunStatus};
use caisson_domain::sse::{Message, Parser};
use caisson_domain::workflow::Workflow;
use caisson_store::{
    Actor, Claimed, Clock, ClockHandle, Finish, JournalEffect, JournalEntry, NewApiKey, NewSandbox, Store,
};
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The store's time in every test, Unix ms.
pub(crate) const NOW_MS: i64 = 1_790_000_000_000;
/// A repository that runs may name.
pub(crate) const REPOSITORY: &str = "https://git.example.com/team/project.git";
/// Longest time for anything in a test: it only ends what hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

const WORKFLOW: &str = "---\nname: fix\ndescription: Fixes bugs.\nmaxTurns: 50\ndisallowedTools: WebFetch\n\
     mcpServers: {search: {command: serve, env: {TOKEN: hidden}}}\n\
     caisson: {timeout_s: 600, environment: [CI], commit_type: fix}\n---\nFix it.\n";

/// The API under test.
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) router: Router,
    /// A key with all scopes in the default project.
    pub(crate) key: String,
    pub(crate) clock: ClockHandle,
    pub(crate) cancel: CancellationToken,
    pub(crate) server: ServerId,
    pub(crate) dir: TempDir,
    /// Servers started by [`Api::listen`]; they end with this.
    servers: JoinSet<()>,
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts with a changed configuration.
    pub(crate) async fn with(change: impl FnOnce(&mut ApiConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, handle) = Clock::fixed_at(NOW_MS);
        let store = Store::open(&dir.path().join("store.db"), clock).await.unwrap();
        let project = ProjectId::default_project();
        store.put_workflow(&project, &Workflow::parse(WORKFLOW).unwrap()).await.unwrap();
        let server = ServerId::new(NOW_MS, [1; 10]);
        store.register_server(&server).await.unwrap();
        let (_, key) = store.create_api_key(&project, "test", &[Scope::Admin]).await.unwrap();
        let allow =
            AllowList::new(&["https://git.example.com/team/*".to_owned()], vec![PathBuf::from("/srv/git")]);
        let mut config = ApiConfig {
            allow: allow.unwrap(),
            artifacts_dir: dir.path().join("artifacts"),
            state_dir: dir.path().to_owned(),
            agent: AgentInfo { version: Some("2.1.0".to_owned()) },
            ..ApiConfig::default()
        };
        // What tests change is seen at once.
        config.limits.ready_for = Duration::ZERO;
        change(&mut config);
        let cancel = CancellationToken::new();
        let router = caisson_api::router(config, store.clone(), cancel.clone());
        let key = key.expose().to_owned();
        Self { store, router, key, clock: handle, cancel, server, dir, servers: JoinSet::new() }
    }

    /// Serves the router on a loopback port.
    pub(crate) async fn listen(&mut self, limits: ServeLimits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.servers.spawn(caisson_api::serve(listener, self.router.clone(), limits, self.cancel.clone()));
        address
    }

    /// Serves the router on a loopback port by TLS.
    pub(crate) async fn listen_tls(
        &mut self,
        limits: ServeLimits,
        tls: std::sync::Arc<tokio_rustls::rustls::ServerConfig>,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = caisson_api::serve_tls(listener, self.router.clone(), limits, tls, self.cancel.clone());
        self.servers.spawn(served);
        address
    }

    /// Waits until the server started last has ended.
    pub(crate) async fn stopped(&mut self) {
        tokio::time::timeout(PATIENCE, self.servers.join_next()).await.unwrap().unwrap().unwrap();
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        Answer::read(self.router.clone().oneshot(request).await.unwrap()).await
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(path).header("authorization", format!("Bearer {}", self.key))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.json_request(path, body)).await
    }

    pub(crate) fn json_request(&self, path: &str, body: &Value) -> Request<Body> {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        request.body(Body::from(body.to_string())).unwrap()
    }

    /// From now on calls are made with a key of their own, which may do everything with runs.
    pub(crate) async fn take_another_key(&mut self) -> ApiKeyId {
        let new = NewApiKey {
            project: ProjectId::default_project(),
            name: "other".to_owned(),
            scopes: vec![Scope::RunsRead, Scope::RunsWrite],
            expires_at_ms: None,
            by: Actor::Operator,
        };
        let (key, secret) = self.store.make_api_key(&new).await.unwrap().unwrap();
        secret.expose().clone_into(&mut self.key);
        key.id
    }

    /// Waits until somebody has come in with the key.
    pub(crate) async fn is_used(&self, key: &ApiKeyId) {
        loop {
            let keys = self.store.list_api_keys(&ProjectId::default_project()).await.unwrap();
            if keys.iter().any(|known| known.id == *key && known.last_used_at_ms.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Revokes the key, and waits until nobody takes it for valid any more.
    pub(crate) async fn revoke(&self, key: &ApiKeyId) {
        assert!(self.store.revoke_api_key(key).await.unwrap());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    pub(crate) async fn post_with_key(&self, key: &str, body: &Value) -> Answer {
        let mut request = self.json_request("/v1/runs", body);
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        self.send(request).await
    }

    /// Queues a run.
    pub(crate) async fn queued(&self) -> Run {
        let answer = self.post("/v1/runs", &body()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        let id: RunId = answer.json()["id"].as_str().unwrap().parse().unwrap();
        self.store.run(&ProjectId::default_project(), &id).await.unwrap().unwrap()
    }

    /// Queues a run and claims it.
    pub(crate) async fn running(&self) -> Claimed {
        self.queued().await;
        self.store.claim(&self.server).await.unwrap().unwrap()
    }

    /// Makes a sandbox of the run's session, and places the run in it.
    pub(crate) async fn placed(&self, claimed: &Claimed) -> SandboxId {
        let id = SandboxId::new(NOW_MS, [7; 10]);
        let new = NewSandbox {
            id: id.clone(),
            session: claimed.run.session.clone(),
            server: self.server.clone(),
            engine: "local".to_owned(),
            image: String::new(),
            uid: 10_001,
            control: Token::grant(GrantKind::Control, [1; 32]).hash(),
            agent: Token::grant(GrantKind::Agent, [2; 32]).hash(),
        };
        self.store.create_sandbox(&new).await.unwrap();
        assert!(self.store.place(&claimed.run.id, claimed.epoch, &id).await.unwrap());
        id
    }

    /// Journals something of the placed run, as the first that its sandbox tells.
    pub(crate) async fn journal(&self, claimed: &Claimed, sandbox: &SandboxId, effects: Vec<JournalEffect>) {
        let entry = |effect| JournalEntry {
            run: claimed.run.id.clone(),
            attempt: claimed.run.attempt,
            event: None,
            effect,
        };
        let entries = effects.into_iter().map(entry).collect();
        self.store.append_journal(sandbox, 0, 1, entries).await.unwrap();
    }

    /// Appends a line of the agent.
    pub(crate) async fn say(&self, claimed: &Claimed, json: &str) {
        let event = NewEvent::from_raw(EventKind::AgentLine, json.to_owned()).unwrap();
        assert!(self.store.append_run_event(&claimed.run.id, claimed.epoch, event).await.unwrap());
    }

    pub(crate) async fn finish(&self, claimed: &Claimed) {
        let finish = Finish { status: RunStatus::Succeeded, failure: None, result: Some("done".to_owned()) };
        assert!(self.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    }

    pub(crate) fn publish(&self, claimed: &Claimed, text: &str) {
        let (kind, message_id) = (DeltaKind::Text, "msg_1".to_owned());
        let delta = Delta { run: claimed.run.id.clone(), kind, message_id, block: 0, text: text.to_owned() };
        self.store.publish_delta(&claimed.run.session, delta);
    }

    /// A finished run with `lines` lines of the agent between its own events.
    pub(crate) async fn finished(&self, lines: usize) -> Run {
        let claimed = self.running().await;
        for number in 0..lines {
            self.say(&claimed, &format!("{{\"line\":{number}}}")).await;
        }
        self.finish(&claimed).await;
        self.store.run(&ProjectId::default_project(), &claimed.run.id).await.unwrap().unwrap()
    }

    /// The database, for what no method of the store does.
    pub(crate) async fn database(&self) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(self.dir.path().join("store.db"));
        SqlitePool::connect_with(options).await.unwrap()
    }

    /// A key with all scopes in another project.
    pub(crate) async fn other_projects_key(&self) -> String {
        let database = self.database().await;
        let sql = "insert into project (id, created_at_ms) values ('other', 0)";
        sqlx::query(sql).execute(&database).await.unwrap();
        let project: ProjectId = "other".parse().unwrap();
        let (_, key) = self.store.create_api_key(&project, "other", &[Scope::Admin]).await.unwrap();
        key.expose().to_owned()
    }

    /// A key with only these scopes.
    pub(crate) async fn key_with(&self, scopes: &[Scope]) -> String {
        let project = ProjectId::default_project();
        self.store.create_api_key(&project, "few", scopes).await.unwrap().1.expose().to_owned()
    }

    /// Opens an event stream in process.
    pub(crate) async fn stream(&self, path: &str, last_seen: Option<&str>) -> Stream {
        let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
        if let Some(id) = last_seen {
            request = request.header("last-event-id", id);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream::new(response.into_body())
    }

    /// Opens an event stream over a connection of its own.
    pub(crate) async fn remote_stream(
        &self,
        address: SocketAddr,
        path: &str,
        last_seen: Option<&str>,
    ) -> Stream {
        let mut request =
            self.request(Method::GET, path).header("accept", "text/event-stream").header("host", "x");
        if let Some(id) = last_seen {
            request = request.header("last-event-id", id);
        }
        let response = remote(address, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Stream::new(response.into_body())
    }

    /// A connection on which an event stream was asked for and that nobody reads, with small buffers.
    pub(crate) async fn deaf_reader(&self, address: SocketAddr, path: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let connection = socket.connect(address).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\naccept: text/event-stream\r\n\r\n",
            self.key
        );
        connection.writable().await.unwrap();
        assert_eq!(connection.try_write(head.as_bytes()).unwrap(), head.len());
        connection
    }
}

/// Sends a request over a connection of its own, which closes when the response's body is dropped.
pub(crate) async fn remote(address: SocketAddr, request: Request<Body>) -> http::Response<Body> {
    let connection = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.unwrap();
    // The response's body owns the connection, so that dropping it closes the socket.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let frames = futures_util::stream::unfold((body, sender, driver), |(mut body, sender, driver)| async {
        let frame = body.frame().await?;
        Some((frame.map(|frame| frame.into_data().unwrap_or_default()), (body, sender, driver)))
    });
    http::Response::from_parts(head, Body::from_stream(frames))
}

/// What a run is asked for in most tests.
pub(crate) fn body() -> Value {
    json!({ "workflow": "fix", "prompt": "Fix it.", "repository": REPOSITORY })
}

/// `body` with some fields changed.
pub(crate) fn body_with(changes: &Value) -> Value {
    let mut body = body();
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn read(response: http::Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Self { status: head.status, headers: head.headers, body }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The body with what differs from run to run taken out, for snapshots.
    pub(crate) fn steady(&self) -> Value {
        serde_json::from_str(&steady(&self.text())).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts that this is a problem document of that status and code.
    pub(crate) fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["request_id"], self.header("x-request-id"), "{problem}");
    }

    /// Field and code of each fault.
    pub(crate) fn faults(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let problem = self.json();
        let errors = problem["errors"].as_array().unwrap();
        errors.iter().map(|error| (text(&error["field"]), text(&error["code"]))).collect()
    }
}

/// Replaces the digits of ids, and of the short id in a branch name.
pub(crate) fn steady(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for character in text.chars().chain(['\n']) {
        if character.is_ascii_hexdigit() && !character.is_ascii_uppercase() {
            digits.push(character);
            continue;
        }
        let short = digits.len() == 8 && out.ends_with("caisson/fix/");
        out.push_str(if digits.len() == 32 || short { "[id]" } else { &digits });
        digits.clear();
        out.push(character);
    }
    out.truncate(out.len() - 1);
    out
}

/// An event stream, read message by message.
pub(crate) struct Stream {
    body: axum::body::BodyDataStream,
    parser: Parser,
    ready: std::collections::VecDeque<Message>,
    /// Everything read so far.
    pub(crate) raw: Vec<u8>,
}

impl Stream {
    fn new(body: Body) -> Self {
        Self {
            body: body.into_data_stream(),
            parser: Parser::default(),
            ready: std::collections::VecDeque::new(),
            raw: Vec::new(),
        }
    }

    /// The next message; none when the stream has ended, whether cleanly or not.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        // Heartbeats alone are a stream that hangs.
        tokio::time::timeout(PATIENCE, self.next_message()).await.expect("the stream hangs")
    }

    async fn next_message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            let chunk = self.chunk().await?;
            self.ready.extend(self.parser.push(&chunk).unwrap());
        }
    }

    /// The next piece of the body as it comes.
    pub(crate) async fn chunk(&mut self) -> Option<Bytes> {
        let chunk =
            tokio::time::timeout(PATIENCE, self.body.next()).await.expect("the stream hangs")?.ok()?;
        self.raw.extend_from_slice(&chunk);
        Some(chunk)
    }

    /// All messages to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }
}

/// The ids of the numbered messages.
pub(crate) fn ids(messages: &[Message]) -> Vec<i64> {
    messages.iter().filter_map(|message| message.id.as_ref()).map(|id| id.parse().unwrap()).collect()
}

/// How many messages are called that.
pub(crate) fn count(messages: &[Message], name: &str) -> usize {
    messages.iter().filter(|message| message.event.as_deref() == Some(name)).count()
}

/// The path of a run's or session's events.
pub(crate) fn events_of(run: &RunId) -> String {
    format!("/v1/runs/{run}/events")
}

pub(crate) fn events_of_session(session: &SessionId) -> String {
    format!("/v1/sessions/{session}/events")
}
