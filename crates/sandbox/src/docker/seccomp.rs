//! The system call filter of every container: [`crate::seccomp`] in the form that the Docker Engine takes.
//!
//! The engine's own default differs between versions: that of 20.10 lets sockets of every family through, `AF_VSOCK` among them, which
//! reach a hypervisor and no network namespace bounds; only 25 stops `io_uring`. A profile that the engine's administrator chose is
//! left as it is.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::seccomp::{ENOSYS, EPERM, Lists};

/// What the option of a container begins with.
const SECCOMP: &str = "seccomp=";
/// What libseccomp calls the answers.
const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
/// Calls of the lists whose arguments decide, each with what its arguments may be. libseccomp compares all 64 bits, and can say when
/// a call is let through but not, beside that, when it is not.
///
/// `ioctl` is let through: no terminal of anybody else's is in a container.
const CONDITIONS: &str = include_str!("seccomp_conditions.json");
/// Named apart, since engines that know no default answer but `EPERM` would give that one, and programs fall back on this one alone.
const FALLEN_BACK_FROM: [&str; 4] = ["clone3", "io_uring_enter", "io_uring_register", "io_uring_setup"];

/// The filter of system calls as a document that the engine and its client read, for whoever makes a container like a sandbox.
#[must_use]
pub fn seccomp_profile() -> &'static str {
    option().strip_prefix(SECCOMP).unwrap_or_default()
}

/// The option of a container that sets its filter.
pub(crate) fn option() -> &'static str {
    static OPTION: LazyLock<String> = LazyLock::new(|| {
        let lists = Lists::read().expect("a test reads the lists");
        let conditions = serde_json::from_str(CONDITIONS).expect("a test reads the conditions");
        format!("{SECCOMP}{}", profile(&lists, conditions))
    });
    &OPTION
}

fn profile(lists: &Lists, conditions: Vec<Value>) -> Value {
    let conditional = |name: &&String| conditions.iter().any(|rule| names(rule).any(|other| other == **name));
    let plain: Vec<_> = lists.allowed.iter().filter(|name| !conditional(name)).collect();
    let rules = [
        json!({ "names": plain, "action": ALLOW }),
        json!({ "names": lists.refused, "action": ERRNO, "errnoRet": EPERM }),
        json!({ "names": FALLEN_BACK_FROM, "action": ERRNO, "errnoRet": ENOSYS }),
    ];
    let allowed = conditions.into_iter().map(|mut rule| {
        rule["action"] = ALLOW.into();
        rule
    });
    let rules: Vec<_> = rules.into_iter().chain(allowed).collect();
    json!({ "defaultAction": ERRNO, "defaultErrnoRet": ENOSYS, "syscalls": rules })
}

fn names(rule: &Value) -> impl Iterator<Item = &str> {
    rule["names"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_whose_arguments_decide_has_its_condition_here_but_ioctl() {
        let lists = Lists::read().unwrap();
        let conditions: Vec<Value> = serde_json::from_str(CONDITIONS).unwrap();
        let here: BTreeSet<&str> = conditions.iter().flat_map(names).collect();
        let there =
            lists.allowed_if.iter().chain(&lists.refused_if).filter_map(|rule| rule["syscall"].as_str());
        assert_eq!(here, there.filter(|name| *name != "ioctl").collect());
        for rule in &conditions {
            assert!(!rule["args"].as_array().unwrap().is_empty(), "{rule}");
        }
    }

    #[test]
    fn a_call_stands_in_one_kind_of_rule() {
        let profile: Value = serde_json::from_str(seccomp_profile()).unwrap();
        let mut seen = BTreeSet::new();
        let rules = profile["syscalls"].as_array().unwrap();
        for name in rules.iter().filter(|rule| rule.get("args").is_none()).flat_map(names) {
            assert!(seen.insert(name), "{name}");
        }
        for name in rules.iter().filter(|rule| rule.get("args").is_some()).flat_map(names) {
            assert!(!seen.contains(name), "{name} is let through or refused whatever its arguments are");
        }
        assert!(seen.contains("ioctl") && seen.contains("bpf"));
    }
}
