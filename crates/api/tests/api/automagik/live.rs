//! Ending runs, cleaning up, and messages to an agent that works.

use caisson_domain::limits::{PROMPT_BYTES, RUN_MESSAGES_WAITING};
use caisson_domain::run::RunStatus;
use caisson_store::{Finish, Store, Topic};
use serde_json::{Value, json};

use super::{FIRST, PREFIXES, SECOND, api, started, steady, task};
use crate::support::PATIENCE;

#[tokio::test]
async fn a_waiting_run_is_killed_at_once() {
    let api = api().await;
    let run = started(&api, FIRST, &task()).await;
    let path = format!("{FIRST}/run/{}/kill", run["run_id"].as_str().unwrap());
    let killed = api.post(&format!("{path}?force=true"), &json!({})).await;
    assert_eq!(killed.status, 200);
    insta::assert_json_snapshot!("killed", steady(&killed));
    let again = api.post(&path, &json!({})).await.json();
    assert_eq!(
        (&again["success"], &again["status"]),
        (&json!(false), &json!("killed")),
        "it had ended before"
    );
    let audit = api.get("/v1/audit").await.json();
    let cancels = audit["items"].as_array().unwrap().iter().filter(|record| record["action"] == "run.cancel");
    assert_eq!(cancels.count(), 1);
}

/// Plays the worker of the one run: ends it as soon as somebody asks for that.
async fn ends_when_asked(store: &Store, claimed: &caisson_store::Claimed) {
    is_asked(store, claimed).await;
    ends(store, claimed).await;
}

/// Waits until somebody asks for the run's end.
async fn is_asked(store: &Store, claimed: &caisson_store::Claimed) {
    let mut watch = store.watch(Topic::Run(claimed.run.id.clone()));
    loop {
        let run = store.run(&claimed.run.project, &claimed.run.id).await.unwrap().unwrap();
        if run.cancel_requested_at_ms.is_some() {
            return;
        }
        watch.changed(PATIENCE).await;
    }
}

async fn ends(store: &Store, claimed: &caisson_store::Claimed) {
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
}

#[tokio::test]
async fn killing_a_running_run_waits_for_its_end() {
    for (prefix, word) in [(FIRST, "killed"), (PREFIXES[1], "killed"), (SECOND, "cancelled")] {
        let api = api().await;
        started(&api, FIRST, &task()).await;
        let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
        let path = format!("{prefix}/run/{}/kill", claimed.run.id);
        let nothing = json!({});
        let (killed, ()) = tokio::join!(api.post(&path, &nothing), ends_when_asked(&api.store, &claimed));
        let killed = killed.json();
        assert_eq!((&killed["success"], &killed["status"]), (&json!(true), &json!(word)), "{killed}");
        assert_eq!(
            killed["cleanup_status"],
            json!({
                "session_updated": true, "audit_logged": true, "process_terminated": true,
            })
        );
    }
}

