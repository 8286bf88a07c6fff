//! One request and its answer for each line of what a drop-in replacement must accept, of what the published clients really do,
//! and of upstream's own acceptance checks: status and shape, as snapshots. What a value must be beyond its kind is in the
//! tests beside this one.

use axum::body::Body;
use caisson_domain::id::ProjectId;
use caisson_domain::queue::QueueLimits;
use caisson_domain::workflow::Workflow;
use http::{Method, Request};
use serde_json::{Value, json};

use super::{FIRST, PREFIXES, SECOND, api, task, task_with};
use crate::support::{Answer, Api};

/// What a value is made of: names and kinds, and of a list its first entry.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
        Value::Array(items) => items.first().map_or_else(|| json!([]), |first| json!([shape(first)])),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// Answers in the order of the lines.
#[derive(Default)]
struct Lines(Vec<Value>);

impl Lines {
    fn add(&mut self, line: &str, answer: &Answer) {
        let body =
            serde_json::from_slice(&answer.body).map_or_else(|_| json!("no JSON"), |body| shape(&body));
        let mut told = json!({ "line": line, "status": answer.status.as_u16(), "body": body });
        if !answer.header("retry-after").is_empty() {
            told["retry_after"] = json!(answer.header("retry-after"));
        }
        self.0.push(told);
    }

    async fn get(&mut self, api: &Api, line: &str, path: &str) -> Value {
        let answer = api.get(path).await;
        self.add(line, &answer);
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }

    async fn post(&mut self, api: &Api, line: &str, path: &str, body: &Value) -> Value {
        // No two runs are made at one time: a list would tell them in either order.
        api.clock.advance(1);
        let answer = api.post(path, body).await;
        self.add(line, &answer);
        serde_json::from_slice(&answer.body).unwrap_or_default()
    }
}

/// A task that no other line asks for, so that none is taken for a repetition.
fn new_task(user: &str) -> Value {
    task_with(&json!({ "user_id": user }))
}

async fn with_key(api: &Api, path: &str, key: Option<(&str, &str)>) -> Answer {
    let request = Request::builder().uri(path);
    let request = key.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    api.send(request.body(Body::empty()).unwrap()).await
}

