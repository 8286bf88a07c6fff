//! What must hold for any bytes of a tool's: the heads of CONNECT and of plain requests, read by the door's own reader.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::egress::{HostPattern, Rule, Scope, Target, Via, Wanted};
use futures_util::stream;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};
use tokio_util::io::StreamReader;

use super::http::{NOT_CARRIED, head};
use super::target;
use crate::body::{self, Body};
use crate::bounds::{HEADER_BYTES, HEADERS};
use crate::fuzz::cut;
use crate::serve;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a thread can wait"));
/// Longer than a find may take.
const HEADER_READ: Duration = Duration::from_mins(1);

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// Its line and headers, as text.
    head: String,
    wanted: Option<Wanted>,
    body_bytes: Option<usize>,
}

/// Requests on one connection: how they are cut into pieces says nothing about what they say, what is judged is what is sent,
/// nothing passes behind CONNECT, and nothing about one connection is carried on.
///
/// # Panics
/// A find.
pub fn request_head(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    let whole = requests(bytes, bytes.len().max(1));
    assert_eq!(requests(bytes, size), whole);
    let tunnel = whole.iter().position(|seen| seen.head.starts_with("CONNECT "));
    assert!(tunnel.is_none_or(|at| at + 1 == whole.len()), "a request behind CONNECT");
}

/// What a service behind the door's reader is given.
fn requests(bytes: &[u8], size: usize) -> Vec<Seen> {
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let io = tokio::io::join(StreamReader::new(stream::iter(pieces)), tokio::io::sink());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let service = service_fn(move |request| {
        let kept = Arc::clone(&kept);
        async move {
            let seen = one(request).await;
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            Ok::<Response<Body>, Infallible>(Response::new(body::empty()))
        }
    });
    let mut reader = serve::reader(HEADER_READ);
    // What is read ends before the answer is written.
    let connection = reader.half_close(true).serve_connection(TokioIo::new(io), service).with_upgrades();
    // That a connection breaks is the usual end here.
    drop(RUNTIME.block_on(connection));
    std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn one(request: Request<Incoming>) -> Seen {
    let (parts, incoming) = request.into_parts();
    let text = format!("{} {} {:?}", parts.method, parts.uri, parts.headers);
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    assert!(parts.headers.len() <= HEADERS && headers.sum::<usize>() <= HEADER_BYTES);
    let wanted = target::wanted(&parts.method, &parts.uri, &parts.headers).ok();
    if let Some(wanted) = &wanted {
        judged(wanted, &parts);
        if parts.method != Method::CONNECT {
            if let Some(secured) = over_tls(wanted) {
                sent(&secured, parts.clone());
            }
            sent(wanted, parts);
        }
    }
    // A broken body breaks at the same byte, wherever it is cut; how much of it came before does not count.
    let body_bytes = incoming.collect().await.ok().map(|body| body.to_bytes().len());
    Seen { head: text, wanted, body_bytes }
}

/// What the request is by an HTTPS rule for its host.
fn over_tls(wanted: &Wanted) -> Option<Wanted> {
    let scope = Scope::Https { methods: Vec::new(), path: "/".to_owned() };
    Rule { host: HostPattern::Exactly(wanted.target.host.clone()), ports: vec![443], scope }.secured(wanted)
}

/// What is judged is written and read again as the same, and is only what the line and `Host` both name.
fn judged(wanted: &Wanted, parts: &Parts) {
    let target = wanted.target.to_string();
    assert_eq!(Target::parse(&target, None).as_ref(), Ok(&wanted.target));
    assert!(Rule::exactly(wanted).allows(wanted), "{wanted:?}");
    assert_eq!(parts.method == Method::CONNECT, wanted.via == Via::Tunnel);
    let default = if wanted.via == Via::Tunnel { wanted.target.port } else { 80 };
    for host in parts.headers.get_all(HOST) {
        let named = Target::parse(host.to_str().expect("it was read as a host"), Some(default));
        assert_eq!(named.as_ref(), Ok(&wanted.target));
    }
}

/// A second reader of what is sent comes to the same host and path, and sees nothing that was for the first one.
fn sent(wanted: &Wanted, parts: Parts) {
    let credential = HeaderValue::from_static("Bearer the-servers-own");
    let query = parts.uri.query().map(str::to_owned);
    let method = parts.method.clone();
    let Ok(head) = head(parts, wanted, Some(&credential)) else { return };
    assert_eq!(head.method(), method);
    assert!(head.uri().authority().is_none() && head.uri().scheme().is_none(), "{}", head.uri());
    assert_eq!(head.uri().query().map(str::to_owned), query);
    let (default, judged) = match &wanted.via {
        Via::Tunnel => panic!("a tunnel is no request"),
        Via::Http { method, path } => (80, (method.as_str(), path.as_str())),
        Via::Https { method, path } => (443, (method.as_str(), path.as_str())),
    };
    assert_eq!(judged, (method.as_str(), head.uri().path()));
    let hosts: Vec<&HeaderValue> = head.headers().get_all(HOST).iter().collect();
    assert_eq!(hosts.len(), 1);
    let named = Target::parse(hosts[0].to_str().expect("it is ours"), Some(default));
    assert_eq!(named.as_ref(), Ok(&wanted.target));
    assert_eq!(head.headers().get_all(AUTHORIZATION).iter().collect::<Vec<_>>(), [&credential]);
    let left = NOT_CARRIED.into_iter().find(|name| *name != HOST && head.headers().contains_key(name));
    assert_eq!(left, None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(seed: &[u8]) -> Vec<Seen> {
        requests(&seed[1..], 5)
    }

    #[test]
    fn the_seeds_are_a_tunnel_and_a_plain_request_with_another_behind_it() {
        let tunnel = seen(include_bytes!("../../../../fuzz/seeds/request_head/connect"));
        assert_eq!(tunnel[0].wanted.as_ref().unwrap().via, Via::Tunnel);
        let plain = seen(include_bytes!("../../../../fuzz/seeds/request_head/absolute"));
        assert_eq!(plain.len(), 1, "Connection: close ends it");
        assert_eq!(plain[0].wanted.as_ref().unwrap().target.to_string(), "example.com:8080");
        assert_eq!(plain[0].body_bytes, Some(3));
    }
}
