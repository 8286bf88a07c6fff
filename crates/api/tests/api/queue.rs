//! The queue over the API: where a run stands, when it starts, who drains, and each project's part.

use axum::body::Body;
use caisson_domain::id::ServerId;
use caisson_domain::limits::SERVER_SILENT_MS;
use caisson_domain::principal::Scope;
use caisson_domain::queue::{DELAY_S_MAX, QueueLimits};
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::Actor;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Api, NOW_MS, body, body_with};

async fn ask(api: &Api, method: Method, path: &str, key: &str, body: &Value) -> Answer {
    let request = http::Request::builder().method(method).uri(path).header("x-api-key", key);
    let request = request.header("content-type", "application/json");
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

async fn accepted(api: &Api, changes: &Value) -> Value {
    let answer = api.post("/v1/runs", &body_with(changes)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    answer.json()
}

async fn seen(api: &Api, run: &Value) -> Value {
    api.get(&format!("/v1/runs/{}", run["id"].as_str().unwrap())).await.json()
}

#[tokio::test]
async fn a_waiting_run_is_told_its_place_and_a_list_tells_none() {
    let api = Api::start().await;
    let first = accepted(&api, &json!({})).await;
    let second = accepted(&api, &json!({"priority": 3})).await;
    assert_eq!((&second["priority"], &first["priority"]), (&json!(3), &json!(0)));
    assert_eq!(seen(&api, &second).await["queue_position"], 1);
    let told = seen(&api, &first).await;
    assert_eq!((&told["queue_position"], &told["queue_estimate"]), (&json!(2), &Value::Null));
    let listed = api.get("/v1/runs").await.json();
    assert!(listed["items"].as_array().unwrap().iter().all(|run| run["queue_position"].is_null()));
    api.running().await;
    assert_eq!(seen(&api, &second).await["queue_position"], Value::Null, "it runs");
}

#[tokio::test]
async fn a_start_is_put_off_up_to_its_bound() {
    let api = Api::start().await;
    let most_ms = DELAY_S_MAX * 1_000;
    for (changes, start_at_ms) in [
        (json!({"delay_s": 60}), json!(NOW_MS + 60_000)),
        (json!({"delay_s": DELAY_S_MAX}), json!(NOW_MS + most_ms)),
        (json!({"start_at_ms": NOW_MS + most_ms}), json!(NOW_MS + most_ms)),
        (json!({"start_at_ms": NOW_MS - 1}), Value::Null),
        (json!({"delay_s": 0}), Value::Null),
        (json!({"start_at_ms": null, "delay_s": null, "priority": null}), Value::Null),
    ] {
        let run = accepted(&api, &changes).await;
        assert_eq!(run["start_at_ms"], start_at_ms, "{changes}");
        let place = &seen(&api, &run).await["queue_position"];
        assert_eq!(place.is_null(), !start_at_ms.is_null(), "{changes}");
    }
    for (changes, code) in [
        (json!({"delay_s": DELAY_S_MAX + 1}), "out_of_range"),
        (json!({"delay_s": -1}), "out_of_range"),
        (json!({"delay_s": "1m"}), "wrong_type"),
        (json!({"start_at_ms": NOW_MS + most_ms + 1}), "out_of_range"),
        (json!({"start_at_ms": "tomorrow"}), "wrong_type"),
        (json!({"start_at_ms": NOW_MS, "delay_s": 1}), "contradiction"),
        (json!({"priority": 11}), "out_of_range"),
        (json!({"priority": -11}), "out_of_range"),
        (json!({"priority": "high"}), "wrong_type"),
    ] {
        api.post("/v1/runs", &body_with(&changes)).await.assert_problem(422, code);
    }
}

#[tokio::test]
async fn a_full_part_of_the_queue_refuses_the_projects_next_run_alone() {
    let api = Api::start().await;
    api.store.bound_queue(QueueLimits {
        max_queued: 4,
        max_queued_per_project: Some(2),
        ..QueueLimits::default()
    });
    accepted(&api, &json!({})).await;
    accepted(&api, &json!({})).await;
    let refused = api.post("/v1/runs", &body()).await;
    refused.assert_problem(429, "project_queue_full");
    assert_eq!(refused.header("retry-after"), "10");
    let set = json!({"max_queued": 3});
    let answer = ask(&api, Method::PUT, "/v1/projects/default/queue", &api.key, &set).await;
    assert_eq!(answer.json()["queue"], json!({"weight": 1, "max_running": null, "max_queued": 3}));
    accepted(&api, &json!({})).await;
    api.post("/v1/runs", &body()).await.assert_problem(429, "project_queue_full");
    ask(&api, Method::PUT, "/v1/projects/default/queue", &api.key, &json!({"max_queued": 10})).await;
    accepted(&api, &json!({})).await;
    let refused = api.post("/v1/runs", &body()).await;
    refused.assert_problem(429, "queue_full");
    assert_eq!(refused.header("retry-after"), "10");
}

#[tokio::test]
async fn a_drained_server_accepts_runs_is_not_ready_and_is_resumed() {
    let api = Api::start().await;
    accepted(&api, &json!({})).await;
    let server = api.server.to_string();
    let drained = ask(&api, Method::POST, "/v1/queue/drain", &api.key, &json!({"server": server})).await;
    assert_eq!(drained.status, StatusCode::OK, "{}", drained.text());
    assert_eq!(
        drained.json(),
        json!({
            "queued": 1, "delayed": 0, "running": 0, "drained": false, "drained_at_ms": null,
            "servers": [{
                "id": server, "seen_at_ms": NOW_MS, "alive": true, "drained": true, "drained_at_ms": NOW_MS, "running": 0,
            }],
        })
    );
    assert_eq!(api.store.claim(&api.server).await.unwrap(), None);
    api.get("/readyz").await.assert_problem(503, "drained");
    accepted(&api, &json!({})).await;
    let all = ask(&api, Method::POST, "/v1/queue/drain", &api.key, &json!({})).await.json();
    assert_eq!((&all["drained"], &all["drained_at_ms"]), (&json!(true), &json!(NOW_MS)));
    ask(&api, Method::POST, "/v1/queue/resume", &api.key, &json!({"server": server})).await;
    api.get("/readyz").await.assert_problem(503, "drained");
    ask(&api, Method::POST, "/v1/queue/resume", &api.key, &json!({})).await;
    assert_eq!(api.get("/readyz").await.status, StatusCode::OK);
    let queue = api.get("/v1/queue").await.json();
    assert_eq!((&queue["queued"], &queue["servers"][0]["drained"]), (&json!(2), &json!(false)));
    let audit = api.get("/v1/audit?action=server.drain").await.json();
    let subjects: Vec<_> = audit["items"].as_array().unwrap().iter().map(|one| &one["subject"]).collect();
    assert_eq!(subjects, [&json!("all"), &json!(server)]);
}

#[tokio::test]
async fn the_queue_is_for_administrators_of_the_default_project() {
    let api = Api::start().await;
    let team = "team-a".parse().unwrap();
    api.store.create_project(&team, Actor::Operator).await.unwrap();
    let new = caisson_store::NewApiKey {
        project: team,
        name: "boss".to_owned(),
        scopes: vec![Scope::Admin],
        expires_at_ms: None,
        by: Actor::Operator,
    };
    let (_, secret) = api.store.make_api_key(&new).await.unwrap().unwrap();
    let few = api.key_with(&[Scope::RunsRead, Scope::RunsWrite]).await;
    for (method, path) in [
        (Method::GET, "/v1/queue"),
        (Method::POST, "/v1/queue/drain"),
        (Method::POST, "/v1/queue/resume"),
        (Method::PUT, "/v1/projects/team-a/queue"),
    ] {
        ask(&api, method.clone(), path, secret.expose(), &json!({}))
            .await
            .assert_problem(403, "operators_only");
        ask(&api, method, path, &few, &json!({})).await.assert_problem(403, "scope_missing");
    }
    let own = ask(&api, Method::GET, "/v1/projects", secret.expose(), &json!({})).await.json();
    assert_eq!(own["items"][0]["queue"]["weight"], 1, "it may see its own part");
}

#[tokio::test]
async fn a_change_of_the_queue_is_refused_with_its_faults() {
    let api = Api::start().await;
    for (body, code) in [
        (json!({"weight": 0}), "out_of_range"),
        (json!({"weight": 1001}), "out_of_range"),
        (json!({"weight": null}), "wrong_type"),
        (json!({"max_running": -1}), "out_of_range"),
        (json!({"max_queued": 10_001}), "out_of_range"),
        (json!({"max_queued": "many"}), "out_of_range"),
        (json!({"share": 1}), "unknown_field"),
        (json!({"weight": 0, "max_running": -1}), "invalid_queue"),
    ] {
        let path = "/v1/projects/default/queue";
        ask(&api, Method::PUT, path, &api.key, &body).await.assert_problem(422, code);
    }
    for name in ["nobody", "No%20name"] {
        let path = format!("/v1/projects/{name}/queue");
        ask(&api, Method::PUT, &path, &api.key, &json!({"weight": 2}))
            .await
            .assert_problem(404, "unknown_project");
    }
    let unknown = json!({"server": format!("srv_{}", "0".repeat(32))});
    for path in ["/v1/queue/drain", "/v1/queue/resume"] {
        ask(&api, Method::POST, path, &api.key, &unknown).await.assert_problem(404, "unknown_server");
        ask(&api, Method::POST, path, &api.key, &json!({"server": "x"}))
            .await
            .assert_problem(422, "invalid_id");
    }
}

#[tokio::test]
async fn a_waiting_run_tells_what_keeps_every_server_from_starting_it() {
    let api = Api::start().await;
    let run = accepted(&api, &json!({})).await;
    let held = async || seen(&api, &run).await["held_by"].clone();
    assert_eq!(held().await, json!([]), "a server can start it");
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    api.store.heartbeat_server(&api.server, &[problem]).await.unwrap();
    assert_eq!(held().await, json!([{ "code": "disk_low", "message": "make room" }]));
    // What keeps several servers is told once, wherever it stands among what keeps each.
    let problem = |code, message: &str| PlacementProblem { code, message: message.to_owned() };
    let both =
        [problem(ProblemCode::DiskLow, "make room"), problem(ProblemCode::ImageMissing, "build the image")];
    let other = ServerId::new(1, [2; 10]);
    for server in [&api.server, &other] {
        api.store.heartbeat_server(server, &both).await.unwrap();
    }
    assert_eq!(
        held().await,
        json!([
            { "code": "disk_low", "message": "make room" },
            { "code": "image_missing", "message": "build the image" },
        ])
    );
    api.store.heartbeat_server(&api.server, &[]).await.unwrap();
    assert_eq!(held().await, json!([]), "one of them can start it");
    api.clock.advance(SERVER_SILENT_MS + 1);
    api.store.heartbeat_server(&api.server, &[]).await.unwrap();
    api.store.drain(Some(&api.server), &Actor::Operator).await.unwrap();
    let drained = held().await;
    assert_eq!(drained[0]["code"], "drained");
    assert!(drained[0]["message"].as_str().unwrap().contains("caisson resume"), "{drained}");
    api.clock.advance(SERVER_SILENT_MS + 1);
    assert_eq!(held().await[0]["code"], "no_server");
    api.store.resume(None, &Actor::Operator).await.unwrap();
    api.store.heartbeat_server(&api.server, &[]).await.unwrap();
    assert_eq!(held().await, json!([]));
}
