//! Reads that may take long: lists, reports and what is sorted for a client. They have connections of their own, a few, so
//! that the small reads which the gateway and the worker wait for never wait behind them; and each has an end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool};

/// How long one such read may take, in milliseconds; then it fails, as if the database were away.
pub(crate) const LIST_MS: u64 = 5_000;
/// Connections of `SQLite` for such reads.
pub(super) const LISTERS: u32 = 2;
/// Of `PostgreSQL`'s connections that read, one in so many is for such reads, and one at least.
pub(super) const LISTING_PART: u32 = 3;
/// Instructions of `SQLite`'s machine between two looks whether a read is still wanted: well under a millisecond's.
const INSTRUCTIONS: i32 = 10_000;

/// Keeps a read of `SQLite` going; when it is dropped the read ends.
pub(super) struct Asking {
    _alive: Arc<()>,
}

/// A connection for reads that end after [`LIST_MS`], or as soon as nobody asks any more: a statement under way would
/// otherwise keep its connection until it is done, whoever has gone away.
pub(super) async fn lease(pool: &SqlitePool) -> Result<(PoolConnection<Sqlite>, Asking), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let alive = Arc::new(());
    let (watched, until) = (Arc::downgrade(&alive), Instant::now() + Duration::from_millis(LIST_MS));
    let wanted = move || watched.strong_count() > 0 && Instant::now() < until;
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS, wanted);
    Ok((connection, Asking { _alive: alive }))
}

#[cfg(test)]
#[path = "lists_tests.rs"]
mod tests;
