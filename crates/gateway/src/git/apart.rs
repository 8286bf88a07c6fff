//! Work that keeps a processor busy, apart from the threads that serve everybody.

/// Why it came to no end.
#[derive(Debug, thiserror::Error)]
#[error("the server stops")]
pub(super) struct Stopped;

/// Does it where waiting is allowed, and answers what came of it.
///
/// # Errors
/// [`Stopped`] if the server ends meanwhile.
/// # Cancel safety
/// Dropped, the work goes on to its end, of which nobody hears. So it is to have a bound.
pub(super) async fn work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Stopped)
}
