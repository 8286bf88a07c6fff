//! Whether a process may reach into another one of its user, which is the machine's to say. Within a sandbox it decides whether what
//! an agent starts, such as the tests of a branch, can be the agent: both have one user, and debuggers need the system call.

use std::fs;

/// What Yama lets a process do to others of its user (`Documentation/admin-guide/LSM/Yama.rst` of Linux): with 0 everything, with 1
/// only to what it started itself, with more less still. Without Yama there is no such file, and it is as with 0.
const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// What to do where a process may; none where it may not.
pub(crate) fn note() -> Option<String> {
    of(fs::read_to_string(SCOPE).ok().as_deref())
}

fn of(scope: Option<&str>) -> Option<String> {
    let remedy = match scope.map(str::trim) {
        None => "start a kernel that has Yama, with `lsm=…,yama`",
        Some("0") => "`sysctl kernel.yama.ptrace_scope=1`, and a file in /etc/sysctl.d",
        Some(_) => return None,
    };
    Some(format!(
        "the kernel lets what an agent starts, such as the tests of a branch, reach into the agent and speak for it, in the run's result \
         too; {remedy}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_a_process_may_trace_others_there_is_something_to_do() {
        assert!(of(None).unwrap().contains("lsm="));
        assert!(of(Some("0\n")).unwrap().contains("ptrace_scope=1"));
        for scope in ["1\n", "2\n", "3\n"] {
            assert_eq!(of(Some(scope)), None);
        }
    }
}
