//! The Docker Engine, by its HTTP API (1.41 and later) on a unix socket.

mod build;
mod check;
mod fault;
mod files;
mod images;
mod lifecycle;
mod profile;
mod reading;
mod seccomp;
mod verify;
mod wait;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod fault_tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error;
use caisson_domain::id::{SandboxId, ServerId};

use crate::{Engine, EngineError, Exit, OwnedSandbox, SandboxSpec, SandboxUsage};
use fault::Fault;

pub use build::{
    BUILD_SILENCE_S, BUILD_TIMEOUT_S, DEFAULT_BASE, DEFAULT_IMAGE, DOCKERFILE, ImageBuild, LOCAL_BASE,
};
pub use check::{API_VERSION_MIN, Capabilities, Seccomp};
pub use files::IMAGE_FILE_BYTES;
pub use images::{LIST_IMAGES, UnusedImage};
pub use lifecycle::LIST_CONTAINERS;
pub use seccomp::seccomp_profile;
pub use wait::WAIT_RECONNECT_S;

/// Where Docker listens if nothing else is configured.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// Time limit of a call that only reads, in seconds.
pub const READ_TIMEOUT_S: u64 = 30;
/// Time limit of a call that makes, starts, stops or removes, in seconds; a loaded machine takes some.
pub const CHANGE_TIMEOUT_S: u64 = 120;

const UNIX_SCHEME: &str = "unix://";
/// Longest path of a unix socket on Linux, in bytes, without the final NUL.
const SOCKET_PATH_BYTES: usize = 107;

/// How the Docker Engine is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerConfig {
    /// The engine's socket, `unix:///…`; none means [`DEFAULT_HOST`].
    ///
    /// Only a unix socket will do: what is mounted into a sandbox are paths of this machine, and an engine that listens
    /// on a network gives root to whoever reaches it.
    pub host: Option<String>,
}

/// The Docker Engine as a maker of sandboxes.
#[derive(Debug)]
pub struct DockerEngine {
    socket: PathBuf,
    host: String,
    server: ServerId,
    client: OnceLock<Docker>,
    hosts_file: Option<PathBuf>,
    /// What the engine can do; forgotten when it goes away, since it may come back as another version.
    capabilities: Mutex<Option<Capabilities>>,
}

impl DockerEngine {
    /// Takes an engine's address; the sandboxes of `server` are then its own.
    ///
    /// Nothing is sent: a server can start while the engine is away. [`DockerEngine::check`] asks it.
    /// # Errors
    /// [`EngineError::BadHost`] if the address is not a unix socket's.
    pub fn connect(config: &DockerConfig, server: ServerId) -> Result<Self, EngineError> {
        let host = config.host.clone().unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let fault = |reason| Err(EngineError::BadHost { host: host.clone(), reason });
        let Some(path) = host.strip_prefix(UNIX_SCHEME) else {
            return fault("only a unix socket on this machine will do, written unix:///path");
        };
        if !path.starts_with('/') {
            return fault("the socket's path must be absolute, as in unix:///path");
        }
        if path.len() > SOCKET_PATH_BYTES {
            return fault("the socket's path is longer than the system allows");
        }
        let socket = PathBuf::from(path);
        let (client, capabilities) = (OnceLock::new(), Mutex::new(None));
        Ok(Self { socket, host, server, client, hosts_file: None, capabilities })
    }

    /// Keeps a file in `directory` that every new sandbox sees, read-only, as its `/etc/hosts`.
    ///
    /// The engine then need not set up names, and does without its networking altogether: a start takes about half the
    /// time. `directory` is this server's own, absolute, and seen by the engine under the same path. Blocks.
    /// # Errors
    /// [`EngineError::BadSpec`] if the file cannot be written.
    pub fn with_hosts_file_in(mut self, directory: &Path) -> Result<Self, EngineError> {
        self.hosts_file = Some(crate::mounts::write_hosts_file(directory)?);
        Ok(self)
    }

    /// The client; made on first use, because bollard wants the socket to exist.
    fn client(&self, operation: &'static str) -> Result<&Docker, Fault> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // The longest limit that any call has: each call sets its own, shorter one around it.
        let path = self.host.as_str();
        let client = Docker::connect_with_unix(path, BUILD_TIMEOUT_S, bollard::API_DEFAULT_VERSION)
            .map_err(|error| Fault::read(operation, &self.host, error))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Makes one call within `limit`.
    async fn call<T, F>(
        &self,
        operation: &'static str,
        limit: Duration,
        call: impl FnOnce(Docker) -> F + Send,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let client = self.client(operation)?.clone();
        let answer = tokio::time::timeout(limit, call(client)).await;
        let fault = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Fault::read(operation, &self.host, error),
            Err(elapsed) => Fault::Error(fault::unavailable(operation, &self.host, elapsed.into())),
        };
        if matches!(fault, Fault::Error(EngineError::Unavailable { .. })) {
            self.remember(None);
        }
        Err(fault)
    }

    /// A call that only reads.
    async fn read<T, F>(
        &self,
        operation: &'static str,
        call: impl FnOnce(Docker) -> F + Send,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        self.call(operation, Duration::from_secs(READ_TIMEOUT_S), call).await
    }

    /// A call that changes something.
    async fn change<T, F>(
        &self,
        operation: &'static str,
        call: impl FnOnce(Docker) -> F + Send,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        self.call(operation, Duration::from_secs(CHANGE_TIMEOUT_S), call).await
    }

    fn remember(&self, capabilities: Option<Capabilities>) {
        *self.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = capabilities;
    }

    fn remembered(&self) -> Option<Capabilities> {
        self.capabilities.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The engine's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

#[async_trait]
impl Engine for DockerEngine {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(host: &str) -> Result<DockerEngine, EngineError> {
        let config = DockerConfig { host: Some(host.to_owned()) };
        DockerEngine::connect(&config, ServerId::new(1, [1; 10]))
    }

    #[test]
    fn only_a_unix_socket_with_an_absolute_path_is_an_address() {
        assert_eq!(connect("unix:///run/x.sock").unwrap().socket(), Path::new("/run/x.sock"));
        for bad in
            ["", "tcp://127.0.0.1:2375", "http://x", "unix://x.sock", "/var/run/docker.sock", "ssh://x"]
        {
            let error = connect(bad).unwrap_err();
            assert!(matches!(error, EngineError::BadHost { .. }), "{bad}: {error}");
        }
        let default = DockerEngine::connect(&DockerConfig::default(), ServerId::new(1, [1; 10])).unwrap();
        assert_eq!(default.socket(), Path::new("/var/run/docker.sock"));
    }

    #[test]
    fn a_socket_path_is_bounded_as_the_system_bounds_it() {
        let path = |bytes: usize| format!("unix:///{}", "s".repeat(bytes - 1));
        assert!(connect(&path(SOCKET_PATH_BYTES)).is_ok());
        assert!(connect(&path(SOCKET_PATH_BYTES + 1)).is_err());
    }
}
