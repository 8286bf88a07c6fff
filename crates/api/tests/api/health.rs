//! `/healthz` and `/readyz`.

use axum::body::Body;
use caisson_domain::id::ServerId;
use caisson_domain::limits;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use http::{Request, StatusCode};
use serde_json::json;

use crate::support::{Answer, Api, NOW_MS};

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
        .map(|code| PlacementProblem { code, message: format!("{code}: do this") });
    api.store.heartbeat_server(&api.server, &problems).await.unwrap();
    let answer = probe(&api, "/readyz").await;
    answer.assert_problem(503, "image_missing");
    insta::assert_json_snapshot!("not_ready", answer.steady());
    assert_eq!(probe(&api, "/healthz").await.status, StatusCode::OK);
    api.store.register_server(&ServerId::new(NOW_MS, [2; 10])).await.unwrap();
    assert_eq!(probe(&api, "/readyz").await.status, StatusCode::OK);
    api.clock.advance(limits::SERVER_SILENT_MS + 1);
    probe(&api, "/readyz").await.assert_problem(503, "no_server");
}

#[tokio::test]
async fn readiness_is_proved_by_a_write() {
    let api = Api::start().await;
    probe(&api, "/healthz").await;
    let written = async || {
        let sql = "select checked_at_ms from project where id = 'default'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&api.database().await).await.unwrap()
    };
    assert_eq!(written().await, 0);
    probe(&api, "/readyz").await;
    assert_eq!(written().await, NOW_MS);
}
