//! The system call filter of the local engine's sandboxes: [`crate::seccomp`] as programs for the kernel.
//!
//! Three filters, because each has one answer for what it stops: `ENOSYS` for what is not listed, success for what is passed over,
//! `EPERM` for what is known to be dangerous. Where several stop a call, the kernel takes the answer of the filter that was added last
//! (seccomp(2)), so they are added in this order; behind the last no other can be added, since it stops that call too.

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

use crate::seccomp::{ENOSYS, EPERM, Lists};

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

/// The filters, as programs for the kernel, in the order in which they are to be added.
///
/// # Errors
/// [`SeccompError`]; on a machine that the lists were made for, none.
pub(crate) fn filters() -> Result<Vec<Vec<u8>>, SeccompError> {
    let lists = Lists::read()?;
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
    let passed_over = json!({
        "mismatch_action": "allow", "match_action": { "errno": 0 }, "filter": lists.passed_over_if,
    });
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    [allowed, passed_over, refused].into_iter().map(|filter| program(&filter, machine)).collect()
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
    use super::*;

    #[test]
    fn the_filters_can_be_made_and_fit_into_the_kernel() {
        let filters = filters().unwrap();
        assert_eq!(filters.len(), 3);
        for (filter, least) in filters.into_iter().zip([50, 8, 50]) {
            assert!(filter.len() % 8 == 0 && filter.len() / 8 > least, "{}", filter.len());
            // BPF_MAXINSNS.
            assert!(filter.len() / 8 <= 4096, "{}", filter.len());
        }
    }
}