#[expect(clippy::too_many_lines, reason = "a table of requests, in the order of the lines")]
#[tokio::test]
async fn each_line_of_what_a_replacement_must_accept_has_its_answer() {
    let api = api().await;
    let mut lines = Lines::default();
    let [workflows, agent] = PREFIXES;
    lines.post(&api, "8.1 run", &format!("{workflows}/run/bug-fixer"), &new_task("1")).await;
    lines.post(&api, "8.1 run of the early prefix", &format!("{agent}/bug-fixer/run"), &new_task("2")).await;
    let named = task_with(&json!({ "user_id": "3", "workflow_name": "bug-fixer" }));
    lines.post(&api, "8.1 run with the workflow in the body", "/api/v1/agent/claude-code/run", &named).await;
    for (name, prefix) in [("", workflows), (" of the early prefix", agent)] {
        lines.get(&api, &format!("8.2 workflows{name}"), &format!("{prefix}/workflows")).await;
        lines.get(&api, &format!("8.2 manage{name}"), &format!("{prefix}/manage")).await;
    }
    let health = format!("{FIRST}/health");
    let bearer = format!("Bearer {}", api.key);
    for (line, path, key) in [
        ("8.3 no key", health.clone(), None),
        ("8.3 wrong key", health.clone(), Some(("x-api-key", "wrong"))),
        ("8.3 x-api-key", health.clone(), Some(("x-api-key", api.key.as_str()))),
        ("8.3 X-API-Key", health.clone(), Some(("X-API-Key", api.key.as_str()))),
        ("8.3 ?x-api-key=", format!("{health}?x-api-key={}", api.key), None),
        ("8.3 Authorization: Bearer", health.clone(), Some(("authorization", bearer.as_str()))),
    ] {
        let answer = with_key(&api, &path, key).await;
        lines.add(line, &answer);
    }
    let run = lines.post(&api, "8.4, 8.6 run", &format!("{FIRST}/run/bug-fixer"), &new_task("4")).await;
    let (id, session) = (run["run_id"].as_str().unwrap(), run["session_id"].as_str().unwrap());
    let of_run = format!("{FIRST}/run/{id}");
    lines.post(&api, "8.4 unknown workflow", &format!("{FIRST}/run/no-such"), &task()).await;
    lines.get(&api, "8.4 unknown run", &format!("{FIRST}/run/run_0123456789ab/status")).await;
    let both = task_with(&json!({ "temp_workspace": true }));
    lines.post(&api, "8.4 bad combination", &format!("{FIRST}/run/bug-fixer"), &both).await;
    lines.get(&api, "8.4 bad filter", &format!("{FIRST}/runs?sort_by=x")).await;
    for (line, body) in [
        ("8.4 empty body", json!({})),
        ("8.4 max_turns 0", task_with(&json!({ "max_turns": 0 }))),
        ("8.4 timeout 30", task_with(&json!({ "timeout": 30 }))),
    ] {
        lines.post(&api, line, &format!("{FIRST}/run/bug-fixer"), &body).await;
    }
    let flags = "persistent=true&auto_merge=false&temp_workspace=false&unknown=1";
    lines
        .post(&api, "8.5 flags in the query", &format!("{FIRST}/run/bug-fixer?{flags}"), &new_task("5"))
        .await;
    let all = json!({
        "user_id": "6d0b6f0e-1d0a-4c53-9b63-4d4b6c5f7a01", "persistent": true, "auto_merge": false, "temp_workspace": false,
        "timeout": 14400, "max_turns": 200, "input_format": "text", "session_id": "no-uuid", "session_name": null,
        "create_pr_on_success": true, "pr_title": "t", "pr_body": "b", "unknown": {},
    });
    lines.post(&api, "8.5 everything in the body", &format!("{FIRST}/run/bug-fixer"), &task_with(&all)).await;
    lines.get(&api, "8.7 status", &format!("{of_run}/status?debug=false&detailed=true&enhanced=true")).await;
    lines.get(&api, "8.7 status of the early prefix", &format!("{agent}/run/{id}/status")).await;
    lines.get(&api, "8.7 enhanced-status", &format!("{of_run}/enhanced-status")).await;
    lines.get(&api, "8.8 runs", &format!("{FIRST}/runs?status=pending&page=1&page_size=2")).await;
    for word in ["killed", "timeout"] {
        lines.get(&api, &format!("8.8 runs that are {word}"), &format!("{FIRST}/runs?status={word}")).await;
    }
    let message = json!({ "message_type": "user", "content": "Mind the tests." });
    lines.post(&api, "8.9 add-message", &format!("{of_run}/add-message"), &message).await;
    let message = json!({ "message": "And the docs." });
    lines.post(&api, "8.9 inject-message", &format!("{of_run}/inject-message"), &message).await;
    lines.get(&api, "8.9 message-queue", &format!("{of_run}/message-queue")).await;
    lines.post(&api, "8.9 cleanup too early", &format!("{of_run}/cleanup"), &json!({})).await;
    lines.post(&api, "8.9 kill", &format!("{of_run}/kill?force=false"), &json!({})).await;
    lines.post(&api, "8.9 cleanup", &format!("{of_run}/cleanup?force=true"), &json!({})).await;
    lines.get(&api, "8.9 health", &health).await;
    for path in ["sessions", "users", "agents", "agent/list", "agent/claude-code", "agent/claude_code"] {
        lines.get(&api, &format!("8.10 {path}"), &format!("/api/v1/{path}")).await;
    }
    lines.get(&api, "8.10 a session", &format!("/api/v1/sessions/{session}")).await;
    lines.get(&api, "8.10 messages", &format!("/api/v1/messages?session_id={session}")).await;
    let wish = json!({ "message_content": "Say hello" });
    let started = lines.post(&api, "8.10 agent run", "/api/v1/agent/claude_code/run/async", &wish).await;
    let path = format!("/api/v1/run/{}/status", started["run_id"].as_str().unwrap());
    lines.get(&api, "8.10 its status", &path).await;
    let alias = new_task("7");
    let run = lines.post(&api, "8.11 alias of an old name", &format!("{FIRST}/run/surgeon"), &alias).await;
    assert_eq!(run["workflow_name"], "surgeon");
    api.store.bound_queue(QueueLimits { max_queued_per_project: Some(1), ..QueueLimits::default() });
    lines.post(&api, "8.4 full queue", &format!("{FIRST}/run/bug-fixer"), &new_task("8")).await;
    insta::assert_json_snapshot!("lines_of_a_replacement", lines.0);
}

