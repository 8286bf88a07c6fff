//! What the handlers share.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use caisson_domain::id::ApiKeyId;
use caisson_store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;

use crate::access::Access;
use crate::config::{ApiConfig, LARGE_BODIES, LONG_READS, READY_FOR};
use crate::problem::ApiError;
use crate::ready::{Answers, Ready};
use crate::shares::{Share, Shares};

/// The state of the router; cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    config: ApiConfig,
    store: Store,
    cancel: CancellationToken,
    streams: Arc<Semaphore>,
    large_bodies: Arc<Semaphore>,
    long_reads: Arc<Semaphore>,
    streams_of_keys: Shares,
    access: Access,
    readiness: Readiness,
    ready: Answers,
    metrics: tokio::sync::Mutex<Option<(Instant, String)>>,
    document: Bytes,
}

/// A place among the open event streams, given back when it is dropped.
pub(crate) struct StreamPlace {
    _share: Share,
    _permit: OwnedSemaphorePermit,
}

/// When the store last proved that it takes writes.
struct Readiness {
    turn: Semaphore,
    proved_at: Mutex<Option<Instant>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), proved_at: Mutex::new(None) }
    }
}

impl Readiness {
    /// Makes the proof unless there was one within [`READY_FOR`]. One at a time: whoever waited for it finds it done.
    async fn prove(&self, proof: impl Future<Output = Result<(), ApiError>>) -> Result<(), ApiError> {
        let _turn = self.turn.acquire().await.map_err(ApiError::internal)?;
        let proved_at = *self.proved_at.lock().unwrap_or_else(PoisonError::into_inner);
        if proved_at.is_some_and(|at| at.elapsed() < READY_FOR) {
            return Ok(());
        }
        proof.await?;
        *self.proved_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }
}

impl App {
    pub(crate) fn new(
        config: ApiConfig,
        store: Store,
        cancel: CancellationToken,
        document: &OpenApi,
    ) -> Self {
        let document =
            serde_json::to_vec(document).expect("the document is plain data without map keys but text");
        let streams = Arc::new(Semaphore::new(config.limits.streams));
        let streams_of_keys = Shares::of(config.limits.streams_per_key);
        let access = Access::new(&config.limits);
        let ready = Answers::good_for(config.limits.ready_for);
        Self(Arc::new(Inner {
            access,
            config,
            store,
            cancel,
            streams,
            large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
            long_reads: Arc::new(Semaphore::new(LONG_READS)),
            streams_of_keys,
            readiness: Readiness::default(),
            ready,
            metrics: tokio::sync::Mutex::default(),
            document: Bytes::from(document),
        }))
    }

    /// A place for a large body; waits until there is one.
    pub(crate) async fn large_body(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0.large_bodies).acquire_owned().await.map_err(ApiError::internal)
    }

    /// A place for a read of many events.
    ///
    /// # Errors
    /// [`ApiError::LongReadsFull`] when none becomes free in [`crate::config::ApiLimits::long_read_wait`].
    pub(crate) async fn long_read(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Arc::clone(&self.0.long_reads).acquire_owned();
        match timeout(self.0.config.limits.long_read_wait, place).await {
            Ok(place) => place.map_err(ApiError::internal),
            Err(_) => Err(ApiError::LongReadsFull),
        }
    }

    pub(crate) fn config(&self) -> &ApiConfig {
        &self.0.config
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// What is remembered of callers.
    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    pub(crate) fn cancel(&self) -> CancellationToken {
        self.0.cancel.clone()
    }

    /// The metrics as they were told last, and when; who holds it is about to tell them anew.
    pub(crate) fn metrics(&self) -> &tokio::sync::Mutex<Option<(Instant, String)>> {
        &self.0.metrics
    }

    /// The OpenAPI document, as JSON.
    pub(crate) fn document(&self) -> Bytes {
        self.0.document.clone()
    }

    /// Proves that the store takes writes, or did within [`READY_FOR`]: whoever asks needs no key, so asking often must
    /// cost nothing.
    pub(crate) async fn prove_writable(&self) -> Result<(), ApiError> {
        self.0.readiness.prove(async { Ok(self.0.store.ping().await?) }).await
    }

    /// Whether runs can be taken, or could be a moment ago: whoever asks needs no key, so asking often must cost nothing.
    pub(crate) async fn ready(&self) -> Result<Ready, ApiError> {
        self.0.ready.tell(Box::pin(Ready::look(self))).await
    }

    /// A place among the open event streams for one opened with `key`.
    pub(crate) fn stream_place(&self, key: &ApiKeyId) -> Result<StreamPlace, ApiError> {
        let share = self.0.streams_of_keys.take(key).ok_or(ApiError::StreamsOfKeyFull)?;
        let permit = Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| ApiError::StreamsFull)?;
        Ok(StreamPlace { _share: share, _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_good_for_its_time_and_a_failed_one_is_not_remembered() {
        let readiness = Readiness::default();
        let proofs = AtomicUsize::new(0);
        let count = async || {
            proofs.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(())
        };
        assert!(readiness.prove(async { Err(ApiError::QueueFull) }).await.is_err());
        let at_once = (readiness.prove(count()), readiness.prove(count()), readiness.prove(count()));
        let (one, two, three) = tokio::join!(at_once.0, at_once.1, at_once.2);
        assert!(one.is_ok() && two.is_ok() && three.is_ok());
        assert_eq!(proofs.load(Ordering::SeqCst), 1);
        tokio::time::advance(READY_FOR.mul_f32(0.75)).await;
        readiness.prove(count()).await.unwrap();
        assert_eq!(proofs.load(Ordering::SeqCst), 1);
        tokio::time::advance(READY_FOR.mul_f32(0.25)).await;
        readiness.prove(count()).await.unwrap();
        assert_eq!(proofs.load(Ordering::SeqCst), 2);
    }
}
