//! How both databases read what clients ask for again and again: by the index that is named here, sorting nothing and
//! reading no table from end to end.

mod removal;

use caisson_domain::id::ProjectId;
use caisson_domain::run::{Resources, RunSpec};
use caisson_domain::workflow::{CaissonBlock, PermissionMode, Workflow};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _};

use crate::credentials::uses;
use crate::database::sql;
use crate::{
    Clock, CreateRun, NewRun, PostgresLimits, PostgresPlace, Random, Store, claim, drain, events, forks,
    keys, lost, run_lists, runs, sessions, usage_reports, waiting,
};

/// Where the server for tests is.
const URL: &str = "TEST_POSTGRES_URL";

/// What is asked.
struct Question {
    text: &'static str,
    /// The first step of `SQLite`'s plan. Every other is a search as well.
    sqlite: &'static str,
    /// `PostgreSQL`'s index, and whether it is read backwards.
    postgres: &'static str,
    /// The parameters' types and values, for `PostgreSQL`.
    types: &'static str,
    values: &'static str,
    planned: Planned,
}

/// For what `PostgreSQL` plans.
#[derive(PartialEq)]
enum Planned {
    /// For its values, each time ([`sql::Query::planned_for_its_values`]).
    EachTime,
    /// For the values of the first few times, and then perhaps for all.
    Once,
}

const LISTED: &str = "text, text, text, text, text, text, bigint";

const QUESTIONS: [Question; 12] = [
    Question {
        text: run_lists::ALL,
        sqlite: "SEARCH run USING INDEX run_of_project (project_id=? AND id<?)",
        postgres: "Index Scan Backward using run_of_project",
        types: LISTED,
        values: "'default', 'run_g', null, null, null, null, 51",
        planned: Planned::EachTime,
    },
    Question {
        text: run_lists::BY_STATUS,
        sqlite: "SEARCH run USING INDEX run_of_status (project_id=? AND status=? AND id<?)",
        postgres: "Index Scan Backward using run_of_status",
        types: LISTED,
        values: "'default', 'run_g', 'cancelled', null, null, null, 51",
        planned: Planned::EachTime,
    },
    Question {
        text: run_lists::BY_WORKFLOW,
        sqlite: "SEARCH run USING INDEX run_of_workflow (project_id=? AND workflow=? AND id<?)",
        postgres: "Index Scan Backward using run_of_workflow",
        types: LISTED,
        values: "'default', 'run_g', null, 'seldom', null, null, 51",
        planned: Planned::EachTime,
    },
    Question {
        text: run_lists::BY_SESSION,
        sqlite: "SEARCH run USING INDEX run_of_session (session_id=? AND id<?)",
        postgres: "Index Scan Backward using run_of_session",
        types: LISTED,
        values: "'default', 'run_g', null, null, 'ses_00000000000000000000000000000100', null, 51",
        planned: Planned::EachTime,
    },
    Question {
        text: run_lists::BY_REPOSITORY,
        sqlite: "SEARCH run USING INDEX run_of_repository (project_id=? AND repository=? AND id<?)",
        postgres: "Index Scan Backward using run_of_repository",
        types: LISTED,
        values: "'default', 'run_g', null, null, null, 'seldom', 51",
        planned: Planned::EachTime,
    },
    Question {
        text: runs::ONE,
        sqlite: "SEARCH run USING INDEX sqlite_autoindex_run_1 (id=?)",
        postgres: "Index Scan using run_",
        types: "text, text",
        values: "'default', 'run_00000000000000000000000000000100'",
        planned: Planned::Once,
    },
    Question {
        text: uses::RUN,
        sqlite: "SEARCH run USING INDEX sqlite_autoindex_run_1 (id=?)",
        postgres: "Index Scan using run_",
        types: "text, text",
        values: "'default', 'run_00000000000000000000000000000100'",
        planned: Planned::Once,
    },
    Question {
        text: sessions::LIST,
        sqlite: "SEARCH session USING INDEX session_of_project (project_id=? AND id<?)",
        postgres: "Index Scan Backward using session_of_project",
        types: "text, text, bigint",
        values: "'default', 'ses_g', 51",
        planned: Planned::EachTime,
    },
    Question {
        text: forks::UNUSED_FORKS,
        sqlite: "SEARCH session USING INDEX session_of_unused_forks (project_id=?)",
        postgres: "using session_of_unused_forks",
        types: "text",
        values: "'default'",
        planned: Planned::Once,
    },
    Question {
        text: events::OF_RUN,
        sqlite: "SEARCH event USING INDEX event_of_run (run_id=? AND seq>?)",
        postgres: "Index Scan using event_of_run",
        types: "text, bigint, bigint",
        values: "'run_00000000000000000000000000000100', 3, 11",
        planned: Planned::Once,
    },
    Question {
        text: events::OF_SESSION,
        sqlite: "SEARCH event USING INDEX sqlite_autoindex_event_1 (session_id=? AND seq>?)",
        postgres: "Index Scan using event_pkey",
        types: "text, bigint, bigint",
        values: "'ses_00000000000000000000000000000100', 3, 11",
        planned: Planned::Once,
    },
    Question {
        text: keys::BY_SECRET,
        sqlite: "SEARCH api_key USING INDEX sqlite_autoindex_api_key_2 (secret_hash=?)",
        postgres: "Index Scan using api_key_secret_hash_key",
        types: "text, bigint",
        values: "'00000100', 0",
        planned: Planned::Once,
    },
];

