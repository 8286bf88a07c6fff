//! Connections: HTTP/1.1 over the socket of one sandbox.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::checks::{Check, stands};
use caisson_domain::protocol::paths;
use caisson_store::meters::{DOOR_ANSWERS, DOOR_REQUESTS};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use crate::body::Body;
use crate::bounds::{HEADER_BYTES, HEADERS};
use crate::problem::Unanswered;
use crate::shared::Door;
use crate::{control, egress, git, mcp, model};

/// Wait after a failed accept (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens a door whose socket takes no descriptors: its connections are read here.
pub(crate) fn open(door: &Arc<Door>, listener: StdListener) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let door = Arc::clone(door);
    door.shared.tracker.clone().spawn(async move {
        let begin = |stream, permit| {
            let served = connection(Arc::clone(&door), stream);
            door.shared.tracker.spawn(async move {
                served.await;
                drop::<OwnedSemaphorePermit>(permit);
            });
        };
        accept(&door, listener, begin).await;
    });
    Ok(())
}

/// Takes connections until the door closes. Beyond [`crate::bounds::CONNECTIONS`] they wait in the socket's
/// backlog.
pub(crate) async fn accept(
    door: &Door,
    listener: UnixListener,
    begin: impl Fn(UnixStream, OwnedSemaphorePermit),
) {
    loop {
        let permit = tokio::select! {
            () = door.closed.cancelled() => return,
            permit = Arc::clone(&door.connections).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            () = door.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => begin(stream, permit),
            Err(error) => {
                tracing::warn!(sandbox.id = %door.sandbox, error = %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What reads the requests of a connection, each head within `header_read` and the bounds of its size.
pub(crate) fn reader(header_read: Duration) -> http1::Builder {
    let mut reader = http1::Builder::new();
    reader.timer(TokioTimer::new()).header_read_timeout(header_read);
    let head_bytes = if stands(Check::Heads) { HEADER_BYTES } else { usize::MAX / 2 };
    reader.max_header_size(head_bytes).max_headers(HEADERS);
    reader
}

/// Serves one connection, over whatever carries its bytes. When the door closes, requests under way have the
/// grace to end.
pub(crate) async fn connection<I>(door: Arc<Door>, io: I)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let bounds = &door.shared.bounds;
    #[cfg(feature = "checks-off")]
    let Some(io) = egress::unframed(&door, io).await else { return };
    let service = {
        let door = Arc::clone(&door);
        service_fn(move |request| {
            let door = Arc::clone(&door);
            async move { metered(&door, request).await }
        })
    };
    let connection = reader(bounds.header_read).serve_connection(TokioIo::new(io), service).with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = door.closed.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(bounds.grace, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(sandbox.id = %door.sandbox, error = %error, "a connection of {} broke", door.sandbox);
    }
}

/// Answers, and counts the answer with the time to its head.
async fn metered(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Unanswered> {
    let (way, begun) = (way(&request), Instant::now());
    let answered = answer(door, request).await;
    let status =
        answered.as_ref().map_or_else(|_| "none".to_owned(), |answer| answer.status().as_str().to_owned());
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let meters = door.shared.store.meters();
    meters.add(&DOOR_REQUESTS, vec![("way", way.to_owned()), ("status", status)], 1);
    meters.add(&DOOR_ANSWERS, vec![("way", way.to_owned())], ms);
    answered
}

/// Where a request wants to go.
fn way(request: &Request<Incoming>) -> &'static str {
    let uri = request.uri();
    if request.method() == Method::CONNECT || uri.authority().is_some() {
        return "outside";
    }
    let ways = [(paths::MODEL, "model"), (paths::GIT, "git"), (paths::MCP, "mcp")];
    ways.into_iter().find(|(prefix, _)| below(uri.path(), prefix).is_some()).map_or("control", |(_, way)| way)
}

/// An error closes the connection without a byte.
async fn answer(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Unanswered> {
    let uri = request.uri();
    if request.method() == Method::CONNECT || uri.authority().is_some() {
        return Ok(egress::answer(door, request).await);
    }
    let path = uri.path().to_owned();
    if let Some(rest) = below(&path, paths::MODEL) {
        model::answer(door, request, rest).await
    } else if let Some(rest) = below(&path, paths::GIT) {
        git::answer(door, request, rest).await
    } else if let Some(rest) = below(&path, paths::MCP) {
        Ok(mcp::answer(door, request, rest).await)
    } else {
        let answered = control::answer(door, request).await;
        Ok(answered.unwrap_or_else(|refusal| refusal.without(&door.secrets).into_response()))
    }
}

/// What follows `prefix/` in `path`.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)?.strip_prefix('/')
}
