//! Keys and scopes.

use std::io;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use caisson_domain::principal::Scope;
use http::{Method, Request, StatusCode};
use serde_json::json;

use crate::support::{Answer, Api, body, events_of, events_of_session};

async fn send_with(api: &Api, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_key_opens_the_api_as_a_bearer_token_or_in_a_header_of_its_own() {
    let api = Api::start().await;
    let bearer = format!("Bearer {}", api.key);
    for headers in [("authorization", bearer.as_str()), ("x-api-key", api.key.as_str())] {
        assert_eq!(send_with(&api, Method::GET, "/v1/runs", &[headers]).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn without_a_key_that_opens_something_nothing_is_told() {
    let api = Api::start().await;
    let unknown = format!("Bearer csk_{}", "0".repeat(64));
    let missing = send_with(&api, Method::GET, "/v1/runs", &[]).await;
    missing.assert_problem(401, "unauthenticated");
    assert_eq!(missing.header("www-authenticate"), "Bearer realm=\"caisson\"");
    for value in [unknown.as_str(), "Bearer x", "Basic eDp5", "Bearer", ""] {
        let answer = send_with(&api, Method::GET, "/v1/runs", &[("authorization", value)]).await;
        answer.assert_problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"caisson\", error=\"invalid_token\"");
    }
    let two = [("authorization", unknown.as_str()), ("x-api-key", api.key.as_str())];
    send_with(&api, Method::GET, "/v1/runs", &two).await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_revoked_key_opens_nothing() {
    let api = Api::start().await;
    let project = caisson_domain::id::ProjectId::default_project();
    let (id, key) = api.store.create_api_key(&project, "gone", &[Scope::Admin]).await.unwrap();
    let headers = [("x-api-key", key.expose())];
    assert_eq!(send_with(&api, Method::GET, "/v1/runs", &headers).await.status, StatusCode::OK);
    assert!(api.store.revoke_api_key(&id).await.unwrap());
    send_with(&api, Method::GET, "/v1/runs", &headers).await.assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_key_does_only_what_its_scopes_say() {
    let api = Api::start().await;
    let run = api.queued().await;
    let cancel = format!("/v1/runs/{}/cancel", run.id);
    let reader = api.key_with(&[Scope::RunsRead]).await;
    let writer = api.key_with(&[Scope::RunsWrite]).await;
    let read = [("x-api-key", reader.as_str())];
    let write = [("x-api-key", writer.as_str())];
    assert_eq!(send_with(&api, Method::GET, "/v1/runs", &read).await.status, StatusCode::OK);
    let refused = send_with(&api, Method::POST, &cancel, &read).await;
    refused.assert_problem(403, "scope_missing");
    assert_eq!(refused.header("www-authenticate"), "Bearer realm=\"caisson\", error=\"insufficient_scope\"");
    assert!(refused.json()["detail"].as_str().unwrap().contains("runs:write"));
    send_with(&api, Method::GET, "/v1/runs", &write).await.assert_problem(403, "scope_missing");
    let mut create = api.json_request("/v1/runs", &body());
    create.headers_mut().insert("authorization", format!("Bearer {reader}").parse().unwrap());
    api.send(create).await.assert_problem(403, "scope_missing");
    assert_eq!(send_with(&api, Method::POST, &cancel, &write).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn another_projects_key_sees_and_touches_nothing() {
    let api = Api::start().await;
    let run = api.finished(1).await;
    let live = api.queued().await;
    let other = api.other_projects_key().await;
    let headers = [("x-api-key", other.as_str())];
    for path in [
        format!("/v1/runs/{}", run.id),
        events_of(&run.id),
        format!("/v1/runs/{}/diff", run.id),
        format!("/v1/runs/{}/artifacts", run.id),
        format!("/v1/runs/{}/artifacts/x", run.id),
    ] {
        send_with(&api, Method::GET, &path, &headers).await.assert_problem(404, "unknown_run");
    }
    for path in [format!("/v1/sessions/{}", run.session), events_of_session(&run.session)] {
        send_with(&api, Method::GET, &path, &headers).await.assert_problem(404, "unknown_session");
    }
    send_with(&api, Method::GET, "/v1/workflows/fix", &headers).await.assert_problem(404, "unknown_workflow");
    let cancel = format!("/v1/runs/{}/cancel", live.id);
    send_with(&api, Method::POST, &cancel, &headers).await.assert_problem(404, "unknown_run");
    assert_eq!(api.get(&format!("/v1/runs/{}", live.id)).await.json()["status"], "queued");
    for path in ["/v1/runs", "/v1/sessions", "/v1/workflows", &format!("/v1/runs?session={}", run.session)] {
        assert_eq!(send_with(&api, Method::GET, path, &headers).await.json()["items"], json!([]), "{path}");
    }
    let mut create = api.json_request("/v1/runs", &body());
    create.headers_mut().insert("authorization", format!("Bearer {other}").parse().unwrap());
    api.send(create).await.assert_problem(422, "unknown_workflow");
}

#[tokio::test]
async fn an_idempotency_key_of_another_project_is_another_key() {
    let api = Api::start().await;
    let other = api.other_projects_key().await;
    let project = "other".parse().unwrap();
    let workflow =
        api.store.workflow(&caisson_domain::id::ProjectId::default_project(), "fix").await.unwrap();
    api.store.put_workflow(&project, &workflow.unwrap().workflow).await.unwrap();
    let ours = api.post_with_key("k1", &body()).await;
    let mut request = api.json_request("/v1/runs", &body());
    request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
    request.headers_mut().insert("authorization", format!("Bearer {other}").parse().unwrap());
    let theirs = api.send(request).await;
    assert_eq!(theirs.status, StatusCode::ACCEPTED);
    assert_ne!(ours.json()["id"], theirs.json()["id"]);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_key_in_the_query_opens_nothing_and_no_key_prompt_or_body_reaches_the_log() {
    let api = Api::start().await;
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    for name in ["api_key", "key", "access_token", "x-api-key"] {
        let path = format!("/v1/runs?{name}={}", api.key);
        send_with(&api, Method::GET, &path, &[]).await.assert_problem(401, "unauthenticated");
        let answer = api.get(&path).await;
        answer.assert_problem(400, "invalid_query");
        assert!(!answer.text().contains(&api.key));
    }
    send_with(&api, Method::GET, &format!("/v1/{}", api.key), &[]).await.assert_problem(404, "unknown_route");
    let run = body().as_object().map(|_| json!({"workflow": "fix", "prompt": "the-secret-prompt"})).unwrap();
    assert_eq!(api.post("/v1/runs", &run).await.status, StatusCode::ACCEPTED);
    api.post("/v1/runs", &json!({"prompt": "the-secret-prompt"})).await.assert_problem(422, "missing_field");
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("answered GET /v1/runs with 401"), "{text}");
    assert!(text.contains("accepted run run_"), "{text}");
    assert!(!text.contains(&api.key), "{text}");
    assert!(!text.contains("the-secret-prompt"), "{text}");
}
