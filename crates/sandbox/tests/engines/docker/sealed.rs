//! The walls, looked at from inside and, where the kernel shows it, from the host's side.

use std::time::{Duration, Instant};

use bollard::query_parameters::InspectContainerOptions;
use caisson_sandbox::docker::API_VERSION_MIN;
use caisson_sandbox::{Engine, EngineError, SandboxSpec};

use super::bench::{Bench, on_bench};
use crate::places::{ready, tell, written};

/// Writes down what a process in the sandbox sees, then waits.
const LOOK: &str = "\
cat /proc/self/status > status
cat /proc/net/dev > devices
getent hosts localhost > localhost; getent hosts sandbox > own_name
python3 -c 'import socket; server = socket.create_server((\"localhost\", 0)); socket.create_connection(server.getsockname()); print(\"connected\")' > loopback 2>&1
getent hosts registry.example > outside; echo $? >> outside
echo ready > ready
exec sleep 600";

async fn look(bench: &Bench, engine: &dyn Engine) -> SandboxSpec {
    let spec = bench.sandbox(LOOK);
    engine.create(&spec).await.unwrap();
    engine.start(&spec.id).await.unwrap();
    ready(&spec).await;
    spec
}

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

/// Names of the network devices in the text of a `/proc/net/dev`.
fn devices(text: &str) -> Vec<&str> {
    text.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect()
}

#[tokio::test]
async fn the_engine_is_fit_for_sandboxes() {
    on_bench(async |bench| {
        let capabilities = bench.engine.check().await.unwrap();
        assert!(capabilities.api_version >= API_VERSION_MIN, "{capabilities:?}");
        assert!(capabilities.cores >= 1 && !capabilities.engine_version.is_empty(), "{capabilities:?}");
    })
    .await;
}

