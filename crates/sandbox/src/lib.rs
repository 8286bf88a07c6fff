//! Engines that make sandboxes: the sealed places in which an agent works.
//!
//! This crate is the only one that knows an engine's API. Callers see [`Engine`], a trait of seven methods, and what
//! goes in ([`SandboxSpec`]) and comes out ([`Exit`], [`Liveness`], [`SandboxUsage`]) of it. There are two engines:
//! [`docker::DockerEngine`] and [`local::LocalEngine`].
//!
//! Every sandbox has the same profile, which no caller can loosen: no network device, read-only root, a bounded `/tmp`,
//! a uid that is not root, no capability, no new privileges, a filter of system calls, and limits on memory,
//! processes and CPU. An engine that is asked over an API is asked again after creation what it made, and what was not asked for is
//! removed; the local one makes everything itself, and nothing runs before it has its limits.

pub mod docker;
mod engine;
mod error;
pub mod local;
mod mounts;
mod profile;
mod seccomp;
mod spec;

/// What is weaker where each session has not a user of its own, for people.
pub const SHARED_UID: &str = "sandboxes have this server's uid, since it is not root";

/// Directory, in a server's own, of the images of volumes that its sandboxes' files lie in: `<session or sandbox>.img`.
pub const VOLUMES_DIR: &str = "volumes";

pub use caisson_domain::image::{IMAGE_BYTES, IMAGE_NAME_BYTES, ImageNameError, check_image_name};
pub use engine::{Engine, Exit, Liveness, OwnedSandbox, SandboxUsage};
pub use error::{BoxError, EngineError};
pub use spec::{
    CPU_MILLIS_MAX, CPU_MILLIS_MIN, ENVIRONMENT_BYTES, ENVIRONMENT_ENTRIES, ID_MAX, MEMORY_BYTES_MAX,
    MEMORY_BYTES_MIN, MountFault, Mounts, PIDS_MAX, PIDS_MIN, ResourceLimits, STOP_GRACE_S_MAX, SandboxSpec,
    SpecError, TMP_BYTES_MAX, TMP_BYTES_MIN,
};
