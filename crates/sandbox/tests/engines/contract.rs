//! What every engine promises, tested through [`Engine`] alone, so that the next engine is tested by the same code.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use caisson_domain::id::SandboxId;
use caisson_sandbox::{
    Engine, EngineError, Exit, Liveness, MEMORY_BYTES_MIN, OwnedSandbox, PIDS_MIN, SandboxSpec,
};

use crate::places::{random, ready, written};

/// Says that it is ready and lives on, deaf to signals.
const LIVES_ON: &str = "echo ready > /workspace/ready; exec sleep 600";
/// Says that it is ready, and ends with 5 when it is asked to.
const LISTENS: &str = "trap 'exit 5' TERM; echo ready > /workspace/ready; sleep 600 & wait";
/// Uses some hundredths of a second.
const BUSY: &str = "n=0; while [ $n -lt 200000 ]; do n=$((n + 1)); done";
/// Takes memory until there is none.
const STARVES: &str = "tail /dev/zero";

/// What the contract needs of an engine.
pub(crate) struct Ground<'a> {
    pub(crate) engine: &'a dyn Engine,
    /// The same engine, as another server sees it.
    pub(crate) other: &'a dyn Engine,
    /// Makes the specification of a sandbox with directories of its own, whose shim is this shell script.
    pub(crate) make: &'a dyn Fn(&str) -> SandboxSpec,
    /// Whether limits are of the whole sandbox and their breach is told, which takes control groups.
    pub(crate) groups: bool,
}

impl Ground<'_> {
    async fn started(&self, spec: &SandboxSpec) {
        self.engine.create(spec).await.unwrap();
        self.engine.start(&spec.id).await.unwrap();
    }

    async fn running(&self, script: &str) -> SandboxSpec {
        let spec = (self.make)(script);
        self.started(&spec).await;
        assert_eq!(ready(&spec).await, "ready");
        spec
    }

    async fn ended(&self, script: &str) -> (SandboxSpec, Exit) {
        let spec = (self.make)(script);
        self.started(&spec).await;
        let exit = self.engine.wait(&spec.id).await.unwrap();
        (spec, exit)
    }

    async fn liveness(&self, spec: &SandboxSpec) -> Option<Liveness> {
        let owned = self.engine.list_owned().await.unwrap();
        let found: Vec<OwnedSandbox> = owned.into_iter().filter(|owned| owned.id == spec.id).collect();
        assert!(found.len() <= 1);
        found.into_iter().next().map(|owned| {
            assert_eq!(owned.session.as_ref(), Some(&spec.session));
            owned.liveness
        })
    }
}

pub(crate) async fn a_life_goes_from_created_over_running_to_exited(ground: &Ground<'_>) {
    let spec = (ground.make)("echo ready > /workspace/ready; read line < /workspace/go; exit 3");
    assert_eq!(ground.liveness(&spec).await, None);
    ground.engine.create(&spec).await.unwrap();
    assert_eq!(ground.liveness(&spec).await, Some(Liveness::Created));
    ground.engine.start(&spec.id).await.unwrap();
    assert_eq!(ready(&spec).await, "ready");
    assert_eq!(ground.liveness(&spec).await, Some(Liveness::Running));
    let (pipe, id) = (spec.mounts.workspace_dir.join("go"), spec.id.clone());
    let go_on = tokio::task::spawn_blocking(move || std::fs::write(pipe, "go on\n").unwrap());
    let exit = ground.engine.wait(&id).await.unwrap();
    go_on.await.unwrap();
    assert_eq!((exit.code, exit.oom_killed), (Some(3), false));
    assert!(exit.finished_at_ms.is_some());
    assert_eq!(ground.liveness(&spec).await, Some(Liveness::Exited(exit)));
    ground.engine.destroy(&spec.id).await.unwrap();
    assert_eq!(ground.liveness(&spec).await, None);
}

pub(crate) async fn wait_answers_as_often_as_asked(ground: &Ground<'_>) {
    let spec = ground.running(LISTENS).await;
    // Dropped in the middle, it takes nothing with it.
    tokio::time::timeout(Duration::from_millis(1), ground.engine.wait(&spec.id)).await.unwrap_err();
    let (first, second, ()) =
        tokio::join!(ground.engine.wait(&spec.id), ground.engine.wait(&spec.id), async {
            ground.engine.stop(&spec.id, 60).await.unwrap();
        });
    let first = first.unwrap();
    assert_eq!(first.code, Some(5));
    assert_eq!(second.unwrap(), first);
    assert_eq!(ground.engine.wait(&spec.id).await.unwrap(), first);
}

pub(crate) async fn exit_codes_are_told_as_they_are(ground: &Ground<'_>) {
    for (script, code) in [("exit 0", 0), ("exit 1", 1), ("exit 255", 255), ("exec /does/not/exist", 127)] {
        let (spec, exit) = ground.ended(script).await;
        assert_eq!((exit.code, exit.oom_killed), (Some(code), false), "{script}");
        assert!(!exit.ended_by_oom());
        ground.engine.destroy(&spec.id).await.unwrap();
    }
}

