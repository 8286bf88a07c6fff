//! Which credential a request is sent with, and with which of its secrets, asked of the store for every request: a rotation or
//! a removal acts on the next request of a living sandbox.
//!
//! The store's credentials come before those of the settings. Of several that fit, the longest prefix wins, then the
//! newest. A run's use is written down before the credential is sent, be it for a token alone.

mod fault;
mod flight;
mod github_app;
mod last_model;
mod mcp;
mod model;
mod oauth;
mod registry;
mod secrets;
mod time;
mod token;
mod turn;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::credential::{CredentialKind, CredentialSecret, CredentialSettings};
use caisson_domain::id::RunId;
use caisson_domain::redact::{Held, Origin};
use caisson_store::{Credential, CredentialError, CredentialUse, DoorRun, OpenedCredential, StoreError};
use reqwest::header::HeaderValue;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

pub(crate) use self::fault::CredentialFault;
use self::flight::Flights;
pub(crate) use self::last_model::{LastModelCredential, ToldCredential};
pub(crate) use self::mcp::{McpHeader, mcp};
use self::model::Clients;
pub(crate) use self::model::{ModelRoute, model};
pub(crate) use self::registry::{RegistryLogin, registry};
pub(crate) use self::secrets::keep_out_of_the_record;
pub use self::secrets::look_for_secrets;
pub(crate) use self::token::TokenFault;
use crate::config::secret_header;
use crate::hold::hold;
use crate::shared::{Door, Shared};

/// User name that goes with an installation token.
const APP_USER: &str = "x-access-token";
/// How often a credential is chosen anew because it was removed after it was chosen.
const CHOICES: usize = 3;

/// What this process keeps beside the store: tokens on their way, and clients of model credentials with a proxy or
/// certificates of their own.
#[derive(Default)]
pub(crate) struct CredentialSide {
    flights: Flights,
    clients: Clients,
}

/// What a git request is sent with.
pub(crate) struct GitLogin {
    pub(crate) authorization: HeaderValue,
    /// What the record calls the credential.
    name: String,
    /// The credential of the store that it is of.
    stored: Option<Credential>,
}

impl GitLogin {
    /// Of a credential of the settings.
    pub(crate) const fn of_settings(authorization: HeaderValue, name: String) -> Self {
        Self { authorization, name, stored: None }
    }

    /// Writes down, before it is sent to `host` for a run, that it is: for what and to whom once, and each time that it was used.
    pub(crate) async fn note(
        &self,
        shared: &Shared,
        run: &DoorRun,
        (host, purpose): (&str, &'static str),
    ) -> Result<(), CredentialFault> {
        let used = CredentialUse { credential: self.name.clone(), host: host.to_owned(), purpose };
        shared.try_note_use(&run.id, &used).await.map_err(|error| CredentialFault::store(&error))?;
        match &self.stored {
            Some(credential) => self::used(shared, credential, run).await,
            None => used_configured(shared, &self.name, run).await,
        }
    }

    /// The git host refused it: an installation token is not used again.
    pub(crate) fn refused(&self, shared: &Shared) {
        if let Some(credential) = &self.stored {
            shared.credentials.flights.forget(&credential.id);
        }
    }
}

/// The store's credential for a repository; none if it has none that covers its URL. Whoever sends it notes that first.
pub(crate) async fn git(
    shared: &Arc<Shared>,
    run: &DoorRun,
    url: &Url,
) -> Result<Option<GitLogin>, CredentialFault> {
    const KINDS: [CredentialKind; 2] = [CredentialKind::GitToken, CredentialKind::GitGithubApp];
    for _ in 0..CHOICES {
        let Some(chosen) = choose(candidates(shared, run, KINDS).await?, url) else { return Ok(None) };
        let Some(opened) = open(shared, &chosen).await? else { continue };
        return login(shared, run, opened).await.map(Some);
    }
    Ok(None)
}

async fn login(
    shared: &Arc<Shared>,
    run: &DoorRun,
    opened: OpenedCredential,
) -> Result<GitLogin, CredentialFault> {
    let credential = opened.credential.clone();
    let (username, token) = match (&credential.settings, &opened.secret) {
        (CredentialSettings::GitToken { username, .. }, CredentialSecret::Value { value, .. }) => {
            (username.as_str(), value.clone())
        }
        (CredentialSettings::GitGithubApp { .. }, CredentialSecret::PrivateKey { .. }) => {
            (APP_USER, github_app::token(shared, run, opened).await?)
        }
        _ => return Err(CredentialFault::unusable(&credential)),
    };
    let authorization = secret_header("a git credential", &basic(username, &token))
        .map_err(|_| CredentialFault::unusable(&credential))?;
    Ok(GitLogin { authorization, name: recorded_name(&credential), stored: Some(credential) })
}

/// Writes down, before a credential's own secret is sent to `url` for a token, that it is: once for each run that has it sent.
async fn note_token_call(
    shared: &Shared,
    run: &RunId,
    (credential, url): (&Credential, &Url),
) -> Result<(), CredentialFault> {
    let host = url.host_str().unwrap_or_default().to_owned();
    let used = CredentialUse { credential: recorded_name(credential), host, purpose: "token" };
    shared.try_note_use(run, &used).await.map_err(|error| CredentialFault::store(&error))
}

/// What the record calls a stored credential: its id, since a name may be given again, and its name for people.
fn recorded_name(credential: &Credential) -> String {
    format!("{} {}", credential.id, credential.name)
}

/// Basic authentication, as text.
pub(crate) fn basic(username: &str, token: &SecretString) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{username}:{}", token.expose_secret()));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(&*pair)))
}

