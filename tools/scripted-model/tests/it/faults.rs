//! What a client sees of each fault.

use hyper::{Request, StatusCode};
use scripted_model::{Options, Outcome, ScriptedModel};
use serde_json::{Value, json};

use crate::client::{Connection, PATIENCE, Received, ask, post, prompt, start, start_with, streamed, whole};

async fn built_in() -> ScriptedModel {
    start(json!({})).await
}

fn kinds(reply: &Received) -> Vec<String> {
    reply.events().iter().filter_map(|event| event["type"].as_str().map(ToOwned::to_owned)).collect()
}

/// The outcome of the only request, once it has ended.
async fn outcome(model: &ScriptedModel) -> Outcome {
    let ended =
        |records: &[scripted_model::Record]| records.iter().all(|record| record.outcome != Outcome::Open);
    tokio::time::timeout(PATIENCE, model.wait_for(ended)).await.expect("in time")[0].outcome
}

#[tokio::test]
async fn errors_have_status_body_and_headers() {
    let model = built_in().await;
    let reply = ask(&model, streamed("e429_long")).await;
    assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("3600")));
    let body = reply.json();
    assert_eq!(body["error"], json!({"type": "rate_limit_error", "message": "scripted rate limit"}));
    assert_eq!(body["request_id"].as_str(), reply.header("request-id"));
    let overloaded = ask(&model, whole("e529")).await;
    assert_eq!(
        (overloaded.status.as_u16(), &overloaded.json()["error"]["type"]),
        (529, &json!("overloaded_error"))
    );
    model.shutdown().await;
}

#[tokio::test]
async fn only_the_first_tries_of_a_step_fail_and_each_conversation_has_its_own() {
    let model = built_in().await;
    let status = async |run: &str, session: &str| {
        let mut request = post(&format!("/s/e529_twice/{run}/v1/messages"), &prompt("hi", true));
        request.headers_mut().insert("x-claude-code-session-id", session.parse().expect("a value"));
        ask(&model, request).await.status.as_u16()
    };
    let mut seen = Vec::new();
    for (run, session) in [("a", "1"), ("a", "1"), ("b", "1"), ("a", "2"), ("a", "1")] {
        seen.push(status(run, session).await);
    }
    assert_eq!(seen, [529, 529, 529, 529, 200]);
    model.shutdown().await;
}

#[tokio::test]
async fn a_connection_closed_before_the_headers_has_no_byte_of_a_reply() {
    let model = built_in().await;
    let error = Connection::open(&model).await.exchange(whole("cut_headers")).await.expect_err("no reply");
    assert!(error.is_incomplete_message() || error.is_closed(), "{error:?}");
    assert_eq!(outcome(&model).await, Outcome::Cut);
    assert_eq!(model.records()[0].status, None);
    model.shutdown().await;
}

#[tokio::test]
async fn a_cut_stream_ends_at_its_point_without_its_end() {
    let (start_block, delta) = ("content_block_start", "content_block_delta");
    for (scenario, last, events) in [
        ("cut_start", "message_start", 1),
        ("cut_text", delta, 2 + 1 + 20),
        ("cut_tool", delta, 2 + 1 + 1),
        ("cut_before_stop", "content_block_stop", 2 + 1 + 4 + 1),
    ] {
        let model = built_in().await;
        let reply = ask(&model, streamed(scenario)).await;
        assert!(!reply.complete, "{scenario}");
        let kinds = kinds(&reply);
        assert_eq!(
            (kinds.last().map(String::as_str), kinds.len()),
            (Some(last), events),
            "{scenario}: {kinds:?}"
        );
        assert!(kinds.len() < 4 || kinds[2] == start_block);
        assert_eq!(outcome(&model).await, Outcome::Cut);
        let record = &model.records()[0];
        assert_eq!((record.usage_final, record.bytes_served), (false, reply.body.len() as u64));
        model.shutdown().await;
    }
}

#[tokio::test]
async fn a_reply_that_is_not_streamed_is_not_cut() {
    let model = built_in().await;
    for scenario in ["cut_text", "stall", "sse_error"] {
        let reply = ask(&model, whole(scenario)).await;
        assert!(reply.complete && reply.json()["stop_reason"] == "end_turn", "{scenario}");
    }
    model.shutdown().await;
}

