//! Forwarding a push that was looked at: written down before its first byte leaves, recorded before its end is passed on.

use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::run::Run;
use caisson_store::{BeginPush, Push, PushRecord, StoreError};
use futures_util::stream::{self, StreamExt};
use tokio::time::{sleep, timeout};

use super::again;
use super::clean::Clean;
use super::fault::Fault;
use super::push::{Carriage, Reply, hand_over, taken};
use super::quarantine::Quarantine;
use super::report::{Report, Verdict};
use super::settle::{Seen, follow, look};
use super::under_way::UnderWay;
use super::{Answer, Exchange, Operation, Service, Upstream, respond, tell};
use crate::body::{self, BodyFault, ChunkSender, Chunks};
use crate::bounds::{CHUNKS, PUSH_AHEAD, PUSH_PAUSES};
use crate::hold::hold;
use crate::problem::Refusal;
use crate::shared::Shared;

/// What may be forwarded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cleared {
    /// Length of the pack, in bytes.
    pub(super) bytes: u64,
    /// Whether it may take commits away from its branch.
    pub(super) rewrites: bool,
}

/// Writes the push down, then forwards it from its quarantine, unless the git host has it already.
pub(super) async fn carry(carriage: Carriage, quarantine: &Quarantine, cleared: Cleared, mut reply: Reply) {
    let Carriage { door, run, upstream, push, .. } = &carriage;
    match begin(&door.shared, run, upstream, push).await {
        Ok(false) => {}
        Ok(true) => return hand_over(reply, Ok(taken(&carriage.section))),
        Err(refusal) => return hand_over(reply, Err(refusal)),
    }
    match send(&carriage, (quarantine, cleared), &mut reply).await {
        Ok(answer) => deliver(carriage, answer, reply).await,
        Err(fault) => fail(carriage, fault, reply).await,
    }
}

/// Sends the push, and again where the host refused it for a reason that passes ([`again`]).
async fn send(
    carriage: &Carriage,
    (quarantine, cleared): (&Quarantine, Cleared),
    reply: &mut Reply,
) -> Result<Answer, Fault> {
    let Carriage { door, run, section, push, .. } = carriage;
    let cancel = &door.shared.cancel;
    for pause in PUSH_PAUSES {
        let answer = send_once(carriage, exchange(carriage, quarantine, cleared).await?, reply).await?;
        let left = async {
            tokio::select! {
                () = reply.closed() => {}
                () = cancel.cancelled() => {}
            }
        };
        let (answer, again) = again::look((section, &push.ref_name), answer, (PUSH_AHEAD, left)).await;
        if !again || reply.is_closed() || cancel.is_cancelled() {
            return Ok(answer);
        }
        tracing::info!(run.id = %run.id, "a git host could not move a push of {} to its place; it gets it again", run.id);
        sleep(pause).await;
    }
    send_once(carriage, exchange(carriage, quarantine, cleared).await?, reply).await
}

/// The push as the git host gets it: what was read of its commands, and the pack that was looked at.
async fn exchange(carriage: &Carriage, quarantine: &Quarantine, cleared: Cleared) -> Result<Exchange, Fault> {
    let section = Bytes::from(carriage.section.encode());
    let length = Some(section.len() as u64 + cleared.bytes);
    let pack = quarantine.pack().await.map_err(|error| {
        tracing::error!(error = %error, "a quarantined push could not be read");
        Fault::Local { detail: "the push could not be read again".to_owned() }
    })?;
    let chunks = stream::iter([Ok(section)]).chain(pack).boxed();
    Ok(Exchange { chunks, length, rewrites: cleared.rewrites })
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

async fn send_once(carriage: &Carriage, exchange: Exchange, reply: &mut Reply) -> Result<Answer, Fault> {
    let shared = &carriage.door.shared;
    let answer = tokio::select! {
        sent = carriage.upstream.exchange(Service::ReceivePack, None, exchange) => sent,
        () = shared.patience(reply.closed(), shared.bounds.drain) => {
            Err(Fault::Failed { status: 0, detail: "was not waited for any longer" })
        }
    }?;
    // What is compressed could hold the credential unseen.
    match answer.encoding {
        None => Ok(answer),
        Some(_) => {
            Err(Fault::Failed { status: 200, detail: "answered in an encoding that was not asked for" })
        }
    }
}

/// Records what became of a push without an answer, as far as that is known, and tells of it.
async fn fail(carriage: Carriage, fault: Fault, reply: Reply) {
    let Carriage { door, run, under_way, upstream, push, .. } = carriage;
    let shared = &door.shared;
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
    hand_over(reply, Err(refusal));
}

/// Passes the answer on and records what became of the push.
async fn deliver(carriage: Carriage, answer: Answer, reply: Reply) {
    let Carriage { door, run, under_way, slots, upstream, section, push } = carriage;
    let shared = &door.shared;
    let mut report = Report::of(&section);
    let clean = Clean::of(&section, &door.secrets.redactor());
    let (sender, body) = body::channel(CHUNKS);
    let mut response = respond(Operation::Push, Answer { chunks: stream::empty().boxed(), ..answer });
    *response.body_mut() = body;
    hand_over(reply, Ok(response));
    let left = sender.clone();
    let passed = tokio::select! {
        passed = pass(shared, answer.chunks, sender, (clean, &mut report)) => passed,
        () = shared.patience(left.closed(), shared.bounds.drain) => Err(()),
    };
    let verdict = match report.verdict(&push.ref_name) {
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
    drop(slots);
}

/// Passes the answer on without live secrets but for its last piece, which is given back: it waits until the push is
/// recorded. What is recorded is read from what is passed on.
async fn pass(
    shared: &Shared,
    mut chunks: Chunks,
    sender: ChunkSender,
    (mut clean, report): (Clean, &mut Report),
) -> Result<Option<Bytes>, ()> {
    let mut held: Option<Bytes> = None;
    loop {
        let chunk = chunks.next().await.transpose();
        let chunk = chunk.map_err(|error| tracing::debug!(error = %error, "a git host's answer was cut"))?;
        let (piece, ended) = match chunk {
            Some(chunk) => (Bytes::from(clean.push(&chunk)), false),
            None => (Bytes::from(clean.finish()), true),
        };
        if !piece.is_empty() {
            report.feed(&piece);
            if let Some(due) = held.replace(piece)
                && timeout(shared.bounds.idle, sender.send(Ok(due))).await.is_err()
            {
                return Err(());
            }
        }
        if ended {
            return Ok(held);
        }
    }
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
