//! Approvals over HTTP.

use caisson_domain::approval::{APPROVAL_MESSAGE_BYTES, CHANGED_INPUT_BYTES};
use caisson_domain::id::{ApprovalId, ProjectId, RunId};
use caisson_domain::principal::Scope;
use caisson_domain::workflow::Workflow;
use caisson_store::{JournalEffect, NewApproval};
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Api, NOW_MS, body_with};

const ASKING: &str = "---\nname: careful\ndescription: Asks.\ncaisson:\n  publish: none\n  approvals: {ask: [Write], expires_s: 60}\n---\nAsk.\n";

/// A run whose agent asks so many things, and the path of them.
pub(crate) async fn asking(api: &Api, requests: &[&str]) -> (RunId, String) {
    let project = ProjectId::default_project();
    api.store.put_workflow(&project, &Workflow::parse(ASKING).unwrap()).await.unwrap();
    let made = api.post("/v1/runs", &body_with(&json!({ "workflow": "careful" }))).await;
    assert_eq!(made.status, StatusCode::ACCEPTED, "{}", made.text());
    let claimed = api.store.claim(&api.server).await.unwrap().unwrap();
    let sandbox = api.placed(&claimed).await;
    let asked = |request: &&str| {
        JournalEffect::Asked(NewApproval {
            request: (*request).to_owned(),
            tool: "Write".to_owned(),
            description: Some("a.txt".to_owned()),
            input: json!({ "file_path": "a.txt", "content": "x" }).to_string(),
            cut_bytes: 0,
        })
    };
    api.journal(&claimed, &sandbox, requests.iter().map(asked).collect()).await;
    let path = format!("/v1/runs/{}/approvals", claimed.run.id);
    (claimed.run.id, path)
}

fn of(path: &str, run: &RunId, request: &str) -> String {
    format!("{path}/{}", ApprovalId::of(run, request))
}

#[tokio::test]
async fn an_approval_is_listed_and_answered_once() {
    let api = Api::start().await;
    let (run, path) = asking(&api, &["r1", "r2", "r3"]).await;
    assert_eq!(api.get(&format!("/v1/runs/{run}")).await.json()["waiting"], "approval");
    let first = api.get(&path).await.json()["items"][0].clone();
    let id = first["id"].as_str().unwrap().to_owned();
    assert_eq!(first["input"], json!({ "file_path": "a.txt", "content": "x" }));
    assert_eq!((&first["state"], &first["expires_at_ms"]), (&json!("waiting"), &json!(NOW_MS + 60_000)));
    let allowed = api.post(&format!("{path}/{id}"), &json!({ "decision": "allow" })).await;
    assert_eq!((allowed.status, &allowed.json()["state"]), (StatusCode::OK, &json!("allowed")));
    let again = api.post(&format!("{path}/{id}"), &json!({ "decision": "deny" })).await;
    again.assert_problem(409, "approval_over");
    assert!(again.text().contains("somebody allowed it"), "{}", again.text());
    let ids: Vec<String> = ["r1", "r2", "r3"].map(|request| of(&path, &run, request)).into();
    let left: Vec<&String> = ids.iter().filter(|path| !path.ends_with(&id)).collect();
    let denied = api.post(left[0], &json!({ "decision": "deny", "message": "Not there." })).await.json();
    assert_eq!((&denied["state"], &denied["message"]), (&json!("denied"), &json!("Not there.")));
    let changed = json!({ "file_path": "b.txt", "content": "x" });
    let answered = api.post(left[1], &json!({ "decision": "allow", "input": changed })).await.json();
    assert_eq!((&answered["decision"], &answered["changed_input"]), (&json!("allow"), &changed));
    assert_eq!(api.get(&format!("/v1/runs/{run}")).await.json()["waiting"], Value::Null);
}

#[tokio::test]
async fn what_is_no_answer_is_refused_field_by_field() {
    let api = Api::start().await;
    let (run, path) = asking(&api, &["r1"]).await;
    let path = of(&path, &run, "r1");
    let fits = "x".repeat(CHANGED_INPUT_BYTES - "{\"a\":\"\"}".len());
    for (body, field) in [
        (json!({}), "decision"),
        (json!({ "decision": "perhaps" }), "decision"),
        (json!({ "decision": "deny", "message": " " }), "message"),
        (json!({ "decision": "deny", "message": "x".repeat(APPROVAL_MESSAGE_BYTES + 1) }), "message"),
        (json!({ "decision": "allow", "message": "x" }), "message"),
        (json!({ "decision": "deny", "input": {} }), "input"),
        (json!({ "decision": "allow", "input": 1 }), "input"),
        (json!({ "decision": "allow", "input": { "a": format!("{fits}x") } }), "input"),
        (json!({ "decision": "allow", "more": 1 }), "more"),
    ] {
        let answer = api.post(&path, &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text());
        assert_eq!(answer.faults()[0].0, field, "{}", answer.text());
    }
    let longest = api.post(&path, &json!({ "decision": "allow", "input": { "a": fits } })).await;
    assert_eq!(longest.status, StatusCode::OK, "{}", longest.text());
}

#[tokio::test]
async fn approvals_want_the_scopes_the_project_and_their_run() {
    let mut api = Api::start().await;
    let (run, path) = asking(&api, &["r1"]).await;
    let (one, yes) = (of(&path, &run, "r1"), json!({ "decision": "allow" }));
    api.post(&of(&path, &run, "r2"), &yes).await.assert_problem(404, "unknown_approval");
    api.post(&format!("{path}/x"), &yes).await.assert_problem(404, "unknown_approval");
    let all = api.key.clone();
    api.key = api.key_with(&[Scope::RunsRead]).await;
    api.post(&one, &yes).await.assert_problem(403, "scope_missing");
    api.key = all;
    api.key = api.other_projects_key().await;
    api.post(&one, &yes).await.assert_problem(404, "unknown_approval");
    api.get(&path).await.assert_problem(404, "unknown_run");
}

#[tokio::test]
async fn a_list_of_approvals_goes_on_behind_a_cursor_and_shows_what_was_given_instead() {
    let api = Api::start().await;
    let (run, path) = asking(&api, &["r1", "r2", "r3"]).await;
    let changed = json!({ "b": 1, "a": "x".repeat(1000) });
    let body = json!({ "decision": "allow", "input": changed });
    assert_eq!(api.post(&of(&path, &run, "r2"), &body).await.status, StatusCode::OK);
    let all = api.get(&path).await.json();
    let items = all["items"].as_array().unwrap();
    assert_eq!((items.len(), &all["next_cursor"]), (3, &Value::Null));
    assert_eq!(items.iter().filter(|one| one["changed_input"] == changed).count(), 1);
    let cursor = hex::encode(items[0]["id"].as_str().unwrap());
    let rest = api.get(&format!("{path}?cursor={cursor}")).await.json();
    assert_eq!(rest["items"].as_array().unwrap()[..], items[1..]);
    api.get(&format!("{path}?cursor=zz")).await.assert_problem(400, "invalid_query");
    api.get(&format!("{path}?limit=1")).await.assert_problem(400, "invalid_query");
}
