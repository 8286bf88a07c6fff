use caisson_domain::id::ProjectId;
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::time::timeout;

use super::*;
use crate::database::sql;
use crate::{Clock, PostgresLimits, PostgresPlace, Store, StoreError, UsageFilter, plans};

/// Never ends by itself.
const ENDLESS: &str =
    "with recursive number (n) as (select 1 union all select n + 1 from number) select count(*) from number";
const SLEEP: &str = "select 1 from pg_sleep(600)";
/// Far longer than what is waited for, and far shorter than a read that nobody ended.
const PATIENCE: Duration = Duration::from_mins(1);

async fn file() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("caisson.db"), Clock::system()).await.unwrap();
    (store, directory)
}

/// Takes every connection for lists, and checks that the small reads go on and the lists wait.
async fn check_apart(store: &Store, listers: u32) {
    let mut held = Vec::new();
    for _ in 0..listers {
        held.push(timeout(PATIENCE, store.lists().acquire()).await.unwrap().unwrap());
    }
    let project = ProjectId::default_project();
    timeout(PATIENCE, store.project(&project)).await.expect("a small read waits for lists").unwrap();
    let filter = UsageFilter { project: Some(project.clone()), ..UsageFilter::default() };
    let sessions = timeout(Duration::from_millis(300), store.list_sessions(&project, None, 1)).await;
    let usage = timeout(Duration::from_millis(300), store.usage_total(&filter)).await;
    let users = timeout(Duration::from_millis(300), store.count_users(&project)).await;
    assert!(sessions.is_err() && usage.is_err() && users.is_err(), "there is another way for lists");
    drop(held);
    timeout(PATIENCE, store.list_sessions(&project, None, 1)).await.unwrap().unwrap();
}

/// What a read that never ends comes to, and how long it took.
async fn endless(store: &Store, text: &'static str) -> (bool, Duration) {
    let begun = Instant::now();
    let ended = timeout(PATIENCE, sql::query(text).fetch_all(store.lists())).await.expect("nobody ended it");
    let away = matches!(ended.map_err(StoreError::from), Err(StoreError::Unavailable(_)));
    (away, begun.elapsed())
}

async fn check_bound(store: &Store, text: &'static str) {
    let (away, took) = endless(store, text).await;
    assert!(away && took >= Duration::from_millis(LIST_MS) && took < PATIENCE / 2, "{took:?}");
}

/// Gives up a read on each connection for lists; then there is one for another.
async fn check_given_up(store: &Store, (text, listers): (&'static str, u32), soon: Duration) {
    let reads = (0..listers).map(|_| sql::query(text).fetch_all(store.lists()));
    let reads = timeout(Duration::from_millis(300), futures_util::future::join_all(reads)).await;
    assert!(reads.is_err(), "they are under way");
    let begun = Instant::now();
    let project = ProjectId::default_project();
    timeout(PATIENCE, store.list_sessions(&project, None, 1)).await.unwrap().unwrap();
    assert!(begun.elapsed() < soon, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn small_reads_of_sqlite_do_not_wait_for_lists() {
    let (store, _directory) = file().await;
    check_apart(&store, LISTERS).await;
}

#[tokio::test]
async fn a_list_of_sqlite_has_an_end() {
    let (store, _directory) = file().await;
    check_bound(&store, ENDLESS).await;
    store.list_sessions(&ProjectId::default_project(), None, 1).await.unwrap();
}

#[tokio::test]
async fn a_list_of_sqlite_that_nobody_waits_for_gives_its_place_back_at_once() {
    let (store, _directory) = file().await;
    // Well before its end.
    check_given_up(&store, (ENDLESS, LISTERS), Duration::from_millis(LIST_MS / 2)).await;
}

/// A store with as few connections as there may be has one for lists.
#[tokio::test]
async fn lists_of_postgres_have_a_way_of_their_own_and_an_end() {
    let Some((url, schema)) = plans::schema().await else { return };
    let place = format!("{url}&options[search_path]={schema}");
    let limits = PostgresLimits {
        connections: crate::POSTGRES_CONNECTIONS_MIN,
        acquire_timeout_ms: 2 * LIST_MS,
        ..PostgresLimits::default()
    };
    let store =
        Store::connect(&PostgresPlace::from_url(&place, limits).unwrap(), Clock::system()).await.unwrap();
    check_apart(&store, 1).await;
    check_bound(&store, SLEEP).await;
    check_given_up(&store, (SLEEP, 1), Duration::from_millis(2 * LIST_MS)).await;
    store.close().await.unwrap();
    let mut connection = plans::connect(&url).await;
    let text = AssertSqlSafe(format!("drop schema {schema} cascade"));
    sqlx::raw_sql(text).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
