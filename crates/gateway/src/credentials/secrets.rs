//! The secrets of the store's credentials, opened so that they are kept out of what is stored and logged before anybody uses
//! them.
//!
//! A door opens only once those of its project are known. From then on they are followed: one that is added or rotated while a
//! sandbox lives is looked for as soon as the store's hint of it comes, or at the next look where it is lost.

use std::collections::BTreeMap;

use caisson_domain::id::{CredentialId, ProjectId};
use caisson_domain::redact::LiveSecrets;
use caisson_store::{CredentialError, Store, StoreError, Topic};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stored;
use crate::bounds::{RECONCILE, UNOPENED_LOOKS};
use crate::shared::Shared;

/// Opens every credential of the project, so that its secrets are kept out of the record before anybody uses it; those that
/// are gone are looked for a little longer. What cannot be opened cannot be used either.
///
/// # Errors
/// The store cannot be asked, and so nobody knows what must be kept out.
pub(crate) async fn keep_out_of_the_record(shared: &Shared, project: &ProjectId) -> Result<(), StoreError> {
    let listed = shared.store.credential_ids(project).await?;
    keep_out((&shared.store, &shared.secrets), project, listed.iter()).await.map(drop)
}

/// Has the secrets of every credential of the store taken out of what `secrets` takes them out of, from now on until `cancel`: of the
/// record of every sandbox, and of the log, also of a process that has no gateway.
///
/// # Errors
/// The store does not answer. A credential that cannot be opened is no error: nobody can use it.
/// # Cancel safety
/// Safe: if dropped, what was opened so far is looked for.
pub async fn look_for_secrets(
    store: &Store,
    secrets: &LiveSecrets,
    tracker: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<(), StoreError> {
    let mut followed = Followed { store: store.clone(), secrets: secrets.clone(), known: BTreeMap::new() };
    let mut changes = store.watch(Topic::Credentials);
    followed.look().await?;
    let cancel = cancel.clone();
    tracker.spawn(async move {
        // Looks since those that could not be opened were tried.
        let mut looks = 0;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = changes.changed(RECONCILE) => {}
            }
            looks += 1;
            if looks >= UNOPENED_LOOKS {
                looks = 0;
                followed.try_unopened_again();
            }
            if let Err(error) = followed.look().await {
                tracing::warn!(error = %error, "the credentials could not be read; what was added since is not looked for yet");
            }
            followed.secrets.forget(followed.store.now_ms());
        }
    });
    Ok(())
}

/// What is known of the store's credentials.
struct Followed {
    store: Store,
    secrets: LiveSecrets,
    /// By project, the version of each secret.
    known: BTreeMap<ProjectId, BTreeMap<CredentialId, Known>>,
}

struct Known {
    version: i64,
    is_opened: bool,
}

impl Followed {
    /// Opens those that were added or changed since the last look, and notes which are gone.
    async fn look(&mut self) -> Result<(), StoreError> {
        let mut listed: BTreeMap<ProjectId, BTreeMap<CredentialId, i64>> = BTreeMap::new();
        for (project, id, version) in self.store.credential_versions().await? {
            listed.entry(project).or_default().insert(id, version);
        }
        let emptied: Vec<ProjectId> =
            self.known.keys().filter(|project| !listed.contains_key(project)).cloned().collect();
        for project in emptied {
            keep_out((&self.store, &self.secrets), &project, [].iter()).await?;
            self.known.remove(&project);
        }
        for (project, versions) in listed {
            if self.has_all(&project, &versions) {
                continue;
            }
            let opened = keep_out((&self.store, &self.secrets), &project, versions.keys()).await?;
            let known = versions.into_iter().map(|(id, version)| {
                let is_opened = opened.contains(&id);
                (id, Known { version, is_opened })
            });
            self.known.insert(project, known.collect());
        }
        Ok(())
    }

    /// Whether nothing has changed.
    fn has_all(&self, project: &ProjectId, versions: &BTreeMap<CredentialId, i64>) -> bool {
        let Some(known) = self.known.get(project) else { return false };
        known.len() == versions.len()
            && versions
                .iter()
                .all(|(id, version)| known.get(id).is_some_and(|known| known.version == *version))
    }

    /// The master key may be there again.
    fn try_unopened_again(&mut self) {
        for known in self.known.values_mut() {
            known.retain(|_, known| known.is_opened);
        }
    }
}

/// Opens these credentials of a project, and has them and no others looked for; which could be opened.
async fn keep_out(
    (store, secrets): (&Store, &LiveSecrets),
    project: &ProjectId,
    listed: impl Iterator<Item = &CredentialId> + Clone + Send,
) -> Result<Vec<CredentialId>, StoreError> {
    let mut opened = Vec::new();
    for id in listed.clone() {
        match store.open_credential(project, id).await {
            Ok(found) => opened.extend(found.as_ref().map(stored)),
            Err(CredentialError::Store(error)) if !matches!(error, StoreError::Corrupt { .. }) => {
                return Err(error);
            }
            // Nobody waits for a key that is not there, nor for a row that was damaged.
            Err(error) => tracing::debug!(credential.id = %id, %error, "{id} could not be opened"),
        }
    }
    let which = opened.iter().map(|held| held.credential.clone()).collect();
    let listed: Vec<CredentialId> = listed.cloned().collect();
    secrets.update(project, &listed, opened, store.now_ms());
    Ok(which)
}
