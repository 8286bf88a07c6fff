//! Sandboxes of finished runs that wait for the next run of their sessions.
//!
//! Which ones wait this process alone knows, by the holds that it has on them: a server that starts finds them as orphans.
//! Nothing in the store says that a sandbox waits, and nothing has to: without a run its agent's grant opens nothing.

mod reuse;
mod seen;
mod shelf;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::run::RunStatus;
use caisson_store::Finish;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span};

pub(crate) use reuse::reuse;
pub(crate) use shelf::{Shelf, Waiting};

use crate::attempt::Attempt;
use crate::context::{Context, Halt};
use crate::holds::Hold;
use crate::teardown;

/// How long sandboxes wait for another run, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// How long each waits; zero: none does.
    pub time: Duration,
    /// How many wait at once, within the slots that no run has.
    pub sandboxes: usize,
    /// The most memory that they may have together, in bytes, as the engine measures it.
    pub memory_bytes: u64,
}

impl KeepAlive {
    /// No sandbox waits.
    pub const OFF: Self = Self { time: Duration::ZERO, sandboxes: 0, memory_bytes: 0 };
}

/// Whether the sandbox of a run that is about to end as `finish` is to wait for the session's next run; told by an event
/// of the run, since nothing comes behind its end.
pub(crate) async fn is_to_wait(attempt: &Attempt, finish: &Finish, hold: &Hold) -> Result<bool, Halt> {
    let ctx = &attempt.ctx;
    let time = ctx.config.keep_alive.time;
    if time.is_zero() || finish.status != RunStatus::Succeeded {
        return Ok(false);
    }
    let progress = attempt.progress().await?;
    if !progress.and_then(|progress| progress.outcome).is_some_and(|outcome| outcome.kept) {
        return Ok(false);
    }
    let (store, run) = (&ctx.store, &attempt.run.id);
    if ctx.insist("look for open model calls", move || store.has_open_calls(run)).await?
        || ctx.insist("ask who is drained", move || store.drained()).await?.has(&ctx.config.server)
    {
        return Ok(false);
    }
    let data = json!({ "keep_alive_s": time.as_secs() });
    attempt.tell(hold.sandbox(), EventKind::SandboxKept, data).await
}

/// Puts the sandbox of a run that is about to end where the session's next run finds it: that one may be claimed as soon as the end
/// is written. Nobody else takes it before [`begin`].
pub(crate) fn put_by(attempt: &Attempt, hold: Hold) {
    attempt.ctx.kept.put(Waiting {
        hold,
        session: attempt.run.session.clone(),
        spec: attempt.run.spec.clone(),
        memory_bytes: 0,
        since: Instant::now(),
        seen: None,
        watched: None,
    });
}

/// Has it wait, now that the run's end is written, unless the session's next run has it already. Without one it does nothing.
pub(crate) fn begin(attempt: &Attempt) {
    let ctx = &attempt.ctx;
    if !ctx.kept.has(&attempt.run.session) {
        return;
    }
    let taken = CancellationToken::new();
    // It has the place of the run that has ended, and not another one beside it.
    attempt.give_back_slot();
    let Some(sandbox) = ctx.kept.watched(&attempt.run.session, taken.clone().drop_guard()) else { return };
    info!(sandbox.id = %sandbox, "sandbox {sandbox} waits for another run of its session");
    while ctx.kept.count() > ctx.config.keep_alive.sandboxes {
        end_oldest(ctx, "more wait than may");
    }
    let watched = watch::Watched { sandbox, session: attempt.run.session.clone(), cap: attempt.cap() };
    ctx.tracker.spawn(watch::watch(Arc::clone(ctx), watched, taken).instrument(info_span!("kept")));
}

/// Leaves it to whoever looks for sandboxes that nobody needs: the run's end was not written.
pub(crate) fn leave(attempt: &Attempt) {
    drop(attempt.ctx.kept.take_of(&attempt.run.session));
}

/// Ends those that have no place beside the runs in hand, of which the caller's is one, the oldest first. It waits for none.
pub(crate) fn make_room(ctx: &Arc<Context>) {
    let in_hand = ctx.slots_taken.load(Ordering::Relaxed);
    while ctx.kept.count() > ctx.config.slots.saturating_sub(in_hand) {
        end_oldest(ctx, "a run needs its place");
    }
}

fn end_oldest(ctx: &Arc<Context>, why: &'static str) {
    if let Some(waiting) = ctx.kept.take_oldest() {
        end_later(ctx, waiting, why);
    }
}

/// Takes a sandbox that waited away, in the background.
fn end_later(ctx: &Arc<Context>, waiting: Waiting, why: &'static str) {
    let hold = waiting.hold;
    info!(sandbox.id = %hold.sandbox(), "sandbox {} waits no longer: {why}", hold.sandbox());
    let shared = Arc::clone(ctx);
    ctx.tracker.spawn(async move { teardown::retire_later(&shared, hold).await });
}
