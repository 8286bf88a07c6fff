//! Brings store, engine and directories together again: at the start, and at intervals.
//!
//! Whatever exists outside is listed first and [`Holds`](crate::holds::Holds) is asked afterwards, so that what a live
//! run has made meanwhile is never taken for an orphan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caisson_domain::id::{SandboxId, SessionId};
use caisson_sandbox::OwnedSandbox;
use tracing::{info, warn};

use crate::context::{Asked, Backoff, Context, Halt, asked, described};
use crate::dirs::blocking;
use crate::holds::Hold;
use crate::slots::{Found, Origin, launch};
use crate::teardown;
use crate::unowned::take_up_unowned;

/// Waits for the engine, takes over the runs of the process before this one, and removes what nobody needs. Only then
/// may runs be claimed.
pub(crate) async fn settle_in(ctx: &Arc<Context>) -> Result<(), Halt> {
    let owned = owned_by_and_by(ctx).await?;
    let server = &ctx.config.server;
    let store = &ctx.store;
    let Asked { answer: claims, at } = loop {
        match ctx.insist("adopt runs", move || asked(Box::pin(store.adopt(server)))).await {
            Ok(claims) => break claims,
            Err(Halt::Shutdown) => return Err(Halt::Shutdown),
            // Somebody has to mend the database, but need not start the server again afterwards.
            Err(Halt::Corrupt(_)) => ctx.pause(ctx.timing().retry_most).await?,
        }
    };
    for claimed in claims {
        let Some(in_hand) = ctx.in_hand.note(&claimed.run.id, claimed.run.attempt) else { continue };
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
        launch(ctx, Asked { answer: claimed, at }, Origin::Adopted(found), in_hand, slot);
    }
    // With the list from before the adoption: an engine that goes away only now must not let claims through while a
    // sandbox of an earlier process may still use a workspace.
    sweep(ctx, owned).await
}

/// Passes at intervals, and whenever somebody asks for one, until the server goes down.
pub(crate) async fn keep(ctx: &Arc<Context>) -> Result<(), Halt> {
    let mut listing = Listing::default();
    loop {
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
            () = ctx.reconcile.notified() => {}
            () = tokio::time::sleep(ctx.timing().reconcile) => {}
        }
        if let Some(owned) = listing.list(ctx).await {
            take_up_unowned(ctx, &owned).await?;
            sweep(ctx, owned).await?;
        }
    }
}

pub(crate) async fn owned_by_and_by(ctx: &Context) -> Result<Vec<OwnedSandbox>, Halt> {
    let mut backoff = Backoff::new(ctx.timing());
    let mut listing = Listing::default();
    loop {
        if let Some(owned) = listing.list(ctx).await {
            return Ok(owned);
        }
        ctx.pause(backoff.next()).await?;
    }
}

/// Asks the engine for its sandboxes, and logs that it does not answer only when that begins and when it is over.
#[derive(Debug, Default)]
struct Listing {
    failing: bool,
}

impl Listing {
    async fn list(&mut self, ctx: &Context) -> Option<Vec<OwnedSandbox>> {
        let listed = ctx.engine.list_owned().await;
        let news = self.is_news(listed.is_err());
        match listed {
            Ok(owned) => {
                if news {
                    info!("the engine lists its sandboxes again");
                }
                Some(owned)
            }
            Err(error) => {
                if news {
                    warn!(error = described(&error), "could not list the engine's sandboxes, trying on");
                }
                ctx.health.suspect();
                None
            }
        }
    }

    fn is_news(&mut self, failing: bool) -> bool {
        std::mem::replace(&mut self.failing, failing) != failing
    }
}

