//! What is in the database before anything is typed.

use std::path::Path;

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ProjectId, RunId, ServerId};
use caisson_domain::run::{Resources, RunSpec, RunStatus};
use caisson_domain::usage::TokenCounts;
use caisson_domain::workflow::Workflow;
use caisson_store::{
    Clock, ClockHandle, CreateRun, Finish, NewArtifact, NewModelCall, NewRun, SettledCall, Store,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;

use super::support;

/// When everything happened that was put there, Unix ms: 2023-11-14T22:13:20Z.
const THEN_MS: i64 = 1_700_000_000_000;
const PATCH: &str = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";
const WORKFLOW: &str = "---\nname: fix\ndescription: Fixes bugs.\ncaisson: {timeout_s: 600}\n---\nFix it.\n";

/// A run that has ended, one that waits, and a server that is gone, all of them made a while ago.
pub(crate) async fn fill(spec: &ServerSpec, postgres: Option<&Postgres>) -> Vec<(&'static str, String)> {
    let state = spec.state_dir.as_path();
    let (clock, handle) = Clock::fixed_at(THEN_MS);
    let store = support::open(spec, postgres, clock).await;
    let server: ServerId = std::fs::read_to_string(state.join("server_id")).unwrap().trim().parse().unwrap();
    let gone = ServerId::new(THEN_MS, [7; 10]);
    store.register_server(&gone).await.unwrap();
    store.register_server(&server).await.unwrap();
    let project = ProjectId::default_project();
    store.put_workflow(&project, &Workflow::parse(WORKFLOW).unwrap()).await.unwrap();
    let (key, _) = store.create_api_key(&project, "laptop", &[]).await.unwrap();
    let run = ended(&store, &handle, &server, state).await;
    handle.advance(1_000);
    let queued = create(&store, "Review the calendar.").await;
    let session = store.run(&project, &run).await.unwrap().unwrap().session;
    store.close().await.unwrap();
    vec![
        ("$SESSION", session.to_string()),
        ("$RUN", run.to_string()),
        ("$QUEUED", queued.to_string()),
        ("$KEY", key.to_string()),
        ("$SERVER", gone.to_string()),
    ]
}

async fn create(store: &Store, prompt: &str) -> RunId {
    let spec = RunSpec {
        workflow: Workflow::parse(WORKFLOW).unwrap(),
        prompt: prompt.to_owned(),
        repository: None,
        base: None,
        anchor: None,
        branch: None,
        model: None,
        max_turns: None,
        image: None,
        timeout_s: 600,
        budget_micro_usd: None,
        budget_soft_percent: None,
        resources: Resources::default(),
        environment: std::collections::BTreeMap::new(),
        priority: 0,
        // It waits for as long as the test runs.
        start_at_ms: None,
        parameters: caisson_domain::parameters::Values::new(),
        output_schema: None,
        attachments: Vec::new(),
        workflow_version: None,
    };
    let new = NewRun { project: ProjectId::default_project(), created_by: None, spec, idempotency: None };
    let CreateRun::Created(run) = store.create_run(new).await.unwrap() else { panic!("not created") };
    run.id
}

async fn ended(store: &Store, clock: &ClockHandle, server: &ServerId, state: &Path) -> RunId {
    let run = create(store, "Fix the leap day bug.").await;
    let claimed = store.claim(server).await.unwrap().unwrap();
    clock.advance(500);
    let said = json!({"type": "assistant", "message": {"id": "m", "content": [
        {"type": "text", "text": "The rule for centuries is missing."},
    ]}});
    let line = NewEvent::new(EventKind::AgentLine, &said);
    assert!(store.append_run_event(&run, claimed.epoch, line).await.unwrap());
    let used = json!({"items": [{"host": "pypi.example", "port": 443, "via": "tunnel", "method": null}]});
    let event = NewEvent::new(EventKind::EgressUsed, &used);
    assert!(store.append_run_event(&run, claimed.epoch, event).await.unwrap());
    for (model, input, estimated) in [("claude-sonnet-5", 1_200, false), ("claude-haiku-5-5", 90, true)] {
        let new = NewModelCall {
            model: model.to_owned(),
            estimate: TokenCounts::default(),
            estimate_cost_micro_usd: 0,
            reserve_micro_usd: 0,
            only_alone: false,
        };
        let id = store.begin_model_call(&run, &new).await.unwrap().begun().unwrap();
        let settled = SettledCall {
            model: model.to_owned(),
            status: 200,
            tokens: TokenCounts {
                input,
                output: 340,
                cache_read: 18_000,
                cache_write_5m: 2_500,
                cache_write_1h: 0,
            },
            cost_micro_usd: 10 * input,
            estimated,
            first_byte_ms: Some(40),
            duration_ms: 900,
        };
        assert!(store.settle_model_call(&id, &settled).await.unwrap());
    }
    let place = state.join("artifacts").join(run.as_str());
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("diff.patch"), PATCH).unwrap();
    let artifact = NewArtifact {
        name: "diff.patch".to_owned(),
        size_bytes: i64::try_from(PATCH.len()).unwrap(),
        sha256: hex::encode(Sha256::digest(PATCH)),
        path: place.join("diff.patch").to_str().unwrap().to_owned(),
    };
    store.put_artifact(&run, &artifact).await.unwrap();
    clock.advance(1_500);
    let finish = Finish {
        status: RunStatus::Succeeded,
        failure: None,
        result: Some("The calendar knows centuries.".to_owned()),
    };
    assert!(store.finish(&run, claimed.epoch, &finish).await.unwrap());
    run
}
