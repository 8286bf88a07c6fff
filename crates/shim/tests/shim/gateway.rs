//! A gateway that speaks the door's protocol and remembers everything: the other end for the shim under test. Git is
//! real: `git http-backend` on a bare repository.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::protocol::{
    DeltaBatch, DoorProblem, Input, Inputs, JournalAck, JournalBody, JournalRecord, Work, paths,
};
use futures_util::stream::{Stream, StreamExt, iter, once};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The control grant that it knows.
pub(crate) const CONTROL: &str = "csc_control";
/// The agent grant that it knows.
pub(crate) const AGENT: &str = "csa_agent";
/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// How long the gateway's long polls wait.
const POLL: Duration = Duration::from_secs(2);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;
type Piece = Result<Frame<Bytes>, BoxError>;

/// What the gateway does about model calls.
#[derive(Debug, Clone, Default)]
pub(crate) enum Model {
    /// Answers with these pieces.
    #[default]
    Pieces,
    /// Answers with the first piece and then breaks off.
    Cut,
    /// Sends the call on to a Messages API there.
    Upstream(String),
}

/// Everything that it knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) work: VecDeque<Work>,
    pub(crate) delivered: u32,
    pub(crate) journal: Vec<u8>,
    /// How many more journal requests are stored without an answer.
    pub(crate) swallow_acks: u32,
    pub(crate) inputs: Vec<Input>,
    pub(crate) deltas: Vec<DeltaBatch>,
    pub(crate) artifacts: BTreeMap<String, Vec<u8>>,
    /// The session's archived conversation; none: this gateway does not know of any.
    pub(crate) transcript: Option<Vec<u8>>,
    /// Status and code that the next requests for a transcript are answered with.
    pub(crate) refuse_transcripts: VecDeque<(u16, &'static str)>,
    /// What the next uploads are answered with.
    pub(crate) refuse_artifacts: VecDeque<StatusCode>,
    /// Requests to `/model` and `/git`: path, body's length and authorization.
    pub(crate) carried: Vec<(String, usize, String)>,
    pub(crate) model: Model,
    /// Bodies of model calls, as text.
    pub(crate) calls: Vec<String>,
    /// Breaks the next model replies off after this many bytes.
    pub(crate) cut_after: Option<usize>,
    /// The bare repository.
    pub(crate) repository: Option<PathBuf>,
    /// Refuses requests to git whose path or query contains this text.
    pub(crate) refuse_git: Option<(String, DoorProblem)>,
    /// Breaks the next reply to a POST off whose path ends with this, after so many bytes.
    pub(crate) cut_git: Option<(&'static str, usize)>,
    /// Requests whose path begins with this wait.
    pub(crate) hold: Option<&'static str>,
    /// Nothing is stored while this is set.
    pub(crate) store_nothing: bool,
    pub(crate) refused: u32,
}

impl State {
    /// The journal's records.
    pub(crate) fn records(&self) -> Vec<JournalRecord> {
        let lines = self.journal.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("a journal line is a record")).collect()
    }

    /// Their bodies.
    pub(crate) fn bodies(&self) -> Vec<JournalBody> {
        self.records().into_iter().map(|record| record.body).collect()
    }

    fn is_finished(&self, work: &Work) -> bool {
        let Work::Run(work) = work else { return false };
        self.records().iter().any(|record| {
            record.run == work.run
                && record.attempt == work.attempt
                && matches!(record.body, JournalBody::Finished(_))
        })
    }
}