/// What is asked of the queue, with the parameters' types and values: it reads what waits and what runs, and none of all
/// those that have ended.
const OF_THE_QUEUE: [(&str, &str, &str); 10] = [
    (waiting::PLACE, "text, text, bigint", "'default', 'run_00000000000000000000000000000100', 5"),
    (waiting::QUEUED, "bigint", "10000"),
    (waiting::QUEUED_OF, "text, bigint", "'default', 10000"),
    (waiting::OLDEST, "bigint", "5"),
    (claim::RUNNING, "", ""),
    (claim::RUNNING_WITH, "text", "''"),
    (claim::PROJECTS_WAITING, "bigint, bigint", "5, 1000"),
    (
        claim::CLAIM,
        "text, bigint, bigint, text, bigint, text, bigint, bigint",
        "'srv_1', 5, 5, 'default', 100, '', 5, 5",
    ),
    (drain::STATE, "bigint", "5"),
    (lost::LOST, "text, bigint, bigint, bigint", "'srv_1', 5, 5, 1"),
];

const REPORTED: &str = "text, bigint, bigint, text, text, text, text";

/// Reports of usage: sums, so that something is sorted or hashed, but of the calls of the project and the time alone.
const REPORTS: [(&str, &str, &str); 7] = [
    (usage_reports::BY_DAY[0], ", bigint, bigint", ", null, 51"),
    (usage_reports::BY_MODEL[0], ", text, bigint", ", null, 51"),
    (usage_reports::BY_WORKFLOW[0], ", text, bigint", ", null, 51"),
    (usage_reports::BY_SESSION[0], ", text, bigint", ", null, 51"),
    (usage_reports::BY_RUN[0], ", text, bigint", ", 'run_00000000000000000000000000001000', 51"),
    (usage_reports::BY_PROJECT[0], ", text, bigint", ", null, 51"),
    (usage_reports::TOTAL[0], "", ""),
];

