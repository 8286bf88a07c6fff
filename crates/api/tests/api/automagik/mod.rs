//! The Automagik-compatible API, line by line of what its published clients need.

mod agents;
mod auth;
mod clients;
mod lines;
mod listing;
mod live;
mod running;
mod sessions;
mod status;
mod users;

use axum::body::Body;
use caisson_domain::id::ProjectId;
use caisson_domain::workflow::Workflow;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{Answer, Api, REPOSITORY};

/// The prefixes of both kinds of clients.
const PREFIXES: [&str; 2] = ["/api/v1/workflows/claude-code", "/api/v1/agent/claude-code"];
/// The prefix of most tests.
const FIRST: &str = PREFIXES[0];
/// The same of the second client.
const SECOND: &str = "/automagik-v2/api/v1/workflows/claude-code";

const BUG_FIXER: &str = "---\nname: bug-fixer\ndescription: Fixes bugs.\nmaxTurns: 50\n---\nFix it.\n";

/// An API with a workflow of the aliases.
async fn api() -> Api {
    let api = Api::start().await;
    let workflow = Workflow::parse(BUG_FIXER).unwrap();
    api.store.put_workflow(&ProjectId::default_project(), &workflow).await.unwrap();
    api
}

/// A task that can be accepted.
fn task() -> Value {
    json!({ "message": "Fix the session timeout", "repository_url": REPOSITORY })
}

fn task_with(changes: &Value) -> Value {
    let mut body = task();
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Starts a run below `prefix` and gives its answer.
async fn started(api: &Api, prefix: &str, body: &Value) -> Value {
    let answer = api.post(&format!("{prefix}/run/bug-fixer"), body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// A request without a key.
async fn bare(api: &Api, path: &str, header: Option<(&str, &str)>) -> Answer {
    let request = Request::builder().uri(path);
    let request = match header {
        Some((name, value)) => request.header(name, value),
        None => request,
    };
    api.send(request.body(Body::empty()).unwrap()).await
}

async fn send(api: &Api, method: Method, path: &str, body: &Value) -> Answer {
    let request = api.request(method, path).header("content-type", "application/json");
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

/// How many runs there are.
async fn runs(api: &Api) -> i64 {
    api.get(&format!("{FIRST}/runs")).await.json()["total_count"].as_i64().unwrap()
}

/// The answer with what differs from run to run taken out.
fn steady(answer: &Answer) -> Value {
    let mut steady = answer.steady();
    steady_value(&mut steady);
    steady
}

fn steady_value(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "request_id" | "kill_duration_ms" | "cleanup_duration_ms" | "version" => {
                        *value = json!("[it]");
                    }
                    _ => steady_value(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(steady_value),
        Value::String(text) => {
            if let Some((before, short)) = text.rsplit_once("caisson/bug-fixer/") {
                assert_eq!(short.len(), 8, "{text}");
                *text = format!("{before}caisson/bug-fixer/[id]");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[tokio::test]
async fn it_is_served_unless_it_is_switched_off() {
    let api = Api::with(|config| config.without_automagik = true).await;
    for path in ["/api/v1/agents", "/automagik-v2/api/v1/agents", "/health", "/"] {
        assert_eq!(api.get(path).await.status, 404, "{path}");
    }
    let document = api.get("/v1/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.keys().all(|path| !path.starts_with("/api/")), "{:?}", paths.keys());
    assert_eq!(self::api().await.get("/api/v1/agents").await.status, 200);
}
