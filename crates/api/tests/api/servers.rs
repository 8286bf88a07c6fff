//! Servers over the API.

use caisson_domain::id::ServerId;
use caisson_domain::limits::{SERVER_LOST_MS_DEFAULT, SERVER_SILENT_MS};
use caisson_domain::server::{PlacementProblem, ProblemCode, Role};
use caisson_store::Presence;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Api, NOW_MS};

async fn states(api: &Api) -> Vec<String> {
    let page = api.get("/v1/servers").await.json();
    page["items"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn servers_are_listed_with_their_parts_states_and_problems() {
    let api = Api::start().await;
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    api.store.heartbeat_server(&api.server, &[problem]).await.unwrap();
    let other = ServerId::new(NOW_MS + 1, [9; 10]);
    for (server, roles) in [(&api.server, vec![Role::Worker, Role::Gateway]), (&other, vec![Role::Api])] {
        let version = "1.2.3".to_owned();
        let presence = Presence { server: server.clone(), roles, version, slots: Some(4) };
        api.store.beat(&presence).await.unwrap();
    }
    let page = api.get("/v1/servers").await.json();
    let part = |role: &str| json!({ "role": role, "seen_at_ms": NOW_MS, "version": "1.2.3" });
    assert_eq!(
        page["items"][0],
        json!({
            "id": api.server, "state": "live", "seen_at_ms": NOW_MS, "parts": [part("gateway"), part("worker")],
            "slots": 4, "runs": 0, "sandboxes": 0,
            "problems": [{ "code": "disk_low", "message": "make room" }],
        })
    );
    assert_eq!(page["items"][1]["parts"], json!([part("api")]));
    assert_eq!((&page["items"][1]["slots"], &page["next_cursor"]), (&Value::Null, &Value::Null));
    let first = api.get("/v1/servers?limit=1").await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = api.get(&format!("/v1/servers?limit=1&cursor={cursor}")).await.json();
    assert_eq!((&first["items"][0], &rest["items"][0]), (&page["items"][0], &page["items"][1]));
    api.clock.advance(SERVER_SILENT_MS + 1);
    assert_eq!(states(&api).await, ["away", "away"]);
    api.clock.advance(SERVER_LOST_MS_DEFAULT);
    assert_eq!(states(&api).await, ["lost", "lost"]);
}

#[tokio::test]
async fn servers_are_for_administrators_of_the_default_project_alone() {
    let api = Api::start().await;
    let made = api.post("/v1/projects", &json!({ "id": "team-a" })).await.json();
    let key = made["key"]["secret"].as_str().unwrap();
    let request = http::Request::builder().uri("/v1/servers").header("x-api-key", key);
    let answer = api.send(request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.json()["code"], "default_project_only");
}

#[tokio::test]
async fn a_lost_server_is_forgotten_and_one_that_lives_is_not() {
    let api = Api::start().await;
    let path = format!("/v1/servers/{}", api.server);
    let forget = async || {
        let request = api.request(http::Method::DELETE, &path).body(axum::body::Body::empty());
        api.send(request.unwrap()).await
    };
    forget().await.assert_problem(409, "server_not_lost");
    let claimed = api.running().await;
    api.clock.advance(SERVER_LOST_MS_DEFAULT);
    forget().await.assert_problem(409, "server_in_use");
    api.finish(&claimed).await;
    assert_eq!(forget().await.status, StatusCode::NO_CONTENT);
    assert_eq!(states(&api).await, [""; 0]);
    forget().await.assert_problem(404, "unknown_server");
}
