//! The system call filter of every sandbox, in the spirit of Docker's default profile.
//!
//! Two filters, because each has one answer for what it stops. The first lets through what is listed, and answers everything else
//! with `ENOSYS`, as an older kernel would, so that programs fall back: `clone3`, whose flags no filter can see, becomes `clone`,
//! and `io_uring` becomes what it stands in for. The second answers `EPERM` to calls that are known to be dangerous: what makes or
//! changes namespaces and mounts, keys, the host's clock and modules, characters pushed into a terminal, and sockets of
//! other families than unix, IPv4, IPv6 and netlink. Where both stop a call, the kernel takes the answer of the filter that was
//! added last (seccomp(2)), so the second one is added last.
//!
//! `ptrace` and `process_vm_readv` are let through, as Docker does since Linux 4.8: debuggers need them, they reach only
//! processes of the same sandbox, and the shim hides itself from them. The lists are data, [`seccomp.json`](../../../src/local/seccomp.json).

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};

/// The lists.
const LISTS: &str = include_str!("seccomp.json");
/// Function not implemented.
const ENOSYS: u32 = 38;
/// Operation not permitted.
const EPERM: u32 = 1;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// The lists are no lists.
    #[error("the lists of system calls cannot be read")]
    Lists(#[from] serde_json::Error),
    /// A name in them is no system call of this machine's.
    #[error("the lists of system calls cannot be made a filter")]
    Filter(#[from] seccompiler::Error),
    /// The machine's kind is not known.
    #[error("there is no system call filter for machines of this kind")]
    Machine(#[from] seccompiler::BackendError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    allowed: Vec<String>,
    allowed_if: Vec<Value>,
    refused: Vec<String>,
    refused_if: Vec<Value>,
}

/// The filters, as programs for the kernel, in the order in which they are to be added.
///
/// # Errors
/// [`SeccompError`]; on a machine that the lists were made for, none.
pub(crate) fn filters() -> Result<Vec<Vec<u8>>, SeccompError> {
    let lists: Lists = serde_json::from_str(LISTS)?;
    let rules = |names: &[String], conditions: Vec<Value>| -> Vec<Value> {
        names.iter().map(|name| json!({ "syscall": name })).chain(conditions).collect()
    };
    // A condition says when a call is meant; without one it always is.
    let allowed = json!({
        "mismatch_action": { "errno": ENOSYS }, "match_action": "allow", "filter": rules(&lists.allowed, lists.allowed_if),
    });
    let refused = json!({
        "mismatch_action": "allow", "match_action": { "errno": EPERM }, "filter": rules(&lists.refused, lists.refused_if),
    });
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    [allowed, refused].into_iter().map(|filter| program(&filter, machine)).collect()
}

fn program(filter: &Value, machine: TargetArch) -> Result<Vec<u8>, SeccompError> {
    let document = serde_json::to_vec(&json!({ "filter": filter }))?;
    let programs = compile_from_json(document.as_slice(), machine)?;
    Ok(programs.values().flat_map(bytes).collect())
}

/// As the kernel has them in memory (`struct sock_filter`).
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let ([one, two], [a, b, c, d]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [one, two, jt, jf, a, b, c, d]
    };
    program.iter().flat_map(|line| instruction(line.code, line.jt, line.jf, line.k)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn both_filters_can_be_made_and_fit_into_the_kernel() {
        let filters = filters().unwrap();
        assert_eq!(filters.len(), 2);
        for filter in filters {
            assert!(filter.len() % 8 == 0 && filter.len() / 8 > 50, "{}", filter.len());
            // BPF_MAXINSNS.
            assert!(filter.len() / 8 <= 4096, "{}", filter.len());
        }
    }

    #[test]
    fn no_call_is_both_let_through_and_refused() {
        let lists: Lists = serde_json::from_str(LISTS).unwrap();
        let allowed: BTreeSet<_> = lists.allowed.iter().collect();
        let refused: BTreeSet<_> = lists.refused.iter().collect();
        assert_eq!(
            (allowed.len(), refused.len()),
            (lists.allowed.len(), lists.refused.len()),
            "each stands once"
        );
        assert_eq!(allowed.intersection(&refused).count(), 0);
        for unlisted in ["clone3", "io_uring_setup", "io_uring_enter", "personality"] {
            assert!(!lists.allowed.iter().any(|name| name == unlisted), "{unlisted}");
        }
    }
}