#[tokio::test]
async fn each_line_of_what_the_clients_really_do_has_its_answer() {
    let api = api().await;
    let mut lines = Lines::default();
    for (name, prefix) in [("up to 0.3.10", PREFIXES[1]), ("0.5.5 to 0.9.1", FIRST), ("the second", SECOND)] {
        lines.get(&api, &format!("10.1 {name}"), &format!("{prefix}/workflows")).await;
    }
    let health = lines.get(&api, "10.2, 10.8 health", &format!("{SECOND}/health")).await;
    for alias in ["surgeon", "fix"] {
        assert_eq!(health["workflows"][alias], true, "{health}");
    }
    // As its client sends it: everything in the body, a user of the moment, the longest time.
    let wish = task_with(&json!({
        "workflow_name": "surgeon", "timeout": 14400, "persistent": true, "auto_merge": false, "temp_workspace": false,
        "user_id": "0a8b0e58-6f0b-45d4-a9a2-8f0ad2f2f9a4", "epic_name": "epic", "session_name": "epic",
    }));
    let mut alone = wish.clone();
    alone.as_object_mut().unwrap().remove("repository_url");
    alone["temp_workspace"] = json!(true);
    lines.post(&api, "10.9 a temporary workspace", &format!("{SECOND}/run/surgeon"), &alone).await;
    let started = lines.post(&api, "10.9 run", &format!("{SECOND}/run/surgeon"), &wish).await;
    let again = lines.post(&api, "10.11 the same again", &format!("{SECOND}/run/surgeon"), &wish).await;
    assert_eq!(again["run_id"], started["run_id"]);
    let (id, session) = (started["run_id"].as_str().unwrap(), started["session_id"].as_str().unwrap());
    let of_run = format!("{SECOND}/run/{id}");
    let shown = lines.get(&api, "10.4, 10.5 status", &format!("{of_run}/status")).await;
    assert_eq!(shown["session_id"], started["session_id"]);
    let by_session =
        lines.get(&api, "10.12 status of a session", &format!("{SECOND}/run/{session}/status")).await;
    assert_eq!(by_session["run_id"], started["run_id"]);
    lines.get(&api, "10.4 runs", &format!("{SECOND}/runs")).await;
    lines.get(&api, "10.6, 10.7 runs of the first", &format!("{FIRST}/runs?page_size=1")).await;
    let killed = lines.post(&api, "10.3 kill", &format!("{of_run}/kill"), &json!({})).await;
    assert_eq!(killed["status"], "cancelled");
    let first = format!("{FIRST}/run/{id}");
    let killed = lines.get(&api, "10.3 status for the first", &format!("{first}/status")).await;
    assert_eq!(killed["status"], "killed");
    lines.post(&api, "10.12 cleanup", &format!("{of_run}/cleanup"), &json!({})).await;
    for status in ["10.10 no redirect", "10.13 a slash behind"] {
        let path =
            if status.starts_with("10.10") { format!("{FIRST}/runs") } else { format!("{FIRST}/runs/") };
        let answer = api.get(&path).await;
        assert!(!answer.status.is_redirection(), "{path}");
        lines.add(status, &answer);
    }
    lines.get(&api, "10.13 /", "/").await;
    lines.get(&api, "10.13 agent/list", "/api/v1/agent/list").await;
    let request = api.request(Method::POST, "/api/v1/agent/claude-code/run").body(Body::empty()).unwrap();
    let answer = api.send(request).await;
    lines.add("10.13 no body", &answer);
    let wish = json!({ "message_content": "Say hello", "context": "a text" });
    lines.post(&api, "10.13 context is a text", "/api/v1/agent/claude-code/run/async", &wish).await;
    let named = task_with(&json!({ "workflow_name": "bug-fixer", "user_id": "14" }));
    let run = lines.post(&api, "10.14 workflow_name", "/api/v1/agent/claude-code/run", &named).await;
    assert_eq!(run["status"], "pending", "it does not wait for an end");
    insta::assert_json_snapshot!("lines_of_the_clients", lines.0);
}

/// Everything that the second client can start, as its own enumeration has it, and what that means here.
const STARTABLE: [(&str, &str); 9] = [
    ("brain", "code-task"),
    ("builder", "code-task"),
    ("genie", "code-task"),
    ("shipper", "pr-reviewer"),
    ("surgeon", "bug-fixer"),
    ("guardian", "pr-reviewer"),
    ("lina", "code-task"),
    ("flashinho_thinker", "code-task"),
    ("claude", "code-task"),
];

