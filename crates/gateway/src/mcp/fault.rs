//! Why an MCP server is not reached, in sentences for the agent and the operator who read them.
//!
//! The statuses are chosen for Claude Code 2.1.330, measured: at 401 it looks for an OAuth server at the door and tries to
//! register itself, at 403 it notes in its home that the server needs a login and does not ask again, and at 404 it does not
//! show the reason. At 424 it gives up at once and shows it; at 502, 503 and 504 it does so after three tries.

use std::net::IpAddr;

use http::StatusCode;

use super::tools::MessageFault;
use crate::egress;
use crate::problem::Refusal;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The path is no server's.
    Path,
    /// The workflow has no such server.
    Unknown,
    /// Neither POST, GET nor DELETE.
    Method,
    /// No rule of the operator has its host.
    NotAllowed { rule: String },
    /// The name has no address that may be reached.
    PrivateAddress { address: IpAddr, what: &'static str },
    /// [`super::bounds::MCP_STREAMS`].
    TooManyAtOnce { bound: usize },
    /// [`super::bounds::MCP_REQUESTS`].
    TooManyRequests { bound: u64 },
    /// [`super::bounds::MCP_REQUEST_BYTES`].
    RequestTooLarge { bound: u64 },
    /// [`super::bounds::MCP_REPLY_BYTES`].
    ReplyTooLarge { bound: u64 },
    /// [`super::bounds::MCP_SENT_BYTES`].
    TooMuchSent { bound: u64 },
    /// [`super::bounds::MCP_RECEIVED_BYTES`].
    TooMuchReceived { bound: u64 },
    /// It may call a tool that the workflow takes away.
    Message(MessageFault),
    /// The run has ended.
    Over,
    /// The server wants a credential, and there is none.
    NoCredential { status: u16 },
    /// The server does not take the credential that there is.
    Refused { status: u16, credential: String },
    /// It leads elsewhere.
    Redirect { status: u16 },
    /// Its reply is compressed although nobody asked for it.
    Encoded,
    /// The name has no address at all.
    Unresolved,
    /// The resolver did not answer in time.
    ResolveTimeout,
    /// Nobody took the connection, or TLS failed.
    Unreachable,
    /// It broke off, or did not answer in HTTP.
    Broken,
    /// It fell silent: [`super::bounds::MCP_FIRST_BYTE`], [`super::bounds::MCP_IDLE`], [`super::bounds::MCP_TOTAL`].
    Idle,
}

impl From<egress::Fault> for Fault {
    fn from(fault: egress::Fault) -> Self {
        match fault {
            egress::Fault::PrivateAddress { address, what } => Self::PrivateAddress { address, what },
            egress::Fault::Unresolved => Self::Unresolved,
            egress::Fault::ResolveTimeout => Self::ResolveTimeout,
            // None of them comes of looking for an address.
            egress::Fault::BadRequest { .. }
            | egress::Fault::HostMismatch { .. }
            | egress::Fault::NotAllowed { .. }
            | egress::Fault::NoTunnel { .. }
            | egress::Fault::NotInWorkflow { .. }
            | egress::Fault::TooManyAtOnce
            | egress::Fault::TooManyConnections { .. }
            | egress::Fault::TooManyTargets
            | egress::Fault::TooMuchSent { .. }
            | egress::Fault::TooMuchReceived { .. }
            | egress::Fault::Unreachable
            | egress::Fault::ConnectTimeout
            | egress::Fault::Broken
            | egress::Fault::Idle
            | egress::Fault::Tls { .. }
            | egress::Fault::Over => Self::Unreachable,
        }
    }
}