/// What `PostgreSQL` plans depends on how many rows there are. Nearly all are another project's.
const FILL: &[&str] = &[
    "set session_replication_role = replica",
    "insert into project (id, created_at_ms) values ('other', 0)",
    "insert into api_key (id, project_id, name, scopes, secret_hash, created_at_ms) \
     select 'key_' || n, 'default', 'key', '[]', lpad(to_hex(n), 8, '0'), 0 from generate_series(1, 5000) as n",
    "insert into session select (jsonb_populate_record(session, jsonb_build_object(\
     'number', number + n, 'id', 'ses_' || lpad(to_hex(n), 32, '0'), \
     'project_id', case when n % 20 = 0 then 'default' else 'other' end))).* \
     from session, generate_series(1, 8000) as n",
    "insert into run select (jsonb_populate_record(run, jsonb_build_object(\
     'id', 'run_' || lpad(to_hex(n), 32, '0'), 'session_id', 'ses_' || lpad(to_hex(n), 32, '0'), \
     'project_id', case when n % 20 = 0 then 'default' else 'other' end, 'finished_at_ms', 1, \
     'status', case when n % 200 = 0 then 'cancelled' else 'succeeded' end, \
     'workflow', case when n % 100 = 0 then 'seldom' else 'usual' end, \
     'repository', case when n % 200 = 0 then 'seldom' end))).* from run, generate_series(1, 8000) as n",
    "insert into run select (jsonb_populate_record(run, jsonb_build_object('id', 'run_e' || lpad(to_hex(n), 31, '0'), \
     'session_id', 'ses_e' || lpad(to_hex(n), 31, '0'), 'status', 'queued', 'finished_at_ms', null))).* \
     from run, generate_series(1, 20) as n where run.id = 'run_00000000000000000000000000000014'",
    // The sessions that wait have had many attempts, the last of them on another server.
    "insert into server (id, seen_at_ms, problems) select 'srv_' || n, 9, '[]' from generate_series(1, 2) as n",
    "insert into attempt (run_id, number, project_id, session_id, server_id, started_at_ms, agent_started_at_ms) \
     select id, 1000 + n, project_id, session_id, 'srv_' || (1 + n % 2), n, n from run, generate_series(1, 500) as n \
     where status = 'queued'",
    "insert into event (session_id, project_id, run_id, at_ms, seq, kind, data) \
     select session_id, project_id, id, 0, seq, 'note', '{}' from run, generate_series(10, 209) as seq \
     where right(id, 2) = '00' order by id, seq",
    "insert into credential_use (credential_id, run_id, project_id, uses, first_used_at_ms, last_used_at_ms) \
     select 'cred_1', id, project_id, 1, 0, 0 from run",
    "insert into usage (id, project_id, session_id, run_id, server_id, state, model, input_tokens, output_tokens, \
     cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, estimated, begun_at_ms, settled_at_ms) \
     select 'use_' || id || n, project_id, session_id, id, 'srv_1', 'settled', 'model', 1, 1, 1, 1, 1, 1, 0, n * 1000, n * 1000 \
     from run, generate_series(1, 5) as n",
    "analyze",
];

fn run() -> NewRun {
    let workflow = Workflow {
        name: "usual".to_owned(),
        description: String::new(),
        prompt: String::new(),
        tools: None,
        disallowed_tools: Vec::new(),
        allowed_tools: Vec::new(),
        model: None,
        permission_mode: PermissionMode::Default,
        max_turns: None,
        mcp_servers: serde_json::Map::new(),
        caisson: CaissonBlock::default(),
    };
    let spec = RunSpec {
        workflow,
        prompt: "Fix the bug".to_owned(),
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
        priority: 0,
        start_at_ms: None,
        parameters: caisson_domain::parameters::Values::new(),
        output_schema: None,
        attachments: Vec::new(),
        workflow_version: None,
        environment: std::collections::BTreeMap::new(),
    };
    NewRun { project: ProjectId::default_project(), created_by: None, spec, idempotency: None }
}

#[tokio::test]
async fn sqlite_reads_the_index_of_each_question_and_sorts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
    for question in QUESTIONS {
        let steps = steps(&store, question.text).await;
        assert_eq!(steps[0], question.sqlite, "{}", question.text);
        let searches = |step: &String| step.starts_with("SEARCH ") || step.starts_with("CORRELATED ");
        assert!(steps.iter().all(searches), "{steps:?} for {}", question.text);
    }
}

