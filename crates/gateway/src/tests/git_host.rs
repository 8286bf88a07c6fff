//! Git for tests: the real command line as the client in the sandbox, and a git host made of `git
//! http-backend`.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixStream};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::support::{GIT_TOKEN, PATIENCE, Sandbox};

/// Git with a clean environment: nobody's configuration, nobody's prompts.
#[expect(clippy::disallowed_methods, reason = "the tests' client is the real git")]
fn command(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C.UTF-8")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What git did.
pub(crate) struct Done {
    pub(crate) ok: bool,
    pub(crate) out: String,
    /// What a person sees.
    pub(crate) said: String,
}

fn done(output: &Output) -> Done {
    Done {
        ok: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

async fn run(mut command: Command) -> Done {
    done(&tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap())
}

/// Git that must work.
pub(crate) async fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = command(directory);
    command.args(arguments);
    let done = run(command).await;
    assert!(done.ok, "git {arguments:?}: {}", done.said);
    done.out
}

/// Git that must work, with something to read.
pub(crate) async fn git_with(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut command = command(directory);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let write = async move { stdin.write_all(input).await.unwrap() };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let done = done(&output.unwrap());
    assert!(done.ok, "git {arguments:?}: {}", done.said);
    done.out
}

/// A bare repository with one commit on `main`; answers that commit.
pub(crate) async fn bare_repository(path: &Path) -> String {
    let seed = path.with_extension("seed");
    std::fs::create_dir_all(&seed).unwrap();
    git(&seed, &["init", "-q"]).await;
    std::fs::write(seed.join("file"), "one\n").unwrap();
    git(&seed, &["add", "."]).await;
    git(&seed, &["commit", "-qm", "first"]).await;
    git(&seed, &["clone", "-q", "--bare", ".", path.to_str().unwrap()]).await;
    git(path, &["rev-parse", "main"]).await
}

/// The sandbox's own git, by way of a loopback port such as the shim has.
pub(crate) struct Client {
    pub(crate) url: String,
    grant: String,
    pub(crate) directory: PathBuf,
    _forwarder: JoinSet<()>,
}

impl Client {
    pub(crate) async fn new(sandbox: &Sandbox, directory: PathBuf) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/git/origin", listener.local_addr().unwrap());
        let socket = sandbox.socket.clone();
        let mut forwarder = JoinSet::new();
        forwarder.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = UnixStream::connect(&socket).await.unwrap();
                connections.spawn(async move {
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        let grant = sandbox.agent.clone();
        Self { url, grant, directory, _forwarder: forwarder }
    }

    /// Git in `directory` (below this client's own), with the grant.
    pub(crate) async fn git(&self, directory: &str, arguments: &[&str]) -> Done {
        let mut command = command(&self.directory.join(directory));
        command.args(["-c", &format!("http.extraHeader=Authorization: Bearer {}", self.grant)]);
        command.args(arguments);
        run(command).await
    }

    pub(crate) async fn clone(&self) -> Done {
        self.git(".", &["clone", "-q", &self.url, "work"]).await
    }

    /// A clone with a commit on top; answers the commit.
    pub(crate) async fn clone_and_commit(&self) -> String {
        let cloned = self.clone().await;
        assert!(cloned.ok, "{}", cloned.said);
        self.commit("two\n").await
    }

    pub(crate) async fn commit(&self, text: &str) -> String {
        let work = self.directory.join("work");
        std::fs::write(work.join("file"), text).unwrap();
        git(&work, &["commit", "-qam", "change"]).await;
        git(&work, &["rev-parse", "HEAD"]).await
    }

    pub(crate) async fn push(&self, arguments: &[&str]) -> Done {
        let mut all = vec!["push", "origin"];
        all.extend(arguments);
        self.git("work", &all).await
    }
}

/// How the host behaves beyond serving its repositories.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Serves,
    /// Takes pushes and breaks the connection off before it says so.
    SwallowsReports,
    /// Sends everybody elsewhere.
    Redirects,
    /// Shows a web page.
    ShowsPage,
    /// Fails.
    Fails,
    /// Fails at everything that has to do with pushes.
    FailsPushes,
    /// Never answers.
    Hangs,
    /// Shows its refs, and is at work on every push until its mood changes.
    HoldsPushes,
    /// Refuses pushes in words that repeat the login, first with so many letters before it.
    RepeatsLogin(usize),
    /// Takes pushes and says so in an encoding that nobody asked for.
    EncodesReports,
    /// Has no place for the packs of so many pushes: git itself says that it cannot move them there.
    HasNoPlace(usize),
    /// Knows no newer protocol of git's than the first one.
    SpeaksOldProtocol,
}

struct State {
    root: PathBuf,
    password: Option<String>,
    mood: watch::Sender<Mood>,
    seen: Mutex<Vec<(String, HeaderMap)>>,
}

/// A git host with Basic authentication.
pub(crate) struct GitHost {
    pub(crate) url: String,
    state: Arc<State>,
    _task: JoinSet<()>,
}

impl GitHost {
    /// Serves the bare repositories below `root`.
    pub(crate) async fn start(root: &Path, mood: Mood) -> Self {
        let state = State {
            root: root.to_owned(),
            password: Some(GIT_TOKEN.to_owned()),
            mood: watch::Sender::new(mood),
            seen: Mutex::new(Vec::new()),
        };
        let state = Arc::new(state);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        let app = axum::Router::new().fallback(move |request| answer(Arc::clone(&shared), request));
        let mut task = JoinSet::new();
        task.spawn(async move { drop(axum::serve(listener, app).await) });
        Self { url, state, _task: task }
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.state.mood.send_replace(mood);
    }

    /// How many requests with such an end of their path have come.
    pub(crate) fn count(&self, end: &str) -> usize {
        self.seen().iter().filter(|(path, _)| path.ends_with(end)).count()
    }

    /// Path with query, and headers, of every request.
    pub(crate) fn seen(&self) -> Vec<(String, HeaderMap)> {
        self.state.seen.lock().unwrap().clone()
    }
}

type Answer = Response<axum::body::Body>;

fn status(status: u16) -> Answer {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

async fn answer(state: Arc<State>, request: Request<axum::body::Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().to_string();
    state.seen.lock().unwrap().push((path, parts.headers.clone()));
    let fail = |code: u16, header: Option<(&'static str, &str)>| {
        let mut response = status(code);
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    };
    let pushes = parts.uri.path().ends_with("/git-receive-pack");
    let mood = *state.mood.borrow();
    match mood {
        Mood::Redirects => {
            return fail(301, Some(("location", "https://moved.example.com/new.git/info/refs?secret=1")));
        }
        Mood::ShowsPage => return fail(200, Some(("content-type", "text/html"))),
        Mood::Fails => return fail(503, None),
        Mood::FailsPushes if parts.uri.to_string().ends_with("git-receive-pack") => return fail(503, None),
        Mood::Hangs => std::future::pending().await,
        Mood::HoldsPushes if pushes => {
            state.mood.subscribe().wait_for(|mood| *mood != Mood::HoldsPushes).await.map(drop).unwrap();
        }
        Mood::Serves
        | Mood::SwallowsReports
        | Mood::FailsPushes
        | Mood::HoldsPushes
        | Mood::RepeatsLogin(_)
        | Mood::HasNoPlace(_)
        | Mood::SpeaksOldProtocol
        | Mood::EncodesReports => {}
    }
    if let Some(password) = &state.password {
        let expected = base64::engine::general_purpose::STANDARD.encode(format!("robot:{password}"));
        let given = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
        if given != Some(&format!("Basic {expected}")) {
            return fail(401, Some(("www-authenticate", "Basic realm=git")));
        }
    }
    if let (Mood::RepeatsLogin(fill), true) = (mood, pushes) {
        return result(repeated_login(&body, fill));
    }
    if let (Mood::HasNoPlace(pushes_left), true) = (mood, pushes) {
        let left = pushes_left - 1;
        state.mood.send_replace(if left == 0 { Mood::Serves } else { Mood::HasNoPlace(left) });
        let path = parts.uri.path().trim_end_matches("/git-receive-pack").trim_start_matches('/');
        let packs = state.root.join(path).join("objects/pack");
        let away = packs.with_extension("away");
        std::fs::rename(&packs, &away).unwrap();
        std::fs::write(&packs, "").unwrap();
        let answer = backend(&state, &parts, body).await;
        std::fs::remove_file(&packs).unwrap();
        std::fs::rename(&away, &packs).unwrap();
        return answer;
    }
    let mut answer = backend(&state, &parts, body).await;
    if mood == Mood::EncodesReports && pushes {
        answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    }
    if mood == Mood::SwallowsReports && pushes {
        let broken = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("swallowed"))]);
        let (mut parts, _) = answer.into_parts();
        parts.headers.remove("content-length");
        return Response::from_parts(parts, axum::body::Body::from_stream(broken));
    }
    answer
}

