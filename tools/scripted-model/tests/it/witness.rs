//! What the server tells about what it served, and to whom it answers.

use std::os::unix::fs::PermissionsExt;

use hyper::{Request, StatusCode};
use scripted_model::{
    KeyDigest, LogEvent, LogLine, Options, Outcome, Record, ScriptPlace, ScriptedModel, StartError,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Connection, PATIENCE, ask, post, prompt, start, start_with, streamed, whole};

fn get(path: &str) -> Request<http_body_util::Full<bytes::Bytes>> {
    Request::get(path).header("host", "x").body(http_body_util::Full::default()).expect("a request")
}

fn with_header<B>(mut request: Request<B>, name: &'static str, value: &str) -> Request<B> {
    request.headers_mut().insert(name, value.parse().expect("a value"));
    request
}

#[tokio::test]
async fn a_record_tells_what_was_asked_and_what_was_served() {
    let model = start(json!({})).await;
    let body = prompt("hi [[scn:tools]]", true);
    let request = with_header(post("/s/text/r7/v1/messages?beta=true", &body), "user-agent", "claude-cli/x");
    let request = with_header(request, "x-claude-code-session-id", "s-1");
    let reply = ask(&model, with_header(request, "x-private", "hidden")).await;
    let record = &model.records()[0];
    assert_eq!((record.seq, record.method.as_str()), (1, "POST"));
    assert_eq!(
        (record.path.as_str(), record.run.as_deref()),
        ("/s/text/r7/v1/messages?beta=true", Some("r7"))
    );
    assert_eq!(record.script, Some(ScriptPlace { scenario: "tools".to_owned(), prompt: 1, step: 0 }));
    assert_eq!((record.model.as_deref(), record.stream), (Some("claude-opus-5-5"), Some(true)));
    assert_eq!(record.body_bytes, body.to_string().len() as u64);
    assert_eq!(record.body_sha256, hex::encode(Sha256::digest(body.to_string())));
    assert_eq!(record.headers["x-claude-code-session-id"], "s-1");
    assert_eq!(record.headers["user-agent"], "claude-cli/x");
    assert!(!record.headers.contains_key("x-private"));
    assert_eq!((record.status, record.bytes_served), (Some(200), reply.body.len() as u64));
    assert_eq!((record.outcome, record.usage_final), (Outcome::Complete, true));
    assert_eq!(record.usage.expect("usage").output_tokens, 25);
    assert!(record.at_ms > 1_700_000_000_000 && record.ended_at_ms >= Some(record.at_ms));
    model.shutdown().await;
}

#[tokio::test]
async fn keys_are_required_and_never_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log.jsonl");
    let required_keys = vec![KeyDigest::of("canary-one"), KeyDigest::of("canary-two")];
    let options = Options { required_keys, log: Some(log.clone()), ..Options::default() };
    let model = start_with(options).await;
    let good = ask(&model, with_header(streamed("text"), "x-api-key", "canary-two")).await;
    let bearer = ask(&model, with_header(streamed("text"), "authorization", "Bearer canary-one")).await;
    assert_eq!((good.status, bearer.status), (StatusCode::OK, StatusCode::OK));
    let wrong = ask(&model, with_header(streamed("text"), "x-api-key", "canary-three")).await;
    let none = ask(&model, streamed("text")).await;
    for refused in [&wrong, &none] {
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(
            refused.json()["error"],
            json!({"type": "authentication_error", "message": "invalid x-api-key"})
        );
    }
    let records = model.records();
    let seen = records[0].x_api_key.as_ref().expect("a key");
    assert_eq!((seen.matched, seen.sha256.clone()), (Some(true), hex::encode(Sha256::digest("canary-two"))));
    assert_eq!(records[1].authorization.as_ref().and_then(|key| key.matched), Some(true));
    assert_eq!(records[2].x_api_key.as_ref().and_then(|key| key.matched), Some(false));
    assert_eq!((records[3].script.as_ref(), records[3].status), (None, Some(401)));
    let told = ask(&model, get("/__log")).await;
    model.shutdown().await;
    let written = std::fs::read_to_string(&log).expect("a log");
    for text in [written, String::from_utf8(told.body).expect("UTF-8")] {
        assert!(!text.contains("canary"), "a key is written: {text}");
    }
}

