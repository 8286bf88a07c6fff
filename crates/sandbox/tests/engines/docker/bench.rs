//! A place to test in: an engine, a server id of its own, and directories; all sandboxes of it are removed at the end, also
//! when the test fails.

use caisson_domain::id::ServerId;
use caisson_sandbox::SandboxSpec;
use caisson_sandbox::docker::{DEFAULT_IMAGE, DockerConfig, DockerEngine};

use crate::contract::Ground;
use crate::places::{Places, random, run_tidily, skipped, variable};

/// Everything that a test against a real Docker Engine needs.
pub(crate) struct Bench {
    pub(crate) engine: DockerEngine,
    /// The same Docker Engine, as another server sees it.
    pub(crate) other: DockerEngine,
    pub(crate) server: ServerId,
    host: Option<String>,
    places: Places,
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
        let config = DockerConfig { host: host.clone() };
        let server = ServerId::new(1, random());
        let connect = |server| DockerEngine::connect(&config, server).expect("DOCKER_HOST is a unix socket");
        let engine = connect(server.clone());
        let other = connect(ServerId::new(1, random()));
        Self { engine, other, server, host, places: Places::new() }
    }

    /// Runs a test, then removes every sandbox that it left, then lets it fail if it did.
    pub(crate) async fn run(self, test: impl AsyncFnOnce(&Self)) {
        run_tidily(&[&self.engine, &self.other], test(&self)).await;
    }

    /// The engine with a hosts file of its own, as a server uses it.
    pub(crate) fn with_hosts_file(&self) -> DockerEngine {
        let config = DockerConfig { host: self.host.clone() };
        let engine = DockerEngine::connect(&config, self.server.clone()).expect("it was fine before");
        engine.with_hosts_file_in(self.places.root()).expect("a temporary directory can be written to")
    }

    /// What the contract of all engines needs.
    pub(crate) fn ground<'a>(&'a self, make: &'a dyn Fn(&str) -> SandboxSpec) -> Ground<'a> {
        Ground { engine: &self.engine, other: &self.other, make, groups: true }
    }

    /// A sandbox with directories of its own, whose shim is this shell script.
    pub(crate) fn sandbox(&self, script: &str) -> SandboxSpec {
        let mut spec = self.places.sandbox(&self.server, script);
        spec.image = Some(DEFAULT_IMAGE.to_owned());
        spec
    }

    /// bollard's own view of the engine, for what no [`Engine`] tells.
    pub(crate) fn docker(&self) -> bollard::Docker {
        let host = self.host.as_deref().unwrap_or(caisson_sandbox::docker::DEFAULT_HOST);
        bollard::Docker::connect_with_unix(host, 60, bollard::API_DEFAULT_VERSION)
            .expect("the engine is there")
    }
}
