//! The sections `api` and `tls`.

use std::path::PathBuf;

use serde::Deserialize;

use super::Settings;

/// Connections that the API may be told to take.
const CONNECTIONS: std::ops::RangeInclusive<usize> = 8..=65_536;
/// The HTTP API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Api {
    /// Requests of one API key in a minute, 0 for no limit. Default 3000. `CAISSON_API__RATE_PER_MINUTE`.
    pub rate_per_minute: u32,
    /// Connections at the same time, 8 to 65536. Default 1024. `CAISSON_API__CONNECTIONS`.
    pub connections: usize,
    /// Connections of one address at the same time. Default 256. `CAISSON_API__CONNECTIONS_PER_PEER`.
    pub connections_per_peer: usize,
    /// The part of the connections, and of the event streams, that one API key may have at the same time, in percent, 1 to
    /// 100. Default 25. `CAISSON_API__KEY_PERCENT`.
    pub key_percent: usize,
    /// Origins whose pages may call the API from a browser. Default: none. `CAISSON_API__CORS_ORIGINS`, separated by spaces.
    pub cors_origins: Vec<String>,
    /// Whether the Automagik-compatible API is served as well. Default true. `CAISSON_API__AUTOMAGIK`.
    pub automagik: bool,
}

/// TLS of the API: both files or neither.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    /// PEM file with the server's certificate and those between it and its authority. `CAISSON_TLS__CERT_FILE`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the certificate's key. `CAISSON_TLS__KEY_FILE`.
    pub key_file: Option<PathBuf>,
}

impl Settings {
    /// Adds what does not fit in the two.
    pub(super) fn check_api(&self, faults: &mut Vec<String>) {
        let (connections, per_peer) = (self.api.connections, self.api.connections_per_peer);
        if !CONNECTIONS.contains(&connections) {
            faults.push(format!(
                "api.connections is {connections}; give {} to {}",
                CONNECTIONS.start(),
                CONNECTIONS.end()
            ));
        }
        if !(1..=connections).contains(&per_peer) {
            faults.push(format!("api.connections_per_peer is {per_peer}; give 1 to api.connections"));
        }
        if !(1..=100).contains(&self.api.key_percent) {
            faults.push(format!("api.key_percent is {}; give 1 to 100", self.api.key_percent));
        }
        for origin in &self.api.cors_origins {
            if let Err(fault) = caisson_api::check_origin(origin) {
                faults.push(format!("api.cors_origins: {fault}"));
            }
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            faults.push("tls has only one of cert_file and key_file; give both or neither".to_owned());
        }
    }
}