/// The gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    socket: PathBuf,
    shared: Arc<Shared>,
    serving: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Gateway {
    /// Begins to serve on a socket in `directory`.
    pub(crate) fn start(directory: &Path) -> Self {
        let gateway = Self::away(directory);
        gateway.up();
        gateway
    }

    /// One that does not serve yet.
    pub(crate) fn away(directory: &Path) -> Self {
        let shared = Shared { state: Mutex::default(), changed: watch::channel(0).0 };
        let serving = Mutex::new(None);
        Self { socket: directory.join("gateway.sock"), shared: Arc::new(shared), serving }
    }

    /// Where it serves.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Begins to serve.
    pub(crate) fn up(&self) {
        drop(std::fs::remove_file(&self.socket));
        let listener = UnixListener::bind(&self.socket).unwrap();
        let shared = Arc::clone(&self.shared);
        #[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let service = service_fn(move |request| {
                    let shared = Arc::clone(&shared);
                    async move { Ok::<_, Infallible>(shared.answer(request).await) }
                });
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        *self.serving.lock().unwrap() = Some(serving);
    }

    /// Ends as if killed: every connection breaks, and nobody listens any more.
    pub(crate) async fn down(&self) {
        let serving = self.serving.lock().unwrap().take();
        if let Some(serving) = serving {
            serving.abort();
            drop(serving.await);
        }
        drop(std::fs::remove_file(&self.socket));
    }

    /// Looks at or changes what it knows.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        self.shared.with(act)
    }

    /// Waits until `seen` finds what it looks for.
    pub(crate) async fn wait_for<T>(&self, what: &str, seen: impl Fn(&State) -> Option<T>) -> T {
        let mut changed = self.shared.changed.subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = seen(&self.shared.lock()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await.ok();
        found.unwrap_or_else(|| panic!("waited for {what} in vain: {:#?}", self.with(|state| state.bodies())))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Waits until `seen` finds something or the poll's time is over.
    async fn poll<T>(&self, seen: impl Fn(&State) -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = seen(&self.lock()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(POLL, found).await.ok()
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return plain(StatusCode::BAD_REQUEST, "") };
        let body = body.to_bytes();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let agents = path.starts_with("/model/") || path.starts_with("/git/");
        let expected = format!("Bearer {}", if agents { AGENT } else { CONTROL });
        let authorization = header(&parts.headers, "authorization");
        if authorization != expected {
            self.with(|state| state.refused += 1);
            return problem(StatusCode::FORBIDDEN, "grant_refused", "this grant opens nothing here");
        }
        if agents {
            let carried = (format!("{path}?{query}"), body.len(), authorization);
            self.with(|state| state.carried.push(carried));
        }
        let mut changed = self.changed.subscribe();
        while self.lock().hold.is_some_and(|prefix| path.starts_with(prefix)) {
            changed.changed().await.unwrap();
        }
        match path {
            paths::NEXT => self.next().await,
            paths::JOURNAL => self.journal(query, &body),
            paths::INPUTS => self.inputs(query).await,
            paths::DELTAS => {
                self.with(|state| state.deltas.push(serde_json::from_slice(&body).unwrap()));
                plain(StatusCode::NO_CONTENT, "")
            }
            _ if path.starts_with("/artifacts/") => {
                if let Some(status) = self.with(|state| state.refuse_artifacts.pop_front()) {
                    return problem(status, "artifact_refused", "not now");
                }
                let name = path.rsplit('/').next().unwrap().to_owned();
                self.with(|state| state.artifacts.insert(name, body.to_vec()));
                plain(StatusCode::NO_CONTENT, "")
            }
            _ if path.starts_with("/transcript/") => self.transcript(&parts.method, &body),
            _ if path.starts_with("/model/") => self.model(&parts, body).await,
            _ if path.starts_with("/git/") => self.git(&parts, body).await,
            _ => problem(StatusCode::NOT_FOUND, "not_found", "nothing here"),
        }
    }

    fn transcript(&self, method: &http::Method, body: &[u8]) -> Response<Body> {
        if let Some((status, code)) = self.with(|state| state.refuse_transcripts.pop_front()) {
            return problem(StatusCode::from_u16(status).unwrap(), code, "refused for a test");
        }
        self.with(|state| match (&mut state.transcript, method) {
            (None, _) => problem(StatusCode::NOT_FOUND, "not_found", "nothing here"),
            (Some(kept), &http::Method::PUT) => {
                *kept = body.to_vec();
                plain(StatusCode::NO_CONTENT, "")
            }
            (Some(kept), _) => Response::new(whole(kept.clone())),
        })
    }

    async fn next(&self) -> Response<Body> {
        let next = self.poll(|state| state.work.iter().find(|work| !state.is_finished(work)).cloned()).await;
        match next {
            Some(work) => {
                self.with(|state| state.delivered += 1);
                json(StatusCode::OK, &work)
            }
            None => plain(StatusCode::NO_CONTENT, ""),
        }
    }

    fn journal(&self, query: &str, body: &[u8]) -> Response<Body> {
        if self.with(|state| state.store_nothing) {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "store_away", "nothing can be stored");
        }
        let offset: usize = query.strip_prefix("offset=").unwrap().parse().unwrap();
        let (status, acknowledged, swallowed) = self.with(|state| {
            let fits = offset == state.journal.len();
            if fits {
                assert!(body.ends_with(b"\n"), "a batch is whole lines");
                state.journal.extend_from_slice(body);
            }
            let swallowed = fits && state.swallow_acks > 0;
            state.swallow_acks -= u32::from(swallowed);
            let status = if fits { StatusCode::OK } else { StatusCode::CONFLICT };
            (status, state.journal.len() as u64, swallowed)
        });
        if swallowed {
            return plain(StatusCode::BAD_GATEWAY, "stored, but you shall not know");
        }
        json(status, &JournalAck { acknowledged })
    }

    async fn inputs(&self, query: &str) -> Response<Body> {
        let after: i64 = query.strip_prefix("after=").unwrap().parse().unwrap();
        let news = self
            .poll(|state| {
                let items: Vec<_> = state.inputs.iter().filter(|input| input.seq > after).cloned().collect();
                (!items.is_empty()).then_some(items)
            })
            .await;
        json(StatusCode::OK, &Inputs { items: news.unwrap_or_default() })
    }

    async fn model(self: &Arc<Self>, parts: &http::request::Parts, body: Bytes) -> Response<Body> {
        let model = self.with(|state| {
            state.calls.push(String::from_utf8_lossy(&body).into_owned());
            state.model.clone()
        });
        let piece = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
        match model {
            Model::Pieces => stream(iter([piece("one "), piece("two")])),
            Model::Cut => {
                // Only when the agent has the first piece: else the whole reply might be lost with its connection.
                let shared = Arc::clone(self);
                let cut = async move {
                    let seen =
                        |body: &JournalBody| json_line(body).is_some_and(|line| line["type"] == "piece");
                    shared.poll(|state| state.bodies().iter().any(seen).then_some(())).await;
                    Err("cut".into())
                };
                stream(iter([piece("one ")]).chain(once(cut)))
            }
            Model::Upstream(address) => {
                let stream = TcpStream::connect(&address).await.unwrap();
                let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
                #[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
                drop(tokio::spawn(connection));
                let path = parts.uri.path_and_query().unwrap().as_str().strip_prefix("/model").unwrap();
                let mut request =
                    Request::builder().method(&parts.method).uri(path).body(Full::new(body)).unwrap();
                request.headers_mut().extend(parts.headers.clone());
                let response = sender.send_request(request).await.unwrap();
                match self.with(|state| state.cut_after.take()) {
                    None => response.map(|body| body.map_err(Into::into).boxed_unsync()),
                    Some(bytes) => response.map(|body| StreamBody::new(cut(body, bytes)).boxed_unsync()),
                }
            }
        }
    }

    async fn git(&self, parts: &http::request::Parts, body: Bytes) -> Response<Body> {
        let whole = parts.uri.path_and_query().unwrap().as_str();
        let (refuse, repository) = self.with(|state| (state.refuse_git.clone(), state.repository.clone()));
        if let Some((_, said)) = refuse.filter(|(text, _)| whole.contains(text)) {
            return json(StatusCode::FORBIDDEN, &said);
        }
        let response = backend(&repository.expect("the test has a repository"), parts, &body).await;
        let cut = self.with(|state| {
            let path = parts.uri.path();
            state.cut_git.take_if(|(end, _)| parts.method == http::Method::POST && path.ends_with(*end))
        });
        match cut {
            Some((_, bytes)) => broken_off(response, bytes).await,
            None => response,
        }
    }
}

