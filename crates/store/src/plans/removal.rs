//! How both databases find what retention removes: they read what is the session's and nothing else, under the lock that
//! everybody waits for.

use super::{ANALYZE, FILL, connect, execute, plan, run, schema};
use crate::database::sql;
use crate::{Clock, CreateRun, PostgresLimits, PostgresPlace, Store, attachments, files, removal, retention};
use sqlx::Connection as _;

/// A session that has one run, among thousands.
const SESSION: &str = "('ses_00000000000000000000000000000100')";

const OF_SESSION: &str = "('ses_00000000000000000000000000000100', 1000)";

/// Looks for what has expired, by index, with the first step of `SQLite`'s plan.
const LISTS: [(&str, &str); 4] = [
    (retention::WITH_EVENTS, "SEARCH session USING INDEX session_of_age (project_id=? AND updated_at_ms<?)"),
    (
        retention::WITH_VOLUME,
        "SEARCH session_files USING COVERING INDEX session_files_of_server (server_id=? AND project_id=? AND kind=?)",
    ),
    (
        retention::WITH_ARTIFACTS,
        "SEARCH session_files USING COVERING INDEX session_files_of_server (server_id=? AND project_id=? AND kind=?)",
    ),
    (retention::WHOLE, "SEARCH session USING INDEX session_of_age (project_id=? AND updated_at_ms<?)"),
];

/// Statements about one session.
fn of_a_session() -> impl Iterator<Item = &'static str> {
    retention::DELETE_SESSION.into_iter().chain([
        retention::ONE,
        retention::RUNS,
        retention::DELETE_ARTIFACTS,
        files::LEFT,
    ])
}

/// Rows of every session in each table that refers to sessions or runs.
pub(super) const OF_EACH_SESSION: [&str; 15] = [
    "insert into server (id, seen_at_ms, problems) values ('srv_1', 0, '[]') on conflict do nothing",
    "insert into sandbox (id, project_id, session_id, server_id, engine, image, uid, state, created_at_ms, changed_at_ms) \
     select 'sbx_' || id, project_id, id, 'srv_1', 'docker', '', 1, 'destroyed', 0, 0 from session",
    "insert into sandbox_grant (sandbox_id, kind, project_id, hash) select id, 'agent', project_id, 'x' from sandbox",
    "insert into session_files (session_id, server_id, kind, project_id) select id, 'srv_1', kind, project_id \
     from session, (values ('artifacts'), ('volumes')) as kinds (kind)",
    "insert into attempt (run_id, number, project_id, session_id, server_id, started_at_ms) \
     select id, 1, project_id, session_id, 'srv_1', 0 from run",
    "insert into usage (id, project_id, session_id, run_id, server_id, state, model, input_tokens, output_tokens, \
     cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, settled_at_ms) \
     select 'use_' || id, project_id, session_id, id, 'srv_1', 'settled', 'm', 0, 0, 0, 0, 0, 0, 0, 0, 0 from run",
    "insert into artifact (id, project_id, run_id, name, size_bytes, sha256, path, created_at_ms) \
     select 'art_' || id, project_id, id, 'a', 0, 'x', 'x', 0 from run",
    "insert into idempotency (project_id, key, request_sha256, run_id, expires_at_ms) \
     select project_id, id, 'x', id, 0 from run",
    "insert into input (session_id, seq, project_id, run_id, created_at_ms, body) \
     select session_id, 1, project_id, id, 0, '{}' from run",
    "insert into attachment (run_id, number, session_id, project_id, name, size_bytes, sha256, created_at_ms) \
     select id, 0, session_id, project_id, 'a', 1, 'x', 0 from run",
    "insert into attachment_part (run_id, attachment, number, project_id, content) \
     select run_id, number, 0, project_id, 'eA==' from attachment",
    "insert into automagik_run (run_id, project_id, session_id, workflow_name) \
     select id, project_id, session_id, 'fix' from run",
    "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) \
     select session_id, project_id, id, 2, 'x', 0 from run",
    "insert into transcript_part (run_id, number, project_id, content) select run_id, 0, project_id, '{}' from transcript",
    "insert into approval (id, project_id, session_id, run_id, request, tool, input, cut_bytes, default_answer, state, \
     requested_at_ms, expires_at_ms) select 'apv_' || id, project_id, session_id, id, 'r', 't', '{}', 0, 'deny', 'expired', 0, 0 from run",
];

#[tokio::test]
async fn sqlite_finds_what_is_a_sessions_and_what_has_expired_by_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
    let steps = async |text: &str| -> Vec<String> {
        let explain = sql::Statement::Built(format!("explain query plan {text}").into());
        let rows = sql::query(explain).fetch_all(store.reader()).await.unwrap();
        rows.iter().map(|row| row.get("detail").unwrap()).collect()
    };
    let by_index = |step: &String| !step.starts_with("SCAN ") && !step.starts_with("USE TEMP B-TREE");
    for text in of_a_session() {
        let steps = steps(text).await;
        assert!(steps.iter().all(by_index), "{steps:?} for {text}");
    }
    for text in removal::SOME.into_iter().chain([removal::NEXT, attachments::DELETE_SOME_PARTS]) {
        let steps = steps(text).await;
        assert!(steps.iter().all(by_index), "{steps:?} for {text}");
    }
    for (text, first) in LISTS {
        let steps = steps(text).await;
        assert_eq!(steps[0], first, "{text}");
        assert!(steps.iter().all(by_index), "{steps:?} for {text}");
    }
}

#[tokio::test]
async fn postgres_finds_what_is_a_sessions_by_index() {
    let Some((url, schema)) = schema().await else { return };
    let place = format!("{url}&options[search_path]={schema}");
    let place = PostgresPlace::from_url(&place, PostgresLimits::default()).unwrap();
    let store = Store::connect(&place, Clock::fixed_at(0).0).await.unwrap();
    assert!(matches!(store.create_run(run()).await.unwrap(), CreateRun::Created(_)));
    store.close().await.unwrap();
    let mut connection = connect(&url).await;
    execute(&mut connection, &format!("set search_path = {schema}")).await;
    for text in FILL.iter().chain(&OF_EACH_SESSION).chain(&[ANALYZE]) {
        execute(&mut connection, text).await;
    }
    let mut wrong = Vec::new();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        execute(&mut connection, &format!("set plan_cache_mode = {mode}")).await;
        let some = removal::SOME.into_iter().chain([attachments::DELETE_SOME_PARTS]);
        let some = some.map(|text| (text, "(text, bigint)", OF_SESSION));
        for (text, types, values) in of_a_session().map(|text| (text, "(text)", SESSION)).chain(some) {
            let plan = plan(&mut connection, text, (types, values)).await;
            // There are few servers, whose table is a single page.
            let whole = |line: &&str| line.contains("Seq Scan") && !line.contains("Seq Scan on server");
            if plan.lines().any(|line| whole(&line)) {
                wrong.push(format!("{mode}: {text}\n{plan}"));
            }
        }
    }
    execute(&mut connection, &format!("drop schema {schema} cascade")).await;
    connection.close().await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
