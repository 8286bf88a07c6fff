//! Reports of usage, against sums made by hand.

use caisson_domain::budget::DAY_MS;
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::usage::{TokenCounts, UsageBy, UsageTotals};
use caisson_store::{Actor, NewModelCall, NewRun, SettledCall, UsageFilter, UsageGroup};

use crate::fixture::{Fixture, START_MS, made, new_run, project, spec, workflow};

/// What a report has, group by group.
type Groups = Vec<(String, UsageTotals)>;

conformance! {
    each_grouping_adds_up_to_what_was_counted_by_hand,
    each_filter_narrows_what_is_counted,
    a_time_begins_with_its_first_instant_and_ends_before_its_last,
    calls_under_way_are_counted_when_they_are_over,
    pages_join_without_gap_or_overlap_in_both_directions,
    a_page_of_groups_is_bounded_whatever_is_asked_for,
}

/// The first midnight after every test's beginning.
const MIDNIGHT: i64 = (START_MS / DAY_MS + 1) * DAY_MS;

/// The runs of the scene.
struct Scene {
    fixture: Fixture,
    first: (RunId, SessionId),
    second: (RunId, SessionId),
    theirs: (RunId, SessionId),
}

fn other() -> ProjectId {
    "other".parse().unwrap()
}

/// One unit of each kind of token is told apart from each other kind.
fn tokens(units: i64) -> TokenCounts {
    TokenCounts {
        input: units,
        output: 2 * units,
        cache_read: 3 * units,
        cache_write_5m: 4 * units,
        cache_write_1h: 5 * units,
    }
}

fn sum(calls: i64, estimated_calls: i64, units: i64) -> UsageTotals {
    UsageTotals { calls, estimated_calls, tokens: tokens(units), cost_micro_usd: 1_000 * units }
}

async fn run(fixture: &Fixture, project: ProjectId, name: &str) -> (RunId, SessionId) {
    let mut spec = spec();
    spec.workflow = workflow(name);
    let run = made(fixture.store.create_run(NewRun { project, ..new_run(spec) }).await);
    assert_eq!(fixture.claim().await.run.id, run.id);
    (run.id, run.session)
}

async fn call(fixture: &Fixture, run: &RunId, model: &str, (units, estimated): (i64, bool)) {
    let new = NewModelCall {
        model: "asked".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: 7,
        reserve_micro_usd: 7,
        only_alone: false,
    };
    let id = fixture.store.begin_model_call(run, &new).await.unwrap().begun().expect("the run is running");
    let settled = SettledCall {
        model: model.to_owned(),
        status: 200,
        tokens: tokens(units),
        cost_micro_usd: 1_000 * units,
        estimated,
        first_byte_ms: None,
        duration_ms: 1,
    };
    assert!(fixture.store.settle_model_call(&id, &settled).await.unwrap());
}

/// Before midnight 1 and 2 of the first run and 4 of the second; at midnight 8 of the first, and 16 of another project.
async fn scene(fixture: Fixture) -> Scene {
    fixture.store.create_project(&other(), Actor::Operator).await.unwrap();
    let first = run(&fixture, project(), "fix").await;
    fixture.clock.advance(1);
    let second = run(&fixture, project(), "review").await;
    fixture.clock.advance(1);
    let theirs = run(&fixture, other(), "fix").await;
    fixture.clock.set(MIDNIGHT - 1);
    call(&fixture, &first.0, "big", (1, false)).await;
    call(&fixture, &first.0, "small", (2, true)).await;
    call(&fixture, &second.0, "big", (4, false)).await;
    fixture.clock.set(MIDNIGHT);
    call(&fixture, &first.0, "big", (8, false)).await;
    call(&fixture, &theirs.0, "big", (16, true)).await;
    Scene { fixture, first, second, theirs }
}

fn of(project: Option<ProjectId>) -> UsageFilter {
    UsageFilter { project, from_ms: 0, to_ms: MIDNIGHT + DAY_MS, ..UsageFilter::default() }
}

async fn groups(fixture: &Fixture, filter: &UsageFilter, by: UsageBy) -> Vec<(String, UsageTotals)> {
    let found = fixture.store.usage_groups(filter, by, None, PAGE_ITEMS).await.unwrap();
    found.into_iter().map(|UsageGroup { key, usage }| (key, usage)).collect()
}

