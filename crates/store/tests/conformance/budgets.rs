//! Budgets: reservations, what they give back, and that calls at once cannot overshoot together.

use caisson_domain::budget::{BudgetScope, DAY_MS, OverBudget, PROJECT_BUDGET_MICRO_USD_MAX, ProjectBudgets};
use caisson_domain::id::{ProjectId, RunId, UsageId};
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::usage::TokenCounts;
use caisson_store::{
    Actor, BeginCall, BudgetChange, CallExtension, Claimed, ExtendCall, NewModelCall, ProjectSpending,
    SettledCall, StoreError, Topic,
};

use crate::fixture::{Fixture, START_MS, assert_corrupt, project, spec, woken};

conformance! {
    a_reservation_that_does_not_fit_is_refused_and_leaves_nothing,
    parallel_calls_cannot_overshoot_together,
    a_refusal_says_whether_the_settings_hold_the_budget,
    a_settled_call_gives_back_what_it_held_and_spends_what_it_cost,
    a_call_is_extended_while_there_is_room_and_keeps_what_it_has_else,
    a_call_that_must_be_alone_is_refused_while_another_one_holds_a_share,
    a_project_budget_bounds_all_of_its_runs_together,
    a_day_ends_at_midnight_utc_and_a_call_counts_for_the_day_it_began_in,
    a_budget_that_nobody_set_bounds_nothing,
    a_call_fits_up_to_the_last_micro_usd_of_each_budget_the_first_one_and_those_that_follow,
    what_a_dead_server_held_is_given_back_at_its_next_start,
    whoever_waits_for_room_is_told_when_there_may_be_some,
    a_projects_budgets_are_bounded_and_set_once,
    what_days_and_project_have_spent_is_what_their_calls_cost,
    a_model_failure_is_known_until_a_call_is_answered,
}

only_sqlite! {
    budgets_come_to_a_database_that_has_calls_already,
}

pub(crate) async fn running(fixture: &Fixture, budget_micro_usd: Option<u32>) -> Claimed {
    fixture.created(caisson_domain::run::RunSpec { budget_micro_usd, ..spec() }).await;
    fixture.claim().await
}

pub(crate) fn call(micro_usd: i64) -> NewModelCall {
    NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: micro_usd,
        reserve_micro_usd: micro_usd,
        only_alone: false,
    }
}

pub(crate) fn extension(micro_usd: i64) -> CallExtension {
    CallExtension {
        estimate: TokenCounts { output: 7, ..TokenCounts::default() },
        estimate_cost_micro_usd: micro_usd,
        come_to_micro_usd: micro_usd,
        reserve_micro_usd: micro_usd,
        only_alone: false,
    }
}

pub(crate) async fn begin(fixture: &Fixture, run: &RunId, micro_usd: i64) -> BeginCall {
    fixture.store.begin_model_call(run, &call(micro_usd)).await.unwrap()
}

#[track_caller]
pub(crate) fn begun(call: BeginCall) -> UsageId {
    let BeginCall::Begun { id, bounded: true } = call else { panic!("not begun within a budget: {call:?}") };
    id
}

#[track_caller]
pub(crate) fn over(call: &BeginCall) -> OverBudget {
    let BeginCall::Refused(over) = call else { panic!("not refused: {call:?}") };
    *over
}

pub(crate) async fn settle(fixture: &Fixture, id: &UsageId, cost_micro_usd: i64) {
    let settled = SettledCall {
        model: "m".to_owned(),
        status: 200,
        tokens: TokenCounts::default(),
        cost_micro_usd,
        estimated: false,
        first_byte_ms: None,
        duration_ms: 1,
    };
    assert!(fixture.store.settle_model_call(id, &settled).await.unwrap());
}

pub(crate) async fn budgets(fixture: &Fixture, total: Option<i64>, day: Option<i64>) {
    assert!(set_budgets(fixture, total, day).await);
}

async fn set_budgets(fixture: &Fixture, total: Option<i64>, day: Option<i64>) -> bool {
    let budgets = ProjectBudgets { total_micro_usd: total, day_micro_usd: day };
    fixture.store.set_budgets(&project(), &budgets).await.unwrap()
}

pub(crate) async fn spending(fixture: &Fixture) -> ProjectSpending {
    fixture.store.project_spending(&project()).await.unwrap().unwrap()
}

