//! Faults that can only be made from inside: on the store's own writing connection.

use caisson_domain::id::ProjectId;
use caisson_domain::workflow::{CaissonBlock, PermissionMode, Workflow};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::sqlite::{BEGIN_WRITE, MIGRATOR};
use super::*;
use crate::{Actor, Clock, Look, NewAudit};

async fn store() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let (clock, _) = Clock::fixed_at(1_700_000_000_000);
    let store = Store::open(&directory.path().join("caisson.db"), clock).await.unwrap();
    (store, directory)
}

/// The store's own writing connection.
fn writer(store: &Store) -> &sqlx::SqlitePool {
    match &store.shared.database {
        Database::Sqlite(database) => &database.writer,
        Database::Postgres(_) => panic!("a database of its own kind"),
    }
}

fn disk(store: &Store) -> &Arc<crate::disk::Disk> {
    match &store.shared.database {
        Database::Sqlite(database) => &database.disk,
        Database::Postgres(_) => panic!("a database of its own kind"),
    }
}

async fn pragma(store: &Store, text: String) {
    sqlx::query(AssertSqlSafe(text)).fetch_all(writer(store)).await.unwrap();
}

fn large_workflow() -> Workflow {
    Workflow {
        name: "large".to_owned(),
        description: String::new(),
        prompt: "x".repeat(1_000_000),
        tools: None,
        disallowed_tools: Vec::new(),
        allowed_tools: Vec::new(),
        model: None,
        permission_mode: PermissionMode::Default,
        max_turns: None,
        mcp_servers: serde_json::Map::new(),
        caisson: CaissonBlock::default(),
    }
}

#[tokio::test]
async fn a_full_disk_is_told_apart_and_passes_when_there_is_room() {
    let (store, _directory) = store().await;
    let pages: i64 = sqlx::query_scalar("pragma page_count").fetch_one(writer(&store)).await.unwrap();
    pragma(&store, format!("pragma max_page_count = {}", pages + 10)).await;
    let project = ProjectId::default_project();
    for _ in 0..3 {
        let put = store.put_workflow(&project, &large_workflow()).await;
        assert!(matches!(put, Err(StoreError::Full(_))), "{put:?}");
        store.ping().await.unwrap();
        // A connection on which the database rolled back by itself is replaced, and its limit with it.
        pragma(&store, format!("pragma max_page_count = {}", pages + 10)).await;
    }
    pragma(&store, format!("pragma max_page_count = {}", pages + 10_000)).await;
    store.put_workflow(&project, &large_workflow()).await.unwrap();
    assert_eq!(store.list_workflows(&project).await.unwrap().len(), 1);
}

#[tokio::test]
async fn only_a_transaction_that_says_so_does_not_wait_for_the_disk() {
    let (store, _directory) = store().await;
    let disk = Arc::clone(disk(&store));
    for number in 1..=2 {
        store.begin().await.unwrap().commit().await.unwrap();
        assert_eq!(disk.waits(), number);
        store.begin_unsynced(Hold::Everything).await.unwrap().commit().await.unwrap();
        assert_eq!(disk.waits(), number);
    }
    store.begin().await.unwrap().rollback().await.unwrap();
    assert_eq!(disk.waits(), 2);
}

#[tokio::test]
async fn whoever_answers_with_what_is_there_already_waits_for_it_too() {
    let (store, _directory) = store().await;
    let disk = Arc::clone(disk(&store));
    for waits in [1, 2] {
        // A commit that is made, and whoever made it went away before the disk was waited for.
        let tx = store.begin().await.unwrap();
        disk.announce();
        tx.db.commit().await.unwrap();
        store.begin().await.unwrap().rollback().await.unwrap();
        assert_eq!(disk.waits(), waits);
    }
}

#[tokio::test]
async fn transactions_at_once_wait_for_the_disk_together() {
    let (store, _directory) = store().await;
    let disk = disk(&store);
    // Somebody waits for the disk already, until all of them are made.
    let turn = disk.take_turn().await;
    let made = async {
        while disk.ended() < 20 {
            tokio::task::yield_now().await;
        }
        drop(turn);
    };
    let pings = futures_util::future::join_all((0..20).map(|_| store.ping()));
    let (pings, ()) = tokio::join!(pings, made);
    assert!(pings.iter().all(Result::is_ok), "{pings:?}");
    assert_eq!(disk.waits(), 1);
}

