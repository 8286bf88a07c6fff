//! Carrying one request of the sandbox to the door, and holding it while the gateway is away.
//!
//! A request of which no reply byte has come is sent again until the gateway is back or [`HOLD_MS`] have passed, so that
//! a restart of the server is not seen by the agent. That needs a copy of the body: a body longer than
//! [`RESENT_BODY_BYTES`] is streamed and not sent again.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::header::HeaderMap;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::door::{Body, BoxError, Door, DoorError, whole};

/// How long a request is held for a gateway that is away, in milliseconds (15 minutes).
pub(crate) const HOLD_MS: u64 = 15 * 60 * 1000;
/// Longest request body that is kept to be sent again, in bytes.
pub(crate) const RESENT_BODY_BYTES: usize = 32 * 1024 * 1024;

/// A request on its way, without its body.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    parts: Arc<Parts>,
    headers: HeaderMap,
}

impl Head {
    /// `headers` are those that are sent.
    pub(crate) fn new(parts: Parts, headers: HeaderMap) -> Self {
        Self { parts: Arc::new(parts), headers }
    }

    fn with(&self, body: Body) -> Result<Request<Body>, DoorError> {
        let path = self.parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(self.parts.method.clone())
            .uri(path)
            .body(body)
            .map_err(|error| DoorError::Garbled(error.into()))?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// A request body: kept whole, or too long for that.
pub(crate) enum Kept {
    /// May be sent again.
    Whole(Bytes),
    /// May be sent once.
    Once(Body),
}

/// Takes in a body up to [`RESENT_BODY_BYTES`].
///
/// # Errors
/// That of the client's connection.
pub(crate) async fn keep(mut body: Incoming) -> Result<Kept, BoxError> {
    let mut head = BytesMut::new();
    if body.size_hint().lower() > RESENT_BODY_BYTES as u64 {
        return Ok(Kept::Once(body.map_err(Into::into).boxed_unsync()));
    }
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        head.extend_from_slice(&data);
        if head.len() > RESENT_BODY_BYTES {
            let first = stream::iter([Ok(Frame::data(head.freeze()))]);
            let rest = BodyStream::new(body).map(|frame| frame.map_err(BoxError::from));
            return Ok(Kept::Once(BodyExt::boxed_unsync(StreamBody::new(first.chain(rest)))));
        }
    }
    Ok(Kept::Whole(head.freeze()))
}

/// Sends a request until the first byte of its reply; `waits` is called before each wait.
///
/// # Errors
/// [`DoorError`] when the gateway was away for [`HOLD_MS`], or broke off a request that cannot be sent again.
///
/// # Cancel safety
/// Dropping the future gives the request up.
pub(crate) async fn carry(
    door: &Door,
    head: &Head,
    body: Kept,
    waits: impl Fn(),
) -> Result<Response<Incoming>, DoorError> {
    let until = Instant::now() + Duration::from_millis(HOLD_MS);
    let mut backoff = Backoff::new();
    let mut once = match body {
        Kept::Whole(ref bytes) => Err(bytes.clone()),
        Kept::Once(body) => Ok(Some(body)),
    };
    loop {
        let error = match door.connect().await {
            Err(error) => error,
            Ok(mut connection) => {
                let (body, last) = match &mut once {
                    Err(bytes) => (whole(bytes.clone()), false),
                    Ok(body) => (body.take().unwrap_or_else(crate::door::nothing), true),
                };
                match connection.send_request(head.with(body)?).await {
                    Ok(response) => return Ok(response),
                    Err(error) if last => return Err(DoorError::Garbled(error.into())),
                    Err(error) => DoorError::Away(error.into()),
                }
            }
        };
        let wait = backoff.next();
        if Instant::now() + wait > until {
            return Err(error);
        }
        waits();
        tokio::time::sleep(wait).await;
    }
}