async fn a_reservation_that_does_not_fit_is_refused_and_leaves_nothing(fixture: Fixture) {
    let run = running(&fixture, Some(100)).await.run.id;
    let first = begun(begin(&fixture, &run, 60).await);
    let refused = over(&begin(&fixture, &run, 41).await);
    let expected = OverBudget {
        scope: BudgetScope::Run,
        is_setting: false,
        budget_micro_usd: 100,
        spent_micro_usd: 0,
        reserved_micro_usd: 60,
        needed_micro_usd: 41,
    };
    assert_eq!((refused, refused.may_pass()), (expected, true));
    assert_eq!(fixture.run(&run).await.usage.calls, 1, "a refused call has not begun");
    begun(begin(&fixture, &run, 40).await);
    settle(&fixture, &first, 61).await;
    assert!(!over(&begin(&fixture, &run, 40).await).may_pass(), "spent is spent");
}

async fn a_call_fits_up_to_the_last_micro_usd_of_each_budget_the_first_one_and_those_that_follow(
    fixture: Fixture,
) {
    const BUDGET: i64 = 100;
    // What each budget may come to, and which of them is the first that is full then.
    let cases = [
        ([Some(100), None, None], Some(BudgetScope::Run)),
        ([None, Some(100), None], Some(BudgetScope::Project)),
        ([None, None, Some(100)], Some(BudgetScope::Day)),
        ([Some(100), Some(101), Some(102)], Some(BudgetScope::Run)),
        ([Some(101), Some(100), Some(102)], Some(BudgetScope::Project)),
        ([Some(102), Some(101), Some(100)], Some(BudgetScope::Day)),
        ([None, None, None], None),
    ];
    // A call that is first, and one behind a call that spent 30 while another holds 20.
    for (case, (of, scope)) in cases.into_iter().enumerate() {
        for before in [0, 50] {
            let spent = spending(&fixture).await;
            let ahead = |budget: Option<i64>, spent: i64| budget.map(|budget| spent + budget);
            let (total, day) =
                (ahead(of[1], spent.spent_micro_usd), ahead(of[2], spent.spent_today_micro_usd));
            set_budgets(&fixture, total, day).await;
            let run = running(&fixture, of[0].map(|budget| u32::try_from(budget).unwrap())).await.run.id;
            let mut held = None;
            if before > 0 {
                let spends = begin(&fixture, &run, 30).await.begun().unwrap();
                settle(&fixture, &spends, 30).await;
                held = begin(&fixture, &run, before - 30).await.begun();
            }
            let (calls, what) = (fixture.run(&run).await.usage.calls, format!("case {case} behind {before}"));
            let last = if let Some(scope) = scope {
                let refused = over(&begin(&fixture, &run, BUDGET - before + 1).await);
                assert_eq!(refused.scope, scope, "{what}");
                assert_eq!(
                    fixture.run(&run).await.usage.calls,
                    calls,
                    "{what}: a refused call has not begun"
                );
                begun(begin(&fixture, &run, BUDGET - before).await)
            } else {
                let call = begin(&fixture, &run, 1_000).await;
                let BeginCall::Begun { id, bounded: false } = call else { panic!("{what}: {call:?}") };
                id
            };
            let run = fixture.run(&run).await;
            let session = fixture.store.session(&project(), &run.session).await.unwrap().unwrap();
            assert_eq!((run.usage.calls, session.usage.calls), (calls + 1, calls + 1), "{what}");
            for call in held.iter().chain([&last]) {
                settle(&fixture, call, 1).await;
            }
        }
    }
}

async fn parallel_calls_cannot_overshoot_together(fixture: Fixture) {
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(running(&fixture, None).await.run.id);
    }
    budgets(&fixture, Some(1_000), None).await;
    let calls = runs.iter().map(|run| begin(&fixture, run, 100));
    let calls = futures_util::future::join_all(calls).await;
    let begun: Vec<_> = calls.iter().filter_map(|call| call.clone().begun()).collect();
    assert_eq!(begun.len(), 10);
    assert_eq!(spending(&fixture).await.reserved_micro_usd, 1_000);
    // Each asks for another slice at once: there is none.
    let longer = extension(150);
    let more = begun.iter().map(|id| fixture.store.extend_model_call(id, &longer));
    let more = futures_util::future::try_join_all(more).await.unwrap();
    assert!(more.iter().all(|answer| matches!(answer, ExtendCall::Refused(_))), "{more:?}");
    for id in &begun {
        settle(&fixture, id, 100).await;
    }
    let spent = spending(&fixture).await;
    assert_eq!((spent.spent_micro_usd, spent.reserved_micro_usd), (1_000, 0));
}

