//! What the API is told at start.

use std::path::PathBuf;
use std::time::Duration;

use caisson_domain::git::{AllowList, Repository};

/// Time between comments on an event stream on which nothing happens, so that nobody between takes it for dead.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Longest time until an event stream looks for events that no hint told of.
pub const POLL: Duration = Duration::from_secs(2);
/// Longest life of one event stream; the reader then comes again, and shows its key again.
pub const STREAM_LIFE: Duration = Duration::from_hours(1);
/// Event streams open at once; the next one is refused with 429.
pub const STREAMS: usize = 512;
/// Longest time for reading the body of a request.
pub const BODY_READ: Duration = Duration::from_secs(30);

/// Longest time that a connection may take no byte of what it is sent; then it is cut.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// Longest time for reading the head of a request, the wait for it on an idle connection included. Short, because it
/// is what bounds a client that opens connections and says nothing.
pub const HEAD_READ: Duration = Duration::from_secs(15);
/// Longest time that requests under way have at shutdown.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Connections open at once; further ones wait to be accepted.
pub const CONNECTIONS: usize = 1024;

/// What the router is told.
#[derive(Debug, Clone, Default)]
pub struct ApiConfig {
    /// Repositories that runs may name.
    pub allow: AllowList,
    /// The repository of a run that says nothing about one; it must pass `allow` like any other.
    pub default_repository: Option<Repository>,
    /// The directory below which artifacts are; nothing outside it is ever sent.
    pub artifacts_dir: PathBuf,
    /// Whether sandboxes are made without images, so that a run that names one is refused.
    pub without_images: bool,
    /// The agent that the server has.
    pub agent: AgentInfo,
    /// Bounds.
    pub limits: ApiLimits,
}

/// The agent that the server has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its version; none when it is not installed.
    pub version: Option<String>,
}

/// Bounds of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiLimits {
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`POLL`].
    pub poll: Duration,
    /// See [`STREAM_LIFE`].
    pub stream_life: Duration,
    /// See [`STREAMS`].
    pub streams: usize,
    /// See [`BODY_READ`].
    pub body_read: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            heartbeat: HEARTBEAT,
            poll: POLL,
            stream_life: STREAM_LIFE,
            streams: STREAMS,
            body_read: BODY_READ,
        }
    }
}

/// Bounds of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeLimits {
    /// See [`WRITE_STALL`].
    pub write_stall: Duration,
    /// See [`HEAD_READ`].
    pub head_read: Duration,
    /// See [`DRAIN`].
    pub drain: Duration,
    /// See [`CONNECTIONS`].
    pub connections: usize,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self { write_stall: WRITE_STALL, head_read: HEAD_READ, drain: DRAIN, connections: CONNECTIONS }
    }
}
