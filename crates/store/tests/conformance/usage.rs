//! Accounting of model calls.

use caisson_domain::event::EventKind;
use caisson_domain::id::{RunId, UsageId};
use caisson_domain::run::RunStatus;
use caisson_domain::usage::{TokenCounts, UsageTotals};
use caisson_store::{
    BeginCall, CALL_COST_MICRO_USD_MAX, CALL_TOKENS_MAX, Finish, JournalEffect, NewModelCall, SettledCall,
};
use serde_json::json;

use crate::fixture::{Fixture, completed, project, server_id};

conformance! {
    a_call_counts_as_begun_at_once_and_its_numbers_once_settled,
    a_call_is_settled_once,
    of_settlements_at_once_one_counts,
    calls_add_up_over_a_run_and_its_session,
    an_orphaned_call_is_settled_with_its_estimate,
    only_the_servers_own_calls_are_orphans,
    orphans_of_a_run_given_back_are_settled_too,
    more_orphans_than_a_batch_are_all_settled,
    a_call_open_at_the_end_counts_as_estimated_and_never_again,
    a_call_open_in_a_run_that_is_cancelled_in_the_queue_counts_as_estimated,
    what_calls_add_up_to_is_what_run_and_session_have_however_they_ended,
    absurd_numbers_are_bounded,
    the_providers_last_status_is_known_but_not_our_own_death,
    a_call_of_a_run_that_is_not_running_is_refused,
    no_call_begins_once_the_shim_is_done_with_the_run,
}

const ESTIMATE: TokenCounts =
    TokenCounts { input: 1_000, output: 200, cache_read: 30, cache_write_5m: 4, cache_write_1h: 5 };

const TOKENS: TokenCounts =
    TokenCounts { input: 10, output: 20, cache_read: 30, cache_write_5m: 40, cache_write_1h: 50 };

fn call() -> NewModelCall {
    NewModelCall {
        model: "asked".to_owned(),
        estimate: ESTIMATE,
        estimate_cost_micro_usd: 999,
        reserve_micro_usd: 999,
        only_alone: false,
    }
}

fn settled(status: u16) -> SettledCall {
    SettledCall {
        model: "answered".to_owned(),
        status,
        tokens: TOKENS,
        cost_micro_usd: 123,
        estimated: false,
        first_byte_ms: Some(40),
        duration_ms: 900,
    }
}

/// Makes and settles a call.
pub(crate) async fn settled_call(fixture: &Fixture, run: &RunId) {
    let id = begin(fixture, run).await;
    assert!(fixture.store.settle_model_call(&id, &settled(200)).await.unwrap());
}

async fn begin(fixture: &Fixture, run: &RunId) -> UsageId {
    fixture.store.begin_model_call(run, &call()).await.unwrap().begun().expect("the run is running")
}

async fn totals(fixture: &Fixture, id: &RunId) -> UsageTotals {
    let run = fixture.run(id).await;
    let session = fixture.store.session(&project(), &run.session).await.unwrap().unwrap();
    assert_eq!(session.usage, run.usage, "a session of one run adds up to the same");
    run.usage
}

async fn a_call_counts_as_begun_at_once_and_its_numbers_once_settled(fixture: Fixture) {
    let placed = fixture.placed().await;
    let id = begin(&fixture, &placed.run.id).await;
    let begun = totals(&fixture, &placed.run.id).await;
    assert_eq!(begun, UsageTotals { calls: 1, ..UsageTotals::default() });
    assert!(fixture.store.settle_model_call(&id, &settled(200)).await.unwrap());
    let expected = UsageTotals { calls: 1, estimated_calls: 0, tokens: TOKENS, cost_micro_usd: 123 };
    assert_eq!(totals(&fixture, &placed.run.id).await, expected);
    let data = fixture.data(&placed.run.id, EventKind::ModelCall).await;
    let expected = json!({
        "model": "answered", "status": 200, "tokens": TOKENS, "cost_micro_usd": 123, "estimated": false,
        "first_byte_ms": 40, "duration_ms": 900,
    });
    assert_eq!(data, expected);
}

