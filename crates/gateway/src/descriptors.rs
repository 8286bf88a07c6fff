//! Keeping descriptors off a socket.
//!
//! Whoever reads from a unix socket without room for the descriptors that came with the bytes has them closed by the kernel in the
//! reading thread, however long that takes: a file of many extents that is unlinked, a socket that lingers.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::SetSockOpt;
use nix::sys::socket::sockopt::SetBool;

/// `SO_PASSRIGHTS` of asm-generic/socket.h (Linux 6.16).
const SO_PASSRIGHTS: libc::c_int = 83;

/// Whether what comes over a socket may have descriptors with it.
#[derive(Clone)]
struct PassRights;

nix::setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, SetBool);

/// Has the kernel refuse descriptors (EPERM) to who sends them to this socket, or to what connects to it from now on. False where
/// it cannot.
pub(crate) fn refuse(socket: &impl AsFd) -> bool {
    PassRights.set(socket, &false).is_ok()
}
