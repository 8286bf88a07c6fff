//! The circuit breaker before `PostgreSQL`, with real connections. What it does when is tested where it is.

use std::time::{Duration, Instant};

use caisson_store::{
    BREAKER_FAILURES, BREAKER_WAIT_MS_MAX, BreakerState, Clock, PostgresLimits, Store, StoreError,
};
use futures_util::future::join_all;
use testkit::partition::Way;

use crate::database::Database;

/// Calls at the same time.
const AT_ONCE: usize = 20;

fn limits(acquire_timeout_ms: u64, statement_timeout_ms: u64) -> PostgresLimits {
    PostgresLimits { connections: 6, acquire_timeout_ms, statement_timeout_ms, ..PostgresLimits::default() }
}

async fn is_refused(store: &Store) -> bool {
    matches!(store.ping().await, Err(StoreError::Unavailable(_)))
}

#[tokio::test]
async fn a_database_that_gives_no_connection_is_looked_for_by_one_call_at_a_time_until_it_is_back() {
    let Some(database) = Database::postgres().await else { return };
    let way = Way::to(&database.socket()).await.unwrap();
    let place = database.place_by(way.port(), limits(1_500, 500));
    let store = Store::connect(&place, Clock::system()).await.unwrap();
    store.ping().await.unwrap();
    assert_eq!(store.breaker(), BreakerState::default());
    way.set_open(false);
    let mut failed = 0;
    while !store.breaker().is_open {
        assert!(failed < BREAKER_FAILURES + 2, "it opens");
        assert!(is_refused(&store).await);
        failed += 1;
    }
    assert!(failed >= BREAKER_FAILURES, "a single failure opens nothing: {failed}");
    let refused = join_all((0..AT_ONCE).map(|_| is_refused(&store))).await;
    assert!(refused.into_iter().all(|refused| refused));
    let state = store.breaker();
    assert!(state.is_open && state.opened == 1, "{state:?}");
    // One of them may have looked.
    assert!(state.refused >= u64::try_from(AT_ONCE).unwrap() - 1, "{state:?}");
    way.open_anew();
    let begun = Instant::now();
    while is_refused(&store).await {
        assert!(begun.elapsed() < Duration::from_millis(2 * BREAKER_WAIT_MS_MAX), "it stays open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!store.breaker().is_open);
    store.ping().await.unwrap();
    assert_eq!(store.breaker().opened, 1);
    store.close().await.unwrap();
}

#[tokio::test]
async fn connections_that_are_all_in_use_refuse_nobody_who_comes_next() {
    let Some(database) = Database::postgres().await else { return };
    let store = Store::connect(&database.place(limits(1_500, 30_000)), Clock::system()).await.unwrap();
    let held = database.hold_writing().await;
    // Two connections write, and both wait for the lock.
    let (waited, ()) = tokio::join!(join_all((0..2).map(|_| store.ping())), async {
        for _ in 0..2 {
            let refused = join_all((0..BREAKER_FAILURES).map(|_| is_refused(&store))).await;
            assert!(refused.into_iter().all(|refused| refused), "there is none to be had");
        }
        assert_eq!(store.breaker(), BreakerState::default());
        held.release().await;
    });
    assert!(waited.iter().all(Result::is_ok), "{waited:?}");
    store.ping().await.unwrap();
    store.close().await.unwrap();
}