async fn a_call_is_settled_once(fixture: Fixture) {
    let placed = fixture.placed().await;
    let id = begin(&fixture, &placed.run.id).await;
    assert!(fixture.store.settle_model_call(&id, &settled(200)).await.unwrap());
    let once = totals(&fixture, &placed.run.id).await;
    assert!(!fixture.store.settle_model_call(&id, &settled(529)).await.unwrap());
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 0);
    assert!(!fixture.store.settle_model_call(&UsageId::new(1, [9; 10]), &settled(200)).await.unwrap());
    assert_eq!(totals(&fixture, &placed.run.id).await, once);
    assert_eq!(fixture.data(&placed.run.id, EventKind::ModelCall).await["status"], json!(200));
}

async fn of_settlements_at_once_one_counts(fixture: Fixture) {
    let placed = fixture.placed().await;
    let id = begin(&fixture, &placed.run.id).await;
    let settlement = settled(200);
    let settlements = (0..8).map(|_| fixture.store.settle_model_call(&id, &settlement));
    let answers = futures_util::future::try_join_all(settlements).await.unwrap();
    assert_eq!(answers.iter().filter(|first| **first).count(), 1);
    assert_eq!(totals(&fixture, &placed.run.id).await.cost_micro_usd, 123);
}

async fn calls_add_up_over_a_run_and_its_session(fixture: Fixture) {
    let placed = fixture.placed().await;
    for number in 0..3 {
        let id = begin(&fixture, &placed.run.id).await;
        let settlement = SettledCall { estimated: number == 1, ..settled(200) };
        fixture.store.settle_model_call(&id, &settlement).await.unwrap();
    }
    let usage = totals(&fixture, &placed.run.id).await;
    assert_eq!((usage.calls, usage.estimated_calls, usage.cost_micro_usd), (3, 1, 369));
    let tripled =
        TokenCounts { input: 30, output: 60, cache_read: 90, cache_write_5m: 120, cache_write_1h: 150 };
    assert_eq!(usage.tokens, tripled);
}

async fn an_orphaned_call_is_settled_with_its_estimate(fixture: Fixture) {
    let placed = fixture.placed().await;
    begin(&fixture, &placed.run.id).await;
    let (run, fixture) = (placed.run.id, fixture.reopen().await);
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 1);
    let expected = UsageTotals { calls: 1, estimated_calls: 1, tokens: ESTIMATE, cost_micro_usd: 999 };
    assert_eq!(totals(&fixture, &run).await, expected);
    let data = fixture.data(&run, EventKind::ModelCall).await;
    let expected = json!({
        "model": "asked", "status": 0, "tokens": ESTIMATE, "cost_micro_usd": 999, "estimated": true,
        "first_byte_ms": null, "duration_ms": null,
    });
    assert_eq!(data, expected);
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 0);
}

async fn only_the_servers_own_calls_are_orphans(fixture: Fixture) {
    let other = server_id(2);
    fixture.store.register_server(&other).await.unwrap();
    fixture.queued().await;
    let foreign = fixture.store.claim(&other).await.unwrap().unwrap();
    let id = begin(&fixture, &foreign.run.id).await;
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 0);
    assert!(fixture.store.settle_model_call(&id, &settled(200)).await.unwrap());
}

async fn orphans_of_a_run_given_back_are_settled_too(fixture: Fixture) {
    let placed = fixture.placed().await;
    begin(&fixture, &placed.run.id).await;
    fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap();
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 1);
    assert_eq!(totals(&fixture, &placed.run.id).await.cost_micro_usd, 999);
}

async fn more_orphans_than_a_batch_are_all_settled(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..101 {
        begin(&fixture, &placed.run.id).await;
    }
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 101);
    let usage = totals(&fixture, &placed.run.id).await;
    assert_eq!((usage.calls, usage.estimated_calls, usage.cost_micro_usd), (101, 101, 101 * 999));
}

