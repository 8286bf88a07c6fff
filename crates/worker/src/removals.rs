//! Removes what is left of sessions that somebody has deleted, or that have expired: files, and rows step by step. What is left is
//! written down until it is gone, so that a crash forgets nothing.

use caisson_domain::retention::Kept;
use caisson_store::{FilesLeft, StoreError, Topic};
use tracing::{info, warn};

use crate::context::{Context, Halt, described};
use crate::retention::{Collector, remove_volume};

/// Looks at once, whenever something of this server changes, and at intervals, until the server goes down.
pub(crate) async fn keep(ctx: &Context) -> Result<(), Halt> {
    let collector = Collector::of(ctx);
    let mut watch = ctx.store.watch(Topic::Server(ctx.config.server.clone()));
    loop {
        if let Err(error) = pass(ctx, &collector).await {
            warn!(
                error = described(&error),
                "could not remove all of the deleted sessions, trying again later"
            );
        }
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(Halt::Shutdown),
            () = watch.changed(ctx.timing().retention) => {}
        }
    }
}

/// What cannot be removed now is left for a later pass.
async fn pass(ctx: &Context, collector: &Collector) -> Result<(), StoreError> {
    for server in collector.servers(Kept::Artifacts).await? {
        for files in ctx.store.files_left(&server).await? {
            let gone = match &files {
                FilesLeft::Volume(session) if server == ctx.config.server => {
                    remove_volume(&ctx.dirs, &ctx.holds, session).await
                }
                // On the machine of one that was forgotten: nobody can remove it, and it would keep what is behind it.
                FilesLeft::Volume(_) => true,
                FilesLeft::Artifacts(run) => collector.remove_artifacts(&server, vec![run.clone()]).await,
            };
            if gone {
                ctx.store.files_removed(&server, &files).await?;
                let how = match &files {
                    FilesLeft::Volume(_) if server != ctx.config.server => "left to whoever has that machine",
                    FilesLeft::Volume(_) | FilesLeft::Artifacts(_) => "removed",
                };
                info!("files of a deleted session on server {server} are {how}: {files:?}");
            }
        }
    }
    // Each step is a transaction, and others come between.
    while !ctx.cancel.is_cancelled() && ctx.store.remove_some().await? {}
    Ok(())
}
