//! The master key of this machine, and what the store's credentials mean to a server.

use anyhow::Context;
use caisson_domain::credential::CredentialKind;
use caisson_domain::id::ProjectId;
use caisson_store::{MasterKeyFile, Store, StoreError};

use crate::settings::Settings;

/// Where the settings say that the master key is.
#[must_use]
pub(crate) fn master_key_file(settings: &Settings) -> MasterKeyFile {
    match &settings.master_key_file {
        Some(path) => MasterKeyFile::named(path.clone()),
        None => MasterKeyFile::in_state_dir(&settings.state_dir),
    }
}

/// Gives the store its master key, made at the first start.
///
/// # Errors
/// The key is lost, wrong or open to others; the error says what to do.
pub(crate) async fn unlock(settings: &Settings, store: &Store) -> anyhow::Result<()> {
    store.unlock(master_key_file(settings)).await.context("the credentials cannot be opened")
}

/// Whether runs of the default project find a model credential in the store.
///
/// # Errors
/// As every read.
pub(crate) async fn has_model_credential(store: &Store) -> Result<bool, StoreError> {
    Ok(!store.credentials_of_kinds(&ProjectId::default_project(), CredentialKind::MODEL).await?.is_empty())
}
