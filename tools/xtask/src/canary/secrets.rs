//! The secrets of the hunt.

use testkit::hunt::Canary;
use testkit::world::{GIT_TOKEN, MODEL_KEY};

/// The model's key in the store.
pub(super) const STORED_KEY: &str = "sk-ant-canary-stored-51d0b7e2";
/// An OAuth login: its access token is over when it is stored, and the endpoint gives another one.
pub(super) const FIRST_ACCESS: &str = "oauth-canary/first+9c41a7";
pub(super) const REFRESH: &str = "oauth-canary/refresh+27be53";
pub(super) const NEXT_ACCESS: &str = "oauth-canary/next+e8036d";
/// What a GitHub App is given for its installation.
pub(super) const INSTALLATION: &str = "ghs_canaryInstallation6Kd2Q9x";
/// The store's token for the git host.
pub(super) const STORED_GIT: &str = "ghp_canaryStored3Vn8Lw5Rt1";
/// Tokens for registries: the configuration's and the store's.
pub(super) const REGISTRY: &str = "registry-canary/config+a05f=";
pub(super) const STORED_REGISTRY: &str = "registry-canary/stored+b71c=";

/// The login of the proxy by which the store's model key goes.
pub(super) const PROXY_LOGIN: &str = "proxy-canary:login/proxy+d82f=";

/// The store's header for an MCP server.
pub(super) const STORED_MCP: &str = "mcp-canary/stored+c93e=";

/// A secret with its name; those that are made by the server are known once it runs.
#[derive(Debug, Clone)]
pub(super) struct Secret {
    pub(super) name: &'static str,
    pub(super) secret: String,
}

impl Secret {
    pub(super) fn new(name: &'static str, secret: &str) -> Self {
        Self { name, secret: secret.to_owned() }
    }

    pub(super) fn canary(&self) -> Canary<'_> {
        Canary { name: self.name, secret: &self.secret }
    }
}

/// Those that are known beforehand.
pub(super) fn known() -> Vec<Secret> {
    vec![
        Secret::new("model key of the configuration", MODEL_KEY),
        Secret::new("model key of the store", STORED_KEY),
        Secret::new("OAuth access token", FIRST_ACCESS),
        Secret::new("OAuth refresh token", REFRESH),
        Secret::new("refreshed OAuth access token", NEXT_ACCESS),
        Secret::new("installation token", INSTALLATION),
        Secret::new("git token of the configuration", GIT_TOKEN),
        Secret::new("git token of the store", STORED_GIT),
        Secret::new("registry token of the configuration", REGISTRY),
        Secret::new("registry token of the store", STORED_REGISTRY),
        Secret::new("header of an MCP server", STORED_MCP),
        Secret::new("login of an outbound proxy", PROXY_LOGIN),
        Secret::new("password of an outbound proxy", PROXY_LOGIN.rsplit(':').next().unwrap_or_default()),
    ]
}
