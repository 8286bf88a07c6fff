//! A `PostgreSQL` server whose machine loses its power: nothing is refused, nothing is closed, and nothing comes back.

use std::time::{Duration, Instant};

use caisson_domain::id::ServerId;
use caisson_domain::limits::SERVER_SILENT_MS;
use caisson_store::{Clock, PostgresLimits, Store, StoreError, Topic};
use futures_util::future::join_all;
use testkit::partition::Way;

use crate::database::Database;
use crate::fixture::{new_run, server_id, spec};
use crate::together::only_postgres::earlier;

/// What the store waits beyond the server's own time limit, and a little.
const SOON: Duration = Duration::from_secs(15);
/// How long it waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(6);

/// A store whose way to the database can be cut, and one past it.
struct Cut {
    way: Way,
    store: Store,
    server: ServerId,
    beside: Store,
    database: Database,
}

impl Cut {
    async fn make() -> Option<Self> {
        let database = Database::postgres().await?;
        let way = Way::to(&database.socket()).await.unwrap();
        let limits = PostgresLimits {
            connections: 6,
            acquire_timeout_ms: u64::try_from(ACQUIRE.as_millis()).unwrap(),
            statement_timeout_ms: 500,
            quiet_ms: 1_000,
            ..PostgresLimits::default()
        };
        let store = Store::connect(&database.place_by(way.port(), limits), Clock::system()).await.unwrap();
        let beside = database.open(Clock::system(), caisson_store::Random::system()).await.unwrap();
        let server = server_id(1);
        store.register_server(&server).await.unwrap();
        Some(Self { way, store, server, beside, database })
    }

    /// Uses every connection that the store may have at once, so that all of them are made.
    async fn fill(&self) {
        let reads = (0..8).map(|_| self.store.live_servers());
        let writes = (0..8).map(|_| self.store.ping());
        let (reads, writes) = tokio::join!(join_all(reads), join_all(writes));
        assert!(reads.into_iter().all(|read| read.is_ok()) && writes.into_iter().all(|write| write.is_ok()));
    }

    async fn end(self) {
        let begun = Instant::now();
        self.store.close().await.unwrap();
        assert!(begun.elapsed() < SOON, "closing waits for nothing that never comes");
        self.beside.close().await.unwrap();
        drop(self.database);
    }
}

fn is_unavailable<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Unavailable(_)))
}

#[tokio::test]
async fn a_call_that_waits_when_the_database_vanishes_ends_and_the_next_ones_work() {
    let Some(cut) = Cut::make().await else { return };
    cut.fill().await;
    let held = cut.database.hold_writing().await;
    // One that waits for a lock has sent its request, and the machine has said that it has it.
    let begun = Instant::now();
    let mut claim = Box::pin(cut.store.claim(&cut.server));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut claim).await.is_err(), "it waits");
    cut.way.set_open(false);
    let claimed = tokio::time::timeout(SOON, claim).await.expect("no call is waited for without an end");
    assert!(is_unavailable(&claimed), "{claimed:?}");
    assert!(begun.elapsed() > Duration::from_secs(5), "not before its time: {:?}", begun.elapsed());
    assert!(is_unavailable(&cut.store.live_servers().await), "so is one that reads");
    held.release().await;
    // The machine is back, and knows nothing of the connections of before, on which nothing ever comes.
    cut.way.open_anew();
    let begun = Instant::now();
    cut.store.ping().await.unwrap();
    cut.store.live_servers().await.unwrap();
    assert!(begun.elapsed() < 3 * ACQUIRE, "{:?}", begun.elapsed());
    cut.fill().await;
    cut.end().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_keeps_no_connection_of_a_database_that_vanished() {
    let Some(cut) = Cut::make().await else { return };
    cut.fill().await;
    let held = cut.database.hold_writing().await;
    {
        // As many as there are connections that write.
        let mut calls = std::pin::pin!(join_all((0..2).map(|_| cut.store.ping())));
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut calls).await.is_err(), "they wait");
        cut.way.set_open(false);
    }
    held.release().await;
    cut.way.open_anew();
    let begun = Instant::now();
    while cut.store.ping().await.is_err() {
        assert!(begun.elapsed() < SOON, "the connections are lost");
    }
    cut.fill().await;
    cut.end().await;
}

#[tokio::test]
async fn wake_ups_are_heard_again_after_their_connection_vanished() {
    let Some(cut) = Cut::make().await else { return };
    let mut queue = cut.store.watch(Topic::Queue);
    // Listening begins some time after opening, and wakes everybody.
    queue.changed(SOON).await;
    cut.beside.create_run(new_run(spec())).await.unwrap();
    assert!(queue.hinted(SOON).await, "it hears");
    cut.way.set_open(false);
    cut.way.open_anew();
    let begun = Instant::now();
    assert!(queue.hinted(SOON).await, "whoever listens anew wakes everybody: {:?}", begun.elapsed());
    cut.beside.create_run(new_run(spec())).await.unwrap();
    assert!(queue.hinted(SOON).await, "it hears again");
    cut.end().await;
}

#[tokio::test]
async fn a_migration_whose_machine_vanishes_keeps_others_from_the_tables_for_a_bounded_time() {
    let Some(database) = earlier(2 * SERVER_SILENT_MS).await else { return };
    let way = Way::to(&database.socket()).await.unwrap();
    let held = database.hold_table("server").await;
    let place = database.place_by(way.port(), PostgresLimits::default());
    let mut migrating = Box::pin(Store::connect(&place, Clock::system()));
    assert!(
        tokio::time::timeout(Duration::from_secs(3), &mut migrating).await.is_err(),
        "it waits for the table"
    );
    way.set_open(false);
    // The table is changed now, in a transaction that nobody ends.
    held.release().await;
    let place = database.place(PostgresLimits::default());
    let begun = Instant::now();
    let next = tokio::time::timeout(Duration::from_mins(1), Store::connect(&place, Clock::system())).await;
    let store = next.expect("it is not waited for without an end").unwrap();
    assert!(begun.elapsed() > Duration::from_secs(3), "it was waited for: {:?}", begun.elapsed());
    store.ping().await.unwrap();
    store.close().await.unwrap();
    drop(migrating);
}

#[tokio::test]
async fn migrations_that_take_too_long_are_given_up_at_their_bound() {
    let Some(database) = earlier(2 * SERVER_SILENT_MS).await else { return };
    let held = database.hold_table("server").await;
    let place = database.place(PostgresLimits::default()).migrated_within(1_000);
    let begun = Instant::now();
    let late = Store::connect(&place, Clock::system()).await.map(drop).unwrap_err();
    assert!((1..9).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(is_unavailable(&Err::<(), _>(late)));
    held.release().await;
}