impl Fault {
    /// A stable code, of which what follows `mcp_` is the reason in events; the answer's status; and whether the gateway
    /// refused by a rule or a bound of its own: else the server failed.
    const fn kind(&self) -> (&'static str, StatusCode, bool) {
        const DEPENDENCY: StatusCode = StatusCode::FAILED_DEPENDENCY;
        match self {
            Self::Path => ("mcp_path", StatusCode::NOT_FOUND, true),
            Self::Unknown => ("mcp_unknown", StatusCode::NOT_FOUND, true),
            Self::Method => ("mcp_method", StatusCode::METHOD_NOT_ALLOWED, true),
            Self::NotAllowed { .. } => ("mcp_not_allowed", DEPENDENCY, true),
            Self::PrivateAddress { .. } => ("mcp_private_address", DEPENDENCY, true),
            Self::TooManyAtOnce { .. } => ("mcp_too_many_at_once", StatusCode::SERVICE_UNAVAILABLE, true),
            Self::TooManyRequests { .. } => ("mcp_too_many_requests", DEPENDENCY, true),
            Self::RequestTooLarge { .. } => ("mcp_request_too_large", StatusCode::PAYLOAD_TOO_LARGE, true),
            Self::ReplyTooLarge { .. } => ("mcp_reply_too_large", DEPENDENCY, true),
            Self::TooMuchSent { .. } => ("mcp_too_much_sent", DEPENDENCY, true),
            Self::TooMuchReceived { .. } => ("mcp_too_much_received", DEPENDENCY, true),
            Self::Message(fault) => fault.kind(),
            Self::Over => ("mcp_run_over", DEPENDENCY, true),
            Self::NoCredential { .. } => ("mcp_no_credential", DEPENDENCY, false),
            Self::Refused { .. } => ("mcp_refused", DEPENDENCY, false),
            Self::Redirect { .. } => ("mcp_redirect", DEPENDENCY, false),
            Self::Encoded => ("mcp_encoded", DEPENDENCY, false),
            Self::Unresolved => ("mcp_unresolved", StatusCode::BAD_GATEWAY, false),
            Self::ResolveTimeout => ("mcp_resolve_timeout", StatusCode::GATEWAY_TIMEOUT, false),
            Self::Unreachable => ("mcp_unreachable", StatusCode::BAD_GATEWAY, false),
            Self::Broken => ("mcp_broken", StatusCode::BAD_GATEWAY, false),
            Self::Idle => ("mcp_idle", StatusCode::GATEWAY_TIMEOUT, false),
        }
    }