/// The longest prefix that covers `url`, then the newest: the list is oldest first.
fn choose(candidates: Vec<Credential>, url: &Url) -> Option<Credential> {
    let prefix = |credential: &Credential| match &credential.settings {
        CredentialSettings::GitToken { url_prefix, .. }
        | CredentialSettings::GitGithubApp { url_prefix, .. } => Some(url_prefix.clone()),
        CredentialSettings::ModelApiKey { .. }
        | CredentialSettings::ModelOauth { .. }
        | CredentialSettings::McpHeader { .. }
        | CredentialSettings::RegistryToken { .. } => None,
    };
    let covering = candidates.into_iter().filter_map(|credential| {
        let prefix = prefix(&credential).filter(|prefix| covers(prefix, url))?;
        Some((prefix_length(&prefix), credential))
    });
    covering.max_by_key(|(length, _)| *length).map(|(_, credential)| credential)
}

/// Same origin, and `prefix`'s path is a beginning of `url`'s in whole parts.
pub(crate) fn covers(prefix: &Url, url: &Url) -> bool {
    let path = prefix.path().trim_end_matches('/');
    let bare = |path: &str| path.trim_end_matches('/').trim_end_matches(".git").to_owned();
    let rest = url.path().strip_prefix(path);
    prefix.origin() == url.origin()
        && (rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || bare(path) == bare(url.path()))
}

/// By what prefixes are compared.
pub(crate) fn prefix_length(prefix: &Url) -> usize {
    prefix.path().trim_end_matches('/').len()
}

async fn candidates(
    shared: &Shared,
    run: &DoorRun,
    kinds: [CredentialKind; 2],
) -> Result<Vec<Credential>, CredentialFault> {
    let store = &shared.store;
    let found =
        hold(&shared.cancel, shared.bounds.store_hold, || store.credentials_of_kinds(&run.project, kinds));
    found.await.map_err(|error| CredentialFault::store(&error))
}

/// Opens a credential as it is now; none if it was removed.
async fn open(shared: &Shared, credential: &Credential) -> Result<Option<OpenedCredential>, CredentialFault> {
    let store = &shared.store;
    let opened = hold(&shared.cancel, shared.bounds.store_hold, || async {
        held(store.open_credential(&credential.project, &credential.id).await)
    });
    let opened = opened.await.map_err(|error| CredentialFault::store(&error))?;
    let opened = opened.map_err(|error| CredentialFault::vault(credential, &error))?;
    if let Some(opened) = &opened {
        look_for(shared, opened);
    }
    Ok(opened)
}

