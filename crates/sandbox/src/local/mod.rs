//! Sandboxes without a daemon: bubblewrap over the host's own, read-only `/usr`.
//!
//! The same profile as everywhere, from the kernel's own parts: all namespaces but that of time unshared, no network but loopback, no
//! capability, no new privileges, a system call filter, and limits by control groups where they can be had. An image is an
//! error here: the host's programs are the image.
//!
//! Each sandbox has a supervisor, a small process of this same program that outlives the server; see [`supervise`].
//! What is known of it is in a record on disk, so that the next server finds it. Needs bubblewrap 0.8 (`--disable-userns`) and a
//! kernel that lets the sandbox's user make user namespaces.

mod bubblewrap;
pub(crate) mod cgroup;
mod check;
mod descriptors;
mod identity;
mod launch;
mod lifecycle;
mod mountinfo;
mod order;
mod record;
mod seccomp;
mod shown;
mod stage;
mod supervisor;
mod tree;

use std::path::PathBuf;
use std::sync::OnceLock;

use async_trait::async_trait;
use caisson_domain::id::{SandboxId, ServerId};

use crate::{Engine, EngineError, Exit, OwnedSandbox, SandboxSpec, SandboxUsage, SpecError};
use cgroup::{Controllers, Does};

pub use check::{LimitsBy, LocalCapabilities};
pub use supervisor::{SuperviseError, supervise};

/// What the local engine calls itself in errors, where others have an address.
const HOST: &str = "this machine";

/// How the local engine makes sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// Directory of the records, this server's own; made if it is not there.
    pub records_dir: PathBuf,
    /// Bubblewrap; none means the first `bwrap` of the system's search path.
    pub bubblewrap: Option<PathBuf>,
    /// Directories and files of the host that every sandbox sees, read-only and at the same place.
    pub read_only: Vec<PathBuf>,
    /// Directories that every sandbox sees, read-only and at the same place, and whose `bin` comes first in its search path.
    pub toolchains: Vec<PathBuf>,
    /// What no sandbox may see: the server's own state and secrets. What is shown may not be, contain or lie in one of them.
    pub hidden: Vec<PathBuf>,
    /// What is done with control groups.
    pub control_groups: ControlGroups,
    /// The program that calls [`supervise`], and the arguments that make it do so; the sandbox's id is added.
    pub supervisor: (PathBuf, Vec<String>),
}

/// What a local engine does with control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlGroups {
    /// Arranges those that can be had as its sandboxes need them.
    Use,
    /// Only looks which could be had, for an engine that makes no sandboxes.
    Look,
    /// Leaves them alone.
    Off,
}

/// Bubblewrap as a maker of sandboxes.
#[derive(Debug)]
pub struct LocalEngine {
    config: LocalConfig,
    server: ServerId,
    bubblewrap: PathBuf,
    /// Looked at once: what this process may do with control groups does not change while it runs.
    controllers: OnceLock<Controllers>,
    fitness: tokio::sync::OnceCell<LocalCapabilities>,
}

impl LocalEngine {
    /// Takes a configuration; the sandboxes of `server` are then its own. Blocks on the file system.
    ///
    /// # Errors
    /// [`EngineError::BadSpec`] for all paths that sandboxes are to see and that cannot be shown, and [`EngineError::Refused`] if the records'
    /// directory cannot be made.
    pub fn open(mut config: LocalConfig, server: ServerId) -> Result<Self, EngineError> {
        lifecycle::make_records(&config.records_dir)?;
        config.records_dir = config
            .records_dir
            .canonicalize()
            .map_err(|error| lifecycle::refused("resolving the records' directory", &error))?;
        config.hidden.push(config.records_dir.clone());
        let hidden = shown::check_hidden(&config.hidden).err();
        let read_only = shown::check(&config.read_only, "read_only", &config.hidden);
        let toolchains = shown::check_toolchains(&config.toolchains, &config.hidden);
        SpecError::all(hidden.into_iter().chain(read_only).chain(toolchains).collect())?;
        let bubblewrap = config.bubblewrap.clone().unwrap_or_else(check::find_bubblewrap);
        let (controllers, fitness) = (OnceLock::new(), tokio::sync::OnceCell::new());
        Ok(Self { config, server, bubblewrap, controllers, fitness })
    }

    /// What of walls and limits is weaker on this machine than it could be, one sentence each, for people. Unlike
    /// [`LocalEngine::check`] it makes no sandbox.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<String> {
        check::weaknesses(&self.limits(), check::own_uids())
    }

    /// What limits can be had by; see [`LocalCapabilities`].
    fn controllers(&self) -> &Controllers {
        self.controllers.get_or_init(|| match self.config.control_groups {
            ControlGroups::Use => Controllers::find(Does::Arrange),
            ControlGroups::Look => Controllers::find(Does::Look),
            ControlGroups::Off => {
                Controllers::None { reason: "switched off by the configuration".to_owned() }
            }
        })
    }
}

#[async_trait]
impl Engine for LocalEngine {
    async fn create(&self, spec: &SandboxSpec) -> Result<(), EngineError> {
        self.create_sandbox(spec).await
    }

    async fn start(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.start_sandbox(id).await
    }

    async fn wait(&self, id: &SandboxId) -> Result<Exit, EngineError> {
        self.wait_for_exit(id).await
    }

    async fn stop(&self, id: &SandboxId, grace_s: u32) -> Result<(), EngineError> {
        self.stop_sandbox(id, grace_s).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.destroy_sandbox(id).await
    }

    async fn list_owned(&self) -> Result<Vec<OwnedSandbox>, EngineError> {
        self.list_sandboxes().await
    }

    async fn usage(&self, id: &SandboxId) -> Result<SandboxUsage, EngineError> {
        self.read_usage(id).await
    }
}
