//! Artifacts: what is kept for a run besides its events. The bytes live in files, the store knows where.

use caisson_domain::id::{ArtifactId, RunId};

use crate::{Store, StoreError};

/// An artifact whose bytes are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewArtifact {
    /// Its name, unique in its run.
    pub name: String,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// Where its bytes are.
    pub path: String,
}

/// What came of keeping an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutArtifact {
    /// It is known now, in place of an older one of that name.
    Stored,
    /// The run has [`caisson_domain::limits::RUN_ARTIFACTS`] already.
    TooMany,
}

/// An artifact as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its id; it stays the same when the artifact is replaced.
    pub id: ArtifactId,
    /// Its name, unique in its run.
    pub name: String,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// Where its bytes are.
    pub path: String,
    /// When it was stored, Unix ms.
    pub created_at_ms: i64,
}

impl Store {
    /// Makes an artifact known, in place of an older one of that name.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// Safe: repeatable, though each repetition appends its event.
    pub async fn put_artifact(
        &self,
        _run: &RunId,
        _artifact: &NewArtifact,
    ) -> Result<PutArtifact, StoreError> {
        todo!("put_artifact")
    }

    /// The run's artifacts by name; at most [`caisson_domain::limits::RUN_ARTIFACTS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn artifacts(&self, _run: &RunId) -> Result<Vec<Artifact>, StoreError> {
        todo!("artifacts")
    }

    /// The run's artifact of that name.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn artifact(&self, _run: &RunId, _name: &str) -> Result<Option<Artifact>, StoreError> {
        todo!("artifact")
    }
}
