//! Starting runs: both prefixes and all forms, what a body may hold, and requests that are sent again.

use caisson_domain::id::ProjectId;
use caisson_domain::workflow::Workflow;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{FIRST, PREFIXES, SECOND, api, runs, send, started, steady, task, task_with};
use crate::support::{Api, REPOSITORY};

async fn status_of(api: &Api, body: &Value) -> StatusCode {
    api.post(&format!("{FIRST}/run/bug-fixer"), body).await.status
}

#[tokio::test]
async fn a_run_is_started_by_every_form_of_every_generation_with_200() {
    let api = api().await;
    let with_workflow = task_with(&json!({ "workflow_name": "bug-fixer" }));
    let mut forms: Vec<(String, Value)> = Vec::new();
    for prefix in PREFIXES.iter().chain([&SECOND]) {
        forms.push((format!("{prefix}/run/bug-fixer"), task()));
        forms.push((format!("{prefix}/bug-fixer/run"), task()));
    }
    forms.push(("/api/v1/agent/claude-code/run".to_owned(), with_workflow.clone()));
    forms.push(("/api/v1/agent/claude_code/run".to_owned(), with_workflow));
    for (number, (path, body)) in forms.iter().enumerate() {
        let mut body = body.clone();
        body["user_id"] = json!(number.to_string());
        let answer = api.post(path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let run = answer.json();
        assert_eq!(
            (&run["status"], &run["workflow_name"]),
            (&json!("pending"), &json!("bug-fixer")),
            "{path}"
        );
        assert_eq!(runs(&api).await, i64::try_from(number).unwrap() + 1, "{path}");
    }
    let answer = api.post(&format!("{FIRST}/run/surgeon"), &task()).await;
    insta::assert_json_snapshot!("started", steady(&answer));
    let native = api.get(&format!("/v1/runs/{}", answer.json()["run_id"].as_str().unwrap())).await.json();
    assert_eq!(native["workflow"], "bug-fixer", "an alias is a name of a workflow");
}

#[tokio::test]
async fn workflows_and_aliases_are_listed_by_both_names_of_the_list() {
    let api = api().await;
    for prefix in PREFIXES {
        let listed = api.get(&format!("{prefix}/workflows")).await;
        assert_eq!(listed.status, 200);
        assert_eq!(listed.body, api.get(&format!("{prefix}/manage")).await.body);
        let listed = listed.json();
        let named = |name: &str| listed.as_array().unwrap().iter().find(|item| item["name"] == name).cloned();
        for name in ["bug-fixer", "fix", "surgeon"] {
            let item = named(name).unwrap();
            assert!(
                item["description"].is_string() && item["path"].is_string() && item["valid"] == true,
                "{item}"
            );
        }
        assert_eq!(named("guardian"), None, "its workflow is not there");
    }
    insta::assert_json_snapshot!("workflows", steady(&api.get(&format!("{FIRST}/workflows")).await));
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let api = api().await;
    for prefix in PREFIXES {
        let answer = api.post(&format!("{prefix}/run/no-such"), &task()).await;
        assert_eq!(answer.status, 404);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("Workflow 'no-such' not found. Available: ['bug-fixer'"), "{detail}");
        for id in ["run_0123456789ab", "x", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "..%2f", "%00"] {
            let status = api.get(&format!("{prefix}/run/{id}/status")).await.status;
            assert_eq!(status, 404, "{id}");
        }
    }
    assert_eq!(api.get("/api/v1/no/such/route").await.json()["code"], "unknown_route");
    assert_eq!(api.get("/api/v1/other/claude-code/runs").await.status, 404);
}

