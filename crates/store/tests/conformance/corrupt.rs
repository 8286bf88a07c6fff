//! Rows that break an invariant are named, never guessed at.

use caisson_store::RunFilter;

use crate::fixture::{Fixture, assert_corrupt, project};

conformance! {
    a_run_whose_specification_is_not_one_is_named,
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

async fn a_run_whose_specification_is_not_one_is_named(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.execute("update run set spec = '{}'").await;
    let what = format!("run.spec of {}", run.id);
    assert_corrupt(fixture.store.run(&project(), &run.id).await, &what);
    assert_corrupt(fixture.store.list_runs(&project(), &RunFilter::default(), None, 1).await, &what);
    assert_corrupt(fixture.store.claim(&fixture.server).await, &what);
    assert_corrupt(fixture.store.request_cancel(&project(), &run.id).await, &what);
    let status: String = fixture.value("select status from run").await;
    assert_eq!(status, "queued", "what could not be read was not changed either");
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
