//! Tokens of package registries, for plain HTTP: what is in a tunnel nobody can add to.

use std::sync::Arc;

use caisson_domain::credential::{CredentialKind, CredentialSecret, CredentialSettings};
use caisson_domain::egress::Target;
use caisson_store::{Credential, DoorRun};
use reqwest::header::HeaderValue;
use secrecy::ExposeSecret;
use secrecy::zeroize::Zeroizing;

use super::{CHOICES, CredentialFault, basic, candidates, open, recorded_name, used};
use crate::config::secret_header;
use crate::shared::Shared;

/// Port of plain HTTP.
const HTTP_PORT: u16 = 80;

/// What a plain request to a registry is sent with.
#[derive(Debug, Clone)]
pub(crate) struct RegistryLogin {
    pub(crate) authorization: HeaderValue,
    /// What the record calls the credential.
    pub(crate) name: String,
}

/// The newest of the store's tokens for a registry's host; none if it has none. Its use is written down.
pub(crate) async fn registry(
    shared: &Arc<Shared>,
    run: &DoorRun,
    target: &Target,
) -> Result<Option<RegistryLogin>, CredentialFault> {
    const KINDS: [CredentialKind; 2] = [CredentialKind::RegistryToken; 2];
    for _ in 0..CHOICES {
        let found = candidates(shared, run, KINDS).await?;
        // Oldest first.
        let Some(chosen) = found.into_iter().rev().find(|one| is_for(one, target)) else { return Ok(None) };
        let Some(opened) = open(shared, &chosen).await? else { continue };
        let credential = opened.credential.clone();
        let (CredentialSettings::RegistryToken { username, .. }, CredentialSecret::Value { value, .. }) =
            (&credential.settings, &opened.secret)
        else {
            return Err(CredentialFault::unusable(&credential));
        };
        let text = match username {
            Some(username) => basic(username, value),
            None => Zeroizing::new(format!("Bearer {}", value.expose_secret())),
        };
        let authorization = secret_header("a registry's token", &text);
        let authorization = authorization.map_err(|_| CredentialFault::unusable(&credential))?;
        used(shared, &credential, run).await?;
        return Ok(Some(RegistryLogin { authorization, name: recorded_name(&credential) }));
    }
    Ok(None)
}

fn is_for(credential: &Credential, target: &Target) -> bool {
    let CredentialSettings::RegistryToken { host, .. } = &credential.settings else { return false };
    Target::parse(host, Some(HTTP_PORT)).is_ok_and(|registry| registry == *target)
}