async fn each_grouping_adds_up_to_what_was_counted_by_hand(fixture: Fixture) {
    let Scene { fixture, first, second, theirs } = scene(fixture).await;
    let (today, tomorrow) = ((MIDNIGHT / DAY_MS - 1).to_string(), (MIDNIGHT / DAY_MS).to_string());
    let (own, all) = (of(Some(project())), of(None));
    let text = |id: &dyn ToString| id.to_string();
    let cases: [(UsageBy, Groups, Groups); 6] = [
        (
            UsageBy::Day,
            vec![(tomorrow.clone(), sum(1, 0, 8)), (today.clone(), sum(3, 1, 7))],
            vec![(tomorrow, sum(2, 1, 24)), (today, sum(3, 1, 7))],
        ),
        (
            UsageBy::Model,
            vec![("big".to_owned(), sum(3, 0, 13)), ("small".to_owned(), sum(1, 1, 2))],
            vec![("big".to_owned(), sum(4, 1, 29)), ("small".to_owned(), sum(1, 1, 2))],
        ),
        (
            UsageBy::Workflow,
            vec![("fix".to_owned(), sum(3, 1, 11)), ("review".to_owned(), sum(1, 0, 4))],
            vec![("fix".to_owned(), sum(4, 2, 27)), ("review".to_owned(), sum(1, 0, 4))],
        ),
        (
            UsageBy::Session,
            vec![(text(&second.1), sum(1, 0, 4)), (text(&first.1), sum(3, 1, 11))],
            vec![
                (text(&theirs.1), sum(1, 1, 16)),
                (text(&second.1), sum(1, 0, 4)),
                (text(&first.1), sum(3, 1, 11)),
            ],
        ),
        (
            UsageBy::Run,
            vec![(text(&second.0), sum(1, 0, 4)), (text(&first.0), sum(3, 1, 11))],
            vec![
                (text(&theirs.0), sum(1, 1, 16)),
                (text(&second.0), sum(1, 0, 4)),
                (text(&first.0), sum(3, 1, 11)),
            ],
        ),
        (
            UsageBy::Project,
            vec![("default".to_owned(), sum(4, 1, 15))],
            vec![("default".to_owned(), sum(4, 1, 15)), ("other".to_owned(), sum(1, 1, 16))],
        ),
    ];
    assert_eq!(cases.len(), UsageBy::ALL.len());
    for (by, of_own, of_all) in cases {
        assert_eq!(groups(&fixture, &own, by).await, of_own, "{by}");
        assert_eq!(groups(&fixture, &all, by).await, of_all, "{by} of all projects");
    }
    assert_eq!(fixture.store.usage_total(&own).await.unwrap(), sum(4, 1, 15));
    assert_eq!(fixture.store.usage_total(&all).await.unwrap(), sum(5, 2, 31));
    let run = fixture.run(&first.0).await;
    assert_eq!(run.usage, sum(3, 1, 11), "the run itself says the same");
}

async fn each_filter_narrows_what_is_counted(fixture: Fixture) {
    let Scene { fixture, first, second, theirs } = scene(fixture).await;
    let own = of(Some(project()));
    let cases = [
        (UsageFilter { run: Some(first.0), ..own.clone() }, sum(3, 1, 11)),
        (UsageFilter { session: Some(second.1), ..own.clone() }, sum(1, 0, 4)),
        (UsageFilter { model: Some("small".to_owned()), ..own.clone() }, sum(1, 1, 2)),
        (UsageFilter { workflow: Some("fix".to_owned()), ..own.clone() }, sum(3, 1, 11)),
        (
            UsageFilter { workflow: Some("fix".to_owned()), model: Some("big".to_owned()), ..own.clone() },
            sum(2, 0, 9),
        ),
        (UsageFilter { workflow: Some("fix".to_owned()), ..of(None) }, sum(4, 2, 27)),
        (UsageFilter { run: Some(theirs.0), ..own.clone() }, UsageTotals::default()),
        (UsageFilter { model: Some("BIG".to_owned()), ..own }, UsageTotals::default()),
    ];
    for (filter, expected) in cases {
        assert_eq!(fixture.store.usage_total(&filter).await.unwrap(), expected, "{filter:?}");
        let by_model = groups(&fixture, &filter, UsageBy::Model).await;
        let calls: i64 = by_model.iter().map(|(_, usage)| usage.calls).sum();
        assert_eq!(calls, expected.calls, "{filter:?}");
    }
}

