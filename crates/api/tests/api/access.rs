//! Limits of keys and addresses, hostile clients, and what every answer says to browsers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use caisson_api::ServeLimits;
use caisson_domain::principal::Scope;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

use crate::support::{Answer, Api, PATIENCE, remote};

fn get(path: &str, key: &str) -> Request<Body> {
    Request::builder().uri(path).header("host", "x").header("x-api-key", key).body(Body::empty()).unwrap()
}

fn quota(answer: &Answer) -> [&str; 3] {
    ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"].map(|name| answer.header(name))
}

#[tokio::test]
async fn a_key_has_its_requests_of_a_minute_and_is_told_what_is_left() {
    let api = Api::with(|config| config.limits.rate_per_minute = 3).await;
    let other = api.key_with(&[Scope::RunsRead]).await;
    let first = api.get("/v1/runs").await;
    assert_eq!((first.status, quota(&first)), (StatusCode::OK, ["3", "2", "20"]));
    // A refusal of another kind counts as well, and says so.
    let refused = api.get("/v1/runs?x=1").await;
    refused.assert_problem(400, "invalid_query");
    assert_eq!(quota(&refused), ["3", "1", "40"]);
    assert_eq!(quota(&api.get("/v1/runs").await), ["3", "0", "60"]);
    for _ in 0..3 {
        let spent = api.get("/v1/runs").await;
        spent.assert_problem(429, "rate_limited");
        assert_eq!((spent.header("retry-after"), quota(&spent)), ("20", ["3", "0", "60"]));
    }
    assert_eq!(api.send(get("/v1/runs", &other)).await.status, StatusCode::OK, "another key has its own");
    assert_eq!(quota(&api.send(get("/healthz", "")).await), ["", "", ""]);
}

#[tokio::test]
async fn no_limit_says_nothing() {
    let api = Api::with(|config| config.limits.rate_per_minute = 0).await;
    let answer = api.get("/v1/runs").await;
    assert_eq!((answer.status, quota(&answer)), (StatusCode::OK, ["", "", ""]));
}