async fn a_refusal_says_whether_the_settings_hold_the_budget(fixture: Fixture) {
    let run = running(&fixture, None).await.run.id;
    let project = project();
    let by_api = |total, day| fixture.store.change_budgets(&project, total, day, Actor::Operator);
    by_api(BudgetChange::Bound(5), BudgetChange::Keep).await.unwrap();
    budgets(&fixture, None, Some(9)).await;
    let refused = over(&begin(&fixture, &run, 6).await);
    assert_eq!((refused.scope, refused.is_setting), (BudgetScope::Project, false));
    by_api(BudgetChange::Unbound, BudgetChange::Keep).await.unwrap();
    let refused = over(&begin(&fixture, &run, 10).await);
    assert_eq!((refused.scope, refused.is_setting), (BudgetScope::Day, true));
    // The same while a reply comes.
    let id = begun(begin(&fixture, &run, 9).await);
    let ExtendCall::Refused(refused) = fixture.store.extend_model_call(&id, &extension(10)).await.unwrap()
    else {
        panic!("there is no room")
    };
    assert!(refused.is_setting);
}

async fn a_settled_call_gives_back_what_it_held_and_spends_what_it_cost(fixture: Fixture) {
    let run = running(&fixture, Some(100)).await.run.id;
    let first = begun(begin(&fixture, &run, 100).await);
    over(&begin(&fixture, &run, 1).await);
    settle(&fixture, &first, 30).await;
    begun(begin(&fixture, &run, 70).await);
    let refused = over(&begin(&fixture, &run, 1).await);
    assert_eq!((refused.spent_micro_usd, refused.reserved_micro_usd), (30, 70));
}

async fn a_call_is_extended_while_there_is_room_and_keeps_what_it_has_else(fixture: Fixture) {
    let run = running(&fixture, Some(100)).await.run.id;
    let (one, other) = (begun(begin(&fixture, &run, 30).await), begun(begin(&fixture, &run, 30).await));
    let extend = async |id: &UsageId, micro_usd| {
        fixture.store.extend_model_call(id, &extension(micro_usd)).await.unwrap()
    };
    assert_eq!(extend(&one, 70).await, ExtendCall::Extended, "its own share does not count twice");
    assert!(matches!(extend(&other, 31).await, ExtendCall::Refused(over) if over.reserved_micro_usd == 70));
    over(&begin(&fixture, &run, 1).await);
    assert_eq!(extend(&one, 40).await, ExtendCall::Extended, "less is always to be had");
    assert_eq!(extend(&other, 60).await, ExtendCall::Extended);
    settle(&fixture, &one, 10).await;
    assert_eq!(extend(&one, 10).await, ExtendCall::Over);
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 1);
    let usage = fixture.run(&run).await.usage;
    assert_eq!((usage.cost_micro_usd, usage.tokens.output), (70, 7), "the estimate is what it had come to");
}

async fn a_call_that_must_be_alone_is_refused_while_another_one_holds_a_share(fixture: Fixture) {
    let run = running(&fixture, Some(100)).await.run.id;
    let alone = NewModelCall { only_alone: true, ..call(10) };
    let begin_alone = async || fixture.store.begin_model_call(&run, &alone).await.unwrap();
    let first = begun(begin_alone().await);
    let refused = over(&begin_alone().await);
    assert_eq!((refused.reserved_micro_usd, refused.may_pass()), (10, true));
    let second = begun(begin(&fixture, &run, 20).await);
    let longer = CallExtension { only_alone: true, ..extension(15) };
    let answer = fixture.store.extend_model_call(&first, &longer).await.unwrap();
    assert!(matches!(answer, ExtendCall::Refused(over) if over.reserved_micro_usd == 20), "{answer:?}");
    settle(&fixture, &second, 1).await;
    assert_eq!(fixture.store.extend_model_call(&first, &longer).await.unwrap(), ExtendCall::Extended);
    settle(&fixture, &first, 1).await;
    begun(begin_alone().await);
    let unbounded = running(&fixture, None).await.run.id;
    for _ in 0..2 {
        let call = fixture.store.begin_model_call(&unbounded, &alone).await.unwrap();
        assert!(matches!(call, BeginCall::Begun { bounded: false, .. }), "nothing bounds it: {call:?}");
    }
}

