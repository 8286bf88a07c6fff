//! Why a credential of the store cannot be sent. The cause is logged here, and what is told outside has no secret.

use caisson_store::{Credential, CredentialError, StoreError};

use super::token::TokenFault;

/// Why there is nothing to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CredentialFault {
    /// The database does not answer.
    Away,
    /// It cannot be opened, or the server's database is at fault.
    Internal,
    /// It holds what no request can carry.
    Unusable {
        /// Its name.
        name: String,
    },
    /// Whoever gives tokens did not.
    Token {
        /// The credential's name.
        name: String,
        fault: TokenFault,
    },
}

impl CredentialFault {
    pub(super) fn store(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Migration(_) => {
                tracing::warn!(error = %error, "the store is unavailable to the gateway");
                Self::Away
            }
            StoreError::Corrupt { .. } => {
                tracing::error!(error = %error, "the store failed under the gateway");
                Self::Internal
            }
        }
    }

    pub(super) fn vault(credential: &Credential, error: &CredentialError) -> Self {
        let id = &credential.id;
        tracing::error!(credential.id = %id, error = %error, "the credential {id} cannot be opened: {error}");
        Self::Internal
    }

    pub(super) fn unusable(credential: &Credential) -> Self {
        let id = &credential.id;
        tracing::error!(credential.id = %id, "the credential {id} cannot be sent");
        Self::Unusable { name: credential.name.clone() }
    }

    pub(super) fn token(credential: &Credential, fault: TokenFault) -> Self {
        let id = &credential.id;
        tracing::warn!(credential.id = %id, fault = %fault, "no token for the credential {id}: {fault}");
        Self::Token { name: credential.name.clone(), fault }
    }

    /// HTTP status of whoever gives tokens, 0 without one.
    pub(crate) const fn status(&self) -> u16 {
        match self {
            Self::Token { fault: TokenFault::Refused { status }, .. } => *status,
            Self::Token { fault: TokenFault::Unreachable | TokenFault::Unreadable, .. }
            | Self::Away
            | Self::Internal
            | Self::Unusable { .. } => 0,
        }
    }

    /// For people, with what to do.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Away => "the server's database does not answer; try again".to_owned(),
            Self::Internal => "a credential cannot be opened; the server's log says why".to_owned(),
            Self::Unusable { name } => {
                format!("the credential \"{name}\" cannot be sent; rotate it, or remove it and add it again")
            }
            Self::Token { name, fault } => {
                format!("no token could be had for the credential \"{name}\": {fault}")
            }
        }
    }
}
