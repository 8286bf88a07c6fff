//! Why an engine did not do what it was asked.

use caisson_domain::id::SandboxId;

use crate::SpecError;

/// Any error, kept as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an engine did not do what it was asked.
///
/// The general ones, which any call can meet, are [`Unavailable`](Self::Unavailable),
/// [`NotPermitted`](Self::NotPermitted), [`Refused`](Self::Refused) and [`BadReply`](Self::BadReply).
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine does not answer, was cut off or took too long: retry after back-off. What was asked may have happened.
    #[error("the engine at {host} did not answer while {operation}; check that it is running")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// Where the engine should be.
        host: String,
        /// What was seen.
        #[source]
        source: BoxError,
    },
    /// This user may not use the engine's socket; retrying cannot help.
    #[error(
        "not permitted to use the engine at {host} while {operation}; let this user write to that socket (for Docker: add it to the group docker)"
    )]
    NotPermitted {
        /// What was being done.
        operation: &'static str,
        /// The engine's address.
        host: String,
        /// What was seen.
        #[source]
        source: BoxError,
    },
    /// The engine's address cannot be used; the configuration must change.
    #[error("cannot use \"{host}\" as the engine's address: {reason}")]
    BadHost {
        /// The address as it was given.
        host: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The engine cannot make sandboxes that are safe; it must be changed or another one named.
    #[error("the engine is not fit for sandboxes: {need}, but found {found}; {remedy}")]
    Unfit {
        /// What an engine needs.
        need: &'static str,
        /// What this one has.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The image must be built or pulled first.
    #[error(
        "image \"{image}\" is not on the engine; build the default image with `caisson image build`, or pull it"
    )]
    ImageMissing {
        /// The image that was asked for.
        image: String,
    },
    /// The image that another one is made from is neither on the engine nor could be pulled.
    #[error(
        "the base image \"{base}\" could not be had: {message}; where no registry can be reached, make one with deploy/image/make-base.sh and name it as the base"
    )]
    BaseMissing {
        /// The base that was asked for.
        base: String,
        /// What the engine said.
        message: String,
    },
    /// The build of an image failed.
    #[error("building image \"{image}\" failed: {message}")]
    BuildFailed {
        /// The image that was to be made.
        image: String,
        /// What the engine said.
        message: String,
    },
    /// The specification must change.
    #[error(transparent)]
    BadSpec(#[from] SpecError),
    /// A sandbox with this id was made before; destroy it, or take a new id.
    #[error("sandbox {id} exists already")]
    AlreadyExists {
        /// The sandbox.
        id: SandboxId,
    },
    /// No such sandbox: it was never made, or is gone.
    #[error("sandbox {id} does not exist on the engine")]
    NotFound {
        /// The sandbox.
        id: SandboxId,
    },
    /// The sandbox has ended, and is never started again: an agent's work is not silently repeated.
    #[error("sandbox {id} has ended and cannot be started again")]
    Ended {
        /// The sandbox.
        id: SandboxId,
    },
    /// The sandbox does not run, so that it uses nothing.
    #[error("sandbox {id} is not running")]
    NotRunning {
        /// The sandbox.
        id: SandboxId,
    },
    /// The engine made something else than was asked for, and it was removed; retrying cannot help.
    #[error("the engine did not make the sandbox as asked: {field} should be {asked}, but is {found}")]
    NotAsAsked {
        /// The field, as the engine's inspection names it.
        field: &'static str,
        /// What was asked for.
        asked: String,
        /// What was made.
        found: String,
    },
    /// The engine understood and said no; its words say why.
    #[error("the engine refused while {operation}: {message}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// What the engine said.
        message: String,
    },
    /// The engine's answer could not be understood.
    #[error("the engine's answer could not be understood while {operation}")]
    BadReply {
        /// What was being done.
        operation: &'static str,
        /// What was wrong with it.
        #[source]
        source: BoxError,
    },
}
