//! `kill -9` of everything that can be killed: the sandbox's end is as promised, and nothing is left.

use std::time::Duration;

use caisson_sandbox::{Engine, Exit, Liveness, SandboxSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bench::{Bench, on_bench};
use crate::places::ready;

/// Says that it is ready, and ends with 5 when it is asked to.
const LISTENS: &str = "trap 'exit 5' TERM; echo ready > /workspace/ready; sleep 600 & wait";

async fn running(bench: &Bench, script: &str) -> SandboxSpec {
    let spec = bench.sandbox(script);
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.id).await.unwrap();
    assert_eq!(ready(&spec).await, "ready");
    spec
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// The process of bubblewrap that watches over a sandbox's first process.
fn bubblewrap(bench: &Bench, spec: &SandboxSpec) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", bench.first(spec))).unwrap();
    let parent = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    let line = std::fs::read(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(line.starts_with(format!("caisson-{}", spec.id).as_bytes()), "it bears the sandbox's mark");
    parent
}

async fn liveness(engine: &dyn Engine, spec: &SandboxSpec) -> Option<Liveness> {
    let owned = engine.list_owned().await.unwrap();
    owned.into_iter().find(|owned| owned.id == spec.id).map(|owned| owned.liveness)
}

/// Every process on this machine whose argument list names the sandbox, and every control group of its name.
fn left(spec: &SandboxSpec) -> Vec<String> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(spec.id.as_str()) {
            left.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    let mut directories = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(spec.id.as_str()) {
                    left.push(entry.path().display().to_string());
                }
                directories.push(entry.path());
            }
        }
    }
    left
}

async fn destroyed(bench: &Bench, spec: &SandboxSpec) {
    let first = bench.first(spec);
    bench.engine.destroy(&spec.id).await.unwrap();
    // Whoever inherited it may not have taken in its end yet.
    let state = std::fs::read_to_string(format!("/proc/{first}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    assert_eq!(left(spec), Vec::<String>::new());
    assert!(!bench.record(spec).exists());
}

#[tokio::test]
async fn a_sandbox_outlives_its_server_and_the_next_one_goes_on_with_it() {
    on_bench(async |bench| {
        let spec = running(bench, LISTENS).await;
        let next = bench.started_again();
        assert_eq!(liveness(&next, &spec).await, Some(Liveness::Running));
        next.start(&spec.id).await.unwrap();
        next.stop(&spec.id, 60).await.unwrap();
        assert_eq!(next.wait(&spec.id).await.unwrap().code, Some(5));
        // Made by one server, started by the next.
        let spec = bench.sandbox(LISTENS);
        bench.engine.create(&spec).await.unwrap();
        let next = bench.started_again();
        assert_eq!(liveness(&next, &spec).await, Some(Liveness::Created));
        next.start(&spec.id).await.unwrap();
        assert_eq!(ready(&spec).await, "ready");
        destroyed(bench, &spec).await;
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_outlives_its_supervisor_and_only_its_exit_code_is_lost() {
    on_bench(async |bench| {
        let spec = running(bench, LISTENS).await;
        kill_9(bench.supervisor(&spec));
        let next = bench.started_again();
        while std::path::Path::new(&format!("/proc/{}/exe", bench.supervisor(&spec))).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(liveness(&next, &spec).await, Some(Liveness::Running));
        let (exit, ()) = tokio::join!(next.wait(&spec.id), async { next.stop(&spec.id, 60).await.unwrap() });
        let unknown = Exit { code: None, oom_killed: false, finished_at_ms: None };
        assert_eq!(exit.unwrap(), unknown);
        assert_eq!(liveness(&next, &spec).await, Some(Liveness::Exited(unknown)));
        destroyed(bench, &spec).await;

        let spec = running(bench, LISTENS).await;
        kill_9(bench.supervisor(&spec));
        destroyed(bench, &spec).await;
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_outlives_bubblewrap_and_its_exit_code_is_still_told() {
    on_bench(async |bench| {
        let spec = running(bench, LISTENS).await;
        kill_9(bubblewrap(bench, &spec));
        tokio::time::timeout(Duration::from_millis(300), bench.engine.wait(&spec.id)).await.unwrap_err();
        bench.engine.stop(&spec.id, 60).await.unwrap();
        assert_eq!(bench.engine.wait(&spec.id).await.unwrap().code, Some(5));
        destroyed(bench, &spec).await;

        let spec = running(bench, LISTENS).await;
        kill_9(bubblewrap(bench, &spec));
        kill_9(bench.supervisor(&spec));
        destroyed(bench, &spec).await;
    })
    .await;
}

#[tokio::test]
async fn a_killed_first_process_takes_the_whole_tree_along() {
    on_bench(async |bench| {
        let spec = running(
            bench,
            "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; (sleep 600 &) ; sleep 600' & done; sleep 0.2; echo ready > /workspace/ready; sleep 600",
        )
        .await;
        let first = bench.first(&spec);
        assert!(bench.engine.usage(&spec.id).await.unwrap().pids >= 8);
        kill_9(first);
        let exit = bench.engine.wait(&spec.id).await.unwrap();
        assert_eq!((exit.code, exit.oom_killed), (Some(137), false));
        destroyed_after_end(bench, &spec).await;
    })
    .await;
}

async fn destroyed_after_end(bench: &Bench, spec: &SandboxSpec) {
    assert_eq!(left(spec), Vec::<String>::new(), "the supervisor has cleared up");
    bench.engine.destroy(&spec.id).await.unwrap();
    assert!(!bench.record(spec).exists());
}

#[tokio::test]
async fn a_record_that_a_crash_left_half_made_is_listed_and_removed() {
    on_bench(async |bench| {
        let spec = bench.sandbox("exit 0");
        let record = bench.record(&spec);
        std::fs::create_dir(&record).unwrap();
        let unknown = Exit { code: None, oom_killed: false, finished_at_ms: None };
        assert_eq!(liveness(&bench.engine, &spec).await, Some(Liveness::Exited(unknown)));
        bench.engine.destroy(&spec.id).await.unwrap();
        assert!(!record.exists());
    })
    .await;
}