#[tokio::test]
async fn the_log_is_told_over_http_and_health_with_it() {
    let model = start(json!({})).await;
    ask(&model, streamed("text")).await;
    let log = ask(&model, get("/__log")).await.json();
    let records: Vec<Record> = serde_json::from_value(log["records"].clone()).expect("records");
    assert_eq!(records, model.records(), "asking for the log is no record");
    assert_eq!(log["dropped"], 0);
    assert_eq!(ask(&model, get("/__health")).await.json(), json!({"status": "ok"}));
    model.shutdown().await;
    let unsound = start_with(Options { log: Some("/dev/full".into()), ..Options::default() }).await;
    ask(&unsound, streamed("text")).await;
    let health = ask(&unsound, get("/__health")).await;
    assert_eq!(
        (health.status, health.json()),
        (StatusCode::INTERNAL_SERVER_ERROR, json!({"status": "log_failed"}))
    );
    unsound.shutdown().await;
}

#[tokio::test]
async fn a_request_is_in_the_file_before_its_reply_and_again_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log.jsonl");
    let model = start_with(Options { log: Some(log.clone()), ..Options::default() }).await;
    let lines = || -> Vec<LogLine> {
        let text = std::fs::read_to_string(&log).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
    };
    let mut connection = Connection::open(&model).await;
    let request = connection.send(streamed("hang"));
    tokio::select! {
        reply = request => panic!("a reply came: {reply:?}"),
        _ = model.wait_for(|records| !records.is_empty()) => {}
    }
    assert_eq!(lines().iter().map(|line| line.event).collect::<Vec<_>>(), [LogEvent::Begin]);
    model.shutdown().await;
    let lines = lines();
    assert_eq!((lines.len(), lines[1].event, lines[1].record.outcome), (2, LogEvent::End, Outcome::Stopped));
}

#[tokio::test]
async fn a_unix_socket_serves_the_same_and_goes_with_the_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("api.sock");
    for _ in 0..2 {
        // A socket that a killed server left behind must not be in the way.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a stale socket"));
        let options = Options { listen: None, unix: Some(path.clone()), ..Options::default() };
        let model = start_with(options).await;
        assert_eq!((model.address(), model.base_url()), (None, "http://scripted.model"));
        let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let mut connection = Connection::open_unix(&path).await;
        let reply = connection.exchange(streamed("text")).await.expect("a reply");
        assert_eq!(reply.text(), "Hello from the scripted model.");
        model.shutdown().await;
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn both_listeners_share_one_record() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("api.sock");
    let model = start_with(Options { unix: Some(path.clone()), ..Options::default() }).await;
    assert_eq!(model.scenario_url("text", "r"), format!("{}/s/text/r", model.base_url()));
    ask(&model, whole("text")).await;
    Connection::open_unix(&path).await.exchange(whole("text")).await.expect("a reply");
    let two = |records: &[Record]| records.len() == 2;
    tokio::time::timeout(PATIENCE, model.wait_for(two)).await.expect("in time");
    model.shutdown().await;
}

#[tokio::test]
async fn what_keeps_a_server_from_starting_is_told() {
    let fails = async |options| ScriptedModel::start(options).await.expect_err("it must not start");
    let text = |value: Value| vec![value.to_string()];
    let scenarios = fails(Options { inline_scenarios: text(json!([])), ..Options::default() }).await;
    assert!(matches!(scenarios, StartError::Scenarios(_)), "{scenarios}");
    let default = fails(Options { default_scenario: "none".to_owned(), ..Options::default() }).await;
    assert_eq!(default.to_string(), "no scenario named none for requests that name none");
    let log = fails(Options { log: Some("/dev/null/log".into()), ..Options::default() }).await;
    assert_eq!(log.to_string(), "cannot open log /dev/null/log");
    let socket = fails(Options { unix: Some("/dev/null/sock".into()), ..Options::default() }).await;
    assert_eq!(socket.to_string(), "cannot listen on /dev/null/sock");
    let nothing = fails(Options { listen: None, ..Options::default() }).await;
    assert!(matches!(nothing, StartError::NoListener));
    let model = start(json!({})).await;
    let taken = fails(Options { listen: model.address(), ..Options::default() }).await;
    assert!(matches!(taken, StartError::Listen { .. }), "{taken}");
    model.shutdown().await;
}