#[tokio::test]
async fn each_name_that_the_second_client_can_start_is_healthy_starts_and_is_told_again() {
    let api = api().await;
    for name in ["pr-reviewer", "code-task"] {
        let workflow = format!("---\nname: {name}\ndescription: Works.\n---\nWork.\n");
        let workflow = Workflow::parse(&workflow).unwrap();
        api.store.put_workflow(&ProjectId::default_project(), &workflow).await.unwrap();
    }
    let health = api.get(&format!("{SECOND}/health")).await.json();
    for (name, workflow) in STARTABLE {
        assert_eq!(health["workflows"][name], true, "{name}: {health}");
        let wish = task_with(&json!({
            "workflow_name": name, "timeout": 14400, "persistent": true, "auto_merge": false, "temp_workspace": false,
            "user_id": format!("of {name}"), "session_name": name,
        }));
        let started = api.post(&format!("{SECOND}/run/{name}"), &wish).await;
        assert_eq!(started.status, 200, "{name}: {}", started.text());
        let started = started.json();
        assert_eq!(started["workflow_name"], name, "{started}");
        let id = started["run_id"].as_str().unwrap();
        let shown = api.get(&format!("{SECOND}/run/{id}/status")).await.json();
        assert_eq!(shown["workflow_name"], name, "{shown}");
        let native = api.get(&format!("/v1/runs/{id}")).await.json();
        assert_eq!(native["workflow"], workflow, "{name}");
        let listed = api.get(&format!("{SECOND}/runs?workflow_name={name}")).await.json();
        assert_eq!((&listed["total"], &listed["runs"][0]["run_id"]), (&json!(1), &json!(id)), "{listed}");
    }
}

#[tokio::test]
async fn each_of_upstreams_own_acceptance_checks_has_its_answer() {
    let api = api().await;
    let mut lines = Lines::default();
    let run = format!("{FIRST}/run/bug-fixer");
    let health = format!("{FIRST}/health");
    let missing = with_key(&api, &health, None).await;
    assert!(missing.text().contains("x-api-key") && missing.text().contains("missing"), "{}", missing.text());
    lines.add("no key", &missing);
    let wrong = with_key(&api, &health, Some(("x-api-key", "wrong"))).await;
    assert!(wrong.text().contains("Invalid API"), "{}", wrong.text());
    lines.add("wrong key", &wrong);
    let by_query = with_key(&api, &format!("{health}?x-api-key={}", api.key), None).await;
    lines.add("key in the query", &by_query);
    lines.post(&api, "unknown workflow", &format!("{FIRST}/run/nonexistent_workflow"), &task()).await;
    for (name, id) in [("unknown", "run_nonexistent123"), ("odd", "invalid-run-id!@%23"), ("spaced", "%20")] {
        lines.get(&api, &format!("{name} run id"), &format!("{FIRST}/run/{id}/status")).await;
    }
    for (name, body) in [
        ("empty body", json!({})),
        ("no message", json!({ "max_turns": 10 })),
        ("max_turns 0", task_with(&json!({ "max_turns": 0 }))),
        ("timeout 30", task_with(&json!({ "timeout": 30 }))),
        ("max_turns 200", task_with(&json!({ "max_turns": 200 }))),
        ("max_turns 201", task_with(&json!({ "max_turns": 201 }))),
        ("10 000 characters", task_with(&json!({ "message": "A".repeat(10_000) }))),
        ("CJK", task_with(&json!({ "message": "测试中文消息" }))),
        ("emoji", task_with(&json!({ "message": "🚀 🧪 ✨" }))),
        ("new lines", task_with(&json!({ "message": "one\ntwo\r\n\tthree" }))),
        ("max_turns 1", task_with(&json!({ "max_turns": 1 }))),
        ("max_turns 100", task_with(&json!({ "max_turns": 100 }))),
        ("invalid session_id", task_with(&json!({ "session_id": "invalid-session-id" }))),
        ("session_name of 500 characters", task_with(&json!({ "session_name": "x".repeat(500) }))),
    ] {
        lines.post(&api, name, &run, &body).await;
    }
    let many = futures_util::future::join_all((0..5).map(|_| api.get(&health))).await;
    for answer in &many {
        lines.add("one of five at once", answer);
    }
    insta::assert_json_snapshot!("lines_of_upstreams_checks", lines.0);
}
