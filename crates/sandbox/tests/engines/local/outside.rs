//! The walls, looked at from the host's side.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use caisson_sandbox::local::LimitsBy;
use caisson_sandbox::{Engine, EngineError, SandboxSpec, SpecError};
use nix::sys::resource::{Resource, setrlimit};

use super::bench::{Bench, on_bench};
use crate::places::{ready, skipped, tell, written};

/// A value that must be in no argument list.
const SECRET: &str = "grant-2b7e151628aed2a6abf7158809cf4f3c";
/// The namespaces that a sandbox has for itself.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

async fn running(bench: &Bench, script: &str) -> SandboxSpec {
    let mut spec = bench.sandbox(script);
    spec.environment.push(("SECRET_GRANT".to_owned(), SECRET.to_owned()));
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.id).await.unwrap();
    assert_eq!(ready(&spec).await, "ready");
    spec
}

fn of(pid: i32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}"))
        .unwrap_or_else(|error| panic!("{pid} {file}: {error}"))
}

fn below(pid: i32) -> Vec<i32> {
    let children: Vec<i32> = of(pid, &format!("task/{pid}/children"))
        .split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect();
    children.iter().flat_map(|child| [vec![*child], below(*child)].concat()).collect()
}

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
}

#[tokio::test]
async fn every_process_has_no_rights_and_namespaces_of_its_own() {
    on_bench(async |bench| {
        let spec = running(bench, "sh -c 'sleep 600 & wait' & echo ready > /workspace/ready; wait").await;
        let first = bench.first(&spec);
        // The shell's output is still the pipe that said it is ready for a moment.
        let says_ready = || std::fs::read_link(format!("/proc/{first}/fd/1")).unwrap().ends_with("ready");
        while below(first).len() < 2 || says_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let own = i32::try_from(std::process::id()).unwrap();
        for pid in std::iter::once(first).chain(below(first)) {
            let status = of(pid, "status");
            let id = format!("{0}\t{0}\t{0}\t{0}", spec.uid);
            assert_eq!((line(&status, "Uid:"), line(&status, "Gid:")), (id.as_str(), id.as_str()));
            let groups = line(&status, "Groups:");
            assert!(groups.is_empty() || !nix::unistd::geteuid().is_root(), "{groups}");
            for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(line(&status, capabilities), "0000000000000000", "{capabilities}");
            }
            assert_eq!(line(&status, "NoNewPrivs:"), "1");
            assert_eq!((line(&status, "Seccomp:"), line(&status, "Seccomp_filters:")), ("2", "3"));
            for namespace in NAMESPACES {
                let link = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
                assert_ne!(link(pid), link(own), "{namespace}");
            }
            let devices = of(pid, "net/dev");
            let devices: Vec<_> = devices.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
            assert_eq!(devices.iter().map(|name| name.trim()).collect::<Vec<_>>(), ["lo"]);
            assert_eq!(of(pid, "oom_score_adj").trim(), "500");
            assert_eq!(line(&of(pid, "limits"), "Max core file size").split_whitespace().next(), Some("1"));
            assert_eq!(line(&of(pid, "limits"), "Max open files").split_whitespace().next(), Some("16384"));
            descriptors(pid, &spec);
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_gets_real_time_or_a_higher_priority_even_if_the_servers_user_may_have_them() {
    on_bench(async |bench| {
        // As limits.d does it for a user; who may not raise them has none to pass on.
        for (resource, most) in [(Resource::RLIMIT_RTPRIO, 50), (Resource::RLIMIT_NICE, 30)] {
            setrlimit(resource, most, most).ok();
        }
        let script = "{ chrt -f 1 echo in real time; nice -n -1 echo; } > /workspace/told 2>&1; \
                      echo ready > /workspace/ready; sleep 600";
        let spec = running(bench, script).await;
        let told = written(&spec, "told");
        assert!(told.starts_with("chrt: ") && told.contains("Operation not permitted"), "{told}");
        assert!(told.contains("nice: cannot set niceness: Permission denied"), "{told}");
        let limits = of(bench.first(&spec), "limits");
        for name in ["Max realtime priority", "Max nice priority"] {
            assert_eq!(line(&limits, name).split_whitespace().collect::<Vec<_>>(), ["0", "0"], "{name}");
        }
    })
    .await;
}

/// Standard input is nothing, output goes to the supervisor or is nothing, and the shell has its script open.
fn descriptors(pid: i32, spec: &SandboxSpec) {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap().display().to_string();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let expected = match number {
            0 => target == "/dev/null",
            1 | 2 => target.starts_with("pipe:"),
            // The shell keeps its script open, and a copy of its input.
            _ => {
                target == "/dev/null"
                    || target == spec.mounts.shim.display().to_string()
                    || target == "/caisson/shim"
            }
        };
        assert!(expected, "{number} is {target}");
    }
}

#[tokio::test]
async fn no_value_of_the_environment_is_in_an_argument_list_or_on_disk() {
    on_bench(async |bench| {
        let spec =
            running(bench, "echo $SECRET_GRANT > /workspace/told; echo ready > /workspace/ready; sleep 600")
                .await;
        assert_eq!(written(&spec, "told").trim(), SECRET, "the sandbox has it");
        let mut seen = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            seen += usize::from(String::from_utf8_lossy(&line).contains(spec.id.as_str()));
            assert!(!String::from_utf8_lossy(&line).contains(SECRET), "{}", entry.path().display());
        }
        assert!(seen >= 2, "supervisor and bubblewrap name the sandbox, but {seen} were seen");
        for entry in std::fs::read_dir(bench.record(&spec)).unwrap().flatten() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{}", entry.path().display());
        }
        assert!(!of(bench.supervisor(&spec), "environ").contains(SECRET));
    })
    .await;
}

