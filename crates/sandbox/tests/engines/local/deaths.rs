//! `kill -9` of everything that can be killed: the sandbox's end is as promised, and nothing is left.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use caisson_sandbox::local::{ControlGroups, LimitsBy};
use caisson_sandbox::{Engine, EngineError, Exit, Liveness, MEMORY_BYTES_MIN, SandboxSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bench::{Bench, on_bench};
use crate::places::{ready, skipped};

/// Says that it is ready, and ends with 5 when it is asked to.
const LISTENS: &str = "trap 'exit 5' TERM; echo ready > /workspace/ready; sleep 600 & wait";

/// How long what ends by itself may take.
const PATIENCE: Duration = Duration::from_secs(10);

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
    // Without a supervisor, bubblewrap's own process ends by itself a moment after the sandbox's first.
    let begun = std::time::Instant::now();
    while left(spec).iter().any(|line| line.starts_with("caisson-")) && begun.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
        ended(bench.supervisor(&spec)).await;
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
            "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; (sleep 600 &) ; sleep 600' & done; echo ready > /workspace/ready; sleep 600",
        )
        .await;
        let first = bench.first(&spec);
        let begun = std::time::Instant::now();
        while bench.engine.usage(&spec.id).await.unwrap().pids < 8 {
            assert!(begun.elapsed() < PATIENCE, "not all of the tree is there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        kill_9(first);
        let exit = bench.engine.wait(&spec.id).await.unwrap();
        assert_eq!((exit.code, exit.oom_killed), (Some(137), false));
        destroyed_after_end(bench, &spec).await;
    })
    .await;
}

#[tokio::test]
async fn want_of_memory_is_told_also_where_the_end_could_not_be_written_down() {
    on_bench(async |bench| {
        let capabilities = bench.engine.check().await.unwrap();
        if let LimitsBy::ProcessLimits { reason } = capabilities.limits {
            return skipped(&reason).unwrap_or_default();
        }
        let mut spec =
            bench.sandbox("echo ready > /workspace/ready; read go < /workspace/go; exec tail /dev/zero");
        spec.limits.memory_bytes = MEMORY_BYTES_MIN;
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        assert_eq!(ready(&spec).await, "ready");
        let in_the_way = bench.record(&spec).join("exit.json");
        std::fs::create_dir(&in_the_way).unwrap();
        std::fs::write(spec.mounts.workspace_dir.join("go"), "go\n").unwrap();
        ended(bench.supervisor(&spec)).await;
        std::fs::remove_dir(&in_the_way).unwrap();
        let starved = Exit { code: None, oom_killed: true, finished_at_ms: None };
        assert_eq!(bench.engine.wait(&spec.id).await.unwrap(), starved);
        bench.engine.destroy(&spec.id).await.unwrap();
        assert_eq!(left(&spec), Vec::<String>::new());
    })
    .await;
}

