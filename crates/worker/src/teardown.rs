//! Takes sandboxes away. Every function here may be interrupted anywhere: a reconcile pass does the rest.

use std::sync::Arc;

use caisson_domain::id::SandboxId;
use caisson_store::SandboxState;
use tracing::{debug, warn};

use crate::context::{Context, Halt, described};
use crate::dirs::blocking;
use crate::holds::Hold;
use crate::steps::Step;

/// Takes away the sandbox of a finished run: its shim is told to end, waited for shortly, and then everything goes.
pub(crate) async fn retire(ctx: &Context, hold: Hold) {
    if mark(ctx, hold.sandbox(), SandboxState::Stopping).await.is_err() {
        return;
    }
    ctx.step(Step::Stopping).await;
    let ended = tokio::time::timeout(ctx.timing().exit_grace, ctx.engine.wait(hold.sandbox())).await;
    if ended.is_err() {
        debug!(sandbox.id = %hold.sandbox(), "sandbox {} did not end by itself", hold.sandbox());
    }
    destroy(ctx, hold).await;
}

/// Takes away the sandbox of a run whose agent was not started, before the run goes back to the queue.
///
/// Its grants go first: whatever may still live in it can neither have the start of an agent acknowledged nor reach the
/// model API, even if the engine cannot be reached to destroy it.
pub(crate) async fn withdraw(ctx: &Context, hold: Hold) -> Result<(), Halt> {
    mark(ctx, hold.sandbox(), SandboxState::Destroyed).await?;
    ctx.step(Step::Stopping).await;
    destroy(ctx, hold).await;
    Ok(())
}

/// Destroys a sandbox and removes what is left of it; `false` if that failed, and then the sandbox is stuck.
pub(crate) async fn destroy(ctx: &Context, hold: Hold) -> bool {
    let sandbox = hold.sandbox();
    if let Err(error) = ctx.engine.destroy(sandbox).await {
        warn!(sandbox.id = %sandbox, error = described(&error), "could not destroy sandbox {sandbox}; a later pass tries again");
        ctx.health.suspect();
        return false;
    }
    ctx.step(Step::Removed).await;
    if mark(ctx, sandbox, SandboxState::Destroyed).await.is_err() {
        return false;
    }
    ctx.step(Step::Destroyed).await;
    let (dirs, id) = (ctx.dirs.clone(), sandbox.clone());
    if let Err(error) = blocking(move || dirs.remove(&id)).await {
        warn!(sandbox.id = %sandbox, error = described(&error), "could not remove the directories of sandbox {sandbox}");
    }
    if let Some(session) = hold.session() {
        let (dirs, id) = (ctx.dirs.clone(), session.clone());
        // No other sandbox of the session is made before this one is let go.
        if let Err(error) = blocking(move || dirs.unmount_session(&id, || false)).await {
            warn!(session.id = %session, error = described(&error), "could not unmount the volume of session {session}; a later pass tries again");
        }
    }
    ctx.step(Step::Cleared).await;
    hold.release();
    true
}

async fn mark(ctx: &Context, sandbox: &SandboxId, state: SandboxState) -> Result<(), Halt> {
    let store = &ctx.store;
    let write = move || store.set_sandbox_state(sandbox, state);
    // `false` means that it is there already.
    ctx.insist("write down how far a sandbox has come", write).await.map(|_moved| ())
}

/// Takes the sandbox of a finished run away in the background, as soon as one of the few places for that is free.
pub(crate) async fn retire_later(ctx: &Arc<Context>, hold: Hold) {
    let Ok(place) = Arc::clone(&ctx.teardowns).acquire_owned().await else { return };
    let shared = Arc::clone(ctx);
    ctx.tracker.spawn(async move {
        retire(&shared, hold).await;
        drop(place);
    });
}
