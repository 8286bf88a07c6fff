//! Rows that break an invariant are named, never guessed at.

use caisson_domain::event::EventKind;
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_domain::usage::TokenCounts;
use caisson_store::{Finish, JournalEffect, NewModelCall, RunFilter, Topic};
use serde_json::{Value, json};

use crate::fixture::{
    ALL, Fixture, START_MS, assert_corrupt, assert_gapless, completed, project, spec_on, woken,
};

conformance! {
    a_run_whose_specification_is_not_one_is_named,
    a_damaged_run_ends_when_it_is_claimed_and_others_go_on,
    a_damaged_run_ends_when_it_is_adopted_and_others_go_on,
    a_run_whose_events_cannot_be_numbered_ends_when_it_is_claimed_and_others_go_on,
    a_running_run_that_cannot_be_read_is_ended_unread_once,
    fields_of_another_version_are_tolerated,
    an_id_that_is_none_is_named,
    an_event_of_an_unknown_kind_is_named,
    an_event_whose_data_is_not_json_is_named,
    an_outcome_that_is_not_one_is_named,
    a_uid_out_of_range_is_named,
    a_workflow_that_is_not_one_is_named,
    a_key_with_unknown_scopes_is_named,
    the_database_itself_refuses_unknown_states,
    the_database_itself_refuses_two_live_runs_of_a_session,
}

// PostgreSQL checks the key again when the row is written, so there is no such run.
only_sqlite! {
    a_damaged_run_without_a_session_ends_without_an_event,
}

async fn a_run_whose_specification_is_not_one_is_named(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.execute("update run set spec = '{}'").await;
    let what = format!("run.spec of {}", run.id);
    assert_corrupt(fixture.store.run(&project(), &run.id).await, &what);
    assert_corrupt(fixture.store.list_runs(&project(), &RunFilter::default(), None, 1).await, &what);
    assert_corrupt(fixture.store.request_cancel(&project(), &run.id, None).await, &what);
    let status: String = fixture.value("select status from run").await;
    assert_eq!(status, "queued", "what could not be read was not changed either");
}

/// The one failed run's failure and its last event, read without the store.
async fn ended(fixture: &Fixture) -> (Value, Value) {
    let failure: String = fixture.value("select failure from run where status = 'failed'").await;
    let told: String = fixture
        .value(
            "select data from event where kind = 'run.finished' and run_id = \
             (select id from run where status = 'failed') order by seq desc",
        )
        .await;
    (serde_json::from_str(&failure).unwrap(), serde_json::from_str(&told).unwrap())
}

async fn a_damaged_run_ends_when_it_is_claimed_and_others_go_on(fixture: Fixture) {
    let damaged = fixture.created(spec_on("/srv/git/x", "fix/1")).await;
    fixture.execute("update run set spec = '{}'").await;
    fixture.clock.advance(1);
    let next = fixture.created(spec_on("/srv/git/x", "fix/1")).await;
    assert_eq!(fixture.claim().await.run.id, next.id, "the damaged one keeps neither queue nor branch");
    let (failure, told) = ended(&fixture).await;
    assert_eq!((&failure["kind"], &told["failure"]), (&json!("internal"), &failure));
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains(&format!("run.spec of {}", damaged.id)), "{message}");
    assert!(failure["evidence"].as_str().unwrap().contains("missing field"), "{failure}");
    let events = fixture.store.session_events(&damaged.session, 0, ALL).await.unwrap();
    assert_gapless(&events);
    assert_eq!(events.last().unwrap().kind, EventKind::RunFinished);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
}

const REMOVE_WORKFLOW: (&str, &str) = (
    "update run set spec = json_remove(spec, '$.workflow')",
    "update run set spec = cast(cast(spec as jsonb) - 'workflow' as text)",
);

async fn a_damaged_run_ends_when_it_is_adopted_and_others_go_on(fixture: Fixture) {
    let placed = fixture.placed().await;
    let call = NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: 7,
        reserve_micro_usd: 7,
        only_alone: false,
    };
    fixture.store.begin_model_call(&placed.run.id, &call).await.unwrap();
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    fixture.execute(REMOVE_WORKFLOW).await;
    fixture.queued().await;
    let sound = fixture.claim().await;
    let adopted = fixture.store.adopt(&fixture.server).await.unwrap();
    assert_eq!(adopted.iter().map(|claimed| &claimed.run.id).collect::<Vec<_>>(), [&sound.run.id]);
    let (failure, told) = ended(&fixture).await;
    assert!(failure["message"].as_str().unwrap().contains("run.spec"), "{failure}");
    assert_eq!(told["usage"]["cost_micro_usd"], json!(7), "what it cost is told");
    assert!(!fixture.store.is_sandbox_needed(&placed.sandbox).await.unwrap());
    assert_eq!(fixture.value::<i64>("select count(*) from input").await, 0);
    assert_eq!(fixture.store.adopt(&fixture.server).await.unwrap().len(), 1, "it is over");
}

async fn a_run_whose_events_cannot_be_numbered_ends_when_it_is_claimed_and_others_go_on(fixture: Fixture) {
    let damaged = fixture.queued().await;
    fixture.execute("update session set last_seq = 0").await;
    fixture.clock.advance(1);
    let next = fixture.queued().await;
    assert_eq!(fixture.claim().await.run.id, next.id);
    let damaged = fixture.run(&damaged.id).await;
    assert_eq!(damaged.status, RunStatus::Failed);
    assert!(damaged.failure.unwrap().message.contains("a constraint"));
}

