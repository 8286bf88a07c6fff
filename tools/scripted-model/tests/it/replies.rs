//! What a client is answered when nothing goes wrong.

use std::time::Duration;

use hyper::{Method, Request, StatusCode};
use scripted_model::{MAX_BODY_BYTES, Options};
use serde_json::{Value, json};

use crate::client::{Connection, ask, post, prompt, start, start_with, streamed, whole};

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

#[tokio::test]
async fn a_streamed_reply_has_text_thinking_and_usage() {
    let usage = json!({"input_tokens": 7, "output_tokens": 9, "cache_read_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3}});
    let model = start(json!({"mine": {"prompts": [[
        {"thinking": "let me see", "text": "one two  three\n", "usage": usage}
    ]]}}))
    .await;
    let reply = ask(&model, streamed("mine")).await;
    assert_eq!((reply.status, reply.complete), (StatusCode::OK, true));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(reply.header("request-id").is_some_and(|id| id.starts_with("req_")));
    assert_eq!(reply.text(), "one two  three\n");
    let events = reply.events();
    let message = &events[0]["message"];
    assert_eq!(message["usage"]["input_tokens"], 7);
    assert_eq!(message["usage"]["output_tokens"], 1);
    assert_eq!(message["usage"]["cache_creation_input_tokens"], 5);
    assert_eq!(message["usage"]["cache_creation"]["ephemeral_1h_input_tokens"], 3);
    let end = &events[events.len() - 2];
    assert_eq!(
        (&end["usage"]["output_tokens"], &end["delta"]["stop_reason"]),
        (&json!(9), &json!("end_turn"))
    );
    assert_eq!(kinds(&events)[events.len() - 1], "message_stop");
    let thinking: String = events.iter().filter_map(|event| event["delta"]["thinking"].as_str()).collect();
    assert_eq!(thinking, "let me see");
    assert!(events.iter().any(|event| event["delta"]["type"] == "signature_delta"));
    model.shutdown().await;
}

#[tokio::test]
async fn a_whole_reply_says_the_same_as_a_streamed_one() {
    let model = start(json!({"mine": {"prompts": [[{"text": "a b", "stop_reason": "max_tokens"}]]}})).await;
    let reply = ask(&model, whole("mine")).await;
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    let message = reply.json();
    assert_eq!(message["content"], json!([{"type": "text", "text": "a b"}]));
    assert_eq!(message["stop_reason"], "max_tokens");
    assert_eq!(message["model"], "claude-opus-5-5");
    assert_eq!(message["usage"]["service_tier"], "standard");
    model.shutdown().await;
}

#[tokio::test]
async fn several_tools_are_called_with_the_working_directory_filled_in() {
    let model = start(json!({"mine": {"prompts": [[{"tools": [
        {"name": "Read", "input": {"file_path": "$CWD/a"}}, {"name": "Bash", "input": {"command": "ls $CWD"}},
    ]}]]}}))
    .await;
    let mut body = prompt("hi", true);
    body["system"] = json!([{"type": "text", "text": " - Primary working directory: /srv/x\n"}]);
    let events = ask(&model, post("/s/mine/r/v1/messages", &body)).await.events();
    let starts: Vec<&Value> = events.iter().filter(|event| event["type"] == "content_block_start").collect();
    assert_eq!(starts[0]["content_block"]["input"], json!({}));
    assert_ne!(starts[0]["content_block"]["id"], starts[1]["content_block"]["id"]);
    let input = |index: u64| -> Value {
        let parts = events.iter().filter(|event| event["index"] == index);
        let text: String = parts.filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
        serde_json::from_str(&text).expect("JSON")
    };
    assert_eq!((input(0), input(1)), (json!({"file_path": "/srv/x/a"}), json!({"command": "ls /srv/x"})));
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
    model.shutdown().await;
}

#[tokio::test]
async fn the_prompt_decides_before_the_path_and_the_path_before_the_default() {
    let text = |text: &str| json!({"prompts": [[{"text": text}]]});
    let model = start_with(Options {
        inline_scenarios: vec![json!({"a": text("A"), "b": text("B"), "c": text("C")}).to_string()],
        default_scenario: "c".to_owned(),
        ..Options::default()
    })
    .await;
    let said = async |path: &str, words: &str| ask(&model, post(path, &prompt(words, true))).await.text();
    assert_eq!(said("/v1/messages", "hi").await, "C");
    assert_eq!(said("/s/a/r/v1/messages", "hi").await, "A");
    assert_eq!(said("/s/a/r/v1/messages", "hi [[scn:b]]").await, "B");
    let unknown = ask(&model, post("/s/none/r/v1/messages", &prompt("hi", true))).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json()["error"]["message"], "no scenario named none");
    model.shutdown().await;
}

#[tokio::test]
async fn steps_follow_the_conversation_over_one_connection() {
    let model = start(json!({"mine": {"prompts": [
        [{"text": "a1"}, {"text": "a2"}],
        {"when_prompt_contains": "commit message", "steps": [{"text": "fix: it"}]},
        [{"text": "b1"}],
    ]}}))
    .await;
    let user = |text: &str| json!({"role": "user", "content": text});
    let reply = json!({"role": "assistant", "content": [{"type": "text", "text": "x"}]});
    let tool_result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]});
    let mut connection = Connection::open(&model).await;
    for (messages, said) in [
        (json!([user("p")]), "a1"),
        (json!([user("p"), reply, tool_result]), "a2"),
        (json!([user("p"), reply, user("Write a commit message.")]), "fix: it"),
        (json!([user("p"), reply, user("a commit message"), reply, user("go on")]), "b1"),
    ] {
        let request = post("/s/mine/r/v1/messages", &json!({"stream": true, "messages": messages}));
        assert_eq!(connection.exchange(request).await.expect("a reply").text(), said);
    }
    model.shutdown().await;
}

