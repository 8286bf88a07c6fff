//! How a run's model calls leave: with which key, to which URL, through which client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::credential::{CredentialKind, CredentialSecret, CredentialSettings, SendAs};
use caisson_domain::id::{CredentialId, ProjectId};
use caisson_store::{Credential, DoorRun, OpenedCredential};
use http::{HeaderMap, HeaderName};
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::last_model::{Choice, ToldCredential};
use super::{CHOICES, CredentialFault, candidates, look_for, oauth, open, recorded_name, used};
use crate::bounds::MODEL_CLIENTS;
use crate::config::{ModelCredential, client};
use crate::shared::{Door, Shared};

/// Where a model call goes and what is added to it.
pub(crate) struct ModelRoute {
    pub(crate) client: reqwest::Client,
    pub(crate) base_url: Url,
    /// What the record calls the credential.
    pub(crate) name: String,
    /// What must not be shown.
    pub(crate) header: (HeaderName, HeaderValue),
    /// Of the store.
    stored: Option<Credential>,
    beta: Option<HeaderValue>,
}

impl ModelRoute {
    /// With the credential of the settings.
    pub(crate) fn of_settings(
        client: reqwest::Client,
        base_url: Url,
        header: (HeaderName, HeaderValue),
    ) -> Self {
        Self { client, base_url, name: "model".to_owned(), header, stored: None, beta: None }
    }

    /// Whether it is sent with an access token that can be had anew.
    pub(crate) fn is_renewable(&self) -> bool {
        self.renewable().is_some()
    }

    /// The credential whose access token it is, which can be had anew.
    fn renewable(&self) -> Option<&Credential> {
        self.stored.as_ref().filter(|stored| stored.settings.kind() == CredentialKind::ModelOauth)
    }

    /// Whether a request that was made for `other` is the one for this, but for the credential.
    pub(crate) fn goes_as(&self, other: &Self) -> bool {
        self.base_url == other.base_url && self.beta == other.beta
    }

    /// What it is sent with, for people.
    pub(crate) fn credential_text(&self) -> String {
        match &self.stored {
            Some(Credential { name, .. }) => format!("the credential \"{name}\""),
            None => "the server's credential".to_owned(),
        }
    }

    /// How whoever runs the server puts another secret into its place.
    pub(crate) fn replace_text(&self) -> String {
        match &self.stored {
            Some(Credential { name, project, .. }) if *project == ProjectId::default_project() => {
                format!("replace its secret by `caisson credential rotate {name}` on the server's machine")
            }
            Some(Credential { name, project, .. }) => format!(
                "replace its secret by `caisson credential rotate {name} --project {project}` on the server's machine"
            ),
            None => "replace it in the server's configuration".to_owned(),
        }
    }

    /// With another access token, once the model API has refused this one: had by one refresh, however many calls it was
    /// refused to. None if there is none to be had: it is no such credential, was removed or is another kind by now, or the
    /// token endpoint gives none.
    /// # Cancel safety
    /// Safe: a refresh that was begun is stored all the same.
    pub(crate) async fn renewed(&self, shared: &Arc<Shared>, run: &DoorRun) -> Option<Self> {
        let refused = self.renewable()?;
        let renewing = async {
            let Some(opened) = oauth::renewed((shared, run), &self.client, refused).await? else {
                return Ok(None);
            };
            // Rotated meanwhile, it may be for another URL, and the request is made already.
            let route = route(shared, self.client.clone(), &opened)?;
            if route.base_url != self.base_url || opened.credential.settings != refused.settings {
                return Ok(None);
            }
            used(shared, &opened.credential, run).await?;
            Ok::<_, CredentialFault>(Some(route))
        };
        renewing.await.unwrap_or_else(|fault| {
            let (id, fault) = (&refused.id, fault.message());
            tracing::warn!(credential.id = %id, "the access token of {id} was refused and is not renewed: {fault}");
            None
        })
    }

    /// Adds what the agent must not know.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap) {
        let (name, value) = &self.header;
        headers.insert(name, value.clone());
        if let Some(beta) = &self.beta {
            headers.append("anthropic-beta", beta.clone());
        }
    }
}

/// The store's newest credential for the model API; none if it has none. `told` is what the knock told of it, if it did.
pub(crate) async fn model(
    door: &Door,
    run: &DoorRun,
    told: Option<&ToldCredential>,
) -> Result<Option<ModelRoute>, CredentialFault> {
    let shared = &door.shared;
    let mut choice = door.last_model.choice(told);
    for _ in 0..CHOICES {
        let opened = match std::mem::replace(&mut choice, Choice::Ask) {
            Choice::Configured => return Ok(None),
            Choice::Opened(opened) => {
                look_for(shared, &opened);
                *opened
            }
            Choice::Ask => {
                let Some(chosen) = candidates(shared, run, CredentialKind::MODEL).await?.pop() else {
                    return Ok(None);
                };
                let Some(opened) = open(shared, &chosen).await? else { continue };
                door.last_model.keep(opened.clone());
                opened
            }
        };
        let client = client_for(shared, &opened)?;
        let Some(opened) = oauth::fresh((shared, run), &client, opened).await? else { continue };
        let route = route(shared, client, &opened)?;
        used(shared, &opened.credential, run).await?;
        return Ok(Some(route));
    }
    Ok(None)
}

