//! Settings of the way outside.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use caisson_domain::egress::{AddressRange, Host, Preset, RULES, Rule};
use caisson_gateway::{EgressCredential, EgressUpstreams};
use serde::Deserialize;
use url::Url;

use crate::presets::Clients;

/// Where tools in sandboxes may go. Default: nowhere.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Egress {
    /// Rules: `host:443`, `*.suffix:443,8443`, `http://host/path/#GET,HEAD`, `https://host/path/#GET,HEAD`. Default: none.
    /// `CAISSON_EGRESS__ALLOW`, separated by spaces.
    pub allow: Vec<String>,
    /// Presets: `npm`, `pip`, `cargo`, `apt`. Default: none. `CAISSON_EGRESS__PRESETS`, separated by spaces.
    pub presets: Vec<String>,
    /// Private ranges that may be reached. Default: none. `CAISSON_EGRESS__ALLOW_PRIVATE`, separated by spaces.
    pub allow_private: Vec<String>,
    /// Names that are not looked up: `name=address`. Default: none. `CAISSON_EGRESS__HOSTS`, separated by spaces.
    pub hosts: Vec<String>,
    /// Credentials for HTTP, each for the URLs below a prefix.
    pub credentials: Vec<Credential>,
    /// Further certificate authorities for `https://` rules, PEM. `CAISSON_EGRESS__EXTRA_CA_FILE`.
    #[serde(default)]
    pub extra_ca_file: Option<PathBuf>,
    /// Whether what no rule has is let through to public addresses, to make a list of it. Default: false. `CAISSON_EGRESS__LEARN`.
    #[serde(default)]
    pub learn: bool,
}

/// What is said for as long as the server learns.
const LEARNING: &str = "egress.learn is on: tools in every sandbox reach every public host, unless their workflow narrows it; \
    make a list of it with `caisson egress suggest`, put that into egress.allow, and turn egress.learn off";

/// One credential for HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credential {
    /// `http://registry.example.com/` or deeper, or `https://` for what an `https://` rule sends on.
    pub url_prefix: Url,
    /// User name of Basic authentication; without one the token is sent as a bearer token.
    #[serde(default)]
    pub username: Option<String>,
    /// File with the token.
    pub token_file: PathBuf,
}

impl Egress {
    /// Adds what cannot be used to `faults`.
    pub(super) fn check(&self, faults: &mut Vec<String>) {
        if self.allow.len() > RULES {
            faults.push(format!("egress.allow has more than {RULES} rules"));
        }
        faults.extend(faults_of::<Rule>("egress.allow", &self.allow));
        faults.extend(faults_of::<Preset>("egress.presets", &self.presets));
        faults.extend(faults_of::<AddressRange>("egress.allow_private", &self.allow_private));
        for entry in self.hosts.iter().filter(|entry| host(entry).is_none()) {
            faults.push(format!("egress.hosts has \"{}\"; write name=address", entry.escape_debug()));
        }
    }

    /// What the gateway starts with, and what people should know of it.
    ///
    /// # Errors
    /// A token's file, or that of the certificates, cannot be read.
    pub(crate) fn upstreams(&self, clients: &Clients) -> anyhow::Result<(EgressUpstreams, Vec<String>)> {
        let mut notes = Vec::new();
        notes.extend(self.learn.then(|| LEARNING.to_owned()));
        let mut presets = Vec::new();
        for preset in parsed::<Preset>(&self.presets) {
            let found = clients.read(preset);
            notes.extend(found.notes);
            presets.push((preset, found.rules));
        }
        let credential = |credential: &Credential| {
            Ok(EgressCredential {
                url_prefix: credential.url_prefix.clone(),
                username: credential.username.clone(),
                token: super::read_secret("egress.credentials.token_file", &credential.token_file)?,
            })
        };
        let upstreams = EgressUpstreams {
            rules: parsed(&self.allow),
            presets,
            allow_private: parsed(&self.allow_private),
            hosts: self.hosts.iter().filter_map(|entry| host(entry)).collect(),
            credentials: self.credentials.iter().map(credential).collect::<anyhow::Result<_>>()?,
            extra_ca_pem: crate::inputs::read_pem("egress.extra_ca_file", self.extra_ca_file.as_deref())?,
            learn: self.learn,
        };
        Ok((upstreams, notes))
    }
}

/// Those that can be read; the others were found by [`Egress::check`].
pub(super) fn parsed<T: FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

pub(super) fn faults_of<T: FromStr>(key: &str, texts: &[String]) -> Vec<String>
where
    T::Err: std::fmt::Display,
{
    let fault = |text: &String| text.parse::<T>().err().map(|error| format!("{key}: {error}"));
    texts.iter().filter_map(fault).collect()
}

fn host(entry: &str) -> Option<(String, IpAddr)> {
    let (name, address) = entry.split_once('=')?;
    match Host::parse(name).ok()? {
        Host::Name(name) => Some((name, address.parse().ok()?)),
        Host::Address(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(allow: &[&str], hosts: &[&str]) -> Egress {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Egress {
            allow: list(allow),
            presets: Vec::new(),
            allow_private: Vec::new(),
            hosts: list(hosts),
            credentials: Vec::new(),
            extra_ca_file: None,
            learn: false,
        }
    }

    #[test]
    fn every_entry_that_cannot_be_used_is_told() {
        let mut faults = Vec::new();
        let all = Egress {
            presets: vec!["gem".to_owned()],
            allow_private: vec!["10.0.0.0/4".to_owned()],
            ..egress(
                &["https://x.example:443,8443/", "x.example"],
                &["nothing", "10.0.0.1=10.0.0.2", "a.example=x"],
            )
        };
        all.check(&mut faults);
        assert_eq!(faults.len(), 6, "{faults:?}");
        for part in ["one port", "gem", "10.0.0.0/4", "\"nothing\"", "10.0.0.1=", "a.example=x"] {
            assert!(faults.iter().any(|fault| fault.contains(part)), "{part} in {faults:?}");
        }
        let many = vec!["x.example"; RULES + 1];
        let mut faults = Vec::new();
        egress(&many, &[]).check(&mut faults);
        assert!(faults[0].contains("256 rules"), "{faults:?}");
    }

    #[test]
    fn what_is_written_is_what_the_gateway_gets() {
        let rules = ["*.x.example", "http://y.example/", "https://y.example/"];
        let mut written = egress(&rules, &["Z.example=10.0.0.1", "z.example=::1"]);
        let (upstreams, notes) = written.upstreams(&Clients::default()).unwrap();
        assert_eq!((upstreams.rules.len(), upstreams.hosts.len(), notes.len()), (3, 2, 0));
        assert_eq!(upstreams.hosts[0].0, "z.example");
        assert_eq!(upstreams.extra_ca_pem, None);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "authorities").unwrap();
        written.extra_ca_file = Some(file.path().to_owned());
        let (upstreams, _) = written.upstreams(&Clients::default()).unwrap();
        assert_eq!(upstreams.extra_ca_pem.as_deref(), Some(&b"authorities"[..]));
        assert!(!upstreams.learn);
        let learning = Egress { learn: true, ..written.clone() };
        let (upstreams, notes) = learning.upstreams(&Clients::default()).unwrap();
        assert!(upstreams.learn && notes[0].contains("turn egress.learn off"), "{notes:?}");
        written.extra_ca_file = Some("/nonexistent/ca.pem".into());
        let fault = written.upstreams(&Clients::default()).err().unwrap();
        assert!(fault.to_string().contains("egress.extra_ca_file"), "{fault}");
    }
}
