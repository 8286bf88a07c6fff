//! Claims runs, places them in sandboxes, waits for their ends, and clears up behind them and behind every crash.
//!
//! The worker meets API and gateway only in the store. It never talks to what is inside a sandbox: it makes one, learns
//! from the store what the gateway heard from it, and from the engine how it fares. Its parts, from the outside in:
//!
//! - `reconcile` takes over what the process before this one left, and then finds orphans at intervals;
//! - `slots` claims runs and sees each through: `place`, `attend`, `judge`, and the verdict written down;
//! - `unowned` takes a run up again whose lease was over while the store was away;
//! - `teardown` takes the sandboxes of finished runs away, in the background and bounded;
//! - `kept` has those of them that wait for another run of their session;
//! - `health` says whether runs can be placed at all.
//!
//! # What holds at every instant
//! A run's verdict is written before its sandbox goes, so a crash between the two leaves an orphan, never a run without an
//! end. A run goes back to the queue only after the grants of its sandbox are revoked, so no agent is started twice. A
//! sandbox is written down before the engine makes it, and a sandbox's directories are found by their names, so whatever
//! a crash leaves is found again.

mod attempt;
mod attend;
mod config;
mod context;
mod dirs;
mod disk;
mod guard;
mod health;
mod holds;
mod image_choice;
mod judge;
mod kept;
mod looks;
mod place;
mod pressure;
mod reconcile;
mod removals;
mod retention;
mod slots;
mod steps;
mod teardown;
mod trash;
mod unowned;

use std::sync::Arc;

use caisson_domain::server::PlacementProblem;
use caisson_sandbox::Engine;
use caisson_store::{Random, Store, StoreError};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

pub use attend::KILL_GRACE_S;
pub use config::{ConfigError, SLOTS, SLOTS_DEFAULT, Timing, UidPlan, WorkerConfig};
pub use context::{STARTS, TEARDOWNS};
pub use dirs::{DirError, door_dir};
pub use disk::floor::{END_WAIT, FLOOR_PARTS, FREE_FILES, GROWTH_BYTES, GROWTH_FILES, NEAR_TIMES};
pub use disk::places::GROWTH_WINDOW;
pub use disk::{
    BYTES_PER_FILE, DEPTH, DiskCaps, FULL_BYTES, FULL_FILES, JOURNAL_VOLUME_MIB, TOOL_S, VolumeTools,
};
pub use health::{DISK_RESUME_PARTS, Probe};
pub use judge::TIMEOUT_SLACK_MS;
pub use kept::KeepAlive;
pub use retention::{Collector, REMOVALS, Removal};
pub use steps::{Step, StepHook};

use crate::context::Context;
use crate::dirs::Dirs;
use crate::disk::places::Places;
use crate::health::Health;
use crate::holds::Holds;
use crate::kept::Shelf;
use crate::pressure::Pressure;

/// What a worker works with.
#[derive(Clone)]
pub struct Parts {
    /// Where it meets the rest of the server.
    pub store: Store,
    /// What makes its sandboxes.
    pub engine: Arc<dyn Engine>,
    /// Checks the engine; none means that only agent and disk are checked.
    pub probe: Option<Arc<dyn Probe>>,
    /// Everything that the worker does in the background runs here.
    pub tracker: TaskTracker,
    /// Ends the worker. Sandboxes go on: the next start takes them over.
    pub cancel: CancellationToken,
    /// Told of every step; none in the product.
    pub hook: Option<Arc<dyn StepHook>>,
}

/// Why a worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The configuration must change.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used; see that the server may write there.
    #[error("the worker's directories cannot be used")]
    Directories(#[from] DirError),
    /// The store does not answer, or must be mended.
    #[error("the store failed while the worker was starting")]
    Store(#[from] StoreError),
}

/// A running worker.
pub struct Worker {
    ctx: Arc<Context>,
}

impl Worker {
    /// Checks the configuration, registers the server, checks its health once and tells the store; then sees to
    /// everything else in the background, until `parts.cancel` is cancelled.
    ///
    /// The background begins with the runs of the process before this one. It waits for an engine that does not answer,
    /// and claims nothing meanwhile.
    ///
    /// # Errors
    /// [`WorkerError`] by what must change.
    /// # Cancel safety
    /// If dropped, the server may be registered; nothing runs in the background.
    pub async fn start(config: WorkerConfig, parts: Parts) -> Result<Self, WorkerError> {
        config.validate()?;
        let state_dir = config.state_dir.clone();
        let caps = config.disk_caps.clone();
        let dirs = dirs::blocking(move || Dirs::open(&state_dir, caps)).await?;
        let ctx = Arc::new(Context {
            slots: Arc::new(Semaphore::new(config.slots)),
            slots_taken: Arc::default(),
            starts: Arc::new(Semaphore::new(STARTS)),
            pressure: Pressure::of_the_machine(),
            teardowns: Arc::new(Semaphore::new(TEARDOWNS)),
            config,
            store: parts.store,
            engine: parts.engine,
            probe: parts.probe,
            tracker: parts.tracker,
            cancel: parts.cancel,
            hook: parts.hook,
            dirs,
            holds: Holds::new(),
            kept: Shelf::default(),
            health: Health::new(),
            places: Places::default(),
            near_floor: watch::Sender::new(false),
            reconcile: Notify::new(),
            in_hand: unowned::InHand::default(),
            random: Random::system(),
        });
        ctx.store.register_server(&ctx.config.server).await?;
        health::check(&ctx).await?;
        let (tended, watched, floored) = (Arc::clone(&ctx), Arc::clone(&ctx), Arc::clone(&ctx));
        ctx.tracker.spawn(async move { health::keep(&watched).await }.instrument(info_span!("health")));
        ctx.tracker.spawn(
            async move {
                // It ends with the server only.
                disk::floor::keep(&floored).await.ok();
            }
            .instrument(info_span!("floor")),
        );
        let collecting = Arc::clone(&ctx);
        ctx.tracker.spawn(
            async move {
                // It ends with the server only.
                retention::keep(&collecting).await.ok();
            }
            .instrument(info_span!("retention")),
        );
        let removing = Arc::clone(&ctx);
        ctx.tracker.spawn(
            async move {
                // It ends with the server only.
                removals::keep(&removing).await.ok();
            }
            .instrument(info_span!("removals")),
        );
        ctx.tracker.spawn(async move { tend(&tended).await });
        Ok(Self { ctx })
    }

    /// What kept this server from placing runs when it was last checked; empty when nothing did.
    #[must_use]
    pub fn problems(&self) -> Vec<PlacementProblem> {
        self.ctx.health.problems()
    }
}

/// Sees to the runs left, then to new ones and to orphans. Ends when the server goes down.
async fn tend(ctx: &Arc<Context>) {
    if reconcile::settle_in(ctx).await.is_ok() {
        // Both end with the server only.
        let (claimed, reconciled) = tokio::join!(slots::claim_runs(ctx), reconcile::keep(ctx));
        tracing::debug!(?claimed, ?reconciled, "the worker has ended");
    }
}
