//! The one door of a sandbox.
//!
//! Each sandbox has a unix socket of its own, so identity is which socket; two grants are the second hurdle.
//! Behind the control grant lie the shim's paths (work, journal, inputs, deltas, artifacts), behind the agent
//! grant the model API, the run's repository, the MCP servers of its workflow and the hosts that tools may reach. Every real credential is added here and nowhere else, usage
//! is counted here from the model API's own replies, and pushes are recorded here from the git traffic
//! itself.
//!
//! The gateway meets `api` and `worker` only in the store.

mod aside;
mod body;
mod bounds;
mod config;
mod control;
mod credentials;
mod descriptors;
mod doors;
mod egress;
mod first;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod git;
mod grants;
mod hold;
mod mcp;
mod members;
mod model;
mod noted;
mod problem;
mod secret_rules;
mod serve;
mod shared;
#[cfg(test)]
mod tests;
mod told;
mod way;
mod work;

use std::sync::Arc;

use caisson_store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bounds::Bounds;
pub use crate::config::{
    GatewayConfig, GatewayError, GitCredential, GitIdentity, GitUpstreams, ModelCredential, ModelUpstream,
    PushRules, find_program, secrets,
};
pub use crate::credentials::look_for_secrets;
use crate::doors::Doors;
use crate::egress::{Dial, EgressSide, Resolve};
pub use crate::egress::{EgressCredential, EgressUpstreams};
use crate::mcp::McpSide;
pub use crate::mcp::McpUpstreams;
use crate::noted::Noted;
pub use crate::secret_rules::{
    KNOWN_TEXTS, KnownTexts, SECRET_RULES, SECRET_RULES_BYTES, SecretRule, SecretRuleChange, SecretRulesError,
};
use crate::shared::Shared;

/// A gateway that has started. Its work goes on in tasks of the tracker it was given.
#[derive(Debug)]
pub struct Gateway(());

impl Gateway {
    /// Looks whether a gateway could start with these upstreams; reaches nothing and changes nothing.
    ///
    /// # Errors
    /// As [`Gateway::start`], for what the upstreams have to do with.
    pub fn check(
        model: &ModelUpstream,
        git: &GitUpstreams,
        egress: &EgressUpstreams,
        mcp: &McpUpstreams,
    ) -> Result<(), GatewayError> {
        model::ModelSide::new(model, 0)?;
        git::GitSide::new(
            git.clone(),
            git::Beside { model, quarantine_dir: None, processes: 0, inspections: 0 },
        )?;
        EgressSide::new(egress, (egress::system(), egress::tcp()))?;
        McpSide::new(mcp, egress::system(), &Bounds::default())?;
        Ok(())
    }

    /// Settles the model calls that an earlier process left pending, begins to ask the git hosts what became of its
    /// pending pushes, opens the doors of this server's living sandboxes and follows the store from then on, until `cancel`: then requests under way have five
    /// seconds to end.
    ///
    /// The store must stay open until the tracker is empty, because ending calls are settled in it. The
    /// process must have installed rustls' default crypto provider before.
    ///
    /// # Errors
    /// [`GatewayError`] if the configuration cannot be used or the store does not answer. A door that cannot
    /// be opened is no error: it is tried again.
    /// # Cancel safety
    /// Safe: if dropped, doors opened so far end with `cancel`.
    pub async fn start(
        config: GatewayConfig,
        store: Store,
        tracker: &TaskTracker,
        cancel: CancellationToken,
    ) -> Result<Self, GatewayError> {
        let bounds = Bounds::default();
        Self::start_bounded(
            config,
            store,
            (tracker.clone(), cancel),
            bounds,
            (egress::system(), egress::tcp()),
        )
        .await
    }

    async fn start_bounded(
        config: GatewayConfig,
        store: Store,
        (tracker, cancel): (TaskTracker, CancellationToken),
        bounds: Bounds,
        (resolve, dial): (Resolve, Dial),
    ) -> Result<Self, GatewayError> {
        let model = model::ModelSide::new(&config.model, bounds.retry_copies_bytes)?;
        let beside = git::Beside {
            model: &config.model,
            quarantine_dir: Some(config.quarantine_dir),
            processes: bounds.local_git,
            inspections: bounds.inspections,
        };
        let git = git::GitSide::new(config.git, beside)?;
        let egress = EgressSide::new(&config.egress, (Arc::clone(&resolve), dial))?;
        let mcp = McpSide::new(&config.mcp, resolve, &bounds)?;
        control::prepare_artifacts(&config.artifacts_dir).await.map_err(GatewayError::Artifacts)?;
        let orphans = store.settle_orphaned_calls(&config.server).await?;
        if orphans > 0 {
            tracing::info!(orphans, "settled {orphans} model calls of an earlier process as estimates");
        }
        let shared = Arc::new(Shared {
            store,
            secrets: config.secrets,
            artifacts_dir: config.artifacts_dir,
            model,
            prices: config.prices,
            git,
            egress,
            mcp,
            credentials: credentials::CredentialSide::default(),
            noted: Noted::default(),
            pushes: Arc::default(),
            identity: config.identity,
            keeps: config.keep_alive,
            bounds,
            tracker: tracker.clone(),
            cancel,
        });
        look_for_secrets(&shared.store, &shared.secrets, &shared.tracker, &shared.cancel).await?;
        // Before a door is open, so that what is pending can only be an earlier process's.
        git::resume(&shared, &config.server).await?;
        let mut doors = Doors::new(shared, config.server, config.doors_dir);
        doors.reconcile().await?;
        tracker.spawn(doors.run());
        Ok(Self(()))
    }
}
