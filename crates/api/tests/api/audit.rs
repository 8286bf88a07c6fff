//! The audit log over the API.

use axum::body::Body;
use caisson_domain::principal::Scope;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{Answer, Api};

async fn get_with(api: &Api, path: &str, key: &str) -> Answer {
    api.send(Request::builder().uri(path).header("x-api-key", key).body(Body::empty()).unwrap()).await
}

fn actions(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|item| item["action"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn who_cancelled_a_run_is_read_under_the_scope_audit() {
    let api = Api::start().await;
    let run = api.queued().await;
    let cancel = api.request(Method::POST, &format!("/v1/runs/{}/cancel", run.id));
    api.send(cancel.body(Body::empty()).unwrap()).await;
    let auditor = api.key_with(&[Scope::Audit]).await;
    let page = get_with(&api, &format!("/v1/audit?run={}", run.id), &auditor).await.json();
    assert_eq!(actions(&page), ["run.cancel", "run.create"]);
    let record = &page["items"][0];
    assert_eq!(
        (record["actor_name"].as_str(), record["subject"].as_str()),
        (Some("test"), Some(run.id.as_str()))
    );
    assert_eq!(record["session_id"], run.session.as_str());
    assert!(record["actor"].as_str().unwrap().starts_with("key_"));
    assert_eq!(record["prev_hash"], page["items"][1]["hash"]);
    let narrowed = get_with(&api, "/v1/audit?action=run.create&actor=operator", &auditor).await.json();
    assert_eq!(actions(&narrowed), Vec::<&str>::new());
    for scopes in [&[Scope::RunsRead, Scope::RunsWrite, Scope::Workflows, Scope::Credentials][..], &[]] {
        let key = api.key_with(scopes).await;
        get_with(&api, "/v1/audit", &key).await.assert_problem(403, "scope_missing");
    }
    get_with(&api, "/v1/runs", &auditor).await.assert_problem(403, "scope_missing");
}

#[tokio::test]
async fn the_log_is_paged_and_each_project_reads_its_own() {
    let api = Api::start().await;
    for _ in 0..4 {
        api.queued().await;
    }
    let mut seen = Vec::new();
    let mut path = "/v1/audit?limit=2".to_owned();
    for _ in 0..9 {
        let page = api.get(&path).await.json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["seq"].as_i64().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/audit?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, [5, 4, 3, 2, 1]);
    let other = api.other_projects_key().await;
    let page = get_with(&api, "/v1/audit", &other).await.json();
    assert_eq!(actions(&page), ["key.create"]);
    for bad in ["cursor=31", "cursor=x", "run=x", "limit=201", "since=1"] {
        api.get(&format!("/v1/audit?{bad}")).await.assert_problem(400, "invalid_query");
    }
}

#[tokio::test]
async fn callers_that_are_refused_are_counted_and_a_lack_of_scope_is_recorded_once_for_a_key_and_scope() {
    let api = Api::start().await;
    let reader = api.key_with(&[Scope::RunsRead]).await;
    for _ in 0..3 {
        get_with(&api, "/v1/audit", &reader).await.assert_problem(403, "scope_missing");
    }
    get_with(&api, "/v1/keys", &reader).await.assert_problem(403, "scope_missing");
    let wrong = format!("csk_{}", "0".repeat(64));
    for key in [wrong.as_str(), "no key"] {
        get_with(&api, "/v1/runs", key).await.assert_problem(401, "unauthenticated");
    }
    let page = get_with(&api, "/v1/audit?action=api.denied", &api.key).await.json();
    let told: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| json!([item["subject"], item["decision"], item["actor"] == page["items"][0]["actor"]]))
        .collect();
    assert_eq!(told, [json!(["admin", "denied", true]), json!(["audit", "denied", true])]);
    let metrics = get_with(&api, "/metrics", &api.key).await.text();
    for (reason, count) in [("key_refused", 2), ("scope_missing", 4)] {
        let line = format!("caisson_api_refused_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn tries_across_the_border_of_a_project_are_counted_and_recorded_once_for_a_key_and_reason() {
    let api = Api::start().await;
    let theirs = api.other_projects_key().await;
    for (path, code, times) in [
        ("/v1/servers", "default_project_only", 2),
        ("/v1/usage?project=default", "default_project_only", 1),
        ("/v1/usage?project=*", "default_project_only", 1),
        ("/metrics", "operators_only", 2),
    ] {
        for _ in 0..times {
            get_with(&api, path, &theirs).await.assert_problem(403, code);
        }
    }
    let page = get_with(&api, "/v1/audit?action=api.denied", &theirs).await.json();
    let told: Vec<_> = page["items"].as_array().unwrap().iter().map(|item| &item["subject"]).collect();
    assert_eq!(told, ["operators_only", "default_project_only"]);
    let metrics = get_with(&api, "/metrics", &api.key).await.text();
    for (reason, count) in [("default_project_only", 4), ("operators_only", 2)] {
        let line = format!("caisson_api_refused_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
    }
}