async fn a_call_open_at_the_end_counts_as_estimated_and_never_again(fixture: Fixture) {
    let placed = fixture.placed().await;
    let done = begin(&fixture, &placed.run.id).await;
    assert!(fixture.store.settle_model_call(&done, &settled(200)).await.unwrap());
    assert!(!fixture.store.has_open_calls(&placed.run.id).await.unwrap());
    let open = begin(&fixture, &placed.run.id).await;
    assert!(fixture.store.has_open_calls(&placed.run.id).await.unwrap());
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert!(!fixture.store.has_open_calls(&placed.run.id).await.unwrap());
    let ended = totals(&fixture, &placed.run.id).await;
    assert_eq!((ended.calls, ended.estimated_calls, ended.cost_micro_usd), (2, 1, 123 + 999));
    let events = fixture.events(&placed.run.id).await;
    assert!(!fixture.store.settle_model_call(&open, &settled(200)).await.unwrap(), "too late");
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 0);
    assert_eq!(fixture.store.begin_model_call(&placed.run.id, &call()).await.unwrap(), BeginCall::NotRunning);
    assert_eq!(totals(&fixture, &placed.run.id).await, ended);
    assert_eq!(fixture.events(&placed.run.id).await.len(), events.len());
    assert_eq!(events.last().unwrap().kind, EventKind::RunFinished);
    let told = fixture.data(&placed.run.id, EventKind::RunFinished).await;
    assert_eq!(told["usage"], json!(ended), "its last event tells the final totals");
}

async fn a_call_open_in_a_run_that_is_cancelled_in_the_queue_counts_as_estimated(fixture: Fixture) {
    let placed = fixture.placed().await;
    let open = begin(&fixture, &placed.run.id).await;
    fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap();
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    assert!(!fixture.store.settle_model_call(&open, &settled(200)).await.unwrap());
    let told = fixture.data(&placed.run.id, EventKind::RunFinished).await;
    assert_eq!(told["usage"]["cost_micro_usd"], json!(999));
    assert_eq!(fixture.kinds(&placed.run.id).await.last(), Some(&EventKind::RunFinished));
}

/// Calls, estimated calls, cost and tokens of a table that has the totals.
macro_rules! sums {
    ($calls:literal, $estimated:literal, $table:literal) => {
        concat!(
            "(select '[' || ",
            $calls,
            " || ',' || ",
            $estimated,
            " || ',' || sum(cost_micro_usd) || ',' || sum(input_tokens) || ',' || sum(output_tokens) \
             || ',' || sum(cache_read_tokens) || ',' || sum(cache_write_5m_tokens) || ',' || sum(cache_write_1h_tokens) \
             || ']' from ",
            $table,
            ")"
        )
    };
}

const SUMS: &str = concat!(
    "select ",
    sums!("sum(calls)", "sum(estimated_calls)", "run"),
    " as runs, ",
    sums!("sum(calls)", "sum(estimated_calls)", "session"),
    " as sessions, ",
    sums!("count(*)", "sum(estimated)", "usage"),
    " as calls"
);

async fn what_calls_add_up_to_is_what_run_and_session_have_however_they_ended(fixture: Fixture) {
    for (number, status) in RunStatus::ALL.iter().filter(|status| status.is_final()).enumerate() {
        fixture.queued().await;
        let claimed = fixture.claim().await;
        let run = claimed.run.id;
        let (settled_one, cut) = (begin(&fixture, &run).await, begin(&fixture, &run).await);
        for _ in 0..=number {
            begin(&fixture, &run).await;
        }
        fixture.store.settle_model_call(&settled_one, &settled(200)).await.unwrap();
        let estimated = SettledCall { estimated: true, ..settled(200) };
        fixture.store.settle_model_call(&cut, &estimated).await.unwrap();
        if number == 1 {
            fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
            begin(&fixture, &run).await;
        }
        let finish = Finish { status: *status, failure: None, result: None };
        assert!(fixture.store.finish(&run, claimed.epoch, &finish).await.unwrap());
        fixture.store.settle_model_call(&cut, &settled(200)).await.unwrap();
        assert_eq!(
            fixture.data(&run, EventKind::RunFinished).await["usage"],
            json!(totals(&fixture, &run).await)
        );
    }
    let row = fixture.rows(SUMS).await.remove(0);
    let [runs, sessions, calls] = ["runs", "sessions", "calls"].map(|column| row.get::<String>(column));
    assert!(calls.starts_with("[13,"), "{calls}");
    assert_eq!((&runs, &sessions), (&calls, &calls));
}

