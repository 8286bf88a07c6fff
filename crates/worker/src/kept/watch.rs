//! Watches over a sandbox that waits, until somebody has it or it ends.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::id::{SandboxId, SessionId};
use caisson_store::{SandboxState, StoreError, Topic};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::end_later;
use crate::attend::ended;
use crate::context::{Context, described};
use crate::disk::Cap;
use crate::disk::places::{Cut, Place};
use crate::guard::watch_room;
use crate::teardown;

const MIB: u64 = 1024 * 1024;
/// The second look at what a sandbox uses comes after this part of the time between two of them; each later one after twice as
/// long, until it is all of that time.
const FIRST_LOOK_PARTS: u32 = 8;
/// So many looks in a row of which the engine answers none end a sandbox: nobody would see what goes on in it.
const UNSEEN_LOOKS: u32 = 3;

/// A sandbox that waits, seen by whoever watches it.
pub(super) struct Watched {
    pub(super) sandbox: SandboxId,
    pub(super) session: SessionId,
    /// The most that the session may hold.
    pub(super) cap: Cap,
}

/// Why a sandbox waits no longer.
enum Why {
    /// The server goes down. Its doors close as well, so that the shim would not hear of it.
    Shutdown,
    /// It does what it may not while it waits, so nothing in it is asked.
    Harmful(&'static str),
    /// Anything else.
    Told(&'static str),
}

/// Watches over a sandbox until it is `taken`, and has it end when its time is over, when it is told to, when it has ended by itself,
/// when something lives or works in it that may not, when its disk is full, when the server is drained and when it goes down.
pub(super) async fn watch(ctx: Arc<Context>, watched: Watched, taken: CancellationToken) {
    let Watched { sandbox, session, cap } = watched;
    let until = Instant::now() + ctx.config.keep_alive.time;
    let mut changes = ctx.store.watch(Topic::Sandbox(sandbox.clone()));
    // It counts as a user of the disk as long as there is anything of it.
    let place = ctx.places.enter(&sandbox);
    let mut ending = pin!(ended(&ctx, &sandbox));
    let mut looking = pin!(look_on(&ctx, &sandbox));
    let mut filling = pin!(fills(&ctx, (&session, cap), &place));
    let why = loop {
        tokio::select! {
            biased;
            () = taken.cancelled() => return,
            () = ctx.cancel.cancelled() => break Why::Shutdown,
            _end = &mut ending => break Why::Told("it has ended"),
            () = sleep_until(until) => break Why::Told("its time is over"),
            why = &mut looking => break Why::Harmful(why),
            why = &mut filling => break Why::Harmful(why),
            () = changes.changed(ctx.timing().run_poll) => match is_to_end(&ctx, &sandbox).await {
                Ok(Some(why)) => break Why::Told(why),
                Ok(None) => {}
                Err(error) => debug!(sandbox.id = %sandbox, error = described(&error), "could not look at sandbox {sandbox}, which waits"),
            },
        }
    };
    // Somebody may have taken it in this very moment.
    let Some(waiting) = ctx.kept.take_sandbox(&sandbox) else { return };
    match why {
        Why::Told(why) => return end_later(&ctx, waiting, why),
        Why::Shutdown => {
            info!(sandbox.id = %sandbox, "sandbox {sandbox} waits no longer: the server goes down");
        }
        Why::Harmful(why) => warn!(sandbox.id = %sandbox, "sandbox {sandbox} waits no longer: {why}"),
    }
    teardown::destroy(&ctx, waiting.hold).await;
}

/// Looks at what the sandbox uses, again and again, and sees to it that those that wait do not have too much memory together; why it
/// may not wait any longer.
async fn look_on(ctx: &Arc<Context>, sandbox: &SandboxId) -> &'static str {
    let most = ctx.timing().kept_look;
    let mut wait = most / FIRST_LOOK_PARTS;
    let (mut unseen, mut known) = (0, false);
    loop {
        match ctx.engine.usage(sandbox).await {
            Ok(usage) => {
                (unseen, known) = (0, true);
                if let Some(why) = ctx.kept.look(sandbox, &usage) {
                    return why;
                }
            }
            Err(error) => {
                debug!(sandbox.id = %sandbox, error = described(&error), "could not measure sandbox {sandbox}, which waits");
                unseen += 1;
                if unseen == UNSEEN_LOOKS {
                    return "the engine does not tell what goes on in it";
                }
                if !known {
                    // It is taken to have what it may have.
                    ctx.kept.note_memory(sandbox, |spec| u64::from(spec.resources.memory_mib) * MIB);
                }
            }
        }
        while let Some(oldest) = ctx.kept.take_beyond(ctx.config.keep_alive.memory_bytes) {
            end_later(ctx, oldest, "those that wait take too much memory");
        }
        sleep(wait).await;
        wait = wait.saturating_mul(2).min(most).max(Duration::from_millis(1));
    }
}

/// Watches what the session has on the disk; why its sandbox may not wait any longer.
async fn fills(ctx: &Context, room: (&SessionId, Cap), place: &Place) -> &'static str {
    let watching = async {
        watch_room(ctx, room, place).await;
        std::future::pending().await
    };
    let cut = tokio::select! {
        cut = place.is_cut() => cut,
        cut = watching => cut,
    };
    match cut {
        Cut::Time | Cut::Full(..) => "its session has no disk space left",
        Cut::Floor { .. } => "the server's disk runs full",
    }
}

async fn is_to_end(ctx: &Context, sandbox: &SandboxId) -> Result<Option<&'static str>, StoreError> {
    let row = ctx.store.sandbox(sandbox).await?;
    if row.is_none_or(|row| row.state >= SandboxState::Stopping) {
        return Ok(Some("it was told to end"));
    }
    let drained = ctx.store.drained().await?.has(&ctx.config.server);
    Ok(drained.then_some("the server is drained"))
}
