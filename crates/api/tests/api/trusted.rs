//! Branches whose files steer agents: who may have a run write one.

use caisson_domain::id::ProjectId;
use caisson_domain::workflow::Workflow;
use http::StatusCode;
use serde_json::json;

use crate::support::{Answer, Api, body_with};

async fn put(api: &Api, name: &str, block: &str) {
    let text = format!("---\nname: {name}\ndescription: {name}\ncaisson: {block}\n---\nDo it.\n");
    let workflow = Workflow::parse(&text).unwrap();
    api.store.put_workflow(&ProjectId::default_project(), &workflow).await.unwrap();
}

async fn asked(api: &Api, workflow: &str, branch: &str) -> Answer {
    api.post("/v1/runs", &body_with(&json!({"workflow": workflow, "branch": branch}))).await
}

#[tokio::test]
async fn a_branch_that_a_workflow_trusts_is_written_by_no_run_but_where_its_own_workflow_says_so() {
    let api = Api::start().await;
    put(&api, "releases", "{trust: {branches: [stable, release/*]}}").await;
    put(&api, "release-notes", "{trust: {publish: true}}").await;
    put(&api, "looks", "{publish: none, trust: {branches: [stable]}}").await;
    for (workflow, branch) in [("releases", "stable"), ("releases", "release/1"), ("fix", "release/1")] {
        let answer = asked(&api, workflow, branch).await;
        answer.assert_problem(422, "branch_trusted");
        assert_eq!(answer.faults(), [("branch".to_owned(), "branch_trusted".to_owned())]);
        let told = answer.json()["errors"][0]["message"].to_string();
        assert!(told.contains("releases") || told.contains("looks"), "{told}");
        assert!(
            told.contains(branch) && told.contains("name another branch") && told.contains("trust.publish"),
            "{told}"
        );
    }
    for (workflow, branch) in [
        ("release-notes", "stable"),
        ("looks", "stable"),
        ("fix", "release"),
        ("fix", "stable/1"),
        // Nobody here knows that it is the default branch: the gateway does.
        ("fix", "main"),
    ] {
        let answer = asked(&api, workflow, branch).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{workflow} {branch}: {}", answer.text());
    }
}

#[tokio::test]
async fn what_is_trusted_meanwhile_is_written_by_no_follow_up_and_no_fork() {
    let api = Api::start().await;
    let claimed = api.running().await;
    assert!(api.store.put_transcript(&claimed.run.id, "said").await.unwrap());
    api.finish(&claimed).await;
    let path = format!("/v1/sessions/{}/fork", claimed.run.session);
    put(&api, "releases", "{trust: {branches: [release/*]}}").await;
    let fork = api.post(&path, &json!({"branch": "release/1"})).await;
    fork.assert_problem(422, "branch_trusted");
    let fork = api.post(&path, &json!({"branch": "later/1"})).await;
    assert_eq!(fork.status, StatusCode::CREATED, "{}", fork.text());
    let follow = json!({"session": fork.json()["id"], "prompt": "x"});
    put(&api, "releases", "{trust: {branches: [release/*, later/*]}}").await;
    api.post("/v1/runs", &follow).await.assert_problem(422, "branch_trusted");
    put(&api, "fix", "{trust: {publish: true}}").await;
    let fork = api.post(&path, &json!({"branch": "release/1"})).await;
    assert_eq!(fork.status, StatusCode::CREATED, "{}", fork.text());
    let answer = api.post("/v1/runs", &follow).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    // A session that is not there is told of as before.
    let unknown = format!("/v1/sessions/ses_{}/fork", "0".repeat(32));
    api.post(&unknown, &json!({"branch": "release/1"})).await.assert_problem(404, "unknown_session");
}
