//! Databases of earlier versions, recorded with the runs in them, are taken over by this one.
//!
//! The files are `sqlite3 caisson.db .dump` of state directories, and `pg_dump --inserts` of schemas, in which earlier
//! versions did real runs, with their own migrations' checksums, so that a change of a migration that is out is seen here.
//! `make upgrade` does the same with living sandboxes and the program of an earlier commit.

use std::path::Path;

use caisson_domain::run::RunStatus;
use caisson_store::{Clock, Look, Random, RunFilter, Store};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::database::Database;
use crate::fixture::{ALL, START_MS, assert_gapless, project, server_id};

/// A recorded database: its file, its runs, those that succeeded with a commit, and its audit records.
struct Recorded {
    dump: &'static str,
    runs: usize,
    pushed: usize,
    audited: i64,
}

const OF_SQLITE: [Recorded; 3] = [
    Recorded { dump: include_str!("../upgrade/v1.sql"), runs: 1, pushed: 1, audited: 3 },
    // One on which a migration in the middle came later than those behind it, and with a run under way.
    Recorded { dump: include_str!("../upgrade/v4.sql"), runs: 3, pushed: 0, audited: 15 },
    Recorded { dump: include_str!("../upgrade/v6.sql"), runs: 2, pushed: 1, audited: 7 },
];

/// Sessions that a server has made directories for of which no row tells, and those whose rows tell of something else.
async fn unfound_files(path: &Path) -> [i64; 2] {
    const MISSING: &str = "select count(*) from (select session_id, server_id from sandbox union \
         select session_id, server_id from attempt) as had, (select 'artifacts' as kind union select 'volumes') as kinds \
         where not exists (select 1 from session_files where session_files.session_id = had.session_id \
         and session_files.server_id = had.server_id and session_files.kind = kinds.kind)";
    const STRANGE: &str = "select (select count(*) from session_files where removal_begun_at_ms <> 0) \
         + (select count(*) = 0 from session_files) \
         + (select count(*) from artifact where server_id is null)";
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let mut counts = [0; 2];
    for (count, text) in counts.iter_mut().zip([MISSING, STRANGE]) {
        *count = sqlx::query_scalar(text).fetch_one(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    counts
}

#[tokio::test]
async fn a_recorded_database_of_an_earlier_version_is_taken_over_with_everything_in_it() {
    for recorded in OF_SQLITE {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("caisson.db");
        let mut connection =
            SqliteConnectOptions::new().filename(&path).create_if_missing(true).connect().await.unwrap();
        sqlx::raw_sql(recorded.dump).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let looked = Store::look(&path, Clock::fixed_at(START_MS).0).await.unwrap();
        assert!(matches!(looked, Look::Behind { migrations } if migrations > 0), "{looked:?}");
        let store = Store::open(&path, Clock::fixed_at(START_MS).0).await.unwrap();
        assert_eq!(unfound_files(&path).await, [0, 0], "files of earlier versions' sessions");
        assert_taken_over(&store, &recorded).await;
        store.close().await.unwrap();
        let again = Store::look(&path, Clock::fixed_at(START_MS).0).await.unwrap();
        assert!(matches!(again, Look::Ready(_)), "{again:?}");
    }
}

mod only_postgres {
    use super::*;

    const OF_POSTGRES: [Recorded; 1] = [
        // One on which a migration in the middle comes later than the one behind it, and with a run under way.
        Recorded { dump: include_str!("../upgrade/postgres-v13.sql"), runs: 2, pushed: 1, audited: 7 },
    ];

    #[tokio::test]
    async fn a_recorded_database_of_an_earlier_version_is_taken_over_with_everything_in_it() {
        for recorded in OF_POSTGRES {
            let Some(database) = Database::postgres().await else { return };
            database.restore(recorded.dump).await;
            let looked = database.look().await.unwrap();
            assert!(matches!(looked, Look::Behind { migrations } if migrations > 0), "{looked:?}");
            let store = database.open(Clock::fixed_at(START_MS).0, Random::system()).await.unwrap();
            assert_taken_over(&store, &recorded).await;
            store.close().await.unwrap();
            let again = database.look().await.unwrap();
            assert!(matches!(again, Look::Ready(_)), "{again:?}");
        }
    }

    /// As a file that is not there.
    #[tokio::test]
    async fn a_database_that_no_server_has_used_is_missing() {
        let Some(database) = Database::postgres().await else { return };
        let looked = database.look().await.unwrap();
        assert!(matches!(looked, Look::Missing), "{looked:?}");
        database.open(Clock::fixed_at(START_MS).0, Random::system()).await.unwrap().close().await.unwrap();
        let used = database.look().await.unwrap();
        assert!(matches!(used, Look::Ready(_)), "{used:?}");
    }
}

async fn assert_taken_over(store: &Store, recorded: &Recorded) {
    let listed = store.list_runs(&project(), &RunFilter::default(), None, 10).await.unwrap();
    assert_eq!(listed.len(), recorded.runs);
    for run in &listed {
        assert_eq!(run.status.is_final(), run.finished_at_ms.is_some());
        assert_gapless(&store.events(&run.id, 0, ALL).await.unwrap());
    }
    let succeeded = listed.iter().filter(|run| run.status == RunStatus::Succeeded).count();
    assert_eq!(succeeded, recorded.pushed);
    assert_eq!(listed.iter().filter(|run| run.pushed_commit.is_some()).count(), recorded.pushed);
    let spent: i64 = listed.iter().map(|run| run.usage.cost_micro_usd).sum();
    let project = store.project_spending(&project()).await.unwrap().unwrap();
    assert_eq!(project.total().spent_micro_usd, spent, "what was spent before counts");
    for part in [
        store.check_integrity().await.unwrap(),
        store.check_references().await.unwrap(),
        store.check_events().await.unwrap(),
    ] {
        assert!(part.looked_at > 0 && part.faults.is_empty(), "{:?}", part.faults);
    }
    store.keep_audit(&server_id(1)).await.unwrap();
    let report = store.verify_audit(&[]).await.unwrap();
    assert!(report.chains.iter().all(|chain| chain.fault.is_none()), "{report:?}");
    let records: i64 = report.chains.iter().map(|chain| chain.records).sum();
    assert!(records >= recorded.audited && report.unchained == 0, "{report:?}");
}