#[tokio::test]
async fn sqlite_reads_nothing_of_the_queue_but_what_waits_and_runs() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
    for (text, ..) in OF_THE_QUEUE {
        let explain = sql::Statement::Built(format!("explain query plan {text}").into());
        let rows = sql::query(explain).fetch_all(store.reader()).await.unwrap();
        let steps: Vec<String> = rows.iter().map(|row| row.get("detail").unwrap()).collect();
        let whole = ["run", "ahead", "waiting", "live"].map(|table| format!("SCAN {table} USING"));
        let whole =
            |step: &&String| step.ends_with("SCAN run") || whole.iter().any(|scan| step.starts_with(scan));
        assert_eq!(steps.iter().find(whole), None, "{steps:?} for {text}");
        assert!(!reads_many_attempts(steps.iter().map(String::as_str)), "{steps:?} for {text}");
        let sorts = |step: &String| step.starts_with("USE TEMP B-TREE");
        assert!(text != claim::CLAIM || !steps.iter().any(sorts), "{steps:?} for {text}");
    }
    assert!(claim::CLAIM.contains("attempt as begun"), "or the test looks for nothing");
}

/// How the last attempt of a session is found, wherever one is asked for: as one entry of an index.
const LAST_ATTEMPT: [&str; 2] = [
    "SEARCH begun USING INDEX attempt_with_agent (session_id=?",
    "Index Scan Backward using attempt_with_agent on attempt begun",
];

/// Whether a plan reads an attempt otherwise than as [`LAST_ATTEMPT`].
fn reads_many_attempts<'p>(mut plan: impl Iterator<Item = &'p str>) -> bool {
    plan.any(|line| {
        [" begun", "attempt"].iter().any(|name| line.contains(name))
            && !line.contains("Cond: ")
            && !LAST_ATTEMPT.iter().any(|one| line.contains(one))
    })
}

/// Whether a plan reads every run, or an index over every run from end to end.
fn reads_every_run(plan: &str) -> bool {
    let lines: Vec<&str> = plan.lines().collect();
    let indexed = |at: usize| lines.get(at + 1).is_some_and(|line| line.contains("project_id = "));
    let whole = |(at, line): (usize, &&str)| {
        line.contains("Seq Scan on run") || line.contains(" using run_of_status") && !indexed(at)
    };
    lines.iter().enumerate().any(whole)
}

#[tokio::test]
async fn sqlite_reads_of_all_calls_those_of_the_project_and_the_time_for_a_report() {
    const READS: &str =
        "SEARCH usage USING INDEX usage_of_project (project_id=? AND begun_at_ms>? AND begun_at_ms<?)";
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
    for (text, ..) in REPORTS {
        let steps = steps(&store, text).await;
        let reads: Vec<_> =
            steps.iter().filter(|step| step.starts_with("SEARCH ") || step.starts_with("SCAN ")).collect();
        assert_eq!(reads[0], READS, "{steps:?} for {text}");
        let one = "SEARCH run USING INDEX sqlite_autoindex_run_1 (id=?)";
        assert!(reads[1..].iter().all(|step| *step == one), "{steps:?} for {text}");
    }
    for text in [usage_reports::BY_DAY[1], usage_reports::TOTAL[1]] {
        let steps = steps(&store, text).await;
        assert!(steps.iter().any(|step| step == READS), "{steps:?} for {text}");
    }
}

async fn steps(store: &Store, text: &str) -> Vec<String> {
    let explain = sql::Statement::Built(format!("explain query plan {text}").into());
    let rows = sql::query(explain).fetch_all(store.reader()).await.unwrap();
    rows.iter().map(|row| row.get("detail").unwrap()).collect()
}

