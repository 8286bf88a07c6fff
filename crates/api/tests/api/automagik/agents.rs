//! The agent as one of upstream's agents, and what clients ask for first.

use caisson_domain::run::RunStatus;
use caisson_store::{Claimed, Finish};
use serde_json::json;

use super::{FIRST, PREFIXES, SECOND, api, bare, steady};
use crate::support::Api;

#[tokio::test]
async fn the_agent_is_listed_and_described_by_every_name() {
    let api = api().await;
    let listed = api.get("/api/v1/agents").await;
    assert_eq!(listed.json(), api.get("/api/v1/agent/list").await.json());
    assert_eq!(listed.json()[0]["name"], "claude-code");
    let described = api.get("/api/v1/agent/claude-code").await;
    insta::assert_json_snapshot!("agent", steady(&described));
    for name in ["claude_code", "1"] {
        assert_eq!(api.get(&format!("/api/v1/agent/{name}")).await.json(), described.json());
    }
    for path in ["/api/v1/agent/simple", "/api/v1/agent/2"] {
        assert_eq!(api.get(path).await.status, 404);
    }
    assert_eq!(api.post("/api/v1/agent/simple/run", &json!({ "message_content": "x" })).await.status, 404);
}

/// The next run, for whoever plays the worker.
async fn claimed(api: &Api) -> Claimed {
    loop {
        if let Some(claimed) = api.store.claim(&api.server).await.unwrap() {
            return claimed;
        }
        tokio::task::yield_now().await;
    }
}

/// Plays the worker: claims the next run, says something and ends it.
async fn works(api: &Api) {
    works_on(api, &claimed(api).await).await;
}

async fn works_on(api: &Api, claimed: &Claimed) {
    let call = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t1","name":"Bash","input":{"command":"ls"}}]}}"#;
    let result =
        r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t1","content":"x"}]}}"#;
    api.say(claimed, call).await;
    api.say(claimed, result).await;
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: Some("Hello!".to_owned()) };
    assert!(api.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
}

async fn works_twice(api: &Api) {
    works(api).await;
    works(api).await;
}

#[tokio::test]
async fn running_the_agent_waits_for_its_answer() {
    let api = api().await;
    let body =
        json!({ "message_content": "Say hello", "context": "a text", "user_id": 7, "message_limit": 10 });
    let (answer, ()) = tokio::join!(api.post("/api/v1/agent/claude_code/run", &body), works(&api));
    assert_eq!(answer.status, 200, "{}", answer.text());
    insta::assert_json_snapshot!("agent_answer", steady(&answer));
    let invented =
        json!({ "message_content": "Again", "session_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301" });
    let (other, ()) = tokio::join!(api.post("/api/v1/agent/claude-code/run", &invented), works(&api));
    assert_eq!(other.status, 200, "an id that a client made up begins a session");
    let on = json!({ "message_content": "Go on", "session_id": answer.json()["session_id"] });
    let (on, ()) = tokio::join!(api.post("/api/v1/agent/claude-code/run", &on), works(&api));
    assert_eq!(on.json()["session_id"], answer.json()["session_id"]);
    assert!(on.json().get("not_done").is_none(), "all of it was done: {}", on.text());
    let anew = json!({ "message_content": "Begin", "session_id": answer.json()["session_id"], "force_new_session": true });
    let (anew, ()) = tokio::join!(api.post("/api/v1/agent/claude-code/run", &anew), works(&api));
    assert_ne!(anew.json()["session_id"], answer.json()["session_id"]);
}

