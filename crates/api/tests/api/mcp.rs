//! The Model Context Protocol over HTTP: its messages, its errors, its tools.

use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_api::config::LARGE_BODIES;
use caisson_domain::attachment::{ATTACHMENT_BODY_BYTES, ATTACHMENT_BYTES, ATTACHMENTS_BYTES};
use caisson_domain::limits::API_BODY_BYTES;
use caisson_domain::principal::Scope;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, REPOSITORY};

async fn send(api: &Api, message: &Value) -> Answer {
    api.post("/mcp", message).await
}

async fn call(api: &Api, tool: &str, arguments: Value) -> Value {
    let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": tool, "arguments": arguments } });
    let answer = send(api, &message).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

/// What a tool answered.
async fn done(api: &Api, tool: &str, arguments: Value) -> Value {
    let answer = call(api, tool, arguments).await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), answer["result"]["structuredContent"]);
    answer["result"]["structuredContent"].clone()
}

/// Why a tool refused.
async fn refused(api: &Api, tool: &str, arguments: Value) -> String {
    let answer = call(api, tool, arguments).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    answer["result"]["content"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_client_begins_and_learns_what_there_is() {
    let api = Api::start().await;
    let params = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let begun =
        send(&api, &json!({ "jsonrpc": "2.0", "id": "a", "method": "initialize", "params": params })).await;
    let result = &begun.json()["result"];
    assert_eq!((begun.json()["id"].clone(), &result["protocolVersion"]), (json!("a"), &json!("2025-06-18")));
    assert_eq!(
        (&result["serverInfo"]["name"], &result["capabilities"]),
        (&json!("caisson"), &json!({"tools": {}}))
    );
    let told = send(&api, &json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    assert_eq!((told.status, told.text().as_str()), (StatusCode::ACCEPTED, ""));
    let pinged = send(&api, &json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" })).await;
    assert_eq!(pinged.json(), json!({ "jsonrpc": "2.0", "id": 2, "result": {} }));
    let listed = send(&api, &json!({ "jsonrpc": "2.0", "id": 3, "method": "tools/list" })).await.json();
    let tools = listed["result"]["tools"].as_array().unwrap();
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["submit", "status", "events", "result", "cancel"]);
    for tool in tools {
        assert_eq!(tool["inputSchema"]["type"], "object");
        assert!(tool["description"].as_str().unwrap().len() > 20);
    }
}

#[tokio::test]
async fn a_faulty_request_is_answered_by_an_error_of_the_protocol() {
    let api = Api::start().await;
    let code = async |method: &str, params: Value| {
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = send(&api, &message).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.json().get("result").is_none());
        answer.json()["error"]["code"].as_i64().unwrap()
    };
    for method in ["server/discover", "resources/list", "", "TOOLS/LIST"] {
        assert_eq!(code(method, json!({})).await, -32601, "{method}");
    }
    assert_eq!(code("initialize", json!({})).await, -32602);
    assert_eq!(code("tools/call", json!({})).await, -32602);
    assert_eq!(code("tools/call", json!({ "name": "format-disk" })).await, -32602);
    assert_eq!(code("tools/call", json!({ "name": "status", "arguments": [] })).await, -32602);
}

#[tokio::test]
async fn what_is_no_message_is_a_problem() {
    let api = Api::start().await;
    let raw = |body: &'static str| {
        api.request(Method::POST, "/mcp")
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    api.send(raw("{")).await.assert_problem(400, "malformed_json");
    api.send(raw("[]")).await.assert_problem(422, "invalid_body");
    api.send(raw(r#"{"id":1,"method":"ping"}"#)).await.assert_problem(422, "invalid_body");
    let text = api.request(Method::POST, "/mcp").header("content-type", "text/plain").body(Body::from("{}"));
    api.send(text.unwrap()).await.assert_problem(415, "unsupported_media_type");
    for method in [Method::GET, Method::DELETE] {
        let request = api.request(method, "/mcp").body(Body::empty()).unwrap();
        api.send(request).await.assert_problem(405, "method_not_allowed");
    }
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let with = async |name: &'static str, value: &str| {
        let mut request = api.json_request("/mcp", &ping);
        request.headers_mut().insert(name, value.parse().unwrap());
        api.send(request).await
    };
    with("mcp-protocol-version", "1999-01-01").await.assert_problem(400, "mcp_version_unknown");
    for version in ["2025-06-18", "2025-11-25"] {
        assert_eq!(with("mcp-protocol-version", version).await.status, StatusCode::OK);
    }
    with("accept", "text/html").await.assert_problem(406, "not_acceptable");
    assert_eq!(with("accept", "application/json, text/event-stream").await.status, StatusCode::OK);
    with("origin", "https://evil.example").await.assert_problem(403, "origin_refused");
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_and_nobody_may_without_a_key() {
    let api = Api::with(|config| config.cors_origins = vec!["https://ui.example".to_owned()]).await;
    let mut request = api.json_request("/mcp", &json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }));
    request.headers_mut().insert("origin", "https://ui.example".parse().unwrap());
    assert_eq!(api.send(request).await.status, StatusCode::OK);
    let mut request = api.json_request("/mcp", &json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }));
    request.headers_mut().remove("authorization");
    api.send(request).await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_run_is_submitted_followed_and_ended_by_tools() {
    let api = Api::start().await;
    let task =
        json!({ "workflow": "fix", "prompt": "Fix it.", "repository": REPOSITORY, "idempotency_key": "k1" });
    let run = done(&api, "submit", task.clone()).await;
    let id = run["id"].as_str().unwrap();
    assert_eq!(run["status"], "queued");
    assert_eq!(done(&api, "submit", task).await["id"], id, "a repeated call finds it");
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    assert_eq!(done(&api, "status", json!({ "run": id })).await["status"], "running");
    let long = format!("{{\"line\":\"{}\"}}", "x".repeat(8 * 1024));
    api.say(&claimed, &long).await;
    let events = done(&api, "events", json!({ "run": id, "limit": 2 })).await;
    assert_eq!(events["items"].as_array().unwrap().len(), 2);
    let rest = done(&api, "events", json!({ "run": id, "after": events["next_after"] })).await;
    let line = &rest["items"][0];
    assert_eq!((&line["kind"], line["data"].as_str().unwrap().len()), (&json!("agent.line"), 4 * 1024));
    assert!(line["cut_bytes"].as_u64().unwrap() > 4_000);
    let waits = done(&api, "result", json!({ "run": id })).await;
    assert_eq!((&waits["final"], &waits["status"]), (&json!(false), &json!("running")));
    let (ended, ()) = tokio::join!(done(&api, "result", json!({ "run": id, "wait_s": 50 })), async {
        tokio::task::yield_now().await;
        api.finish(&claimed).await;
    });
    assert_eq!((&ended["final"], &ended["result"]), (&json!(true), &json!("done")));
    let other = done(&api, "submit", json!({ "workflow": "fix", "prompt": "Fix." })).await;
    let ended = done(&api, "cancel", json!({ "run": other["id"] })).await;
    assert_eq!(ended["status"], "cancelled");
}

#[tokio::test]
async fn a_session_goes_on_by_submit_with_attachments_as_large_as_the_native_route_takes() {
    let mut api = Api::start().await;
    let listed = send(&api, &json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" })).await.json();
    let schema = &listed["result"]["tools"][0]["inputSchema"];
    assert_eq!(schema["required"], json!(["prompt"]), "a follow-up needs no workflow");
    assert_eq!(schema["properties"]["session"]["type"], "string");
    let claimed = api.running().await;
    assert!(api.store.put_transcript(&claimed.run.id, "said").await.unwrap());
    api.finish(&claimed).await;
    let parts = [ATTACHMENT_BYTES, ATTACHMENTS_BYTES - ATTACHMENT_BYTES];
    let attachments: Vec<Value> = parts
        .iter()
        .map(|bytes| json!({ "name": "f", "content": STANDARD.encode(vec![0xff; *bytes]) }))
        .collect();
    let task = json!({ "session": claimed.run.session, "prompt": "Go on.", "attachments": attachments });
    let run = done(&api, "submit", task.clone()).await;
    assert_eq!((&run["session_id"], &run["workflow"]), (&json!(claimed.run.session), &json!("fix")));
    assert_eq!(run["attachments"].as_array().unwrap().len(), 2);
    let told = refused(&api, "submit", json!({ "prompt": "x" })).await;
    assert!(told.contains("workflow: it is required"), "{told}");
    let message = |filler: usize| json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": { "x": "x".repeat(filler) } });
    send(&api, &message(ATTACHMENT_BODY_BYTES)).await.assert_problem(413, "body_too_large");
    api.key = api.key_with(&[Scope::RunsRead]).await;
    send(&api, &message(API_BODY_BYTES)).await.assert_problem(413, "body_too_large");
}

#[tokio::test]
async fn calls_that_wait_for_a_run_keep_no_place_of_a_large_body() {
    let api = Api::with(|config| config.limits.large_body_wait = Duration::from_secs(5)).await;
    let claimed = api.running().await;
    let padding = "x".repeat(API_BODY_BYTES);
    let waiting = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "padding": padding, "name": "result",
        "arguments": { "run": claimed.run.id, "wait_s": 50 } } });
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": { "padding": padding } });
    let all = join_all((0..LARGE_BODIES).map(|_| send(&api, &waiting)));
    let (ended, ()) = tokio::join!(all, async {
        assert_eq!(send(&api, &ping).await.status, StatusCode::OK, "it found a place");
        api.finish(&claimed).await;
    });
    for answer in ended {
        assert_eq!(answer.json()["result"]["structuredContent"]["final"], true, "{}", answer.text());
    }
}