async fn a_project_budget_bounds_all_of_its_runs_together(fixture: Fixture) {
    let (one, other) = (running(&fixture, None).await.run.id, running(&fixture, Some(50)).await.run.id);
    budgets(&fixture, Some(100), None).await;
    begun(begin(&fixture, &one, 60).await);
    assert_eq!(over(&begin(&fixture, &other, 41).await).scope, BudgetScope::Project);
    assert_eq!(over(&begin(&fixture, &other, 51).await).scope, BudgetScope::Run, "this one never fits");
    begun(begin(&fixture, &other, 40).await);
}

async fn a_day_ends_at_midnight_utc_and_a_call_counts_for_the_day_it_began_in(fixture: Fixture) {
    let run = running(&fixture, None).await.run.id;
    budgets(&fixture, None, Some(100)).await;
    let to_midnight = DAY_MS - START_MS % DAY_MS;
    fixture.clock.advance(to_midnight - 1);
    let late = begun(begin(&fixture, &run, 100).await);
    assert_eq!(over(&begin(&fixture, &run, 1).await).scope, BudgetScope::Day);
    fixture.clock.advance(1);
    let early = begun(begin(&fixture, &run, 100).await);
    // It goes on over midnight, and asks for more of its own day.
    let longer = fixture.store.extend_model_call(&late, &extension(101)).await.unwrap();
    assert!(matches!(longer, ExtendCall::Refused(over) if over.reserved_micro_usd == 0), "{longer:?}");
    settle(&fixture, &late, 90).await;
    settle(&fixture, &early, 20).await;
    let spent = spending(&fixture).await;
    assert_eq!((spent.spent_today_micro_usd, spent.spent_micro_usd), (20, 110));
    begun(begin(&fixture, &run, 80).await);
}

async fn a_budget_that_nobody_set_bounds_nothing(fixture: Fixture) {
    let run = running(&fixture, None).await.run.id;
    for _ in 0..3 {
        let call = begin(&fixture, &run, i64::MAX).await;
        assert!(matches!(call, BeginCall::Begun { bounded: false, .. }), "{call:?}");
    }
    assert_eq!(spending(&fixture).await.budgets, ProjectBudgets::default());
}

async fn what_a_dead_server_held_is_given_back_at_its_next_start(fixture: Fixture) {
    let run = running(&fixture, Some(100)).await.run.id;
    let id = begun(begin(&fixture, &run, 100).await);
    fixture.store.extend_model_call(&id, &extension(55)).await.unwrap();
    let fixture = fixture.reopen().await;
    assert_eq!(spending(&fixture).await.reserved_micro_usd, 55, "it is written down");
    fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
    let spent = spending(&fixture).await;
    assert_eq!((spent.spent_micro_usd, spent.reserved_micro_usd), (55, 0));
    begun(begin(&fixture, &run, 45).await);
}

async fn whoever_waits_for_room_is_told_when_there_may_be_some(fixture: Fixture) {
    let run = running(&fixture, Some(100)).await.run.id;
    let mut watch = fixture.store.watch(Topic::Budget(project()));
    let id = begun(begin(&fixture, &run, 100).await);
    assert!(!woken(&mut watch));
    fixture.store.extend_model_call(&id, &extension(50)).await.unwrap();
    assert!(woken(&mut watch));
    fixture.store.extend_model_call(&id, &extension(60)).await.unwrap();
    assert!(!woken(&mut watch));
    settle(&fixture, &id, 1).await;
    assert!(woken(&mut watch));
    budgets(&fixture, Some(1), None).await;
    assert!(woken(&mut watch));
}