pub(crate) async fn destroy_is_fine_in_every_state_and_twice(ground: &Ground<'_>) {
    let unknown = SandboxId::new(1, random());
    ground.engine.destroy(&unknown).await.unwrap();

    let created = (ground.make)(LIVES_ON);
    ground.engine.create(&created).await.unwrap();
    let running = ground.running(LIVES_ON).await;
    let (exited, _) = ground.ended("exit 0").await;
    for spec in [created, running, exited] {
        let (one, two) = tokio::join!(ground.engine.destroy(&spec.id), ground.engine.destroy(&spec.id));
        one.unwrap();
        two.unwrap();
        assert_eq!(ground.liveness(&spec).await, None, "gone as soon as either is done");
        ground.engine.destroy(&spec.id).await.unwrap();
    }
    assert_eq!(ground.engine.list_owned().await.unwrap(), []);
}

pub(crate) async fn an_unknown_sandbox_is_not_found(ground: &Ground<'_>) {
    let id = SandboxId::new(1, random());
    let errors = [
        ground.engine.start(&id).await.unwrap_err(),
        ground.engine.wait(&id).await.unwrap_err(),
        ground.engine.stop(&id, 1).await.unwrap_err(),
        ground.engine.usage(&id).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, EngineError::NotFound { id: told } if *told == id), "{error}");
    }
}

pub(crate) async fn an_id_is_used_once(ground: &Ground<'_>) {
    let spec = ground.running(LIVES_ON).await;
    let error = ground.engine.create(&spec).await.unwrap_err();
    assert!(matches!(&error, EngineError::AlreadyExists { id } if *id == spec.id), "{error}");
    assert_eq!(ground.liveness(&spec).await, Some(Liveness::Running), "the first one is left alone");
    ground.engine.destroy(&spec.id).await.unwrap();
    ground.engine.create(&spec).await.unwrap();
}

pub(crate) async fn start_is_repeatable_while_it_runs_and_not_after(ground: &Ground<'_>) {
    let spec = ground.running(LISTENS).await;
    ground.engine.start(&spec.id).await.unwrap();
    ground.engine.stop(&spec.id, 60).await.unwrap();
    let error = ground.engine.start(&spec.id).await.unwrap_err();
    assert!(matches!(error, EngineError::Ended { .. }), "{error}");
    assert!(matches!(ground.liveness(&spec).await, Some(Liveness::Exited(_))));
}

pub(crate) async fn stop_asks_first_and_kills_after_the_grace(ground: &Ground<'_>) {
    let listens = ground.running(LISTENS).await;
    ground.engine.stop(&listens.id, 60).await.unwrap();
    assert_eq!(ground.engine.wait(&listens.id).await.unwrap().code, Some(5));

    // The first process of a sandbox that has no handler does not hear SIGTERM.
    let deaf = ground.running(LIVES_ON).await;
    let began = Instant::now();
    ground.engine.stop(&deaf.id, 1).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let exit = ground.engine.wait(&deaf.id).await.unwrap();
    assert_eq!(exit.code, Some(137));
    assert!(!exit.ended_by_oom(), "killed, not starved");

    // Neither started nor running still: nothing to do.
    ground.engine.stop(&deaf.id, 1).await.unwrap();
    let created = (ground.make)(LIVES_ON);
    ground.engine.create(&created).await.unwrap();
    ground.engine.stop(&created.id, 1).await.unwrap();
    assert_eq!(ground.liveness(&created).await, Some(Liveness::Created));
}

pub(crate) async fn a_wait_ends_when_the_sandbox_is_destroyed(ground: &Ground<'_>) {
    let spec = ground.running(LIVES_ON).await;
    let (waited, ()) = tokio::join!(ground.engine.wait(&spec.id), async {
        ground.engine.destroy(&spec.id).await.unwrap();
    });
    match waited {
        Ok(exit) => assert_eq!(exit.code, Some(137)),
        Err(error) => assert!(matches!(error, EngineError::NotFound { .. }), "{error}"),
    }
    assert!(matches!(ground.engine.wait(&spec.id).await, Err(EngineError::NotFound { .. })));
}

