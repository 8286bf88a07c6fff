//! Attachments of runs and inputs, over HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_api::config::LARGE_BODIES;
use caisson_domain::attachment::{
    ATTACHMENT_BODY_BYTES, ATTACHMENT_BYTES, ATTACHMENTS_BYTES, PENDING_ATTACHMENTS_BYTES,
};
use caisson_domain::limits::API_BODY_BYTES;
use caisson_domain::principal::Scope;
use caisson_store::ATTACHMENT_PIECE_BYTES;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Digest;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::support::{Answer, Api, PATIENCE, body_with};

/// The head of an image of 2 by 3 pixels.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x03";

fn attached(name: &str, content: &[u8]) -> Value {
    json!({ "name": name, "content": STANDARD.encode(content) })
}

#[tokio::test]
async fn what_comes_with_a_run_is_shown_without_its_bytes_and_sent_as_bytes_to_be_saved() {
    let mut api = Api::start().await;
    let odd: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let attachments =
        json!([attached("shot.txt", PNG), attached("say \"hi\" <b>.html", &odd), attached("none", b"")]);
    let created = api.post("/v1/runs", &body_with(&json!({ "attachments": attachments }))).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{}", created.text());
    let shown = created.json()["attachments"].clone();
    let sha256 = hex::encode(sha2::Sha256::digest(PNG));
    assert_eq!(
        shown[0],
        json!({
            "number": 0, "name": "shot.txt", "kind": "image", "media_type": "image/png", "size_bytes": 24, "sha256": sha256,
        })
    );
    assert_eq!(
        (&shown[1]["kind"], &shown[1]["media_type"], &shown[1]["size_bytes"]),
        (&json!("file"), &Value::Null, &json!(300_000))
    );
    let id = created.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&format!("/v1/runs/{id}")).await.json()["attachments"], shown);
    assert_eq!(api.get("/v1/runs").await.json()["items"][0]["attachments"], shown);
    let session = created.json()["session_id"].as_str().unwrap().to_owned();
    let said = api.get(&format!("/v1/sessions/{session}/messages")).await;
    assert_eq!(said.json()["items"][0]["attachments"], shown);
    assert!(!said.text().contains(&STANDARD.encode(PNG)), "never its bytes");

    let path = format!("/v1/runs/{id}/attachments");
    let answer = api.get(&format!("{path}/1")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body == odd);
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!(
        answer.header("content-disposition"),
        "attachment; filename*=UTF-8''say%20%22hi%22%20%3Cb%3E.html"
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("content-length"), "300000");
    let image = api.get(&format!("{path}/0")).await;
    assert_eq!((image.header("content-type"), image.body.as_ref()), ("application/octet-stream", PNG));
    assert_eq!(api.get(&format!("{path}/2")).await.body.len(), 0);
    for unknown in ["3", "-1", "x", "0x1", "99999999999999999999"] {
        api.get(&format!("{path}/{unknown}")).await.assert_problem(404, "unknown_attachment");
    }
    let all = api.key.clone();
    api.key = api.key_with(&[Scope::RunsWrite]).await;
    api.get(&format!("{path}/0")).await.assert_problem(403, "scope_missing");
    api.key = all;
    api.key = api.other_projects_key().await;
    api.get(&format!("{path}/0")).await.assert_problem(404, "unknown_run");
}

#[tokio::test]
async fn a_run_without_attachments_says_nothing_of_them() {
    let api = Api::start().await;
    let created = api.post("/v1/runs", &body_with(&json!({ "attachments": [] }))).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{}", created.text());
    assert!(created.json().get("attachments").is_none());
}

#[tokio::test]
async fn a_request_of_the_bound_is_taken_and_a_longer_one_refused_on_these_routes_alone() {
    let api = Api::start().await;
    let parts = [ATTACHMENT_BYTES, ATTACHMENTS_BYTES - ATTACHMENT_BYTES];
    let attachments: Vec<Value> = parts.iter().map(|bytes| attached("f", &vec![0xff; *bytes])).collect();
    let largest = body_with(&json!({ "prompt": "Look.", "attachments": attachments }));
    let created = api.post("/v1/runs", &largest).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{}", created.text());
    let mut more = attachments.clone();
    more.push(attached("one", b"x"));
    let refused = api.post("/v1/runs", &body_with(&json!({ "attachments": more }))).await;
    refused.assert_problem(422, "attachments_too_large");
    let filler = json!({ "prompt": "x", "attachments": [{ "name": "f", "content": "A".repeat(ATTACHMENT_BODY_BYTES) }] });
    let refused = api.post("/v1/runs", &body_with(&filler)).await;
    refused.assert_problem(413, "body_too_large");
    assert!(refused.text().contains(&ATTACHMENT_BODY_BYTES.to_string()), "{}", refused.text());
    let other = json!({ "name": "x".repeat(API_BODY_BYTES) });
    api.post("/v1/keys", &other).await.assert_problem(413, "body_too_large");
}