#[tokio::test]
async fn a_body_that_cannot_be_used_is_422_with_a_list() {
    let api = api().await;
    let path = format!("{FIRST}/run/bug-fixer");
    for (body, field) in [
        (json!({}), "message"),
        (json!({ "message": null }), "message"),
        (json!({ "message": "  " }), "message"),
        (json!({ "message": 1 }), "message"),
        (task_with(&json!({ "max_turns": 0 })), "max_turns"),
        (task_with(&json!({ "max_turns": 201 })), "max_turns"),
        (task_with(&json!({ "timeout": 30 })), "timeout"),
        (task_with(&json!({ "timeout": 59 })), "timeout"),
        (task_with(&json!({ "timeout": 14401 })), "timeout"),
        (task_with(&json!({ "input_format": "xml" })), "input_format"),
        (task_with(&json!({ "persistent": "maybe" })), "persistent"),
        (task_with(&json!({ "session_name": "x".repeat(501) })), "session_name"),
        (task_with(&json!({ "user_id": "x".repeat(501) })), "user_id"),
        (task_with(&json!({ "repository_url": "file:///etc" })), "repository_url"),
        (task_with(&json!({ "repository_url": "https://elsewhere.example/x.git" })), "repository_url"),
        (task_with(&json!({ "git_branch": "--upload-pack=x" })), "git_branch"),
    ] {
        let answer = api.post(&path, &body).await;
        assert_eq!(answer.status, 422, "{body}");
        let detail = answer.json()["detail"].clone();
        assert_eq!(detail[0]["loc"], json!(["body", field]), "{detail}");
        assert!(detail[0]["msg"].is_string() && detail[0]["type"].is_string(), "{detail}");
    }
    for body in ["", "not json", "[]", "\"x\"", "{\"message\":\"a\",\"message\":\"b\"}"] {
        let request = api.request(Method::POST, &path).body(axum::body::Body::from(body)).unwrap();
        assert_eq!(api.send(request).await.status, 422, "{body}");
    }
    let flag = api.post(&format!("{path}?persistent=maybe"), &task()).await;
    assert_eq!(
        (flag.status.as_u16(), &flag.json()["detail"][0]["loc"]),
        (422, &json!(["query", "persistent"]))
    );
    insta::assert_json_snapshot!("invalid_body", steady(&api.post(&path, &json!({ "max_turns": 0 })).await));
    assert_eq!(runs(&api).await, 0);
}

#[tokio::test]
async fn what_clients_send_is_taken() {
    let api = api().await;
    let nulls = json!({
        "session_id": null, "session_name": null, "user_id": null, "git_branch": null, "max_turns": null,
        "timeout": null, "input_format": null, "persistent": null, "auto_merge": null, "temp_workspace": null,
    });
    for body in [
        task_with(&nulls),
        task_with(&json!({ "max_turns": 1 })),
        task_with(&json!({ "max_turns": 100 })),
        task_with(&json!({ "max_turns": 200, "timeout": 14400, "input_format": "text" })),
        task_with(&json!({ "message": "x".repeat(10_000) })),
        task_with(&json!({ "message": "修复 🐛\nline\ttwo \u{1F469}\u{200D}\u{1F4BB}" })),
        task_with(&json!({ "session_id": "not-a-uuid" })),
        task_with(&json!({ "session_name": "x".repeat(500) })),
        task_with(&json!({ "user_id": "user-123" })),
        task_with(&json!({ "user_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301" })),
        task_with(&json!({ "create_pr_on_success": false, "pr_title": "t", "pr_body": "b", "unknown": [1] })),
        task_with(&json!({ "persistent": true, "auto_merge": false, "temp_workspace": false })),
    ] {
        assert_eq!(status_of(&api, &body).await, 200, "{body}");
    }
    for query in ["persistent=true", "persistent=True&auto_merge=0", "persistent=false&unknown=1"] {
        assert_eq!(api.post(&format!("{FIRST}/run/bug-fixer?{query}"), &task()).await.status, 200, "{query}");
    }
}

#[tokio::test]
async fn what_is_asked_for_reaches_the_run() {
    let api = api().await;
    let body = json!({
        "message": "Do it", "max_turns": 7, "timeout": 120, "repository_url": REPOSITORY, "git_branch": "develop",
        "session_name": "epic", "user_id": "user-123",
    });
    let run = started(&api, FIRST, &body).await;
    let native = api.get(&format!("/v1/runs/{}", run["run_id"].as_str().unwrap())).await.json();
    for (field, value) in [
        ("prompt", json!("Do it")),
        ("max_turns", json!(7)),
        ("timeout_s", json!(120)),
        ("repository", json!(REPOSITORY)),
        ("base", json!("develop")),
        ("branch", run["git_branch"].clone()),
        ("session_id", run["session_id"].clone()),
    ] {
        assert_eq!(native[field], value, "{field}");
    }
    assert!(run["git_branch"].as_str().unwrap().starts_with("caisson/bug-fixer/"), "never the branch itself");
    let listed = api.get(&format!("{FIRST}/runs")).await.json()["runs"][0].clone();
    assert_eq!((&listed["session_name"], &listed["user_id"]), (&json!("epic"), &json!("user-123")));
}

