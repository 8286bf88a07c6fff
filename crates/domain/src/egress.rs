//! Where the tools in a sandbox may go: rules, presets and address ranges, as texts and as decisions.
//!
//! A rule has one of three shapes. `host:443` is a *tunnel* rule: bytes to these ports, whatever they say, since what is
//! in a tunnel is encrypted end to end and nobody looks into it. `http://host/path/#GET,HEAD` is a rule for *plain
//! HTTP*, whose method and path can be judged. `https://host/path/#GET,HEAD` is a rule for plain HTTP of the tool's that
//! the gateway sends on over TLS. Each shape is one word without spaces, so that lists of them fit into a variable and into
//! a command line.

mod range;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use self::range::AddressRange;
use crate::run::text_enum;

/// Longest host name, in bytes (RFC 1035).
pub const HOST_BYTES: usize = 253;
/// Ports of one rule.
pub const RULE_PORTS: usize = 16;
/// Methods of one rule.
pub const RULE_METHODS: usize = 16;
/// Longest method, in bytes.
pub const METHOD_BYTES: usize = 32;
/// Longest path prefix of a rule, in bytes.
pub const RULE_PATH_BYTES: usize = 1024;
/// Entries of a workflow's `egress` list, and rules of an operator's.
pub const RULES: usize = 256;

/// Port of a tunnel or an HTTPS rule that names none.
pub const HTTPS_PORT: u16 = 443;
/// Port of a plain HTTP rule that names none.
pub const HTTP_PORT: u16 = 80;

text_enum! {
    /// Hosts that a package manager's own configuration on the server's machine names.
    Preset, "preset" {
        /// npm's registries.
        Npm = "npm",
        /// pip's indexes.
        Pip = "pip",
        /// Cargo's registries.
        Cargo = "cargo",
        /// apt's sources.
        Apt = "apt",
    }
}

/// Why a text is no host, target, rule or range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" {reason}")]
pub struct EgressTextError {
    text: String,
    reason: &'static str,
}

impl EgressTextError {
    fn new(text: &str, reason: &'static str) -> Self {
        let shown: String = text.chars().take(128).flat_map(char::escape_debug).collect();
        Self { text: shown, reason }
    }
}

/// A host, in its one spelling: lower case, no final dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name that has to be resolved.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Reads a host as it stands in a URL: a name, an IPv4 address of four decimal parts, or an IPv6 address in brackets.
    ///
    /// Whatever the resolver would take for an address although it is not written as one (`127.1`, `0x7f.1`,
    /// `2130706433`) is no host at all: a rule for names must not reach an address.
    ///
    /// # Errors
    /// [`EgressTextError`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, EgressTextError> {
        let fault = |reason| Err(EgressTextError::new(text, reason));
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
            return address.map_or_else(
                || fault("is no IPv6 address in brackets"),
                |address| Ok(Self::Address(address.into())),
            );
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > HOST_BYTES {
            return fault("is not 1 to 253 bytes long");
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !name.split('.').all(label) {
            return fault("is no host name; write it in ASCII, with letters, digits, hyphens and dots");
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return fault("ends like an address and is none; write an IPv4 address as four decimal numbers");
        }
        Ok(Self::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => out.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(out, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(out, "[{address}]"),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port, not 0.
    pub port: u16,
}

impl Target {
    /// Reads `host:port`; without a port it has `default`.
    ///
    /// # Errors
    /// [`EgressTextError`] with what is wrong.
    pub fn parse(text: &str, default: Option<u16>) -> Result<Self, EgressTextError> {
        let fault = |reason| EgressTextError::new(text, reason);
        let (host, port) = split_port(text);
        let port = match port {
            Some(digits) => port_number(digits).ok_or_else(|| fault("has no port from 1 to 65535"))?,
            None => default.ok_or_else(|| fault("has no port"))?,
        };
        Ok(Self { host: Host::parse(host)?, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.host, self.port)
    }
}

/// The host and what stands behind its colon.
fn split_port(text: &str) -> (&str, Option<&str>) {
    let behind_brackets = text.rfind(']').map_or(0, |end| end + 1);
    match text[behind_brackets..].find(':') {
        Some(colon) => (&text[..behind_brackets + colon], Some(&text[behind_brackets + colon + 1..])),
        None => (text, None),
    }
}

fn port_number(digits: &str) -> Option<u16> {
    let plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port != 0)
}

/// What a tool wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wanted {
    /// Where to.
    pub target: Target,
    /// How.
    pub via: Via,
}

/// How a tool goes out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// `CONNECT`: bytes both ways.
    Tunnel,
    /// One plain HTTP request.
    Http {
        /// Its method.
        method: String,
        /// Its path, without query.
        path: String,
    },
    /// One HTTP request that the gateway sends over TLS; the tool made it in plain ([`Rule::secured`]).
    Https {
        /// Its method.
        method: String,
        /// Its path, without query.
        path: String,
    },
}

