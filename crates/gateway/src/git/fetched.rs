//! How much a run is given in answer to fetches: an agent that fetches for ever does not take the server's network for itself.

use std::sync::Arc;

use caisson_domain::run::Run;
use futures_util::stream::{self, StreamExt};

use super::fault::Fault;
use super::{Operation, Service, tell};
use crate::body::{BodyFault, Chunks};
use crate::problem::Refusal;
use crate::shared::Door;

/// Whether the answer is one to a fetch: refs that may be fetched, or what was asked of them.
fn is_fetch(operation: Operation) -> bool {
    matches!(operation, Operation::Fetch | Operation::Advertise(Service::UploadPack))
}

/// Refuses a fetch of a run that has had its share.
pub(super) async fn room(door: &Door, run: &Run, operation: Operation) -> Result<(), Refusal> {
    let bytes = door.shared.bounds.fetched_bytes;
    if !is_fetch(operation) || door.fetched.add(&run.id, 0) < bytes {
        return Ok(());
    }
    Err(tell(door, run, Fault::TooMuchFetched { bytes }).await)
}

/// The chunks of an answer, counted for the run where it is one to a fetch; beyond the bound they break off.
pub(super) fn counted(door: &Arc<Door>, run: &Run, operation: Operation, chunks: Chunks) -> Chunks {
    if !is_fetch(operation) {
        return chunks;
    }
    let state = Some((chunks, Arc::clone(door), run.clone()));
    stream::unfold(state, |state| async move {
        let (mut chunks, door, run) = state?;
        let chunk = match chunks.next().await? {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error), None)),
        };
        let bytes = door.shared.bounds.fetched_bytes;
        let size = i64::try_from(chunk.len()).unwrap_or(i64::MAX);
        if door.fetched.add(&run.id, size).saturating_add(chunk.len() as u64) <= bytes {
            return Some((Ok(chunk), Some((chunks, door, run))));
        }
        // Git shows no words in the middle of an answer; whoever fetches again is told.
        drop(tell(&door, &run, Fault::TooMuchFetched { bytes }).await);
        Some((Err(BodyFault::TooLarge.into()), None))
    })
    .boxed()
}
