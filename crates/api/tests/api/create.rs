//! `POST /v1/runs`: what is accepted and each refusal.

use std::path::PathBuf;

use axum::body::Body;
use caisson_domain::attachment::ATTACHMENT_BODY_BYTES;
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::limits;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS, REPOSITORY, body, body_with};

async fn refused(api: &Api, changes: &Value) -> Answer {
    api.post("/v1/runs", &body_with(changes)).await
}

#[tokio::test]
async fn an_accepted_run_is_answered_with_its_path_and_view() {
    let api = Api::start().await;
    let answer = api.post("/v1/runs", &body()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/v1/runs/{id}"));
    assert_eq!(answer.header("idempotent-replayed"), "");
    insta::assert_json_snapshot!("created", answer.steady());
    let mut asked = api.get(&format!("/v1/runs/{id}")).await.json();
    // Told only where one run is asked for.
    assert_eq!(asked["credential_uses"].take(), json!([]));
    assert_eq!(asked["queue_position"].take(), json!(1));
    assert_eq!(asked, answer.json());
}

#[tokio::test]
async fn every_field_of_a_request_reaches_the_run() {
    let api = Api::start().await;
    let wanted = json!({
        "workflow": "fix", "prompt": "Fix it.\n", "repository": REPOSITORY, "base": "main", "branch": "fix/it",
        "model": "opus", "max_turns": 3, "image": "debian:bookworm-slim", "timeout_s": 90,
        "budget_micro_usd": 1_500_000, "priority": -4, "start_at_ms": NOW_MS + 5,
        "resources": {"memory_mib": 512, "pids": 100, "cpu_millis": 500, "tmp_mib": 64}, "environment": {"CI": "1"},
    });
    let answer = api.post("/v1/runs", &wanted).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let run = answer.json();
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&run[name], value, "{name}");
    }
}

