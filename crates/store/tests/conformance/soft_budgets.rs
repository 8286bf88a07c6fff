//! Soft limits: who is told to wrap up, at which micro-USD, and that nobody is told twice.

use caisson_domain::budget::DAY_MS;
use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::protocol::{Ending, InputBody, Outcome, StopReason};
use caisson_domain::run::{Failure, FailureKind, RunSpec, RunStatus};
use caisson_store::{CallExtension, ExtendCall, Finish, JournalEffect, Topic};
use serde_json::json;

use crate::budgets::{begin, begun, budgets, extension, settle};
use crate::fixture::{Fixture, Placed, START_MS, project, spec, woken};

conformance! {
    at_its_share_the_agent_is_told_and_one_micro_usd_below_it_is_not,
    what_replies_under_way_have_come_to_counts_and_what_they_hold_does_not,
    a_run_is_told_once_whatever_comes_after,
    a_run_is_told_once_over_a_restart_and_by_what_the_dead_server_left,
    a_projects_and_a_days_budget_steer_all_of_its_runs,
    a_run_has_its_share_of_what_it_found,
    of_two_budgets_the_nearer_one_is_told,
    who_has_no_share_or_no_budget_is_told_nothing,
    a_run_that_ends_is_told_nothing,
    soft_limits_come_to_a_database_that_has_runs_already,
}

async fn placed(
    fixture: &Fixture,
    budget_micro_usd: Option<u32>,
    percent: Option<u32>,
    number: u8,
) -> Placed {
    fixture.created(RunSpec { budget_micro_usd, budget_soft_percent: percent, ..spec() }).await;
    let claimed = fixture.claim().await;
    fixture.place(claimed, number).await
}

/// A call that costs so much, from its beginning to its end.
async fn spend(fixture: &Fixture, run: &RunId, micro_usd: i64) {
    let id = begin(fixture, run, 1).await.begun().unwrap();
    settle(fixture, &id, micro_usd).await;
}

/// What the run's agent was given.
async fn told(fixture: &Fixture, placed: &Placed) -> Vec<String> {
    let inputs = fixture.store.inputs_after(&placed.sandbox, 0).await.unwrap();
    let texts = inputs.into_iter().filter_map(|input| match input.body {
        InputBody::Steer { text } => {
            assert_eq!(input.run, placed.run.id);
            Some(text)
        }
        InputBody::Stop { .. }
        | InputBody::Queue { .. }
        | InputBody::Attached { .. }
        | InputBody::Interrupt { .. }
        | InputBody::Answer { .. } => None,
    });
    texts.collect()
}

async fn events(fixture: &Fixture, run: &RunId) -> usize {
    fixture.kinds(run).await.iter().filter(|kind| **kind == EventKind::RunBudgetSoft).count()
}

async fn at_its_share_the_agent_is_told_and_one_micro_usd_below_it_is_not(fixture: Fixture) {
    let run = placed(&fixture, Some(1_000), Some(80), 1).await;
    let mut watch = fixture.store.watch(Topic::Sandbox(run.sandbox.clone()));
    spend(&fixture, &run.run.id, 799).await;
    assert_eq!((told(&fixture, &run).await.len(), woken(&mut watch)), (0, false));
    spend(&fixture, &run.run.id, 1).await;
    assert!(woken(&mut watch), "its long poll ends");
    let told = told(&fixture, &run).await;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("0.000200 USD of this task's budget are left"), "{told:?}");
    let expected = json!({
        "scope": "run", "percent": 80, "budget_micro_usd": 1_000, "before_micro_usd": 0,
        "spent_micro_usd": 800, "under_way_micro_usd": 0,
    });
    assert_eq!(fixture.data(&run.run.id, EventKind::RunBudgetSoft).await, expected);
}