fn route(
    shared: &Shared,
    client: reqwest::Client,
    opened: &OpenedCredential,
) -> Result<ModelRoute, CredentialFault> {
    let credential = &opened.credential;
    let unusable = || CredentialFault::unusable(credential);
    let (known, beta) = match (&credential.settings, &opened.secret) {
        (CredentialSettings::ModelApiKey { send_as, .. }, CredentialSecret::Value { value, .. }) => {
            let known = match send_as {
                SendAs::XApiKey => ModelCredential::ApiKey(value.clone()),
                SendAs::Bearer => ModelCredential::Bearer(value.clone()),
            };
            (known, None)
        }
        (
            CredentialSettings::ModelOauth { anthropic_beta, .. },
            CredentialSecret::Oauth { access_token, .. },
        ) => (ModelCredential::Bearer(access_token.clone()), anthropic_beta.as_deref()),
        _ => return Err(unusable()),
    };
    let header = known.header().map_err(|_| unusable())?;
    let beta = beta.map(HeaderValue::from_str).transpose().map_err(|_| unusable())?;
    let stored = Some(credential.clone());
    let own = credential.settings.reach().and_then(|reach| reach.base_url.clone());
    let base_url = own.unwrap_or_else(|| shared.model.upstream.base_url.clone());
    Ok(ModelRoute { client, base_url, name: recorded_name(credential), header, stored, beta })
}

/// Clients of credentials with a proxy or certificates of their own, and the version they were made for:
/// [`MODEL_CLIENTS`] at most.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<CredentialId, (i64, reqwest::Client)>>);

impl Clients {
    fn lock(&self) -> MutexGuard<'_, HashMap<CredentialId, (i64, reqwest::Client)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, credential: &Credential) -> Option<reqwest::Client> {
        let clients = self.lock();
        let (version, client) = clients.get(&credential.id)?;
        (*version == credential.version).then(|| client.clone())
    }

    fn keep(&self, credential: &Credential, client: reqwest::Client) {
        let mut clients = self.lock();
        if clients.len() >= MODEL_CLIENTS && !clients.contains_key(&credential.id) {
            // Rare, and each is made again when it is needed.
            clients.clear();
        }
        clients.insert(credential.id.clone(), (credential.version, client));
    }
}

fn client_for(shared: &Shared, opened: &OpenedCredential) -> Result<reqwest::Client, CredentialFault> {
    let credential = &opened.credential;
    let reach = credential.settings.reach().ok_or_else(|| CredentialFault::unusable(credential))?;
    if reach.outbound_proxy.is_none() && reach.ca_pem.is_none() {
        return Ok(shared.model.client.clone());
    }
    if let Some(client) = shared.credentials.clients.find(credential) {
        return Ok(client);
    }
    let configured = &shared.model.upstream;
    let own_proxy = reach.outbound_proxy.as_ref();
    let login = opened.secret.proxy_login().filter(|_| own_proxy.is_some());
    let proxy = match (own_proxy, login) {
        (Some(proxy), Some(login)) => Some(with_login(credential, proxy, login)?),
        (Some(proxy), None) => Some(proxy.clone()),
        (None, _) => configured.outbound_proxy.clone(),
    };
    let pem = reach.ca_pem.as_deref().map(str::as_bytes).or(configured.extra_ca_pem.as_deref());
    let made = client("the model API", proxy.as_ref(), pem).map_err(|error| {
        tracing::error!(credential.id = %credential.id, error = %error, "no client for {}", credential.id);
        CredentialFault::unusable(credential)
    })?;
    shared.credentials.clients.keep(credential, made.clone());
    Ok(made)
}

/// The proxy's URL with its login; the client takes it out again.
fn with_login(credential: &Credential, proxy: &Url, login: &SecretString) -> Result<Url, CredentialFault> {
    let mut url = proxy.clone();
    let (user, password) = login.expose_secret().split_once(':').unwrap_or((login.expose_secret(), ""));
    let set = url.set_username(user).and_then(|()| url.set_password(Some(password)));
    set.map(|()| url).map_err(|()| CredentialFault::unusable(credential))
}

#[cfg(test)]
mod tests {
    use caisson_domain::credential::ModelReach;

    use super::*;

    #[test]
    fn clients_are_bounded_and_go_with_the_version_of_their_credential() {
        crate::tests::install_crypto();
        let clients = Clients::default();
        let credential = |number: usize, version| Credential {
            id: CredentialId::new(i64::try_from(number).unwrap(), [0; 10]),
            project: ProjectId::default_project(),
            name: "x".to_owned(),
            settings: CredentialSettings::ModelApiKey {
                reach: ModelReach::default(),
                send_as: SendAs::XApiKey,
            },
            version,
            created_at_ms: 0,
            rotated_at_ms: None,
            last_used_at_ms: None,
        };
        let made = client("the model API", None, None).unwrap();
        for number in 0..MODEL_CLIENTS {
            clients.keep(&credential(number, 1), made.clone());
        }
        assert_eq!(clients.lock().len(), MODEL_CLIENTS);
        assert!(clients.find(&credential(0, 1)).is_some());
        assert!(clients.find(&credential(0, 2)).is_none(), "its login may be another one");
        clients.keep(&credential(0, 2), made.clone());
        assert!(clients.find(&credential(0, 2)).is_some());
        assert_eq!(clients.lock().len(), MODEL_CLIENTS);
        clients.keep(&credential(MODEL_CLIENTS, 1), made);
        assert_eq!(clients.lock().len(), 1);
    }
}
