//! Brings store, engine and directories together again: at the start, and at intervals.
//!
//! Whatever exists outside is listed first and [`Holds`](crate::holds::Holds) is asked afterwards, so that what a live
//! run has made meanwhile is never taken for an orphan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caisson_domain::id::{SandboxId, SessionId};
use caisson_sandbox::{EngineError, OwnedSandbox};
use tracing::{info, warn};

use crate::context::{Backoff, Context, Halt, described};
use crate::dirs::blocking;
use crate::holds::Hold;
use crate::slots::{Found, Origin, launch};
use crate::teardown;

/// Waits for the engine, takes over the runs of the process before this one, and removes what nobody needs. Only then
/// may runs be claimed.
pub(crate) async fn settle_in(ctx: &Arc<Context>) -> Result<(), Halt> {
    let owned = owned_by_and_by(ctx).await?;
    let server = &ctx.config.server;
    let store = &ctx.store;
    let claims = loop {
        match ctx.insist("adopt runs", move || store.adopt(server)).await {
            Ok(claims) => break claims,
            Err(Halt::Shutdown) => return Err(Halt::Shutdown),
            // Somebody has to mend the database, but need not start the server again afterwards.
            Err(Halt::Corrupt(_)) => ctx.pause(ctx.timing().retry_most).await?,
        }
    };
    for claimed in claims {
        let hold = claimed
            .run
            .sandbox
            .as_ref()
            .and_then(|sandbox| ctx.holds.take(sandbox, Some(&claimed.run.session)));
        let found = hold.map(|hold| {
            let liveness = owned.iter().find(|owned| &owned.id == hold.sandbox()).map(|owned| owned.liveness);
            Found { hold, liveness }
        });
        // More than there are slots now that the number was lowered: they keep their sandboxes all the same.
        let slot = Arc::clone(&ctx.slots).try_acquire_owned().ok();
        launch(ctx, claimed, Origin::Adopted(found), slot);
    }
    // With the list from before the adoption: an engine that goes away only now must not let claims through while a
    // sandbox of an earlier process may still use a workspace.
    sweep(ctx, owned).await
}

/// Passes at intervals, and whenever somebody asks for one, until the server goes down.
pub(crate) async fn keep(ctx: &Context) -> Result<(), Halt> {
    loop {
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
            () = ctx.reconcile.notified() => {}
            () = tokio::time::sleep(ctx.timing().reconcile) => {}
        }
        match ctx.engine.list_owned().await {
            Ok(owned) => sweep(ctx, owned).await?,
            Err(error) => cannot_list(ctx, &error),
        }
    }
}

async fn owned_by_and_by(ctx: &Context) -> Result<Vec<OwnedSandbox>, Halt> {
    let mut backoff = Backoff::new(ctx.timing());
    loop {
        match ctx.engine.list_owned().await {
            Ok(owned) => return Ok(owned),
            Err(error) => {
                cannot_list(ctx, &error);
                ctx.pause(backoff.next()).await?;
            }
        }
    }
}

fn cannot_list(ctx: &Context, error: &EngineError) {
    warn!(error = described(error), "could not list the engine's sandboxes");
    ctx.health.suspect();
}

/// Destroys every sandbox, and removes every directory, that no run needs. Fails at a shutdown only.
async fn sweep(ctx: &Context, owned: Vec<OwnedSandbox>) -> Result<(), Halt> {
    let (store, server) = (&ctx.store, &ctx.config.server);
    let rows = match ctx.insist("list sandboxes", move || store.sandboxes_of(server)).await {
        Ok(rows) => rows,
        Err(Halt::Shutdown) => return Err(Halt::Shutdown),
        Err(Halt::Corrupt(_)) => Vec::new(),
    };
    let dirs = ctx.dirs.clone();
    let left = blocking(move || dirs.sandboxes()).await.unwrap_or_else(|error| {
        warn!(error = described(&error), "could not list the directories of sandboxes");
        BTreeSet::new()
    });
    let mut known: BTreeMap<SandboxId, Option<SessionId>> = left.into_iter().map(|id| (id, None)).collect();
    known.extend(ctx.holds.stuck().into_iter().map(|id| (id, None)));
    known.extend(owned.into_iter().map(|owned| (owned.id, owned.session)));
    known.extend(rows.into_iter().map(|row| (row.id, Some(row.session))));
    for (sandbox, session) in known {
        if ctx.cancel.is_cancelled() {
            return Err(Halt::Shutdown);
        }
        if let Some(hold) = ctx.holds.take(&sandbox, session.as_ref()) {
            reconcile_one(ctx, hold).await?;
        }
    }
    Ok(())
}

async fn reconcile_one(ctx: &Context, hold: Hold) -> Result<(), Halt> {
    let (store, sandbox) = (&ctx.store, hold.sandbox());
    match ctx.insist("look for a sandbox's run", move || store.door_run(sandbox)).await {
        Ok(None) => {
            info!(sandbox.id = %sandbox, "removing sandbox {sandbox}: no run needs it");
            teardown::destroy(ctx, hold).await;
        }
        // A run that another worker has now, or one of ours that is about to go back to the queue.
        Ok(Some(_)) => hold.put_back(),
        Err(Halt::Shutdown) => return Err(Halt::Shutdown),
        // Nobody knows whose it is: its session gets no other one.
        Err(Halt::Corrupt(_)) => drop(hold),
    }
    Ok(())
}
