//! Headers for HTTP MCP servers.

use std::sync::Arc;

use caisson_domain::credential::{CredentialKind, CredentialSecret, CredentialSettings};
use caisson_domain::redact::SECRET_BYTES_MIN;
use caisson_store::{Credential, DoorRun};
use http::HeaderName;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{CHOICES, CredentialFault, candidates, open, recorded_name, used};
use crate::config::secret_header;
use crate::shared::Shared;

/// What a request to an MCP server is sent with.
pub(crate) struct McpHeader {
    /// What must not be shown.
    pub(crate) header: (HeaderName, HeaderValue),
    /// What the record calls the credential.
    pub(crate) recorded: String,
    /// Its name, for people.
    pub(crate) name: String,
}

/// The newest of the store's headers for exactly this server; none if it has none. Its use is written down.
pub(crate) async fn mcp(
    shared: &Arc<Shared>,
    run: &DoorRun,
    url: &Url,
) -> Result<Option<McpHeader>, CredentialFault> {
    const KINDS: [CredentialKind; 2] = [CredentialKind::McpHeader; 2];
    for _ in 0..CHOICES {
        let found = candidates(shared, run, KINDS).await?;
        // Oldest first.
        let Some(chosen) = found.into_iter().rev().find(|one| is_for(one, url)) else { return Ok(None) };
        let Some(opened) = open(shared, &chosen).await? else { continue };
        let credential = opened.credential.clone();
        let unusable = || CredentialFault::unusable(&credential);
        let (CredentialSettings::McpHeader { header, .. }, CredentialSecret::Value { value, .. }) =
            (&credential.settings, &opened.secret)
        else {
            return Err(unusable());
        };
        let name = HeaderName::try_from(header.as_str()).map_err(|_| unusable())?;
        let value = secret_header("an MCP server's credential", value.expose_secret());
        let value = value.map_err(|_| unusable())?;
        used(shared, &credential, run).await?;
        let recorded = recorded_name(&credential);
        return Ok(Some(McpHeader { header: (name, value), recorded, name: credential.name }));
    }
    Ok(None)
}

/// What stands behind the scheme of a header (`Bearer …`): whoever is sent it knows the token, and may say it alone.
pub(super) fn bare_token(header: &SecretString) -> Option<SecretString> {
    let (_, token) = header.expose_secret().rsplit_once(' ')?;
    // A shorter one could not be told from other text.
    (token.len() >= SECRET_BYTES_MIN).then(|| token.to_owned().into())
}

/// The same URL, whether or not it ends in a slash: a header goes nowhere but to its own server.
fn is_for(credential: &Credential, url: &Url) -> bool {
    let CredentialSettings::McpHeader { url: own, .. } = &credential.settings else { return false };
    own.as_str().trim_end_matches('/') == url.as_str().trim_end_matches('/')
}
