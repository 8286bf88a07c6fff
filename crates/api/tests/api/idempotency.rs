//! `Idempotency-Key`: the same request twice is one run.

use caisson_domain::limits;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use http::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::support::{Answer, Api, body, body_with};

#[tokio::test]
async fn the_same_key_and_request_find_the_same_run() {
    let api = Api::start().await;
    let first = api.post_with_key("k1", &body()).await;
    let second = api.post_with_key("k1", &body()).await;
    assert_eq!((first.status, second.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    assert_eq!((first.header("idempotent-replayed"), second.header("idempotent-replayed")), ("", "true"));
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(first.header("location"), second.header("location"));
    assert_eq!(api.get("/v1/runs").await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_repeat_is_answered_while_nothing_can_be_accepted() {
    let api = Api::start().await;
    let first = api.post_with_key("k1", &body()).await;
    let problem = PlacementProblem { code: ProblemCode::DiskLow, message: "make room".to_owned() };
    api.store.heartbeat_server(&api.server, &[problem]).await.unwrap();
    api.post_with_key("k2", &body()).await.assert_problem(503, "disk_low");
    let repeated = api.post_with_key("k1", &body()).await;
    assert_eq!(repeated.status, StatusCode::ACCEPTED);
    assert_eq!(repeated.json()["id"], first.json()["id"]);
    api.post_with_key("k1", &body_with(&json!({"prompt": "Other."})))
        .await
        .assert_problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused() {
    let api = Api::start().await;
    api.post_with_key("k1", &body()).await;
    for changes in [json!({"prompt": "Other."}), json!({"repository": null}), json!({"max_turns": 3})] {
        api.post_with_key("k1", &body_with(&changes)).await.assert_problem(422, "idempotency_key_reused");
    }
    let other = api.post_with_key("k2", &body_with(&json!({"prompt": "Other."}))).await;
    assert_eq!(other.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn white_space_and_the_order_of_fields_do_not_make_another_request() {
    let api = Api::start().await;
    let mut answers = Vec::new();
    for text in [
        r#"{"workflow":"fix","prompt":"x","environment":{}}"#,
        "{\n \"prompt\": \"x\",\n \"workflow\": \"fix\", \"model\": null\n}",
    ] {
        let mut request = api.json_request("/v1/runs", &json!(null));
        request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        *request.body_mut() = text.into();
        answers.push(api.send(request).await);
    }
    assert_eq!(answers[1].header("idempotent-replayed"), "true", "{}", answers[1].text());
    assert_eq!(answers[0].json()["id"], answers[1].json()["id"]);
}

#[tokio::test]
async fn a_key_is_taken_at_its_bound_and_refused_beyond_or_when_it_is_not_plain() {
    let api = Api::start().await;
    let longest = "k".repeat(limits::IDEMPOTENCY_KEY_BYTES);
    assert_eq!(api.post_with_key(&longest, &body()).await.status, StatusCode::ACCEPTED);
    for bad in ["", "a b", &format!("{longest}k")] {
        api.post_with_key(bad, &body()).await.assert_problem(400, "idempotency_key_invalid");
    }
}

#[tokio::test]
async fn a_refused_request_does_not_use_its_key_up() {
    let api = Api::start().await;
    api.post_with_key("k1", &body_with(&json!({"prompt": ""}))).await.assert_problem(422, "prompt_blank");
    assert_eq!(api.post_with_key("k1", &body()).await.status, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_requests_at_once_under_one_key_make_one_run() {
    let api = Api::start().await;
    let mut requests = JoinSet::new();
    for _ in 0..16 {
        let mut request = api.json_request("/v1/runs", &body());
        request.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        let router = api.router.clone();
        requests.spawn(async move { Answer::read(router.oneshot(request).await.unwrap()).await });
    }
    let answers = requests.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::ACCEPTED));
    let first = &answers[0].json()["id"];
    assert!(answers.iter().all(|answer| answer.json()["id"] == *first));
    let new = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_empty()).count();
    assert_eq!(new, 1);
    assert_eq!(api.get("/v1/runs").await.json()["items"].as_array().unwrap().len(), 1);
}