#[tokio::test]
async fn a_lock_held_elsewhere_is_unavailable_until_it_is_gone() {
    let (store, directory) = store().await;
    pragma(&store, "pragma busy_timeout = 1".to_owned()).await;
    let other = SqliteConnectOptions::new().filename(directory.path().join("caisson.db"));
    let mut other = sqlx::ConnectOptions::connect(&other).await.unwrap();
    let lock = sqlx::Connection::begin_with(&mut other, BEGIN_WRITE).await.unwrap();
    let pinged = store.ping().await;
    assert!(matches!(pinged, Err(StoreError::Unavailable(_))), "{pinged:?}");
    assert!(store.live_servers().await.unwrap().is_empty(), "readers do not wait for writers");
    lock.rollback().await.unwrap();
    store.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_open_a_new_database_at_once_all_get_it() {
    for _ in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("caisson.db");
        let openers: Vec<_> = (0..12)
            .map(|_| {
                let path = path.clone();
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a test has no tracker, and awaits the task itself"
                )]
                tokio::spawn(async move { Store::open(&path, Clock::system()).await })
            })
            .collect();
        for opener in openers {
            opener.await.unwrap().unwrap().ping().await.unwrap();
        }
    }
}

/// Names and bytes of everything in a directory.
fn files(directory: &Path) -> std::collections::BTreeMap<std::ffi::OsString, Vec<u8>> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect()
}

#[tokio::test]
async fn a_look_changes_nothing_and_tells_an_earlier_version() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("caisson.db");
    assert!(matches!(Store::look(&path, Clock::system()).await.unwrap(), Look::Missing));
    assert!(files(directory.path()).is_empty());
    let store = Store::open(&path, Clock::system()).await.unwrap();
    let Look::Ready(beside) = Store::look(&path, Clock::system()).await.unwrap() else { panic!("not ready") };
    store.put_workflow(&ProjectId::default_project(), &large_workflow()).await.unwrap();
    assert_eq!(beside.list_workflows(&ProjectId::default_project()).await.unwrap().len(), 1);
    assert!(beside.ping().await.is_err(), "it takes no writes");
    beside.close().await.unwrap();
    store.close().await.unwrap();

    let before = files(directory.path());
    let Look::Ready(alone) = Store::look(&path, Clock::system()).await.unwrap() else { panic!("not ready") };
    assert_eq!(alone.list_workflows(&ProjectId::default_project()).await.unwrap().len(), 1);
    alone.close().await.unwrap();
    assert!(files(directory.path()) == before, "nothing is made and nothing changed");

    let store = Store::open(&path, Clock::system()).await.unwrap();
    pragma(&store, "delete from _sqlx_migrations".to_owned()).await;
    let look = Store::look(&path, Clock::system()).await.unwrap();
    assert!(matches!(look, Look::Behind { migrations: 1.. }), "{look:?}");
    pragma(&store, "insert into _sqlx_migrations values (99999, 'later', 0, true, x'00', 0)".to_owned())
        .await;
    let look = Store::look(&path, Clock::system()).await;
    assert!(matches!(look, Err(StoreError::Migration(_))), "{look:?}");
    store.close().await.unwrap();
    std::fs::write(&path, "no database, but long enough to be taken for one".repeat(10)).unwrap();
    let look = Store::look(&path, Clock::system()).await;
    assert!(matches!(look, Err(StoreError::Corrupt { .. })), "{look:?}");
}

#[tokio::test]
async fn the_log_is_waited_for_by_us_and_keys_are_checked() {
    let (store, _directory) = store().await;
    let value = async |text: &'static str| -> String {
        let row: (String,) = sqlx::query_as(text).fetch_one(writer(&store)).await.unwrap();
        row.0
    };
    // SQLite: 1 is NORMAL.
    assert_eq!(value("select cast(synchronous as text) from pragma_synchronous").await, "1");
    assert_eq!(value("select journal_mode from pragma_journal_mode").await, "wal");
    assert_eq!(value("select cast(foreign_keys as text) from pragma_foreign_keys").await, "1");
}

#[tokio::test]
async fn readers_cannot_write() {
    let (store, _directory) = store().await;
    let written = sql::query("delete from project").execute(store.reader()).await;
    assert!(written.is_err());
}

#[tokio::test]
async fn a_statement_that_does_not_fit_the_schema_is_corrupt() {
    let (store, _directory) = store().await;
    sqlx::query("drop table artifact").execute(writer(&store)).await.unwrap();
    let error =
        StoreError::from(sql::query("select id from artifact").fetch_all(store.reader()).await.unwrap_err());
    assert!(matches!(&error, StoreError::Corrupt { what, .. } if what == "the schema"), "{error:?}");
    let error = StoreError::from(sqlx::Error::RowNotFound);
    assert!(matches!(&error, StoreError::Corrupt { what, .. } if what == "a row"), "{error:?}");
}

