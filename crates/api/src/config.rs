//! What the API is told at start.

use std::path::PathBuf;
use std::time::Duration;

use caisson_domain::artifacts::SharedArtifacts;
use caisson_domain::git::{AllowList, Repository};
use caisson_domain::id::ServerId;
use caisson_domain::retention::Retention;

/// Time between comments on an event stream on which nothing happens, so that nobody between takes it for dead.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Longest time until an event stream looks for events that no hint told of.
pub const POLL: Duration = Duration::from_secs(2);
/// Longest life of one event stream; the reader then comes again, and shows its key again.
pub const STREAM_LIFE: Duration = Duration::from_hours(1);
/// Event streams open at once; the next one is refused with 429.
pub const STREAMS: usize = 512;
/// The part of [`STREAMS`], and of the connections on which a key was accepted, that one API key may have, in percent. The
/// next one is refused with 429, so that whoever has one key does not keep out those who have others.
pub const KEY_PERCENT: usize = 25;
/// How long an answer of `/readyz` is good for, and a proof that the store takes writes: whoever asks needs no key.
pub const READY_FOR: Duration = Duration::from_secs(1);
/// Bodies longer than [`caisson_domain::limits::API_BODY_BYTES`] that are read and dealt with at once: one with attachments may need
/// four times [`caisson_domain::attachment::ATTACHMENT_BODY_BYTES`] of memory, and what [`caisson_domain::json::JSON_VALUES`] take. Others wait, for [`LARGE_BODY_WAIT`] at most.
pub const LARGE_BODIES: usize = 4;
/// Longest time that a large body waits for its place; then it is refused with 429. It does not count as time for reading.
pub const LARGE_BODY_WAIT: Duration = Duration::from_secs(30);
/// Conversations, and runs' progress, that are read from their events at once: each reads many events, and keeps what it shows. Others
/// wait, for [`LONG_READ_WAIT`] at most.
pub const LONG_READS: usize = 4;
/// Longest time that such a read waits for its place; then it is refused with 429.
pub const LONG_READ_WAIT: Duration = Duration::from_secs(30);
/// Longest time for reading the body of a request of the usual size, and what a large one has at first.
pub const BODY_READ: Duration = Duration::from_secs(30);
/// Bytes that must come in each second of a large body, on average: for so many that have come it has a second more than
/// [`BODY_READ`].
pub const BODY_BYTES_PER_S: u32 = 64 * 1024;

/// Requests of one API key in a minute, all of them at once if need be.
pub const RATE_PER_MINUTE: u32 = 3_000;
/// Failed authentications of one address in a minute; beyond them only keys that opened something lately are looked up.
pub const FAILURES_PER_MINUTE: u32 = 30;

/// Longest time that a connection may take no byte of what it is sent; then it is cut.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// Longest time for reading the head of a request, the wait for it on an idle connection included. Short, because it
/// is what bounds a client that opens connections and says nothing.
pub const HEAD_READ: Duration = Duration::from_secs(15);
/// Longest time that requests under way have at shutdown.
pub const DRAIN: Duration = Duration::from_secs(10);
/// The same for connections accepted while more than half of the places for callers without a key are taken.
pub const HEAD_READ_PRESSED: Duration = Duration::from_secs(3);
/// Connections open at once. One more makes room by cutting the one that has waited longest for a request and on which
/// no key was ever accepted; where there is none, it waits to be accepted.
pub const CONNECTIONS: usize = 1024;
/// Connections of one address open at once; of IPv6, of one network of 64 bits. One more makes room the same way, or is
/// refused.
pub const CONNECTIONS_PER_PEER: usize = 256;
/// The part of the connections that only callers with a valid key can hold: one in so many.
pub const RESERVED_PART: usize = 4;

/// So many percent of `whole`, and one at least.
#[must_use]
pub const fn part(whole: usize, percent: usize) -> usize {
    let part = whole.saturating_mul(percent) / 100;
    if part == 0 { 1 } else { part }
}

/// What the router is told.
#[derive(Debug, Clone, Default)]
pub struct ApiConfig {
    /// Repositories that runs may name.
    pub allow: AllowList,
    /// The repository of a run that says nothing about one; it must pass `allow` like any other.
    pub default_repository: Option<Repository>,
    /// The server that this is, or is a part of.
    pub server: Option<ServerId>,
    /// The directory below which its artifacts are; nothing outside it, and outside of those of the other servers that share
    /// one, is ever sent.
    pub artifacts_dir: PathBuf,
    /// The directory of artifacts that it shares with other servers, if it does; its own is in it then.
    pub shared_artifacts: Option<SharedArtifacts>,
    /// The server's own directory, whose free space is told.
    pub state_dir: PathBuf,
    /// Whether sandboxes are made without images, so that a run that names one is refused.
    pub without_images: bool,
    /// Share of each budget at which the agents of runs that say nothing about it are told to wrap up, in percent; none: never.
    pub budget_soft_percent: Option<u32>,
    /// Whether the Automagik-compatible API is left out.
    pub without_automagik: bool,
    /// How long things are kept in projects that say nothing else.
    pub retention: Retention,
    /// The agent that the server has.
    pub agent: AgentInfo,
    /// Who may read `/metrics`.
    pub metrics_for: MetricsFor,
    /// Origins whose pages may call the API from a browser, each as a browser sends it; see [`check_origin`].
    pub cors_origins: Vec<String>,
    /// Whether callers come by TLS: then browsers are told to come no other way.
    pub tls: bool,
    /// Bounds.
    pub limits: ApiLimits,
}

