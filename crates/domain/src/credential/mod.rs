//! Credentials: the real secrets, which never enter a sandbox. What is public about one, what is secret, and how both
//! are read from what a person gives.
//!
//! What is public is fixed when a credential is added; rotating replaces the secret alone.

mod destinations;
mod read;
mod secret;

use serde::{Deserialize, Serialize};
use url::Url;

pub use self::read::{CredentialFault, CredentialFields, SECRET_FIELDS, SETTING_FIELDS};
pub use self::secret::{CredentialSecret, UnreadableSecret};
use crate::run::text_enum;

text_enum! {
    /// What a credential opens.
    CredentialKind, "credential kind" {
        /// The model API, by a key.
        ModelApiKey = "model_api_key",
        /// The model API, by an access token that is refreshed.
        ModelOauth = "model_oauth",
        /// Repositories on a git host, by a token.
        GitToken = "git_token",
        /// Repositories on GitHub, by an app's installation tokens.
        GitGithubApp = "git_github_app",
        /// An HTTP MCP server, by a header.
        McpHeader = "mcp_header",
        /// A package registry, by a token.
        RegistryToken = "registry_token",
    }
}

impl CredentialKind {
    /// Those that open the model API.
    pub const MODEL: [Self; 2] = [Self::ModelApiKey, Self::ModelOauth];
}

/// What stands before the host of a registry whose token goes over TLS, and over TLS alone.
pub const OVER_TLS: &str = "https://";

text_enum! {
    /// The header that carries a model API's key.
    SendAs, "header of a key" {
        /// `x-api-key`.
        XApiKey = "x_api_key",
        /// `Authorization: Bearer`.
        Bearer = "bearer",
    }
}

text_enum! {
    /// How a token endpoint is asked.
    TokenFormat, "token format" {
        /// As RFC 6749 has it.
        Form = "form",
        /// As JSON.
        Json = "json",
    }
}

/// How a model credential reaches its API; what is left out is as in the server's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReach {
    /// Base URL of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<Url>,
    /// Proxy on the way out, without its login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_proxy: Option<Url>,
    /// Further certificate authorities, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
}

/// What is public about a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CredentialSettings {
    /// A key of the model API.
    ModelApiKey {
        /// How the API is reached.
        #[serde(flatten)]
        reach: ModelReach,
        /// The header that carries the key.
        send_as: SendAs,
    },
    /// Tokens of the model API.
    ModelOauth {
        /// How the API is reached.
        #[serde(flatten)]
        reach: ModelReach,
        /// Where the access token is refreshed.
        token_url: Url,
        /// Sent with the refresh token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_id: Option<String>,
        /// How the token endpoint is asked.
        token_format: TokenFormat,
        /// Added to the `anthropic-beta` header of every call.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        anthropic_beta: Option<String>,
    },
    /// A token of a git host.
    GitToken {
        /// The repositories it is for: same origin and whole path parts.
        url_prefix: Url,
        /// User name sent with it.
        username: String,
    },
    /// An app on GitHub.
    GitGithubApp {
        /// The repositories it is for.
        url_prefix: Url,
        /// Base URL of the API that gives installation tokens.
        api_base_url: Url,
        /// The app's id or its client id.
        app_id: String,
        /// The installation.
        installation_id: u64,
    },
    /// A header for an HTTP MCP server.
    McpHeader {
        /// The server.
        url: Url,
        /// The header's name, in lower case.
        header: String,
    },
    /// A token of a package registry.
    RegistryToken {
        /// The registry's host, with a port if it is not 80, for plain HTTP; or `https://` and the host, with a port if it is
        /// not 443, for requests over TLS. A token for the one is never sent by the other.
        host: String,
        /// User name sent with it, if the registry wants one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        username: Option<String>,
    },
}

impl CredentialSettings {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> CredentialKind {
        match self {
            Self::ModelApiKey { .. } => CredentialKind::ModelApiKey,
            Self::ModelOauth { .. } => CredentialKind::ModelOauth,
            Self::GitToken { .. } => CredentialKind::GitToken,
            Self::GitGithubApp { .. } => CredentialKind::GitGithubApp,
            Self::McpHeader { .. } => CredentialKind::McpHeader,
            Self::RegistryToken { .. } => CredentialKind::RegistryToken,
        }
    }

    /// How the model API is reached, for credentials of it.
    #[must_use]
    pub const fn reach(&self) -> Option<&ModelReach> {
        match self {
            Self::ModelApiKey { reach, .. } | Self::ModelOauth { reach, .. } => Some(reach),
            Self::GitToken { .. }
            | Self::GitGithubApp { .. }
            | Self::McpHeader { .. }
            | Self::RegistryToken { .. } => None,
        }
    }

    /// The host or URL prefix for which it is used; none for the model API of the server's configuration.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        match self {
            Self::ModelApiKey { reach, .. } | Self::ModelOauth { reach, .. } => {
                reach.base_url.as_ref().map(Url::as_str)
            }
            Self::GitToken { url_prefix: url, .. }
            | Self::GitGithubApp { url_prefix: url, .. }
            | Self::McpHeader { url, .. } => Some(url.as_str()),
            Self::RegistryToken { host, .. } => Some(host),
        }
    }
}