impl Via {
    /// The word for it in events: `tunnel`, `http` or `https`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Http { .. } => "http",
            Self::Https { .. } => "https",
        }
    }
}

/// Hosts that a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This host alone.
    Exactly(Host),
    /// Every name below this one, which is not itself meant. No address matches.
    Below(String),
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, EgressTextError> {
        let Some(suffix) = text.strip_prefix("*.") else { return Ok(Self::Exactly(Host::parse(text)?)) };
        match Host::parse(suffix)? {
            Host::Name(name) => Ok(Self::Below(name)),
            Host::Address(_) => Err(EgressTextError::new(text, "has no name behind the star")),
        }
    }

    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exactly(this), host) => this == host,
            (Self::Below(suffix), Host::Name(name)) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(host) => host.fmt(out),
            Self::Below(suffix) => write!(out, "*.{suffix}"),
        }
    }
}

/// What a rule lets through.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Bytes both ways, and so plain HTTP of any kind as well.
    Tunnel,
    /// Plain HTTP requests.
    Http {
        /// Their methods, sorted; empty for any.
        methods: Vec<String>,
        /// Their path begins with it, in whole parts.
        path: String,
    },
    /// HTTP requests that the gateway sends over TLS. Such a rule has one port.
    Https {
        /// Their methods, sorted; empty for any.
        methods: Vec<String>,
        /// Their path begins with it, in whole parts.
        path: String,
    },
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// To these hosts.
    pub host: HostPattern,
    /// To these ports, sorted.
    pub ports: Vec<u16>,
    /// What.
    pub scope: Scope,
}

impl Rule {
    /// Whether the rule lets this through.
    #[must_use]
    pub fn allows(&self, wanted: &Wanted) -> bool {
        self.host.matches(&wanted.target.host)
            && self.ports.contains(&wanted.target.port)
            && match (&self.scope, &wanted.via) {
                (Scope::Tunnel, _) => true,
                (Scope::Http { .. } | Scope::Https { .. }, Via::Tunnel)
                | (Scope::Http { .. }, Via::Https { .. })
                | (Scope::Https { .. }, Via::Http { .. }) => false,
                (Scope::Http { methods, path: prefix }, Via::Http { method, path })
                | (Scope::Https { methods, path: prefix }, Via::Https { method, path }) => {
                    (methods.is_empty() || methods.contains(method)) && is_below(path, prefix)
                }
            }
    }

    /// What a plain HTTP request becomes by an HTTPS rule that is for it: the same over TLS, to the rule's port. It is for
    /// requests to its host and port 80, which a tool names that was given `http://host/`, or to its own port.
    #[must_use]
    pub fn secured(&self, wanted: &Wanted) -> Option<Wanted> {
        let (Scope::Https { .. }, [port]) = (&self.scope, self.ports.as_slice()) else { return None };
        let Via::Http { method, path } = &wanted.via else { return None };
        if ![HTTP_PORT, *port].contains(&wanted.target.port) {
            return None;
        }
        let target = Target { host: wanted.target.host.clone(), port: *port };
        let via = Via::Https { method: method.clone(), path: path.clone() };
        Some(Wanted { target, via }).filter(|secured| self.allows(secured))
    }

    /// The smallest rule that lets this through and can be written.
    #[must_use]
    pub fn exactly(wanted: &Wanted) -> Self {
        let fitting = |path: &String| {
            let above = path_above(path, RULE_PATH_BYTES);
            if is_plain(path) && is_writable(above) { above.to_owned() } else { "/".to_owned() }
        };
        let scope = match &wanted.via {
            Via::Tunnel => Scope::Tunnel,
            Via::Http { method, path } => {
                Scope::Http { methods: methods_of_rule([method]), path: fitting(path) }
            }
            Via::Https { method, path } => {
                Scope::Https { methods: methods_of_rule([method]), path: fitting(path) }
            }
        };
        let host = HostPattern::Exactly(wanted.target.host.clone());
        Self { host, ports: vec![wanted.target.port], scope }
    }
}

/// Whether `path` is `prefix` or lies below it. A path that another reader could resolve to somewhere else lies below `/`
/// alone.
fn is_below(path: &str, prefix: &str) -> bool {
    if prefix == "/" {
        return true;
    }
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    is_plain(path) && (rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

/// Whether every reader takes the path for one that lies below the same prefixes. An encoded slash counts as a slash, which some
/// make of it (npm asks for `/@scope%2fname`), so that there is no empty part and none of dots by either reading. What could become
/// dots or slashes later is in no plain path: parameters (`..;`), other encoded characters, and what is encoded twice.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    const SPELLINGS: [&str; 7] = [";", "%3b", "%2e", "%5c", "%25", "%00", "\\"];
    let decoded = path.to_ascii_lowercase().replace("%2f", "/");
    path.starts_with('/')
        && !SPELLINGS.iter().any(|spelling| decoded.contains(spelling))
        && !decoded.contains("//")
        && !decoded.split('/').any(|part| matches!(part, "." | ".."))
}

/// The path, or where it is longer than `bytes` the longest one above it that is not.
#[must_use]
pub fn path_above(path: &str, bytes: usize) -> &str {
    if path.len() <= bytes {
        return path;
    }
    let slash = path.as_bytes()[..bytes].iter().rposition(|byte| *byte == b'/');
    slash.map_or("/", |slash| &path[..=slash])
}

/// Methods as a rule names them: none, which is any, where it cannot name one of them or there are too many.
pub fn methods_of_rule<'a>(methods: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let methods: Vec<String> = methods.into_iter().cloned().collect();
    let can_be = methods.len() <= RULE_METHODS && methods.iter().all(|name| is_method(name));
    if can_be { methods } else { Vec::new() }
}