async fn a_time_begins_with_its_first_instant_and_ends_before_its_last(fixture: Fixture) {
    let Scene { fixture, .. } = scene(fixture).await;
    let own = of(Some(project()));
    for (from_ms, to_ms, expected) in [
        (MIDNIGHT - 1, MIDNIGHT, sum(3, 1, 7)),
        (MIDNIGHT, MIDNIGHT + 1, sum(1, 0, 8)),
        (0, MIDNIGHT - 1, UsageTotals::default()),
        (MIDNIGHT + 1, MIDNIGHT + DAY_MS, UsageTotals::default()),
        (MIDNIGHT, MIDNIGHT, UsageTotals::default()),
    ] {
        let filter = UsageFilter { from_ms, to_ms, ..own.clone() };
        assert_eq!(fixture.store.usage_total(&filter).await.unwrap(), expected, "{from_ms} to {to_ms}");
    }
}

async fn calls_under_way_are_counted_when_they_are_over(fixture: Fixture) {
    let placed = fixture.placed().await;
    crate::usage::settled_call(&fixture, &placed.run.id).await;
    let filter = of(Some(project()));
    let before = fixture.store.usage_total(&filter).await.unwrap();
    assert_eq!((before.calls, before.cost_micro_usd), (1, 123));
    let new = NewModelCall {
        model: "asked".to_owned(),
        estimate: tokens(1),
        estimate_cost_micro_usd: 999,
        reserve_micro_usd: 999,
        only_alone: false,
    };
    fixture.store.begin_model_call(&placed.run.id, &new).await.unwrap().begun().unwrap();
    assert_eq!(fixture.store.usage_total(&filter).await.unwrap(), before);
    assert_eq!(fixture.store.settle_orphaned_calls(&fixture.server).await.unwrap(), 1);
    let after = fixture.store.usage_total(&filter).await.unwrap();
    assert_eq!((after.calls, after.estimated_calls, after.cost_micro_usd), (2, 1, 123 + 999));
}

async fn pages_join_without_gap_or_overlap_in_both_directions(fixture: Fixture) {
    let Scene { fixture, .. } = scene(fixture).await;
    let all = of(None);
    for by in UsageBy::ALL {
        let expected = groups(&fixture, &all, *by).await;
        let (mut seen, mut after) = (Vec::new(), None);
        for _ in 0..expected.len() {
            let page = fixture.store.usage_groups(&all, *by, after.as_deref(), 1).await.unwrap();
            assert_eq!(page.len(), 1, "{by}");
            after = page.last().map(|group| group.key.clone());
            seen.extend(page.into_iter().map(|group| (group.key, group.usage)));
        }
        assert_eq!(seen, expected, "{by}");
        assert_eq!(fixture.store.usage_groups(&all, *by, after.as_deref(), 1).await.unwrap(), [], "{by}");
    }
}

async fn a_page_of_groups_is_bounded_whatever_is_asked_for(fixture: Fixture) {
    let placed = fixture.placed().await;
    crate::usage::settled_call(&fixture, &placed.run.id).await;
    fixture
        .execute(
            "with recursive number (n) as (select 1 union all select n + 1 from number where n < 300) \
             insert into usage (id, project_id, session_id, run_id, server_id, state, model, status, input_tokens, \
             output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, \
             begun_at_ms, settled_at_ms) select 'use_' || cast(n as text), project_id, session_id, run_id, server_id, \
             state, 'model-' || cast(n as text), status, input_tokens, output_tokens, cache_read_tokens, \
             cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, settled_at_ms \
             from usage, number",
        )
        .await;
    let filter = of(Some(project()));
    let found = fixture.store.usage_groups(&filter, UsageBy::Model, None, u32::MAX).await.unwrap();
    assert_eq!(found.len(), PAGE_ITEMS as usize + 1, "one more than a page, to see whether there is another");
    assert_eq!(fixture.store.usage_total(&filter).await.unwrap().calls, 301);
}