const RESULT: &str = "application/x-git-receive-pack-result";

fn result(report: Vec<u8>) -> Answer {
    let mut response = Response::new(axum::body::Body::from(report));
    response.headers_mut().insert("content-type", RESULT.parse().unwrap());
    response
}

/// Refuses the ref of this push in words that have the login in several forms, and says it on the band of progress as well,
/// cut in two.
fn repeated_login(push: &[u8], fill: usize) -> Vec<u8> {
    let head = String::from_utf8_lossy(&push[..200]).into_owned();
    let name = head.split([' ', '\0']).find(|word| word.starts_with("refs/")).unwrap();
    let base64 = base64::engine::general_purpose::STANDARD.encode(format!("robot:{GIT_TOKEN}"));
    let said = format!("{}{GIT_TOKEN} {base64} {}", "x".repeat(fill), hex::encode(GIT_TOKEN));
    let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let report = packet("unpack ok\n") + &packet(&format!("ng {name} {said}\n")) + "0000";
    let (first, second) = GIT_TOKEN.split_at(9);
    let progress = [format!("\u{2}you are {first}"), format!("\u{2}{second}, are you?\n")];
    let bands = packet(&progress[0]) + &packet(&format!("\u{1}{report}")) + &packet(&progress[1]);
    (bands + "0000").into_bytes()
}

/// Runs `git http-backend` as a web server would (CGI).
async fn backend(state: &State, parts: &http::request::Parts, body: Bytes) -> Answer {
    let header =
        |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_old = *state.mood.borrow() == Mood::SpeaksOldProtocol;
    let protocol = if is_old { "" } else { header("git-protocol") };
    let mut command = command(&state.root);
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &state.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", protocol)
        .env("REMOTE_USER", "robot")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("GIT_CONFIG_COUNT", "3")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_CONFIG_KEY_1", "receive.autogc")
        .env("GIT_CONFIG_VALUE_1", "false")
        .env("GIT_CONFIG_KEY_2", "receive.unpackLimit")
        .env("GIT_CONFIG_VALUE_2", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let write = async move {
        // A backend that refuses does not read on.
        drop(stdin.write_all(&body).await);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output.unwrap().stdout;
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&output[..split]).into_owned();
    let mut response = Response::new(axum::body::Body::from(output[split + 4..].to_vec()));
    for line in head.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            *response.status_mut() = StatusCode::from_u16(value[..3].parse().unwrap()).unwrap();
        } else {
            let name: http::HeaderName = name.parse().unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    response
}