#[tokio::test]
async fn a_process_in_the_sandbox_has_no_rights_and_no_network_device() {
    on_bench(async |bench| {
        for engine in [&bench.engine, &bench.with_hosts_file()] {
            let spec = look(bench, engine).await;
            let id = format!("{0}\t{0}\t{0}\t{0}", spec.uid);
            let docker = bench.docker();
            let name = format!("caisson-{}", spec.id);
            let inspected = docker.inspect_container(&name, None::<InspectContainerOptions>).await.unwrap();
            let pid = inspected.state.unwrap().pid.unwrap();
            let outside = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            for status in [written(&spec, "status"), outside("status")] {
                assert_eq!(line(&status, "Uid:"), id);
                assert_eq!(line(&status, "Gid:"), id);
                for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                    assert_eq!(line(&status, capabilities), "0000000000000000", "{capabilities}");
                }
                assert_eq!(line(&status, "NoNewPrivs:"), "1");
                assert_eq!(line(&status, "Seccomp:"), "2", "a filter is on");
            }
            let groups = written(&spec, "status");
            let groups = line(&groups, "Groups:");
            assert!(groups.is_empty() || groups == spec.gid.to_string(), "{groups}");
            assert_eq!(devices(&written(&spec, "devices")), ["lo"]);
            assert_eq!(devices(&outside("net/dev")), ["lo"]);
            engine.destroy(&spec.id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn names_are_looked_up_on_loopback_alone_with_and_without_a_hosts_file() {
    on_bench(async |bench| {
        for engine in [&bench.engine, &bench.with_hosts_file()] {
            let spec = look(bench, engine).await;
            assert!(written(&spec, "localhost").contains("localhost"));
            assert!(written(&spec, "own_name").starts_with("127.0.0.1"));
            assert_eq!(written(&spec, "loopback").trim(), "connected");
            assert_eq!(written(&spec, "outside").trim(), "2", "not found, at once");
            engine.destroy(&spec.id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn limits_hold_in_the_kernel() {
    on_bench(async |bench| {
        let mut spec = bench.sandbox(
            "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max > /workspace/memory
             cat memory/memory.memsw.limit_in_bytes memory.swap.max > /workspace/swap
             cat pids/pids.max pids.max > /workspace/pids
             cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu.max > /workspace/cpu
             ulimit -n > /workspace/open_files; grep 'Max core' /proc/self/limits > /workspace/core; exit 0",
        );
        spec.limits.cpu_millis = 500;
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        assert_eq!(bench.engine.wait(&spec.id).await.unwrap().code, Some(0));
        let memory = spec.limits.memory_bytes.to_string();
        assert_eq!(written(&spec, "memory").trim(), memory);
        // cgroup v1 counts memory and swap together, v2 swap alone.
        let swap = written(&spec, "swap");
        assert!([memory.as_str(), "0"].contains(&swap.trim()), "{swap}");
        assert_eq!(written(&spec, "pids").trim(), spec.limits.pids.to_string());
        let cpu: Vec<u32> = written(&spec, "cpu").split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(cpu[0] * 2, cpu[1], "half a core");
        assert_eq!(written(&spec, "open_files").trim(), "16384");
        assert_eq!(written(&spec, "core").split_whitespace().nth(4), Some("1"), "in bytes");
    })
    .await;
}

#[tokio::test]
async fn only_the_workspace_the_home_the_journal_and_tmp_can_be_written_to() {
    on_bench(async |bench| {
        // Each place, then whether a file could be made there; /tmp must run programs, and end at its size.
        let spec = bench.sandbox(
            "exec 2> /workspace/errors
             for place in / /etc /usr /var/tmp /run /root /home /caisson /caisson/agent /caisson/door /dev /sys /proc \
                 /workspace /home/agent /caisson/journal /tmp; do
                 if touch \"$place/probe\"; then echo \"$place\"; fi
             done > /workspace/writable
             for file in /caisson/shim /etc/hosts /etc/hostname /etc/resolv.conf; do
                 if (: >> $file); then echo $file; fi
             done > /workspace/writable_files
             rm /caisson/door/gateway.sock; ls /caisson/door > /workspace/door
             printf '#!/bin/sh\\necho it runs' > /tmp/program; chmod +x /tmp/program; /tmp/program > /workspace/ran
             dd if=/dev/zero of=/tmp/large bs=65536 count=1000; stat -c %s /tmp/large > /workspace/large
             stat -c %a /tmp > /workspace/mode
             find / -xdev -name docker.sock > /workspace/sockets; ls /run /var/run | grep -c sock >> /workspace/sockets
             exit 0",
        );
        std::fs::write(spec.mounts.door_dir.join("gateway.sock"), "").unwrap();
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        assert_eq!(bench.engine.wait(&spec.id).await.unwrap().code, Some(0));
        let writable: Vec<String> = written(&spec, "writable").lines().map(str::to_owned).collect();
        assert_eq!(writable, ["/workspace", "/home/agent", "/caisson/journal", "/tmp"]);
        assert_eq!(written(&spec, "writable_files"), "");
        assert_eq!(written(&spec, "door").trim(), "gateway.sock", "it cannot be unlinked");
        assert!(spec.mounts.door_dir.join("gateway.sock").exists());
        assert_eq!(written(&spec, "ran").trim(), "it runs");
        let large: u64 = written(&spec, "large").trim().parse().unwrap();
        assert!(large > 0 && large <= spec.limits.tmp_bytes, "{large}");
        assert_eq!(written(&spec, "mode").trim(), "1777");
        assert_eq!(written(&spec, "sockets").trim(), "0");
    })
    .await;
}

#[tokio::test]
async fn the_environment_is_what_was_asked_for_beside_the_image_s() {
    on_bench(async |bench| {
        let mut spec = bench.sandbox("env > /workspace/env; pwd > /workspace/pwd; exit 0");
        let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        spec.environment =
            vec![entry("QUOTED", "a \"b\" $HOME 'c'=d"), entry("EMPTY", ""), entry("LANG", "C")];
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        bench.engine.wait(&spec.id).await.unwrap();
        let found = written(&spec, "env");
        for entry in ["QUOTED=a \"b\" $HOME 'c'=d", "EMPTY=", "LANG=C", "HOSTNAME=sandbox"] {
            assert!(found.lines().any(|line| line == entry), "{entry} in {found}");
        }
        assert_eq!(written(&spec, "pwd").trim(), "/workspace");
    })
    .await;
}

#[tokio::test]
async fn the_engine_socket_is_never_mounted() {
    on_bench(async |bench| {
        let mut spec = bench.sandbox("exit 0");
        spec.mounts.door_dir = bench.engine.socket().parent().unwrap().to_owned();
        let error = bench.engine.create(&spec).await.unwrap_err();
        assert!(matches!(error, EngineError::BadSpec(_)), "{error}");
        assert!(error.to_string().contains("is or contains an engine's socket"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_start_takes_far_less_than_ten_seconds() {
    const STARTS: usize = 5;
    on_bench(async |bench| {
        let fast = bench.with_hosts_file();
        bench.engine.check().await.unwrap();
        fast.check().await.unwrap();
        for (what, engine) in [("names by the engine", &bench.engine), ("a hosts file of ours", &fast)] {
            let (mut creates, mut starts, mut destroys) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..STARTS {
                let spec = bench.sandbox("exec sleep 600");
                let began = Instant::now();
                engine.create(&spec).await.unwrap();
                creates.push(began.elapsed());
                let began = Instant::now();
                engine.start(&spec.id).await.unwrap();
                starts.push(began.elapsed());
                let began = Instant::now();
                engine.destroy(&spec.id).await.unwrap();
                destroys.push(began.elapsed());
            }
            let median = |times: &mut Vec<Duration>| {
                times.sort();
                times[STARTS / 2].as_millis()
            };
            assert!(starts.iter().chain(&creates).all(|time| *time < Duration::from_secs(10)), "{starts:?}");
            let (create, start, destroy) = (median(&mut creates), median(&mut starts), median(&mut destroys));
            tell(&format!(
                "{what}: create {create} ms, start {start} ms, destroy {destroy} ms (median of {STARTS})"
            ));
        }
    })
    .await;
}
