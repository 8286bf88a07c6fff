//! `POST git-receive-pack`: judged before a byte is forwarded, recorded before its end is passed on.

use std::sync::{Arc, Mutex};

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use caisson_domain::event::EventKind;
use caisson_domain::run::Run;
use caisson_store::{BeginPush, BoxError, Push, PushRecord, StoreError};
use futures_util::stream::{self, StreamExt};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;

use super::fault::Fault;
use super::pktline::{Command, Section, SectionReader};
use super::receive::{self, Denial};
use super::report::{Report, Verdict};
use super::settle::{Seen, follow, look};
use super::under_way::UnderWay;
use super::{Answer, Exchange, Operation, Service, Upstream, incoming, respond, tell};
use crate::body::{self, Body, BodyFault, ChunkSender, Chunks};
use crate::bounds::{CHUNKS, COMMAND_SECTION_BYTES, DENIED_BYTES};
use crate::hold::hold;
use crate::problem::Refusal;
use crate::shared::{Door, Shared};

/// A push on its way: a task of its own, so that it is recorded whatever becomes of the connection it came
/// by.
struct Carriage {
    door: Arc<Door>,
    run: Run,
    /// Until it is recorded.
    under_way: UnderWay,
    /// The sandbox's share of exchanges.
    slot: OwnedSemaphorePermit,
    upstream: Upstream,
    section: Section,
    /// What its one command asks for.
    push: Push,
    exchange: Exchange,
    surplus: Surplus,
}

/// What follows the bound in a push that turned out larger: none otherwise.
type Surplus = Arc<Mutex<Option<Chunks>>>;

type Reply = oneshot::Sender<Result<Response<Body>, Refusal>>;

pub(super) async fn answer(
    door: &Arc<Door>,
    (run, slot): (Run, OwnedSemaphorePermit),
    upstream: Upstream,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let shared = &door.shared;
    let mut exchange = match incoming(shared, request) {
        Ok(exchange) => exchange,
        Err(fault) => return Err(tell(door, &run, fault).await),
    };
    let (section, rest) = read_section(&mut exchange.chunks).await?;
    let Some(command) = section.commands.first() else {
        // Git asks with an empty push whether a large one is welcome.
        let chunks = stream::empty().boxed();
        return Ok(respond(Operation::Push, Answer { chunks, encoding: None }));
    };
    let Command { old, new, ref_name } = command.clone();
    let push = Push { ref_name, old, new };
    let branch = run.spec.branch.as_ref().map(caisson_domain::git::BranchName::full_ref);
    let mut denials = receive::judge(&section, branch.as_deref().unwrap_or_default());
    let bound = shared.bounds.push_bytes;
    if denials.is_empty() && exchange.length.is_some_and(|length| length > bound) {
        denials = vec![too_large(&section, bound)];
    }
    if !denials.is_empty() {
        drain(shared, exchange.chunks).await;
        return Ok(deny(door, &run, &section, &denials).await);
    }
    let first = [section.raw.clone(), rest].into_iter().filter(|part| !part.is_empty()).map(Ok);
    let whole = stream::iter(first).chain(exchange.chunks).boxed();
    let surplus = Surplus::default();
    let chunks = limited(whole, bound, Arc::clone(&surplus));
    let exchange = Exchange { chunks, length: exchange.length };
    let (door, under_way) = (Arc::clone(door), shared.pushes.begin(&run.id));
    let carriage = Carriage { door, run, under_way, slot, upstream, section, push, exchange, surplus };
    let (reply, answered) = oneshot::channel();
    shared.tracker.spawn(carry(carriage, reply));
    answered.await.unwrap_or_else(|_| {
        let message = "the push was given up inside the server; push again";
        Err(Refusal::new(StatusCode::BAD_GATEWAY, "repo_unreachable", message))
    })
}

/// The commands, and the bytes behind them that came along.
async fn read_section(chunks: &mut Chunks) -> Result<(Section, Bytes), Refusal> {
    let mut reader = SectionReader::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            let fault = error.downcast::<BodyFault>().map_or_else(BodyFault::Broken, |fault| *fault);
            Refusal::body(&fault, COMMAND_SECTION_BYTES as u64)
        })?;
        match reader.push(&chunk) {
            Ok(None) => {}
            Ok(Some(found)) => return Ok(found),
            Err(error) => {
                let message = format!("the push cannot be read: {error}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "push_refused", message));
            }
        }
    }
    Err(Refusal::new(StatusCode::BAD_REQUEST, "push_refused", "the push ended before its commands did"))
}

fn too_large(section: &Section, bytes: u64) -> Denial {
    let ref_name = section.commands.first().map(|command| command.ref_name.clone()).unwrap_or_default();
    let reason = format!("the push is larger than {bytes} bytes; leave large files out of the commits");
    Denial { ref_name, rule: "push_size", reason }
}

