//! Bounds of the way to MCP servers. Tests shorten them.

use std::time::Duration;

/// One request to an MCP server, in bytes.
pub(crate) const MCP_REQUEST_BYTES: u64 = 4 * 1024 * 1024;
/// One reply of an MCP server, in bytes; a stream of messages is one reply.
pub(crate) const MCP_REPLY_BYTES: u64 = 64 * 1024 * 1024;
/// How long an MCP server may take until its reply begins: a tool works as long.
pub(crate) const MCP_FIRST_BYTE: Duration = Duration::from_mins(10);
/// Longest silence in the middle of a reply. The agent opens a stream that was cut again.
pub(crate) const MCP_IDLE: Duration = Duration::from_mins(5);
/// How long one exchange with an MCP server may take in all.
pub(crate) const MCP_TOTAL: Duration = Duration::from_hours(1);
/// Exchanges with MCP servers that one run may have under way; further ones are refused. Less than the sandbox has connections,
/// so that streams that stay open never keep it from the model.
pub(crate) const MCP_STREAMS: usize = 24;
/// Requests to MCP servers that one run may make.
pub(crate) const MCP_REQUESTS: u64 = 20_000;
/// Bytes that one run may send to MCP servers (1 GiB).
pub(crate) const MCP_SENT_BYTES: u64 = 1024 * 1024 * 1024;
/// Bytes that one run may receive from MCP servers (16 GiB).
pub(crate) const MCP_RECEIVED_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// Kinds of refusals and failures of one run that are told; each is told once.
pub(crate) const MCP_TOLD: usize = 100;

/// Bounds that tests shorten.
#[derive(Debug, Clone)]
pub(crate) struct McpBounds {
    /// [`MCP_REQUEST_BYTES`].
    pub(crate) request_bytes: u64,
    /// [`MCP_REPLY_BYTES`].
    pub(crate) reply_bytes: u64,
    /// [`MCP_FIRST_BYTE`].
    pub(crate) first_byte: Duration,
    /// [`MCP_IDLE`].
    pub(crate) idle: Duration,
    /// [`MCP_TOTAL`].
    pub(crate) total: Duration,
    /// [`MCP_STREAMS`].
    pub(crate) streams: usize,
    /// [`MCP_REQUESTS`].
    pub(crate) requests: u64,
    /// [`MCP_SENT_BYTES`].
    pub(crate) sent_bytes: u64,
    /// [`MCP_RECEIVED_BYTES`].
    pub(crate) received_bytes: u64,
    /// [`MCP_TOLD`].
    pub(crate) told: usize,
}

impl Default for McpBounds {
    fn default() -> Self {
        Self {
            request_bytes: MCP_REQUEST_BYTES,
            reply_bytes: MCP_REPLY_BYTES,
            first_byte: MCP_FIRST_BYTE,
            idle: MCP_IDLE,
            total: MCP_TOTAL,
            streams: MCP_STREAMS,
            requests: MCP_REQUESTS,
            sent_bytes: MCP_SENT_BYTES,
            received_bytes: MCP_RECEIVED_BYTES,
            told: MCP_TOLD,
        }
    }
}
