//! Serving the router on a listener: HTTP/1.1, with a bound on everything a connection can make us wait for.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServeLimits;
use crate::stall::StallGuard;

/// Pause after a connection could not be accepted, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Bytes that a connection may hold to be written, and longest head of a request.
const BUFFER_BYTES: usize = 64 * 1024;

/// Serves `router` until `cancel`, then waits for the requests under way, at most [`ServeLimits::drain`].
///
/// Give it the token that the router has: then its event streams end and do not hold the shutdown up. A connection whose
/// other end takes no byte for [`ServeLimits::write_stall`] is cut.
///
/// # Cancel safety
/// Safe, but a dropped call leaves its connections to themselves; cancel the token instead.
pub async fn serve(listener: TcpListener, router: Router, limits: ServeLimits, cancel: CancellationToken) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let cut = CancellationToken::new();
    while let Some(socket) = accept(&listener, &cancel).await {
        // With no place free the next connection waits here, and those behind it in the listener's queue.
        let place = tokio::select! {
            () = cancel.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let (router, cancel, cut) = (router.clone(), cancel.clone(), cut.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(socket, router, limits, cancel) => {}
                () = cut.cancelled() => {}
            }
            drop(place);
        });
    }
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut the connections that did not end in time");
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection; none when it is time to stop.
async fn accept(listener: &TcpListener, cancel: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => return Some(socket),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                tokio::select! {
                    () = cancel.cancelled() => return None,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

async fn connection(socket: TcpStream, router: Router, limits: ServeLimits, cancel: CancellationToken) {
    // An event must not wait for the acknowledgement of the one before it.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot send without delay");
    }
    let io = TokioIo::new(StallGuard::new(socket, limits.write_stall));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_read)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
    }
}