#[tokio::test]
async fn a_compressed_stream_is_cut_too() {
    let model = start_with(Options { gzip: true, ..Options::default() }).await;
    let reply = ask(&model, streamed("cut_text")).await;
    assert!(!reply.complete && !reply.body.is_empty());
    assert_eq!(model.records()[0].bytes_served, reply.body.len() as u64);
    model.shutdown().await;
}

#[tokio::test]
async fn a_stall_sends_half_and_keeps_the_connection() {
    let model = built_in().await;
    let mut connection = Connection::open(&model).await;
    let response = connection.send(streamed("stall")).await.expect("a head");
    let half_sent = |records: &[scripted_model::Record]| {
        records.first().is_some_and(|record| record.bytes_served > 0 && record.status == Some(200))
    };
    let records = tokio::time::timeout(PATIENCE, model.wait_for(half_sent)).await.expect("in time");
    assert_eq!(records[0].outcome, Outcome::Open);
    drop(response);
    connection.closed().await;
    assert_eq!(outcome(&model).await, Outcome::Stalled);
    assert!(!model.records()[0].usage_final);
    model.shutdown().await;
}

#[tokio::test]
async fn a_hang_sends_nothing_until_the_client_goes() {
    let model = built_in().await;
    let mut connection = Connection::open(&model).await;
    {
        let request = connection.send(streamed("hang"));
        let begun = model.wait_for(|records| !records.is_empty());
        tokio::select! {
            reply = request => panic!("a reply came: {reply:?}"),
            _ = begun => {}
        }
    }
    connection.closed().await;
    assert_eq!(outcome(&model).await, Outcome::Hung);
    assert_eq!((model.records()[0].status, model.records()[0].bytes_served), (None, 0));
    model.shutdown().await;
}

#[tokio::test]
async fn garbage_is_no_message() {
    let model = built_in().await;
    let reply = ask(&model, streamed("garbage")).await;
    assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, Some("text/html")));
    assert!(serde_json::from_slice::<Value>(&reply.body).is_err());
    assert_eq!(model.records()[0].usage, None);
    model.shutdown().await;
}

#[tokio::test]
async fn an_error_event_ends_a_stream() {
    let model = built_in().await;
    let reply = ask(&model, streamed("sse_error")).await;
    assert!(reply.complete);
    assert_eq!(kinds(&reply), ["message_start", "ping", "error"]);
    assert_eq!(reply.events()[2]["error"], json!({"type": "overloaded_error", "message": "Overloaded"}));
    model.shutdown().await;
}

#[tokio::test]
async fn a_client_that_goes_in_mid_stream_is_noticed() {
    let model = built_in().await;
    let mut connection = Connection::open(&model).await;
    let response = connection.send(streamed("slow_text")).await.expect("a head");
    drop(response);
    connection.closed().await;
    assert_eq!(outcome(&model).await, Outcome::ClientGone);
    model.shutdown().await;
}

#[tokio::test]
async fn delays_vanish_with_the_scale() {
    let scenarios =
        json!({"slow": {"prompts": [[{"text": "a b c", "delay_ms": 600_000, "chunk_delay_ms": 600_000}]]}});
    let model = start_with(Options {
        inline_scenarios: vec![scenarios.to_string()],
        delay_scale: "0".parse().expect("a scale"),
        ..Options::default()
    })
    .await;
    assert_eq!(ask(&model, streamed("slow")).await.text(), "a b c");
    model.shutdown().await;
}

#[tokio::test]
async fn connections_over_the_bound_are_closed_at_once() {
    let model = start_with(Options { max_connections: 2, ..Options::default() }).await;
    let mut first = Connection::open(&model).await;
    let mut second = Connection::open(&model).await;
    assert_eq!(first.exchange(whole("text")).await.expect("a reply").status, StatusCode::OK);
    assert_eq!(second.exchange(whole("text")).await.expect("a reply").status, StatusCode::OK);
    let third: Request<_> = whole("text");
    assert!(Connection::open(&model).await.exchange(third).await.is_err());
    assert_eq!(first.exchange(whole("text")).await.expect("a reply").status, StatusCode::OK);
    model.shutdown().await;
}
