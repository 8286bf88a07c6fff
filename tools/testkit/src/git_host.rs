//! A git host: `git http-backend` behind HTTP Basic authentication, with a memory of the credentials it was shown.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::TryStreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;
use tokio_util::io::{ReaderStream, StreamReader};

/// A running git host; it ends with its runtime.
#[derive(Debug)]
pub struct GitHost {
    address: SocketAddr,
    state: Arc<HostState>,
}

#[derive(Debug)]
struct HostState {
    root: PathBuf,
    token: Mutex<Option<String>>,
    shown: Mutex<Vec<String>>,
    /// Requests whose path or query has this part wait.
    held: watch::Sender<Option<&'static str>>,
    /// How many requests have had to wait.
    waited: watch::Sender<u64>,
}

impl GitHost {
    /// Serves the repositories below `root`; with a token, to those alone who send it as a Basic password.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(root: &Path, token: Option<&str>) -> anyhow::Result<Self> {
        let state = Arc::new(HostState {
            root: root.to_owned(),
            token: Mutex::new(token.map(str::to_owned)),
            shown: Mutex::default(),
            held: watch::Sender::new(None),
            waited: watch::Sender::new(0),
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(serve).with_state(Arc::clone(&state));
        #[expect(clippy::disallowed_methods, reason = "the host lives as long as its test's runtime")]
        drop(tokio::spawn(async move { axum::serve(listener, router).await }));
        Ok(Self { address, state })
    }

    /// URL of a repository below the root.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Lets requests whose path or query has this part wait for their answers, from now on; with none, all go on.
    pub fn hold(&self, part: Option<&'static str>) {
        self.state.held.send_replace(part);
    }

    /// Waits until a request has had to wait.
    ///
    /// # Errors
    /// None does in `at_most`.
    pub async fn wait_held(&self, at_most: Duration) -> anyhow::Result<()> {
        let mut waited = self.state.waited.subscribe();
        let come = tokio::time::timeout(at_most, waited.wait_for(|count| *count > 0)).await;
        come.context("no request came to the git host")??;
        Ok(())
    }

    /// Takes another token from now on, and no longer the one before.
    pub fn set_token(&self, token: &str) {
        *self.state.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
    }

    /// Every password shown so far.
    #[must_use]
    pub fn shown_tokens(&self) -> Vec<String> {
        self.state.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(State(state): State<Arc<HostState>>, request: Request) -> Response {
    let token = state.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(password) = password(request.headers()) {
        let right = token.as_deref() == Some(password.as_str());
        state.shown.lock().unwrap_or_else(PoisonError::into_inner).push(password);
        if token.is_some() && !right {
            return StatusCode::FORBIDDEN.into_response();
        }
    } else if token.is_some() {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")])
            .into_response();
    }
    let address = request.uri().to_string();
    let waits = |part: Option<&str>| part.is_some_and(|part| address.contains(part));
    let mut held = state.held.subscribe();
    if waits(*held.borrow_and_update()) {
        state.waited.send_modify(|count| *count += 1);
        held.wait_for(|part| !waits(*part)).await.ok();
    }
    match backend(&state.root, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

fn password(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let plain = String::from_utf8(BASE64.decode(text).ok()?).ok()?;
    plain.split_once(':').map(|(_, password)| password.to_owned())
}

/// One CGI exchange with `git http-backend`.
async fn backend(root: &Path, request: Request) -> anyhow::Result<Response> {
    let (head, body) = request.into_parts();
    let text = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    #[expect(clippy::disallowed_methods, reason = "git is started here, with an argument vector")]
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "caisson")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let mut reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    // Git answers only after it has read the request; a failed copy shows in what it then answers.
    tokio::io::copy(&mut reader, &mut stdin).await.ok();
    stdin.shutdown().await.ok();
    drop(stdin);
    let mut output = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut response = Response::builder();
    let mut status = StatusCode::OK;
    loop {
        let mut line = String::new();
        ensure!(output.read_line(&mut line).await? > 0, "git http-backend gave no answer");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("status") {
            status = value.trim().split(' ').next().unwrap_or("500").parse()?;
        } else {
            response = response.header(name, value.trim());
        }
    }
    let rest = output.chain(tokio::io::empty());
    let stream = ReaderStream::new(rest).inspect_ok(move |_| {
        let _child_lives_as_long_as_its_output = &child;
    });
    Ok(response.status(status).body(Body::from_stream(stream))?)
}
