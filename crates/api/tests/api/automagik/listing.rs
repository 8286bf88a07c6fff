//! Runs by page number.

use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_store::Finish;
use serde_json::{Value, json};

use super::{FIRST, SECOND, api, started, steady, task_with};
use crate::support::Api;

/// Runs that ended in every way, one that runs and one that waits; each a moment after the one before.
async fn filled() -> Api {
    let api = api().await;
    let ends = [
        (RunStatus::Succeeded, None),
        (RunStatus::Failed, Some(FailureKind::Timeout)),
        (RunStatus::Failed, Some(FailureKind::AgentError)),
        (RunStatus::Cancelled, None),
    ];
    for (number, (status, kind)) in ends.into_iter().enumerate() {
        api.clock.advance(100);
        started(&api, FIRST, &task_with(&json!({ "user_id": number.to_string() }))).await;
        let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
        api.clock.advance(100 * i64::try_from(10 - number).unwrap());
        let failure = kind.map(|kind| Failure::new(kind, "it went wrong"));
        let finish = Finish { status, failure, result: None };
        assert!(api.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    }
    api.clock.advance(100);
    started(&api, FIRST, &task_with(&json!({ "user_id": "running" }))).await;
    api.store.claim(&api.server).await.unwrap().unwrap();
    api.clock.advance(100);
    api.post(&format!("{FIRST}/run/surgeon"), &task_with(&json!({ "user_id": "waiting" }))).await;
    api
}

async fn users(api: &Api, query: &str) -> Vec<String> {
    let answer = api.get(&format!("{FIRST}/runs?{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    let page = answer.json();
    page["runs"].as_array().unwrap().iter().map(|run| run["user_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_list_is_narrowed_by_status_workflow_and_user() {
    let api = filled().await;
    for (query, expected) in [
        ("status=pending", vec!["waiting"]),
        ("status=running", vec!["running"]),
        ("status=completed", vec!["0"]),
        ("status=failed", vec!["2", "1"]),
        ("status=timeout", vec!["1"]),
        ("status=killed", vec!["3"]),
        ("status=cancelled", vec!["3"]),
        ("workflow_name=surgeon", vec!["waiting"]),
        ("workflow_name=no-such", vec![]),
        ("user_id=2", vec!["2"]),
        ("user_id=2&status=killed", vec![]),
        ("detailed=True&unknown=1", vec!["waiting", "running", "3", "2", "1", "0"]),
        ("sort_by=started_at&sort_order=asc", vec!["0", "1", "2", "3", "running", "waiting"]),
        ("sort_by=execution_time&page_size=3", vec!["0", "1", "2"]),
        ("sort_by=completed_at&sort_order=desc&page_size=1", vec!["3"]),
        ("sort_by=total_cost&page_size=2", vec!["waiting", "running"]),
        ("workflow_name=bug-fixer&status=completed", vec!["0"]),
    ] {
        assert_eq!(users(&api, query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn pages_hold_every_run_once_and_count_them() {
    let api = filled().await;
    let mut seen = Vec::new();
    for (page, next, before) in [(1, true, false), (2, false, true), (3, false, true)] {
        let answer = api.get(&format!("{FIRST}/runs?page={page}&page_size=4")).await.json();
        assert_eq!((&answer["page"], &answer["page_size"]), (&json!(page), &json!(4)));
        let expected = json!({
            "page": page, "page_size": 4, "total": 6, "total_pages": 2, "has_next": next, "has_prev": before,
        });
        assert_eq!((&answer["pagination"], &answer["has_next"]), (&expected, &json!(next)));
        assert_eq!((&answer["total_count"], &answer["total"]), (&json!(6), &json!(6)));
        seen.extend(answer["runs"].as_array().unwrap().iter().map(|run| run["user_id"].clone()));
    }
    assert_eq!(seen, ["waiting", "running", "3", "2", "1", "0"]);
}

#[tokio::test]
async fn a_page_longer_than_one_read_is_whole() {
    let api = api().await;
    for number in 0..30 {
        api.clock.advance(1);
        started(&api, FIRST, &task_with(&json!({ "user_id": number.to_string() }))).await;
    }
    let seen = users(&api, "page_size=28").await;
    let expected: Vec<String> = (2..30).rev().map(|number: i32| number.to_string()).collect();
    assert_eq!(seen, expected);
    assert_eq!(users(&api, "page_size=28&page=2").await, ["1", "0"]);
    let sessions = api.get("/api/v1/sessions?page_size=28").await.json();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 28);
}

#[tokio::test]
async fn filters_that_cannot_be_used_are_400() {
    let api = api().await;
    for query in
        ["status=nonsense", "sort_by=x", "sort_order=up", "page=0", "page=x", "page_size=0", "page_size=101"]
    {
        let answer = api.get(&format!("{FIRST}/runs?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.json()["detail"].is_string(), "{}", answer.text());
    }
    assert_eq!(api.get(&format!("{FIRST}/runs?page=10000")).await.json()["runs"], json!([]));
}

#[tokio::test]
async fn a_run_in_a_list_has_what_each_client_reads() {
    let api = filled().await;
    insta::assert_json_snapshot!("runs", steady(&api.get(&format!("{FIRST}/runs?user_id=1")).await));
    for prefix in [FIRST, SECOND] {
        for run in api.get(&format!("{prefix}/runs")).await.json()["runs"].as_array().unwrap() {
            for text in ["run_id", "session_id", "message", "started_at", "result"] {
                assert!(run[text].is_string(), "{text} {run}");
            }
            for number in ["total_cost", "execution_time", "turns", "total_tokens"] {
                assert!(run[number].is_number(), "{number} {run}");
            }
            let zoned = run["started_at"].as_str().unwrap().ends_with("+00:00");
            assert_eq!(zoned, prefix == FIRST);
        }
    }
    let waiting = api.get(&format!("{FIRST}/runs?user_id=waiting")).await.json()["runs"][0].clone();
    assert_eq!(waiting["result"], "Processing: Fix the session timeout...");
    assert_eq!((&waiting["execution_time"], &waiting["completed_at"]), (&json!(0.0), &Value::Null));
}