/// Has the secrets of a credential that is about to be used looked for.
fn look_for(shared: &Shared, opened: &OpenedCredential) {
    shared.secrets.keep(&opened.credential.project, stored(opened), shared.store.now_ms());
}

/// What must not be shown of a credential as it is stored.
fn stored(opened: &OpenedCredential) -> Held {
    let Credential { id, version, .. } = &opened.credential;
    Held { credential: id.clone(), origin: Origin::Stored, version: *version, secrets: live_texts(opened) }
}

/// Every text of a credential that must not be shown.
fn live_texts(opened: &OpenedCredential) -> Vec<SecretString> {
    let mut texts = opened.secret.texts();
    if let (CredentialSettings::McpHeader { .. }, CredentialSecret::Value { value, .. }) =
        (&opened.credential.settings, &opened.secret)
    {
        texts.extend(mcp::bare_token(value));
    }
    texts
}

/// Before a run's outcome is stored: how often it used which credential is written, since whoever ends it may be another process.
pub(crate) async fn before_outcome(door: &Door) -> Result<(), StoreError> {
    let store = door.shared.store.clone();
    let Some(run) = store.door_run(&door.sandbox).await? else { return Ok(()) };
    // Not by the request, which ends with its connection: what was taken out to be written would be lost.
    let writing = door.shared.tracker.spawn(async move { store.write_credential_uses_of(&run.id).await });
    writing.await.unwrap_or_else(|error| {
        tracing::error!(error = %error, "counts of credentials were lost before a run's outcome");
        Ok(())
    })
}

/// What waiting can help with outside, everything else inside.
fn held<T>(result: Result<T, CredentialError>) -> Result<Result<T, CredentialError>, StoreError> {
    match result {
        Err(CredentialError::Store(error)) => Err(error),
        other => Ok(other),
    }
}

/// Counts a use of a credential of the settings, by the name that the record has of it.
pub(crate) async fn used_configured(
    shared: &Shared,
    name: &str,
    run: &DoorRun,
) -> Result<(), CredentialFault> {
    let store = &shared.store;
    let counted =
        hold(&shared.cancel, shared.bounds.store_hold, || store.use_configured_credential(name, &run.id));
    counted.await.map_err(|error| CredentialFault::store(&error))
}

async fn used(shared: &Shared, credential: &Credential, run: &DoorRun) -> Result<(), CredentialFault> {
    let store = &shared.store;
    let written =
        hold(&shared.cancel, shared.bounds.store_hold, || store.use_credential(credential, &run.id));
    written.await.map_err(|error| CredentialFault::store(&error))
}

#[cfg(test)]
mod tests {
    use caisson_domain::id::{CredentialId, ProjectId};

    use super::*;

    fn credential(prefix: &str, name: &str) -> Credential {
        Credential {
            id: CredentialId::new(1, [1; 10]),
            project: ProjectId::default_project(),
            name: name.to_owned(),
            settings: CredentialSettings::GitToken {
                url_prefix: prefix.parse().unwrap(),
                username: "u".to_owned(),
            },
            version: 1,
            created_at_ms: 0,
            rotated_at_ms: None,
            last_used_at_ms: None,
        }
    }

    #[test]
    fn the_longest_prefix_wins_and_then_the_newest() {
        let all = || {
            vec![
                credential("https://h.example/team/one.git", "one"),
                credential("https://h.example/team", "old team"),
                credential("https://h.example/", "host"),
                credential("https://h.example/team/", "new team"),
            ]
        };
        let of = |url: &str| choose(all(), &url.parse().unwrap()).map(|found| found.name);
        assert_eq!(of("https://h.example/team/one").as_deref(), Some("one"));
        assert_eq!(of("https://h.example/team/two.git").as_deref(), Some("new team"));
        assert_eq!(of("https://h.example/teamwork/x").as_deref(), Some("host"));
        assert_eq!(of("https://other.example/team/one"), None);
    }
}