/// The longest path that both are or lie below.
#[must_use]
pub fn common_path(one: &str, other: &str) -> String {
    if one == other {
        return one.to_owned();
    }
    let shared = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    let end = one.as_bytes()[..shared].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    if end == 0 { "/".to_owned() } else { one[..end].to_owned() }
}

/// Whether the path can stand in a rule.
fn is_writable(path: &str) -> bool {
    path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'?' | b'"' | b'<' | b'>' | b'`'))
}

impl FromStr for Rule {
    type Err = EgressTextError;

    fn from_str(text: &str) -> Result<Self, EgressTextError> {
        let fault = |reason| EgressTextError::new(text, reason);
        let (authority, default, scope) = if let Some(rest) = text.strip_prefix("http://") {
            let (authority, methods, path) = parts_of(rest).map_err(fault)?;
            (authority, HTTP_PORT, Scope::Http { methods, path })
        } else if let Some(rest) = text.strip_prefix("https://") {
            let (authority, methods, path) = parts_of(rest).map_err(fault)?;
            (authority, HTTPS_PORT, Scope::Https { methods, path })
        } else if text.contains("://") {
            return Err(fault("is neither host:port nor an http:// or https:// URL"));
        } else if text.contains(['/', '#']) {
            return Err(fault(
                "has a path without http:// or https:// before it; what is in a tunnel cannot be judged",
            ));
        } else {
            (text, HTTPS_PORT, Scope::Tunnel)
        };
        if authority.contains('@') {
            return Err(fault("has a user name; a rule has none"));
        }
        let (host, ports) = split_port(authority);
        let mut ports: Vec<u16> = match ports {
            None => vec![default],
            Some(list) => list
                .split(',')
                .map(|digits| port_number(digits).ok_or_else(|| fault("has a port that is not 1 to 65535")))
                .collect::<Result<_, _>>()?,
        };
        ports.sort_unstable();
        ports.dedup();
        if ports.len() > RULE_PORTS {
            return Err(fault("has more than 16 ports"));
        }
        if ports.len() > 1 && matches!(scope, Scope::Https { .. }) {
            return Err(fault("has more than one port; an https:// rule has one, write a rule for each"));
        }
        Ok(Self { host: HostPattern::parse(host)?, ports, scope })
    }
}

/// Authority, methods and path of a rule, behind its scheme.
fn parts_of(rest: &str) -> Result<(&str, Vec<String>, String), &'static str> {
    let (rest, methods) = rest.split_once('#').map_or((rest, ""), |(rest, methods)| (rest, methods));
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    if path.len() > RULE_PATH_BYTES || !is_plain(path) || !is_writable(path) {
        return Err("has a path that is no plain prefix, such as /simple/");
    }
    let methods = methods_of(methods).ok_or("has a method that is none")?;
    Ok((authority, methods, path.to_owned()))
}

/// Whether a rule can name it. A tool may send others: `post` is another method than `POST`.
fn is_method(name: &str) -> bool {
    (1..=METHOD_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
}

fn methods_of(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let mut methods: Vec<String> = text.split(',').map(str::to_owned).collect();
    methods.sort_unstable();
    methods.dedup();
    (methods.len() <= RULE_METHODS && methods.iter().all(|name| is_method(name))).then_some(methods)
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let (scheme, default, methods, path) = match &self.scope {
            Scope::Tunnel => return write!(out, "{}:{ports}", self.host),
            Scope::Http { methods, path } => ("http", HTTP_PORT, methods, path),
            Scope::Https { methods, path } => ("https", HTTPS_PORT, methods, path),
        };
        write!(out, "{scheme}://{}", self.host)?;
        if self.ports != [default] {
            write!(out, ":{ports}")?;
        }
        out.write_str(path)?;
        if methods.is_empty() { Ok(()) } else { write!(out, "#{}", methods.join(",")) }
    }
}

/// One entry of a workflow's `egress` list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// What the operator's preset has.
    Preset(Preset),
    /// A rule.
    Rule(Rule),
}

impl FromStr for Choice {
    type Err = EgressTextError;

    fn from_str(text: &str) -> Result<Self, EgressTextError> {
        match text.parse::<Preset>() {
            Ok(preset) => Ok(Self::Preset(preset)),
            Err(_) => text.parse().map(Self::Rule),
        }
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
