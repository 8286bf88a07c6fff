//! Ways to the network.

use super::super::walls::{Kind, NETWORK, NETWORK_SHOWN, RIGHTS, Wall, wall};
use super::{Attempt, attempt};

/// The filter, where it may also answer as a kernel without such sockets.
const FAMILIES: Wall = wall(Kind::Filter, &["EPERM", "ENOSYS", "EAFNOSUPPORT"]);

pub(super) const ALL: &[Attempt] = &[
    attempt("network.tcp", &["port={port}", "token={token}"], &[NETWORK]),
    attempt("network.tcp_by_ipv6", &["port6={port6}", "token={token}"], &[NETWORK]),
    attempt("network.udp", &["udp_port={udp_port}", "token={token}"], &[NETWORK]),
    attempt("network.dns_tunnel", &["udp_port={udp_port}", "token={token}"], &[NETWORK]),
    attempt("network.address_of_host", &["port={port}", "token={token}", "host={host}"], &[NETWORK]),
    attempt("network.abstract_socket", &["abstract={abstract}", "token={token}"], &[NETWORK]),
    attempt("network.host_connections", &[], &[NETWORK_SHOWN]),
    attempt("network.devices", &[], &[NETWORK_SHOWN]),
    attempt("network.vsock", &[], &[FAMILIES]).absent(&["EAFNOSUPPORT"]),
    attempt("network.socket_pairs", &[], &[FAMILIES]).absent(&["EAFNOSUPPORT"]),
    attempt("network.raw_packets", &[], &[RIGHTS, FAMILIES]),
    attempt("network.raw_ip", &[], &[RIGHTS]),
    // Whoever has the right is told where the kernel has no such device.
    attempt("network.add_device", &[], &[RIGHTS]).past(&["ENOTSUP"]),
    attempt("network.give_address", &[], &[RIGHTS]),
];