/// Who may read `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetricsFor {
    /// Keys of the default project with the scope `admin`.
    #[default]
    Operators,
    /// Whoever reaches the API, without a key.
    Everyone,
}

/// The agent that the server has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its version; none when it is not installed.
    pub version: Option<String>,
}

/// Bounds of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiLimits {
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`POLL`].
    pub poll: Duration,
    /// See [`STREAM_LIFE`].
    pub stream_life: Duration,
    /// See [`STREAMS`].
    pub streams: usize,
    /// Those of one API key; see [`KEY_PERCENT`].
    pub streams_per_key: usize,
    /// See [`READY_FOR`].
    pub ready_for: Duration,
    /// See [`BODY_READ`].
    pub body_read: Duration,
    /// See [`BODY_BYTES_PER_S`].
    pub body_bytes_per_s: u32,
    /// See [`LARGE_BODY_WAIT`].
    pub large_body_wait: Duration,
    /// See [`LONG_READ_WAIT`].
    pub long_read_wait: Duration,
    /// See [`RATE_PER_MINUTE`]; 0 for no limit.
    pub rate_per_minute: u32,
    /// See [`FAILURES_PER_MINUTE`]; 0 for no limit.
    pub failures_per_minute: u32,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            heartbeat: HEARTBEAT,
            poll: POLL,
            stream_life: STREAM_LIFE,
            streams: STREAMS,
            streams_per_key: part(STREAMS, KEY_PERCENT),
            ready_for: READY_FOR,
            body_read: BODY_READ,
            body_bytes_per_s: BODY_BYTES_PER_S,
            large_body_wait: LARGE_BODY_WAIT,
            long_read_wait: LONG_READ_WAIT,
            rate_per_minute: RATE_PER_MINUTE,
            failures_per_minute: FAILURES_PER_MINUTE,
        }
    }
}

/// Bounds of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeLimits {
    /// See [`WRITE_STALL`].
    pub write_stall: Duration,
    /// See [`HEAD_READ`].
    pub head_read: Duration,
    /// See [`HEAD_READ_PRESSED`].
    pub head_read_pressed: Duration,
    /// See [`DRAIN`].
    pub drain: Duration,
    /// See [`CONNECTIONS`].
    pub connections: usize,
    /// See [`CONNECTIONS_PER_PEER`].
    pub connections_per_peer: usize,
    /// Those on which one API key was accepted; see [`KEY_PERCENT`].
    pub connections_per_key: usize,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            write_stall: WRITE_STALL,
            head_read: HEAD_READ,
            head_read_pressed: HEAD_READ_PRESSED,
            drain: DRAIN,
            connections: CONNECTIONS,
            connections_per_peer: CONNECTIONS_PER_PEER,
            connections_per_key: part(CONNECTIONS, KEY_PERCENT),
        }
    }
}

/// Checks that a text is an origin as browsers send it (RFC 6454, section 6.2): scheme, host and no port that is the
/// scheme's own.
///
/// # Errors
/// What is wrong with it, and what to write instead.
pub fn check_origin(text: &str) -> Result<(), String> {
    let url: url::Url = text.parse().map_err(|error| format!("\"{text}\" is no origin: {error}"))?;
    let origin = url.origin();
    // Browsers know no patterns here: it would match nobody, whatever was meant.
    if !matches!(url.scheme(), "http" | "https") || !origin.is_tuple() || text.contains('*') {
        return Err(format!("\"{text}\" is no origin of a web page; write https://host"));
    }
    let sent = origin.ascii_serialization();
    if sent == text { Ok(()) } else { Err(format!("\"{text}\" is not as browsers send it; write {sent}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_never_nothing() {
        for (whole, percent, wanted) in
            [(512, 25, 128), (1024, 25, 256), (3, 25, 1), (0, 25, 1), (8, 100, 8), (8, 1, 1)]
        {
            assert_eq!(part(whole, percent), wanted, "{percent} % of {whole}");
        }
    }

    #[test]
    fn an_origin_is_what_browsers_send_and_nothing_wider() {
        for good in ["https://ui.example.com", "http://127.0.0.1:3000", "https://[2001:db8::1]:8443"] {
            assert_eq!(check_origin(good), Ok(()));
        }
        for bad in [
            "*",
            "null",
            "ui.example.com",
            "https://",
            "https://*",
            "https://*.example.com",
            "https://ui.example.com/",
            "https://ui.example.com/x",
            "https://UI.example.com",
            "https://ui.example.com:443",
            "https://u@ui.example.com",
            "file:///x",
        ] {
            assert!(check_origin(bad).is_err(), "{bad}");
        }
    }
}