pub(crate) async fn a_stop_ends_when_the_sandbox_is_destroyed(ground: &Ground<'_>) {
    // Which of the two is ahead at which of their steps is chance.
    for wait_ms in [0, 0, 1, 2, 5, 10] {
        let spec = ground.running(LIVES_ON).await;
        let (stopped, ()) = tokio::join!(ground.engine.stop(&spec.id, 30), async {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            ground.engine.destroy(&spec.id).await.unwrap();
        });
        match stopped {
            Ok(()) | Err(EngineError::NotFound { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub(crate) async fn a_list_shows_only_this_server_s_own(ground: &Ground<'_>) {
    let (one, two) = ((ground.make)(LIVES_ON), (ground.make)(LIVES_ON));
    ground.engine.create(&one).await.unwrap();
    ground.engine.create(&two).await.unwrap();
    let mut ids: Vec<_> =
        ground.engine.list_owned().await.unwrap().into_iter().map(|owned| owned.id).collect();
    ids.sort();
    let mut expected = [one.id, two.id];
    expected.sort();
    assert_eq!(ids, expected);
    assert_eq!(ground.other.list_owned().await.unwrap(), []);
}

pub(crate) async fn usage_is_told_while_it_runs(ground: &Ground<'_>) {
    let spec = (ground.make)(&format!("{BUSY}; sleep 600 & echo ready > /workspace/ready; wait"));
    ground.engine.create(&spec).await.unwrap();
    let error = ground.engine.usage(&spec.id).await.unwrap_err();
    assert!(matches!(error, EngineError::NotRunning { .. }), "{error}");
    ground.engine.start(&spec.id).await.unwrap();
    ready(&spec).await;
    let usage = ground.engine.usage(&spec.id).await.unwrap();
    assert_eq!(usage.pids, 2, "the shell and its sleep");
    assert!(usage.memory_bytes > 0 && usage.memory_bytes < spec.limits.memory_bytes, "{usage:?}");
    assert!(usage.memory_peak_bytes.is_none_or(|peak| peak >= usage.memory_bytes), "{usage:?}");
    assert!(usage.cpu_micros > 0 && usage.cpu_micros < 60_000_000, "{usage:?}");
    // A run waits for it: not until the engine looks by itself, which it does once a second.
    let begun = Instant::now();
    for _ in 0..6 {
        ground.engine.usage(&spec.id).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "six looks took {:?}", begun.elapsed());
    ground.engine.stop(&spec.id, 0).await.unwrap();
    let error = ground.engine.usage(&spec.id).await.unwrap_err();
    assert!(matches!(error, EngineError::NotRunning { .. }), "{error}");
}

pub(crate) async fn want_of_memory_ends_the_sandbox(ground: &Ground<'_>) {
    let mut spec = (ground.make)(&format!("exec {STARVES}"));
    spec.limits.memory_bytes = MEMORY_BYTES_MIN;
    ground.started(&spec).await;
    let exit = ground.engine.wait(&spec.id).await.unwrap();
    if ground.groups {
        assert_eq!((exit.code, exit.oom_killed), (Some(137), true));
        assert!(exit.ended_by_oom());
    } else {
        assert!(exit.code.is_some_and(|code| code != 0) && !exit.oom_killed, "{exit:?}");
    }
}

pub(crate) async fn want_of_memory_that_ends_only_a_child_is_not_the_sandbox_s_end(ground: &Ground<'_>) {
    let mut spec = (ground.make)(&format!("{STARVES}; echo $? > /workspace/child; exit 0"));
    spec.limits.memory_bytes = MEMORY_BYTES_MIN;
    ground.started(&spec).await;
    let exit = ground.engine.wait(&spec.id).await.unwrap();
    let child = written(&spec, "child");
    assert!(if ground.groups { child.trim() == "137" } else { child.trim() != "0" }, "{child}");
    assert_eq!((exit.code, exit.oom_killed), (Some(0), ground.groups), "both facts are told");
    assert!(!exit.ended_by_oom());
}

pub(crate) async fn processes_are_limited(ground: &Ground<'_>) {
    // The shell is one of them, so the loop comes to one process less.
    let mut spec = (ground.make)(
        "exec 2> /workspace/err; n=0; while [ $n -lt 100 ]; do sleep 60 & n=$((n + 1)); echo $n > /workspace/n; done",
    );
    spec.limits.pids = PIDS_MIN;
    ground.started(&spec).await;
    let exit = ground.engine.wait(&spec.id).await.unwrap();
    assert_ne!(exit.code, Some(0), "{}", written(&spec, "err"));
    assert!(written(&spec, "err").to_lowercase().contains("fork"), "{}", written(&spec, "err"));
    assert_eq!(written(&spec, "n").trim(), (PIDS_MIN - 1).to_string());
}

pub(crate) async fn a_program_that_cannot_run_is_refused_at_start(ground: &Ground<'_>) {
    let spec = (ground.make)("");
    std::fs::set_permissions(&spec.mounts.shim, std::fs::Permissions::from_mode(0o644)).unwrap();
    ground.engine.create(&spec).await.unwrap();
    let error = ground.engine.start(&spec.id).await.unwrap_err();
    assert!(matches!(error, EngineError::Refused { .. }), "{error:?}");
    assert!(error.to_string().to_lowercase().contains("permission denied"), "{error}");
    ground.engine.destroy(&spec.id).await.unwrap();
}

pub(crate) async fn boot_arguments_and_disks_of_the_host_are_not_told(ground: &Ground<'_>) {
    let looks = "for file in cmdline diskstats partitions swaps; do cat /proc/$file; done > /workspace/told 2>/dev/null
        for place in /proc/fs /sys/block /sys/class/block /sys/fs/ext4; do ls -A $place; done >> /workspace/told 2>/dev/null
        exit 0";
    let spec = (ground.make)(looks);
    ground.started(&spec).await;
    assert_eq!(ground.engine.wait(&spec.id).await.unwrap().code, Some(0));
    assert_eq!(written(&spec, "told"), "");
    for file in ["/proc/cmdline", "/proc/diskstats"] {
        assert_ne!(std::fs::read_to_string(file).unwrap(), "", "the host has {file}");
    }
}