/// Ends the push with an error where it becomes larger than `bound`, and keeps what follows for [`drain`].
fn limited(chunks: Chunks, bound: u64, surplus: Surplus) -> Chunks {
    stream::unfold(Some((chunks, bound)), move |state| {
        let surplus = Arc::clone(&surplus);
        async move {
            let (mut chunks, left) = state?;
            let chunk = match chunks.next().await? {
                Ok(chunk) => chunk,
                Err(error) => return Some((Err(error), None)),
            };
            if let Some(left) = left.checked_sub(chunk.len() as u64) {
                return Some((Ok(chunk), Some((chunks, left))));
            }
            if let Ok(mut surplus) = surplus.lock() {
                *surplus = Some(chunks);
            }
            Some((Err(BodyFault::TooLarge.into()), None))
        }
    })
    .boxed()
}

/// Reads a refused push to its end, so that git listens to the answer instead of finding its connection
/// closed.
async fn drain(shared: &Shared, chunks: Chunks) {
    let mut chunks = body::bounded(chunks, DENIED_BYTES);
    let all = async { while let Some(Ok(_)) = chunks.next().await {} };
    if timeout(shared.bounds.drain, all).await.is_err() {
        tracing::debug!("a refused push was not read to its end");
    }
}

/// Tells of the refusal and answers it as a git host's own hook would.
async fn deny(door: &Door, run: &Run, section: &Section, denials: &[Denial]) -> Response<Body> {
    for denial in denials {
        let data = json!({
            "what": "push", "ref": denial.ref_name, "rule": denial.rule, "remedy": denial.reason,
        });
        door.tell(&run.id, EventKind::GatewayDenied, data).await;
    }
    report(section, denials)
}

/// A git host's answer, made here.
fn report(section: &Section, denials: &[Denial]) -> Response<Body> {
    let report = Bytes::from(receive::answer(section, denials));
    let chunks = stream::iter([Ok::<_, BoxError>(report)]).boxed();
    respond(Operation::Push, Answer { chunks, encoding: None })
}

/// Writes the push down, then forwards it, unless the git host has it already.
async fn carry(carriage: Carriage, reply: Reply) {
    let Carriage { door, run, upstream, push, .. } = &carriage;
    let answer = match begin(&door.shared, run, upstream, push).await {
        Ok(false) => return forward(carriage, reply).await,
        Ok(true) => Ok(report(&carriage.section, &[])),
        Err(refusal) => Err(refusal),
    };
    drain(&carriage.door.shared, carriage.exchange.chunks).await;
    hand_over(reply, answer);
}

/// Writes the push down as pending, so that it is recorded even if this process dies. `true` if nothing is left to
/// do: an earlier try got through and only its answer was lost, so the git host would refuse this one.
async fn begin(shared: &Shared, run: &Run, upstream: &Upstream, push: &Push) -> Result<bool, Refusal> {
    let (store, bounds) = (&shared.store, &shared.bounds);
    let refused = |error: StoreError| Refusal::store(&error);
    let begun = hold(&shared.cancel, bounds.store_hold, || store.begin_push(&run.id, push)).await;
    let begun = begun.map_err(refused)?;
    let recorded = match begun {
        BeginPush::Refused => return Err(Refusal::no_run()),
        BeginPush::Begun => return Ok(false),
        BeginPush::Repeated => false,
        BeginPush::Recorded => true,
    };
    if look(shared, run, upstream, push).await != Seen::There {
        return Ok(false);
    }
    let said = "the answer to an earlier try was lost; the git host's list of refs has the commit";
    let record = PushRecord { push: push.clone(), ok: true, message: Some(said.to_owned()) };
    let settled = hold(&shared.cancel, bounds.settle_hold, || async {
        if recorded {
            store.forget_push(&run.id, push).await
        } else {
            store.settle_push(&run.id, &record).await.map(drop)
        }
    });
    settled.await.map_err(refused).map(|()| true)
}

