//! Watches over a sandbox that waits, until somebody has it or it ends.

use std::pin::pin;
use std::sync::Arc;

use caisson_domain::id::SandboxId;
use caisson_store::{SandboxState, StoreError, Topic};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::end_later;
use crate::attend::ended;
use crate::context::{Context, described};
use crate::teardown;

const MIB: u64 = 1024 * 1024;

/// Why a sandbox waits no longer.
enum Why {
    /// The server goes down. Its doors close as well, so that the shim would not hear of it.
    Shutdown,
    /// Anything else.
    Told(&'static str),
}

/// Watches over a sandbox until it is `taken`, and has it end when its time is over, when it is told to, when it has ended by itself,
/// when the server is drained and when it goes down.
pub(super) async fn watch(ctx: Arc<Context>, sandbox: SandboxId, taken: CancellationToken) {
    let until = Instant::now() + ctx.config.keep_alive.time;
    let mut changes = ctx.store.watch(Topic::Sandbox(sandbox.clone()));
    let mut ending = pin!(ended(&ctx, &sandbox));
    let mut measuring = pin!(measure(&ctx, &sandbox));
    let mut measured = false;
    let why = loop {
        tokio::select! {
            biased;
            () = taken.cancelled() => return,
            () = ctx.cancel.cancelled() => break Why::Shutdown,
            _end = &mut ending => break Why::Told("it has ended"),
            () = tokio::time::sleep_until(until) => break Why::Told("its time is over"),
            () = &mut measuring, if !measured => {
                measured = true;
                while let Some(oldest) = ctx.kept.take_beyond(ctx.config.keep_alive.memory_bytes) {
                    end_later(&ctx, oldest, "those that wait take too much memory");
                }
            }
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
        Why::Told(why) => end_later(&ctx, waiting, why),
        Why::Shutdown => {
            info!(sandbox.id = %sandbox, "sandbox {sandbox} waits no longer: the server goes down");
            teardown::destroy(&ctx, waiting.hold).await;
        }
    }
}

/// Notes what the sandbox takes; where the engine does not tell, what it may take.
async fn measure(ctx: &Context, sandbox: &SandboxId) {
    let usage = ctx.engine.usage(sandbox).await;
    let usage = usage.inspect_err(|error| {
        debug!(sandbox.id = %sandbox, error = described(error), "could not measure sandbox {sandbox}, which waits");
    });
    ctx.kept.note_memory(sandbox, |spec| {
        usage.map_or(u64::from(spec.resources.memory_mib) * MIB, |usage| usage.memory_bytes)
    });
}

async fn is_to_end(ctx: &Context, sandbox: &SandboxId) -> Result<Option<&'static str>, StoreError> {
    let row = ctx.store.sandbox(sandbox).await?;
    if row.is_none_or(|row| row.state >= SandboxState::Stopping) {
        return Ok(Some("it was told to end"));
    }
    let drained = ctx.store.drained().await?.has(&ctx.config.server);
    Ok(drained.then_some("the server is drained"))
}