#[tokio::test]
async fn an_address_that_guesses_is_stopped_and_callers_beside_it_are_not() {
    let mut api = Api::with(|config| config.limits.failures_per_minute = 3).await;
    let address = api.listen(ServeLimits::default()).await;
    let send = async |key: &str| Answer::read(remote(address, get("/v1/runs", key)).await).await;
    api.clock.advance(1);
    let fresh = api.key_with(&[Scope::RunsRead]).await;
    assert_eq!(send(&api.key).await.status, StatusCode::OK);
    // What is no key at all counts as a guess too; no key does not.
    send("x").await.assert_problem(401, "unauthenticated");
    let none = Request::builder().uri("/v1/runs").header("host", "x").body(Body::empty()).unwrap();
    Answer::read(remote(address, none).await).await.assert_problem(401, "unauthenticated");
    for guess in ["0", "1"] {
        send(&format!("csk_{}", guess.repeat(64))).await.assert_problem(401, "unauthenticated");
    }
    let stopped = send(&format!("csk_{}", "2".repeat(64))).await;
    stopped.assert_problem(429, "failed_too_often");
    assert_eq!(stopped.header("retry-after"), "20");
    assert_eq!(send(&api.key).await.status, StatusCode::OK, "a key that opened something lately still does");
    send(&fresh).await.assert_problem(429, "failed_too_often");
    // Without an address, as in process, there is nobody to count.
    assert_eq!(api.send(get("/v1/runs", &fresh)).await.status, StatusCode::OK);
    assert_eq!(send(&fresh).await.status, StatusCode::OK, "it opened something meanwhile");
    let metrics = api.get("/metrics").await.text();
    for counted in ["key_refused\"} 3", "failed_too_often\"} 2"] {
        let line = format!("caisson_api_refused_total{{reason=\"{counted}");
        assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
    }
    api.store
        .revoke_api_key(&api.store.list_api_keys(&"default".parse().unwrap()).await.unwrap()[0].id)
        .await
        .unwrap();
    send(&api.key).await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn every_answer_tells_browsers_to_keep_out() {
    let api = Api::start().await;
    for (path, status) in [("/v1/runs", 200), ("/healthz", 200), ("/v1/nothing", 404), ("/v1/runs?x=1", 400)]
    {
        let answer = api.get(path).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'");
        assert_eq!(answer.header("x-frame-options"), "DENY");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(answer.header("strict-transport-security"), "", "only TLS may say so");
    }
    let docs = api.get("/docs").await;
    assert!(docs.header("content-security-policy").contains("script-src 'self'"), "it says more of itself");
    let api = Api::with(|config| config.tls = true).await;
    assert_eq!(api.get("/v1/nothing").await.header("strict-transport-security"), "max-age=31536000");
}

#[tokio::test]
async fn pages_of_other_origins_read_nothing_unless_the_settings_name_them() {
    let from = |method: Method, path: &str, origin: &str| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .unwrap()
    };
    let (ours, theirs) = ("https://ui.example.com", "https://evil.example.com");
    let closed = Api::start().await;
    let answer = closed.send(from(Method::OPTIONS, "/v1/runs", ours)).await;
    answer.assert_problem(405, "method_not_allowed");
    assert_eq!(answer.header("access-control-allow-origin"), "");

    let api = Api::with(|config| config.cors_origins = vec![ours.to_owned()]).await;
    let asked = api.send(from(Method::OPTIONS, "/v1/runs", ours)).await;
    assert_eq!(asked.status, StatusCode::OK);
    assert_eq!(asked.header("access-control-allow-origin"), ours);
    assert!(asked.header("access-control-allow-methods").contains("POST"));
    assert!(asked.header("access-control-allow-headers").contains("authorization"));
    assert_eq!(
        asked.header("access-control-allow-credentials"),
        "",
        "keys come in a header, never as cookies"
    );
    let refused = api.send(from(Method::GET, "/v1/runs", ours)).await;
    refused.assert_problem(401, "unauthenticated");
    assert_eq!(refused.header("access-control-allow-origin"), ours, "a page can read why it was refused");
    assert!(refused.header("access-control-expose-headers").contains("retry-after"));
    assert!(refused.header("vary").to_lowercase().contains("origin"));
    for method in [Method::OPTIONS, Method::GET] {
        let answer = api.send(from(method, "/v1/runs", theirs)).await;
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
}

/// Connections that begin a request and never end it.
async fn begun(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(b"GET /v1/runs HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
        connections.push(connection);
    }
    connections
}

#[tokio::test]
async fn many_connections_that_say_little_do_not_keep_a_caller_with_a_key_out() {
    let mut api = Api::start().await;
    let limits = ServeLimits { connections: 16, connections_per_peer: 64, ..ServeLimits::default() };
    let address = api.listen(limits).await;
    let started = Instant::now();
    // They never give up: each one that is cut comes again.
    let mut attack = JoinSet::new();
    for _ in 0..4 {
        attack.spawn(async move {
            loop {
                let held = begun(address, 16).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(held);
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..20 {
        let asked = tokio::time::timeout(PATIENCE, remote(address, get("/v1/runs", &api.key)));
        assert_eq!(Answer::read(asked.await.unwrap()).await.status, StatusCode::OK);
    }
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    // A stream that is open stays open.
    let claimed = api.running().await;
    let mut stream = api.remote_stream(address, &crate::support::events_of(&claimed.run.id), Some("2")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    api.finish(&claimed).await;
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("3"));
    attack.abort_all();
}

#[tokio::test]
async fn an_address_beyond_its_connections_is_refused_when_all_of_them_are_at_work() {
    let mut api = Api::start().await;
    let limits = ServeLimits { connections_per_peer: 2, ..ServeLimits::default() };
    let address = api.listen(limits).await;
    let claimed = api.running().await;
    let path = crate::support::events_of(&claimed.run.id);
    let streams =
        (api.remote_stream(address, &path, None).await, api.remote_stream(address, &path, None).await);
    let mut third = TcpStream::connect(address).await.unwrap();
    let mut said = Vec::new();
    tokio::time::timeout(PATIENCE, third.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(said.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&said));
    drop(streams);
    let again = async {
        while Answer::read(remote(address, get("/healthz", "")).await).await.status != StatusCode::OK {}
    };
    // The places are free as soon as the server sees that the readers have gone.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        if probe.read_to_end(&mut said).await.is_ok() && said.starts_with(b"HTTP/1.1 200 ") {
            break;
        }
    }
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn a_key_with_as_many_connections_as_one_may_have_is_told_so_and_others_are_let_in() {
    let mut api = Api::start().await;
    let limits = ServeLimits { connections_per_key: 1, ..ServeLimits::default() };
    let address = api.listen(limits).await;
    let other = api.key_with(&[Scope::RunsRead]).await;
    let claimed = api.running().await;
    let held = api.remote_stream(address, &crate::support::events_of(&claimed.run.id), None).await;
    let refused = Answer::read(remote(address, get("/v1/runs", &api.key)).await).await;
    refused.assert_problem(429, "connections_of_key_full");
    assert_eq!((refused.header("retry-after"), refused.header("connection")), ("10", "close"));
    assert_eq!(Answer::read(remote(address, get("/v1/runs", &other)).await).await.status, StatusCode::OK);
    drop(held);
    // The place is free as soon as the server sees that the reader has gone.
    let again = async {
        while Answer::read(remote(address, get("/v1/runs", &api.key)).await).await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn heads_have_less_time_while_places_are_scarce() {
    let mut api = Api::start().await;
    let limits = ServeLimits {
        connections: 16,
        head_read: Duration::from_mins(10),
        head_read_pressed: Duration::from_millis(100),
        ..ServeLimits::default()
    };
    let address = api.listen(limits).await;
    let mut held = begun(address, 8).await;
    let mut last = held.pop().unwrap();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, last.read_to_end(&mut said)).await.unwrap();
    assert!(ended.is_ok() && said.is_empty(), "the eighth of twelve places has the short time");
    let first = tokio::time::timeout(Duration::from_millis(300), held[0].read_to_end(&mut said)).await;
    assert!(first.is_err(), "the first has the long one");
}

const AUTHORITY: &[u8] = include_bytes!("tls/ca.pem");

fn server_config() -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/one.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/one.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

fn connector() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(AUTHORITY).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[tokio::test]
async fn callers_come_by_tls_and_one_that_does_not_end_its_handshake_is_cut() {
    let mut api = Api::with(|config| config.tls = true).await;
    let limits = ServeLimits { head_read: Duration::from_secs(2), ..ServeLimits::default() };
    let address = api.listen_tls(limits, server_config()).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let socket = TcpStream::connect(address).await.unwrap();
    let mut secure = connector().connect("localhost".try_into().unwrap(), socket).await.unwrap();
    let head =
        format!("GET /v1/runs HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nconnection: close\r\n\r\n", api.key);
    secure.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    secure.read_to_end(&mut said).await.unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("strict-transport-security"), "{said}");
    for connection in [&mut silent, &mut plain] {
        let mut said = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut said)).await.unwrap();
        assert!(ended.is_err() || !said.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&said));
    }
}