/// Begins as many large requests as have a place. They have it when this is over, and none of them ends.
async fn in_all_places(api: &Api, body: &Value) -> Pin<Box<impl Future<Output = Vec<Answer>>>> {
    let placed = Arc::new(Semaphore::new(0));
    let unfinished = || {
        let placed = Arc::clone(&placed);
        // More than other bodies may have. What follows is asked for when it has its place, and never comes.
        let begun = stream::iter([Ok::<_, std::io::Error>(vec![b' '; API_BODY_BYTES + 1])]);
        let rest = stream::once(async move {
            placed.add_permits(1);
            std::future::pending().await
        });
        let mut request = api.json_request("/v1/runs", body);
        *request.body_mut() = Body::from_stream(begun.chain(rest));
        api.send(request)
    };
    let mut held = Box::pin(join_all((0..LARGE_BODIES).map(|_| unfinished())));
    let all = u32::try_from(LARGE_BODIES).unwrap();
    tokio::select! {
        _ = &mut held => unreachable!("none of them ends"),
        placed = timeout(PATIENCE, placed.acquire_many(all)) => drop(placed.expect("each gets a place").unwrap()),
    }
    held
}

#[tokio::test]
async fn so_many_large_bodies_have_a_place_at_once_and_the_next_one_waits_for_one() {
    let api = Api::start().await;
    let attachments = json!([attached("f", &vec![b'x'; ATTACHMENT_BYTES])]);
    let body = body_with(&json!({ "attachments": attachments }));
    let held = in_all_places(&api, &body).await;
    let mut next = Box::pin(api.post("/v1/runs", &body));
    let small = api.post("/v1/runs", &body_with(&json!({}))).await;
    assert_eq!(small.status, StatusCode::ACCEPTED, "what is not large does not wait");
    assert!(timeout(Duration::from_millis(500), &mut next).await.is_err(), "it has no place");
    drop(held);
    assert_eq!(next.await.status, StatusCode::ACCEPTED);
}

/// A large request that comes in pieces, each after a pause.
fn in_pieces(api: &Api, body: &Value, pause: Duration) -> http::Request<Body> {
    let mut request = api.json_request("/v1/runs", body);
    let text = body.to_string().into_bytes();
    let bytes = text.len();
    let pieces: Vec<Vec<u8>> = text.chunks(API_BODY_BYTES / 8).map(<[u8]>::to_vec).collect();
    let pieces = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, std::io::Error>(piece)
    });
    *request.body_mut() = Body::from_stream(pieces);
    request.headers_mut().insert("content-length", bytes.into());
    request
}

#[tokio::test]
async fn a_large_request_has_more_time_the_more_of_it_has_come() {
    /// Of other requests; much longer than until a piece.
    const BODY_READ: Duration = Duration::from_secs(1);
    let api = Api::with(|config| config.limits.body_read = BODY_READ).await;
    let large = body_with(&json!({ "attachments": [attached("f", &vec![b'x'; ATTACHMENT_BYTES])] }));
    let pause = Duration::from_millis(100);
    let begun = std::time::Instant::now();
    let created = api.send(in_pieces(&api, &large, pause)).await;
    assert_eq!(created.status, StatusCode::ACCEPTED, "{}", created.text());
    assert!(begun.elapsed() > 2 * BODY_READ, "it took longer than others may");
    // So fast that what has come gives it next to nothing.
    let api = Api::with(|config| {
        config.limits.body_read = BODY_READ;
        config.limits.body_bytes_per_s = u32::MAX;
    })
    .await;
    api.send(in_pieces(&api, &large, pause)).await.assert_problem(408, "body_timeout");
}

