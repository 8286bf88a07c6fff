//! Lists of runs, one run, and its cancellation.

use caisson_domain::id::ProjectId;
use caisson_domain::limits;
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_store::Finish;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Api, REPOSITORY, body_with};

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_hold_every_run_once_newest_first() {
    let api = Api::start().await;
    let mut made = Vec::new();
    for _ in 0..60 {
        api.clock.advance(1);
        api.store.heartbeat_server(&api.server, &[]).await.unwrap();
        made.push(api.queued().await.id.to_string());
    }
    made.reverse();
    for limit in [1, 7, 25, 26, 59, 60, 200] {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = api.get(&format!("/v1/runs?limit={limit}{cursor}")).await.json();
            assert!(ids(&page).len() <= limit);
            seen.extend(ids(&page));
            pages += 1;
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen, made, "limit {limit}");
        assert_eq!(pages, made.len().div_ceil(limit), "limit {limit}");
    }
    assert_eq!(ids(&api.get("/v1/runs").await.json()).len(), limits::PAGE_ITEMS_DEFAULT as usize);
}

#[tokio::test]
async fn a_page_is_bounded() {
    let api = Api::start().await;
    let most = limits::PAGE_ITEMS;
    assert_eq!(api.get(&format!("/v1/runs?limit={most}")).await.status, StatusCode::OK);
    for bad in ["0", "-1", "x", "", &(most + 1).to_string()] {
        let answer = api.get(&format!("/v1/runs?limit={bad}")).await;
        answer.assert_problem(400, "invalid_query");
        assert_eq!(answer.faults(), [("limit".to_owned(), "out_of_range".to_owned())]);
    }
}

#[tokio::test]
async fn a_cursor_is_one_of_this_list_or_refused() {
    let api = Api::start().await;
    api.queued().await;
    api.queued().await;
    let sessions = api.get("/v1/sessions?limit=1").await.json();
    for bad in ["x", "", sessions["next_cursor"].as_str().unwrap()] {
        api.get(&format!("/v1/runs?cursor={bad}")).await.assert_problem(400, "invalid_query");
    }
}

#[tokio::test]
async fn filters_narrow_the_list() {
    let api = Api::start().await;
    let done = api.finished(0).await;
    let empty = api.post("/v1/runs", &body_with(&json!({"repository": null}))).await.json();
    let both = [empty["id"].as_str().unwrap().to_owned(), done.id.to_string()];
    let listed = async |query: &str| {
        let mut found = ids(&api.get(&format!("/v1/runs?{query}")).await.json());
        found.sort_unstable();
        found
    };
    let one = |index: usize| vec![both[index].clone()];
    assert_eq!(listed("status=queued").await, one(0));
    assert_eq!(listed("status=succeeded").await, one(1));
    assert_eq!(listed("status=failed").await, Vec::<String>::new());
    assert_eq!(listed(&format!("session={}", done.session)).await, one(1));
    let encoded = REPOSITORY.replace(':', "%3A").replace('/', "%2F");
    assert_eq!(listed(&format!("repository={encoded}")).await, one(1));
    assert_eq!(listed("workflow=fix").await.len(), 2);
    assert_eq!(listed("workflow=other").await, Vec::<String>::new());
    assert_eq!(listed("workflow=fix&status=queued").await, one(0));
}

#[tokio::test]
async fn a_list_cuts_long_texts_and_the_run_itself_has_them() {
    let api = Api::start().await;
    let prompt = "ä".repeat(limits::PROMPT_BYTES / 2);
    let changes = json!({"prompt": prompt, "environment": {"CI": "1"}});
    let made = api.post("/v1/runs", &body_with(&changes)).await.json();
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    let failure = Failure::new(FailureKind::AgentError, "it broke").with_evidence("e".repeat(5000));
    let finish = Finish { status: RunStatus::Failed, failure: Some(failure), result: Some("r".repeat(5000)) };
    assert!(api.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    let listed = api.get("/v1/runs").await.json()["items"][0].clone();
    assert_eq!(listed["abridged"], true);
    assert_eq!(listed["prompt"].as_str().unwrap().len(), 1024);
    assert_eq!(listed["result"].as_str().unwrap().len(), 1024);
    assert_eq!(listed["failure"]["evidence"].as_str().unwrap().len(), 1024);
    assert_eq!(listed["environment"], Value::Null);
    let whole = api.get(&format!("/v1/runs/{}", made["id"].as_str().unwrap())).await.json();
    assert_eq!(whole["abridged"], false);
    assert_eq!(whole["prompt"], prompt);
    assert_eq!(whole["result"].as_str().unwrap().len(), 5000);
    assert_eq!(whole["environment"], json!({"CI": "1"}));
}

#[tokio::test]
async fn a_finished_run_shows_what_came_of_it() {
    let api = Api::start().await;
    let run = api.finished(0).await;
    insta::assert_json_snapshot!("finished", api.get(&format!("/v1/runs/{}", run.id)).await.steady());
    let claimed = api.running().await;
    let failure = Failure::new(FailureKind::Timeout, "the time limit passed");
    let finish = Finish { status: RunStatus::Failed, failure: Some(failure), result: None };
    assert!(api.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    let failed = api.get(&format!("/v1/runs/{}", claimed.run.id)).await.json();
    assert_eq!(failed["status"], "failed");
    insta::assert_json_snapshot!("failure", failed["failure"]);
}

#[tokio::test]
async fn a_run_that_is_not_there_is_not_found() {
    let api = Api::start().await;
    api.get(&format!("/v1/runs/run_{}", "0".repeat(32))).await.assert_problem(404, "unknown_run");
}

#[tokio::test]
async fn cancelling_works_once_and_may_be_repeated() {
    let api = Api::start().await;
    let cancel = async |id: &str| {
        let request = api.request(Method::POST, &format!("/v1/runs/{id}/cancel"));
        api.send(request.body(axum::body::Body::empty()).unwrap()).await
    };
    let queued = api.queued().await.id.to_string();
    let first = cancel(&queued).await;
    assert_eq!((first.status, &first.json()["status"]), (StatusCode::ACCEPTED, &json!("cancelled")));
    let again = cancel(&queued).await;
    assert_eq!((again.status, &again.json()["status"]), (StatusCode::OK, &json!("cancelled")));

    let claimed = api.running().await;
    let running = claimed.run.id.to_string();
    for _ in 0..2 {
        let told = cancel(&running).await;
        assert_eq!((told.status, &told.json()["status"]), (StatusCode::ACCEPTED, &json!("running")));
        assert!(told.json()["cancel_requested_at_ms"].is_i64());
    }
    let events = api.store.events(&claimed.run.id, 0, 100).await.unwrap();
    let stops = events.iter().filter(|event| event.kind.as_str() == "run.stop_requested").count();
    assert_eq!(stops, 1);
    api.finish(&claimed).await;
    assert_eq!(cancel(&running).await.status, StatusCode::OK);
    cancel(&format!("run_{}", "0".repeat(32))).await.assert_problem(404, "unknown_run");
    assert!(api.store.run(&ProjectId::default_project(), &claimed.run.id).await.unwrap().is_some());
}
