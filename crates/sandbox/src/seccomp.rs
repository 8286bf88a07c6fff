//! Which system calls a sandbox may make, in the spirit of Docker's default profile; the same for every engine.
//!
//! What is not listed is answered with `ENOSYS`, as an older kernel would, so that programs fall back: `clone3`, whose flags no filter
//! can see, becomes `clone`, and `io_uring` becomes what it stands in for. What is known to be dangerous is answered with `EPERM`: what
//! makes or changes namespaces and mounts, keys, the host's clock and modules, characters pushed into a terminal, sockets of other
//! families than unix, IPv4, IPv6 and netlink's routing, and what draws on pools that the whole machine shares and no limit of a
//! sandbox counts: filters of sockets and of system calls, whose exhaustion keeps every other sandbox from starting, and huge pages.
//! Asynchronous input and output of the old kind (`io_setup`) is not listed for the same reason.
//!
//! `SO_LINGER` is answered with success and not set. Closing such a socket waits until its peer has taken what was sent, in whoever
//! closes it last; and a descriptor that is sent over a unix socket to a reader that has no room for it is closed by that reader. So a
//! sandbox could stop the threads of the server at its door, for as long as it likes. Programs that ask for it seldom look at the
//! answer, and miss nothing but the wait.
//!
//! `ptrace` and `process_vm_readv` are let through, as Docker does since Linux 4.8: debuggers need them, they reach only
//! processes of the same sandbox, and the shim hides itself from them. The lists are data, [`seccomp.json`](../../src/seccomp.json).

use serde::Deserialize;
use serde_json::Value;

/// The lists.
const LISTS: &str = include_str!("seccomp.json");
/// Function not implemented.
pub(crate) const ENOSYS: u32 = 38;
/// Operation not permitted.
pub(crate) const EPERM: u32 = 1;

/// The lists of system calls. A condition is written as seccompiler reads it, and says when a call is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lists {
    /// Let through.
    pub(crate) allowed: Vec<String>,
    /// Let through under a condition.
    pub(crate) allowed_if: Vec<Value>,
    /// Answered with [`EPERM`].
    pub(crate) refused: Vec<String>,
    /// Answered with [`EPERM`] under a condition, though let through otherwise.
    pub(crate) refused_if: Vec<Value>,
    /// Answered with success under a condition, and not done, though let through otherwise.
    pub(crate) passed_over_if: Vec<Value>,
}

impl Lists {
    /// Reads them.
    ///
    /// # Errors
    /// They are no lists, which a test shows not to be.
    pub(crate) fn read() -> Result<Self, serde_json::Error> {
        serde_json::from_str(LISTS)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_call_is_both_let_through_and_refused() {
        let lists = Lists::read().unwrap();
        let allowed: BTreeSet<_> = lists.allowed.iter().collect();
        let refused: BTreeSet<_> = lists.refused.iter().collect();
        assert_eq!(
            (allowed.len(), refused.len()),
            (lists.allowed.len(), lists.refused.len()),
            "each stands once"
        );
        assert_eq!(allowed.intersection(&refused).count(), 0);
        for unlisted in ["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "personality"] {
            assert!(!lists.allowed.iter().any(|name| name == unlisted), "{unlisted}");
        }
    }
}