/// Waits until a process is gone, or is left for its parent to take in.
async fn ended(pid: i32) {
    let begun = std::time::Instant::now();
    let is_over = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !is_over() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn destroyed_after_end(bench: &Bench, spec: &SandboxSpec) {
    assert_eq!(left(spec), Vec::<String>::new(), "the supervisor has cleared up");
    bench.engine.destroy(&spec.id).await.unwrap();
    assert!(!bench.record(spec).exists());
}

#[tokio::test]
async fn a_sandbox_whose_supervisor_is_killed_before_its_start_never_ran() {
    on_bench(async |bench| {
        let spec = bench.sandbox("touch /workspace/ran");
        bench.engine.create(&spec).await.unwrap();
        let supervisor = bench.supervisor(&spec);
        kill_9(supervisor);
        ended(supervisor).await;
        for _ in 0..2 {
            let error = bench.engine.start(&spec.id).await.unwrap_err();
            assert!(matches!(error, EngineError::Refused { .. }), "it did not run and end: {error}");
            assert!(error.to_string().contains("supervisor ended"), "{error}");
        }
        assert!(!spec.mounts.workspace_dir.join("ran").exists());
        bench.engine.destroy(&spec.id).await.unwrap();
        assert_eq!(left(&spec), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_supervisor_that_ends_before_its_sandbox_runs_leaves_nothing_behind() {
    on_bench(async |bench| {
        let told_to_end = bench.sandbox("exit 0");
        bench.engine.create(&told_to_end).await.unwrap();
        let supervisor = bench.supervisor(&told_to_end);
        kill(Pid::from_raw(supervisor), Signal::SIGTERM).unwrap();
        ended(supervisor).await;
        assert_eq!(left(&told_to_end), Vec::<String>::new());

        let cannot_run = bench.sandbox("exit 0");
        std::fs::set_permissions(&cannot_run.mounts.shim, std::fs::Permissions::from_mode(0o644)).unwrap();
        bench.engine.create(&cannot_run).await.unwrap();
        let supervisor = bench.supervisor(&cannot_run);
        bench.engine.start(&cannot_run.id).await.unwrap_err();
        ended(supervisor).await;
        assert_eq!(left(&cannot_run), Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_stop_whose_sandbox_is_gone_when_it_has_ended_says_so() {
    on_bench(async |bench| {
        let spec = running(bench, "echo ready > /workspace/ready; exec sleep 600").await;
        let (supervisor, first) = (bench.supervisor(&spec), bench.first(&spec));
        // It would write down how the sandbox ended.
        kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
        let (stopped, ()) = tokio::join!(bench.engine.stop(&spec.id, 60), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::fs::remove_dir_all(bench.record(&spec)).unwrap();
            kill_9(first);
        });
        kill(Pid::from_raw(supervisor), Signal::SIGCONT).unwrap();
        let error = stopped.unwrap_err();
        assert!(matches!(error, EngineError::NotFound { .. }), "{error:?}");
        ended(supervisor).await;
        bench.engine.destroy(&spec.id).await.unwrap();
        assert_eq!(left(&spec), Vec::<String>::new());
    })
    .await;
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

/// Whether a process has been stopped by a signal.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, behind)| behind.starts_with('T'))
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Stops a supervisor while its sandbox is being made, and looks whether it has written the first process down; bubblewrap and
/// the first process if it has not.
fn caught(record: &std::path::Path, supervisor: i32) -> Option<(i32, i32)> {
    let begun = std::time::Instant::now();
    let made = loop {
        let made = children(supervisor).first().and_then(|child| Some((*child, *children(*child).first()?)));
        if made.is_some() || begun.elapsed() > Duration::from_mins(1) {
            break made;
        }
    };
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
    while !is_stopped(supervisor) {
        std::thread::sleep(Duration::from_millis(1));
    }
    made.filter(|_| !record.join("first.json").exists())
}

#[tokio::test]
async fn a_first_process_whose_makers_are_killed_before_it_is_written_down_never_runs() {
    const TRIES: usize = 50;
    on_bench(async |bench| {
        for _ in 0..TRIES {
            let spec = bench.sandbox("touch /workspace/ran; exec sleep 600");
            bench.engine.create(&spec).await.unwrap();
            let (supervisor, record) = (bench.supervisor(&spec), bench.record(&spec));
            let (started, found) = tokio::join!(
                async {
                    tokio::time::timeout(Duration::from_millis(500), bench.engine.start(&spec.id)).await
                },
                tokio::task::spawn_blocking(move || caught(&record, supervisor)),
            );
            let Some((bubblewrap, first)) = found.unwrap() else {
                kill(Pid::from_raw(supervisor), Signal::SIGCONT).unwrap();
                bench.engine.destroy(&spec.id).await.unwrap();
                continue;
            };
            assert!(!matches!(started, Ok(Ok(()))), "it was not started");
            kill_9(supervisor);
            kill_9(bubblewrap);
            tokio::time::sleep(Duration::from_millis(300)).await;
            let line = std::fs::read(format!("/proc/{first}/cmdline")).unwrap();
            assert!(line.starts_with(format!("caisson-{}", spec.id).as_bytes()), "it waits");
            assert!(!spec.mounts.workspace_dir.join("ran").exists());
            let unknown = Exit { code: None, oom_killed: false, finished_at_ms: None };
            assert_eq!(liveness(&bench.engine, &spec).await, Some(Liveness::Exited(unknown)));
            bench.engine.destroy(&spec.id).await.unwrap();
            assert_eq!(left(&spec), Vec::<String>::new());
            return;
        }
        panic!("the moment was never met in {TRIES} tries");
    })
    .await;
}

#[tokio::test]
async fn a_living_sandbox_whose_record_is_damaged_is_listed_and_removed_whole() {
    on_bench(async |bench| {
        for control_groups in [ControlGroups::Use, ControlGroups::Off] {
            let engine = bench.engine_with(|config| config.control_groups = control_groups);
            for torn in
                [&["supervisor.json", "first.json"][..], &["label.json", "first.json", "supervisor.json"]]
            {
                let spec = bench.sandbox(LISTENS);
                engine.create(&spec).await.unwrap();
                engine.start(&spec.id).await.unwrap();
                assert_eq!(ready(&spec).await, "ready");
                let first = bench.first(&spec);
                for name in torn {
                    std::fs::write(bench.record(&spec).join(name), "").unwrap();
                }
                assert!(matches!(liveness(&engine, &spec).await, Some(Liveness::Exited(_))));
                engine.destroy(&spec.id).await.unwrap();
                let state = std::fs::read_to_string(format!("/proc/{first}/stat")).unwrap_or_default();
                assert!(state.is_empty() || state.contains(") Z "), "{state}");
                assert_eq!(left(&spec), Vec::<String>::new());
            }
            let spec = bench.sandbox(LISTENS);
            engine.create(&spec).await.unwrap();
            std::fs::write(bench.record(&spec).join("supervisor.json"), "{").unwrap();
            engine.destroy(&spec.id).await.unwrap();
            assert_eq!(left(&spec), Vec::<String>::new(), "nobody waits for a word to start");
        }
    })
    .await;
}
