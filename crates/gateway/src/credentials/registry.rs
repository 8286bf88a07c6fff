//! Tokens of package registries, for plain HTTP and for what the gateway sends over TLS: what is in a tunnel nobody can add to.

use std::sync::Arc;

use caisson_domain::credential::{CredentialKind, CredentialSecret, CredentialSettings, OVER_TLS};
use caisson_domain::egress::{HTTP_PORT, HTTPS_PORT, Target, Via, Wanted};
use caisson_store::DoorRun;
use reqwest::header::HeaderValue;
use secrecy::ExposeSecret;
use secrecy::zeroize::Zeroizing;

use super::{CHOICES, CredentialFault, basic, candidates, open, recorded_name, used};
use crate::config::secret_header;
use crate::shared::Shared;

/// What a request to a registry is sent with.
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
    wanted: &Wanted,
) -> Result<Option<RegistryLogin>, CredentialFault> {
    const KINDS: [CredentialKind; 2] = [CredentialKind::RegistryToken; 2];
    for _ in 0..CHOICES {
        let found = candidates(shared, run, KINDS).await?;
        // Oldest first.
        let Some(chosen) = found.into_iter().rev().find(|one| is_for(&one.settings, wanted)) else {
            return Ok(None);
        };
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

/// Whether the token is for where the request goes. One for TLS is never sent in plain, and one for plain HTTP not over TLS.
fn is_for(settings: &CredentialSettings, wanted: &Wanted) -> bool {
    let CredentialSettings::RegistryToken { host, .. } = settings else { return false };
    let (registry, port) = match (&wanted.via, host.strip_prefix(OVER_TLS)) {
        (Via::Http { .. }, None) => (host.as_str(), HTTP_PORT),
        (Via::Https { .. }, Some(host)) => (host, HTTPS_PORT),
        (Via::Tunnel, _) | (Via::Http { .. }, Some(_)) | (Via::Https { .. }, None) => return false,
    };
    Target::parse(registry, Some(port)).is_ok_and(|registry| registry == wanted.target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_by_its_own_way_alone() {
        let is_for = |host: &str, target: &str, via: Via| {
            let settings = CredentialSettings::RegistryToken { host: host.to_owned(), username: None };
            is_for(&settings, &Wanted { target: Target::parse(target, None).unwrap(), via })
        };
        let (method, path) = ("GET".to_owned(), "/".to_owned());
        let http = Via::Http { method: method.clone(), path: path.clone() };
        let https = Via::Https { method, path };
        for (host, target, plain, tls) in [
            ("r.example", "r.example:80", true, false),
            ("r.example", "r.example:443", false, false),
            ("r.example:443", "r.example:443", true, false),
            ("r.example:8443", "r.example:8443", true, false),
            ("https://r.example", "r.example:443", false, true),
            ("https://r.example", "r.example:80", false, false),
            ("https://r.example:8443", "r.example:8443", false, true),
            ("https://r.example:80", "r.example:80", false, true),
            ("https://r.example", "other.example:443", false, false),
        ] {
            assert_eq!(is_for(host, target, http.clone()), plain, "{host} {target}");
            assert_eq!(is_for(host, target, https.clone()), tls, "{host} {target}");
            assert!(!is_for(host, target, Via::Tunnel), "{host} {target}");
        }
    }
}
