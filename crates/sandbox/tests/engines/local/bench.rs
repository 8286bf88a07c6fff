//! A place to test the local engine in: its records, a server id of its own, and directories.

use std::path::PathBuf;

use caisson_domain::id::ServerId;
use caisson_sandbox::local::{ControlGroups, LimitsBy, LocalConfig, LocalEngine};
use caisson_sandbox::{EngineError, SandboxSpec};

use crate::contract::Ground;
use crate::places::{Places, random, run_tidily, skipped, variable};

/// The variable that names a copy of the supervisor's program.
pub(crate) const COPY: &str = "TEST_SUPERVISE";

/// Everything that a test of the local engine needs.
pub(crate) struct Bench {
    pub(crate) engine: LocalEngine,
    /// The same records, as another server sees them.
    pub(crate) other: LocalEngine,
    pub(crate) server: ServerId,
    places: Places,
}

/// Runs a test on a bench, or says why it is skipped.
pub(crate) async fn on_bench(test: impl AsyncFnOnce(&Bench)) {
    let bench = Bench::new();
    match bench.engine.check().await {
        Ok(_) => run_tidily(&[&bench.engine, &bench.other], test(&bench)).await,
        Err(error @ EngineError::Unfit { .. }) => skipped(&error.to_string()).unwrap_or_default(),
        Err(error) => panic!("{error}"),
    }
}

impl Bench {
    fn new() -> Self {
        let places = Places::new();
        let server = ServerId::new(1, random());
        let open = |server: &ServerId| open(&places, server, |_| {});
        Self { engine: open(&server), other: open(&ServerId::new(1, random())), server, places }
    }

    /// The engine as a server that starts again on the same state sees it.
    pub(crate) fn started_again(&self) -> LocalEngine {
        self.engine_with(|_| {})
    }

    /// The engine on the same records with another configuration.
    pub(crate) fn engine_with(&self, change: impl FnOnce(&mut LocalConfig)) -> LocalEngine {
        open(&self.places, &self.server, change)
    }

    /// The same, if it can be opened.
    pub(crate) fn try_engine_with(
        &self,
        change: impl FnOnce(&mut LocalConfig),
    ) -> Result<LocalEngine, EngineError> {
        try_open(&self.places, &self.server, change)
    }

    /// Where the record of a sandbox is.
    pub(crate) fn record(&self, spec: &SandboxSpec) -> PathBuf {
        records(&self.places).join(spec.id.as_str())
    }

    /// What the contract of all engines needs.
    pub(crate) async fn ground<'a>(&'a self, make: &'a dyn Fn(&str) -> SandboxSpec) -> Ground<'a> {
        let limits = self.engine.check().await.expect("it was fine before").limits;
        let groups = matches!(limits, LimitsBy::ControlGroups { .. });
        Ground { engine: &self.engine, other: &self.other, make, groups }
    }

    /// A sandbox with directories of its own, whose shim is this shell script.
    pub(crate) fn sandbox(&self, script: &str) -> SandboxSpec {
        self.places.sandbox(&self.server, script)
    }

    /// A number from one of a sandbox's records.
    pub(crate) fn noted(&self, spec: &SandboxSpec, file: &str, pointer: &str) -> i32 {
        let text = std::fs::read(self.record(spec).join(file)).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        value
            .pointer(pointer)
            .and_then(serde_json::Value::as_i64)
            .and_then(|pid| pid.try_into().ok())
            .unwrap()
    }

    /// The first process of a sandbox, as the host sees it.
    pub(crate) fn first(&self, spec: &SandboxSpec) -> i32 {
        self.noted(spec, "first.json", "/process/pid")
    }

    /// The supervisor of a sandbox.
    pub(crate) fn supervisor(&self, spec: &SandboxSpec) -> i32 {
        self.noted(spec, "supervisor.json", "/pid")
    }
}

/// The supervisor as a program: beside this one where this one is a copy, for a user who may not read the original.
pub(crate) fn supervise() -> PathBuf {
    variable(COPY).map_or_else(|| env!("CARGO_BIN_EXE_caisson-supervise").into(), PathBuf::from)
}

fn records(places: &Places) -> PathBuf {
    places.root().join("local")
}

fn open(places: &Places, server: &ServerId, change: impl FnOnce(&mut LocalConfig)) -> LocalEngine {
    try_open(places, server, change).expect("a temporary directory can be written to")
}

fn try_open(
    places: &Places,
    server: &ServerId,
    change: impl FnOnce(&mut LocalConfig),
) -> Result<LocalEngine, EngineError> {
    let mut config = LocalConfig {
        records_dir: records(places),
        bubblewrap: None,
        read_only: Vec::new(),
        toolchains: Vec::new(),
        hidden: Vec::new(),
        control_groups: ControlGroups::Use,
        supervisor: (supervise(), Vec::new()),
    };
    change(&mut config);
    LocalEngine::open(config, server.clone())
}
