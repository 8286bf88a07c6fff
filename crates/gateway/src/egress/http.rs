//! Plain HTTP, and what the gateway encrypts: one request over one connection of its own, taken apart and put together again, so that what was judged is
//! what is sent.

use std::sync::Arc;

use caisson_domain::egress::{HTTP_PORT, HTTPS_PORT, Via, Wanted};
use futures_util::StreamExt;
use futures_util::stream;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::fault::Fault;
use super::run::Passage;
use crate::body::{self, Body};
use crate::bounds::{HEADER_BYTES, HEADERS};
use crate::shared::Door;

/// Headers about one connection (RFC 9110, section 7.6.1), and those that only a proxy reads.
pub(super) const NOT_CARRIED: [HeaderName; 11] = [
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
];

/// Sends the request and answers with the head of the reply; its body comes as it comes.
pub(super) async fn exchange<I>(
    door: &Arc<Door>,
    outside: I,
    passage: Passage,
    (wanted, credential): (&Wanted, Option<&HeaderValue>),
    request: Request<Incoming>,
) -> Result<Response<Body>, Fault>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let passage = Arc::new(passage);
    let idle = door.shared.bounds.egress_idle;
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .handshake(TokioIo::new(outside))
        .await
        .map_err(|_| Fault::Broken)?;
    let watched = Arc::clone(&passage);
    // Its end shows in the reply that it carries.
    door.shared.tracker.spawn(async move {
        tokio::select! {
            ended = connection => drop(ended),
            () = watched.egress().over() => {}
            () = watched.idle(idle) => {}
        }
    });
    let request = outgoing(request, wanted, credential, &passage)?;
    let sent = sender.send_request(request);
    let response = tokio::select! {
        sent = sent => sent.map_err(|error| broken(&error, &passage))?,
        () = passage.idle(idle) => return Err(Fault::Idle),
        () = passage.egress().over() => return Err(Fault::Over),
    };
    Ok(incoming(response, passage))
}

/// A body that met a bound breaks the request off; the bound is what the tool is told of.
fn broken(error: &hyper::Error, passage: &Passage) -> Fault {
    tracing::debug!(error = %error, "a host broke off");
    // Counting nothing asks whether a bound is met.
    passage.sent(0).err().unwrap_or(Fault::Broken)
}

fn outgoing(
    request: Request<Incoming>,
    wanted: &Wanted,
    credential: Option<&HeaderValue>,
    passage: &Arc<Passage>,
) -> Result<Request<Body>, Fault> {
    let (parts, incoming) = request.into_parts();
    let head = head(parts, wanted, credential)?;
    let path = head.uri().path_and_query().map_or(0, |path| path.as_str().len());
    passage.sent(head.method().as_str().len() + path + headers_bytes(head.headers()))?;
    let body = if incoming.is_end_stream() {
        body::empty()
    } else {
        let counting = Arc::clone(passage);
        counted(incoming, move |bytes| counting.sent(bytes))
    };
    Ok(head.map(|()| body))
}

/// The head that is sent for one that was read: what was judged, and nothing about one connection.
pub(super) fn head(
    parts: Parts,
    wanted: &Wanted,
    credential: Option<&HeaderValue>,
) -> Result<Request<()>, Fault> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = carried(parts.headers);
    let target = &wanted.target;
    // A `Host` field leaves the usual port out.
    let usual = match wanted.via {
        Via::Tunnel | Via::Http { .. } => HTTP_PORT,
        Via::Https { .. } => HTTPS_PORT,
    };
    let host = if target.port == usual { target.host.to_string() } else { target.to_string() };
    headers.insert(header::HOST, HeaderValue::try_from(host).map_err(|_| Fault::Broken)?);
    if let Some(credential) = credential {
        headers.insert(header::AUTHORIZATION, credential.clone());
    }
    let mut head = Request::new(());
    *head.method_mut() = parts.method;
    *head.uri_mut() = path.parse::<Uri>().map_err(|_| Fault::Broken)?;
    *head.version_mut() = Version::HTTP_11;
    *head.headers_mut() = headers;
    Ok(head)
}

fn incoming(response: Response<Incoming>, passage: Arc<Passage>) -> Response<Body> {
    let (parts, incoming) = response.into_parts();
    let headers = carried(parts.headers);
    let over = passage.received(headers_bytes(&headers));
    let ends = incoming.is_end_stream();
    let body = match over {
        Err(fault) => body::from_stream(stream::iter([Err(format!("{fault:?}").into())])),
        Ok(()) if ends => body::empty(),
        Ok(()) => counted(incoming, move |bytes| passage.received(bytes)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    response
}

/// The body's bytes, each counted before it goes on; the slot is free when it was read or dropped.
fn counted(body: Incoming, count: impl Fn(usize) -> Result<(), Fault> + Send + 'static) -> Body {
    let chunks = body::frames(body).map(move |chunk| {
        let chunk = chunk?;
        count(chunk.len()).map_err(|fault| format!("{fault:?}"))?;
        Ok(chunk)
    });
    body::from_stream(chunks)
}

fn headers_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Takes out what is about one connection, also what `Connection` names.
fn carried(mut headers: HeaderMap) -> HeaderMap {
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