#[tokio::test]
async fn gzip_comes_whatever_the_client_accepts() {
    let scenarios = json!({"zip": {"prompts": [[{"text": "packed words", "gzip": true}]]},
        "plain": {"prompts": [[{"text": "plain words", "gzip": false}]]}});
    let model = start_with(Options {
        inline_scenarios: vec![scenarios.to_string()],
        gzip: true,
        ..Options::default()
    })
    .await;
    let identity = |mut request: Request<_>| {
        request.headers_mut().insert("accept-encoding", "identity".parse().expect("a value"));
        request
    };
    let streamed_reply = ask(&model, identity(streamed("zip"))).await;
    assert_eq!(streamed_reply.header("content-encoding"), Some("gzip"));
    assert_eq!(streamed_reply.decompressed().text(), "packed words");
    let whole_reply = ask(&model, identity(whole("zip"))).await;
    assert_eq!(whole_reply.decompressed().json()["content"][0]["text"], "packed words");
    let error = ask(&model, identity(streamed("e500"))).await;
    assert_eq!(error.header("content-encoding"), Some("gzip"), "errors too");
    assert_eq!(error.decompressed().json()["error"]["type"], "api_error");
    let plain = ask(&model, streamed("plain")).await;
    assert_eq!((plain.header("content-encoding"), plain.text().as_str()), (None, "plain words"));
    model.shutdown().await;
}

#[tokio::test]
async fn the_other_endpoints_are_there_with_and_without_prefix() {
    let model = start(json!({})).await;
    let request = |method: Method, path: &str| {
        Request::builder().method(method).uri(path).header("host", "x").body(http_body_util::Full::default())
    };
    for prefix in ["", "/s/text/r"] {
        let head =
            ask(&model, request(Method::HEAD, &format!("{prefix}/api/hello")).expect("a request")).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
        let count = ask(&model, post(&format!("{prefix}/v1/messages/count_tokens"), &json!("1234567"))).await;
        assert_eq!(count.json(), json!({"input_tokens": 3}), "nine bytes");
        let models =
            ask(&model, request(Method::GET, &format!("{prefix}/v1/models")).expect("a request")).await;
        assert_eq!(models.json()["data"][0]["id"], "claude-opus-5-5");
        let other =
            ask(&model, request(Method::GET, &format!("{prefix}/v1/messages")).expect("a request")).await;
        assert_eq!(
            (other.status, &other.json()["error"]["type"]),
            (StatusCode::NOT_FOUND, &json!("not_found_error"))
        );
    }
    model.shutdown().await;
}

#[tokio::test]
async fn malformed_and_too_large_bodies_are_refused() {
    let model = start(json!({})).await;
    let malformed = ask(&model, post("/v1/messages", &json!({"model": "m"}))).await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST);
    assert_eq!(malformed.json()["error"]["type"], "invalid_request_error");
    let too_large = ask(&model, post("/v1/messages", &prompt(&"x".repeat(MAX_BODY_BYTES), false))).await;
    assert_eq!(too_large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(too_large.json()["error"]["type"], "request_too_large");
    model.shutdown().await;
}

#[tokio::test]
async fn gathered_conversations_get_their_first_reply_together_and_the_record_has_when_each_asked() {
    let model = start(json!({"two": {"prompts": [[{"text": "a"}, {"text": "b"}]]}})).await;
    model.gather(2);
    let first = |session: &str| {
        let mut request = post("/s/two/run/v1/messages", &prompt("hi", true));
        request.headers_mut().insert("x-claude-code-session-id", session.parse().expect("a value"));
        request
    };
    let mut waiting = Box::pin(ask(&model, first("1")));
    tokio::select! {
        _ = &mut waiting => panic!("it is answered alone"),
        records = model.wait_for(|records| !records.is_empty()) => assert_eq!(records.len(), 1),
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    let (one, other) = tokio::join!(waiting, ask(&model, first("2")));
    assert!(one.status.is_success() && other.status.is_success());
    model.shutdown().await;
}
