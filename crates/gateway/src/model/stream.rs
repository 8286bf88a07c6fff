//! Carrying one call: forward, pass the reply on as it comes, meter it, settle it.

use std::time::Duration;

use bytes::Bytes;
use caisson_domain::budget::OverBudget;
use caisson_domain::redact;
use caisson_store::DoorRun;
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::account::{Account, CutOff};
use super::meter::Meter;
use super::reach::{note_forbidden, over_budget, reach};
use super::retry::Tries;
use super::{Call, request};
use crate::body::{self, Body, BodyFault, ChunkSender};
use crate::bounds::{CHUNK_BYTES, CHUNKS};
use crate::credentials::ModelRoute;
use crate::problem::Refusal;
use crate::shared::Door;

/// How a reply's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Cut,
    /// Cut here, because there was no room for more.
    OverBudget(OverBudget),
}

/// Whoever waits for the head of the reply.
pub(super) type Reply = oneshot::Sender<Result<Response<Body>, Refusal>>;

/// Carries the call to its end and settles it. The head of the reply goes to `reply`, if somebody still waits
/// for it.
pub(super) async fn carry(call: Call, mut reply: Reply) {
    let Call { door, run, mut route, request, ask, permits: (_slot, share) } = call;
    let tries = Tries::new(&door.shared, request, route.is_renewable());
    let reached = reach((&door, &run), &mut route, ask, tries, &mut reply).await;
    drop(share);
    match reached {
        Ok((account, upstream)) => deliver((&door, &run, &route), account, upstream, reply).await,
        Err(refusal) => hand_over(reply, Err(refusal)),
    }
}

/// Passes a reply on and settles it.
async fn deliver(
    (door, run, route): (&Door, &DoorRun, &ModelRoute),
    mut account: Account,
    upstream: reqwest::Response,
    reply: Reply,
) {
    let shared = &door.shared;
    let status = upstream.status();
    let mut meter = if status.is_success() { Meter::of(upstream.headers()) } else { Meter::blind() };
    if !status.is_success() {
        account.settle_free(status.as_u16()).await;
    }
    if status == StatusCode::FORBIDDEN {
        note_forbidden((door, run), route).await;
    }
    let refused = status.as_u16() >= 400;
    if refused && request::is_encoded(upstream.headers()) {
        return hand_over(reply, Err(unseen(status)));
    }
    let redactor = door.secrets.redactor();
    let (sender, body) = body::channel(CHUNKS);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = request::reply_headers(upstream.headers(), &redactor);
    // A reply is the model's own words; a refusal may be those of who looked at the credential.
    let clean = refused.then(|| redact::Stream::new(redactor));
    if refused {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    hand_over(reply, Ok(response));
    let left = sender.clone();
    let end = tokio::select! {
        end = pass(door, upstream, (sender, clean), (&mut meter, &mut account)) => end,
        () = shared.patience(left.closed(), shared.bounds.drain) => End::Cut,
    };
    if end != End::Complete {
        // A reader who is still there must not take the cut for an end.
        let told = left.send(Err(BodyFault::Broken("the reply was cut".into()).into()));
        if timeout(shared.bounds.grace, told).await.is_err() {
            tracing::debug!(run.id = %run.id, "a reader that does not read was left");
        }
    }
    drop(left);
    account.settle(status.as_u16(), meter.reading()).await;
    if let End::OverBudget(over) = end {
        drop(over_budget((door, run), &over).await);
    }
}

/// A refusal whose words cannot be looked into.
fn unseen(status: StatusCode) -> Refusal {
    let message = format!(
        "the model API refused the call (HTTP {}), in an encoding that was not asked for, so what it says is not shown",
        status.as_u16()
    );
    Refusal::new(status, "model_encoded", message)
}

/// Gives the reply to whoever waits for it.
fn hand_over(reply: Reply, answer: Result<Response<Body>, Refusal>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for a model call's reply any more");
    }
}

/// Passes the reply on, piece by piece, and a refusal without live secrets. The piece that completes it waits until the call is
/// settled.
async fn pass(
    door: &Door,
    mut upstream: reqwest::Response,
    (sender, mut clean): (ChunkSender, Option<redact::Stream>),
    (meter, account): (&mut Meter, &mut Account),
) -> End {
    let status = upstream.status().as_u16();
    let bounds = &door.shared.bounds;
    let mut reader = Reader { sender: Some(sender), idle: bounds.idle, drained: 0 };
    let mut held: Option<Bytes> = None;
    loop {
        let chunk = match timeout(bounds.idle, upstream.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break,
            Ok(Err(_)) | Err(_) => {
                reader.take(held.take()).await;
                return End::Cut;
            }
        };
        let complete = meter.is_complete();
        meter.feed(&chunk);
        if meter.is_complete() && !complete {
            account.settle_before_end(status, meter.reading()).await;
        }
        let chunk = match &mut clean {
            Some(clean) => {
                clean.follow(&door.secrets.redactor());
                clean.push(&chunk).into()
            }
            None => chunk,
        };
        let due = if meter.ends_with_its_last_byte() { held.replace(chunk) } else { Some(chunk) };
        reader.take(due).await;
        match account.keep_up(meter.reading()).await {
            Ok(()) => {}
            Err(CutOff::OverBudget(over)) => return End::OverBudget(over),
            Err(CutOff::RunOver) => return End::Cut,
        }
        if reader.drained > bounds.drain_bytes {
            return End::Cut;
        }
    }
    meter.end();
    account.settle_before_end(status, meter.reading()).await;
    reader.take(held).await;
    reader.take(clean.map(|mut clean| clean.finish().into())).await;
    // A reader that was too slow has missed bytes: for it this is no end.
    if reader.sender.is_some() { End::Complete } else { End::Cut }
}

/// The connection at the other end, until it leaves.
struct Reader {
    sender: Option<ChunkSender>,
    /// How long it may take to take a piece.
    idle: Duration,
    /// Bytes that came after it left.
    drained: usize,
}

impl Reader {
    async fn take(&mut self, chunk: Option<Bytes>) {
        let Some(mut chunk) = chunk else { return };
        while let Some(sender) = &self.sender {
            if chunk.is_empty() {
                return;
            }
            let piece = chunk.split_to(chunk.len().min(CHUNK_BYTES));
            if !matches!(timeout(self.idle, sender.send(Ok(piece))).await, Ok(Ok(()))) {
                self.sender = None;
            }
        }
        self.drained = self.drained.saturating_add(chunk.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_does_not_read_holds_a_bounded_part_of_the_reply_and_is_left_in_time() {
        let idle = Duration::from_secs(7);
        let (sender, mut body) = body::channel(CHUNKS);
        let mut reader = Reader { sender: Some(sender), idle, drained: 0 };
        let chunk = Bytes::from(vec![b'x'; (CHUNKS + 2) * CHUNK_BYTES]);
        let began = tokio::time::Instant::now();
        reader.take(Some(chunk)).await;
        assert_eq!((began.elapsed(), reader.drained), (idle, CHUNK_BYTES));
        assert!(reader.sender.is_none());
        let mut held = Vec::new();
        while let Some(frame) = body.frame().await {
            held.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(held, [CHUNK_BYTES; CHUNKS]);
        assert_eq!((CHUNKS + 1) * CHUNK_BYTES, 64 * 1024);
    }
}