#[tokio::test]
async fn what_of_a_task_for_the_agent_is_not_done_is_said() {
    let api = api().await;
    let wish = json!({
        "message_content": "Look", "media_contents": [{ "mime_type": "image/png", "data": "iVBORw0KGgo=" }],
        "system_prompt": "Be brief.", "run_count": 2,
    });
    let parts = ["media_contents is not given", "system_prompt is not used", "Not used: run_count."];
    let started = api.post("/api/v1/agent/claude-code/run/async", &wish).await.json();
    let (answer, ()) = tokio::join!(api.post("/api/v1/agent/claude-code/run", &wish), works_twice(&api));
    let said = [started["message"].clone(), answer.json()["not_done"].clone()];
    for said in said {
        let said = said.as_str().unwrap();
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
}

#[tokio::test]
async fn running_it_without_waiting_gives_a_run_to_ask_for() {
    let api = api().await;
    let answer =
        api.post("/api/v1/agent/claude_code/run/async", &json!({ "message_content": "Say hello" })).await;
    assert_eq!(answer.status, 200);
    insta::assert_json_snapshot!("agent_started", steady(&answer));
    let path = format!("/api/v1/run/{}/status", answer.json()["run_id"].as_str().unwrap());
    assert_eq!(api.get(&path).await.json()["status"], "pending");
    works(&api).await;
    insta::assert_json_snapshot!("agent_run_status", steady(&api.get(&path).await));
    assert_eq!(api.get("/api/v1/run/x/status").await.status, 404);
}

#[tokio::test]
async fn a_task_that_is_none_is_422() {
    let api = api().await;
    for path in ["/api/v1/agent/claude-code/run", "/api/v1/agent/claude-code/run/async"] {
        let request = api.request(http::Method::POST, path).body(axum::body::Body::empty()).unwrap();
        assert_eq!(api.send(request).await.status, 422, "no body");
        for body in
            [json!({}), json!({ "message_content": " " }), json!({ "message_content": "x", "user_id": [] })]
        {
            assert_eq!(api.post(path, &body).await.status, 422, "{body}");
        }
    }
    let unknown = json!({ "workflow_name": "no-such", "message": "x" });
    assert_eq!(api.post("/api/v1/agent/claude-code/run", &unknown).await.status, 404);
}

#[tokio::test]
async fn health_is_told_in_the_words_that_clients_need() {
    let api = api().await;
    for prefix in PREFIXES.iter().chain([&SECOND]) {
        assert_eq!(bare(&api, &format!("{prefix}/health"), None).await.status, 401);
        let health = api.get(&format!("{prefix}/health")).await.json();
        assert_eq!(health["status"], "healthy");
        assert!(health["workflows"].as_object().unwrap().values().all(serde_json::Value::is_boolean));
        assert!(health["system"].is_object(), "{health}");
    }
    insta::assert_json_snapshot!("health", steady(&api.get(&format!("{FIRST}/health")).await));
}

#[tokio::test]
async fn what_clients_ask_for_first_needs_no_key() {
    let api = api().await;
    for (path, status) in [
        ("/", "online"),
        ("/health", "healthy"),
        ("/automagik-v2/", "online"),
        ("/automagik-v2/health", "healthy"),
    ] {
        let answer = bare(&api, path, Some(("accept", "application/json"))).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!(status)), "{path}");
        assert_eq!(answer.header("content-type"), "application/json");
    }
    let document = bare(&api, "/api/v1/openapi.json", None).await;
    assert_eq!(document.json()["openapi"], "3.1.0");
    assert_eq!(
        bare(&api, "/automagik-v2/v1/runs", None).await.status,
        404,
        "the native API is at one place alone"
    );
}

#[tokio::test]
async fn who_waits_with_a_key_that_is_revoked_meanwhile_does_not_hear_the_end() {
    let mut api = api().await;
    let key = api.take_another_key().await;
    let body = json!({ "message_content": "Say hello" });
    let (answer, ()) = tokio::join!(api.post("/api/v1/agent/claude-code/run", &body), async {
        let claimed = claimed(&api).await;
        api.revoke(&key).await;
        works_on(&api, &claimed).await;
    });
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert!(!answer.text().contains("Hello!"), "{}", answer.text());
}