/// Forwards the push, passes the answer on and records what became of it.
async fn forward(carriage: Carriage, mut reply: Reply) {
    let Carriage { door, run, under_way, slot, upstream, section, push, exchange, surplus } = carriage;
    let shared = &door.shared;
    let sent = tokio::select! {
        sent = upstream.exchange(Service::ReceivePack, None, exchange) => sent,
        () = shared.patience(reply.closed(), shared.bounds.drain) => {
            Err(Fault::Failed { status: 0, detail: "was not waited for any longer" })
        }
    };
    let surplus = surplus.lock().ok().and_then(|mut surplus| surplus.take());
    if let Some(rest) = surplus {
        forget(shared, &run, &push).await;
        drain(shared, rest).await;
        let denials = [too_large(&section, shared.bounds.push_bytes)];
        return hand_over(reply, Ok(deny(&door, &run, &section, &denials).await));
    }
    let answer = match sent {
        Ok(answer) => answer,
        Err(fault) => {
            if fault.is_unclear() && shared.cancel.is_cancelled() {
                // The next server gets it again and looks first; a word from here would say that it failed.
                tracing::info!(run.id = %run.id, "a push of {} stays pending, because the server stops", run.id);
                return;
            }
            if fault.is_unclear() {
                let verdict = if fault.may_go_on() { Verdict::Unheard } else { Verdict::Unknown };
                record(shared, (&run, under_way), &upstream, (&push, verdict)).await;
            } else {
                forget(shared, &run, &push).await;
            }
            let refusal = tell(&door, &run, fault).await;
            return hand_over(reply, Err(refusal));
        }
    };
    let mut report = answer.encoding.is_none().then(|| Report::of(&section));
    let (sender, body) = body::channel(CHUNKS);
    let mut response = respond(Operation::Push, Answer { chunks: stream::empty().boxed(), ..answer });
    *response.body_mut() = body;
    hand_over(reply, Ok(response));
    let left = sender.clone();
    let passed = tokio::select! {
        passed = pass(shared, answer.chunks, sender, report.as_mut()) => passed,
        () = shared.patience(left.closed(), shared.bounds.drain) => Err(()),
    };
    let verdict = match report.map_or(Verdict::Unknown, |report| report.verdict(&push.ref_name)) {
        Verdict::Unknown if passed.is_err() => Verdict::Unheard,
        verdict @ (Verdict::Taken | Verdict::Refused(_) | Verdict::Unknown | Verdict::Unheard) => verdict,
    };
    record(shared, (&run, under_way), &upstream, (&push, verdict)).await;
    let end = passed.map_err(|()| BodyFault::Broken("the git host's answer was cut".into()).into());
    if let Some(last) = end.transpose()
        && timeout(shared.bounds.grace, left.send(last)).await.is_err()
    {
        tracing::debug!(run.id = %run.id, "a reader that does not read was left");
    }
    drop(slot);
}

fn hand_over(reply: Reply, answer: Result<Response<Body>, Refusal>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for a push's answer any more");
    }
}

/// Passes the answer on but for its last piece, which is given back: it waits until the push is recorded.
async fn pass(
    shared: &Shared,
    mut chunks: Chunks,
    sender: ChunkSender,
    mut report: Option<&mut Report>,
) -> Result<Option<Bytes>, ()> {
    let mut held: Option<Bytes> = None;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| tracing::debug!(error = %error, "a git host's answer was cut"))?;
        if let Some(report) = report.as_mut() {
            report.feed(&chunk);
        }
        if let Some(due) = held.replace(chunk)
            && timeout(shared.bounds.idle, sender.send(Ok(due))).await.is_err()
        {
            return Err(());
        }
    }
    Ok(held)
}

/// Records the push. Where the host's word did not arrive, its list of refs is asked: a push that was taken and not
/// recorded would be lost, since the next one would have nothing to do. It is asked as well where the host refused:
/// it may have been at work on an earlier try whose answer was lost, and taken that one. If the host does not say, or
/// may still be at work, the push stays pending and is asked after from then on.
async fn record(
    shared: &Arc<Shared>,
    (run, under_way): (&Run, UnderWay),
    upstream: &Upstream,
    (push, verdict): (&Push, Verdict),
) {
    let seen = match verdict {
        Verdict::Taken => Seen::There,
        Verdict::Refused(_) | Verdict::Unknown | Verdict::Unheard => look(shared, run, upstream, push).await,
    };
    let unsettled = match verdict {
        Verdict::Unheard => seen != Seen::There,
        Verdict::Unknown => seen == Seen::Unknown,
        Verdict::Taken | Verdict::Refused(_) => false,
    };
    if unsettled {
        tracing::warn!(run.id = %run.id, "it is not known what became of a push of {}; it stays pending", run.id);
        drop(under_way);
        return follow(shared, run);
    }
    let ok = seen == Seen::There;
    let late = ok && matches!(verdict, Verdict::Refused(_));
    let message = match verdict {
        Verdict::Taken => None,
        Verdict::Refused(said) if ok => Some(format!("it was there already; the git host said: {said}")),
        Verdict::Refused(said) => Some(said),
        Verdict::Unknown | Verdict::Unheard if ok => {
            Some("the git host's answer was lost; its list of refs has the commit".to_owned())
        }
        Verdict::Unknown | Verdict::Unheard => {
            Some("the git host's answer was lost, and its list of refs does not have the commit".to_owned())
        }
    };
    let record = PushRecord { push: push.clone(), ok, message };
    let store = &shared.store;
    let recorded = hold(&shared.cancel, shared.bounds.settle_hold, || async {
        if late {
            // The try that was taken may have been recorded while this one was on its way.
            store.settle_push(&run.id, &record).await.map(drop)
        } else {
            store.record_push(&run.id, &record).await
        }
    });
    if let Err(error) = recorded.await {
        tracing::error!(run.id = %run.id, error = %error, "a push of {} was not recorded and stays pending", run.id);
        drop(under_way);
        follow(shared, run);
    }
}

/// Forgets a push that the host never saw as a whole.
async fn forget(shared: &Shared, run: &Run, push: &Push) {
    let store = &shared.store;
    let forgotten =
        hold(&shared.cancel, shared.bounds.settle_hold, || store.forget_push(&run.id, push)).await;
    if let Err(error) = forgotten {
        tracing::warn!(run.id = %run.id, error = %error, "a push of {} stays pending that never left", run.id);
    }
}
