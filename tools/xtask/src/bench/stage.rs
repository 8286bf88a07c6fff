//! Everything that the bench starts, and the one place where it is taken away again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use caisson_domain::workflow::Workflow;
use scripted_model::{KeyDigest, Options, Record, ScriptedModel};
use tempfile::TempDir;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::repository;

use super::script::{Script, ScriptSpec};
use super::service::{Service, ServiceSpec, make_repository};
use super::timeline::{Moment, Timeline};
use super::{docker, scenarios, script};

/// The task, as the demo gives it.
pub(crate) const TASK: &str =
    "The test suite of this project fails. Find the bug, fix it, and make the tests pass.";
/// The workflow that both sides follow.
const WORKFLOW: &str = include_str!("../../../../workflows/bug-fixer.md");
/// The demo's scenario.
pub(crate) const EXAMPLES: &str = include_str!("../../../../examples/cart.scenario.json");
/// The model's key, which the service's gateway shows it. It opens nothing else.
const SERVICE_KEY: &str = "bench-key-of-the-service";

/// What a stage is opened for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What names of what it makes begin with.
    pub(crate) prefix: &'static str,
    /// The model's scenarios.
    pub(crate) scenarios: String,
    /// Time limit of one job of the script.
    pub(crate) job_limit: Duration,
    /// Repositories, on either side, that one job alone works on.
    pub(crate) apart: u32,
}

impl Plan {
    /// That of the bench.
    ///
    /// # Errors
    /// The examples' scenarios do not fit.
    pub(crate) fn bench() -> anyhow::Result<Self> {
        let scenarios = scenarios::all(EXAMPLES)?;
        Ok(Self { prefix: "bench-", scenarios, job_limit: Duration::from_mins(1), apart: 0 })
    }
}

/// What is started before anything is measured.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The outside parts.
    pub(crate) parts: Parts,
    /// The model, for both sides.
    pub(crate) model: ScriptedModel,
    /// The script's side.
    pub(crate) script: Arc<Script>,
    /// How the bench's servers are started.
    pub(crate) service: ServiceSpec,
    /// The repository of the service's side.
    pub(crate) repository: PathBuf,
    /// Those that one job alone works on.
    pub(crate) apart: Vec<PathBuf>,
    /// Version of the agent.
    pub(crate) agent_version: String,
    id: String,
    directory: TempDir,
}

impl Stage {
    /// Makes directories below `local`, the repositories, and the model, which has the `scenarios` and answers with
    /// [`scenarios::JOB`] where nothing else is asked for.
    ///
    /// # Errors
    /// A part does not start; nothing is left behind then.
    pub(crate) async fn open(
        parts: &Parts,
        local: &Path,
        project: &Path,
        shim: PathBuf,
        plan: Plan,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(local)?;
        let directory = tempfile::Builder::new().prefix(plan.prefix).tempdir_in(local)?;
        let root = directory.path().canonicalize()?;
        let id = format!("caisson-{}{:08x}", plan.prefix, uuid::Uuid::new_v4().as_fields().0);
        let agent_version = installed_version(&parts.agents_dir)?;
        let spec = ScriptSpec {
            id: id.clone(),
            image: sandbox_image(parts, &root)?,
            agent_version: agent_version.clone(),
            workflow: Workflow::parse(WORKFLOW)?,
            token: script::TOKEN.to_owned(),
            prompt: TASK.to_owned(),
            limit: plan.job_limit,
            apart: plan.apart,
        };
        let script = Arc::new(Script::make(parts, &root.join("script"), project, spec)?);
        let model = ScriptedModel::start(Options {
            unix: Some(script.socket()),
            inline_scenarios: vec![plan.scenarios],
            default_scenario: scenarios::JOB.to_owned(),
            required_keys: vec![KeyDigest::of(SERVICE_KEY), KeyDigest::of(script::TOKEN)],
            ..Options::default()
        })
        .await?;
        let repositories = root.join("repositories");
        let repository = make_repository(&repositories, project)?;
        let apart = self::repositories(&repositories, project, plan.apart)?;
        let service = ServiceSpec {
            engine: Engine::Docker,
            state_dir: root.join("state"),
            shim,
            model_url: model.base_url().to_owned(),
            model_key: SERVICE_KEY.to_owned(),
            repositories,
            slots: 1,
            settings: Vec::new(),
        };
        Ok(Self {
            parts: parts.clone(),
            model,
            script,
            service,
            repository,
            apart,
            agent_version,
            id,
            directory,
        })
    }

