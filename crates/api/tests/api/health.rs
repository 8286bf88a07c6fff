//! `/healthz` and `/readyz`.

use std::time::Instant;

use axum::body::Body;
use caisson_api::config::READY_FOR;
use caisson_domain::id::ServerId;
use caisson_domain::limits;
use caisson_domain::principal::Scope;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use http::{Request, StatusCode};
use serde_json::json;

use crate::support::{Answer, Api, NOW_MS, PATIENCE, body_with};

/// What a server says of itself.
const ALL_OF_IT: &str = "/var/lib/caisson of srv_1:";

async fn probe(api: &Api, path: &str) -> Answer {
    api.send(Request::builder().uri(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn health_is_told_without_a_key() {
    let api = Api::start().await;
    for path in ["/healthz", "/readyz"] {
        let answer = probe(&api, path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json(), json!({"status": "ok"}));
    }
}

#[tokio::test]
async fn a_server_that_can_place_nothing_lives_but_is_not_ready() {
    let api = Api::start().await;
    let problems = [ProblemCode::ImageMissing, ProblemCode::DiskLow]
        .map(|code| PlacementProblem { code, message: format!("{ALL_OF_IT} do this") });
    api.store.heartbeat_server(&api.server, &problems).await.unwrap();
    let answer = probe(&api, "/readyz").await;
    answer.assert_problem(503, "image_missing");
    insta::assert_json_snapshot!("not_ready", answer.steady());
    let told = format!("{ALL_OF_IT} do this");
    assert!(api.get("/readyz").await.text().contains(&told), "the operators are told all of it");
    let (theirs, reader) = (api.other_projects_key().await, api.key_with(&[Scope::RunsRead]).await);
    let wrong = format!("csk_{}", "0".repeat(64));
    for key in [&theirs, &reader, &wrong, "none"] {
        let request = Request::builder().uri("/readyz").header("x-api-key", key);
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        answer.assert_problem(503, "image_missing");
        assert!(!answer.text().contains("do this"), "{}", answer.text());
    }
    let run = body_with(&json!({ "workflow": "fix" }));
    let post = |key: &str| {
        let request = Request::post("/v1/runs").header("x-api-key", key);
        request.header("content-type", "application/json").body(Body::from(run.to_string())).unwrap()
    };
    api.send(post(&api.key)).await.assert_problem(503, "image_missing");
    assert!(api.send(post(&api.key)).await.text().contains(&told));
    let writer = api.key_with(&[Scope::RunsWrite]).await;
    let refused = api.send(post(&writer)).await;
    refused.assert_problem(503, "image_missing");
    let (text, remedy) = (refused.text(), ProblemCode::DiskLow.remedy());
    assert!(!text.contains("do this") && text.contains(remedy), "{text}");
    assert_eq!(probe(&api, "/healthz").await.status, StatusCode::OK);
    api.store.register_server(&ServerId::new(NOW_MS, [2; 10])).await.unwrap();
    assert_eq!(probe(&api, "/readyz").await.status, StatusCode::OK);
    api.clock.advance(limits::SERVER_SILENT_MS + 1);
    probe(&api, "/readyz").await.assert_problem(503, "no_server");
}

#[tokio::test]
async fn readiness_is_not_read_anew_for_whoever_asks_within_the_second() {
    let api = Api::with(|config| config.limits.ready_for = READY_FOR).await;
    let begun = Instant::now();
    assert_eq!(probe(&api, "/readyz").await.status, StatusCode::OK);
    // Whoever looked now would find no server.
    api.clock.advance(limits::SERVER_SILENT_MS + 1);
    for _ in 0..20 {
        let status = probe(&api, "/readyz").await.status;
        assert!(status == StatusCode::OK || begun.elapsed() >= READY_FOR, "{status}");
    }
    let told = async { while probe(&api, "/readyz").await.status == StatusCode::OK {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the answer became stale");
}

#[tokio::test]
async fn readiness_is_proved_by_a_write_but_not_each_time() {
    let api = Api::with(|config| config.limits.ready_for = READY_FOR).await;
    let database = api.database().await;
    let writes = async || {
        let sql = "select checks from project where id = 'default'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&database).await.unwrap()
    };
    probe(&api, "/healthz").await;
    assert_eq!(writes().await, 0);
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(probe(&api, "/readyz").await.status, StatusCode::OK);
    }
    // One for every second begun, however slow the machine is.
    let seconds = i64::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((1..=seconds).contains(&writes().await), "{} writes in {seconds} s", writes().await);
}