async fn what_replies_under_way_have_come_to_counts_and_what_they_hold_does_not(fixture: Fixture) {
    let run = placed(&fixture, Some(1_000), Some(50), 1).await;
    spend(&fixture, &run.run.id, 300).await;
    let (one, other) =
        (begun(begin(&fixture, &run.run.id, 400).await), begun(begin(&fixture, &run.run.id, 200).await));
    let come_to = |micro_usd| CallExtension { come_to_micro_usd: micro_usd, ..extension(400) };
    assert_eq!(fixture.store.extend_model_call(&one, &come_to(150)).await.unwrap(), ExtendCall::Extended);
    let longer = CallExtension { reserve_micro_usd: 200, ..come_to(49) };
    assert_eq!(fixture.store.extend_model_call(&other, &longer).await.unwrap(), ExtendCall::Extended);
    assert_eq!(told(&fixture, &run).await.len(), 0, "499 of 500, whatever is held");
    let longer = CallExtension { reserve_micro_usd: 200, ..come_to(50) };
    assert_eq!(fixture.store.extend_model_call(&other, &longer).await.unwrap(), ExtendCall::Extended);
    assert_eq!(told(&fixture, &run).await.len(), 1, "while both replies still come");
    let data = fixture.data(&run.run.id, EventKind::RunBudgetSoft).await;
    assert_eq!((&data["spent_micro_usd"], &data["under_way_micro_usd"]), (&json!(300), &json!(200)));
}

async fn a_run_is_told_once_whatever_comes_after(fixture: Fixture) {
    let run = placed(&fixture, Some(1_000), Some(10), 1).await;
    budgets(&fixture, Some(2_000), Some(3_000)).await;
    for _ in 0..4 {
        spend(&fixture, &run.run.id, 100).await;
    }
    assert_eq!((told(&fixture, &run).await.len(), events(&fixture, &run.run.id).await), (1, 1));
}

async fn a_run_is_told_once_over_a_restart_and_by_what_the_dead_server_left(fixture: Fixture) {
    let early = placed(&fixture, Some(1_000), Some(50), 1).await;
    let late = placed(&fixture, Some(1_000), Some(50), 2).await;
    spend(&fixture, &early.run.id, 500).await;
    for run in [&early, &late] {
        let id = begun(begin(&fixture, &run.run.id, 100).await);
        let extension = CallExtension { come_to_micro_usd: 1, ..extension(499) };
        fixture
            .store
            .extend_model_call(&id, &CallExtension { reserve_micro_usd: 100, ..extension })
            .await
            .unwrap();
    }
    spend(&fixture, &late.run.id, 1).await;
    assert_eq!((told(&fixture, &early).await.len(), told(&fixture, &late).await.len()), (1, 0));
    let fixture = fixture.reopen().await;
    fixture.store.adopt(&fixture.server).await.unwrap();
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 2);
    assert_eq!((told(&fixture, &early).await.len(), told(&fixture, &late).await.len()), (1, 1));
    spend(&fixture, &early.run.id, 1).await;
    spend(&fixture, &late.run.id, 1).await;
    for run in [&early, &late] {
        assert_eq!((told(&fixture, run).await.len(), events(&fixture, &run.run.id).await), (1, 1));
    }
}

async fn a_projects_and_a_days_budget_steer_all_of_its_runs(fixture: Fixture) {
    let (one, other) = (placed(&fixture, None, Some(80), 1).await, placed(&fixture, None, Some(80), 2).await);
    budgets(&fixture, Some(1_000), None).await;
    // Both found the budget whole.
    let (first, second) =
        (begun(begin(&fixture, &one.run.id, 1).await), begun(begin(&fixture, &other.run.id, 1).await));
    settle(&fixture, &first, 799).await;
    settle(&fixture, &second, 0).await;
    assert_eq!((told(&fixture, &one).await.len(), told(&fixture, &other).await.len()), (0, 0));
    spend(&fixture, &one.run.id, 1).await;
    let text = told(&fixture, &one).await.remove(0);
    assert!(text.contains("of the project's budget are left"), "{text}");
    spend(&fixture, &other.run.id, 0).await;
    assert_eq!(told(&fixture, &other).await.len(), 1, "what another one spent counts at its own next call");
    // The same for a day, of which there is another one after midnight.
    let third = placed(&fixture, None, Some(80), 3).await;
    budgets(&fixture, None, Some(2_000)).await;
    spend(&fixture, &third.run.id, 900).await;
    assert_eq!(told(&fixture, &third).await.len(), 0, "900 of the 1,200 that it found");
    fixture.clock.advance(DAY_MS - START_MS % DAY_MS);
    spend(&fixture, &third.run.id, 1_599).await;
    assert_eq!(told(&fixture, &third).await.len(), 0, "it found a whole new day");
    spend(&fixture, &third.run.id, 1).await;
    let text = told(&fixture, &third).await.remove(0);
    assert!(text.contains("of the project's budget of this day are left"), "{text}");
}