/// Runs `git http-backend`, the CGI program that comes with git.
#[expect(clippy::disallowed_methods, reason = "tests start git and the shim")]
async fn backend(repository: &Path, parts: &http::request::Parts, body: &[u8]) -> Response<Body> {
    let path = parts.uri.path().strip_prefix("/git/origin").unwrap();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", repository)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "shim")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header(&parts.headers, "content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header(&parts.headers, "content-encoding"))
        .env("GIT_PROTOCOL", header(&parts.headers, "git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (written, output) = tokio::join!(
        async {
            let written = stdin.write_all(body).await;
            drop(stdin);
            written
        },
        child.wait_with_output()
    );
    drop(written);
    let output = output.unwrap().stdout;
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..split]).unwrap().split("\r\n") {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(whole(output[split + 4..].to_vec())).unwrap()
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn stream(pieces: impl Stream<Item = Piece> + Send + 'static) -> Response<Body> {
    Response::new(StreamBody::new(pieces).boxed_unsync())
}

/// A body that breaks off after so many bytes. Its end waits a little for the client to have the beginning, or the
/// whole reply could be lost with its connection.
fn cut(body: Incoming, bytes: usize) -> impl Stream<Item = Piece> + Send {
    let pieces = BodyStream::new(body).map(|frame| frame.map_err(BoxError::from));
    let end = once(async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err("cut".into())
    });
    let mut left = bytes;
    let head = pieces.take_while(move |frame| {
        let length = frame.as_ref().ok().and_then(|frame| frame.data_ref()).map_or(0, Bytes::len);
        let within = left > 0;
        left = left.saturating_sub(length);
        std::future::ready(within)
    });
    head.chain(end)
}

/// A reply whose body breaks off after so many bytes.
async fn broken_off(response: Response<Body>, bytes: usize) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let whole = body.collect().await.unwrap().to_bytes();
    assert!(whole.len() > bytes, "the reply is long enough to be cut");
    let head = Some(Ok(Frame::data(whole.slice(..bytes)))).filter(|_| bytes > 0);
    let end = once(async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err("cut".into())
    });
    Response::from_parts(parts, StreamBody::new(iter(head).chain(end)).boxed_unsync())
}

/// A line of the agent as JSON.
pub(crate) fn json_line(body: &JournalBody) -> Option<serde_json::Value> {
    match body {
        JournalBody::Line { line } => serde_json::from_str(line).ok(),
        _ => None,
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    let mut response = Response::new(whole(serde_json::to_vec(value).unwrap()));
    *response.status_mut() = status;
    response
}

fn problem(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    json(status, &DoorProblem { code: code.to_owned(), message: message.to_owned() })
}