async fn a_running_run_that_cannot_be_read_is_ended_unread_once(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.execute("update run set spec = '[]', outcome = '[]'").await;
    assert!(fixture.store.is_sandbox_needed(&placed.sandbox).await.unwrap());
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    let finished = fixture.store.finish(&placed.run.id, placed.epoch, &finish).await;
    assert_corrupt(finished, &format!("run.spec of {}", placed.run.id));
    let failure = Failure::new(FailureKind::Internal, "a fault").with_evidence("seen");
    let mut sandbox = fixture.store.watch(Topic::Sandbox(placed.sandbox.clone()));
    assert!(fixture.store.end_unread(&placed.run.id, placed.epoch, &failure).await.unwrap());
    assert!(woken(&mut sandbox), "its sandbox is told");
    assert!(!fixture.store.end_unread(&placed.run.id, placed.epoch, &failure).await.unwrap());
    assert_eq!(ended(&fixture).await.0, json!(failure));
    assert_eq!(fixture.value::<Option<i64>>("select ended_at_ms from attempt").await, Some(START_MS));
    let kinds = fixture.kinds(&placed.run.id).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::RunFinished).count(), 1);
}

async fn a_damaged_run_without_a_session_ends_without_an_event(fixture: Fixture) {
    fixture.queued().await;
    for session in [
        "update run set session_id = 'ses_x'",
        "update run set session_id = 'ses_ffffffffffffffffffffffffffffffff'",
    ] {
        fixture.execute("update run set status = 'queued', finished_at_ms = null").await;
        fixture.execute(session).await;
        assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
        let failure: String = fixture.value("select failure from run where status = 'failed'").await;
        assert!(failure.contains("session"), "{failure}");
    }
    assert_eq!(fixture.value::<i64>("select count(*) from event").await, 1);
}

async fn fields_of_another_version_are_tolerated(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    fixture
        .execute((
            "update run set outcome = json_set(outcome, '$.new', 1), spec = json_set(spec, '$.new', 1, \
             '$.workflow.new', 1, '$.workflow.caisson.new', 1, '$.workflow.caisson.resources.new', 1)",
            "update run set outcome = cast(cast(outcome as jsonb) || '{\"new\":1}' as text), \
             spec = cast(jsonb_set(cast(spec as jsonb) || '{\"new\":1}', '{workflow,new}', '{}') as text)",
        ))
        .await;
    assert_eq!(fixture.run(&placed.run.id).await.spec, placed.run.spec);
    let adopted = fixture.store.adopt(&fixture.server).await.unwrap().remove(0);
    let progress = fixture.store.progress(&placed.run.id, adopted.epoch).await.unwrap().unwrap();
    assert_eq!(progress.outcome, Some(completed("done")));
}

async fn an_id_that_is_none_is_named(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.execute("update run set session_id = 'ses_x'").await;
    assert_corrupt(fixture.store.run(&project(), &run.id).await, &format!("run.session_id of {}", run.id));
}

async fn an_event_of_an_unknown_kind_is_named(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.execute("update event set kind = 'run.paused'").await;
    let what = format!("event.kind of {} number 1", run.session);
    assert_corrupt(fixture.store.events(&run.id, 0, 1).await, &what);
}

async fn an_event_whose_data_is_not_json_is_named(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.execute("update event set data = '{'").await;
    let what = format!("event.data of {} number 1", run.session);
    assert_corrupt(fixture.store.session_events(&run.session, 0, 1).await, &what);
}

async fn an_outcome_that_is_not_one_is_named(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.execute("update run set outcome = '[]'").await;
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await;
    assert_corrupt(progress, &format!("run.outcome of {}", placed.run.id));
}

async fn a_uid_out_of_range_is_named(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.execute("update sandbox set uid = -1").await;
    let what = format!("sandbox.uid of {}", placed.sandbox);
    assert_corrupt(fixture.store.sandbox(&placed.sandbox).await, &what);
}

async fn a_workflow_that_is_not_one_is_named(fixture: Fixture) {
    fixture.store.put_workflow(&project(), &crate::fixture::workflow("bug-fixer")).await.unwrap();
    fixture.execute("update workflow set definition = 'null'").await;
    assert_corrupt(fixture.store.list_workflows(&project()).await, "workflow.definition of bug-fixer");
}

async fn a_key_with_unknown_scopes_is_named(fixture: Fixture) {
    let (id, secret) = fixture.store.create_api_key(&project(), "ci", &[]).await.unwrap();
    fixture.execute("update api_key set scopes = '[\"root\"]'").await;
    let what = format!("api_key.scopes of {id}");
    assert_corrupt(fixture.store.authenticate(secret.expose()).await, &what);
    assert_corrupt(fixture.store.list_api_keys(&project()).await, &what);
}

async fn the_database_itself_refuses_unknown_states(fixture: Fixture) {
    let placed = fixture.placed().await;
    for change in [
        "update run set status = 'paused'",
        "update run set phase = 'rest'",
        "update run set waiting = 'rain'",
        "update run set status = 'succeeded', lease_expires_at_ms = null",
        "update run set status = 'queued'",
        "update run set spec = 'no json'",
        "update sandbox set state = 'paused'",
        "update sandbox set journal_offset = -1",
        "update sandbox_grant set kind = 'root'",
    ] {
        assert!(fixture.try_execute(change).await.is_err(), "{change}");
    }
    assert_eq!(fixture.run(&placed.run.id).await, placed.run);
}

async fn the_database_itself_refuses_two_live_runs_of_a_session(fixture: Fixture) {
    fixture.placed().await;
    let second = "insert into run (id, project_id, session_id, workflow, status, home_server_id, not_before_ms, \
         created_at_ms, spec) select 'run_ffffffffffffffffffffffffffffffff', project_id, session_id, workflow, status, \
         home_server_id, not_before_ms, created_at_ms, spec from run";
    assert!(fixture.try_execute(second).await.is_err());
}
