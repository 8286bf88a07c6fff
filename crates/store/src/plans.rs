//! How both databases read what is asked again and again ([`crate::hot`]), on little data: by the index that is named there,
//! and reading no table from end to end.

mod removal;

use caisson_domain::id::ProjectId;
use caisson_domain::run::{Resources, RunSpec};
use caisson_domain::workflow::{CaissonBlock, PermissionMode, Workflow};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _};

use crate::database::sql;
use crate::hot::{self, Example, Plan, explain};
use crate::{Clock, CreateRun, NewRun, PostgresLimits, PostgresPlace, Random, Store, claim, usage_reports};

/// Where the server for tests is.
const URL: &str = "TEST_POSTGRES_URL";

/// Counts what there is in the tables of this schema: other tests make and remove theirs beside it.
const ANALYZE: &str = "do $$ declare name text; begin for name in select quote_ident(tablename) from pg_tables \
     where schemaname = current_schema() order by tablename loop execute 'analyze ' || name; end loop; end $$";

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
    // What a run leaves there lies together.
    "insert into audit (chain, seq, project_id, at_ms, actor, action, subject, run_id, prev_hash, hash) \
     select 'srv_1', n, case when n / 5 % 200 = 0 then 'default' else 'other' end, 0, \
     case when n % 1000 = 0 then 'key_0' else 'server' end, \
     case when n % 1000 = 0 then 'project.create' else 'credential.use' end, 'x', \
     'run_' || lpad(to_hex(n / 5), 32, '0'), repeat('0', 64), repeat('0', 64) from generate_series(1, 40000) as n",
    ANALYZE,
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

/// Of what [`FILL`] makes.
fn example() -> Example {
    Example {
        run: "run_00000000000000000000000000000100".to_owned(),
        session: "ses_00000000000000000000000000000100".to_owned(),
        after: 3,
        waiting: "run_e0000000000000000000000000000014".to_owned(),
        workflow: "seldom".to_owned(),
        repository: "seldom".to_owned(),
        secret: "00000100".to_owned(),
        server: "srv_1".to_owned(),
        now_ms: 5,
        calls_ms: [2000, 4000],
    }
}

/// What is wrong with the plans of statements, with the whole of each.
fn faults(plans: &[Plan]) -> Vec<String> {
    let told = |plan: &Plan| {
        let Plan { name, planned, lines, pages, fault, passed_over } = plan;
        let fault = fault.as_deref().or(*passed_over)?;
        Some(format!("{name}, for {planned:?}, {pages:?} pages: {fault}\n{}", lines.join("\n")))
    };
    plans.iter().filter_map(told).collect()
}

#[tokio::test]
async fn sqlite_reads_what_each_statement_may_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
    let plans = explain(&store, &example()).await.unwrap();
    assert_eq!(plans.len(), hot::all().count());
    assert_eq!(faults(&plans), Vec::<String>::new());
    assert!(claim::CLAIM.contains("attempt as begun"), "or the plan is looked at for nothing");
}

#[tokio::test]
async fn sqlite_reads_of_all_calls_those_of_the_time_for_a_report_over_all_projects() {
    const READS: &str =
        "SEARCH usage USING INDEX usage_of_project (project_id=? AND begun_at_ms>? AND begun_at_ms<?)";
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
    for text in [usage_reports::BY_DAY[1], usage_reports::TOTAL[1]] {
        let explain = sql::Statement::Built(format!("explain query plan {text}").into());
        let rows = sql::query(explain).fetch_all(store.reader()).await.unwrap();
        let steps: Vec<String> = rows.iter().map(|row| row.get("detail").unwrap()).collect();
        assert!(steps.iter().any(|step| step == READS), "{steps:?} for {text}");
    }
}

#[tokio::test]
async fn postgres_reads_what_each_statement_may_and_no_more() {
    let Some((url, schema)) = schema().await else { return };
    let place = format!("{url}&options[search_path]={schema}");
    let place = PostgresPlace::from_url(&place, PostgresLimits::default()).unwrap();
    let store = Store::connect(&place, Clock::fixed_at(0).0).await.unwrap();
    assert!(matches!(store.create_run(run()).await.unwrap(), CreateRun::Created(_)));
    let mut connection = connect(&url).await;
    execute(&mut connection, &format!("set search_path = {schema}")).await;
    for text in FILL.iter().chain(&removal::OF_EACH_SESSION).chain(&[ANALYZE]) {
        execute(&mut connection, text).await;
    }
    let plans = explain(&store, &example()).await.unwrap();
    store.close().await.unwrap();
    execute(&mut connection, &format!("drop schema {schema} cascade")).await;
    connection.close().await.unwrap();
    assert!(plans.len() > hot::all().count(), "some are planned for all values as well");
    assert_eq!(faults(&plans), Vec::<String>::new());
    let claim = plans.iter().find(|plan| plan.name == "a claim").unwrap();
    assert!(claim.lines[0].contains("rows=1 "), "nothing was claimed: {claim:#?}");
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
