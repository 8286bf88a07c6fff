//! Sandboxes: which session each belongs to and how far it has come.

use caisson_domain::grant::TokenHash;
use caisson_domain::id::{SandboxId, ServerId, SessionId};

use crate::{Store, StoreError};

/// A sandbox to be made, with the hashes of its two grants.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// Its id.
    pub id: SandboxId,
    /// The session it is for.
    pub session: SessionId,
    /// The server whose engine makes it.
    pub server: ServerId,
    /// The engine's name.
    pub engine: String,
    /// The image.
    pub image: String,
    /// The uid its processes have.
    pub uid: u32,
    /// Hash of the control grant.
    pub control: TokenHash,
    /// Hash of the agent grant.
    pub agent: TokenHash,
}

/// How far a sandbox has come. It only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SandboxState {
    /// The engine is about to make it.
    Creating,
    /// It runs.
    Running,
    /// It is being ended: its agent grant opens nothing any more.
    Stopping,
    /// It is gone: neither grant opens anything.
    Destroyed,
}

/// A text that is no sandbox state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a sandbox state; use one of: creating, running, stopping, destroyed")]
pub struct UnknownSandboxState(String);

impl SandboxState {
    /// Every state, in order.
    pub const ALL: &'static [Self] = &[Self::Creating, Self::Running, Self::Stopping, Self::Destroyed];

    /// The state as it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Destroyed => "destroyed",
        }
    }
}

impl std::fmt::Display for SandboxState {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

impl std::str::FromStr for SandboxState {
    type Err = UnknownSandboxState;

    fn from_str(text: &str) -> Result<Self, UnknownSandboxState> {
        let found = Self::ALL.iter().find(|state| state.as_str() == text);
        found.copied().ok_or_else(|| UnknownSandboxState(text.chars().take(64).collect()))
    }
}

/// A sandbox as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// The session it is for.
    pub session: SessionId,
    /// The server whose engine made it.
    pub server: ServerId,
    /// The engine's name.
    pub engine: String,
    /// The image.
    pub image: String,
    /// The uid its processes have.
    pub uid: u32,
    /// How far it has come.
    pub state: SandboxState,
    /// Unix ms.
    pub created_at_ms: i64,
}

impl Store {
    /// Writes down a sandbox before the engine makes it, so that no container is ever unknown.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if session or server are not known, or the id is taken.
    /// # Cancel safety
    /// A dropped call may have written it; reconciling destroys what nobody uses.
    pub async fn create_sandbox(&self, _new: &NewSandbox) -> Result<(), StoreError> {
        todo!("create_sandbox")
    }

    /// The server's sandboxes that are not destroyed, oldest first.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn sandboxes_of(&self, _server: &ServerId) -> Result<Vec<SandboxRow>, StoreError> {
        todo!("sandboxes_of")
    }

    /// Moves a sandbox forward to `state` and revokes the grants that end there; `false` if it is there or further
    /// already, or is not known.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn set_sandbox_state(
        &self,
        _id: &SandboxId,
        _state: SandboxState,
    ) -> Result<bool, StoreError> {
        todo!("set_sandbox_state")
    }

    /// The sandbox, whatever its state.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn sandbox(&self, _id: &SandboxId) -> Result<Option<SandboxRow>, StoreError> {
        todo!("sandbox")
    }
}
