//! One half of each pair: the job through the service, as a client of its API sees it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::api::Api;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::process::{ServerProcess, ServerSpec};
use testkit::repository;

use super::clock::wall_us;
use super::proc;
use super::reader::{Arrival, follow, stamped_line_latencies};
use super::timeline::{Moment, Timeline};

/// Time limit for a server's sandboxes to go.
const TIDY: Duration = Duration::from_secs(15);
/// Time between looks at them.
const LOOK: Duration = Duration::from_millis(50);

/// A running server with a key, as every measurement needs it.
#[derive(Debug)]
pub(crate) struct Service {
    /// How it was started.
    pub(crate) spec: ServerSpec,
    /// The process.
    pub(crate) process: ServerProcess,
    /// Its API.
    pub(crate) api: Api,
    /// The key that the API is used with.
    pub(crate) key: String,
    engine: Engine,
    state_dir: PathBuf,
}

/// What differs between the bench's servers.
#[derive(Debug, Clone)]
pub(crate) struct ServiceSpec {
    /// The engine.
    pub(crate) engine: Engine,
    /// The state directory.
    pub(crate) state_dir: PathBuf,
    /// The shim.
    pub(crate) shim: PathBuf,
    /// The model's URL.
    pub(crate) model_url: String,
    /// The key that the model wants.
    pub(crate) model_key: String,
    /// Directory below which runs may name repositories.
    pub(crate) repositories: PathBuf,
    /// Runs at the same time.
    pub(crate) slots: u32,
    /// Further `CAISSON_*` variables, without the prefix.
    pub(crate) settings: Vec<(&'static str, String)>,
}

/// One job of the service.
#[derive(Debug, Clone)]
pub(crate) struct ServiceJob {
    /// When each step was done; the first model request is added by whoever has the model's record.
    pub(crate) timeline: Timeline,
    /// How long the engine took to start the sandbox, in milliseconds, as the server says.
    pub(crate) start_ms: f64,
    /// From the agent's stamp on a line to the line's arrival, in milliseconds.
    pub(crate) lines_ms: Vec<f64>,
    /// The branch that it pushed; none without a repository.
    pub(crate) branch: Option<String>,
    /// Everything that its stream said.
    pub(crate) arrivals: Vec<Arrival>,
}

impl Service {
    /// Starts a server and waits until it can place runs.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn start(parts: &Parts, wanted: &ServiceSpec) -> anyhow::Result<Self> {
        let mut spec = ServerSpec::new(parts, &wanted.state_dir, &wanted.model_url)?;
        spec.set("ENGINE", wanted.engine.name());
        spec.set("MODEL__API_KEY", &wanted.model_key);
        spec.set("SHIM", &wanted.shim.display().to_string());
        spec.set("ALLOW_REPO", &wanted.repositories.display().to_string());
        spec.set("SLOTS", &wanted.slots.to_string());
        for (name, value) in &wanted.settings {
            spec.set(name, value);
        }
        let key = spec.create_key()?;
        let process = spec.start().await?;
        let api = Api::new(&process.base, &key)?;
        Ok(Self { spec, process, api, key, engine: wanted.engine, state_dir: wanted.state_dir.clone() })
    }

    /// Does a run, from the request to the end of its stream, and checks that it succeeded.
    ///
    /// # Errors
    /// The server refuses, or the run does not end as it must.
    pub(crate) async fn job(&self, body: &Value, look: impl FnMut(&Arrival)) -> anyhow::Result<ServiceJob> {
        let asked_us = wall_us();
        let run = self.api.submit(body).await?;
        let arrivals = follow(&self.api, &run, look).await?;
        let mut timeline = Timeline::default();
        timeline.note(Moment::Asked, asked_us);
        let mut start_ms = None;
        for arrival in arrivals.iter().filter(|arrival| arrival.kind != "delta") {
            let event = arrival.json()?;
            timeline.note_event(&event);
            start_ms = start_ms.or(event["data"]["start_ms"].as_f64());
            if arrival.kind == "end" {
                timeline.note(Moment::Known, arrival.at_us);
            }
        }
        let ended = self.api.get(&format!("/v1/runs/{run}")).await?.body;
        ensure!(ended["status"] == "succeeded", "run {run} did not succeed: {ended:#}");
        let lines_ms = stamped_line_latencies(&arrivals)?;
        let start_ms = start_ms.context("the server did not say how long the sandbox took to start")?;
        let branch = ended["branch"].as_str().map(str::to_owned);
        Ok(ServiceJob { timeline, start_ms, lines_ms, branch, arrivals })
    }

    /// CPU time of the server process so far.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn cpu(&self) -> anyhow::Result<proc::Cpu> {
        proc::cpu(self.process.id())
    }

    /// Memory of the server process now.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn memory(&self) -> anyhow::Result<proc::Memory> {
        proc::memory(self.process.id())
    }

    /// Waits until no sandbox of it is left, so that taking one away does not disturb the next measurement.
    ///
    /// # Errors
    /// One stays.
    pub(crate) async fn wait_tidy(&self) -> anyhow::Result<()> {
        self.wait_tidy_within(TIDY).await
    }

    /// The same with another time limit.
    ///
    /// # Errors
    /// As [`Service::wait_tidy`].
    pub(crate) async fn wait_tidy_within(&self, limit: Duration) -> anyhow::Result<()> {
        let gone = async {
            while !self.engine.sandboxes(&self.spec.parts, &self.state_dir)?.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        tokio::time::timeout(limit, gone).await.context("the server did not take its sandboxes away")?
    }

    /// Ends the server, and removes what a broken measurement has left of its sandboxes.
    ///
    /// # Errors
    /// It does not end, or the engine refuses.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        let ended = self.process.terminate().await;
        self.engine.remove_all(&self.spec.parts, &self.state_dir)?;
        ended.map(drop)
    }
}

/// The request of the demo's job on a local repository.
#[must_use]
pub(crate) fn job_body(prompt: &str, repository: &Path) -> Value {
    json!({ "workflow": "bug-fixer", "prompt": prompt, "repository": repository })
}

/// The request of a run in an empty workspace, answered by a scenario of the model.
#[must_use]
pub(crate) fn scenario_body(scenario: &str, prompt: &str) -> Value {
    json!({
        "workflow": "bug-fixer", "prompt": format!("[[scn:{scenario}]] {prompt}"), "repository": null, "max_turns": 1000,
    })
}

/// Makes the repository that the service works on.
///
/// # Errors
/// The disk or git refuses.
pub(crate) fn make_repository(root: &Path, project: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(root)?;
    repository::bare_from(root, "cart.git", project)
}
