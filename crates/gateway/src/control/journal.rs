//! `POST /journal` and `GET /journal`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use caisson_domain::limits::JOURNAL_BATCH_BYTES;
use caisson_domain::protocol::JournalAck;
use caisson_store::JournalAppend;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{heavy, number, read_body, record, redaction};
use crate::body::Body;
use crate::bounds::FOREIGN_WARNINGS;
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
    drop(permit);
    let end = offset
        .checked_add(batch.bytes)
        .ok_or_else(|| Refusal::bad_request("the journal's offset is too large"))?;
    let store = &door.shared.store;
    let redacted = batch.redacted;
    let run = if batch.is_understood() && !redacted {
        None
    } else {
        store.door_run(&door.sandbox).await.map_err(|error| Refusal::store(&error))?
    };
    if batch.has_outcome() {
        git::before_outcome(door).await.map_err(|error| Refusal::store(&error))?;
        egress::before_outcome(door).await;
        mcp::before_outcome(door).await;
        credentials::before_outcome(door).await.map_err(|error| Refusal::store(&error))?;
        door.tell_rest().await;
    }
    let entries = batch.into_entries(run.as_ref().map(|run| (&run.id, run.attempt)));
    let stored = store.append_journal(&door.sandbox, offset, end, entries).await;
    match stored.map_err(|error| Refusal::store(&error))? {
        JournalAppend::Stored { acknowledged, skipped } => {
            if redacted {
                redaction::alarm(door, run.as_ref().map(|run| &run.id), "the record").await;
            }
            if skipped > 0 {
                left_out(door, skipped);
            }
            Ok(json_response(StatusCode::OK, &JournalAck { acknowledged }))
        }
        JournalAppend::Behind { acknowledged } | JournalAppend::Withdrawn { acknowledged } => {
            Ok(json_response(StatusCode::CONFLICT, &JournalAck { acknowledged }))
        }
    }
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
