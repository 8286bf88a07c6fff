//! The shim's own requests at the door: HTTP/1.1 over the sandbox's unix socket, with the control grant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::{DoorProblem, VERSION, VERSION_HEADER};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

/// Any error, as bodies carry it.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Largest answer to a control request, in bytes: a transcript. A run's work has half of it, with a prompt in which every
/// character is escaped.
pub(crate) const REPLY_BYTES: usize = TRANSCRIPT_BYTES;
/// What requests name as their host; the door is told by its socket.
pub(crate) const HOST_NAME: HeaderValue = HeaderValue::from_static("door");

/// What a sandbox holds to pass its door. Neither is ever shown.
pub struct Grants {
    control: HeaderValue,
    agent: HeaderValue,
    agent_text: String,
}

/// A grant that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a grant is empty or has characters that no grant has")]
pub struct GrantError;

impl Grants {
    /// Takes the control grant and the agent grant.
    ///
    /// # Errors
    /// [`GrantError`] if one of them is not printable text.
    pub fn new(control: &str, agent: &str) -> Result<Self, GrantError> {
        Ok(Self { control: bearer(control)?, agent: bearer(agent)?, agent_text: agent.to_owned() })
    }

    /// The agent grant as a header's value.
    pub(crate) fn agent(&self) -> &HeaderValue {
        &self.agent
    }

    /// The agent grant itself, for the agent's environment.
    pub(crate) fn agent_text(&self) -> &str {
        &self.agent_text
    }
}

fn bearer(grant: &str) -> Result<HeaderValue, GrantError> {
    if grant.is_empty() || !grant.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(GrantError);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {grant}")).map_err(|_| GrantError)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Why a request at the door has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    /// Nobody listens, or the connection broke before the answer; try again.
    #[error("the door did not answer")]
    Away(#[source] BoxError),
    /// No answer in time; try again.
    #[error("the door did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer is too long or broke off; try again.
    #[error("the door's answer is not whole")]
    Garbled(#[source] BoxError),
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Reply {
    /// The refusal in it, or one that says only the status.
    pub(crate) fn problem(&self) -> DoorProblem {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| DoorProblem {
            code: format!("http_{}", self.status.as_u16()),
            message: format!("the gateway answered {}", self.status),
        })
    }
}

/// The way to the door.
pub(crate) struct Door {
    socket: PathBuf,
    grants: Grants,
    tracker: TaskTracker,
}

impl Door {
    pub(crate) fn new(socket: PathBuf, grants: Grants, tracker: TaskTracker) -> Arc<Self> {
        Arc::new(Self { socket, grants, tracker })
    }

    pub(crate) fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Where tasks run that live as long as the sandbox.
    pub(crate) fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Connects.
    ///
    /// # Errors
    /// [`DoorError::Away`] if nobody listens.
    pub(crate) async fn connect(&self) -> Result<SendRequest<Body>, DoorError> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| DoorError::Away(error.into()))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| DoorError::Away(error.into()))?;
        // Its end shows in the request that it carries.
        self.tracker.spawn(async move { drop(connection.with_upgrades().await) });
        Ok(sender)
    }

    /// Begins a control request.
    ///
    /// # Errors
    /// [`DoorError::Garbled`] if the path is none, which no caller here can cause.
    pub(crate) fn control(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, DoorError> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, HOST_NAME)
            .header(AUTHORIZATION, &self.grants.control)
            .header(VERSION_HEADER, VERSION)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| DoorError::Garbled(error.into()))
    }
}

/// A body that is there already.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub(crate) fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// One connection for requests that come one after another, made anew when it is gone.
pub(crate) struct Caller {
    door: Arc<Door>,
    connection: Option<SendRequest<Body>>,
}

impl Caller {
    pub(crate) fn new(door: &Arc<Door>) -> Self {
        Self { door: Arc::clone(door), connection: None }
    }

    /// Sends a control request and takes in the whole answer.
    ///
    /// A request on a connection that the other side has closed meanwhile is sent once more on a new one: every
    /// control request may be repeated.
    ///
    /// # Errors
    /// [`DoorError`]; each of them may be tried again.
    ///
    /// # Cancel safety
    /// The request may have been carried out or not.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<Reply, DoorError> {
        let body = body.into();
        let call = async {
            if let Some(kept) = self.connection.take() {
                let request = self.door.control(method.clone(), path, whole(body.clone()))?;
                if let Ok(response) = self.exchange(kept, request).await {
                    return take_in(response).await;
                }
            }
            let fresh = self.door.connect().await?;
            let request = self.door.control(method, path, whole(body))?;
            take_in(self.exchange(fresh, request).await?).await
        };
        let reply = tokio::time::timeout(limit, call).await;
        let reply = reply.unwrap_or(Err(DoorError::TimedOut(limit)));
        if reply.is_err() {
            self.connection = None;
        }
        reply
    }

    /// Sends a control request whose body is there only once, and takes in the whole answer.
    ///
    /// # Errors
    /// [`DoorError`]; each of them may be tried again with a new body.
    ///
    /// # Cancel safety
    /// The request may have been carried out or not.
    pub(crate) async fn upload(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
        limit: Duration,
    ) -> Result<Reply, DoorError> {
        let upload = async {
            let fresh = self.door.connect().await?;
            let request = self.door.control(method, path, body)?;
            take_in(self.exchange(fresh, request).await?).await
        };
        tokio::time::timeout(limit, upload).await.unwrap_or(Err(DoorError::TimedOut(limit)))
    }

    async fn exchange(
        &mut self,
        mut connection: SendRequest<Body>,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, DoorError> {
        connection.ready().await.map_err(|error| DoorError::Away(error.into()))?;
        let response =
            connection.send_request(request).await.map_err(|error| DoorError::Away(error.into()))?;
        self.connection = Some(connection);
        Ok(response)
    }
}

async fn take_in(response: Response<Incoming>) -> Result<Reply, DoorError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), REPLY_BYTES).collect().await.map_err(DoorError::Garbled)?;
    Ok(Reply { status, body: body.to_bytes() })
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