async fn a_projects_budgets_are_bounded_and_set_once(fixture: Fixture) {
    let wanted = ProjectBudgets { total_micro_usd: Some(-1), day_micro_usd: Some(i64::MAX) };
    assert!(fixture.store.set_budgets(&project(), &wanted).await.unwrap());
    assert!(!fixture.store.set_budgets(&project(), &wanted).await.unwrap());
    let kept = ProjectBudgets { total_micro_usd: Some(0), day_micro_usd: Some(PROJECT_BUDGET_MICRO_USD_MAX) };
    assert_eq!(spending(&fixture).await.budgets, kept);
    let audited: i64 = fixture.value("select count(*) from audit where action = 'project.budget'").await;
    assert_eq!(audited, 1);
    let run = running(&fixture, None).await.run.id;
    assert_eq!(over(&begin(&fixture, &run, 1).await).scope, BudgetScope::Project);
    let nobody = ProjectId::try_from("nobody".to_owned()).unwrap();
    let refused: Result<bool, StoreError> = fixture.store.set_budgets(&nobody, &wanted).await;
    assert_corrupt(refused, "project nobody");
    assert_eq!(fixture.store.project_spending(&nobody).await.unwrap(), None);
}

const SUMS: &str = "select '[' || (select sum(cost_micro_usd) from usage where state = 'settled') || ',' || \
     (select sum(cost_micro_usd) from project) || ',' || (select sum(cost_micro_usd) from project_day) || ',' || \
     (select sum(cost_micro_usd) from run) || ',' || (select sum(cost_micro_usd) from session) || ']'";

async fn what_days_and_project_have_spent_is_what_their_calls_cost(fixture: Fixture) {
    for day in 0..3 {
        let run = running(&fixture, Some(1_000)).await.run.id;
        let id = begun(begin(&fixture, &run, 100).await);
        begun(begin(&fixture, &run, 50 + day).await);
        settle(&fixture, &id, 7).await;
        fixture.clock.advance(DAY_MS);
    }
    fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
    assert_eq!(fixture.value::<String>(SUMS).await, "[174,174,174,174,174]");
    assert_eq!(fixture.value::<i64>("select count(*) from project_day").await, 3);
}

async fn budgets_come_to_a_database_that_has_calls_already(fixture: Fixture) {
    for _ in 0..2 {
        let run = running(&fixture, None).await.run.id;
        let id = begin(&fixture, &run, 100).await.begun().unwrap();
        settle(&fixture, &id, 40).await;
        begin(&fixture, &run, 9).await;
        fixture.clock.advance(DAY_MS);
    }
    for undo in [
        "drop table project_day",
        "drop index usage_pending_of_project",
        "alter table usage drop column reserved_micro_usd",
        "alter table project drop column cost_micro_usd",
        "alter table project drop column day_budget_micro_usd",
        "alter table project drop column budget_micro_usd",
        "alter table run drop column model_failure",
        "alter table run drop column budget_micro_usd",
        "delete from _sqlx_migrations where version = 3",
    ] {
        fixture.execute(undo).await;
    }
    let fixture = fixture.reopen().await;
    let spent = spending(&fixture).await;
    assert_eq!((spent.spent_micro_usd, spent.spent_today_micro_usd, spent.reserved_micro_usd), (80, 40, 0));
    fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
    assert_eq!(fixture.value::<String>(SUMS).await, "[98,98,98,98,98]");
}

async fn a_model_failure_is_known_until_a_call_is_answered(fixture: Fixture) {
    let claimed = running(&fixture, None).await;
    let run = &claimed.run.id;
    let known = async || {
        let progress = fixture.store.progress(run, claimed.epoch).await.unwrap().unwrap();
        progress.model_failure.map(|failure| failure.kind)
    };
    assert_eq!(known().await, None);
    let failure = Failure::new(FailureKind::ProviderDown, "the model API is away");
    assert!(fixture.store.note_model_failure(run, &failure).await.unwrap());
    begin(&fixture, run, 1).await;
    fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap();
    assert_eq!(known().await, Some(FailureKind::ProviderDown), "an estimate is no answer");
    let id = begin(&fixture, run, 1).await.begun().unwrap();
    settle(&fixture, &id, 1).await;
    assert_eq!(known().await, None);
    let queued = fixture.queued().await;
    assert!(!fixture.store.note_model_failure(&queued.id, &failure).await.unwrap());
}
