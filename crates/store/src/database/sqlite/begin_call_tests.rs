//! The one statement and the transaction are two copies of one rule: what either begins, and what it writes, is the same.

use caisson_domain::budget::DAY_MS;
use caisson_domain::id::{RunId, UsageId};
use caisson_domain::usage::TokenCounts;
use proptest::prelude::*;
use sqlx::{AssertSqlSafe, Row as _};

use crate::database::Database;
use crate::{BeginCall, Clock, NewModelCall, Store};

const NOW_MS: i64 = 20_000 * DAY_MS + 5;

/// A store with a project, a session and a running run whose names are one letter, for each of `a` and `b`.
async fn store() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(NOW_MS).0).await.unwrap();
    execute(&store, "insert into server (id, seen_at_ms, problems) values ('srv', 0, '[]')").await;
    for name in ["a", "b"] {
        execute(&store, &format!("insert into project (id, created_at_ms) values ('{name}', 0)")).await;
        let session = format!(
            "insert into session (id, project_id, workflow, created_at_ms, updated_at_ms, conversation) values ('{name}', '{name}', 'w', 0, 0, '{name}')"
        );
        execute(&store, &session).await;
        let run = format!(
            "insert into run (id, project_id, session_id, workflow, status, home_server_id, not_before_ms, created_at_ms, spec, \
             first_call_day) values ('{}', '{name}', '{name}', 'w', 'running', 'srv', 0, 0, '{{}}', 1)",
            run(name)
        );
        execute(&store, &run).await;
    }
    (store, directory)
}

/// The id of a project's run.
fn run(name: &str) -> RunId {
    RunId::new(1, [name.as_bytes()[0]; 10])
}

async fn rows(store: &Store, text: &str) -> Vec<sqlx::sqlite::SqliteRow> {
    let Database::Sqlite(database) = &store.shared.database else { panic!("a database of its own kind") };
    sqlx::query(AssertSqlSafe(text.to_owned())).fetch_all(&database.writer).await.unwrap()
}

async fn execute(store: &Store, text: &str) {
    rows(store, text).await;
}

fn call(micro_usd: i64) -> NewModelCall {
    NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts { input: 1, output: 2, cache_read: 3, cache_write_5m: 4, cache_write_1h: 5 },
        estimate_cost_micro_usd: 6,
        reserve_micro_usd: micro_usd,
        only_alone: false,
    }
}

async fn at_once(store: &Store, name: &str, micro_usd: i64) -> Option<(UsageId, bool)> {
    store.begin_call_at_once(&run(name), &call(micro_usd)).await.unwrap()
}

async fn in_steps(store: &Store, name: &str, micro_usd: i64) -> BeginCall {
    store.begin_call_in_steps(&run(name), &call(micro_usd)).await.unwrap()
}

/// What is on record of a project's calls, but for their ids, as text.
async fn record(store: &Store, name: &str) -> String {
    let calls = "json_group_array(json_array(state, model, server_id, status, input_tokens, output_tokens, cache_read_tokens, \
         cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, reserved_micro_usd, \
         come_to_micro_usd, session_id = project_id, run_id = (select id from run where run.project_id = usage.project_id)))";
    let text = format!(
        "select (select {calls} from (select * from usage where project_id = '{name}' order by begun_at_ms, reserved_micro_usd) as usage) \
         || (select json_array(calls, cost_micro_usd, outcome) from run where project_id = '{name}') \
         || (select json_array(calls, cost_micro_usd) from session where project_id = '{name}') as record"
    );
    rows(store, &text).await[0].get("record")
}

#[tokio::test]
async fn what_is_begun_at_once_is_what_the_transaction_would_have_written() {
    let (store, _directory) = store().await;
    for micro_usd in [7, 0, -3, i64::MAX] {
        let (id, bounded) = at_once(&store, "a", micro_usd).await.expect("nothing speaks against it");
        assert!(!bounded);
        assert_eq!(rows(&store, &format!("select id from usage where id = '{id}'")).await.len(), 1);
        assert!(matches!(in_steps(&store, "b", micro_usd).await, BeginCall::Begun { bounded: false, .. }));
    }
    let record_of_a = record(&store, "a").await;
    assert!(record_of_a.contains("\"pending\",\"m\",\"srv\",null,1,2,3,4,5,6,1"), "{record_of_a}");
    assert_eq!(record_of_a, record(&store, "b").await);
}

