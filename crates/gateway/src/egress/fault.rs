//! Why a tool does not get out, in sentences for the agent that reads them.

use std::net::IpAddr;

use http::StatusCode;

use crate::bounds::{EGRESS_CONNECTIONS, EGRESS_TARGETS};
use crate::problem::Refusal;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request is none that can be judged.
    BadRequest { reason: String },
    /// The request line and the `Host` field name different hosts.
    HostMismatch { target: String },
    /// No rule of the operator has it.
    NotAllowed { rule: String },
    /// No rule has the tunnel; one has plain requests for `url`, which go on over TLS.
    NoTunnel { rule: String, url: String },
    /// The operator allows it, and the workflow did not choose it.
    NotInWorkflow { rule: String },
    /// The name has no address that may be reached.
    PrivateAddress { address: IpAddr, what: &'static str },
    /// [`crate::bounds::EGRESS_CONNECTIONS`].
    TooManyAtOnce,
    /// [`crate::bounds::EGRESS_TOTAL`].
    TooManyConnections { bound: u64 },
    /// [`crate::bounds::EGRESS_TARGETS`].
    TooManyTargets,
    /// [`crate::bounds::EGRESS_SENT_BYTES`].
    TooMuchSent { bound: u64 },
    /// [`crate::bounds::EGRESS_RECEIVED_BYTES`].
    TooMuchReceived { bound: u64 },
    /// The name has no address at all.
    Unresolved,
    /// The resolver did not answer in time.
    ResolveTimeout,
    /// Nobody took the connection.
    Unreachable,
    /// The connection was not made in time.
    ConnectTimeout,
    /// It was not reached over TLS, and what to do.
    Tls { what: &'static str },
    /// What answered was not HTTP, or it broke off.
    Broken,
    /// Nothing moved for [`crate::bounds::EGRESS_IDLE`].
    Idle,
    /// The run has ended.
    Over,
}

impl Fault {
    /// A stable word for it; its code is `egress_` and this.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest { .. } => "bad_request",
            Self::HostMismatch { .. } => "host_mismatch",
            Self::NotAllowed { .. } | Self::NoTunnel { .. } => "not_allowed",
            Self::NotInWorkflow { .. } => "not_in_workflow",
            Self::PrivateAddress { .. } => "private_address",
            Self::TooManyAtOnce => "too_many_at_once",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::TooManyTargets => "too_many_targets",
            Self::TooMuchSent { .. } => "too_much_sent",
            Self::TooMuchReceived { .. } => "too_much_received",
            Self::Unresolved => "unresolved",
            Self::ResolveTimeout => "resolve_timeout",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls { .. } => "tls",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Over => "run_over",
        }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::BadRequest { .. } => "egress_bad_request",
            Self::HostMismatch { .. } => "egress_host_mismatch",
            Self::NotAllowed { .. } | Self::NoTunnel { .. } => "egress_not_allowed",
            Self::NotInWorkflow { .. } => "egress_not_in_workflow",
            Self::PrivateAddress { .. } => "egress_private_address",
            Self::TooManyAtOnce => "egress_too_many_at_once",
            Self::TooManyConnections { .. } => "egress_too_many_connections",
            Self::TooManyTargets => "egress_too_many_targets",
            Self::TooMuchSent { .. } => "egress_too_much_sent",
            Self::TooMuchReceived { .. } => "egress_too_much_received",
            Self::Unresolved => "egress_unresolved",
            Self::ResolveTimeout => "egress_resolve_timeout",
            Self::Unreachable => "egress_unreachable",
            Self::ConnectTimeout => "egress_connect_timeout",
            Self::Tls { .. } => "egress_tls",
            Self::Broken => "egress_broken",
            Self::Idle => "egress_idle",
            Self::Over => "egress_run_over",
        }
    }

    /// Whether the gateway refused by a rule or a bound of its own; else an upstream failed.
    pub(super) const fn is_denial(&self) -> bool {
        match self {
            Self::BadRequest { .. }
            | Self::HostMismatch { .. }
            | Self::NotAllowed { .. }
            | Self::NoTunnel { .. }
            | Self::NotInWorkflow { .. }
            | Self::PrivateAddress { .. }
            | Self::TooManyAtOnce
            | Self::TooManyConnections { .. }
            | Self::TooManyTargets
            | Self::TooMuchSent { .. }
            | Self::TooMuchReceived { .. }
            | Self::Over => true,
            Self::Unresolved
            | Self::ResolveTimeout
            | Self::Unreachable
            | Self::ConnectTimeout
            | Self::Tls { .. }
            | Self::Broken
            | Self::Idle => false,
        }
    }

    /// The setting that would let it through; none where no setting can.
    pub(super) fn remedy(&self) -> Option<(&'static str, String)> {
        match self {
            Self::NotAllowed { rule } | Self::NoTunnel { rule, .. } => Some(("egress.allow", rule.clone())),
            Self::NotInWorkflow { rule } => Some(("caisson.egress", rule.clone())),
            Self::PrivateAddress { address, .. } => {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                Some(("egress.allow_private", format!("{address}/{bits}")))
            }
            Self::BadRequest { .. }
            | Self::HostMismatch { .. }
            | Self::TooManyAtOnce
            | Self::TooManyConnections { .. }
            | Self::TooManyTargets
            | Self::TooMuchSent { .. }
            | Self::TooMuchReceived { .. }
            | Self::Unresolved
            | Self::ResolveTimeout
            | Self::Unreachable
            | Self::ConnectTimeout
            | Self::Tls { .. }
            | Self::Broken
            | Self::Idle
            | Self::Over => None,
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest { .. } | Self::HostMismatch { .. } => StatusCode::BAD_REQUEST,
            Self::NotAllowed { .. }
            | Self::NoTunnel { .. }
            | Self::NotInWorkflow { .. }
            | Self::PrivateAddress { .. }
            | Self::TooManyConnections { .. }
            | Self::TooManyTargets
            | Self::TooMuchSent { .. }
            | Self::TooMuchReceived { .. }
            | Self::Over => StatusCode::FORBIDDEN,
            Self::TooManyAtOnce => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unresolved | Self::Unreachable | Self::Tls { .. } | Self::Broken => StatusCode::BAD_GATEWAY,
            Self::ResolveTimeout | Self::ConnectTimeout | Self::Idle => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The refusal; `target` is what was asked for.
    pub(super) fn refusal(&self, target: &str) -> Refusal {
        Refusal::new(self.status(), self.code(), self.message(target))
    }

    pub(super) fn message(&self, target: &str) -> String {
        match self {
            Self::BadRequest { reason } => format!("the request for {target} does not pass: {reason}"),
            Self::HostMismatch { target } => {
                format!(
                    "the Host field does not name {target}, which the request line names; send the same twice"
                )
            }
            Self::NotAllowed { rule } => format!(
                "{target} is not among the hosts that this sandbox may reach; whoever runs the server can allow it \
                 with the rule \"{rule}\" in egress.allow. Work without it, or say in your last message that it is needed"
            ),
            Self::NoTunnel { rule, url } => format!(
                "{target} is not reached by a tunnel: ask for {url} without TLS, and the server sends the request on over TLS. \
                 Whoever runs the server could allow the tunnel with the rule \"{rule}\" in egress.allow"
            ),
            Self::NotInWorkflow { rule } => format!(
                "{target} is not among the hosts that this run's workflow chose; it could with the rule \"{rule}\" in \
                 caisson.egress. Work without it, or say in your last message that it is needed"
            ),
            Self::PrivateAddress { address, what } => format!(
                "{target} leads to {address}, {what}; a sandbox reaches public addresses only, and those that the \
                 server's egress.allow_private has"
            ),
            Self::TooManyAtOnce => {
                format!("{EGRESS_CONNECTIONS} connections of this run are open; close one, then try again")
            }
            Self::TooManyConnections { bound } => {
                format!(
                    "this run has made {bound} connections, and may make no more; go on without the network"
                )
            }
            Self::TooManyTargets => {
                format!("this run has reached {EGRESS_TARGETS} different hosts, and may reach no more")
            }
            Self::TooMuchSent { bound } => {
                format!("this run has sent {bound} bytes, and may send no more; go on without the network")
            }
            Self::TooMuchReceived { bound } => {
                format!(
                    "this run has received {bound} bytes, and may receive no more; go on without the network"
                )
            }
            Self::Unresolved => format!("the server finds no address for {target}; check the name"),
            Self::ResolveTimeout => format!("the server got no address for {target} in time; try again"),
            Self::Unreachable => format!("{target} takes no connection from the server"),
            Self::ConnectTimeout => format!("{target} did not take a connection in time; try again"),
            Self::Tls { what } => format!("{target} is not reached over TLS: {what}"),
            Self::Broken => format!("{target} broke off, or did not answer in HTTP"),
            Self::Idle => format!("nothing came from {target} for too long"),
            Self::Over => "the run has ended, and with it its way outside".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_fault_is_its_reason() {
        for fault in [
            Fault::BadRequest { reason: String::new() },
            Fault::HostMismatch { target: String::new() },
            Fault::NotAllowed { rule: String::new() },
            Fault::NoTunnel { rule: String::new(), url: String::new() },
            Fault::NotInWorkflow { rule: String::new() },
            Fault::PrivateAddress { address: IpAddr::from([10, 0, 0, 1]), what: "x" },
            Fault::TooManyAtOnce,
            Fault::TooManyConnections { bound: 1 },
            Fault::TooManyTargets,
            Fault::TooMuchSent { bound: 1 },
            Fault::TooMuchReceived { bound: 1 },
            Fault::Unresolved,
            Fault::ResolveTimeout,
            Fault::Unreachable,
            Fault::ConnectTimeout,
            Fault::Tls { what: "x" },
            Fault::Broken,
            Fault::Idle,
            Fault::Over,
        ] {
            assert_eq!(fault.code(), format!("egress_{}", fault.reason()));
        }
    }

    #[test]
    fn the_remedy_for_an_address_is_that_address_alone() {
        let remedy = |address: IpAddr| Fault::PrivateAddress { address, what: "x" }.remedy().unwrap().1;
        assert_eq!(remedy(IpAddr::from([10, 0, 0, 1])), "10.0.0.1/32");
        assert_eq!(remedy("::1".parse().unwrap()), "::1/128");
    }
}