async fn absurd_numbers_are_bounded(fixture: Fixture) {
    let placed = fixture.placed().await;
    let absurd = SettledCall {
        tokens: TokenCounts { input: i64::MAX, output: -5, cache_read: CALL_TOKENS_MAX, ..TOKENS },
        cost_micro_usd: i64::MAX,
        ..settled(200)
    };
    for _ in 0..3 {
        let id = begin(&fixture, &placed.run.id).await;
        assert!(fixture.store.settle_model_call(&id, &absurd).await.unwrap());
    }
    let usage = totals(&fixture, &placed.run.id).await;
    assert_eq!((usage.tokens.input, usage.tokens.output), (3 * CALL_TOKENS_MAX, 0));
    assert_eq!(usage.tokens.cache_read, 3 * CALL_TOKENS_MAX);
    assert_eq!(usage.cost_micro_usd, 3 * CALL_COST_MICRO_USD_MAX);
    let estimate = NewModelCall { estimate_cost_micro_usd: i64::MIN, ..call() };
    fixture.store.begin_model_call(&placed.run.id, &estimate).await.unwrap();
    fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
    assert_eq!(totals(&fixture, &placed.run.id).await.cost_micro_usd, 3 * CALL_COST_MICRO_USD_MAX);
}

async fn the_providers_last_status_is_known_but_not_our_own_death(fixture: Fixture) {
    let placed = fixture.placed().await;
    let status = async || {
        let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap();
        progress.unwrap().provider_status
    };
    assert_eq!(status().await, None);
    for expected in [200, 429, 0] {
        let id = begin(&fixture, &placed.run.id).await;
        fixture.store.settle_model_call(&id, &settled(expected)).await.unwrap();
        assert_eq!(status().await, Some(expected));
    }
    let id = begin(&fixture, &placed.run.id).await;
    fixture.store.settle_model_call(&id, &settled(401)).await.unwrap();
    begin(&fixture, &placed.run.id).await;
    fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
    assert_eq!(status().await, Some(401));
}

async fn a_call_of_a_run_that_is_not_running_is_refused(fixture: Fixture) {
    let unknown = RunId::new(1, [9; 10]);
    assert_eq!(fixture.store.begin_model_call(&unknown, &call()).await.unwrap(), BeginCall::NotRunning);
    assert!(!fixture.store.has_open_calls(&unknown).await.unwrap());
    let queued = fixture.queued().await;
    assert_eq!(fixture.store.begin_model_call(&queued.id, &call()).await.unwrap(), BeginCall::NotRunning);
    assert_eq!(fixture.run(&queued.id).await.usage.calls, 0);
}

async fn no_call_begins_once_the_shim_is_done_with_the_run(fixture: Fixture) {
    let placed = fixture.placed().await;
    let run = &placed.run.id;
    let open = begin(&fixture, run).await;
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    let before = fixture.run(run).await.usage;
    assert_eq!(fixture.store.begin_model_call(run, &call()).await.unwrap(), BeginCall::NotRunning);
    assert_eq!(fixture.run(run).await.usage, before);
    assert!(fixture.store.has_open_calls(run).await.unwrap(), "one that had begun before is under way");
    assert!(fixture.store.settle_model_call(&open, &settled(200)).await.unwrap());
    assert!(!fixture.store.has_open_calls(run).await.unwrap());
    // Another attempt has no outcome yet.
    assert!(fixture.store.requeue(run, placed.epoch, "another image", 0).await.unwrap());
    let again = fixture.place(fixture.claim().await, 2).await;
    begin(&fixture, &again.run.id).await;
}
