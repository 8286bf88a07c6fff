//! Why the store failed.

use crate::database::{Fault, fault};

/// Any error, kept as the source of ours.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why the store failed, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database did not answer, was busy or failed to read or write; retry after back-off.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The disk is full: retrying helps once somebody has made room.
    #[error("the database's disk is full")]
    Full(#[source] sqlx::Error),
    /// A row breaks an invariant; retrying cannot help.
    #[error("the database is corrupt: {what}")]
    Corrupt {
        /// What breaks it, as `table.column of id`.
        what: String,
        /// What was seen.
        #[source]
        source: BoxError,
    },
    /// The database cannot be brought to this version.
    #[error("the database cannot be migrated")]
    Migration(#[source] sqlx::migrate::MigrateError),
}

impl StoreError {
    /// Something that must not be, with what was seen.
    pub(crate) fn corrupt(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Corrupt { what: what.into(), source: source.into() }
    }

    /// A row that the caller says exists and that does not.
    pub(crate) fn missing(what: &str, id: &str) -> Self {
        Self::corrupt(format!("{what} {id}"), "there is no such row")
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match fault(&error) {
            Fault::Away => Self::Unavailable(error),
            Fault::Full => Self::Full(error),
            Fault::Broken(what) => Self::corrupt(what, error),
        }
    }
}
