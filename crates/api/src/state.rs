//! What the handlers share.

use std::sync::Arc;

use axum::body::Bytes;
use caisson_store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;

use crate::config::ApiConfig;
use crate::problem::ApiError;

/// The state of the router; cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    config: ApiConfig,
    store: Store,
    cancel: CancellationToken,
    streams: Arc<Semaphore>,
    document: Bytes,
}

impl App {
    pub(crate) fn new(config: ApiConfig, store: Store, cancel: CancellationToken, document: &OpenApi) -> Self {
        let document = serde_json::to_vec(document).expect("the document is plain data without map keys but text");
        let streams = Arc::new(Semaphore::new(config.limits.streams));
        Self(Arc::new(Inner { config, store, cancel, streams, document: Bytes::from(document) }))
    }

    pub(crate) fn config(&self) -> &ApiConfig {
        &self.0.config
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn cancel(&self) -> CancellationToken {
        self.0.cancel.clone()
    }

    /// The OpenAPI document, as JSON.
    pub(crate) fn document(&self) -> Bytes {
        self.0.document.clone()
    }

    /// A place among the open event streams, given back when it is dropped.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0.streams).try_acquire_owned().map_err(|_| ApiError::StreamsFull)
    }
}
