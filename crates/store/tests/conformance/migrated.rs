//! What migration 25 moves from table to table, tried on databases of the version before it that have rows in each of them: a
//! recorded one is brought there by the migrations up to it.

use caisson_domain::id::SessionId;
use caisson_store::{Clock, CreateRun, Idempotency, Random, RepeatWindow};

use crate::database::{Checks, Database};
use crate::fixture::{START_MS, project};

/// The last migration before that one.
const BEFORE: i64 = 22;
const FORK: &str = "ses_ffffffffffffffffffffffffffffffff";
const KEY: &str = "kept";
const SAID: &str = "said more";

/// Two sessions with transcripts of two parts, a fork that has a copy of one, and a request that is remembered.
const FILL: [&str; 6] = [
    "insert into session (id, project_id, workflow, repository, branch, conversation, created_at_ms, updated_at_ms, forked_from) \
     select 'ses_ffffffffffffffffffffffffffffffff', project_id, workflow, repository, 'fork', conversation, 1, 1, id \
     from session where id = (select max(session_id) from run)",
    "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) \
     select session_id, project_id, id, 9, '70791f8c76fb7906bd59bfac085b1864462a4a42d0660139c3da01f2a72c8dcc', 1 from run",
    "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) \
     select 'ses_ffffffffffffffffffffffffffffffff', project_id, run_id, size_bytes, sha256, 1 from transcript \
     where session_id = (select max(session_id) from run)",
    "insert into transcript_part (session_id, number, project_id, content) \
     select session_id, 0, project_id, 'said ' from transcript",
    "insert into transcript_part (session_id, number, project_id, content) \
     select session_id, 1, project_id, 'more' from transcript",
    "insert into idempotency (project_id, key, request_sha256, run_id, expires_at_ms) \
     select 'default', 'kept', 'abab', max(id), 9999999999999 from run",
];

async fn everything_is_where_it_belongs(database: Database) {
    database.migrate_to(BEFORE).await;
    for sql in FILL {
        assert!(database.try_execute(sql.into(), Checks::On).await.unwrap() > 0, "{sql}");
    }
    let texts = async |sql: &'static str| -> Vec<String> {
        database.rows(sql.into()).await.iter().map(|row| row.get(0)).collect()
    };
    let sessions = texts("select session_id from transcript order by session_id").await;
    let last = texts("select max(id) from run").await;
    assert!(sessions.len() == 3 && sessions[2] == FORK, "{sessions:?}");

    let store = database.open(Clock::fixed_at(START_MS).0, Random::system()).await.unwrap();
    for session in &sessions {
        let session: SessionId = session.parse().unwrap();
        assert_eq!(store.read_transcript(&session).await.unwrap().as_deref(), Some(SAID), "{session}");
    }
    let parts = texts("select cast(count(*) as text) from transcript_part").await;
    assert_eq!(parts, ["4"], "two parts of two texts: the fork shares one");
    let again = Idempotency { key: KEY.to_owned(), request_sha256: "abab".to_owned() };
    let Some(CreateRun::Replayed(run)) =
        store.replayed(&project(), &again, RepeatWindow::default()).await.unwrap()
    else {
        panic!("the request is not remembered")
    };
    assert_eq!([run.id.to_string()], last[..]);
    for part in [store.check_integrity().await.unwrap(), store.check_references().await.unwrap()] {
        assert!(part.looked_at > 0 && part.faults.is_empty(), "{:?}", part.faults);
    }
    store.close().await.unwrap();
}

mod sqlite {
    use super::*;

    #[tokio::test]
    async fn what_a_migration_moves_is_where_it_belongs() {
        let database = Database::sqlite();
        database.restore(include_str!("../upgrade/v6.sql")).await;
        everything_is_where_it_belongs(database).await;
    }
}

mod postgres {
    use super::*;

    #[tokio::test]
    async fn what_a_migration_moves_is_where_it_belongs() {
        let Some(database) = Database::postgres().await else { return };
        database.restore(include_str!("../upgrade/postgres-v13.sql")).await;
        everything_is_where_it_belongs(database).await;
    }
}

/// A migration that is out is never changed: databases that have it would be refused. A new one is added to the file.
#[test]
fn migrations_that_are_out_are_what_they_were() {
    let of = |name: &str, migrator: &sqlx::migrate::Migrator| -> Vec<String> {
        let line = |migration: &sqlx::migrate::Migration| {
            format!("{name} {} {}", migration.version, hex::encode(&migration.checksum))
        };
        migrator.iter().map(line).collect()
    };
    let known = [
        of("sqlite", &sqlx::migrate!("migrations/sqlite")),
        of("postgres", &sqlx::migrate!("migrations/postgres")),
    ]
    .concat();
    let recorded: Vec<&str> = include_str!("../upgrade/checksums.txt").lines().collect();
    assert_eq!(known, recorded, "crates/store/tests/upgrade/checksums.txt");
}
