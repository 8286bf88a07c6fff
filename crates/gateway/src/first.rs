//! What is written down once, before the first of many requests goes on.

use std::sync::Arc;

use caisson_store::StoreError;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::hold::hold;
use crate::shared::Shared;

/// The record of a first use. Whoever comes while it is being written waits for it, and as long as it could not be written,
/// the next one writes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FirstUse(Arc<OnceCell<()>>);

impl FirstUse {
    /// Has it written by `write`, unless it is. Waits for the store as long as [`crate::bounds::STORE_HOLD`], also together
    /// with others that try before.
    ///
    /// # Errors
    /// As `write`; then nothing may go on.
    /// # Cancel safety
    /// A dropped call may have written it; then it is written twice.
    pub(crate) async fn ensure<F, W>(&self, shared: &Shared, write: W) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send,
        W: FnMut() -> F,
    {
        let end = Instant::now() + shared.bounds.store_hold;
        let writing = || async {
            let patience = end.saturating_duration_since(Instant::now());
            hold(&shared.cancel, patience, write).await
        };
        self.0.get_or_try_init(writing).await.copied()
    }

    /// Whether it is the same record.
    #[cfg(test)]
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
