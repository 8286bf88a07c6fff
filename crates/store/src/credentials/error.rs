//! What can go wrong with a credential.

use caisson_domain::limits::CREDENTIALS;
use caisson_domain::redact::PROJECT_SECRETS_BYTES;

use crate::StoreError;
use crate::vault::MasterKeyError;

/// Why a credential was not written or opened.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The project has one of that name.
    #[error("the project has a credential \"{0}\" already; rotate that one, or choose another name")]
    NameTaken(String),
    /// The project has as many as it may.
    #[error(
        "the project has {CREDENTIALS} credentials, as many as it may; remove one that is not used any more"
    )]
    Full,
    /// The project's secrets would be longer than what is kept out of the record.
    #[error(
        "the project's secrets would have {bytes} bytes as they are sealed, and may have {PROJECT_SECRETS_BYTES}, since no more is \
         looked for in what its runs say; remove a credential that is not used any more, or give a shorter secret"
    )]
    NoRoom {
        /// How long they would be together.
        bytes: i64,
    },
    /// A field cannot be used.
    #[error("{field} cannot be used: {reason}")]
    Unusable {
        /// The field.
        field: &'static str,
        /// What is wrong; never the value.
        reason: String,
    },
    /// The master key cannot be had, or does not open it.
    #[error(transparent)]
    Key(#[from] MasterKeyError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CredentialError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
