//! A client that costs little: one kept connection, one request after another, no pool and no redirects. It shares the
//! machine with the server that it measures.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

/// Time limit of one request.
const REQUEST: Duration = Duration::from_secs(30);

/// A kept connection.
#[derive(Debug)]
pub(super) struct Caller {
    sender: SendRequest<Full<Bytes>>,
    /// What every request carries as `Authorization`.
    authorization: String,
    /// Drives the connection; it ends with this.
    _driver: JoinSet<()>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    /// Its status.
    pub(super) status: u16,
    /// Its body.
    pub(super) body: Bytes,
    /// From before the request is sent until the whole answer is there.
    pub(super) took: Duration,
}

impl Reply {
    /// The time in milliseconds.
    pub(super) fn took_ms(&self) -> f64 {
        self.took.as_secs_f64() * 1000.0
    }

    /// The body as JSON, if the status is the one that is expected.
    ///
    /// # Errors
    /// It is another one, or the body is not JSON.
    pub(super) fn json(&self, status: u16) -> anyhow::Result<serde_json::Value> {
        let text = String::from_utf8_lossy(&self.body);
        ensure!(self.status == status, "answered with {} instead of {status}: {text}", self.status);
        serde_json::from_slice(&self.body).with_context(|| format!("an answer is not JSON: {text}"))
    }
}

impl Caller {
    /// Connects to a server's base URL, `http://address`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) async fn tcp(base: &str, key: &str) -> anyhow::Result<Self> {
        let address = base.strip_prefix("http://").context("the server's URL is not plain HTTP")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, key).await
    }

    /// As many connections at once as are wanted.
    ///
    /// # Errors
    /// As [`Caller::tcp`].
    pub(super) async fn many(base: &str, key: &str, count: u32) -> anyhow::Result<Vec<Self>> {
        let mut callers = Vec::new();
        for _ in 0..count {
            callers.push(Self::tcp(base, key).await?);
        }
        Ok(callers)
    }

    /// Connects to a sandbox's door.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) async fn unix(socket: &Path, grant: &str) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).await;
        Self::over(stream.with_context(|| format!("\"{}\" cannot be reached", socket.display()))?, grant)
            .await
    }

    async fn over<T>(stream: T, secret: &str) -> anyhow::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async {
            // Whoever waits for an answer is told of the error.
            drop(connection.await);
        });
        Ok(Self { sender, authorization: format!("Bearer {secret}"), _driver: driver })
    }

    /// Asks for a path.
    ///
    /// # Errors
    /// The connection breaks, or the answer takes too long.
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Reply> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// As [`Caller::get`].
    pub(super) async fn post(&mut self, path: &str, body: Bytes) -> anyhow::Result<Reply> {
        self.call(Method::POST, path, body).await
    }

    async fn call(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Reply> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "caisson")
            .header("authorization", &self.authorization)
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let began = Instant::now();
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, body))
        };
        let done = tokio::time::timeout(REQUEST, exchange).await;
        let (status, body) = done.with_context(|| format!("{path} took longer than {REQUEST:?}"))??;
        Ok(Reply { status, body, took: began.elapsed() })
    }
}
