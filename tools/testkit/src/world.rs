//! Everything an end-to-end test needs, started together: scripted model, git host, repository, server, key.

use std::path::{Path, PathBuf};

use scripted_model::{DelayScale, KeyDigest, Options, Record, ScriptedModel};
use serde_json::{Value, json};

use crate::api::Api;
use crate::engine::Engine;
use crate::git_host::GitHost;
use crate::parts::Parts;
use crate::process::{ServerProcess, ServerSpec};
use crate::repository;

/// The model key of a test's server; a canary: it must be found nowhere but at the model.
pub const MODEL_KEY: &str = "sk-ant-canary-7f3a9b2c5d8e1f40";
/// Another key that the model takes: one to rotate to.
pub const NEXT_MODEL_KEY: &str = "sk-ant-canary-next-2b7e61c09d4f83a5";
/// The git token of a test's server; a canary as well.
pub const GIT_TOKEN: &str = "ghp_canary1A2b3C4d5E6f7G8h9I0j";
/// Where the examples are, seen from a crate or tool of the workspace.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// A started world. Dropping it kills the server, takes its sandboxes away and removes the directory.
#[derive(Debug)]
pub struct World {
    /// The scripted model.
    pub model: ScriptedModel,
    /// The git host; it wants [`GIT_TOKEN`].
    pub host: GitHost,
    /// The bare repository behind the host.
    pub bare: PathBuf,
    /// How the server is started.
    pub spec: ServerSpec,
    /// The server.
    pub server: ServerProcess,
    /// The API with a key of the server.
    pub api: Api,
    /// That key.
    pub key: String,
    /// What makes the sandboxes.
    pub engine: Engine,
    /// Holds everything on disk; removed last.
    pub directory: tempfile::TempDir,
}

/// What differs between worlds.
#[derive(Debug, Clone)]
pub struct WorldSpec {
    /// The scenario of requests whose prompt names none.
    pub scenario: String,
    /// Factor on the scenario's delays.
    pub delay_scale: f64,
    /// Further `CAISSON_*` variables, without the prefix.
    pub variables: Vec<(String, String)>,
    /// What makes the sandboxes.
    pub engine: Engine,
}

impl WorldSpec {
    /// A world without delays in which the bug of the cart is fixed.
    #[must_use]
    pub fn on(engine: Engine) -> Self {
        Self { scenario: "cart".to_owned(), delay_scale: 0.0, variables: Vec::new(), engine }
    }
}

impl World {
    /// Starts everything and waits until the server can place runs.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn start(parts: &Parts, wanted: WorldSpec) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let model = ScriptedModel::start(Options {
            scenarios: vec![Path::new(EXAMPLES).to_owned()],
            default_scenario: wanted.scenario,
            required_keys: vec![KeyDigest::of(MODEL_KEY), KeyDigest::of(NEXT_MODEL_KEY)],
            delay_scale: DelayScale::new(wanted.delay_scale)?,
            ..Options::default()
        })
        .await?;
        let repositories = directory.path().join("repositories");
        std::fs::create_dir(&repositories)?;
        let bare = repository::bare_from(&repositories, "cart.git", &Path::new(EXAMPLES).join("cart"))?;
        let host = GitHost::start(&repositories, Some(GIT_TOKEN)).await?;

        let mut spec = ServerSpec::new(parts, &directory.path().join("state"), model.base_url())?;
        spec.set("MODEL__API_KEY", MODEL_KEY);
        spec.set("REPOSITORIES", &format!("{}*", host.url("")));
        spec.set("CONFIG", &config_with_token(directory.path(), &host)?);
        spec.set("ENGINE", wanted.engine.name());
        for (name, value) in &wanted.variables {
            spec.set(name, value);
        }
        let key = spec.create_key()?;
        let server = spec.start().await?;
        let api = Api::new(&server.base, &key)?;
        Ok(Self { model, host, bare, spec, server, api, key, engine: wanted.engine, directory })
    }

    /// URL of the repository.
    #[must_use]
    pub fn repository_url(&self) -> String {
        self.host.url("cart.git")
    }

    /// The body of a run on the repository.
    #[must_use]
    pub fn run_body(&self) -> Value {
        json!({
            "workflow": "bug-fixer",
            "prompt": "The test suite fails. Fix the bug.",
            "repository": self.repository_url(),
        })
    }

    /// The model calls that the scripted model has seen.
    #[must_use]
    pub fn model_calls(&self) -> Vec<Record> {
        self.model.records().into_iter().filter(|record| record.path.contains("/v1/messages")).collect()
    }

    /// Names of the server's sandboxes, living or not.
    ///
    /// # Errors
    /// The engine cannot be asked.
    pub fn sandboxes(&self) -> anyhow::Result<Vec<String>> {
        self.engine.sandboxes(&self.spec.parts, self.state_dir())
    }

    /// Host process ids of everything in a sandbox, its first process first.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(&self, sandbox: &str) -> anyhow::Result<Vec<u32>> {
        self.engine.processes(&self.spec.parts, self.state_dir(), sandbox)
    }

    /// Waits until the engine has no sandbox of the server any more.
    ///
    /// # Errors
    /// One is still there after 15 s.
    pub async fn wait_tidy(&self) -> anyhow::Result<()> {
        let start = std::time::Instant::now();
        loop {
            let left = self.sandboxes()?;
            if left.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed().as_secs() < 15, "still there: {left:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.spec.state_dir
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test may leave in the middle of a run, whose sandbox outlives the server by design.
        self.server.kill().ok();
        if let Err(error) = self.engine.remove_all(&self.spec.parts, self.state_dir()) {
            #[expect(clippy::print_stderr, reason = "what is left on the machine is told")]
            {
                eprintln!("sandboxes of a test were left behind: {error:#}");
            }
        }
    }
}

/// Writes a configuration file with the git credential and returns its path.
fn config_with_token(directory: &Path, host: &GitHost) -> anyhow::Result<String> {
    let token = directory.join("git-token");
    std::fs::write(&token, GIT_TOKEN)?;
    let file = directory.join("caisson.toml");
    let text = format!(
        "[[git.credentials]]\nurl_prefix = \"{}\"\ntoken_file = \"{}\"\n",
        host.url(""),
        token.display()
    );
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}
