//! Directories and specifications of sandboxes to test with, the same for every engine.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::id::{SandboxId, ServerId, SessionId};
use caisson_sandbox::{Engine, Mounts, ResourceLimits, SandboxSpec};
use futures_util::FutureExt;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// A user id that neither host nor image knows by name.
const UID: u32 = 12_345;
/// How long a sandbox may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Runs a test, then removes every sandbox that it left, then lets it fail if it did.
pub(crate) async fn run_tidily(engines: &[&dyn Engine], test: impl Future<Output = ()>) {
    let result = AssertUnwindSafe(test).catch_unwind().await;
    for engine in engines {
        for left in engine.list_owned().await.expect("what is left can be listed") {
            engine.destroy(&left.id).await.expect("what is left can be removed");
        }
        assert_eq!(engine.list_owned().await.expect("the engine answers"), []);
    }
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Where the sandboxes of one test have their directories.
pub(crate) struct Places {
    directory: tempfile::TempDir,
    made: Cell<u8>,
}

impl Places {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self { directory, made: Cell::new(0) }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A sandbox with directories of its own, whose shim is this shell script.
    pub(crate) fn sandbox(&self, server: &ServerId, script: &str) -> SandboxSpec {
        let number = self.made.replace(self.made.get() + 1);
        // A space, a colon and an umlaut: what a path may have, a mount must bear.
        let root = self.directory.path().join(format!("sandbox {number}: ü"));
        let uid = match self.directory.path().metadata().expect("it was made").uid() {
            0 => UID,
            own => own,
        };
        let directory = |name: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(&path).expect("a temporary directory can be written to");
            if uid == UID {
                chown(&path, Some(uid), Some(uid)).expect("root may give directories away");
            }
            path
        };
        let mounts = Mounts {
            agent_dir: directory("agent"),
            door_dir: directory("door"),
            journal_dir: directory("journal"),
            workspace_dir: directory("workspace"),
            home_dir: directory("home"),
            shim: program(&root, script),
        };
        for pipe in ["ready", "go"] {
            let path = mounts.workspace_dir.join(pipe);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("it is ours");
        }
        SandboxSpec {
            id: SandboxId::new(1, random()),
            session: SessionId::new(1, random()),
            server: server.clone(),
            image: None,
            uid,
            gid: uid,
            mounts,
            environment: Vec::new(),
            limits: ResourceLimits {
                memory_bytes: 128 << 20,
                tmp_bytes: 1 << 20,
                ..ResourceLimits::default()
            },
        }
    }
}

fn program(root: &Path, script: &str) -> PathBuf {
    let shim = root.join("shim");
    std::fs::write(&shim, format!("#!/bin/sh\n{script}\n")).expect("a temporary directory can be written to");
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    shim
}

/// Waits until the sandbox's script has written to the pipe `/workspace/ready`, and returns what it wrote.
pub(crate) async fn ready(spec: &SandboxSpec) -> String {
    let path = spec.mounts.workspace_dir.join("ready");
    // Opened for both, so that there is no end of file before the script has opened it.
    let mut pipe = pipe::OpenOptions::new().read_write(true).open_receiver(path).expect("the pipe is there");
    let mut text = [0; 256];
    let read = tokio::time::timeout(READY_WITHIN, pipe.read(&mut text));
    let read = read.await.expect("the script says that it is ready").expect("the pipe can be read");
    String::from_utf8_lossy(&text[..read]).trim().to_owned()
}

/// What the sandbox's script has written to a file of its workspace.
pub(crate) fn written(spec: &SandboxSpec, name: &str) -> String {
    let path = spec.mounts.workspace_dir.join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name} of the workspace: {error}"))
}

/// Says that a test is skipped, or fails if no test may be.
#[expect(clippy::print_stderr, reason = "a skipped test must not look like one that passed")]
pub(crate) fn skipped<T>(reason: &str) -> Option<T> {
    assert!(variable("TEST_REQUIRE").as_deref() != Some("1"), "no test may be skipped here: {reason}");
    // A test's thread bears its name.
    eprintln!("SKIPPED: {}: {reason}", std::thread::current().name().unwrap_or("a test"));
    None
}

/// Tells a measurement.
#[expect(clippy::print_stderr, reason = "a figure is for whoever reads the test's output")]
pub(crate) fn tell(text: &str) {
    eprintln!("MEASURED: {text}");
}

#[expect(clippy::disallowed_methods, reason = "the environment says which engine the tests may use")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(crate) fn random() -> [u8; 10] {
    let state = RandomState::new();
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&state.hash_one(0).to_be_bytes());
    bytes[8..].copy_from_slice(&state.hash_one(1).to_be_bytes()[..2]);
    bytes
}
