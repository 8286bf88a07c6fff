//! What the knock at a door told of the project's credential for the model API, and the one that this door opened last: a
//! call that finds both alike need not ask the store again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_store::{Credential, CredentialVersion, OpenedCredential};
use tokio::time::Instant;

/// How long what the knock told is taken as true, so that a body that comes slowly is sent with what counts by then.
const TOLD: Duration = Duration::from_millis(100);

/// What the store told at the knock of a call.
pub(crate) struct ToldCredential {
    newest: Option<CredentialVersion>,
    at: Instant,
}

/// What a call may go by.
pub(super) enum Choice {
    /// The store has none, and the configuration's counts.
    Configured,
    /// This one, as it is now.
    Opened(Box<OpenedCredential>),
    /// The store has to be asked.
    Ask,
}

impl ToldCredential {
    pub(crate) fn now(newest: Option<CredentialVersion>) -> Self {
        Self { newest, at: Instant::now() }
    }
}

/// The credential for the model API that a door opened last. Its secret goes with the door, or with the first call after it was
/// replaced or removed.
#[derive(Default)]
pub(crate) struct LastModelCredential(Mutex<Option<OpenedCredential>>);

impl LastModelCredential {
    pub(super) fn choice(&self, told: Option<&ToldCredential>) -> Choice {
        let Some(ToldCredential { newest, .. }) = told.filter(|told| told.at.elapsed() <= TOLD) else {
            return Choice::Ask;
        };
        let mut last = self.lock();
        let is_newest = |last: &OpenedCredential| {
            let Credential { id, version, .. } = &last.credential;
            newest.as_ref().is_some_and(|newest| newest.id == *id && newest.version == *version)
        };
        if let Some(opened) = last.as_ref().filter(|last| is_newest(last)) {
            return Choice::Opened(Box::new(opened.clone()));
        }
        // Its secret was replaced or removed.
        *last = None;
        newest.as_ref().map_or(Choice::Configured, |_| Choice::Ask)
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
    use super::*;
    use caisson_domain::credential::{CredentialSecret, CredentialSettings, ModelReach, SendAs};
    use caisson_domain::id::{CredentialId, ProjectId};

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
        let told =
            |version| ToldCredential::now(Some(CredentialVersion { id: opened(1).credential.id, version }));
        let last = LastModelCredential::default();
        assert!(matches!(last.choice(Some(&ToldCredential::now(None))), Choice::Configured));
        assert!(matches!(last.choice(None), Choice::Ask), "nothing was told");
        assert!(matches!(last.choice(Some(&told(1))), Choice::Ask), "none was opened");
        last.keep(opened(1));
        assert!(matches!(last.choice(Some(&told(1))), Choice::Opened(one) if one.credential.version == 1));
        let other = CredentialVersion { id: CredentialId::new(2, [0; 10]), version: 1 };
        for (newest, what) in [
            (Some(CredentialVersion { version: 2, ..other.clone() }), "there is a newer one"),
            (Some(CredentialVersion { id: opened(1).credential.id, version: 2 }), "it was rotated"),
            (None, "it was removed"),
        ] {
            last.keep(opened(1));
            let is_any = newest.is_some();
            let choice = last.choice(Some(&ToldCredential::now(newest)));
            assert!(matches!((choice, is_any), (Choice::Ask, true) | (Choice::Configured, false)), "{what}");
            assert!(last.lock().is_none(), "{what}: its secret is kept no longer");
        }
        last.keep(opened(1));
        let (kept, none) = (told(1), ToldCredential::now(None));
        tokio::time::advance(TOLD).await;
        assert!(matches!(last.choice(Some(&kept)), Choice::Opened(_)), "at the bound");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(matches!(last.choice(Some(&kept)), Choice::Ask), "it may have been rotated since");
        assert!(matches!(last.choice(Some(&none)), Choice::Ask), "one may have been added since");
    }
}
