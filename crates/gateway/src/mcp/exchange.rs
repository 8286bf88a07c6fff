//! One exchange with an MCP server: what of the request goes there, and what of the reply comes back.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::redact;
use caisson_store::BoxError;
use futures_util::StreamExt;
use futures_util::stream;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING, USER_AGENT,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::{Instant, timeout, timeout_at};

use super::Asked;
use super::fault::Fault;
use super::names::NoAddress;
use super::run::Passage;
use crate::body::{self, Body, Chunks};
use crate::credentials::McpHeader;
use crate::shared::Door;

/// What the protocol's own headers begin with: `Mcp-Session-Id`, `MCP-Protocol-Version` and those of later versions.
const MCP: &str = "mcp-";
/// By which a stream that broke off goes on.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Headers of a request that go to the server, beside the protocol's own. `Authorization` and cookies are not among them.
const SENT: [HeaderName; 5] = [ACCEPT, ACCEPT_LANGUAGE, CONTENT_TYPE, USER_AGENT, LAST_EVENT_ID];
/// Headers of a reply that come back, beside the protocol's own. `Set-Cookie`, `WWW-Authenticate` and `Location` are not among
/// them.
const RETURNED: [HeaderName; 4] = [ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER];

fn kept(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let pass = |name: &HeaderName| names.contains(name) || name.as_str().starts_with(MCP);
    headers.iter().filter(|(name, _)| pass(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Sends the request and answers with the head of the reply; its body comes as it comes.
pub(super) async fn exchange(
    door: &Arc<Door>,
    passage: Passage,
    asked: &Asked,
    credential: Option<&McpHeader>,
    request: Request<Body>,
) -> Result<Response<Body>, Fault> {
    let passage = Arc::new(passage);
    let ends_with_door = request.method() == Method::GET;
    let outgoing = outgoing(request, asked, credential, &passage)?;
    let side = &door.shared.mcp;
    let sent = timeout(door.shared.bounds.mcp.first_byte, side.client.execute(outgoing));
    let response = tokio::select! {
        biased;
        () = passage.run().over() => return Err(Fault::Over),
        () = door.closed.cancelled(), if ends_with_door => return Err(Fault::Over),
        sent = sent => match sent {
            Ok(sent) => sent.map_err(|error| broken(error, &passage))?,
            Err(_) => return Err(Fault::Idle),
        },
    };
    judge(response.status(), response.headers(), credential)?;
    Ok(incoming(door, response, (passage, asked.clone()), ends_with_door))
}

/// Why no reply came: a bound that was met, an address that may not be reached, or the connection.
fn broken(error: reqwest::Error, passage: &Passage) -> Fault {
    let error = error.without_url();
    let fault = passage.met().or_else(|| NoAddress::within(&error));
    let fault = fault.unwrap_or(if error.is_connect() { Fault::Unreachable } else { Fault::Broken });
    tracing::debug!(error = %error, fault = ?fault, "an MCP server did not answer");
    fault
}

fn outgoing(
    request: Request<Body>,
    asked: &Asked,
    credential: Option<&McpHeader>,
    passage: &Arc<Passage>,
) -> Result<reqwest::Request, Fault> {
    let (parts, incoming) = request.into_parts();
    let mut headers = kept(&parts.headers, &SENT);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    passage.sent(bytes_of(&headers))?;
    if let Some(McpHeader { header: (name, value), .. }) = credential {
        headers.insert(name, value.clone());
    }
    let length = incoming.size_hint().exact();
    // Known beforehand, it is refused before a byte of it goes out.
    if let Some(length) = length.filter(|length| *length > passage.request_bytes()) {
        return Err(passage
            .sent(usize::try_from(length).unwrap_or(usize::MAX))
            .err()
            .unwrap_or(Fault::Broken));
    }
    let mut outgoing = reqwest::Request::new(parts.method, asked.url.clone());
    if !incoming.is_end_stream() {
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let counting = Arc::clone(passage);
        let chunks = body::frames(incoming).map(move |chunk| {
            let chunk = chunk?;
            counting.sent(chunk.len()).map_err(|fault| BoxError::from(format!("{fault:?}")))?;
            Ok::<_, BoxError>(chunk)
        });
        *outgoing.body_mut() = Some(reqwest::Body::wrap_stream(chunks));
    }
    *outgoing.headers_mut() = headers;
    Ok(outgoing)
}

/// What of the reply's head would mislead the agent is told in words of the gateway's own.
fn judge(status: StatusCode, headers: &HeaderMap, credential: Option<&McpHeader>) -> Result<(), Fault> {
    let number = status.as_u16();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(match credential {
            Some(credential) => Fault::Refused { status: number, credential: credential.name.clone() },
            None => Fault::NoCredential { status: number },
        });
    }
    if status.is_redirection() {
        return Err(Fault::Redirect { status: number });
    }
    let is = |value: &HeaderValue, name: &[u8]| value.as_bytes().eq_ignore_ascii_case(name);
    let plain = headers.get_all(CONTENT_ENCODING).iter().all(|value| is(value, b"identity"))
        && headers.get_all(TRANSFER_ENCODING).iter().all(|value| is(value, b"chunked"));
    if plain { Ok(()) } else { Err(Fault::Encoded) }
}

fn incoming(
    door: &Arc<Door>,
    response: reqwest::Response,
    (passage, asked): (Arc<Passage>, Asked),
    ends_with_door: bool,
) -> Response<Body> {
    let redactor = door.secrets.redactor();
    let mut headers = kept(response.headers(), &RETURNED);
    let has_secret = |value: &HeaderValue| {
        let text = String::from_utf8_lossy(value.as_bytes());
        redactor.text(&text) != text
    };
    let secret: Vec<_> =
        headers.iter().filter(|(_, value)| has_secret(value)).map(|(name, _)| name.clone()).collect();
    for name in secret {
        headers.remove(name);
    }
    let (status, empty) = (response.status(), response.content_length() == Some(0));
    let reading = Reading {
        end: Instant::now() + door.shared.bounds.mcp.total,
        door: Arc::clone(door),
        passage,
        asked,
        chunks: response
            .bytes_stream()
            .map(|chunk| chunk.map_err(|error| error.without_url().into()))
            .boxed(),
        clean: redact::Stream::new(redactor),
        ends_with_door,
    };
    let body = if empty { body::empty() } else { body::from_stream(reading.into_stream(bytes_of(&headers))) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// A reply on its way to the sandbox: bounded, and without live secrets should the server send one back.
struct Reading {
    door: Arc<Door>,
    passage: Arc<Passage>,
    asked: Asked,
    chunks: Chunks,
    clean: redact::Stream,
    end: Instant,
    ends_with_door: bool,
}

impl Reading {
    fn into_stream(self, head: usize) -> impl futures_util::Stream<Item = Result<Bytes, BoxError>> + Send {
        let over = self.passage.received(head).err();
        stream::unfold((Some(self), over), |(reading, over)| async move {
            let mut reading = reading?;
            let next = match over {
                Some(fault) => Err(fault),
                None => reading.next().await,
            };
            match next {
                Ok(Some(piece)) => Some((Ok(piece), (Some(reading), None))),
                Ok(None) => Some((Ok(reading.clean.finish().into()), (None, None))),
                Err(fault) => {
                    let Asked { server, target, .. } = &reading.asked;
                    reading.passage.run().tell(&reading.door, server, Some(target), &fault).await;
                    Some((Err(format!("{fault:?}").into()), (None, None)))
                }
            }
        })
    }

    /// The next piece that is decided; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let idle = self.door.shared.bounds.mcp.idle;
        loop {
            let until = self.end.min(Instant::now() + idle);
            let mut over = pin!(self.passage.run().over());
            let piece = tokio::select! {
                piece = timeout_at(until, self.chunks.next()) => piece.map_err(|_| Fault::Idle)?,
                () = &mut over => return Err(Fault::Over),
                () = self.door.closed.cancelled(), if self.ends_with_door => return Err(Fault::Over),
            };
            let Some(piece) = piece else { return Ok(None) };
            let piece = piece.map_err(|_| Fault::Broken)?;
            self.passage.received(piece.len())?;
            self.clean.follow(&self.door.secrets.redactor());
            let clean = self.clean.push(&piece);
            if !clean.is_empty() {
                return Ok(Some(clean.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{AUTHORIZATION, COOKIE, SET_COOKIE, WWW_AUTHENTICATE};

    #[test]
    fn a_reply_that_is_encoded_by_either_header_is_not_read() {
        for (name, value, plain) in [
            (CONTENT_ENCODING, "identity", true),
            (CONTENT_ENCODING, "gzip", false),
            (CONTENT_ENCODING, "identity, br", false),
            (TRANSFER_ENCODING, "Chunked", true),
            (TRANSFER_ENCODING, "gzip, chunked", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(name.clone(), HeaderValue::from_static(value));
            let judged = judge(StatusCode::OK, &headers, None);
            assert_eq!(judged.is_ok(), plain, "{name}: {value}");
            headers.append(name, HeaderValue::from_static("deflate"));
            assert!(matches!(judge(StatusCode::OK, &headers, None), Err(Fault::Encoded)));
        }
    }

    #[test]
    fn only_what_the_protocol_needs_passes_either_way() {
        let mut headers = HeaderMap::new();
        for name in [
            "mcp-session-id",
            "mcp-protocol-version",
            "last-event-id",
            "accept",
            "authorization",
            "cookie",
            "x-api-key",
            "proxy-authorization",
            "x-forwarded-for",
            "host",
            "set-cookie",
            "www-authenticate",
            "location",
            "content-type",
            "connection",
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        let names = |kept: HeaderMap| {
            let mut names: Vec<_> = kept.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        let protocol = ["mcp-protocol-version", "mcp-session-id"];
        assert_eq!(
            names(kept(&headers, &SENT)),
            [&["accept", "content-type", "last-event-id"][..], &protocol].concat()
        );
        assert_eq!(names(kept(&headers, &RETURNED)), [&["content-type"][..], &protocol].concat());
        for secret in [AUTHORIZATION, COOKIE, SET_COOKIE, WWW_AUTHENTICATE] {
            assert!(!SENT.contains(&secret) && !RETURNED.contains(&secret));
        }
    }
}