#[tokio::test]
async fn the_sandbox_sees_what_it_needs_and_nothing_else() {
    on_bench(async |bench| {
        let spec = running(bench, "echo ready > /workspace/ready; sleep 600").await;
        let mounts = of(bench.first(&spec), "mountinfo");
        let mut writable = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for line in mounts.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            seen.insert(fields[4].to_owned());
            assert!(fields[5].split(',').any(|option| option == "nosuid"), "{line}");
            if fields[5].starts_with("rw") {
                writable.insert(fields[4].to_owned());
            }
        }
        let devices = ["full", "null", "random", "tty", "urandom", "zero", "pts", "shm"];
        let places = ["/caisson/journal", "/workspace", "/home/agent", "/tmp", "/proc"];
        let expected: BTreeSet<_> =
            devices.iter().map(|name| format!("/dev/{name}")).chain(places.map(str::to_owned)).collect();
        assert_eq!(writable, expected);
        let outside = ["/sys", "/run", "/var", "/root", "/home", "/etc", "/mnt", "/opt", "/boot"];
        for place in outside {
            assert!(!seen.contains(place), "{place}");
        }
        let etc: Vec<_> = seen.iter().filter(|place| place.starts_with("/etc/")).collect();
        assert!(!etc.iter().any(|place| place.contains("shadow") || place.contains("private")), "{etc:?}");
    })
    .await;
}

#[tokio::test]
async fn only_the_workspace_the_home_the_journal_and_tmp_can_be_written_to() {
    on_bench(async |bench| {
        let spec = running(
            bench,
            "exec 2> /workspace/errors
             for place in / /etc /usr /var /var/tmp /run /root /home /caisson /caisson/agent /caisson/door /dev /proc \
                 /workspace /home/agent /caisson/journal /tmp /dev/shm; do
                 if touch \"$place/probe\"; then echo \"$place\"; fi
             done > /workspace/writable
             printf '#!/bin/sh\\necho it runs' > /tmp/program; chmod +x /tmp/program; /tmp/program > /workspace/ran
             dd if=/dev/zero of=/tmp/large bs=65536 count=1000; stat -c %s /tmp/large > /workspace/large
             ls /root /home > /workspace/homes; id -un > /workspace/name; hostname > /workspace/hostname
             getent hosts sandbox > /workspace/own; getent hosts registry.example; echo $? > /workspace/foreign
             echo ready > /workspace/ready; sleep 600",
        )
        .await;
        let writable = written(&spec, "writable");
        // `/var/tmp` is `/tmp`.
        let expected = ["/var/tmp", "/workspace", "/home/agent", "/caisson/journal", "/tmp", "/dev/shm"];
        assert_eq!(writable.lines().collect::<Vec<_>>(), expected);
        assert_eq!(written(&spec, "ran").trim(), "it runs");
        let large: u64 = written(&spec, "large").trim().parse().unwrap();
        assert!(large <= spec.limits.tmp_bytes, "{large}");
        assert_eq!(written(&spec, "homes").trim(), "/home:\nagent");
        assert_eq!((written(&spec, "name").trim(), written(&spec, "hostname").trim()), ("agent", "sandbox"));
        assert!(written(&spec, "own").starts_with("127.0.0.1"));
        assert_eq!(written(&spec, "foreign").trim(), "2", "not found, at once");
    })
    .await;
}

