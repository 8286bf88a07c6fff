//! What the worker asks again and again of what only the composition root knows.

use caisson_domain::id::ServerId;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::Store;
use caisson_worker::Probe;

use crate::agents::Agents;
use crate::artifacts::Watched;
use crate::engines::ActiveEngine;
use crate::roles;
use crate::shared_paths::SharedPaths;

/// What keeps this server from placing runs, asked again and again by the worker.
#[derive(Debug)]
pub(crate) struct Checks {
    /// The engine.
    pub engine: ActiveEngine,
    /// Whether it finds the server's files, if it is one that might not.
    pub paths: Option<SharedPaths>,
    /// Installed agents.
    pub agents: Agents,
    /// The version that runs use.
    pub agent_version: String,
    /// The server whose gateway is another process's.
    pub gateway: Option<(Store, ServerId)>,
    /// The directory of artifacts that it shares with other servers, if it does.
    pub artifacts: Option<Watched>,
}

#[async_trait::async_trait]
impl Probe for Checks {
    async fn problems(&self) -> Vec<PlacementProblem> {
        let mut problems = self.engine.problems().await;
        if let Some(paths) = &self.paths {
            problems.extend(paths.problem(&problems).await);
        }
        if self.agents.installed(&self.agent_version).is_none() {
            let version = &self.agent_version;
            let message = format!(
                "Claude Code {version} is not installed; run `caisson agent install --version {version}`"
            );
            problems.push(PlacementProblem { code: ProblemCode::AgentMissing, message });
        }
        if let Some((store, server)) = &self.gateway {
            problems.extend(roles::gateway_problem(store, server).await);
        }
        if let Some(artifacts) = &self.artifacts {
            problems.extend(artifacts.problem().await);
        }
        problems
    }
}