#[tokio::test]
async fn a_repository_may_be_left_out_be_null_or_be_named() {
    let api = Api::with(|config| config.default_repository = Some(REPOSITORY.parse().unwrap())).await;
    let shown = async |body: Value| api.post("/v1/runs", &body).await.json()["repository"].clone();
    assert_eq!(shown(json!({"workflow": "fix", "prompt": "x"})).await, REPOSITORY);
    assert_eq!(shown(body_with(&json!({"repository": "default"}))).await, REPOSITORY);
    assert_eq!(shown(json!({"workflow": "fix", "prompt": "x", "repository": null})).await, Value::Null);
    assert_eq!(shown(body_with(&json!({"repository": "/srv/git/y"}))).await, "/srv/git/y");
    let api = Api::start().await;
    let none = api.post("/v1/runs", &json!({"workflow": "fix", "prompt": "x"})).await.json();
    assert_eq!((&none["repository"], &none["branch"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn each_fault_alone_has_its_own_code() {
    let api = Api::start().await;
    let long = "x".repeat(limits::PROMPT_BYTES + 1);
    let many: Value = (0..=limits::ENVIRONMENT_NAMES).map(|n| (format!("N{n}"), json!("x"))).collect();
    for (changes, field, code) in [
        (json!({"workflow": "nope"}), "workflow", "unknown_workflow"),
        (json!({"workflow": null}), "workflow", "missing_field"),
        (json!({"workflow": 7}), "workflow", "wrong_type"),
        (json!({"prompt": null}), "prompt", "missing_field"),
        (json!({"prompt": " \n"}), "prompt", "prompt_blank"),
        (json!({"prompt": long}), "prompt", "prompt_too_long"),
        (json!({"prompt": "a\0"}), "prompt", "prompt_invalid"),
        (json!({"repository": 1}), "repository", "wrong_type"),
        (json!({"repository": "git@x:y"}), "repository", "repository_invalid"),
        (json!({"repository": "/etc"}), "repository", "repository_not_allowed"),
        (json!({"repository": "default"}), "repository", "no_default_repository"),
        (json!({"base": "a b"}), "base", "branch_invalid"),
        (json!({"branch": "a..b"}), "branch", "branch_invalid"),
        (json!({"branch": "-x"}), "branch", "branch_invalid"),
        (json!({"branch": "a\u{1}"}), "branch", "branch_invalid"),
        (json!({"repository": null, "branch": "x"}), "branch", "branch_without_repository"),
        (json!({"model": "--x"}), "model", "model_invalid"),
        (json!({"image": "a b"}), "image", "image_invalid"),
        (json!({"max_turns": 0}), "max_turns", "out_of_range"),
        (json!({"max_turns": 1.5}), "max_turns", "wrong_type"),
        (json!({"max_turns": -1}), "max_turns", "wrong_type"),
        (json!({"timeout_s": 4}), "timeout_s", "out_of_range"),
        (json!({"budget_micro_usd": 0}), "budget_micro_usd", "out_of_range"),
        (json!({"budget_micro_usd": 0.5}), "budget_micro_usd", "wrong_type"),
        (json!({"resources": []}), "resources", "wrong_type"),
        (json!({"resources": {"memory_mib": 1}}), "resources.memory_mib", "out_of_range"),
        (json!({"resources": {"memory": 1}}), "resources.memory", "unknown_field"),
        (json!({"environment": {"HOME": "x"}}), "environment.HOME", "environment_not_allowed"),
        (json!({"environment": {"CI": 1}}), "environment.CI", "wrong_type"),
        (json!({"environment": many}), "environment", "too_many"),
        (json!({"prompts": "x"}), "prompts", "unknown_field"),
    ] {
        let answer = refused(&api, &changes).await;
        answer.assert_problem(422, code);
        assert_eq!(answer.faults(), [(field.to_owned(), code.to_owned())], "{}", answer.text());
    }
    assert_eq!(api.get("/v1/runs").await.json()["items"], json!([]), "nothing is left behind");
}

#[tokio::test]
async fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
    let api = Api::start().await;
    let changes = serde_json::from_str(r#"{"max_turns": 7.0, "timeout_s": 1e2}"#).unwrap();
    let answer = api.post("/v1/runs", &body_with(&changes)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let run = answer.json();
    assert_eq!((run["max_turns"].as_i64(), run["timeout_s"].as_i64()), (Some(7), Some(100)));
    refused(&api, &json!({"max_turns": 4_294_967_296.0})).await.assert_problem(422, "wrong_type");
}

#[tokio::test]
async fn a_number_that_is_none_is_refused_with_the_range() {
    let api = Api::start().await;
    for (changes, range) in [
        (json!({"timeout_s": -1}), "from 5 to 86400"),
        (json!({"max_turns": 1.5}), "from 1 to 1000"),
        (json!({"resources": {"pids": "many"}}), "from 32 to 32768"),
    ] {
        let answer = refused(&api, &changes).await;
        assert!(answer.text().contains(range), "{}", answer.text());
    }
}

#[tokio::test]
async fn all_faults_are_told_together() {
    let api = Api::start().await;
    let answer = api
        .post(
            "/v1/runs",
            &json!({
                "workflow": "nope", "prompt": "", "repository": "/etc", "base": "a b", "branch": "x",
                "max_turns": 0, "timeout_s": "soon", "image": "", "resources": {"pids": 1, "gpu": 1},
                "environment": {"CI": 1}, "extra": true,
            }),
        )
        .await;
    answer.assert_problem(422, "invalid_run");
    insta::assert_json_snapshot!("all_faults", answer.steady());
}

#[tokio::test]
async fn an_unknown_workflow_is_answered_with_the_known_ones() {
    let api = Api::start().await;
    let answer = refused(&api, &json!({"workflow": "nope"})).await;
    insta::assert_json_snapshot!("unknown_workflow", answer.steady());
}

#[tokio::test]
async fn of_many_workflows_some_are_named() {
    let api = Api::start().await;
    let project = ProjectId::default_project();
    let mut workflow = api.store.workflow(&project, "fix").await.unwrap().unwrap().workflow;
    for number in 0..30 {
        workflow.name = format!("w{number}");
        api.store.put_workflow(&project, &workflow).await.unwrap();
    }
    let problem = refused(&api, &json!({"workflow": "nope"})).await.json();
    let message = problem["errors"][0]["message"].as_str().unwrap();
    assert_eq!(message.matches(", ").count(), 19, "{message}");
}

#[tokio::test]
async fn without_a_living_server_no_run_is_accepted() {
    let api = Api::start().await;
    api.clock.advance(limits::SERVER_SILENT_MS + 1);
    let answer = api.post("/v1/runs", &body()).await;
    answer.assert_problem(503, "no_server");
    assert_eq!(answer.header("retry-after"), "10");
    api.store.heartbeat_server(&api.server, &[]).await.unwrap();
    assert_eq!(api.post("/v1/runs", &body()).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_server_with_a_problem_is_named_by_it_and_one_without_is_enough() {
    let api = Api::start().await;
    for code in ProblemCode::ALL {
        let problem = PlacementProblem { code: *code, message: format!("{code}: do this") };
        api.store.heartbeat_server(&api.server, &[problem]).await.unwrap();
        let answer = api.post("/v1/runs", &body()).await;
        answer.assert_problem(503, code.as_str());
        assert_eq!(answer.json()["detail"], format!("{code}: do this"));
        assert_eq!(answer.header("retry-after"), "10");
    }
    let well = ServerId::new(NOW_MS, [2; 10]);
    api.store.register_server(&well).await.unwrap();
    assert_eq!(api.post("/v1/runs", &body()).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_bad_request_is_told_of_its_faults_and_not_of_the_servers_problems() {
    let api = Api::start().await;
    api.clock.advance(limits::SERVER_SILENT_MS + 1);
    refused(&api, &json!({"prompt": ""})).await.assert_problem(422, "prompt_blank");
}

#[tokio::test]
async fn a_full_queue_refuses_the_next_run() {
    const FILL: &str = "with recursive n(i) as (select 1 union all select i + 1 from n where i < $1) \
         insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, spec) \
         select printf('run_%032x', i), project_id, session_id, workflow, status, 0, 0, spec from run, n";
    let api = Api::start().await;
    api.queued().await;
    // One waits; with these all places but one are taken.
    let database = api.database().await;
    sqlx::query(FILL).bind(limits::QUEUE_RUNS - 2).execute(&database).await.unwrap();
    assert_eq!(api.post("/v1/runs", &body()).await.status, StatusCode::ACCEPTED);
    let answer = api.post("/v1/runs", &body()).await;
    answer.assert_problem(429, "queue_full");
    assert_eq!(answer.header("retry-after"), "10");
}

#[tokio::test]
async fn a_body_is_read_up_to_its_bound() {
    let api = Api::start().await;
    let padded = |bytes: usize| {
        let mut text = body().to_string();
        text.push_str(&" ".repeat(bytes - text.len()));
        let request = api.request(Method::POST, "/v1/runs").header("content-type", "application/json");
        request.body(Body::from(text)).unwrap()
    };
    assert_eq!(api.send(padded(ATTACHMENT_BODY_BYTES)).await.status, StatusCode::ACCEPTED);
    api.send(padded(ATTACHMENT_BODY_BYTES + 1)).await.assert_problem(413, "body_too_large");
}

#[tokio::test]
async fn the_longest_prompt_with_every_character_escaped_fits() {
    let api = Api::start().await;
    // Three bytes of UTF-8 as six of an escape, the widest there is for a text that may be a prompt.
    let escaped = "\\u20ac".repeat(limits::PROMPT_BYTES / 3);
    let text = body().to_string().replace("Fix it.", &escaped);
    let request = api.request(Method::POST, "/v1/runs").header("content-type", "application/json");
    assert_eq!(api.send(request.body(Body::from(text)).unwrap()).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_path_of_the_allow_list_is_accepted() {
    let api = Api::with(|config| {
        config.allow =
            caisson_domain::git::AllowList::new(&[], vec![PathBuf::from("/home/me/project")]).unwrap();
    })
    .await;
    let named = |text: &str| body_with(&json!({"repository": text}));
    assert_eq!(api.post("/v1/runs", &named("/home/me/project")).await.status, StatusCode::ACCEPTED);
    api.post("/v1/runs", &named("/home/me")).await.assert_problem(422, "repository_not_allowed");
}

#[tokio::test]
async fn a_later_edit_of_the_workflow_does_not_reach_an_accepted_run() {
    let api = Api::start().await;
    let run = api.queued().await;
    let project = ProjectId::default_project();
    let mut workflow = api.store.workflow(&project, "fix").await.unwrap().unwrap().workflow;
    workflow.caisson.timeout_s = 30;
    api.store.put_workflow(&project, &workflow).await.unwrap();
    assert_eq!(api.get(&format!("/v1/runs/{}", run.id)).await.json()["timeout_s"], 600);
}
