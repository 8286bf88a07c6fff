//! Pushes whose end nobody saw: the git host's list of refs says what became of them.
//!
//! A server that is killed between a git host's taking a push and recording it leaves the push pending in the
//! store, and so does a host that breaks off while it is at work. Without the look here the fact would be lost, since
//! the next try has nothing to push or is refused, and a run would fail although its work is on the host.
//!
//! It is looked for from the start, or from the moment when nobody knows, until it is pending no longer: the worker
//! lets no run end before, for a bounded time, also where its sandbox never says another word. It is looked for when
//! the same push comes again; and before a run's outcome is stored, so that the outcome usually finds it settled. A look
//! means something only when no push of the run is on its way through this process, so each waits for that. No door
//! stays shut for a host that is away.

use std::sync::Arc;

use caisson_domain::id::ServerId;
use caisson_domain::run::Run;
use caisson_store::{Push, PushRecord, StoreError};
use futures_util::stream::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::report::RefSearch;
use super::{Service, Upstream};
use crate::bounds::{BACKOFF_FIRST, LOOK_BACKOFF_MOST};
use crate::shared::{Door, Shared};

/// What a git host's list of refs says about a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The ref is where the push wanted it.
    There,
    /// It is not.
    Missing,
    /// The host did not say.
    Unknown,
}

/// Asks the host for its refs, for a bounded time.
pub(super) async fn look(shared: &Shared, run: &Run, upstream: &Upstream, push: &Push) -> Seen {
    let asked = timeout(shared.bounds.drain, search(upstream, push)).await;
    asked.unwrap_or_else(|_| {
        tracing::warn!(run.id = %run.id, "a git host did not say in time what became of a push of {}", run.id);
        Seen::Unknown
    })
}

async fn search(upstream: &Upstream, push: &Push) -> Seen {
    let mut answer = match upstream.advertise(Service::ReceivePack, None).await {
        Ok(answer) => answer,
        Err(fault) => {
            tracing::warn!(fault = ?fault, "a git host could not be asked what became of a push");
            return Seen::Unknown;
        }
    };
    let mut search = RefSearch::new(&push.ref_name, &push.new);
    while let Some(chunk) = answer.chunks.next().await {
        match chunk {
            Ok(chunk) if search.feed(&chunk) => {}
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(error = %error, "a git host's list of refs was cut");
                return Seen::Unknown;
            }
        }
    }
    if search.is_there() { Seen::There } else { Seen::Missing }
}

/// Records `push` if the host has it and nobody recorded it meanwhile.
async fn settle(shared: &Arc<Shared>, run: &Run, push: &Push) -> Result<Seen, StoreError> {
    let Some(repository) = &run.spec.repository else { return Ok(Seen::Missing) };
    let seen = match Upstream::of(shared, run, repository, None).await {
        Ok(upstream) => look(shared, run, &upstream, push).await,
        Err(fault) => {
            tracing::warn!(run.id = %run.id, fault = ?fault, "the repository of {} cannot be asked", run.id);
            Seen::Unknown
        }
    };
    if seen == Seen::There {
        let said = "the git host's answer did not come; its list of refs has the commit";
        let record = PushRecord { push: push.clone(), ok: true, message: Some(said.to_owned()) };
        if shared.store.settle_push(&run.id, &record).await? {
            tracing::info!(run.id = %run.id, "recorded a push of {} whose answer nobody saw", run.id);
        }
    }
    Ok(seen)
}

/// Begins to settle every push that an earlier process of this server left pending.
pub(crate) async fn resume(shared: &Arc<Shared>, server: &ServerId) -> Result<(), StoreError> {
    for (run, _) in shared.store.pending_pushes(server).await? {
        follow(shared, &run);
    }
    Ok(())
}

/// Begins to ask after the pending push of the run, unless somebody does already.
pub(super) fn follow(shared: &Arc<Shared>, run: &Run) {
    if shared.pushes.follow(&run.id) {
        let (shared, run) = (Arc::clone(shared), run.clone());
        shared.tracker.clone().spawn(async move {
            ask_until_settled(&shared, &run).await;
            shared.pushes.leave(&run.id);
        });
    }
}

/// Asks until the run has no pending push any more, which is so when it has ended, or the time for one push is over, or
/// the server stops. A host that does not have the commit is asked again: it may still be at work on it.
async fn ask_until_settled(shared: &Arc<Shared>, run: &Run) {
    let mut about = None;
    let mut end = Instant::now() + shared.bounds.push_look;
    let mut wait = BACKOFF_FIRST;
    loop {
        let looked = tokio::select! {
            looked = look_again(shared, run) => looked,
            () = shared.cancel.cancelled() => return,
        };
        match looked {
            Ok(Looked::NothingPending | Looked::At(_, Seen::There)) => return,
            Ok(Looked::At(push, Seen::Missing | Seen::Unknown)) => {
                if about.as_ref() != Some(&push) {
                    about = Some(push);
                    end = Instant::now() + shared.bounds.push_look;
                    wait = BACKOFF_FIRST;
                }
            }
            Ok(Looked::UnderWay) => {
                // The time begins anew when it is over.
                about = None;
                tokio::select! {
                    () = shared.pushes.none_of(&run.id) => continue,
                    () = shared.cancel.cancelled() => return,
                }
            }
            Err(error) => {
                tracing::warn!(run.id = %run.id, error = %error, "a push of {} was not recorded yet", run.id);
            }
        }
        if Instant::now() + wait > end {
            tracing::warn!(run.id = %run.id, "nobody could say what became of a push of {}", run.id);
            return;
        }
        tokio::select! {
            () = sleep(wait) => wait = (wait * 2).min(LOOK_BACKOFF_MOST),
            () = shared.cancel.cancelled() => return,
        }
    }
}

/// What came of looking for the pending push of a run.
enum Looked {
    NothingPending,
    /// A push of the run is on its way through this process, and will be recorded by it.
    UnderWay,
    At(Push, Seen),
}

async fn look_again(shared: &Arc<Shared>, run: &Run) -> Result<Looked, StoreError> {
    if shared.pushes.any_of(&run.id) {
        return Ok(Looked::UnderWay);
    }
    let Some(push) = shared.store.pending_push(&run.id).await? else { return Ok(Looked::NothingPending) };
    let seen = settle(shared, run, &push).await?;
    Ok(Looked::At(push, seen))
}

/// Settles the pending push of the run in the sandbox, if it has one, before the run's outcome is stored. A push
/// that is under way, or a host that does not answer, delays the outcome for a bounded time.
pub(crate) async fn before_outcome(door: &Door) -> Result<(), StoreError> {
    let shared = &door.shared;
    let Some(run) = shared.store.door_run(&door.sandbox).await? else { return Ok(()) };
    let asking = async {
        let _slot = Arc::clone(&door.exchanges).acquire_owned().await;
        loop {
            match look_again(shared, &run).await? {
                Looked::NothingPending | Looked::At(_, Seen::There) => return Ok(true),
                Looked::At(_, Seen::Missing | Seen::Unknown) => return Ok(false),
                Looked::UnderWay => shared.pushes.none_of(&run.id).await,
            }
        }
    };
    let settled: Result<_, StoreError> = timeout(shared.bounds.outcome_hold, asking).await.unwrap_or_else(|_| {
        tracing::warn!(run.id = %run.id, "the outcome of {} did not wait any longer for a git host", run.id);
        Ok(false)
    });
    if !settled? {
        follow(shared, &run);
    }
    Ok(())
}
