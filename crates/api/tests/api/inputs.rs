//! Inputs to live runs, over HTTP.

use caisson_domain::id::SandboxId;
use caisson_domain::input::{INPUT_TEXT_BYTES, InputState, RUN_INPUTS_PENDING};
use caisson_domain::principal::Scope;
use caisson_store::JournalEffect;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS};

/// A running run with a sandbox, and the path of its inputs.
async fn live(api: &Api) -> (caisson_store::Claimed, SandboxId, String) {
    let claimed = api.running().await;
    let sandbox = api.placed(&claimed).await;
    let path = format!("/v1/runs/{}/inputs", claimed.run.id);
    (claimed, sandbox, path)
}

async fn with_key(api: &Api, path: &str, body: &Value, key: &str) -> Answer {
    let mut request = api.json_request(path, body);
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    api.send(request).await
}

#[tokio::test]
async fn an_input_is_accepted_listed_and_tells_how_far_it_is() {
    let api = Api::start().await;
    let (claimed, sandbox, path) = live(&api).await;
    let sent = api.post(&path, &json!({ "kind": "steer", "text": "Mind the tests." })).await;
    assert_eq!(sent.status, StatusCode::ACCEPTED, "{}", sent.text());
    assert_eq!((&sent.json()["state"], &sent.json()["seq"]), (&json!("accepted"), &json!(1)));
    assert_eq!(api.post(&path, &json!({ "kind": "interrupt" })).await.status, StatusCode::ACCEPTED);
    let effect = JournalEffect::Input { seq: 1, state: InputState::Delivered };
    api.journal(&claimed, &sandbox, vec![effect]).await;
    let listed = api.get(&path).await.json();
    let items = listed["items"].as_array().unwrap();
    assert_eq!((&items[0]["state"], &items[0]["acknowledged_at_ms"]), (&json!("delivered"), &json!(NOW_MS)));
    assert_eq!((&items[1]["kind"], &items[1]["text"]), (&json!("interrupt"), &Value::Null));
    let said = api.get(&format!("/v1/sessions/{}/messages", claimed.run.session)).await.json();
    let texts: Vec<&Value> = said["items"].as_array().unwrap().iter().map(|said| &said["text"]).collect();
    assert_eq!(texts, ["Fix it.", "Mind the tests."], "the conversation has what was said");
    let states: Vec<&Value> = said["items"].as_array().unwrap().iter().map(|said| &said["state"]).collect();
    assert_eq!(states, [&Value::Null, &json!("delivered")]);
}

#[tokio::test]
async fn a_conversation_tells_what_never_reached_the_agent() {
    let api = Api::start().await;
    let (claimed, sandbox, path) = live(&api).await;
    for (kind, text) in [("steer", "Heard."), ("queue", "Kept."), ("steer", "Too late.")] {
        assert_eq!(
            api.post(&path, &json!({ "kind": kind, "text": text })).await.status,
            StatusCode::ACCEPTED
        );
    }
    let effects = [(1, InputState::Delivered), (2, InputState::Held)];
    let effects = effects.map(|(seq, state)| JournalEffect::Input { seq, state });
    api.journal(&claimed, &sandbox, effects.into()).await;
    let messages = format!("/v1/sessions/{}/messages", claimed.run.session);
    let said = async || {
        let page = api.get(&messages).await.json();
        let told = |said: &Value| (said["text"].as_str().unwrap().to_owned(), said["state"].clone());
        page["items"].as_array().unwrap().iter().skip(1).map(told).collect::<Vec<_>>()
    };
    let told = |states: [&str; 3]| {
        let texts = ["Heard.", "Kept.", "Too late."];
        texts.into_iter().zip(states).map(|(text, state)| (text.to_owned(), json!(state))).collect::<Vec<_>>()
    };
    assert_eq!(said().await, told(["delivered", "held", "accepted"]));
    api.finish(&claimed).await;
    assert_eq!(said().await, told(["delivered", "undelivered", "undelivered"]));
    // The compatible API has no word for it: there it was not said.
    let path = format!("/api/v1/messages?session_id={}", claimed.run.session);
    let text = api.get(&path).await.text();
    assert!(text.contains("Heard.") && !text.contains("Kept.") && !text.contains("Too late."), "{text}");
}

