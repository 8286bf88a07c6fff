//! Ways out, tried from inside. Each has a positive control: the same attempt in a bubblewrap without the one wall that is
//! meant to stop it gets through, so the test can fail.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use caisson_sandbox::{Engine, SandboxSpec};

use super::bench::{Bench, on_bench};
use crate::places::{skipped, written};

const ATTEMPTS: &str = include_str!("attempts.py");
/// All that a program needs, and the host's own files.
const PLAIN: &[&str] = &["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"];
/// The same with a root of its own, which is left writable.
const OPEN_ROOT: &[&str] = &[
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--dir",
    "/tmp",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
];

/// Who makes the control's attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The sandbox's own user.
    Agent,
    /// Root without a user namespace, with every capability: what stops the attempt is having none.
    Root,
}

struct Attempt {
    name: &'static str,
    /// What the sandbox must answer: one of these errors.
    refused: &'static [i32],
    who: Who,
    /// Bubblewrap's arguments without the wall, in two parts; `{agent}` is the directory of the sandbox's agent.
    without: [&'static [&'static str]; 2],
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EACCES: i32 = 13;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const EADDRNOTAVAIL: i32 = 99;

const fn by_agent(name: &'static str, refused: &'static [i32], more: &'static [&'static str]) -> Attempt {
    Attempt { name, refused, who: Who::Agent, without: [PLAIN, more] }
}

const fn by_root(name: &'static str, refused: &'static [i32], more: &'static [&'static str]) -> Attempt {
    Attempt { name, refused, who: Who::Root, without: [PLAIN, more] }
}

/// Each attempt with what its control has in place of the wall.
const ALL: [Attempt; 22] = [
    // The directory is the agent's own: only the mount is in the way.
    by_agent("read_only_mount", &[EROFS], &["--tmpfs", "/mnt", "--bind", "{agent}", "/mnt"]),
    Attempt { name: "root_directory", refused: &[EROFS], who: Who::Agent, without: [OPEN_ROOT, &[]] },
    by_root("kernel_settings", &[EACCES, EROFS], &["--bind", "/proc", "/proc"]),
    by_root("control_groups", &[ENOENT], &["--bind", "/sys", "/sys"]),
    by_root("host_devices", &[ENOENT], &["--dev-bind", "/dev", "/dev"]),
    by_root("own_devices", &[EPERM], &[]),
    // By root, because from a user namespace of its own nobody traces what is outside it (`cap_ptrace_access_check`).
    by_root("trace_outside", &[ESRCH], &[]),
    by_agent("signal_outside", &[ESRCH], &[]),
    by_agent("terminal_input", &[EPERM], &[]),
    by_agent("keyring", &[EPERM], &[]),
    by_agent("user_namespace", &[EPERM], &[]),
    by_agent("cloned_namespace", &[EPERM], &[]),
    by_agent("foreign_socket", &[EPERM], &[]),
    by_agent("foreign_pair", &[EPERM], &[]),
    by_agent("socket_filter", &[EPERM], &[]),
    by_agent("call_filter", &[EPERM], &[]),
    by_agent("kernel_events", &[EPERM], &[]),
    by_agent("huge_pages", &[EPERM], &[]),
    by_agent("asynchronous_disk", &[ENOSYS], &[]),
    by_agent("asynchronous_calls", &[ENOSYS], &[]),
    by_agent("host_network", &[EADDRNOTAVAIL], &[]),
    by_root("host_home", &[ENOENT], &[]),
];

/// Calls that a kernel may refuse by itself, for a terminal, for want of a module, for a wrong argument: but in other words than the
/// filter, which the control shows not to be there.
const ANSWERED_OTHERWISE: [&str; 5] =
    ["terminal_input", "foreign_socket", "foreign_pair", "huge_pages", "asynchronous_calls"];

/// What an attempt printed: nothing if it got through, else the error's number.
fn told(text: &str) -> Option<i32> {
    if text.trim() == "through" {
        return None;
    }
    let number = text.strip_prefix("refused ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    Some(number.unwrap_or_else(|| panic!("neither through nor refused: {text:?}")))
}

/// A process outside that belongs to the sandbox's user, so that only the namespaces keep the two apart.
struct Outside(Child);

impl Outside {
    fn start(spec: &SandboxSpec) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a process to aim at, with an argument vector")]
        let mut sleep = Command::new("/usr/bin/sleep");
        Self(sleep.arg("600").uid(spec.uid).gid(spec.gid).spawn().unwrap())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn in_the_sandbox(bench: &Bench, name: &str, outside: u32) -> Option<i32> {
    let script = format!(
        "PROBE_PID={outside} exec /usr/bin/python3 - {name} > /workspace/told 2>&1 <<'END'\n{ATTEMPTS}\nEND"
    );
    let spec = bench.sandbox(&script);
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.id).await.unwrap();
    bench.engine.wait(&spec.id).await.unwrap();
    let text = written(&spec, "told");
    bench.engine.destroy(&spec.id).await.unwrap();
    told(&text)
}

fn in_the_control(attempt: &Attempt, spec: &SandboxSpec, outside: u32) -> Option<i32> {
    let agent = spec.mounts.agent_dir.to_str().unwrap();
    let script = spec.mounts.workspace_dir.join("attempts.py");
    std::fs::write(&script, ATTEMPTS).unwrap();
    let root = spec.mounts.workspace_dir.parent().unwrap();
    // The agent finds its way to its own directories.
    for place in [root, root.parent().unwrap()] {
        std::fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "the control is started here, with an argument vector")]
    let mut control = Command::new("bwrap");
    control.args(attempt.without.concat().iter().map(|word| word.replace("{agent}", agent)));
    if attempt.who == Who::Root {
        control.args(["--cap-add", "ALL"]);
    } else {
        control.uid(spec.uid).gid(spec.gid);
    }
    control.args(["--ro-bind", script.to_str().unwrap(), "/tmp/attempts.py"]);
    control.args(["--", "/usr/bin/python3", "/tmp/attempts.py", attempt.name]);
    control.env("PROBE_PID", outside.to_string()).stdin(Stdio::null());
    let output = control.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", attempt.name);
    told(&String::from_utf8_lossy(&output.stdout))
}

#[tokio::test]
async fn every_way_out_is_refused_and_open_without_its_wall() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("the controls need root").unwrap_or_default();
    }
    on_bench(async |bench| {
        for attempt in &ALL {
            let spec = bench.sandbox("exit 0");
            let outside = Outside::start(&spec);
            let inside = in_the_sandbox(bench, attempt.name, outside.0.id()).await;
            assert!(
                inside.is_some_and(|error| attempt.refused.contains(&error)),
                "{}: {inside:?}",
                attempt.name
            );
            let control = in_the_control(attempt, &spec, outside.0.id());
            if ANSWERED_OTHERWISE.contains(&attempt.name) {
                assert_ne!(control, inside, "the control of {} is stopped by a filter", attempt.name);
            } else {
                assert_eq!(control, None, "the control of {} gets through", attempt.name);
            }
        }
    })
    .await;
}