    pub(super) const fn code(&self) -> &'static str {
        self.kind().0
    }

    pub(super) const fn is_denial(&self) -> bool {
        self.kind().2
    }

    /// The setting that would let it through; none where no setting can.
    pub(super) fn remedy(&self) -> Option<(&'static str, String)> {
        if let Self::NotAllowed { rule } = self {
            return Some(("mcp.allow", rule.clone()));
        }
        let Self::PrivateAddress { address, .. } = self else { return None };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Some(("mcp.allow_private", format!("{address}/{bits}")))
    }

    /// The refusal; `server` is the name that was asked for, `host` where it is.
    pub(super) fn refusal(&self, server: &str, host: &str) -> Refusal {
        let (code, status, _) = self.kind();
        Refusal::new(status, code, self.message(server, host))
    }

    fn message(&self, server: &str, host: &str) -> String {
        match self {
            Self::Path => {
                "behind /mcp/ stands the name of one of the workflow's MCP servers, and nothing more"
                    .to_owned()
            }
            Self::Unknown => format!("this run's workflow has no HTTP MCP server \"{server}\""),
            Self::Method => "an MCP server takes POST, GET and DELETE".to_owned(),
            Self::NotAllowed { rule } => format!(
                "the MCP server \"{server}\" at {host} is not among the hosts that workflows may name; whoever runs the server \
                 can allow it with \"{rule}\" in mcp.allow"
            ),
            Self::PrivateAddress { address, what } => format!(
                "the MCP server \"{server}\" at {host} leads to {address}, {what}; only public addresses are reached, and those \
                 that the server's mcp.allow_private has"
            ),
            Self::TooManyAtOnce { bound } => {
                format!("{bound} requests of this run to MCP servers are under way; try again")
            }
            Self::TooManyRequests { bound } => {
                format!("this run has made {bound} requests to MCP servers, and may make no more")
            }
            Self::RequestTooLarge { bound } => {
                format!("a request to an MCP server has at most {bound} bytes; send less")
            }
            Self::ReplyTooLarge { bound } => {
                format!("the MCP server \"{server}\" answered with more than {bound} bytes")
            }
            Self::TooMuchSent { bound } => {
                format!("this run has sent {bound} bytes to MCP servers, and may send no more")
            }
            Self::TooMuchReceived { bound } => {
                format!("this run has received {bound} bytes from MCP servers, and may receive no more")
            }
            Self::Message(fault) => fault.message(server),
            Self::Over => "the run has ended, and with it its way to MCP servers".to_owned(),
            Self::NoCredential { status } => format!(
                "the MCP server \"{server}\" wants a credential (status {status}), and there is none for its url; add one with \
                 `caisson credential add --kind mcp_header`"
            ),
            Self::Refused { status, credential } => format!(
                "the MCP server \"{server}\" refused the credential \"{credential}\" (status {status}); look whether it is right \
                 and still valid, and rotate it"
            ),
            Self::Redirect { status } => format!(
                "the MCP server \"{server}\" leads elsewhere (status {status}), which is not followed; name its own url in the \
                 workflow"
            ),
            Self::Encoded => {
                format!("the MCP server \"{server}\" compressed its answer, which nobody asked for")
            }
            Self::Unresolved => {
                format!(
                    "the server finds no address for {host} of the MCP server \"{server}\"; check its url"
                )
            }
            Self::ResolveTimeout => {
                format!(
                    "the server got no address for {host} of the MCP server \"{server}\" in time; try again"
                )
            }
            Self::Unreachable => {
                format!(
                    "the MCP server \"{server}\" at {host} takes no connection, or its certificate is not trusted"
                )
            }
            Self::Broken => {
                format!("the MCP server \"{server}\" at {host} broke off, or did not answer in HTTP")
            }
            Self::Idle => format!("nothing came from the MCP server \"{server}\" for too long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_has_a_status_that_makes_the_agent_look_for_a_login() {
        let none = || String::new();
        let faults = [
            Fault::Path,
            Fault::Unknown,
            Fault::Method,
            Fault::NotAllowed { rule: none() },
            Fault::PrivateAddress { address: IpAddr::from([10, 0, 0, 1]), what: "x" },
            Fault::TooManyAtOnce { bound: 1 },
            Fault::TooManyRequests { bound: 1 },
            Fault::RequestTooLarge { bound: 1 },
            Fault::ReplyTooLarge { bound: 1 },
            Fault::TooMuchSent { bound: 1 },
            Fault::TooMuchReceived { bound: 1 },
            Fault::Message(MessageFault::Tool { rule: none() }),
            Fault::Message(MessageFault::Unclear),
            Fault::Message(MessageFault::Broken),
            Fault::Over,
            Fault::NoCredential { status: 401 },
            Fault::Refused { status: 403, credential: none() },
            Fault::Redirect { status: 302 },
            Fault::Encoded,
            Fault::Unresolved,
            Fault::ResolveTimeout,
            Fault::Unreachable,
            Fault::Broken,
            Fault::Idle,
        ];
        for fault in &faults {
            let refusal = fault.refusal("notes", "h:443");
            assert!(!matches!(refusal.status.as_u16(), 401 | 403), "{fault:?}");
            assert!(refusal.code.starts_with("mcp_") && !refusal.message.is_empty());
        }
        let codes: std::collections::BTreeSet<_> = faults.iter().map(Fault::code).collect();
        assert_eq!(codes.len(), faults.len());
    }

    #[test]
    fn the_remedy_is_the_setting_that_would_let_it_through() {
        let remedy = |address: IpAddr| Fault::PrivateAddress { address, what: "x" }.remedy().unwrap();
        assert_eq!(remedy(IpAddr::from([10, 0, 0, 1])), ("mcp.allow_private", "10.0.0.1/32".to_owned()));
        assert_eq!(remedy("::1".parse().unwrap()).1, "::1/128");
        assert_eq!(Fault::NotAllowed { rule: "h:443".to_owned() }.remedy().unwrap().0, "mcp.allow");
        assert_eq!(Fault::Idle.remedy(), None);
    }
}
