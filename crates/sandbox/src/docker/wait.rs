//! Waiting for the end of a container, through an engine that goes away and comes back.

use std::time::Duration;

use bollard::query_parameters::WaitContainerOptions;
use caisson_domain::id::SandboxId;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::profile::container_name;
use super::{DockerEngine, reading};
use crate::{EngineError, Exit, Liveness};

/// How long an engine may be away before a wait gives up, in seconds.
pub const WAIT_RECONNECT_S: u64 = 120;

/// One request to wait lasts no longer, in seconds; then the container is looked at again.
pub(super) const WAIT_ROUND_S: u64 = 60;
/// Least time between two looks at a container that has not ended.
const PAUSE: Duration = Duration::from_millis(250);
/// The engine learns of an OOM kill by an event of its own, which may come after that of the exit: so long it is waited for.
pub(super) const OOM_SETTLES: Duration = Duration::from_secs(2);
/// Between two looks for it.
pub(super) const OOM_LOOK: Duration = Duration::from_millis(100);
/// Exit code of a process that SIGKILL ended.
const KILLED: i64 = 137;

impl DockerEngine {
    pub(super) async fn wait_for_exit(&self, id: &SandboxId) -> Result<Exit, EngineError> {
        let mut away_since: Option<Instant> = None;
        let mut looked_before = false;
        loop {
            match self.look(id).await {
                Ok(Liveness::Exited(exit)) if looked_before => return self.settled(id, exit).await,
                Ok(Liveness::Exited(exit)) => return Ok(exit),
                Ok(Liveness::Created) => sleep(PAUSE).await,
                Ok(Liveness::Running) => {
                    if away_since.take().is_some() {
                        info!(sandbox.id = %id, "the engine is back; waiting for sandbox {id} again");
                    }
                    if looked_before {
                        sleep(PAUSE).await;
                    }
                    self.wait_round(id).await;
                }
                Err(error @ EngineError::Unavailable { .. }) => {
                    let since = *away_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= Duration::from_secs(WAIT_RECONNECT_S) {
                        return Err(error);
                    }
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
            looked_before = true;
        }
    }

    async fn look(&self, id: &SandboxId) -> Result<Liveness, EngineError> {
        reading::liveness(&self.inspect(id).await?)
    }

    /// Waits until the engine says that the container has ended, or breaks off, or [`WAIT_ROUND_S`] is over. Which of them it
    /// was, the next look at the container tells.
    async fn wait_round(&self, id: &SandboxId) {
        let Ok(client) = self.client("waiting for a sandbox") else { return };
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut answers = std::pin::pin!(client.wait_container(&container_name(id), Some(options)));
        if let Ok(Some(Err(error))) = timeout(Duration::from_secs(WAIT_ROUND_S), answers.next()).await {
            debug!(sandbox.id = %id, %error, "a wait for sandbox {id} answered: {error}");
        }
    }

    /// A first process that was killed just now may have been killed for want of memory.
    async fn settled(&self, id: &SandboxId, exit: Exit) -> Result<Exit, EngineError> {
        if exit.code != Some(KILLED) || exit.oom_killed {
            return Ok(exit);
        }
        let seen = Instant::now();
        while seen.elapsed() < OOM_SETTLES {
            sleep(OOM_LOOK).await;
            match self.look(id).await {
                Ok(Liveness::Exited(settled)) if settled.oom_killed => return Ok(settled),
                Ok(Liveness::Exited(_)) => {}
                // Destroyed meanwhile, or the engine went away: what was seen stands.
                Ok(Liveness::Created | Liveness::Running) | Err(_) => break,
            }
        }
        Ok(exit)
    }
}