#[tokio::test]
async fn a_temporary_workspace_is_empty_and_goes_with_nothing_else() {
    let api = api().await;
    let path = format!("{FIRST}/run/bug-fixer");
    for other in [
        json!({ "repository_url": REPOSITORY }),
        json!({ "git_branch": "main" }),
        json!({ "auto_merge": true }),
    ] {
        let mut body = json!({ "message": "x", "temp_workspace": true });
        body.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        let answer = api.post(&path, &body).await;
        assert_eq!(answer.status, 400, "{body}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("temp_workspace cannot be used with: "), "{detail}");
    }
    let body = json!({ "message": "x", "temp_workspace": true, "auto_merge": false, "persistent": true });
    let run = started(&api, FIRST, &body).await;
    assert_eq!(run["git_branch"], Value::Null, "there is no repository");
    let query = api.post(&format!("{path}?temp_workspace=true"), &json!({ "message": "y" })).await;
    assert_eq!(query.status, 200);
}

#[tokio::test]
async fn what_is_not_done_is_said() {
    let api = api().await;
    let run = started(&api, FIRST, &task_with(&json!({ "auto_merge": true }))).await;
    assert!(run["message"].as_str().unwrap().contains("Nothing is merged"), "{run}");
    for (more, part) in [
        (
            json!({ "create_pr_on_success": true, "pr_title": "t", "pr_body": "b" }),
            "No pull request is opened",
        ),
        (json!({ "persistent": false }), "Its workspace is kept"),
        (json!({ "environment": { "CI": "1" } }), "Not used: environment."),
    ] {
        let run = started(&api, FIRST, &task_with(&more)).await;
        assert!(run["message"].as_str().unwrap().contains(part), "{run}");
    }
    let nothing = json!({ "create_pr_on_success": false, "environment": {}, "persistent": true });
    let run = started(&api, FIRST, &task_with(&nothing)).await;
    let plain = "Started bug-fixer workflow. Use the status endpoint to track progress.";
    assert_eq!(run["message"], plain, "all of it is done");
}

/// A workflow with parameters, one of which has no default.
const REVIEWER: &str = "---\nname: reviewer\ndescription: Reviews.\ncaisson:\n  publish: none\n  parameters:\n    base: {type: revision, \
    description: What to compare with.}\n    focus: {type: string, description: What to look at., default: all}\n---\n\
    Compare with {{ base }}, and look at {{ focus }}.\n";

#[tokio::test]
async fn a_session_goes_on_with_the_parameters_and_the_image_that_it_was_begun_with() {
    let api = api().await;
    let workflow = Workflow::parse(REVIEWER).unwrap();
    api.store.put_workflow(&ProjectId::default_project(), &workflow).await.unwrap();
    let begun = json!({
        "workflow": "reviewer", "prompt": "Review it.", "repository": REPOSITORY, "base": "pr/1", "image": "registry.example.com/team/tools:1",
        "parameters": { "base": "release/1", "focus": "security" },
    });
    let begun = api.post("/v1/runs", &begun).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.text());
    let begun = begun.json();
    let session = begun["session_id"].as_str().unwrap();
    let by_agent = json!({ "message_content": "Again.", "session_id": session });
    for (path, body) in [
        (format!("{FIRST}/run/reviewer"), json!({ "message": "Review it again.", "session_id": session })),
        ("/api/v1/agent/claude-code/run/async".to_owned(), by_agent),
    ] {
        let next = api.post(&path, &body).await;
        assert_eq!(next.status, 200, "{}", next.text());
        let next = next.json();
        assert_eq!(next["session_id"], session);
        let native = api.get(&format!("/v1/runs/{}", next["run_id"].as_str().unwrap())).await.json();
        for field in ["parameters", "image", "repository", "base", "branch", "anchor"] {
            assert_eq!(native[field], begun[field], "{field}");
        }
    }
    let without = json!({ "message": "Review it.", "repository_url": REPOSITORY });
    let refused = api.post(&format!("{FIRST}/run/reviewer"), &without).await;
    assert_eq!(refused.status, 422, "a new session has no value for it: {}", refused.text());
}

