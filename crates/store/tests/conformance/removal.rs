//! Sessions with many rows go step by step, and are hidden from the first one on.

use caisson_domain::retention::{Kept, Retention};
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{
    Actor, CreateRun, DeleteSession, Finish, REMOVAL_ROWS, REMOVALS_AT_ONCE, RunFilter, SandboxState,
};

use crate::fixture::{ALL, Fixture, new_run, project, spec};

conformance! {
    a_large_session_is_hidden_at_once_and_goes_step_by_step_also_after_a_crash,
    a_large_session_whose_days_are_over_goes_step_by_step,
    what_is_not_much_is_gone_with_the_answer,
}

const BY: Actor = Actor::Operator;
/// Numbers of a large session's events.
const EVENTS: i64 = 15_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Every table that a session has rows in.
const ROWS: &str = "select (select count(*) from session) + (select count(*) from run) + (select count(*) from event) \
     + (select count(*) from usage) + (select count(*) from attempt) + (select count(*) from sandbox) \
     + (select count(*) from sandbox_grant) + (select count(*) from input) + (select count(*) from session_files)";

/// A session whose run has ended, with many events and calls.
async fn large(fixture: &Fixture) -> Run {
    let placed = fixture.placed().await;
    crate::usage::settled_call(fixture, &placed.run.id).await;
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Destroyed).await.unwrap();
    fixture
        .execute(
            "insert into event (session_id, seq, project_id, run_id, at_ms, kind, data) \
         with recursive numbers (seq) as (select cast(last_seq as bigint) + 1 from session \
           union all select seq + 1 from numbers where seq < 15000) \
         select run.session_id, numbers.seq, run.project_id, run.id, 0, 'note', '{}' from run, numbers",
        )
        .await;
    fixture.execute("update session set last_seq = 15000").await;
    fixture.execute(
        "insert into usage (id, project_id, session_id, run_id, server_id, state, model, input_tokens, output_tokens, \
           cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, settled_at_ms) \
         with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 2500) \
         select id || '_' || n, project_id, session_id, run_id, server_id, state, model, 1, 1, 1, 1, 1, 1, 0, 0, 0 from usage, numbers",
    ).await;
    placed.run
}

async fn assert_hidden(fixture: &Fixture, run: &Run) {
    let (store, session) = (&fixture.store, &run.session);
    assert_eq!(store.session(&project(), session).await.unwrap(), None);
    assert_eq!(store.run(&project(), &run.id).await.unwrap(), None);
    assert_eq!(store.list_sessions(&project(), None, ALL).await.unwrap(), []);
    assert_eq!(store.list_runs(&project(), &RunFilter::default(), None, ALL).await.unwrap(), []);
    assert_eq!(store.go_on(&project(), session).await.unwrap(), None, "neither goes on nor is forked");
    let new = store.create_run_in(session.clone(), new_run(spec())).await.unwrap();
    assert_eq!(new, CreateRun::NoSession);
    let again = store.delete_session_of(&project(), session, BY).await.unwrap();
    assert_eq!(again, DeleteSession::Unknown);
    let projects = store.list_projects(None, 10).await.unwrap();
    assert_eq!(projects.len(), 1, "where it is, nobody sees");
    for part in [store.check_events().await.unwrap(), store.check_references().await.unwrap()] {
        assert_eq!(part.faults, Vec::<String>::new());
    }
}

/// Removes the rest, and asserts that no step removes much.
async fn remove_the_rest(fixture: &Fixture) -> i64 {
    let mut steps = 0;
    let mut before: i64 = fixture.value(ROWS).await;
    while fixture.store.remove_some().await.unwrap() {
        let after: i64 = fixture.value(ROWS).await;
        // The last step takes what is left of the session as well.
        assert!(after < before && before - after <= REMOVAL_ROWS + 20, "step {steps}: {before}, {after}");
        (before, steps) = (after, steps + 1);
    }
    assert_eq!(before, 0);
    steps
}

async fn a_large_session_is_hidden_at_once_and_goes_step_by_step_also_after_a_crash(fixture: Fixture) {
    let run = large(&fixture).await;
    let deleted = fixture.store.delete_session_of(&project(), &run.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    let left: i64 = fixture.value(ROWS).await;
    let at_once = i64::from(REMOVALS_AT_ONCE) * REMOVAL_ROWS;
    assert!((EVENTS - at_once..EVENTS).contains(&left), "{left}");
    assert_hidden(&fixture, &run).await;
    let fixture = fixture.reopen().await;
    assert!(fixture.store.remove_some().await.unwrap(), "it is found again");
    assert_hidden(&fixture, &run).await;
    assert!(remove_the_rest(&fixture).await > 2);
    assert!(!fixture.store.remove_some().await.unwrap());
    let records: i64 = fixture.value("select count(*) from audit where action = 'session.delete'").await;
    assert_eq!(records, 1);
    let left = fixture.store.files_left(&fixture.server).await.unwrap();
    assert_eq!(left.len(), 2, "its files go by themselves");
    let other = fixture.queued().await;
    assert!(fixture.store.session(&project(), &other.session).await.unwrap().is_some());
}

async fn a_large_session_whose_days_are_over_goes_step_by_step(fixture: Fixture) {
    let run = large(&fixture).await;
    fixture.execute("delete from session_files").await;
    fixture.execute("update session set events_deleted_seq = last_seq").await;
    let policy = Retention { sessions_days: 1, ..Retention::default() };
    fixture.clock.advance(DAY_MS);
    // Retention has taken its events, and nothing takes its calls but its end.
    fixture.execute("delete from event where kind = 'note'").await;
    fixture
        .execute(
            "insert into usage (id, project_id, session_id, run_id, server_id, state, model, input_tokens, output_tokens, \
               cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, settled_at_ms) \
             with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 5) \
             select id || '-' || n, project_id, session_id, run_id, server_id, state, model, 1, 1, 1, 1, 1, 1, 0, 0, 0 from usage, numbers",
        )
        .await;
    assert!(fixture.store.delete_session(&run.session, &policy, &BY).await.unwrap());
    assert_hidden(&fixture, &run).await;
    let listed = fixture.store.expired(Kept::Sessions, &fixture.server, &policy).await.unwrap();
    assert_eq!(listed, [], "once");
    assert!(remove_the_rest(&fixture).await > 2);
}

async fn what_is_not_much_is_gone_with_the_answer(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    let deleted = fixture.store.delete_session_of(&project(), &run.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    assert_eq!(fixture.value::<i64>(ROWS).await, 0);
    assert!(!fixture.store.remove_some().await.unwrap());
}
