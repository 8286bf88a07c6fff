//! An engine that is killed: a Docker Engine of the test's own, which needs root and `dockerd`, but no network.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bollard::query_parameters::CreateImageOptions;
use caisson_sandbox::{Engine, EngineError, Liveness, OwnedSandbox, SandboxSpec};
use futures_util::{FutureExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::bench::Bench;
use crate::places::{ready, skipped};

/// An image with a shell and nothing else, copied from this machine.
const IMAGE: &str = "caisson-test:shell";
/// How long an engine may take to start or stop.
const WITHIN: Duration = Duration::from_mins(2);
/// Asks for a number, and ends with it.
const ENDS_AS_TOLD: &str = "echo ready > /workspace/ready; read code < /workspace/go; exit $code";

struct Daemon {
    directory: tempfile::TempDir,
    live_restore: bool,
    process: Option<Child>,
    output: JoinSet<()>,
}

/// Runs a test on a fresh engine, or says why it is skipped. Every sandbox, and the engine, are gone afterwards.
async fn on_daemon(live_restore: bool, test: impl AsyncFnOnce(&Bench, &mut Daemon)) {
    let Some(mut daemon) = Daemon::fresh(live_restore).await else { return };
    let bench = Bench::at(Some(format!("unix://{}", daemon.path("engine.sock").display())));
    let result = AssertUnwindSafe(bench.run(async |bench| {
        import_shell(bench).await;
        let result = AssertUnwindSafe(test(bench, &mut daemon)).catch_unwind().await;
        if daemon.process.is_none() {
            // Only a living engine can remove what the test left.
            daemon.start().await.expect("it started before");
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }));
    let result = result.catch_unwind().await;
    daemon.end(Signal::SIGTERM).await;
    // An engine that found this mount at its start leaves it at its end.
    program("umount").arg(daemon.path("data")).stderr(Stdio::null()).status().await.ok();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl Daemon {
    async fn fresh(live_restore: bool) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            return skipped("an engine of the test's own needs root");
        }
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Self { directory, live_restore, process: None, output: JoinSet::new() };
        match daemon.start().await {
            Ok(()) => Some(daemon),
            Err(error) => {
                skipped(&format!("no engine of the test's own ({error}); install Docker's dockerd"))
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the engine, and returns when it answers.
    async fn start(&mut self) -> std::io::Result<()> {
        // In a network namespace of its own: an engine without a bridge removes the bridge that another one made.
        let mut command = program("unshare");
        command.args(["--net", "dockerd"]);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "engine.pid")]
        {
            command.arg(option).arg(self.path(name));
        }
        command.arg(format!("--host=unix://{}", self.path("engine.sock").display()));
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command.arg(format!("--live-restore={}", self.live_restore));
        // A killed engine leaves pid files, its own and that of its containerd, which dies with it. As long as nobody has
        // reaped them, a new engine takes them for living ones.
        for left in ["engine.pid", "exec/containerd/containerd.pid"] {
            std::fs::remove_file(self.path(left)).ok();
        }
        command.stderr(Stdio::piped()).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut said = String::new();
        let listens = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("API listen on") {
                    return true;
                }
                said = line;
            }
            false
        };
        let answers = tokio::time::timeout(WITHIN, listens).await.unwrap_or(false);
        self.process = Some(process);
        if !answers {
            self.end(Signal::SIGKILL).await;
            return Err(std::io::Error::other(said));
        }
        self.output.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(())
    }

    /// Ends the engine's process by a signal, and returns when it is gone.
    async fn end(&mut self, signal: Signal) {
        let Some(mut process) = self.process.take() else { return };
        let id = process.id().expect("it was not waited for yet");
        kill(Pid::from_raw(id.try_into().unwrap()), signal).unwrap();
        tokio::time::timeout(WITHIN, process.wait()).await.expect("it ends in time").unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "the test starts an engine of its own")]
fn program(name: &str) -> Command {
    Command::new(name)
}

/// Imports an image that holds this machine's shell and the libraries it is linked with.
async fn import_shell(bench: &Bench) {
    let linked = program("ldd").arg("/bin/sh").output().await.expect("a machine with a shell has ldd");
    let linked = String::from_utf8(linked.stdout).unwrap();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    let files: BTreeSet<&str> = libraries.chain(["/bin/sh"]).collect();
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let real = Path::new(file).canonicalize().unwrap();
        archive.append_path_with_name(real, file.trim_start_matches('/')).unwrap();
    }
    let (name, tag) = IMAGE.split_once(':').unwrap();
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(name.to_owned()),
        tag: Some(tag.to_owned()),
        ..Default::default()
    };
    let body = bollard::body_full(archive.into_inner().unwrap().into());
    let docker = bench.docker();
    let mut answers = docker.create_image(Some(options), Some(body), None);
    while let Some(answer) = answers.next().await {
        answer.unwrap();
    }
}

async fn running(bench: &Bench, script: &str) -> SandboxSpec {
    let mut spec = bench.sandbox(script);
    spec.image = Some(IMAGE.to_owned());
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.id).await.unwrap();
    assert_eq!(ready(&spec).await, "ready");
    spec
}

async fn tell_to_end(spec: &SandboxSpec, code: i64) {
    let pipe = spec.mounts.workspace_dir.join("go");
    let write = tokio::fs::write(pipe, format!("{code}\n"));
    tokio::time::timeout(WITHIN, write).await.expect("the script reads").unwrap();
}

async fn liveness(bench: &Bench, spec: &SandboxSpec) -> Liveness {
    let owned: Vec<OwnedSandbox> = bench.engine.list_owned().await.unwrap();
    owned.into_iter().find(|owned| owned.id == spec.id).expect("it is still listed").liveness
}

#[tokio::test]
async fn sandboxes_outlive_a_killed_engine_with_live_restore() {
    on_daemon(true, async |bench, daemon| {
        assert!(bench.engine.check().await.unwrap().live_restore);
        let ends = running(bench, ENDS_AS_TOLD).await;
        let lives = running(bench, ENDS_AS_TOLD).await;
        let (waited, ()) = tokio::join!(bench.engine.wait(&ends.id), async {
            daemon.end(Signal::SIGKILL).await;
            let error = bench.engine.list_owned().await.unwrap_err();
            assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
            // It ends while nobody looks.
            tell_to_end(&ends, 7).await;
            daemon.start().await.unwrap();
        });
        assert_eq!(waited.unwrap().code, Some(7), "the wait that was under way goes on");
        assert_eq!(liveness(bench, &lives).await, Liveness::Running);
        let (waited, ()) = tokio::join!(bench.engine.wait(&lives.id), tell_to_end(&lives, 9));
        assert_eq!(waited.unwrap().code, Some(9));
    })
    .await;
}

#[tokio::test]
async fn sandboxes_that_die_with_their_engine_are_told_as_ended() {
    on_daemon(false, async |bench, daemon| {
        let spec = running(bench, ENDS_AS_TOLD).await;
        let (waited, ()) = tokio::join!(bench.engine.wait(&spec.id), async {
            daemon.end(Signal::SIGKILL).await;
            daemon.start().await.unwrap();
        });
        let exit = waited.unwrap();
        assert_ne!(exit.code, Some(0), "{exit:?}");
        assert!(!exit.ended_by_oom(), "{exit:?}");
        assert_eq!(liveness(bench, &spec).await, Liveness::Exited(exit));
    })
    .await;
}