#[tokio::test]
async fn a_large_request_that_gets_no_place_is_told_when_to_come_again() {
    let api = Api::with(|config| config.limits.large_body_wait = Duration::from_millis(50)).await;
    let large = body_with(&json!({ "attachments": [attached("f", &vec![b'x'; ATTACHMENT_BYTES])] }));
    let held = in_all_places(&api, &large).await;
    let refused = api.post("/v1/runs", &large).await;
    refused.assert_problem(429, "large_bodies_full");
    assert_eq!(refused.header("retry-after"), "10");
    drop(held);
    assert_eq!(api.post("/v1/runs", &large).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_download_that_nobody_reads_holds_a_piece_and_no_place() {
    let api = Api::start().await;
    let content: Vec<u8> = (0..=255).cycle().take(ATTACHMENT_BYTES).collect();
    let body = body_with(&json!({ "attachments": [attached("f", &content)] }));
    let run = api.post("/v1/runs", &body).await.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/runs/{run}/attachments/0");
    let begin = async || {
        let request = api.request(Method::GET, &path).body(Body::empty()).unwrap();
        let response = api.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-length"], ATTACHMENT_BYTES.to_string());
        response.into_body().into_data_stream()
    };
    // More than would fit into memory whole.
    let mut unread = Vec::new();
    for _ in 0..100 {
        unread.push(begin().await);
    }
    let mut whole = Vec::new();
    let mut last = begin().await;
    while let Some(piece) = last.next().await {
        let piece = piece.unwrap();
        assert!(piece.len() <= ATTACHMENT_PIECE_BYTES, "{}", piece.len());
        whole.extend_from_slice(&piece);
    }
    assert!(whole == content);
    let other = unread[0].next().await.unwrap().unwrap();
    assert!(other == content[..ATTACHMENT_PIECE_BYTES], "each has a place of its own in it");
}

#[tokio::test]
async fn the_key_of_a_request_stands_for_its_attachments_too() {
    let api = Api::start().await;
    let with = |content: &[u8]| body_with(&json!({ "attachments": [attached("a", content)] }));
    let first = api.post_with_key("k1", &with(b"1")).await;
    let again = api.post_with_key("k1", &with(b"1")).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::ACCEPTED, "true"));
    assert_eq!(first.json()["id"], again.json()["id"]);
    api.post_with_key("k1", &with(b"2")).await.assert_problem(422, "idempotency_key_reused");
    api.post_with_key("k1", &body_with(&json!({}))).await.assert_problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn an_input_carries_attachments_with_a_text_and_tells_of_them() {
    let api = Api::start().await;
    let claimed = api.running().await;
    api.placed(&claimed).await;
    let path = format!("/v1/runs/{}/inputs", claimed.run.id);
    let sent = api
        .post(&path, &json!({ "kind": "queue", "text": "Look.", "attachments": [attached("a.png", PNG)] }))
        .await;
    assert_eq!(sent.status, StatusCode::ACCEPTED, "{}", sent.text());
    let shown = &sent.json()["attachments"];
    assert_eq!((&shown[0]["kind"], &shown[0]["size_bytes"]), (&json!("image"), &json!(24)));
    assert_eq!(&api.get(&path).await.json()["items"][0]["attachments"], shown);
    let said = api.get(&format!("/v1/sessions/{}/messages", claimed.run.session)).await.json();
    assert_eq!(&said["items"][1]["attachments"], shown);
    let bytes = api.get(&format!("/v1/runs/{}/attachments/0", claimed.run.id)).await;
    assert_eq!(bytes.body.as_ref(), PNG);
    let alone = json!({ "kind": "interrupt", "attachments": [attached("a", b"x")] });
    let refused = api.post(&path, &alone).await;
    assert_eq!(refused.faults()[0].0, "text", "{}", refused.text());
    let large = json!([
        attached("a", &vec![b'x'; ATTACHMENT_BYTES]),
        attached("b", &vec![b'x'; ATTACHMENTS_BYTES - ATTACHMENT_BYTES])
    ]);
    assert!(i64::try_from(2 * ATTACHMENTS_BYTES).unwrap() > PENDING_ATTACHMENTS_BYTES);
    let large = json!({ "kind": "queue", "text": "Look.", "attachments": large });
    assert_eq!(api.post(&path, &large).await.status, StatusCode::ACCEPTED);
    api.post(&path, &large).await.assert_problem(429, "inputs_full");
}
