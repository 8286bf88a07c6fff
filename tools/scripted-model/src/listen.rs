//! Accepts connections on TCP and unix sockets and serves them until the server stops.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections served at once; further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 1024;
/// Pause after a failed accept, which means most often that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Put on a response: the connection is to be closed before any byte of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CutBeforeHeaders;

/// Why a connection is closed without a response.
#[derive(Debug, thiserror::Error)]
#[error("the scenario closes the connection before the response")]
struct Closed;

/// What every connection needs.
#[derive(Debug, Clone)]
pub(crate) struct Doorkeeper {
    router: Router,
    permits: Arc<Semaphore>,
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Doorkeeper {
    pub(crate) fn new(router: Router, connections: usize, stopping: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(connections));
        Self { router, permits, tracker: TaskTracker::new(), stopping }
    }

    /// Accepts TCP connections in a task of its own until the server stops.
    pub(crate) fn watch_tcp(&self, listener: TcpListener) {
        let keeper = self.clone();
        self.tracker.spawn(async move {
            while let Some(accepted) = keeper.unless_stopping(listener.accept()).await {
                match accepted {
                    Ok((stream, _)) => keeper.admit_tcp(stream),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
            }
        });
    }

    /// Accepts connections of a unix socket in a task of its own until the server stops.
    pub(crate) fn watch_unix(&self, listener: UnixListener) {
        let keeper = self.clone();
        self.tracker.spawn(async move {
            while let Some(accepted) = keeper.unless_stopping(listener.accept()).await {
                match accepted {
                    Ok((stream, _)) => keeper.admit::<UnixStream>(stream),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
            }
        });
    }

    /// Ends every connection and waits until all tasks have ended.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    async fn unless_stopping<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.stopping.run_until_cancelled(future).await
    }

    fn admit_tcp(&self, stream: TcpStream) {
        // Small chunks must not wait for one another; where this fails the reply is only slower.
        stream.set_nodelay(true).unwrap_or(());
        self.admit(stream);
    }

    fn admit<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return };
        let keeper = self.clone();
        self.tracker.spawn(async move {
            let router = keeper.router.clone();
            let service = service_fn(move |request| answer(router.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Errors of a connection are the client's going or a cut of ours; the witness has both already.
            drop(keeper.unless_stopping(connection).await);
            drop(permit);
        });
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    let Ok(response) = router.oneshot(request.map(Body::new)).await;
    if response.extensions().get::<CutBeforeHeaders>().is_some() { Err(Closed) } else { Ok(response) }
}