#[tokio::test]
async fn an_input_sent_again_with_its_key_is_found_and_with_another_text_refused() {
    let api = Api::start().await;
    let (_, _, path) = live(&api).await;
    let body = json!({ "kind": "queue", "text": "And the docs." });
    let first = with_key(&api, &path, &body, "k1").await;
    let again = with_key(&api, &path, &body, "k1").await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::ACCEPTED, "true"));
    assert_eq!(first.json(), again.json());
    let other = with_key(&api, &path, &json!({ "kind": "queue", "text": "Other." }), "k1").await;
    other.assert_problem(422, "idempotency_key_reused");
    with_key(&api, &path, &body, "a b").await.assert_problem(400, "idempotency_key_invalid");
    assert_eq!(api.get(&path).await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_told_an_agent_is_refused_field_by_field() {
    let api = Api::start().await;
    let (_, _, path) = live(&api).await;
    for (body, field) in [
        (json!({ "text": "x" }), "kind"),
        (json!({ "kind": "shout", "text": "x" }), "kind"),
        (json!({ "kind": 1, "text": "x" }), "kind"),
        (json!({ "kind": "steer" }), "text"),
        (json!({ "kind": "queue", "text": null }), "text"),
        (json!({ "kind": "steer", "text": " \n" }), "text"),
        (json!({ "kind": "interrupt", "text": "" }), "text"),
        (json!({ "kind": "steer", "text": 1 }), "text"),
        (json!({ "kind": "steer", "text": "a\u{0}b" }), "text"),
        (json!({ "kind": "steer", "text": "x".repeat(INPUT_TEXT_BYTES + 1) }), "text"),
        (json!({ "kind": "steer", "text": "x", "when": "now" }), "when"),
    ] {
        let answer = api.post(&path, &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(answer.faults()[0].0, field, "{}", answer.text());
    }
    let longest = json!({ "kind": "steer", "text": "x".repeat(INPUT_TEXT_BYTES) });
    assert_eq!(api.post(&path, &longest).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_run_that_is_not_live_is_a_conflict_and_too_much_is_429() {
    let api = Api::start().await;
    let body = json!({ "kind": "steer", "text": "x" });
    let queued = api.queued().await;
    let path = format!("/v1/runs/{}/inputs", queued.id);
    api.post(&path, &body).await.assert_problem(409, "run_not_live");
    api.post(&format!("/v1/runs/{}/cancel", queued.id), &json!({})).await;
    let told = api.post(&path, &body).await;
    told.assert_problem(409, "run_not_live");
    assert!(told.text().contains("it has ended"), "{}", told.text());
    let (claimed, _, path) = live(&api).await;
    for _ in 0..RUN_INPUTS_PENDING {
        assert_eq!(api.post(&path, &body).await.status, StatusCode::ACCEPTED);
    }
    let full = api.post(&path, &body).await;
    full.assert_problem(429, "inputs_full");
    assert_eq!(full.header("retry-after"), "1");
    let interrupt = json!({ "kind": "interrupt" });
    assert_eq!(api.post(&path, &interrupt).await.status, StatusCode::ACCEPTED, "it can still be ended");
    api.post(&path, &interrupt).await.assert_problem(429, "inputs_full");
    api.finish(&claimed).await;
    let over = api.get(&path).await.json();
    assert!(over["items"].as_array().unwrap().iter().all(|input| input["state"] == "undelivered"));
}

#[tokio::test]
async fn inputs_want_the_scopes_and_the_project() {
    let mut api = Api::start().await;
    let (_, _, path) = live(&api).await;
    let body = json!({ "kind": "steer", "text": "x" });
    let all = api.key.clone();
    api.key = api.key_with(&[Scope::RunsRead]).await;
    api.post(&path, &body).await.assert_problem(403, "scope_missing");
    assert_eq!(api.get(&path).await.status, StatusCode::OK);
    api.key = all;
    api.key = api.other_projects_key().await;
    api.post(&path, &body).await.assert_problem(404, "unknown_run");
    api.get(&path).await.assert_problem(404, "unknown_run");
}
