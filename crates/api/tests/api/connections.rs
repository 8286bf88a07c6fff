//! What the server does with connections.

use std::time::{Duration, Instant};

use axum::body::Body;
use caisson_api::ServeLimits;
use caisson_domain::limits;
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Answer, Api, PATIENCE, events_of, ids, remote};

/// Everything that comes until the other end closes.
async fn until_closed(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = connection.read_to_end(&mut bytes);
    tokio::time::timeout(PATIENCE, read).await.expect("the connection is never closed").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_request_over_the_network_is_answered() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    let request = api.request(Method::GET, "/v1/runs").header("host", "x").body(Body::empty()).unwrap();
    assert_eq!(Answer::read(remote(address, request).await).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_sends_all_of_a_body_too_long_still_reads_the_problem() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let body = vec![b' '; 2 * limits::API_BODY_BYTES];
    let head = format!(
        "POST /v1/keys HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        api.key,
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&body).await.unwrap();
    let answer = until_closed(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let problem: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(problem["code"], "body_too_large");
}

#[tokio::test]
async fn a_connection_that_sends_no_request_is_closed() {
    let mut api = Api::start().await;
    let limits = ServeLimits { head_read: Duration::from_millis(500), ..ServeLimits::default() };
    let address = api.listen(limits).await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(address).await.unwrap();
    until_closed(&mut silent).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nho").await.unwrap();
    until_closed(&mut slow).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(
        until_closed(&mut idle).await.starts_with("HTTP/1.1 200 "),
        "an answered one may wait, but not for ever"
    );
    assert!(begun.elapsed() < ServeLimits::default().head_read, "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_head_beyond_its_bound_is_refused() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    for (bytes, status) in [(32 * 1024, "HTTP/1.1 200 "), (128 * 1024, "HTTP/1.1 431 ")] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let filler = "x".repeat(bytes);
        let head =
            format!("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-filler: {filler}\r\n\r\n");
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 13];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), status);
    }
}

#[tokio::test]
async fn a_stream_outlives_the_time_for_a_request() {
    let mut api = Api::with(|config| config.limits.heartbeat = Duration::from_millis(200)).await;
    let limits = ServeLimits { head_read: Duration::from_millis(500), ..ServeLimits::default() };
    let address = api.listen(limits).await;
    let claimed = api.running().await;
    let mut stream = api.remote_stream(address, &events_of(&claimed.run.id), Some("2")).await;
    for _ in 0..5 {
        assert_eq!(stream.chunk().await.unwrap(), ": heartbeat\n\n");
    }
    api.finish(&claimed).await;
    assert_eq!(ids(&stream.rest().await), [3]);
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_place() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits { connections: 1, ..ServeLimits::default() }).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    // With a key, so that it keeps its place.
    let head = format!("GET /v1/runs HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\n\r\n", api.key);
    first.write_all(head.as_bytes()).await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_exact(&mut byte)).await;
    assert!(early.is_err(), "it was served beside the first");
    drop(first);
    assert!(until_closed(&mut second).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_shutdown_waits_for_a_request_under_way_and_cuts_it_in_the_end() {
    let mut api = Api::start().await;
    let limits = ServeLimits { drain: Duration::from_millis(200), ..ServeLimits::default() };
    let address = api.listen(limits).await;
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n",
        api.key
    );
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(head.as_bytes()).await.unwrap();
    // The interim answer shows that the body is being read.
    let mut interim = [0; 21];
    stuck.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim[..12], b"HTTP/1.1 100");
    let begun = Instant::now();
    api.cancel.cancel();
    api.stopped().await;
    assert!(begun.elapsed() >= limits.drain, "it was given its time");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
