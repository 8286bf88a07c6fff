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
/// `PR_SET_SECCOMP` (prctl(2)).
const SET_SECCOMP: u32 = 22;
/// `SOL_SOCKET` (socket(7)).
const SOCKET_LEVEL: u32 = 1;
/// `SO_ATTACH_FILTER`, `SO_ATTACH_BPF`, `SO_ATTACH_REUSEPORT_CBPF`, `SO_ATTACH_REUSEPORT_EBPF` (`asm-generic/socket.h`).
const SOCKET_FILTERS: [u32; 4] = [26, 50, 51, 52];
/// `SO_LINGER` (socket(7)).
const LINGER: u32 = 13;
/// What these options fit into.
const LOW_BITS: u32 = 6;
/// Named apart, since engines that know no default answer but `EPERM` would give that one, and programs fall back on this one alone.
const FALLEN_BACK_FROM: [&str; 6] =
    ["clone3", "io_setup", "io_uring_enter", "io_uring_register", "io_uring_setup", "seccomp"];

/// The filter of system calls as a document that the engine and its client read, for whoever makes a container like a sandbox.
#[must_use]
pub fn seccomp_profile() -> &'static str {
    option().strip_prefix(SECCOMP).unwrap_or_default()
}

/// The option of a container that sets its filter.
pub(crate) fn option() -> &'static str {
    static OPTION: LazyLock<String> = LazyLock::new(|| {
        let lists = Lists::read().expect("a test reads the lists");
        format!("{SECCOMP}{}", profile(&lists, conditions()))
    });
    &OPTION
}

fn conditions() -> Vec<Value> {
    let mut conditions: Vec<Value> = serde_json::from_str(CONDITIONS).expect("a test reads the conditions");
    conditions.extend(differs(0, SET_SECCOMP).map(|arg| json!({ "names": ["prctl"], "args": [arg] })));
    let other_levels = differs(1, SOCKET_LEVEL).map(|arg| vec![arg]);
    let other_options = (0..1 << LOW_BITS)
        .filter(|option| !SOCKET_FILTERS.contains(option) && *option != LINGER)
        .map(|option| vec![is(2, option)]);
    let large_options = (LOW_BITS..u32::BITS).map(|bit| vec![masked(2, 1 << bit, 1 << bit)]);
    let options = other_levels.chain(other_options).chain(large_options);
    conditions.extend(options.map(|args| json!({ "names": ["setsockopt"], "args": args })));
    conditions
}

/// That an argument of 32 bits has a value, whatever is above them: the kernel does not look there.
fn is(index: u32, value: u32) -> Value {
    masked(index, u32::MAX, value)
}

/// That it has another one, as many conditions of which one is enough: there is none for inequality below a mask.
fn differs(index: u32, value: u32) -> impl Iterator<Item = Value> {
    (0..u32::BITS).map(move |bit| masked(index, 1 << bit, !value & (1 << bit)))
}

fn masked(index: u32, mask: u32, value: u32) -> Value {
    json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
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
    let passed_over = json!({
        "names": ["setsockopt"], "action": ERRNO, "errnoRet": 0, "args": [is(1, SOCKET_LEVEL), is(2, LINGER)],
    });
    let rules: Vec<_> = rules.into_iter().chain(allowed).chain([passed_over]).collect();
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
        let conditions = conditions();
        let here: BTreeSet<&str> = conditions.iter().flat_map(names).collect();
        let there = lists
            .allowed_if
            .iter()
            .chain(&lists.refused_if)
            .chain(&lists.passed_over_if)
            .filter_map(|rule| rule["syscall"].as_str());
        assert_eq!(here, there.filter(|name| *name != "ioctl").collect());
        for rule in &conditions {
            assert!(!rule["args"].as_array().unwrap().is_empty(), "{rule}");
        }
    }

    /// Whether one rule lets the call through, as libseccomp reads them.
    fn lets_through(name: &str, arguments: [u64; 6]) -> bool {
        let number = |value: &Value| value.as_u64().unwrap();
        let holds = |arg: &Value| {
            let found = arguments[usize::try_from(number(&arg["index"])).unwrap()];
            match arg["op"].as_str().unwrap() {
                "SCMP_CMP_EQ" => found == number(&arg["value"]),
                "SCMP_CMP_MASKED_EQ" => found & number(&arg["value"]) == number(&arg["valueTwo"]),
                other => panic!("{other}"),
            }
        };
        let of = |rule: &Value| names(rule).any(|other| other == name);
        conditions()
            .iter()
            .filter(|rule| of(rule))
            .any(|rule| rule["args"].as_array().unwrap().iter().all(holds))
    }

    #[test]
    fn what_is_refused_is_refused_whatever_stands_above_its_32_bits() {
        for above in [0, 1 << 32, u64::MAX << 32] {
            for option in 0..=70 {
                let through = lets_through("setsockopt", [3, above | 1, above | option, 0, 0, 0]);
                assert_eq!(through, ![13, 26, 50, 51, 52].contains(&option), "{option}");
                assert!(
                    lets_through("setsockopt", [3, above + 41, above | option, 0, 0, 0]),
                    "another level"
                );
            }
            assert!(!lets_through("prctl", [above + 22, 2, 0, 0, 0, 0]));
            assert!(
                [4, 15, 21, 23, 38, 54]
                    .into_iter()
                    .all(|option| lets_through("prctl", [above | option, 0, 0, 0, 0, 0]))
            );
            assert!(!lets_through("mmap", [0, 4096, 3, above | 0x40022, 0, 0]));
        }
        assert!(lets_through("mmap", [0, 4096, 3, 0x22, 0, 0]));
        assert!(lets_through("socket", [16, 3, 0, 0, 0, 0]) && !lets_through("socket", [16, 3, 15, 0, 0, 0]));
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
