//! What is removed and what is migrated, on the server's machine: `gc`, `project retention`, and a server that may not migrate.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;
use testkit::world::{World, WorldSpec};

testkit::on_every_database! {
    gc_removes_what_has_expired_by_the_projects_own_days_and_a_dry_run_nothing
    a_server_that_may_not_migrate_refuses_an_earlier_database_until_somebody_does
}

const END: Duration = Duration::from_mins(3);
/// More than two days, in milliseconds.
const DAYS_MS: i64 = 50 * 60 * 60 * 1000;
/// Databases of earlier versions, as the store's own tests have them.
const EARLIER: &str = include_str!("../../store/tests/upgrade/v6.sql");
const EARLIER_OF_POSTGRESQL: &str = include_str!("../../store/tests/upgrade/postgres-v13.sql");

fn done(spec: &ServerSpec, arguments: &[&str]) -> String {
    let output = spec.command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", told(&output));
    told(&output)
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn documents(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Changes the database behind the server's back.
async fn execute(state_dir: &Path, postgres: Option<&Postgres>, sql: &str) {
    if let Some(postgres) = postgres {
        postgres.value(sql).unwrap();
        return;
    }
    let options = SqliteConnectOptions::new().filename(state_dir.join("caisson.db")).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn gc_removes_what_has_expired_by_the_projects_own_days_and_a_dry_run_nothing(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let mut world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}");
    world.wait_tidy().await.unwrap();
    let nothing = done(&world.spec, &["gc", "--dry-run"]);
    assert!(nothing.contains("0 things could be removed"), "for ever, by default: {nothing}");
    let set = ["project", "retention", "--volumes", "1", "--artifacts", "2", "--events", "ever", "--json"];
    let shown = documents(&done(&world.spec, &set));
    assert_eq!(
        shown[0]["effective"],
        json!({"events_days": 0, "artifacts_days": 2, "volumes_days": 1, "sessions_days": 0})
    );
    let table = done(&world.spec, &["project", "retention"]);
    assert!(
        table.lines().any(|line| line.split_whitespace().eq(["volumes", "1", "days", "project"])),
        "{table}"
    );
    world.server.terminate().await.unwrap();
    let state = world.state_dir().to_owned();
    let earlier = format!(
        "update run set finished_at_ms = finished_at_ms - {DAYS_MS}; update session set updated_at_ms = updated_at_ms - {DAYS_MS}"
    );
    execute(&state, world.postgres.as_ref(), &earlier).await;
    let workspace = state.join("sessions").join(run["session_id"].as_str().unwrap());
    let artifacts = state.join("artifacts").join(&id);
    assert!(workspace.exists() && artifacts.exists());
    let could = documents(&done(&world.spec, &["gc", "--dry-run", "--json"]));
    let kinds: Vec<_> =
        could.iter().map(|one| (one["kind"].as_str().unwrap(), one["removed"].clone())).collect();
    assert_eq!(kinds, [("volumes", json!(false)), ("artifacts", json!(false))]);
    assert!(workspace.exists() && artifacts.exists(), "a dry run removes nothing");
    let removed = documents(&done(&world.spec, &["gc", "--json"]));
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert!(removed.iter().all(|one| one["removed"] == json!(true)), "{removed:?}");
    assert!(!workspace.exists() && !artifacts.exists());
    assert!(done(&world.spec, &["gc"]).contains("0 things removed"));
    // What cannot be removed is told, and keeps nothing else from going.
    done(&world.spec, &["project", "retention", "--sessions", "1"]);
    let refer = "create table other (session_id text references session (id)); insert into other select id from session";
    execute(&state, world.postgres.as_ref(), refer).await;
    let left = world.spec.command(&["gc"]).output().unwrap();
    assert_eq!(left.status.code(), Some(1), "{left:?}");
    assert!(
        told(&left).contains("FAIL  sessions that were deleted: ") && told(&left).contains("events ses_"),
        "{left:?}"
    );
    let left = world.spec.command(&["gc", "--json"]).output().unwrap();
    let failed = documents(&told(&left));
    assert_eq!((failed.len(), &failed[0]["removed"]), (1, &json!(false)), "{failed:?}");
    assert!(failed[0]["error"].as_str().unwrap().contains("corrupt"), "{failed:?}");
    execute(&state, world.postgres.as_ref(), "drop table other").await;
    done(&world.spec, &["gc"]);
    done(&world.spec, &["db", "check"]);
    done(&world.spec, &["project", "retention", "--sessions", "default"]);
    // Back to the settings.
    done(&world.spec, &["project", "retention", "--volumes", "default", "--artifacts", "default"]);
    world.server = world.spec.start().await.unwrap();
    assert_eq!(
        world.api.get(&format!("/v1/runs/{id}")).await.unwrap().status,
        404,
        "its session's days are over"
    );
    let audited = done(&world.spec, &["audit", "verify"]);
    assert!(!audited.contains("FAIL"), "{audited}");
    let unknown = world.spec.command(&["project", "retention", "nobody"]).output().unwrap();
    assert!(!unknown.status.success() && told(&unknown).contains("no project \"nobody\""), "{unknown:?}");
}

async fn a_server_that_may_not_migrate_refuses_an_earlier_database_until_somebody_does(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut spec = ServerSpec::new(&parts, &state, "http://127.0.0.1:9").unwrap();
    let postgres = ground.database.make(&mut spec).await.unwrap();
    spec.set("DATABASE__MIGRATE", "false");
    std::fs::create_dir_all(&state).unwrap();
    match &postgres {
        Some(postgres) => postgres.load(EARLIER_OF_POSTGRESQL, "recorded").unwrap(),
        None => execute(&state, None, EARLIER).await,
    }
    for arguments in [&["serve", "--engine=local"][..], &["project", "create", "x"]] {
        let refused = spec.command(arguments).output().unwrap();
        let said = told(&refused);
        assert!(!refused.status.success(), "{arguments:?}: {said}");
        assert!(said.contains("database.migrate is false") && said.contains("caisson db migrate"), "{said}");
    }
    let migrated = done(&spec, &["db", "migrate"]);
    assert!(migrated.contains("migrations"), "{migrated}");
    done(&spec, &["key", "list"]);
    // The recorded database came without the one file that it names, and nothing else is wrong with it. Where servers share a
    // database, that file is on the machine of another one.
    let checked = told(&spec.command(&["db", "check"]).output().unwrap());
    let wrong: Vec<_> = checked.lines().filter(|line| line.starts_with("FAIL")).collect();
    let missing = usize::from(postgres.is_none());
    assert_eq!(wrong.len(), missing, "{checked}");
    assert!(wrong.iter().all(|line| line.starts_with("FAIL  files: diff.patch of run ")), "{checked}");
}
