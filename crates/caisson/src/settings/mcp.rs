//! Settings of MCP servers outside.

use std::net::IpAddr;
use std::path::PathBuf;

use caisson_domain::egress::{AddressRange, RULES, Rule, Scope};
use caisson_gateway::McpUpstreams;
use serde::Deserialize;

use super::egress::{faults_of, parsed};

/// Which MCP servers workflows may name. Default: none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mcp {
    /// Hosts: `host` (port 443), `host:port`, `*.suffix`. Default: none. `CAISSON_MCP__ALLOW`, separated by spaces.
    pub allow: Vec<String>,
    /// Private ranges that may be reached. Default: none. `CAISSON_MCP__ALLOW_PRIVATE`, separated by spaces.
    pub allow_private: Vec<String>,
    /// Further certificate authorities, PEM. `CAISSON_MCP__EXTRA_CA_FILE`.
    #[serde(default)]
    pub extra_ca_file: Option<PathBuf>,
}

impl Mcp {
    /// Adds what cannot be used to `faults`.
    pub(super) fn check(&self, faults: &mut Vec<String>) {
        if self.allow.len() > RULES {
            faults.push(format!("mcp.allow has more than {RULES} hosts"));
        }
        faults.extend(faults_of::<Rule>("mcp.allow", &self.allow));
        for rule in parsed::<Rule>(&self.allow).iter().filter(|rule| rule.scope != Scope::Tunnel) {
            faults.push(format!("mcp.allow has \"{rule}\"; write host:port, the workflow has the whole URL"));
        }
        faults.extend(faults_of::<AddressRange>("mcp.allow_private", &self.allow_private));
    }

    /// What the gateway starts with; `hosts` are the names that are not looked up.
    ///
    /// # Errors
    /// The certificates' file cannot be read.
    pub(crate) fn upstreams(&self, hosts: Vec<(String, IpAddr)>) -> anyhow::Result<McpUpstreams> {
        Ok(McpUpstreams {
            allow: parsed(&self.allow),
            allow_private: parsed(&self.allow_private),
            hosts,
            extra_ca_pem: crate::inputs::read_pem("mcp.extra_ca_file", self.extra_ca_file.as_deref())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mcp(allow: &[&str], private: &[&str]) -> Mcp {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Mcp { allow: list(allow), allow_private: list(private), extra_ca_file: None }
    }

    #[test]
    fn every_entry_that_cannot_be_used_is_told() {
        let mut faults = Vec::new();
        mcp(&["https://x.example/", "http://y.example/a#GET"], &["10.0.0.0/4"]).check(&mut faults);
        assert_eq!(faults.len(), 3, "{faults:?}");
        for part in ["\"https://x.example/\"; write host:port", "http://y.example", "10.0.0.0/4"] {
            assert!(faults.iter().any(|fault| fault.contains(part)), "{part} in {faults:?}");
        }
        let (mut fits, mut over) = (Vec::new(), Vec::new());
        mcp(&vec!["x.example"; RULES], &[]).check(&mut fits);
        mcp(&vec!["x.example"; RULES + 1], &[]).check(&mut over);
        assert!(fits.is_empty() && over[0].contains("256 hosts"), "{fits:?} {over:?}");
    }

    #[test]
    fn what_is_written_is_what_the_gateway_gets() {
        let names = vec![("a.example".to_owned(), IpAddr::from([10, 0, 0, 1]))];
        let upstreams = mcp(&["*.x.example:8443"], &["10.0.0.1/32"]).upstreams(names).unwrap();
        assert_eq!((upstreams.allow.len(), upstreams.allow_private.len(), upstreams.hosts.len()), (1, 1, 1));
        let mut missing = mcp(&[], &[]);
        missing.extra_ca_file = Some("/nonexistent/ca.pem".into());
        assert!(missing.upstreams(Vec::new()).is_err());
    }
}
