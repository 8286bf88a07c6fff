//! Serving the router on a listener: HTTP/1.1, with a bound on everything a connection can make us wait for.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Peer;
use crate::config::ServeLimits;
use crate::gate::{Admission, Entry, Gate};
use crate::stall::StallGuard;

/// Pause after a connection could not be accepted, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Bytes that a connection may hold to be written, and longest head of a request.
const BUFFER_BYTES: usize = 64 * 1024;
/// What a connection is told that is not let in.
const REFUSED: &[u8] =
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 10\r\nconnection: close\r\n\r\n";

/// Serves `router` until `cancel`, then waits for the requests under way, at most [`ServeLimits::drain`].
///
/// Give it the token that the router has: then its event streams end and do not hold the shutdown up. A connection whose
/// other end takes no byte for [`ServeLimits::write_stall`] is cut.
///
/// # Cancel safety
/// Safe, but a dropped call leaves its connections to themselves; cancel the token instead.
pub async fn serve(listener: TcpListener, router: Router, limits: ServeLimits, cancel: CancellationToken) {
    run(listener, Parts { router, limits, tls: None, cancel }).await;
}

/// Serves like [`serve`], to callers that come by TLS. The handshake has the time of a request's head.
///
/// # Cancel safety
/// As [`serve`].
pub async fn serve_tls(
    listener: TcpListener,
    router: Router,
    limits: ServeLimits,
    tls: Arc<ServerConfig>,
    cancel: CancellationToken,
) {
    run(listener, Parts { router, limits, tls: Some(TlsAcceptor::from(tls)), cancel }).await;
}

/// What every connection is served with.
#[derive(Clone)]
struct Parts {
    router: Router,
    limits: ServeLimits,
    tls: Option<TlsAcceptor>,
    cancel: CancellationToken,
}

async fn run(listener: TcpListener, parts: Parts) {
    let Parts { limits, cancel, .. } = &parts;
    let connections = TaskTracker::new();
    let gate = Gate::new(limits);
    let cut = CancellationToken::new();
    while let Some((socket, peer)) = accept(&listener, cancel).await {
        let entry = match enter(&gate, peer, cancel).await {
            Entering::Entered(entry) => entry,
            Entering::Refused => {
                refuse(socket, parts.tls.is_some());
                continue;
            }
            Entering::Stopped => break,
        };
        let (parts, cut) = (parts.clone(), cut.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(socket, (peer, entry.clone()), parts) => {}
                () = entry.cut() => tracing::debug!("a connection made room for another"),
                () = cut.cancelled() => {}
            }
        });
    }
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut the connections that did not end in time");
        cut.cancel();
        connections.wait().await;
    }
}

enum Entering {
    Entered(Entry),
    Refused,
    Stopped,
}

/// A place for a connection. With none that can be had the connection waits here, and those behind it in the listener's
/// queue.
async fn enter(gate: &Gate, peer: Peer, cancel: &CancellationToken) -> Entering {
    loop {
        match gate.admit(peer) {
            Admission::Entered(entry) => return Entering::Entered(entry),
            Admission::Refused => return Entering::Refused,
            Admission::Full => tokio::select! {
                () = cancel.cancelled() => return Entering::Stopped,
                () = gate.freed() => {}
            },
        }
    }
}

/// Says so, as far as that costs no waiting.
fn refuse(socket: TcpStream, tls: bool) {
    if tls {
        return;
    }
    // The driver has not seen it yet, so it would say that nothing can be written.
    if let Ok(mut socket) = socket.into_std() {
        let told = socket.write(REFUSED);
        tracing::debug!(told = told.is_ok(), "refused a connection of an address that has too many");
    }
}

/// The next connection; none when it is time to stop.
async fn accept(listener: &TcpListener, cancel: &CancellationToken) -> Option<(TcpStream, Peer)> {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => return Some((socket, Peer::of(address.ip()))),
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

async fn connection(socket: TcpStream, (peer, entry): (Peer, Entry), parts: Parts) {
    // An event must not wait for the acknowledgement of the one before it.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot send without delay");
    }
    let Parts { router, limits, tls, cancel } = parts;
    let head_read = if entry.is_pressed() { limits.head_read_pressed } else { limits.head_read };
    let served = Served { router, peer, entry, head_read, cancel: cancel.clone() };
    let socket = StallGuard::new(socket, limits.write_stall);
    let Some(tls) = tls else { return exchange(socket, served).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(head_read, tls.accept(socket)) => shaken,
        () = cancel.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => exchange(stream, served).await,
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a TLS handshake failed");
        }
        Err(_) => tracing::debug!("a TLS handshake did not end in time"),
    }
}

/// What one connection is served with.
struct Served {
    router: Router,
    peer: Peer,
    entry: Entry,
    head_read: Duration,
    cancel: CancellationToken,
}

/// Answers the requests of one connection; the router is told whose it is.
async fn exchange<T>(socket: T, served: Served)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Served { router, peer, entry, head_read, cancel } = served;
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let serving = entry.serve();
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(entry.clone());
        let answering = router.call(request);
        async move {
            let answer = answering.await;
            drop(serving);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_read)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(socket), service);
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
