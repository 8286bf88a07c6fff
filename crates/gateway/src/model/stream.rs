//! Carrying one call: forward, pass the reply on as it comes, meter it, settle it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use caisson_domain::event::EventKind;
use caisson_domain::run::Run;
use http::{Response, StatusCode};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::account::Account;
use super::meter::Meter;
use super::{Call, request};
use crate::body::{self, Body, BodyFault, ChunkSender};
use crate::bounds::{CHUNK_BYTES, CHUNKS};
use crate::problem::Refusal;
use crate::shared::{Door, Shared};

/// Why there is no reply.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// No connection: upstream saw nothing.
    Connect,
    /// The connection broke before the reply.
    Broken,
    /// No reply in time.
    Timeout,
    /// The client left, and waiting longer would help nobody.
    Abandoned,
}

/// How a reply's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Cut,
}

type Reply = oneshot::Sender<Result<Response<Body>, Refusal>>;

/// Carries the call to its end and settles it. The head of the reply goes to `reply`, if somebody still waits
/// for it.
pub(super) async fn carry(call: Call, mut reply: Reply) {
    let Call { door, run, client, request, ask, permits: (_slot, share) } = call;
    let shared = &door.shared;
    let mut account = match Account::begin(Arc::clone(shared), &run.id, ask).await {
        Ok(Some(account)) => account,
        Ok(None) => return hand_over(reply, Err(Refusal::no_run())),
        Err(error) => return hand_over(reply, Err(Refusal::store(&error))),
    };
    let head = send(shared, (&client, request), &mut reply).await;
    drop(share);
    let upstream = match head {
        Ok(upstream) => upstream,
        Err(fault) => {
            failed(&door, &run, &mut account, fault).await;
            return hand_over(reply, Err(unreachable(fault)));
        }
    };
    account.answered();
    let status = upstream.status();
    if let Some(refusal) = refused(&door, &run, status).await {
        account.settle_free(status.as_u16()).await;
        return hand_over(reply, Err(refusal));
    }
    let mut meter = if status.is_success() { Meter::of(upstream.headers()) } else { Meter::blind() };
    if !status.is_success() {
        account.settle_free(status.as_u16()).await;
    }
    let (sender, body) = body::channel(CHUNKS);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = request::reply_headers(upstream.headers());
    hand_over(reply, Ok(response));
    let left = sender.clone();
    let end = tokio::select! {
        end = pass(shared, upstream, sender, (&mut meter, &mut account)) => end,
        () = shared.patience(left.closed(), shared.bounds.drain) => End::Cut,
    };
    if end == End::Cut {
        // A reader who is still there must not take the cut for an end.
        let told = left.send(Err(BodyFault::Broken("the reply was cut".into()).into()));
        if timeout(shared.bounds.grace, told).await.is_err() {
            tracing::debug!(run.id = %run.id, "a reader that does not read was left");
        }
    }
    drop(left);
    account.settle(status.as_u16(), meter.reading()).await;
}

/// Gives the reply to whoever waits for it.
fn hand_over(reply: Reply, answer: Result<Response<Body>, Refusal>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for a model call's reply any more");
    }
}

/// Sends the request and waits for the head of the reply.
async fn send(
    shared: &Shared,
    (client, request): (&reqwest::Client, reqwest::Request),
    reply: &mut Reply,
) -> Result<reqwest::Response, Fault> {
    let answer = timeout(shared.bounds.first_byte, client.execute(request));
    tokio::select! {
        answer = answer => match answer {
            Ok(Ok(upstream)) => Ok(upstream),
            Ok(Err(error)) if error.is_connect() => Err(Fault::Connect),
            Ok(Err(error)) => {
                tracing::debug!(error = %error.without_url(), "the model API broke off");
                Err(Fault::Broken)
            }
            Err(_) => Err(Fault::Timeout),
        },
        () = shared.patience(reply.closed(), shared.bounds.drain) => Err(Fault::Abandoned),
    }
}

/// There is no reply: only a call that never left costs nothing for sure.
async fn failed(door: &Door, run: &Run, account: &mut Account, fault: Fault) {
    match fault {
        Fault::Connect => account.settle_free(0).await,
        Fault::Broken | Fault::Timeout | Fault::Abandoned => {
            account.settle(0, Meter::blind().reading()).await;
        }
    }
    let kind = match fault {
        Fault::Connect => "connect",
        Fault::Broken => "broken",
        Fault::Timeout => "timeout",
        Fault::Abandoned => return,
    };
    let data = json!({"upstream": "model", "kind": kind, "status": 0});
    door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
}

fn unreachable(fault: Fault) -> Refusal {
    let message = match fault {
        Fault::Connect => "the model API cannot be reached from the server",
        Fault::Broken => "the model API broke the connection off before it answered",
        Fault::Timeout => "the model API did not answer in time",
        Fault::Abandoned => "the call was not waited for any longer",
    };
    Refusal::new(StatusCode::BAD_GATEWAY, "model_unreachable", message)
}

/// An answer of our own in place of replies that the agent could not understand, and the event for a refused
/// credential. The agent retries a 401 for three minutes, and the credential is not its own: it is told 403.
async fn refused(door: &Door, run: &Run, status: StatusCode) -> Option<Refusal> {
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let data = json!({"upstream": "model", "kind": "auth", "status": status.as_u16()});
        door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
    }
    if status == StatusCode::UNAUTHORIZED {
        let message = "the model API refused the server's credential; rotate it with `caisson credential rotate`, or replace it in the server's configuration";
        return Some(Refusal::new(StatusCode::FORBIDDEN, "model_auth", message));
    }
    if status.is_redirection() {
        let data = json!({"upstream": "model", "kind": "redirect", "status": status.as_u16()});
        door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
        let message = "the model API's URL redirects; set the final URL in the server's configuration";
        return Some(Refusal::new(StatusCode::BAD_GATEWAY, "model_redirect", message));
    }
    None
}

/// Passes the reply on, piece by piece. The piece that completes it waits until the call is settled.
async fn pass(
    shared: &Shared,
    mut upstream: reqwest::Response,
    sender: ChunkSender,
    (meter, account): (&mut Meter, &mut Account),
) -> End {
    let status = upstream.status().as_u16();
    let mut reader = Reader { sender: Some(sender), idle: shared.bounds.idle, drained: 0 };
    let mut held: Option<Bytes> = None;
    loop {
        let chunk = match timeout(shared.bounds.idle, upstream.chunk()).await {
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
        let due = if meter.ends_with_its_last_byte() { held.replace(chunk) } else { Some(chunk) };
        reader.take(due).await;
        if reader.drained > shared.bounds.drain_bytes {
            return End::Cut;
        }
    }
    meter.end();
    account.settle_before_end(status, meter.reading()).await;
    reader.take(held).await;
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