#[tokio::test]
async fn only_a_fault_that_may_pass_is_not_the_migrations_own() {
    let closed = migration_error(MigrateError::ExecuteMigration(sqlx::Error::PoolClosed, 1));
    assert!(matches!(closed, StoreError::Unavailable(_)), "{closed:?}");
    let broken = migration_error(MigrateError::Execute(sqlx::Error::RowNotFound));
    assert!(matches!(broken, StoreError::Migration(_)), "{broken:?}");
    let dirty = migration_error(MigrateError::Dirty(1));
    assert!(matches!(dirty, StoreError::Migration(_)), "{dirty:?}");
}

/// A database as the first version left it.
async fn first_version(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let first: Vec<_> = MIGRATOR.iter().filter(|migration| migration.version == 1).cloned().collect();
    assert_eq!(first.len(), 1);
    let migrator = sqlx::migrate::Migrator { migrations: first.into(), ..sqlx::migrate::Migrator::DEFAULT };
    migrator.run_direct(None, &mut connection, false).await.unwrap();
    connection
}

#[tokio::test]
async fn records_of_a_version_without_chains_are_chained_in_their_order_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("caisson.db");
    let mut old = first_version(&path).await;
    let key = caisson_domain::id::ApiKeyId::new(1, [1; 10]);
    let statement = format!(
        "insert into api_key (id, project_id, name, scopes, secret_hash, created_at_ms) \
         values ('{key}', 'default', 'ci', '[\"admin\"]', 'h', 1)"
    );
    sqlx::query(AssertSqlSafe(statement)).execute(&mut old).await.unwrap();
    // More than one turn of copying, and a number that is missing, as a rolled back writer leaves it.
    for number in (1..=1_100).filter(|number| *number != 7) {
        let actor = if number % 2 == 0 { "operator" } else { key.as_str() };
        let statement = format!(
            "insert into audit (number, project_id, at_ms, actor, action, subject) \
             values ({number}, 'default', {number}, '{actor}', 'run.create', 'run_{number}')"
        );
        sqlx::query(AssertSqlSafe(statement)).execute(&mut old).await.unwrap();
    }
    sqlx::Connection::close(old).await.unwrap();

    let server = caisson_domain::id::ServerId::new(1, [2; 10]);
    let (clock, _) = Clock::fixed_at(1_700_000_000_000);
    let store = Store::open(&path, clock.clone()).await.unwrap();
    assert_eq!(store.verify_audit(&[]).await.unwrap().unchained, 1_099);
    store.keep_audit(&server).await.unwrap();
    store
        .append_audit(&NewAudit::new(&ProjectId::default_project(), Actor::Operator, "test.note", "new"))
        .await
        .unwrap();
    store.close().await.unwrap();
    let store = Store::open(&path, clock).await.unwrap();
    store.keep_audit(&server).await.unwrap();
    let report = store.verify_audit(&[]).await.unwrap();
    assert_eq!((report.chains.len(), report.unchained), (1, 0));
    assert_eq!((report.chains[0].records, &report.chains[0].fault), (1_100, &None), "each once");
    assert_eq!(report.chains[0].chain, server.as_str());
    let first = &store.audit_after(0).await.unwrap()[0];
    assert_eq!((first.before, first.at_ms, first.subject.as_str()), (Some(1), 1, "run_1"));
    assert_eq!((first.actor.as_str(), first.actor_name.as_deref()), (key.as_str(), Some("ci")));
    let head = store.audit_head(&server).await.unwrap().unwrap();
    let last = store.audit_after(head.seq - 1).await.unwrap().pop().unwrap();
    assert_eq!(
        (last.subject.as_str(), last.before),
        ("new", None),
        "what is new comes behind what was there"
    );
    for statement in ["update audit_before set actor = 'x'", "delete from audit_before where number = 1"] {
        let changed = sqlx::query(statement).execute(writer(&store)).await;
        assert!(changed.is_err(), "{statement}");
    }
    // The old key lives on and never expires.
    let kept = store.list_api_keys(&ProjectId::default_project()).await.unwrap();
    assert_eq!((kept[0].id.as_str(), kept[0].expires_at_ms), (key.as_str(), None));
}
