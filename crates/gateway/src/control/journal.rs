//! `POST /journal` and `GET /journal`.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caisson_domain::id::RunId;
use caisson_domain::limits::JOURNAL_BATCH_BYTES;
use caisson_domain::protocol::JournalAck;
use caisson_store::JournalAppend;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::record::{self, Batch};
use super::{heavy, number, read_body, redaction};
use crate::body::Body;
use crate::bounds::{FOREIGN_WARNINGS, OUTCOME_TRIES};
use crate::problem::{Refusal, json_response};
use crate::shared::Door;
use crate::{credentials, egress, git, mcp};

/// Stores a batch of whole lines. A line that is not understood becomes a note: an error would have the shim
/// send the same bytes for ever.
pub(super) async fn append(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let offset: u64 = number(request.uri(), "offset")?
        .ok_or_else(|| Refusal::bad_request("the journal's offset is missing: POST /journal?offset=N"))?;
    let (bytes, permit) = read_body(door, request.into_body(), JOURNAL_BATCH_BYTES).await?;
    if bytes.last().is_some_and(|last| *last != b'\n') {
        let message = "the batch does not end with a line end; send whole lines";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "journal_incomplete", message));
    }
    let redactor = door.secrets.redactor();
    let batch = heavy(bytes.len(), move || record::read(&bytes, &redactor)).await?;
    let end = offset
        .checked_add(batch.bytes)
        .ok_or_else(|| Refusal::bad_request("the journal's offset is too large"))?;
    // One at a time, so that none overtakes an outcome that was found to be next.
    let turn = timeout(door.shared.bounds.store_hold, Arc::clone(&door.journal).acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let message = "another batch of this sandbox's journal is on its way; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    drop(permit);
    // To its end whoever hangs up: what was told before an outcome is told again by no other.
    let storing = door.shared.tracker.spawn(store(Arc::clone(door), turn, (offset, end), batch));
    let acknowledged = storing.await.unwrap_or_else(|error| {
        tracing::error!(error = %error, "a batch of a journal was given up");
        Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault inside the server"))
    });
    let (status, acknowledged) = acknowledged?;
    Ok(json_response(status, &JournalAck { acknowledged }))
}

/// Stores a batch that covers the bytes from `offset` to `end`; answers how far the journal is stored.
async fn store(
    door: Arc<Door>,
    turn: OwnedSemaphorePermit,
    (offset, end): (u64, u64),
    batch: Batch,
) -> Result<(StatusCode, u64), Refusal> {
    let store = &door.shared.store;
    let redacted = batch.redacted;
    let run = if batch.is_understood() && !redacted {
        None
    } else {
        store.door_run(&door.sandbox).await.map_err(|error| Refusal::store(&error))?
    };
    if batch.has_outcome() {
        let next = store.awaits_outcome(&door.sandbox, offset).await;
        let next = next.map_err(|error| Refusal::store(&error))?;
        if let Some(run) = next.filter(|run| batch.has_outcome_of(run)) {
            before_outcome(&door, &run.0).await?;
        }
    }
    let entries = batch.into_entries(run.as_ref().map(|run| (&run.id, run.attempt)));
    let stored = store.append_journal(&door.sandbox, offset, end, entries).await;
    drop(turn);
    match stored.map_err(|error| Refusal::store(&error))? {
        JournalAppend::Stored { acknowledged, skipped } => {
            if redacted {
                redaction::alarm(&door, run.as_ref().map(|run| &run.id), "the record").await;
            }
            if skipped > 0 {
                left_out(&door, skipped);
            }
            Ok((StatusCode::OK, acknowledged))
        }
        JournalAppend::Behind { acknowledged } | JournalAppend::Withdrawn { acknowledged } => {
            Ok((StatusCode::CONFLICT, acknowledged))
        }
    }
}

/// Before the outcome of the run in the sandbox is stored: what is to be known and told before it. A sandbox can write by this, so
/// it is done for an outcome that counts alone, and [`OUTCOME_TRIES`] times at most.
async fn before_outcome(door: &Door, run: &RunId) -> Result<(), Refusal> {
    if door.outcomes.add(run, 1) >= OUTCOME_TRIES {
        return Ok(());
    }
    let settled = tokio::select! {
        settled = git::before_outcome(door) => settled,
        () = door.shared.patience(pending(), Duration::ZERO) => {
            let message = "the server stops; send the outcome to the next one";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
        }
    };
    settled.map_err(|error| Refusal::store(&error))?;
    egress::before_outcome(door).await;
    mcp::before_outcome(door).await;
    credentials::before_outcome(door).await.map_err(|error| Refusal::store(&error))?;
    door.tell_rest().await;
    Ok(())
}

/// A sandbox may send entries of other runs for ever, and the log is everybody's.
fn left_out(door: &Door, skipped: u64) {
    if door.foreign.fetch_add(1, Ordering::Relaxed) < FOREIGN_WARNINGS {
        tracing::warn!(sandbox.id = %door.sandbox, skipped, "left out journal entries of other runs");
    } else {
        tracing::debug!(sandbox.id = %door.sandbox, skipped, "left out journal entries of other runs once more");
    }
}

/// How far the journal is stored.
pub(super) async fn acknowledged(door: &Door) -> Result<Response<Body>, Refusal> {
    let offset = door.shared.store.journal_offset(&door.sandbox).await;
    let acknowledged = offset.map_err(|error| Refusal::store(&error))?;
    Ok(json_response(StatusCode::OK, &JournalAck { acknowledged }))
}
