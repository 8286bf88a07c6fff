//! Where a run stands, in the shapes of all generations.

use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_store::{Claimed, Finish};
use serde_json::{Value, json};

use super::{FIRST, PREFIXES, SECOND, api, started, steady, task};
use crate::support::Api;

const READ: &str = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"I look."},{"type":"tool_use","id":"t1","name":"Read","input":{"file_path":"x"}}]}}"#;
const BASH: &str = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t2","name":"Bash","input":{"command":"make"}}]}}"#;

async fn claimed(api: &Api) -> Claimed {
    started(api, FIRST, &task()).await;
    api.store.claim(&api.server).await.unwrap().unwrap()
}

async fn end(api: &Api, claimed: &Claimed, status: RunStatus, failure: Option<FailureKind>) {
    let failure = failure.map(|kind| Failure::new(kind, "it went wrong"));
    let finish = Finish { status, failure, result: Some("All done.".to_owned()) };
    api.clock.advance(2500);
    assert!(api.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
}

async fn of(api: &Api, prefix: &str, claimed: &Claimed) -> Value {
    let answer = api.get(&format!("{prefix}/run/{}/status", claimed.run.id)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn a_waiting_a_running_and_an_ended_run_are_shown() {
    let api = api().await;
    let run = started(&api, FIRST, &task()).await;
    let path = format!("{FIRST}/run/{}/status", run["run_id"].as_str().unwrap());
    let waiting = api.get(&path).await.json();
    assert_eq!((&waiting["status"], &waiting["result"]["success"]), (&json!("pending"), &json!(false)));
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    api.say(&claimed, READ).await;
    api.say(&claimed, BASH).await;
    insta::assert_json_snapshot!("status_running", steady(&api.get(&path).await));
    end(&api, &claimed, RunStatus::Succeeded, None).await;
    insta::assert_json_snapshot!("status_completed", steady(&api.get(&path).await));
    let early = api.get(&path.replace("workflows", "agent")).await;
    insta::assert_json_snapshot!("status_completed_early", steady(&early));
    let debug = api.get(&format!("{path}?debug=true")).await.json()["debug"].clone();
    assert_eq!(debug["tool_usage"], json!({"Bash": 1, "Read": 1}));
}

#[tokio::test]
async fn flags_and_aliases_of_the_path_are_taken() {
    let api = api().await;
    let claimed = claimed(&api).await;
    let path = format!("{FIRST}/run/{}/status", claimed.run.id);
    let plain = api.get(&path).await.json();
    for query in ["debug=false", "detailed=true", "enhanced=true", "debug=False&detailed=1"] {
        assert_eq!(api.get(&format!("{path}?{query}")).await.json(), plain, "{query}");
    }
    assert_eq!(api.get(&path.replace("/status", "/enhanced-status")).await.json(), plain);
    assert_eq!(api.get(&format!("{path}?debug=perhaps")).await.status, 422);
    let by_session = api.get(&format!("{FIRST}/run/{}/status", claimed.run.session)).await.json();
    assert_eq!(by_session["run_id"], plain["run_id"], "a session stands for its newest run");
}

#[tokio::test]
async fn the_ends_have_the_words_that_each_client_knows() {
    for (status, failure, first, second, kind) in [
        (RunStatus::Succeeded, None, "completed", "completed", "completed_successfully"),
        (RunStatus::Failed, Some(FailureKind::AgentError), "failed", "failed", "failed"),
        (RunStatus::Failed, Some(FailureKind::Timeout), "failed", "failed", "timeout"),
        (RunStatus::Failed, Some(FailureKind::MaxTurns), "failed", "failed", "max_turns_reached"),
        (RunStatus::Cancelled, None, "killed", "cancelled", "killed"),
    ] {
        let api = api().await;
        let claimed = claimed(&api).await;
        end(&api, &claimed, status, failure).await;
        let shown = of(&api, FIRST, &claimed).await;
        assert_eq!((&shown["status"], &shown["result"]["completion_type"]), (&json!(first), &json!(kind)));
        assert_eq!(of(&api, SECOND, &claimed).await["status"], second);
        assert_eq!(shown["error_message"].is_string(), failure.is_some());
        for path in [format!("{FIRST}/runs"), format!("{SECOND}/runs")] {
            let word = if path.starts_with(SECOND) { second } else { first };
            assert_eq!(api.get(&path).await.json()["runs"][0]["status"], word);
        }
    }
}

#[tokio::test]
async fn fields_have_the_kinds_that_clients_compute_with() {
    let api = api().await;
    let claimed = claimed(&api).await;
    for prefix in PREFIXES.iter().chain([&SECOND]) {
        let shown = of(&api, prefix, &claimed).await;
        for number in ["current_turn", "max_turns", "turns", "tool_calls", "tokens"] {
            assert!(shown[number].is_u64(), "{number} {shown}");
        }
        for number in ["cost", "execution_time", "execution_time_seconds"] {
            assert!(shown[number].is_number(), "{number} {shown}");
        }
        assert!(shown["metrics"]["cost_usd"].is_number() && shown["tools_used"].is_array(), "{shown}");
        assert!(shown["session_id"].is_string() && shown["current_phase"].is_string(), "{shown}");
    }
    let (first, second) = (of(&api, FIRST, &claimed).await, of(&api, SECOND, &claimed).await);
    assert_eq!(first["started_at"], "2026-09-21T14:13:20.000+00:00");
    assert_eq!(second["started_at"], "2026-09-21T14:13:20.000");
    assert!(first["result"].is_object());
    assert_eq!(of(&api, PREFIXES[1], &claimed).await["result"], Value::Null, "a text, once there is one");
}