/// Destroys every sandbox, and removes every directory, that no run needs. Fails at a shutdown only.
async fn sweep(ctx: &Context, owned: Vec<OwnedSandbox>) -> Result<(), Halt> {
    let (store, server) = (&ctx.store, &ctx.config.server);
    let rows = match ctx.insist("list sandboxes", move || store.sandboxes_of(server)).await {
        Ok(rows) => Some(rows),
        Err(Halt::Shutdown) => return Err(Halt::Shutdown),
        // Nobody knows which sessions have a sandbox then.
        Err(Halt::Corrupt(_)) => None,
    };
    let in_use: Option<BTreeSet<SessionId>> =
        rows.as_ref().map(|rows| rows.iter().map(|row| row.session.clone()).collect());
    let dirs = ctx.dirs.clone();
    let left = blocking(move || dirs.sandboxes()).await.unwrap_or_else(|error| {
        warn!(error = described(&error), "could not list the directories of sandboxes");
        BTreeSet::new()
    });
    let mut known: BTreeMap<SandboxId, Option<SessionId>> = left.into_iter().map(|id| (id, None)).collect();
    known.extend(ctx.holds.stuck().into_iter().map(|id| (id, None)));
    known.extend(owned.into_iter().map(|owned| (owned.id, owned.session)));
    known.extend(rows.into_iter().flatten().map(|row| (row.id, Some(row.session))));
    for (sandbox, session) in known {
        if ctx.cancel.is_cancelled() {
            return Err(Halt::Shutdown);
        }
        if let Some(hold) = ctx.holds.take(&sandbox, session.as_ref()) {
            reconcile_one(ctx, hold).await?;
        }
    }
    if let Some(in_use) = in_use {
        unmount_unused(ctx, in_use).await;
    }
    Ok(())
}

/// Unmounts the volumes of sessions that have no sandbox: a crash may have left them.
async fn unmount_unused(ctx: &Context, in_use: BTreeSet<SessionId>) {
    let (dirs, holds) = (ctx.dirs.clone(), ctx.holds.clone());
    let unmounted = blocking(move || {
        for session in dirs.mounted_sessions()?.iter().filter(|session| !in_use.contains(session)) {
            dirs.unmount_session(session, || holds.has_session(session))?;
        }
        Ok(())
    });
    if let Err(error) = unmounted.await {
        warn!(error = described(&error), "could not unmount the volumes of sessions without a sandbox");
    }
}

async fn reconcile_one(ctx: &Context, hold: Hold) -> Result<(), Halt> {
    let (store, sandbox) = (&ctx.store, hold.sandbox());
    match ctx.insist("look for a sandbox's run", move || store.is_sandbox_needed(sandbox)).await {
        // Whose it is, that one knows; this process ends in a moment.
        Ok(false) if is_displaced(ctx).await? => hold.put_back(),
        Ok(false) => {
            info!(sandbox.id = %sandbox, "removing sandbox {sandbox}: no run needs it");
            teardown::destroy(ctx, hold).await;
        }
        // A run that another worker has now, or one of ours that is about to go back to the queue.
        Ok(true) => hold.put_back(),
        Err(Halt::Shutdown) => return Err(Halt::Shutdown),
        // Nobody knows whose it is: its session gets no other one.
        Err(Halt::Corrupt(_)) => drop(hold),
    }
    Ok(())
}

/// Whether another place is this server by now: the store takes nothing down from this one then, and so it destroys nothing.
async fn is_displaced(ctx: &Context) -> Result<bool, Halt> {
    let (store, server) = (&ctx.store, &ctx.config.server);
    let looking =
        ctx.insist("look whether this server is in one place", move || store.heard_elsewhere(server));
    match looking.await {
        Ok(heard) => Ok(heard.is_some()),
        Err(Halt::Shutdown) => Err(Halt::Shutdown),
        // Nobody knows.
        Err(Halt::Corrupt(_)) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_stays_away_is_news_once_and_so_is_its_return() {
        let mut listing = Listing::default();
        let news: Vec<bool> =
            [false, true, true, true, false, false, true].map(|failing| listing.is_news(failing)).to_vec();
        assert_eq!(news, [false, true, false, false, true, false, true]);
    }
}