#[tokio::test]
async fn who_waits_for_an_end_with_a_key_that_is_revoked_meanwhile_is_refused() {
    for what in ["kill", "cleanup?force=true"] {
        let mut api = api().await;
        started(&api, FIRST, &task()).await;
        let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
        let key = api.take_another_key().await;
        let path = format!("{FIRST}/run/{}/{what}", claimed.run.id);
        let nothing = json!({});
        let (answer, ()) = tokio::join!(api.post(&path, &nothing), async {
            is_asked(&api.store, &claimed).await;
            api.revoke(&key).await;
            ends(&api.store, &claimed).await;
        });
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        assert!(!answer.text().contains(claimed.run.id.as_str()), "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_run_that_has_ended_keeps_its_end() {
    let api = api().await;
    started(&api, FIRST, &task()).await;
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    api.finish(&claimed).await;
    let killed = api.post(&format!("{FIRST}/run/{}/kill", claimed.run.id), &json!({})).await.json();
    assert_eq!((&killed["success"], &killed["status"]), (&json!(false), &json!("completed")));
    let shown = api.get(&format!("{FIRST}/run/{}/status", claimed.run.id)).await.json();
    assert_eq!(shown["status"], "completed");
}

#[tokio::test]
async fn cleaning_up_takes_only_what_has_ended_unless_it_is_forced() {
    let api = api().await;
    let run = started(&api, FIRST, &task()).await;
    let path = format!("{FIRST}/run/{}/cleanup", run["run_id"].as_str().unwrap());
    let refused = api.post(&path, &json!({})).await;
    assert_eq!(refused.status, 400);
    assert!(refused.json()["detail"].as_str().unwrap().contains("pending"), "{}", refused.text());
    let forced = api.post(&format!("{path}?force=true"), &json!({})).await;
    assert_eq!(forced.status, 200);
    insta::assert_json_snapshot!("cleaned_up", steady(&forced));
    assert_eq!(api.post(&path, &json!({})).await.json()["success"], true);
}

#[tokio::test]
async fn a_message_reaches_the_agent_and_the_record() {
    let api = api().await;
    let run = started(&api, FIRST, &task()).await;
    let id = run["run_id"].as_str().unwrap();
    let path = format!("{FIRST}/run/{id}/add-message");
    let added = api.post(&path, &json!({ "message_type": "user", "content": "Mind the tests." })).await;
    assert_eq!(added.status, 200, "{}", added.text());
    insta::assert_json_snapshot!("message_added", steady(&added));
    let again =
        api.post(&path, &json!({ "message_type": "user", "content": "Mind the tests." })).await.json();
    assert_eq!(again["queue_stats"]["total_added"], 1, "a client sends again what it got no answer to");
    let injected =
        api.post(&format!("{FIRST}/run/{id}/inject-message"), &json!({ "message": "And the docs." })).await;
    assert_eq!(injected.json()["queue_stats"]["total_added"], 2);
    let queue = api.get(&format!("{FIRST}/run/{id}/message-queue")).await.json();
    assert_eq!((&queue["success"], &queue["queue_stats"]["current_size"]), (&json!(true), &json!(2)));
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    let inputs: Vec<String> = sqlx::query_scalar("select body from input where run_id = $1 order by seq")
        .bind(id)
        .fetch_all(&api.database().await)
        .await
        .unwrap();
    let texts: Vec<Value> = inputs.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(
        texts,
        [
            json!({"kind": "steer", "data": {"text": "Mind the tests."}}),
            json!({"kind": "steer", "data": {"text": "And the docs."}}),
        ]
    );
    let said = api.get(&format!("/v1/sessions/{}/messages", claimed.run.session)).await.json();
    let said: Vec<&Value> =
        said["items"].as_array().unwrap().iter().map(|message| &message["text"]).collect();
    assert_eq!(said, ["Fix the session timeout", "Mind the tests.", "And the docs."]);
}

#[tokio::test]
async fn messages_that_cannot_be_given_are_400_and_422() {
    let api = api().await;
    let run = started(&api, FIRST, &task()).await;
    let path = format!("{FIRST}/run/{}/add-message", run["run_id"].as_str().unwrap());
    for (body, status) in [
        (json!({ "message_type": "assistant", "content": "x" }), 400),
        (json!({ "message_type": "user", "content": "  " }), 400),
        (json!({ "message_type": "user", "content": "a\u{0}b" }), 400),
        (json!({ "message_type": "user", "content": "x".repeat(PROMPT_BYTES + 1) }), 400),
        (json!({ "message_type": "user" }), 422),
        (json!({ "content": 1 }), 422),
    ] {
        assert_eq!(api.post(&path, &body).await.status, status);
    }
    let inject = path.replace("add-message", "inject-message");
    for (body, status) in
        [(json!({}), 422), (json!({ "message": "x".repeat(10_001) }), 422), (json!({ "message": "" }), 400)]
    {
        assert_eq!(api.post(&inject, &body).await.status, status);
    }
    for number in 0..RUN_MESSAGES_WAITING {
        assert_eq!(api.post(&path, &json!({ "content": number.to_string() })).await.status, 200);
    }
    let full = api.post(&path, &json!({ "content": "one more" })).await;
    assert_eq!(full.status, 400);
    assert!(full.json()["detail"].as_str().unwrap().contains("wait for its agent"), "{}", full.text());
    api.post(&path.replace("add-message", "kill"), &json!({})).await;
    let over = api.post(&path, &json!({ "content": "late" })).await;
    assert_eq!(over.status, 400);
    assert!(over.json()["detail"].as_str().unwrap().contains("killed"), "{}", over.text());
    assert_eq!(api.post(&format!("{FIRST}/run/x/add-message"), &json!({ "content": "x" })).await.status, 404);
}