#[tokio::test]
async fn what_a_tool_refuses_the_model_reads() {
    let mut api = Api::start().await;
    let told = refused(&api, "submit", json!({ "workflow": "none", "prompt": "" })).await;
    assert!(told.contains("workflow: ") && told.contains("prompt: "), "{told}");
    let told =
        refused(&api, "submit", json!({ "workflow": "fix", "prompt": "x", "idempotency_key": "a b" })).await;
    assert!(told.contains("visible ASCII"), "{told}");
    for (tool, arguments, part) in [
        ("status", json!({}), "run: it is required"),
        ("status", json!({ "run": "run_x" }), "no such run"),
        ("result", json!({ "run": "run_x", "wait_s": 51 }), "from 0 to 50"),
        ("events", json!({ "run": "run_x", "limit": 0 }), "from 1 to 200"),
        ("cancel", json!({ "run": "run_x", "force": true }), "force: there is no such field"),
    ] {
        let told = refused(&api, tool, arguments).await;
        assert!(told.contains(part), "{told}");
    }
    let run = api.queued().await;
    let all = api.key.clone();
    api.key = api.key_with(&[Scope::RunsRead]).await;
    for (tool, arguments) in
        [("submit", json!({ "workflow": "fix", "prompt": "x" })), ("cancel", json!({ "run": run.id }))]
    {
        assert!(refused(&api, tool, arguments).await.contains("scope_missing"));
    }
    assert_eq!(done(&api, "status", json!({ "run": run.id })).await["status"], "queued");
    api.key = all;
    let denied = api.get("/v1/audit?action=api.denied").await.json();
    let subjects: Vec<_> = denied["items"].as_array().unwrap().iter().map(|item| &item["subject"]).collect();
    assert_eq!(subjects, ["runs:write"], "once for the key and its scope");
    api.key = api.other_projects_key().await;
    assert!(refused(&api, "status", json!({ "run": run.id })).await.contains("no such run"));
}

#[tokio::test]
async fn messages_count_as_requests_of_their_key() {
    let api = Api::with(|config| config.limits.rate_per_minute = 2).await;
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    for _ in 0..2 {
        assert_eq!(send(&api, &ping).await.status, StatusCode::OK);
    }
    send(&api, &ping).await.assert_problem(429, "rate_limited");
}

#[tokio::test]
async fn who_waits_with_a_key_that_is_revoked_meanwhile_does_not_hear_the_end() {
    let mut api = Api::start().await;
    let claimed = api.running().await;
    let key = api.take_another_key().await;
    let (answer, ()) =
        tokio::join!(refused(&api, "result", json!({ "run": claimed.run.id, "wait_s": 50 })), async {
            api.is_used(&key).await;
            api.revoke(&key).await;
            api.finish(&claimed).await;
        });
    assert!(answer.contains("unauthenticated") && !answer.contains("done"), "{answer}");
}
