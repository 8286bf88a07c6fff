//! What the composition root says about MCP servers.

use std::net::IpAddr;

use caisson_domain::egress::{AddressRange, Rule};

/// Which MCP servers workflows may name. The default is none.
#[derive(Clone, Default)]
pub struct McpUpstreams {
    /// Hosts: tunnel rules, `host:443` or `*.suffix`.
    pub allow: Vec<Rule>,
    /// Addresses that are refused by default and may be reached all the same.
    pub allow_private: Vec<AddressRange>,
    /// Names that are not looked up, with their addresses. Whether these may be reached is asked all the same.
    pub hosts: Vec<(String, IpAddr)>,
    /// Further certificate authorities, PEM.
    pub extra_ca_pem: Option<Vec<u8>>,
}