#[tokio::test]
async fn what_contradicts_the_session_is_refused_and_its_own_branch_does_not() {
    let api = api().await;
    let first = started(&api, FIRST, &task_with(&json!({ "git_branch": "develop" }))).await;
    let on = |more: &Value| {
        let mut body = task_with(more);
        body["message"] = json!(format!("Go on {more}"));
        body["session_id"] = first["session_id"].clone();
        body
    };
    for fits in [json!({}), json!({ "git_branch": "develop" }), json!({ "git_branch": first["git_branch"] })]
    {
        assert_eq!(status_of(&api, &on(&fits)).await, 200, "{fits}");
    }
    for (other, field) in [
        (json!({ "git_branch": "main" }), "git_branch"),
        (json!({ "repository_url": "/srv/git/other" }), "repository_url"),
    ] {
        let refused = api.post(&format!("{FIRST}/run/bug-fixer"), &on(&other)).await;
        assert_eq!(refused.status, 422, "{}", refused.text());
        let entry = &refused.json()["detail"][0];
        assert_eq!((&entry["type"], &entry["loc"][1]), (&json!("session_contradicted"), &json!(field)));
    }
}

#[tokio::test]
async fn the_same_request_within_moments_is_one_run() {
    let api = api().await;
    let body = task_with(&json!({ "user_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "timeout": 14400 }));
    let first = started(&api, FIRST, &body).await;
    for seconds in [1, 2, 4] {
        api.clock.advance(seconds * 1000);
        let again = started(&api, FIRST, &body).await;
        assert_eq!((&again["run_id"], &again["session_id"]), (&first["run_id"], &first["session_id"]));
        assert!(again["message"].as_str().unwrap().contains("by the same request before"), "{again}");
    }
    assert_eq!(runs(&api).await, 1);
    let query = format!("{FIRST}/run/bug-fixer?persistent=true");
    for (path, body) in [
        (format!("{FIRST}/run/bug-fixer"), task_with(&json!({ "user_id": "another" }))),
        (format!("{FIRST}/run/surgeon"), body.clone()),
        (query.clone(), body.clone()),
    ] {
        api.post(&path, &body).await;
    }
    assert_eq!(runs(&api).await, 4, "another request is another run");
    let by_query = format!("{query}&x-api-key={}", api.key);
    api.post(&by_query, &body).await;
    assert_eq!(runs(&api).await, 4, "where the key is makes no difference");
    pass(&api, 5 * 60 * 1000).await;
    started(&api, FIRST, &body).await;
    assert_eq!(runs(&api).await, 5, "later it is a wish of its own");
}

/// Time passes, and the server is heard of.
async fn pass(api: &Api, milliseconds: i64) {
    api.clock.advance(milliseconds);
    api.store.heartbeat_server(&api.server, &[]).await.unwrap();
}

#[tokio::test]
async fn a_request_that_comes_again_after_a_proxys_time_out_is_one_run_unless_that_is_over() {
    let api = api().await;
    let body = task();
    let start = async || started(&api, FIRST, &body).await["run_id"].as_str().unwrap().to_owned();
    let kill = async |run: &str| {
        let killed = api.post(&format!("{FIRST}/run/{run}/kill"), &json!({})).await;
        assert_eq!(killed.status, 200, "{}", killed.text());
    };
    let first = start().await;
    // Each of four tries is answered by a proxy's 504 after a minute, and the pauses between them double.
    for seconds in [61, 62, 64] {
        pass(&api, seconds * 1000).await;
        assert_eq!(start().await, first, "it waits for its start");
    }
    kill(&first).await;
    let second = start().await;
    assert_ne!(second, first, "what is over is not what is wanted");
    kill(&second).await;
    pass(&api, 14_999).await;
    assert_eq!(start().await, second, "a lost answer of a run that ended at once");
    pass(&api, 1).await;
    let third = start().await;
    assert_ne!(third, second);
    pass(&api, 5 * 60 * 1000 - 1).await;
    assert_eq!(start().await, third);
    pass(&api, 1).await;
    assert_ne!(start().await, third, "and it has an end");
    assert_eq!(runs(&api).await, 4);
}

#[tokio::test]
async fn a_second_run_of_the_same_text_can_be_had_at_once() {
    let api = api().await;
    let body = task();
    let first = started(&api, FIRST, &body).await;
    let named = started(&api, FIRST, &task_with(&json!({ "session_name": "again" }))).await;
    assert_ne!(named["run_id"], first["run_id"]);
    let mut request = api.json_request(&format!("{FIRST}/run/bug-fixer"), &body);
    request.headers_mut().insert("idempotency-key", "another".parse().unwrap());
    let keyed = api.send(request).await.json();
    assert_ne!(keyed["run_id"], first["run_id"], "{keyed}");
    assert_eq!(runs(&api).await, 3);
}

#[tokio::test]
async fn the_same_requests_at_once_are_one_run_and_those_of_another_key_another() {
    let mut api = api().await;
    let body = task();
    let (one, two, three) =
        tokio::join!(started(&api, FIRST, &body), started(&api, FIRST, &body), started(&api, FIRST, &body));
    assert!(one["run_id"] == two["run_id"] && two["run_id"] == three["run_id"]);
    api.key = api
        .key_with(&[caisson_domain::principal::Scope::RunsRead, caisson_domain::principal::Scope::RunsWrite])
        .await;
    let other = started(&api, FIRST, &body).await;
    assert_ne!(other["run_id"], one["run_id"]);
    assert_eq!(runs(&api).await, 2);
}

#[tokio::test]
async fn an_idempotency_key_is_honoured_for_its_day() {
    let api = api().await;
    let with_key = async |body: &Value| {
        let mut request = api.json_request(&format!("{FIRST}/run/bug-fixer"), body);
        request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        api.send(request).await
    };
    let first = with_key(&task()).await.json();
    api.clock.advance(60 * 60 * 1000);
    assert_eq!(with_key(&task()).await.json()["run_id"], first["run_id"]);
    let reused = with_key(&task_with(&json!({ "max_turns": 3 }))).await;
    assert_eq!((reused.status.as_u16(), &reused.json()["code"]), (422, &json!("idempotency_key_reused")));
}

#[tokio::test]
async fn a_session_goes_on_with_its_repository_and_branch() {
    let api = api().await;
    let first = started(&api, FIRST, &task_with(&json!({ "git_branch": "develop" }))).await;
    let session = first["session_id"].as_str().unwrap();
    let uuid = uuid_of(session);
    for (number, id) in [session, &uuid].iter().enumerate() {
        let next =
            started(&api, FIRST, &json!({ "message": format!("go on {number}"), "session_id": id })).await;
        assert_eq!((&next["session_id"], &next["git_branch"]), (&first["session_id"], &first["git_branch"]));
        assert_ne!(next["run_id"], first["run_id"]);
        let native = api.get(&format!("/v1/runs/{}", next["run_id"].as_str().unwrap())).await.json();
        assert_eq!((&native["repository"], &native["base"]), (&json!(REPOSITORY), &json!("develop")));
    }
    let native = api.get(&format!("/v1/sessions/{session}")).await.json();
    assert_eq!(native["runs"], 3);
    let other =
        api.post(&format!("{FIRST}/run/fix"), &json!({ "message": "x", "session_id": session })).await;
    assert_eq!((other.status.as_u16(), &other.json()["code"]), (400, &json!("session_workflow")));
    let unknown = task_with(&json!({ "session_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301" }));
    assert_eq!(status_of(&api, &unknown).await, 404);
}

fn uuid_of(session: &str) -> String {
    let digits = &session[4..];
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

#[tokio::test]
async fn reads_at_once_are_all_served() {
    let api = api().await;
    let path = format!("{FIRST}/health");
    let answers = futures_util::future::join_all((0..5).map(|_| api.get(&path))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn a_server_that_cannot_place_runs_says_503_and_when_to_come_again() {
    let api = api().await;
    api.clock.advance(60_000);
    let answer = api.post(&format!("{FIRST}/run/bug-fixer"), &task()).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "10"));
    assert!(answer.json()["detail"].as_str().unwrap().contains("no server is alive"), "{}", answer.text());
    let health = send(&api, Method::GET, &format!("{FIRST}/health"), &json!({})).await;
    assert_eq!((health.status.as_u16(), &health.json()["status"]), (200, &json!("error")));
}
