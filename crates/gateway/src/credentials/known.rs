//! What the knock at a door told of the project's credential for the model API, and the one that this door opened last: a
//! call that finds both alike need not ask the store again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_store::{CredentialVersion, OpenedCredential};
use tokio::time::Instant;

/// How long what the knock told is taken as true, so that a body that comes slowly is sent with what counts by then.
const TOLD: Duration = Duration::from_millis(100);

/// What the store told at the knock of a call.
pub(crate) struct Told {
    newest: Option<CredentialVersion>,
    at: Instant,
}

/// What a call may go by.
pub(super) enum Choice {
    /// The store has none for it.
    None,
    /// This one, as it is now.
    Opened(Box<OpenedCredential>),
    /// The store has to be asked.
    Ask,
}

impl Told {
    pub(crate) fn now(newest: Option<CredentialVersion>) -> Self {
        Self { newest, at: Instant::now() }
    }
}

/// The credential for the model API that a door opened last. Its secret goes with the door.
#[derive(Default)]
pub(crate) struct LastOpened(Mutex<Option<OpenedCredential>>);

impl LastOpened {
    pub(super) fn choice(&self, told: Option<&Told>) -> Choice {
        let Some(Told { newest, .. }) = told.filter(|told| told.at.elapsed() <= TOLD) else {
            return Choice::Ask;
        };
        let Some(CredentialVersion { id, version }) = newest else { return Choice::None };
        let last = self.lock();
        let same =
            last.as_ref().filter(|last| last.credential.id == *id && last.credential.version == *version);
        same.map_or(Choice::Ask, |opened| Choice::Opened(Box::new(opened.clone())))
    }

    pub(super) fn keep(&self, opened: OpenedCredential) {
        *self.lock() = Some(opened);
    }

    fn lock(&self) -> MutexGuard<'_, Option<OpenedCredential>> {
        // Every change is a single assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use caisson_domain::credential::{CredentialSecret, CredentialSettings, ModelReach, SendAs};
    use caisson_domain::id::{CredentialId, ProjectId};
    use caisson_store::Credential;

    use super::*;

    fn opened(version: i64) -> OpenedCredential {
        let settings =
            CredentialSettings::ModelApiKey { reach: ModelReach::default(), send_as: SendAs::XApiKey };
        let credential = Credential {
            id: CredentialId::new(1, [0; 10]),
            project: ProjectId::default_project(),
            name: "x".to_owned(),
            settings,
            version,
            created_at_ms: 0,
            rotated_at_ms: None,
            last_used_at_ms: None,
        };
        let secret = CredentialSecret::Value { value: format!("secret {version}").into(), proxy_login: None };
        OpenedCredential { credential, secret }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_is_used_while_it_is_known_to_be_the_newest_and_the_store_asked_else() {
        let told = |version| Told::now(Some(CredentialVersion { id: opened(1).credential.id, version }));
        let last = LastOpened::default();
        assert!(matches!(last.choice(Some(&Told::now(None))), Choice::None));
        assert!(matches!(last.choice(None), Choice::Ask), "nothing was told");
        assert!(matches!(last.choice(Some(&told(1))), Choice::Ask), "none was opened");
        last.keep(opened(1));
        assert!(matches!(last.choice(Some(&told(1))), Choice::Opened(one) if one.credential.version == 1));
        assert!(matches!(last.choice(Some(&told(2))), Choice::Ask), "it was rotated");
        let other = CredentialVersion { id: CredentialId::new(2, [0; 10]), version: 1 };
        assert!(matches!(last.choice(Some(&Told::now(Some(other)))), Choice::Ask), "there is a newer one");
        let (kept, none) = (told(1), Told::now(None));
        tokio::time::advance(TOLD).await;
        assert!(matches!(last.choice(Some(&kept)), Choice::Opened(_)), "at the bound");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(matches!(last.choice(Some(&kept)), Choice::Ask), "it may have been rotated since");
        assert!(matches!(last.choice(Some(&none)), Choice::Ask), "one may have been added since");
    }
}