    /// Starts the server that most is measured on.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn serve(&self) -> anyhow::Result<Service> {
        Service::start(&self.parts, &self.service).await
    }

    /// The number of the latest request that the model has had.
    #[must_use]
    pub(crate) fn calls(&self) -> u64 {
        self.model.records().last().map_or(0, |record| record.seq)
    }

    /// Adds the first model request after number `before` to a job's moments.
    pub(crate) fn note_first_request(&self, timeline: &mut Timeline, before: u64) {
        let records = self.model.records();
        let first = records.iter().find(|record| record.seq > before && is_message(record));
        if let Some(at_ms) = first.and_then(|record| i64::try_from(record.at_ms).ok()) {
            timeline.note(Moment::FirstRequest, at_ms.saturating_mul(1000));
        }
    }

    /// A directory of the bench's own.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Removes containers, sockets and directories, whatever came before.
    ///
    /// # Errors
    /// The engine or the disk refuses; everything else is removed all the same.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        let mut gone = docker::remove_labelled(&self.parts, docker::LABEL, &self.id).await;
        // A measurement that broke off has left the sandboxes of its servers, which end with it.
        for state_dir in state_dirs(self.root()) {
            let engine = if state_dir.join("local").is_dir() { Engine::Local } else { Engine::Docker };
            gone = gone.and(engine.remove_all(&self.parts, &state_dir));
        }
        self.model.shutdown().await;
        let path = self.directory.path().to_owned();
        gone.and(self.directory.close().with_context(|| format!("\"{}\" cannot be removed", path.display())))
    }
}

/// Bare repositories that are alike. Who works on one alone meets nobody: agents that do the same at the same second make the
/// same commit, and git 2.47 refuses one of two packs that are alike and come at once.
///
/// # Errors
/// The disk or git refuses.
pub(crate) fn repositories(root: &Path, project: &Path, count: u32) -> anyhow::Result<Vec<PathBuf>> {
    (1..=count).map(|number| repository::bare_from(root, &format!("cart-{number}.git"), project)).collect()
}

/// The directories of servers that were started below `root`.
fn state_dirs(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("server_id").is_file()).collect()
}

/// Whether a request of the model is a call, not a sign of life.
#[must_use]
pub(crate) fn is_message(record: &Record) -> bool {
    record.method == "POST" && record.path.contains("/v1/messages")
}

/// The one installed version of the agent.
///
/// # Errors
/// There is none, or several.
pub(crate) fn installed_version(agents_dir: &Path) -> anyhow::Result<String> {
    let directory = agents_dir.join("claude-code");
    let names = std::fs::read_dir(&directory)
        .with_context(|| format!("no agent is in \"{}\"", directory.display()))?;
    let mut found: Vec<_> = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    found.sort();
    found.retain(|version| directory.join(version).join("manifest.json").is_file());
    anyhow::ensure!(found.len() == 1, "expected one installed agent, found {found:?}; run scripts/setup");
    Ok(found.remove(0))
}

/// The image that the service takes for its sandboxes.
fn sandbox_image(parts: &Parts, root: &Path) -> anyhow::Result<String> {
    let spec = testkit::process::ServerSpec::new(parts, root, "http://127.0.0.1:9")?;
    let output = spec.command(&["image", "tag"]).output().context("the server's binary cannot be started")?;
    anyhow::ensure!(output.status.success(), "the server's binary names no image");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
