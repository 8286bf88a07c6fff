//! How long things are kept, over the API.

use axum::body::Body;
use caisson_domain::id::ProjectId;
use caisson_domain::principal::Scope;
use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::{Answer, Api};

const PATH: &str = "/v1/retention";

async fn put_with(api: &Api, key: &str, body: &Value) -> Answer {
    let request = http::Request::builder().method(Method::PUT).uri(PATH).header("x-api-key", key);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    api.send(request.body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn days_are_set_shown_and_given_back_to_the_settings_and_what_is_left_out_stays() {
    let api = Api::start().await;
    let none =
        json!({"events_days": null, "artifacts_days": null, "volumes_days": null, "sessions_days": null});
    assert_eq!(api.get(PATH).await.json(), json!({"project": "default", "own": none, "effective": none}));
    let answer = put_with(&api, &api.key, &json!({"events_days": 90, "volumes_days": 0})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let answer = put_with(&api, &api.key, &json!({"sessions_days": 30})).await.json();
    assert_eq!((&answer["own"]["events_days"], &answer["own"]["volumes_days"]), (&json!(90), &json!(0)));
    assert_eq!(answer["effective"]["events_days"], 30, "it goes with its session");
    let answer = put_with(&api, &api.key, &json!({"events_days": null, "sessions_days": null})).await.json();
    assert_eq!((&answer["own"]["events_days"], &answer["own"]["volumes_days"]), (&Value::Null, &json!(0)));
    assert_eq!(answer["effective"]["volumes_days"], Value::Null, "for ever");
}

#[tokio::test]
async fn faults_are_told_together_and_nothing_is_set() {
    let api = Api::start().await;
    let answer = put_with(&api, &api.key, &json!({"events_days": -1, "volumes_days": 36_501, "x": 1})).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    let problem = answer.json();
    assert_eq!(problem["code"], "invalid_retention");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 3, "{problem}");
    assert_eq!(api.get(PATH).await.json()["own"]["events_days"], Value::Null);
}

#[tokio::test]
async fn only_an_administrator_sets_days() {
    let api = Api::start().await;
    let scopes = [Scope::RunsRead, Scope::RunsWrite];
    let (_, key) = api.store.create_api_key(&ProjectId::default_project(), "x", &scopes).await.unwrap();
    let answer = put_with(&api, key.expose(), &json!({"events_days": 1})).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}