#[tokio::test]
async fn postgres_reads_the_index_of_each_question_and_sorts_nothing() {
    let Some((url, schema)) = schema().await else { return };
    let place = format!("{url}&options[search_path]={schema}");
    let place = PostgresPlace::from_url(&place, PostgresLimits::default()).unwrap();
    let store = Store::connect(&place, Clock::fixed_at(0).0).await.unwrap();
    assert!(matches!(store.create_run(run()).await.unwrap(), CreateRun::Created(_)));
    store.close().await.unwrap();
    let mut connection = connect(&url).await;
    execute(&mut connection, &format!("set search_path = {schema}")).await;
    for text in FILL.iter().chain(&removal::OF_EACH_SESSION).chain(&["analyze"]) {
        execute(&mut connection, text).await;
    }
    let mut wrong = Vec::new();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        execute(&mut connection, &format!("set plan_cache_mode = {mode}")).await;
        for Question { text, postgres, types, values, planned, .. } in QUESTIONS {
            if planned == Planned::EachTime && mode == "force_generic_plan" {
                continue;
            }
            let (types, values) = (format!("({types})"), format!("({values})"));
            let plan = plan(&mut connection, text, (&types, &values)).await;
            // There is one server, whose table is a single page.
            let whole = |line: &str| line.contains("Seq Scan") && !line.contains("Seq Scan on server");
            if !plan.contains(postgres) || plan.contains("Sort") || plan.lines().any(whole) {
                wrong.push(format!("{mode}, not {postgres}:\n{plan}"));
            }
        }
    }
    // What waits and what runs now is so little that any plan but the one for its index reads far more.
    for mode in ["force_custom_plan", "force_generic_plan"] {
        execute(&mut connection, &format!("set plan_cache_mode = {mode}")).await;
        for (text, types, values) in OF_THE_QUEUE {
            let (types, values) = if types.is_empty() {
                (String::new(), String::new())
            } else {
                (format!("({types})"), format!("({values})"))
            };
            let plan = plan(&mut connection, text, (&types, &values)).await;
            if reads_every_run(&plan) {
                wrong.push(format!("{mode}, every run is read for {text}:\n{plan}"));
            }
            if reads_many_attempts(plan.lines()) || (text == claim::CLAIM && !plan.contains(LAST_ATTEMPT[1]))
            {
                wrong.push(format!("{mode}, every attempt of a session is read for {text}:\n{plan}"));
            }
        }
    }
    execute(&mut connection, "set plan_cache_mode = force_custom_plan").await;
    for (text, types, values) in REPORTS {
        let values = format!("'default', 2000, 4000, null, null, null, null{values}");
        let plan =
            plan(&mut connection, text, (&format!("({REPORTED}{types})"), &format!("({values})"))).await;
        if !plan.contains("usage_of_project") || plan.contains("Seq Scan") {
            wrong.push(format!("not usage_of_project:\n{plan}"));
        }
    }
    execute(&mut connection, &format!("drop schema {schema} cascade")).await;
    connection.close().await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// How a statement is done with parameters of these types and values.
async fn plan(connection: &mut PgConnection, text: &str, (types, values): (&str, &str)) -> String {
    execute(connection, &format!("prepare question {types} as {text}")).await;
    let explain = AssertSqlSafe(format!("explain (costs off) execute question {values}"));
    let rows = sqlx::raw_sql(explain).fetch_all(&mut *connection).await.unwrap();
    execute(connection, "deallocate question").await;
    let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    plan.join("\n")
}

/// A schema of the test's own; none where no server is named, which fails if tests are required.
#[expect(clippy::disallowed_methods, reason = "where the server is, only tests ask")]
pub(crate) async fn schema() -> Option<(String, String)> {
    let Ok(url) = std::env::var(URL) else {
        assert!(std::env::var("TEST_REQUIRE").is_err(), "{URL} is not set; scripts/setup starts a server");
        eprintln!("skipped: {URL} is not set, so there is no PostgreSQL to test with");
        return None;
    };
    let name = format!("plans_{}", hex::encode(Random::system().bytes::<8>()));
    let mut connection = connect(&url).await;
    execute(&mut connection, &format!("create schema {name}")).await;
    connection.close().await.unwrap();
    Some((url, name))
}

pub(crate) async fn connect(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().unwrap();
    options.connect().await.unwrap()
}

async fn execute(connection: &mut PgConnection, text: &str) {
    sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(connection).await.unwrap();
}
