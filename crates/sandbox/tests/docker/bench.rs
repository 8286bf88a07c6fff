//! A place to test in: an engine, a server id of its own, and directories; all sandboxes of it are removed at the end, also
//! when the test fails.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::id::{SandboxId, ServerId, SessionId};
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerConfig, DockerEngine};
use caisson_sandbox::{Engine, Mounts, ResourceLimits, SandboxSpec};
use futures_util::FutureExt;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::contract::Ground;

/// A user id that no image knows by name.
const UID: u32 = 12_345;
/// How long a sandbox may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Everything that a test against a real Docker Engine needs.
pub(crate) struct Bench {
    pub(crate) engine: DockerEngine,
    /// The same Docker Engine, as another server sees it.
    pub(crate) other: DockerEngine,
    pub(crate) server: ServerId,
    host: Option<String>,
    directory: tempfile::TempDir,
    made: Cell<u8>,
}

/// Runs a test on a bench, or says why it is skipped.
pub(crate) async fn on_bench(test: impl AsyncFnOnce(&Bench)) {
    let Some(bench) = Bench::with_default_image().await else { return };
    bench.run(test).await;
}

impl Bench {
    /// A bench on the engine that the environment names.
    async fn with_default_image() -> Option<Self> {
        let bench = Self::at(variable("DOCKER_HOST"));
        match bench.engine.image_present(DEFAULT_IMAGE).await {
            Ok(true) => Some(bench),
            Ok(false) => skipped(&format!("no image {DEFAULT_IMAGE}; build it with `caisson image build`")),
            Err(error) => {
                skipped(&format!("no Docker Engine ({error}); start one and set DOCKER_HOST=unix:///…"))
            }
        }
    }

    /// A bench on the engine at `host`, which is asked nothing yet.
    pub(crate) fn at(host: Option<String>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let config = DockerConfig { host: host.clone() };
        let server = ServerId::new(1, random());
        let connect = |server| DockerEngine::connect(&config, server).expect("DOCKER_HOST is a unix socket");
        let engine = connect(server.clone());
        let other = connect(ServerId::new(1, random()));
        Self { engine, other, server, host, directory, made: Cell::new(0) }
    }

    /// Runs a test, then removes every sandbox that it left, then lets it fail if it did.
    pub(crate) async fn run(self, test: impl AsyncFnOnce(&Self)) {
        let result = AssertUnwindSafe(test(&self)).catch_unwind().await;
        for engine in [&self.engine, &self.other] {
            for left in engine.list_owned().await.expect("what is left can be listed") {
                engine.destroy(&left.id).await.expect("what is left can be removed");
            }
            assert_eq!(engine.list_owned().await.expect("the engine answers"), []);
        }
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// The engine with a hosts file of its own, as a server uses it.
    pub(crate) fn with_hosts_file(&self) -> DockerEngine {
        let config = DockerConfig { host: self.host.clone() };
        let engine = DockerEngine::connect(&config, self.server.clone()).expect("it was fine before");
        engine.with_hosts_file_in(self.directory.path()).expect("a temporary directory can be written to")
    }

    /// What the contract of all engines needs.
    pub(crate) fn ground<'a>(&'a self, make: &'a dyn Fn(&str) -> SandboxSpec) -> Ground<'a> {
        Ground { engine: &self.engine, other: &self.other, make }
    }

    /// A sandbox with directories of its own, whose shim is this shell script.
    pub(crate) fn sandbox(&self, script: &str) -> SandboxSpec {
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
            server: self.server.clone(),
            image: DEFAULT_IMAGE.to_owned(),
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

    /// bollard's own view of the engine, for what no [`Engine`] tells.
    pub(crate) fn docker(&self) -> bollard::Docker {
        let host = self.host.as_deref().unwrap_or(caisson_sandbox::docker::DEFAULT_HOST);
        bollard::Docker::connect_with_unix(host, 60, bollard::API_DEFAULT_VERSION)
            .expect("the engine is there")
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
    eprintln!("SKIPPED: {reason}");
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
