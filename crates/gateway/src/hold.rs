//! Holding on while the database is away.

use std::future::Future;
use std::time::Duration;

use caisson_store::StoreError;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::bounds::{BACKOFF_FIRST, BACKOFF_MOST, GRACE};

/// Repeats `operation` while the store is unavailable or full, for at most `patience` and at most [`GRACE`]
/// after `cancel`; then its last error stands. Other errors stand at once.
///
/// # Cancel safety
/// As safe as `operation`.
pub(crate) async fn hold<T, F, O>(
    cancel: &CancellationToken,
    patience: Duration,
    mut operation: O,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
    O: FnMut() -> F,
{
    let mut end = Instant::now() + patience;
    let mut wait = BACKOFF_FIRST;
    let mut stopping = false;
    loop {
        match operation().await {
            Err(StoreError::Unavailable(_) | StoreError::Full(_)) if Instant::now() + wait <= end => {}
            result => return result,
        }
        tokio::select! {
            () = sleep(wait) => wait = (wait * 2).min(BACKOFF_MOST),
            () = cancel.cancelled(), if !stopping => {
                stopping = true;
                end = end.min(Instant::now() + GRACE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_store::{Clock, Store};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A store that answers that it is away, at once.
    async fn away() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("db"), Clock::system()).await.unwrap();
        store.close().await.unwrap();
        (root, store)
    }

    #[tokio::test]
    async fn a_call_is_held_until_the_store_is_back() {
        let (_root, store) = away().await;
        let tries = AtomicU32::new(0);
        let token = CancellationToken::new();
        let result = hold(&token, Duration::from_secs(10), || async {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => store.ping().await,
                _ => Ok(()),
            }
        });
        assert!(result.await.is_ok());
        assert_eq!(tries.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_call_is_held_for_a_bounded_time() {
        let (_root, store) = away().await;
        tokio::time::pause();
        let began = Instant::now();
        let token = CancellationToken::new();
        let result = hold(&token, Duration::from_secs(10), || store.ping()).await;
        assert!(matches!(result, Err(StoreError::Unavailable(_))));
        let held = began.elapsed();
        assert!(held <= Duration::from_secs(10) && held > Duration::from_secs(8), "{held:?}");
        token.cancel();
        let began = Instant::now();
        assert!(hold(&token, Duration::from_hours(1), || store.ping()).await.is_err());
        assert!(began.elapsed() <= GRACE);
    }

    #[tokio::test]
    async fn an_error_that_waiting_cannot_help_stands_at_once() {
        let tries = AtomicU32::new(0);
        let result: Result<(), _> = hold(&CancellationToken::new(), Duration::from_hours(1), || async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(StoreError::Corrupt { what: "x".to_owned(), source: "y".into() })
        })
        .await;
        assert!(matches!(result, Err(StoreError::Corrupt { .. })));
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    }
}