#[tokio::test]
async fn an_image_is_an_error() {
    on_bench(async |bench| {
        let mut spec = bench.sandbox("exit 0");
        spec.image = Some("debian:bookworm".to_owned());
        let error = bench.engine.create(&spec).await.unwrap_err();
        assert!(matches!(error, EngineError::BadSpec(SpecError::ImageUnsupported { .. })), "{error}");
        assert!(error.to_string().contains("has no images"), "{error}");
        assert!(!bench.record(&spec).exists());
    })
    .await;
}

#[tokio::test]
async fn who_is_not_root_makes_sandboxes_for_nobody_else() {
    on_bench(async |bench| {
        let mut spec = bench.sandbox("exit 0");
        (spec.uid, spec.gid) = (spec.uid + 1, spec.gid + 1);
        if nix::unistd::geteuid().is_root() {
            // The same by an ordinary user: `ordinary.rs` runs these tests again as one.
            bench.engine.create(&spec).await.unwrap();
            return;
        }
        let error = bench.engine.create(&spec).await.unwrap_err();
        assert!(matches!(error, EngineError::BadSpec(SpecError::ForeignUser { .. })), "{error}");
        assert!(error.to_string().contains(&spec.uid.to_string()), "{error}");
        assert!(!bench.record(&spec).exists());
    })
    .await;
}

#[tokio::test]
async fn limits_hold_in_the_kernel() {
    on_bench(async |bench| {
        let capabilities = bench.engine.check().await.unwrap();
        let LimitsBy::ControlGroups { version, .. } = capabilities.limits else {
            return skipped(&capabilities.weaknesses().join("; ")).unwrap_or_default();
        };
        let mut spec = bench.sandbox("echo ready > /workspace/ready; while :; do :; done");
        spec.limits.cpu_millis = 500;
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        ready(&spec).await;
        let groups = of(bench.first(&spec), "cgroup");
        let inside = groups.lines().filter(|line| line.contains(spec.id.as_str())).count();
        assert!(inside >= if version == 1 { 4 } else { 1 }, "{groups}");
        if version == 1 {
            let group = PathBuf::from("/sys/fs/cgroup/memory/caisson").join(spec.id.as_str());
            let sockets = std::fs::read_to_string(group.join("memory.kmem.tcp.limit_in_bytes")).unwrap();
            assert_eq!(sockets.trim(), (64 << 20).to_string(), "buffers of sockets");
        }
        // Half a core: over two seconds of wall time, about one of CPU time.
        let (began, before) = (Instant::now(), bench.engine.usage(&spec.id).await.unwrap().cpu_micros);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = bench.engine.usage(&spec.id).await.unwrap().cpu_micros - before;
        let share = Duration::from_micros(used).as_secs_f64() / began.elapsed().as_secs_f64();
        tell(&format!("a busy loop that may use half a core uses {share:.2}"));
        assert!(share < 0.65, "{share}");
    })
    .await;
}

#[tokio::test]
async fn a_start_takes_milliseconds() {
    const STARTS: usize = 9;
    /// Ten times what an idle machine takes. It is the quickest that shows the work: whatever else the machine does can only add
    /// to it.
    const QUICKEST: Duration = Duration::from_millis(500);
    on_bench(async |bench| {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let spec = bench.sandbox("exec sleep 600");
            let began = Instant::now();
            bench.engine.create(&spec).await.unwrap();
            bench.engine.start(&spec.id).await.unwrap();
            times.push(began.elapsed());
            bench.engine.destroy(&spec.id).await.unwrap();
        }
        times.sort();
        let (quickest, median) = (times[0], times[STARTS / 2]);
        tell(&format!("create and start: {median:?} (median of {STARTS}), {quickest:?} (the quickest)"));
        assert!(quickest < QUICKEST, "{times:?}");
    })
    .await;
}