async fn a_run_has_its_share_of_what_it_found(fixture: Fixture) {
    budgets(&fixture, Some(1_000), None).await;
    let first = placed(&fixture, None, Some(80), 1).await;
    spend(&fixture, &first.run.id, 900).await;
    assert_eq!(told(&fixture, &first).await.len(), 1);
    let late = placed(&fixture, None, Some(80), 2).await;
    spend(&fixture, &late.run.id, 79).await;
    assert_eq!(told(&fixture, &late).await.len(), 0, "79 of the 100 that it found");
    spend(&fixture, &late.run.id, 1).await;
    let text = told(&fixture, &late).await.remove(0);
    assert!(text.contains("0.000020 USD"), "{text}");
    assert_eq!(fixture.data(&late.run.id, EventKind::RunBudgetSoft).await["before_micro_usd"], json!(900));
}

async fn of_two_budgets_the_nearer_one_is_told(fixture: Fixture) {
    let run = placed(&fixture, Some(1_000), Some(50), 1).await;
    budgets(&fixture, Some(900), Some(950)).await;
    spend(&fixture, &run.run.id, 600).await;
    let data = fixture.data(&run.run.id, EventKind::RunBudgetSoft).await;
    assert_eq!((&data["scope"], &data["budget_micro_usd"]), (&json!("project"), &json!(900)));
}

async fn who_has_no_share_or_no_budget_is_told_nothing(fixture: Fixture) {
    let off = placed(&fixture, Some(1_000), Some(100), 1).await;
    let older = placed(&fixture, Some(1_000), None, 2).await;
    let unbounded = placed(&fixture, None, Some(1), 3).await;
    for run in [&off, &older, &unbounded] {
        spend(&fixture, &run.run.id, 1_000).await;
        assert_eq!((told(&fixture, run).await.len(), events(&fixture, &run.run.id).await), (0, 0));
    }
}

async fn a_run_that_ends_is_told_nothing(fixture: Fixture) {
    let run = placed(&fixture, Some(1_000), Some(50), 1).await;
    begun(begin(&fixture, &run.run.id, 900).await);
    fixture.execute("update usage set cost_micro_usd = 900").await;
    let finish = Finish {
        status: RunStatus::Failed,
        failure: Some(Failure::new(FailureKind::SandboxLost, "gone")),
        result: None,
    };
    assert!(fixture.store.finish(&run.run.id, run.epoch, &finish).await.unwrap());
    assert_eq!(events(&fixture, &run.run.id).await, 0, "its end settles its calls and tells nobody");
    // One that was told to stop, and one whose shim is done.
    let stopped = placed(&fixture, Some(1_000), Some(50), 2).await;
    assert!(fixture.store.request_stop(&stopped.run.id, stopped.epoch, StopReason::Timeout).await.unwrap());
    spend(&fixture, &stopped.run.id, 900).await;
    let done = placed(&fixture, Some(1_000), Some(50), 3).await;
    let outcome = Outcome { ending: Ending::Completed, result: None, head: None, pushed: false, kept: false };
    let late = begun(begin(&fixture, &done.run.id, 1).await);
    fixture.journal(&done, JournalEffect::Finished(outcome)).await;
    settle(&fixture, &late, 900).await;
    assert_eq!((events(&fixture, &stopped.run.id).await, events(&fixture, &done.run.id).await), (0, 0));
}

async fn soft_limits_come_to_a_database_that_has_runs_already(fixture: Fixture) {
    let run = placed(&fixture, Some(1_000), Some(50), 1).await;
    budgets(&fixture, Some(5_000), None).await;
    spend(&fixture, &run.run.id, 100).await;
    for undo in [
        "alter table project drop column day_budget_is_setting",
        "alter table project drop column budget_is_setting",
        "alter table usage drop column come_to_micro_usd",
        "alter table run drop column project_spent_before_micro_usd",
        "alter table run drop column day_spent_before_micro_usd",
        "alter table run drop column first_call_day",
        "alter table run drop column budget_soft_at_ms",
        "alter table run drop column budget_soft_percent",
        "delete from _sqlx_migrations where version = 7",
    ] {
        fixture.execute(undo).await;
    }
    let fixture = fixture.reopen().await;
    spend(&fixture, &run.run.id, 700).await;
    assert_eq!(told(&fixture, &run).await.len(), 0, "its sandbox may be older than the message");
    let told: bool =
        fixture.value("select budget_is_setting = 1 and day_budget_is_setting = 0 from project").await;
    assert!(told, "budgets were the settings' alone");
    assert_eq!(fixture.store.project_spending(&project()).await.unwrap().unwrap().spent_micro_usd, 800);
}
