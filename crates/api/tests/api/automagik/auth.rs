//! Keys: where they may be, what is said without one, and that none reaches a log.

use std::io;
use std::sync::{Arc, Mutex};

use caisson_domain::principal::Scope;
use http::Method;
use serde_json::json;

use super::{FIRST, PREFIXES, SECOND, api, bare, send, steady, task};

const WRONG: &str = "namastex888";

#[tokio::test]
async fn a_key_is_taken_from_header_query_or_bearer() {
    let api = api().await;
    for prefix in PREFIXES.iter().chain([&SECOND]) {
        let path = format!("{prefix}/workflows");
        let key = api.key.clone();
        let bearer = format!("Bearer {key}");
        for (path, header) in [
            (path.clone(), Some(("x-api-key", key.as_str()))),
            (path.clone(), Some(("X-API-Key", key.as_str()))),
            (path.clone(), Some(("authorization", bearer.as_str()))),
            (format!("{path}?x-api-key={key}"), None),
            (format!("{path}?X-API-KEY={key}"), None),
        ] {
            assert_eq!(bare(&api, &path, header).await.status, 200, "{header:?}");
        }
        let both = format!("{path}?x-api-key={}", "csk_".to_owned() + &"0".repeat(64));
        assert_eq!(bare(&api, &both, Some(("x-api-key", &key))).await.status, 401, "two different keys");
    }
    assert_eq!(
        bare(&api, &format!("/v1/runs?x-api-key={}", api.key), None).await.status,
        401,
        "not natively"
    );
}

#[tokio::test]
async fn without_a_key_and_with_a_wrong_one_the_answers_say_what_upstreams_do() {
    let api = api().await;
    for path in [format!("{FIRST}/workflows"), format!("{SECOND}/workflows"), "/api/v1/sessions".to_owned()] {
        let missing = bare(&api, &path, None).await;
        assert_eq!(missing.status, 401);
        assert!(missing.text().contains("x-api-key is missing"), "{}", missing.text());
        let wrong = bare(&api, &path, Some(("x-api-key", WRONG))).await;
        assert_eq!(wrong.status, 401);
        assert!(wrong.text().contains("Invalid API"), "{}", wrong.text());
        assert_eq!(bare(&api, &format!("{path}?x-api-key={WRONG}"), None).await.status, 401);
    }
    let path = format!("{FIRST}/workflows");
    insta::assert_json_snapshot!("key_missing", steady(&bare(&api, &path, None).await));
    insta::assert_json_snapshot!("key_wrong", steady(&bare(&api, &path, Some(("x-api-key", WRONG))).await));
}

#[tokio::test]
async fn scopes_hold_as_they_do_natively() {
    let mut api = api().await;
    api.key = api.key_with(&[Scope::RunsRead]).await;
    for path in [format!("{FIRST}/runs"), "/api/v1/users".to_owned(), format!("{FIRST}/health")] {
        assert_eq!(api.get(&path).await.status, 200, "{path}");
    }
    for (method, path) in [
        (Method::POST, format!("{FIRST}/run/bug-fixer")),
        (Method::POST, format!("{FIRST}/bug-fixer/run")),
        (Method::POST, format!("{FIRST}/run/x/kill")),
        (Method::POST, format!("{FIRST}/run/x/cleanup")),
        (Method::POST, format!("{FIRST}/run/x/add-message")),
        (Method::POST, "/api/v1/agent/claude-code/run".to_owned()),
        (Method::POST, "/api/v1/agent/claude-code/run/async".to_owned()),
        (Method::POST, "/api/v1/users".to_owned()),
        (Method::PUT, "/api/v1/users/x".to_owned()),
        (Method::DELETE, "/api/v1/users/x".to_owned()),
        (Method::DELETE, "/api/v1/sessions/x".to_owned()),
        (Method::DELETE, "/api/v1/messages/x".to_owned()),
    ] {
        let answer = send(&api, method.clone(), &path, &task()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["code"]),
            (403, &json!("scope_missing")),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn other_projects_runs_sessions_and_users_are_not_there() {
    let mut api = api().await;
    let run = super::started(&api, FIRST, &task()).await;
    let user = send(&api, Method::POST, "/api/v1/users", &json!({"email": "a@b"})).await.json();
    api.key = api.other_projects_key().await;
    let (id, session) = (run["run_id"].as_str().unwrap(), run["session_id"].as_str().unwrap());
    for path in [
        format!("{FIRST}/run/{id}/status"),
        format!("{FIRST}/run/{session}/status"),
        format!("{FIRST}/run/{id}/message-queue"),
        format!("/api/v1/run/{id}/status"),
        format!("/api/v1/sessions/{session}"),
        format!("/api/v1/messages/msg_{}_1", &session[4..]),
        format!("/api/v1/users/{}", user["id"].as_str().unwrap()),
        "/api/v1/users/a@b".to_owned(),
    ] {
        assert_eq!(api.get(&path).await.status, 404, "{path}");
    }
    for path in [format!("{FIRST}/run/{id}/kill"), format!("{FIRST}/run/{id}/cleanup")] {
        assert_eq!(api.post(&path, &json!({})).await.status, 404, "{path}");
    }
    for (path, field) in [(format!("{FIRST}/runs"), "runs"), ("/api/v1/sessions".to_owned(), "sessions")] {
        assert_eq!(api.get(&path).await.json()[field], json!([]), "{path}");
    }
    let listed = api.get(&format!("/api/v1/messages?session_id={session}")).await.json();
    assert_eq!(listed["messages"], json!([]));
    let goes_on = super::task_with(&json!({ "session_id": session }));
    assert_eq!(api.post(&format!("{FIRST}/run/fix"), &goes_on).await.status, 404);
}

/// Whatever is logged.
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
async fn keys_in_queries_and_headers_reach_no_log_and_no_answer() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let api = api().await;
    for prefix in [FIRST, SECOND] {
        for key in [api.key.as_str(), WRONG] {
            for path in [
                format!("{prefix}/runs?x-api-key={key}"),
                format!("{prefix}/runs?status={key}&x-api-key={key}"),
                format!("{prefix}/nothing?x-api-key={key}"),
            ] {
                let answer = bare(&api, &path, Some(("x-api-key", key))).await;
                assert!(path.contains("status=") || !answer.text().contains(key), "{}", answer.text());
            }
        }
    }
    let written = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(written.contains("answered GET"), "{written}");
    assert!(!written.contains(&api.key) && !written.contains(WRONG), "{written}");
}
