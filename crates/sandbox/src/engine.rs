//! What an engine does, in seven methods.

use async_trait::async_trait;
use caisson_domain::id::{SandboxId, SessionId};

use crate::{EngineError, SandboxSpec};

/// Exit code of a process that SIGKILL ended, as engines report it (128 + 9).
const KILLED: i64 = 137;

/// How a sandbox ended, as the engine saw it from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code of the first process (128 + the signal, if one ended it); none if the engine does not know.
    pub code: Option<i64>,
    /// Whether the kernel killed *some* process of the sandbox for want of memory, not necessarily the first one.
    pub oom_killed: bool,
    /// When it ended, by the engine's clock (Unix ms).
    pub finished_at_ms: Option<i64>,
}

impl Exit {
    /// Whether want of memory ended the sandbox itself.
    ///
    /// `oom_killed` alone does not say so: an engine also sets it when only a child was killed and the first process
    /// went on, even to exit with 0.
    #[must_use]
    pub fn ended_by_oom(&self) -> bool {
        self.oom_killed && self.code == Some(KILLED)
    }
}

/// How far a sandbox's life has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Made, but not started yet.
    Created,
    /// Its first process lives.
    Running,
    /// Its first process has ended; a sandbox is never started twice.
    Exited(Exit),
}

/// A sandbox that carries this server's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedSandbox {
    /// Which sandbox it is.
    pub id: SandboxId,
    /// The session that it was made for; none if its label cannot be read.
    pub session: Option<SessionId>,
    /// How far its life has got.
    pub liveness: Liveness,
}

/// What a running sandbox uses right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxUsage {
    /// Memory in use, without the page cache that the kernel would give back at once.
    pub memory_bytes: u64,
    /// The most memory ever in use, page cache included; none where the kernel does not tell (cgroup v2 through Docker).
    pub memory_peak_bytes: Option<u64>,
    /// CPU time spent since the start, of all processes.
    pub cpu_micros: u64,
    /// Processes and threads that live now.
    pub pids: u64,
    /// How often a process or thread more than its limit was refused, since the start; none where nobody tells (Docker on
    /// another machine, no control groups).
    pub pids_refused: Option<u64>,
}

/// Makes sandboxes and tells how they fare.
///
/// Every method has a time limit of its own inside, and answers [`EngineError::Unavailable`] when it passes. A sandbox
/// is known by its id alone, so that a server that starts again goes on where it was.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Makes a sandbox and checks that it is as asked for; nothing runs in it yet.
    ///
    /// # Errors
    /// [`EngineError::BadSpec`], [`EngineError::ImageMissing`], [`EngineError::AlreadyExists`],
    /// [`EngineError::NotAsAsked`] (the sandbox is then removed), [`EngineError::Unfit`] and the general ones.
    /// # Cancel safety
    /// If dropped, the sandbox may exist, unchecked; [`Engine::destroy`] it before another try.
    async fn create(&self, spec: &SandboxSpec) -> Result<(), EngineError>;

    /// Starts the shim of a sandbox that was made; does nothing if it runs already.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Ended`] and the general ones.
    /// # Cancel safety
    /// If dropped, the sandbox may have been started or not; calling again is safe.
    async fn start(&self, id: &SandboxId) -> Result<(), EngineError>;

    /// Waits for the sandbox to end; answers at once, and as often as asked, if it has ended.
    ///
    /// It outlasts an engine that goes away and comes back within a bounded time.
    /// # Errors
    /// [`EngineError::NotFound`] (also if it is destroyed meanwhile) and the general ones.
    /// # Cancel safety
    /// Safe: it only reads.
    async fn wait(&self, id: &SandboxId) -> Result<Exit, EngineError>;

    /// Asks the first process to end (SIGTERM), and kills the sandbox if it has not after `grace_s` seconds.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::BadSpec`] if `grace_s` is over [`crate::STOP_GRACE_S_MAX`], and the
    /// general ones.
    /// # Cancel safety
    /// If dropped, the request may have been made or not; the engine goes through with one that was made.
    async fn stop(&self, id: &SandboxId, grace_s: u32) -> Result<(), EngineError>;

    /// Kills every process of the sandbox and removes it. An unknown id is fine: somebody was here before.
    ///
    /// # Errors
    /// The general ones.
    /// # Cancel safety
    /// If dropped, the sandbox may be gone or not; calling again is safe.
    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError>;

    /// Lists the sandboxes that carry this server's label, the ended ones too.
    ///
    /// # Errors
    /// The general ones.
    /// # Cancel safety
    /// Safe: it only reads.
    async fn list_owned(&self) -> Result<Vec<OwnedSandbox>, EngineError>;

    /// Reads what a running sandbox uses.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::NotRunning`] and the general ones.
    /// # Cancel safety
    /// Safe: it only reads.
    async fn usage(&self, id: &SandboxId) -> Result<SandboxUsage, EngineError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_killed_first_process_with_an_oom_kill_ended_by_oom() {
        let exit = |code, oom_killed| Exit { code, oom_killed, finished_at_ms: None };
        assert!(exit(Some(137), true).ended_by_oom());
        assert!(!exit(Some(137), false).ended_by_oom(), "destroyed, not starved");
        assert!(!exit(Some(0), true).ended_by_oom(), "only a child was killed");
        assert!(!exit(None, true).ended_by_oom());
    }
}