#[tokio::test]
async fn what_only_the_transaction_may_judge_is_left_to_it() {
    let (store, _directory) = store().await;
    let set = async |what: &str, back: &str| {
        execute(&store, &format!("update run set {what} where project_id = 'a'")).await;
        let begun = at_once(&store, "a", 1).await;
        execute(&store, &format!("update run set {back} where project_id = 'a'")).await;
        begun
    };
    assert_eq!(set("first_call_day = null", "first_call_day = 1").await, None, "a run's first call");
    assert_eq!(set("status = 'queued'", "status = 'running'").await, None);
    let outcome = "outcome = '{}'";
    assert_eq!(set(outcome, "outcome = null").await, None, "its shim is done with it");
    let alone = NewModelCall { only_alone: true, ..call(1) };
    assert_eq!(store.begin_call_at_once(&run("a"), &alone).await.unwrap(), None);
    assert_eq!(store.begin_call_at_once(&run("c"), &call(1)).await.unwrap(), None, "no such run");
    execute(&store, "insert into _sqlx_migrations select 9999, description, installed_on, success, checksum, execution_time \
         from _sqlx_migrations where version = 9").await;
    assert_eq!(at_once(&store, "a", 1).await, None, "a later version has migrated");
    execute(&store, "delete from _sqlx_migrations where version = 9999").await;
    assert_eq!(record(&store, "a").await, record(&store, "b").await, "nothing was written");
    execute(&store, "alter table usage rename column come_to_micro_usd to come_to").await;
    assert!(at_once(&store, "a", 1).await.is_some(), "a column that it does not name");
    execute(&store, "drop trigger temp.begin_call").await;
    assert_eq!(at_once(&store, "a", 1).await, None, "what is broken is left to the transaction as well");
    assert!(matches!(in_steps(&store, "a", 1).await, BeginCall::Begun { .. }));
}

/// What a budget of 10 to 12 may come to, and what is spent and held of it, so that each side of its bound is met often.
fn budget() -> impl Strategy<Value = (Option<i64>, i64, i64)> {
    (prop::option::weighted(0.6, 10..13_i64), 0..6_i64, 0..6_i64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn both_begin_the_same_calls_within_the_same_budgets(
        budgets in [budget(), budget(), budget()],
        needs in prop::collection::vec(0..9_i64, 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (store, _directory) = store().await;
            let [(run_most, run_spent, _), (all_most, all_spent, _), (day_most, day_spent, _)] = budgets;
            let text = |most: Option<i64>| most.map_or_else(|| "null".to_owned(), |most| most.to_string());
            for name in ["a", "b"] {
                execute(&store, &format!(
                    "update run set budget_micro_usd = {}, cost_micro_usd = {run_spent} where project_id = '{name}'",
                    text(run_most)
                )).await;
                execute(&store, &format!(
                    "update project set budget_micro_usd = {}, day_budget_micro_usd = {}, cost_micro_usd = {all_spent} \
                     where id = '{name}'",
                    text(all_most), text(day_most)
                )).await;
                let day = NOW_MS / DAY_MS;
                execute(&store, &format!(
                    "insert into project_day (project_id, day, cost_micro_usd) values ('{name}', {day}, {day_spent}), \
                     ('{name}', {}, 100)",
                    day - 1
                )).await;
                // Held by calls of the run, of another day, and of nobody that is bound here.
                for (number, (held, at_ms)) in [(budgets[0].2, NOW_MS), (budgets[1].2, NOW_MS - DAY_MS)].into_iter().enumerate() {
                    execute(&store, &format!(
                        "insert into usage (id, project_id, session_id, run_id, server_id, state, model, input_tokens, \
                         output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, \
                         estimated, begun_at_ms, reserved_micro_usd) values ('{name}{number}', '{name}', '{name}', '{}', 'srv', \
                         'pending', 'm', 0, 0, 0, 0, 0, 0, 1, {at_ms}, {held})",
                        run(name)
                    )).await;
                }
            }
            for need in needs {
                let (one, other) = (at_once(&store, "a", need).await, in_steps(&store, "b", need).await);
                match (&one, &other) {
                    (Some((_, bounded)), BeginCall::Begun { bounded: also, .. }) => assert_eq!(bounded, also),
                    (None, BeginCall::Refused(_)) => {}
                    _ => panic!("{need} of {budgets:?}: {one:?} and {other:?}"),
                }
                assert_eq!(record(&store, "a").await, record(&store, "b").await);
            }
        });
    }
}
