//! The listener on 127.0.0.1 in the sandbox's own network namespace: the agent's way to the model API and git's way to
//! the repository. It carries `/model/…`, `/git/…` and `/mcp/…` to the door, and what tools ask of hosts outside
//! ([`crate::outside`]), and nothing else: the control paths cannot be reached over it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::protocol::{DoorProblem, VERSION_HEADER, paths};
use http::header::{self, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::activity::{AWAY, Activity};
use crate::backoff::Backoff;
use crate::diagnostics::say;
use crate::door::{Body, BoxError, Door, DoorError, HOST_NAME, whole};
use crate::forward::{Head, carry, keep};
use crate::mcp;
use crate::outside;

/// Connections at once; the next one waits until one of them ends.
pub(crate) const CONNECTIONS: usize = 64;
/// Longest request head, in bytes; a longer one is answered with 431.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;
/// How long a connection may stay without a request, in milliseconds: longer than the agent keeps one.
const IDLE_MS: u64 = 10 * 60 * 1000;
/// Longest refusal of a git request that is read for its reason, in bytes.
pub(crate) const PROBLEM_BYTES: usize = 64 * 1024;

/// Headers that are about one connection (RFC 9110, section 7.6.1), or that only the shim itself may send.
const NOT_CARRIED: [HeaderName; 12] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static(VERSION_HEADER),
];

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Model,
    Git,
    Mcp,
    Outside,
}

/// What a request is refused with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// Nothing is there.
    NoPath,
    /// The gateway was away for too long.
    Away,
}

impl Refused {
    fn status(self) -> StatusCode {
        match self {
            Self::NoPath => StatusCode::NOT_FOUND,
            Self::Away => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn problem(self) -> DoorProblem {
        let (code, message) = match self {
            Self::NoPath => (
                "not_found",
                "there is nothing at this path; only /model/, /git/ and /mcp/ can be reached from a sandbox",
            ),
            Self::Away => (AWAY, "the gateway did not answer; try again later"),
        };
        DoorProblem { code: code.to_owned(), message: message.to_owned() }
    }

    fn response(self) -> Response<Body> {
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = Response::new(whole(body));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Decides by the request line alone. The path is sent on as it is, so one that another reader could resolve to
/// somewhere else has no place here.
fn route(method: &Method, uri: &Uri) -> Result<Route, Refused> {
    if method == Method::CONNECT || uri.authority().is_some() {
        return Ok(Route::Outside);
    }
    let path = uri.path();
    let lower = path.to_ascii_lowercase();
    let hidden = ["%2e", "%2f", "%5c", "\\"].iter().any(|escape| lower.contains(escape));
    if hidden || path.split('/').skip(1).any(|part| matches!(part, "." | "..")) || path.contains("//") {
        return Err(Refused::NoPath);
    }
    let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    if below(paths::MODEL) {
        Ok(Route::Model)
    } else if below(paths::GIT) {
        Ok(Route::Git)
    } else if below(paths::MCP) {
        Ok(Route::Mcp)
    } else {
        Err(Refused::NoPath)
    }
}

/// Takes out what is about one connection, also what `Connection` names.
pub(crate) fn carried(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in NOT_CARRIED.iter().chain(&named) {
        headers.remove(name);
    }
    headers
}

/// The listener's side that answers.
pub(crate) struct Loopback {
    door: Arc<Door>,
    activity: Arc<Activity>,
}

impl Loopback {
    pub(crate) fn new(door: &Arc<Door>, activity: &Arc<Activity>) -> Arc<Self> {
        Arc::new(Self { door: Arc::clone(door), activity: Arc::clone(activity) })
    }

    /// Begins to listen and says where.
    ///
    /// # Errors
    /// That of the operating system, for example when the port is taken.
    pub(crate) async fn bind(place: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
        let listener = TcpListener::bind(place).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    }

    /// Accepts connections for ever, at most [`CONNECTIONS`] at once.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, tracker: TaskTracker) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut backoff = Backoff::new();
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    backoff.reset();
                    let this = Arc::clone(&self);
                    tracker.spawn(async move {
                        this.connection(stream).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    say(format_args!("cannot accept a connection: {error}"));
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        // Nagle's algorithm would delay the last piece of each model reply; without it nothing else changes.
        let _slower = stream.set_nodelay(true);
        let service = service_fn(move |request| {
            let this = Arc::clone(&self);
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(IDLE_MS))
            .max_header_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        // A client that goes away, or a reply that broke off, ends the connection; its other end is told by that.
        drop(connection.await);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let route = match route(request.method(), request.uri()) {
            Ok(route) => route,
            Err(refused) => return refused.response(),
        };
        let answered = match route {
            Route::Outside => outside::answer(&self.door, request).await,
            Route::Mcp => mcp::answer((&self.door, &self.activity), request).await,
            Route::Model | Route::Git => self.forward(route, request).await,
        };
        match answered {
            Ok(response) => response,
            Err(error) => {
                say(format_args!("gave up a request to the gateway: {error}"));
                if route == Route::Git {
                    self.activity.git_refused(Refused::Away.problem());
                }
                Refused::Away.response()
            }
        }
    }

    async fn forward(&self, route: Route, request: Request<Incoming>) -> Result<Response<Body>, DoorError> {
        let (parts, body) = request.into_parts();
        let mut headers = carried(parts.headers.clone());
        // The body says its length again when it is sent.
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(HOST, HOST_NAME);
        if route == Route::Git && !headers.contains_key(AUTHORIZATION) {
            headers.insert(AUTHORIZATION, self.door.grants().agent().clone());
        }
        let body = keep(body).await.map_err(DoorError::Garbled)?;
        let waits = || {
            if route == Route::Model {
                self.activity.model_moved();
            }
        };
        let response = carry(&self.door, &Head::new(parts, headers), body, waits).await?;
        match route {
            Route::Model => Ok(self.watched(response)),
            Route::Git | Route::Mcp | Route::Outside => self.explained(response).await,
        }
    }

    /// Notes each piece of a model reply as it passes.
    fn watched(&self, response: Response<Incoming>) -> Response<Body> {
        let activity = Arc::clone(&self.activity);
        activity.model_moved();
        reply(response).map(|body| {
            let noted = body.map_frame(move |frame| {
                activity.model_moved();
                frame
            });
            noted.map_err(BoxError::from).boxed_unsync()
        })
    }

    /// Keeps the reason of a refusal on its way to git, which shows only the status, and notes a reply that breaks off.
    async fn explained(&self, response: Response<Incoming>) -> Result<Response<Body>, DoorError> {
        let response = reply(response);
        if response.status().as_u16() < 400 {
            let activity = Arc::clone(&self.activity);
            let broken = move |error| {
                activity.git_refused(Refused::Away.problem());
                BoxError::from(error)
            };
            return Ok(response.map(|body| body.map_err(broken).boxed_unsync()));
        }
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, PROBLEM_BYTES).collect().await.map_err(DoorError::Garbled)?.to_bytes();
        if let Ok(problem) = serde_json::from_slice(&body) {
            self.activity.git_refused(problem);
        }
        Ok(Response::from_parts(parts, whole(body)))
    }
}

fn reply(mut response: Response<Incoming>) -> Response<Incoming> {
    let headers = std::mem::take(response.headers_mut());
    *response.headers_mut() = carried(headers);
    response
}

#[cfg(test)]
#[path = "loopback_tests.rs"]
mod tests;
