//! Sending the journal to the gateway: in order, one batch at a time, for ever.
//!
//! What is there is sent at once; what comes while a batch is on its way goes with the next one.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::protocol::{JournalAck, paths};
use http::{Method, StatusCode};

use super::{Batch, Journal};
use crate::backoff::Backoff;
use crate::diagnostics::Complaint;
use crate::door::{Caller, Door};

/// How long the gateway may take to store a batch, in milliseconds.
const SEND_MS: u64 = 60_000;

/// Sends the journal for ever.
///
/// # Cancel safety
/// Safe: a batch may be sent again, and the gateway knows by the offset.
pub(crate) async fn send(journal: Arc<Journal>, door: Arc<Door>) {
    let mut caller = Caller::new(&door);
    let mut backoff = Backoff::new();
    let mut complaint = Complaint::default();
    loop {
        let batch = journal.next_batch().await;
        match send_one(&journal, &mut caller, batch).await {
            Ok(()) => {
                backoff.reset();
                complaint.over();
            }
            Err(reason) => {
                complaint.say(reason);
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn send_one(journal: &Journal, caller: &mut Caller, batch: Batch) -> Result<(), String> {
    let path = format!("{}?offset={}", paths::JOURNAL, batch.offset);
    let reply = caller
        .call(Method::POST, &path, batch.lines, Duration::from_millis(SEND_MS))
        .await
        .map_err(|error| format!("cannot send the journal: {error}"))?;
    let answered = reply.status.is_success() || reply.status == StatusCode::CONFLICT;
    match serde_json::from_slice::<JournalAck>(&reply.body) {
        Ok(ack) if answered && journal.acknowledge(ack.acknowledged) => Ok(()),
        Ok(_) if answered => Err("the gateway stored nothing of the journal".to_owned()),
        Ok(_) | Err(_) => Err(format!("the gateway refused the journal: {}", reply.problem().message)),
    }
}
