//! Paths of the door. `/model/…`, `/git/…` and `/mcp/…` take the agent grant, all others the control grant; a grant is sent as
//! `Authorization: Bearer …`. What tools ask of hosts outside comes as `CONNECT` and in absolute form, with the agent grant as
//! `Proxy-Authorization: Bearer …`, whatever its path.

/// `GET`: long poll for [`super::Work`]; 204 when there is none yet.
pub const NEXT: &str = "/next";
/// `POST ?offset=N`, body: whole lines of [`super::JournalRecord`]; answers [`super::JournalAck`], also with
/// status 409 when `N` is not the acknowledged offset. `GET` answers the ack alone.
pub const JOURNAL: &str = "/journal";
/// `GET ?after=N`: long poll for [`super::Inputs`]; an empty list when there are none yet.
pub const INPUTS: &str = "/inputs";
/// `POST`: a [`super::DeltaBatch`]; 204, lossy by design.
pub const DELTAS: &str = "/deltas";
/// `PUT /artifacts/<run>/<name>`: a file to keep; 204. Idempotent by name.
pub const ARTIFACTS: &str = "/artifacts";
/// `PUT /transcript/<run>`: the agent's own record of the conversation, at most [`crate::limits::TRANSCRIPT_BYTES`] of UTF-8;
/// 204, in place of the session's older one. `GET` answers the session's archived one, or 404. One at a time, and so many of a
/// run; see [`super::TRANSCRIPT_BUSY`] and [`super::TRANSCRIPT_EARLY`].
pub const TRANSCRIPT: &str = "/transcript";
/// `GET /attachments/<run>/<number>`: the bytes of an attachment of the run that is in the sandbox, at most
/// [`crate::attachment::ATTACHMENT_BYTES`]. One at a time; see [`super::ATTACHMENT_BUSY`].
pub const ATTACHMENTS: &str = "/attachments";
/// The model API, below this prefix.
pub const MODEL: &str = "/model";
/// The run's repository by smart HTTP, below this prefix: `/git/origin/info/refs` and so on.
pub const GIT: &str = "/git";
/// Name of the run's repository below [`GIT`], and of its remote in the checkout.
pub const GIT_REMOTE: &str = "origin";
/// The workflow's MCP servers over HTTP: `/mcp/<name>`, and nothing below.
pub const MCP: &str = "/mcp";
