//! Holding on while the database is away.

use std::future::Future;
use std::time::Duration;

use caisson_store::StoreError;
use tokio::time::{Instant, sleep};

use crate::bounds::{BACKOFF_FIRST, BACKOFF_MOST};

/// Repeats `operation` while the store is unavailable or full, for at most `patience`; then its last error stands. Other
/// errors stand at once.
///
/// # Cancel safety
/// As safe as `operation`.
pub(crate) async fn hold<T, F, O>(patience: Duration, mut operation: O) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send,
    O: FnMut() -> F,
{
    let end = Instant::now() + patience;
    let mut wait = BACKOFF_FIRST;
    loop {
        match operation().await {
            Err(StoreError::Unavailable(_) | StoreError::Full(_)) if Instant::now() + wait <= end => {
                sleep(wait).await;
                wait = (wait * 2).min(BACKOFF_MOST);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn corrupt() -> StoreError {
        StoreError::Corrupt { what: "x".to_owned(), source: "y".into() }
    }

    #[tokio::test]
    async fn an_error_that_waiting_cannot_help_stands_at_once() {
        let tries = AtomicU32::new(0);
        let result: Result<(), _> = hold(Duration::from_secs(3600), || async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(corrupt())
        })
        .await;
        assert!(matches!(result, Err(StoreError::Corrupt { .. })));
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    }
}
