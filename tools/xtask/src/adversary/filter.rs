//! The system call filter as the local engine has it, made from the same lists, for the controls that are to have it.

use anyhow::Context;
use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

/// The lists, as both engines have them.
const LISTS: &str = include_str!("../../../../crates/sandbox/src/seccomp.json");
/// What the first filter answers to a call that is not listed: function not implemented.
const ENOSYS: u32 = 38;
/// What the second filter answers to a call that is listed: operation not permitted.
const EPERM: u32 = 1;

/// The filters, as programs for the kernel, in the order in which they are to be added.
///
/// # Errors
/// The lists are not what they were.
pub(crate) fn programs() -> anyhow::Result<Vec<Vec<u8>>> {
    let lists: Value = serde_json::from_str(LISTS)?;
    let rules = |names: &str, conditions: &str| -> anyhow::Result<Vec<Value>> {
        let names = lists[names].as_array().with_context(|| format!("no list \"{names}\""))?;
        let conditions = lists[conditions].as_array().with_context(|| format!("no list \"{conditions}\""))?;
        Ok(names.iter().map(|name| json!({ "syscall": name })).chain(conditions.iter().cloned()).collect())
    };
    let allowed = json!({
        "mismatch_action": { "errno": ENOSYS }, "match_action": "allow", "filter": rules("allowed", "allowed_if")?,
    });
    let refused = json!({
        "mismatch_action": "allow", "match_action": { "errno": EPERM }, "filter": rules("refused", "refused_if")?,
    });
    let passed_over = json!({
        "mismatch_action": "allow", "match_action": { "errno": 0 }, "filter": lists["passed_over_if"],
    });
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    [allowed, passed_over, refused].iter().map(|filter| program(filter, machine)).collect()
}

fn program(filter: &Value, machine: TargetArch) -> anyhow::Result<Vec<u8>> {
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
    fn the_engines_lists_make_three_filters() {
        let programs = programs().unwrap();
        assert_eq!(programs.len(), 3);
        assert!(programs.iter().all(|program| program.len() % 8 == 0 && program.len() / 8 > 8));
    }
}
