//! What the composition root says about the way outside.

use std::net::IpAddr;

use caisson_domain::egress::{AddressRange, Preset, Rule};
use secrecy::SecretString;
use url::Url;

/// Where tools may go. The default lets nothing out.
#[derive(Clone, Default)]
pub struct EgressUpstreams {
    /// Rules of the operator.
    pub rules: Vec<Rule>,
    /// Presets that the operator turned on, with the rules that the package managers' configuration came to.
    pub presets: Vec<(Preset, Vec<Rule>)>,
    /// Addresses that are refused by default and may be reached all the same.
    pub allow_private: Vec<AddressRange>,
    /// Names that are not looked up, with their addresses. Whether these may be reached is asked all the same.
    pub hosts: Vec<(String, IpAddr)>,
    /// Credentials for HTTP; the longest matching prefix wins.
    pub credentials: Vec<EgressCredential>,
    /// Further certificate authorities, PEM, for what the gateway sends over TLS.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Whether what no rule has is let through to public addresses, and told of, so that a list can be made of it.
    pub learn: bool,
}

/// A credential that HTTP requests under a URL are sent with. Nothing can be added to what goes through a tunnel.
#[derive(Debug, Clone)]
pub struct EgressCredential {
    /// `http://…` for what goes out in plain, `https://…` for what the gateway sends over TLS, and neither for the other: same
    /// host and port, and whole path parts.
    pub url_prefix: Url,
    /// User name of Basic authentication; none for a bearer token.
    pub username: Option<String>,
    /// The token.
    pub token: SecretString,
}
