//! Everything an end-to-end test needs, started together: scripted model, git host, repository, server, key.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use scripted_model::{DelayScale, KeyDigest, Options, Record, ScriptedModel};
use serde_json::{Value, json};

use crate::api::Api;
use crate::engine::Engine;
use crate::git_host::GitHost;
use crate::ground::{Database, Ground};
use crate::parts::Parts;
use crate::postgres::Postgres;
use crate::process::{ServerProcess, ServerSpec, Somebody};
use crate::repository;

/// The model key of a test's server; a canary: it must be found nowhere but at the model.
pub const MODEL_KEY: &str = "sk-ant-canary-7f3a9b2c5d8e1f40";
/// Another key that the model takes: one to rotate to.
pub const NEXT_MODEL_KEY: &str = "sk-ant-canary-next-2b7e61c09d4f83a5";
/// The git token of a test's server; a canary as well.
pub const GIT_TOKEN: &str = "ghp_canary1A2b3C4d5E6f7G8h9I0j";
/// Where the examples are, seen from a crate or tool of the workspace.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// Scenarios that a prompt chooses by `[[scn:NAME]]`.
///
/// `half-done`: the agent commits the fix of the cart, changes two files that it does not commit, and is then inside a
/// tool for as long as nobody stops it. `endless`: a reply that does not come to its end.
const SCENARIOS: &str = r#"{
  "half-done": {"prompts": [[
    {"text": "I fix the bug first.",
     "tool": {"name": "Bash", "input": {"description": "Fix and commit", "command":
       "sed -i 's/quantity > BULK/quantity >= BULK/' shop/pricing.py && git commit -q -a -m 'fix(cart): count the tenth piece' && echo '# later' >> shop/cart.py && echo later > later.txt"}}},
    {"text": "The rest takes its time.",
     "tool": {"name": "Bash", "input": {"description": "Wait for ever", "command": "python3 -c 'import time; time.sleep(500)'"}}},
    {"text": "Nobody waits for this."}
  ]]},
  "endless": {"prompts": [[{"text": "word after word ", "text_repeat": 1000, "chunk_delay_ms": 1000}]]}
}"#;
/// Directories of the server of which a sandbox has something while it lives.
const SANDBOX_DIRECTORIES: [&str; 3] = ["sandboxes", "doors", "trash"];

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
    /// The server's database, if it is not in its state directory.
    pub postgres: Option<Postgres>,
    /// Holds everything on disk; removed last.
    pub directory: tempfile::TempDir,
}

/// What differs between worlds.
#[derive(Debug, Clone)]
pub struct WorldSpec {
    /// The scenario of requests whose prompt names none.
    pub scenario: String,
    /// Further scenarios, as JSON text.
    pub scenarios: Vec<String>,
    /// Keys that the model takes beside those of every world.
    pub model_keys: Vec<String>,
    /// Factor on the scenario's delays.
    pub delay_scale: f64,
    /// Further `CAISSON_*` variables, without the prefix.
    pub variables: Vec<(String, String)>,
    /// What makes the sandboxes.
    pub engine: Engine,
    /// What the server keeps everything in.
    pub database: Database,
    /// Who runs the server, if not whoever runs the test; must be able to read the parts.
    pub user: Option<Somebody>,
    /// What the server reads for `/etc/resolv.conf`, if not that; only for root.
    pub resolver: Option<PathBuf>,
}

impl WorldSpec {
    /// A world without delays in which the bug of the cart is fixed.
    #[must_use]
    pub fn on(ground: impl Into<Ground>) -> Self {
        let Ground { engine, database } = ground.into();
        Self {
            scenario: "cart".to_owned(),
            scenarios: Vec::new(),
            model_keys: Vec::new(),
            delay_scale: 0.0,
            variables: Vec::new(),
            engine,
            database,
            user: None,
            resolver: None,
        }
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
            inline_scenarios: [vec![SCENARIOS.to_owned()], wanted.scenarios].concat(),
            default_scenario: wanted.scenario,
            required_keys: known_keys(&wanted.model_keys),
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
        let postgres = wanted.database.make(&mut spec).await?;
        for (name, value) in &wanted.variables {
            spec.set(name, value);
        }
        if let Some(user) = wanted.user {
            std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
            std::fs::create_dir(&spec.state_dir)?;
            std::os::unix::fs::chown(&spec.state_dir, Some(user.uid), Some(user.uid))?;
            spec.user = Some(user);
        }
        if let Some(resolver) = wanted.resolver {
            std::fs::create_dir_all(&spec.state_dir)?;
            crate::volumes::share(&spec.state_dir)?;
            spec.resolver = Some(resolver);
        }
        // Not on a thread of the runtime: the relay to the database may be next on that one.
        let maker = spec.clone();
        let key = tokio::task::spawn_blocking(move || maker.create_key()).await??;
        let server = spec.start().await?;
        let api = Api::new(&server.base, &key)?;
        let engine = wanted.engine;
        Ok(Self { model, host, bare, spec, server, api, key, engine, postgres, directory })
    }

    /// The API for a key with one scope, made for it.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn api_with(&self, scope: &str) -> anyhow::Result<Api> {
        Api::new(&self.server.base, &self.spec.create_key_with(scope)?)
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

    /// Submits a run and waits until its agent has half of the work committed, more of it in files, and is inside a tool
    /// that does not end, with every reply counted; returns its id and its sandbox. No other run may be at work.
    ///
    /// # Errors
    /// It is not accepted, or does not come so far in `at_most`.
    pub async fn half_done(&self, body: &Value, at_most: Duration) -> anyhow::Result<(String, String)> {
        let mut body = body.clone();
        body["prompt"] = json!("[[scn:half-done]] The test suite fails. Fix the bug.");
        let before = self.model_calls().len();
        let id = self.api.submit(&body).await?;
        let sandbox = self.inside_a_tool(&id, at_most).await?;
        self.counted(&id, before, at_most).await?;
        Ok((id, sandbox))
    }

    /// Waits until every reply so far is counted, which the last one is a moment after the agent has read it: killed in that
    /// moment, the server takes its call for one that was cut. All calls but `others` are the run's.
    ///
    /// # Errors
    /// They are not counted in `at_most`.
    pub async fn counted(&self, id: &str, others: usize, at_most: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let events = self.api.events(id).await?;
            let calls = events.iter().filter(|event| event["kind"] == "model.call").count();
            if others + calls == self.model_calls().len() {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < at_most, "{calls} calls are counted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until so many prompts and messages have been in the queue of a run's agent: its own prompts count as well.
    ///
    /// # Errors
    /// They do not come in `at_most`.
    pub async fn queued(&self, id: &str, count: usize, at_most: Duration) -> anyhow::Result<()> {
        let queued = |event: &&Value| {
            event["data"]["type"] == "command_lifecycle" && event["data"]["state"] == "queued"
        };
        let start = Instant::now();
        loop {
            let events = self.api.events(id).await?;
            if events.iter().filter(queued).count() >= count {
                return Ok(());
            }
            anyhow::ensure!(
                start.elapsed() < at_most,
                "not so many came: {events:#?}\n{}",
                self.server.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets a tool of a run's agent go on, or whatever else waits for that file in the home ([`until`]).
    ///
    /// # Errors
    /// The run's session has no home here.
    pub async fn let_go(&self, id: &str, file: &str) -> anyhow::Result<()> {
        let run = self.api.get(&format!("/v1/runs/{id}")).await?.body;
        let session = run["session_id"].as_str().context("the run has no session")?;
        let place = self.state_dir().join("sessions").join(session).join("home").join(file);
        std::fs::write(&place, "").with_context(|| place.display().to_string())
    }

    /// Waits until a run's agent is inside a tool that sleeps; returns the sandbox.
    ///
    /// # Errors
    /// It does not come so far in `at_most`.
    pub async fn inside_a_tool(&self, id: &str, at_most: Duration) -> anyhow::Result<String> {
        let called =
            |event: &Value| event["kind"] == "agent.line" && event["data"].to_string().contains("time.sleep");
        self.api.wait_event(id, at_most, called).await?;
        let sandbox = self.sandboxes()?.pop().context("the run has no sandbox")?;
        // The line tells that the tool begins: its process comes a moment later.
        let start = Instant::now();
        while !self.processes(&sandbox)?.into_iter().any(sleeps) {
            anyhow::ensure!(start.elapsed() < at_most, "the tool's process did not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(sandbox)
    }

    /// A `caisson` command as whoever has the world's key would give it.
    #[must_use]
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = self.spec.command(arguments);
        command.env("CAISSON_URL", &self.server.base).env("CAISSON_API_KEY", &self.key);
        command
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

    /// Waits until neither the engine nor the state directory has anything of a sandbox any more.
    ///
    /// # Errors
    /// Something is still there after a minute.
    pub async fn wait_tidy(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let mut left = self.sandboxes()?;
            for place in SANDBOX_DIRECTORIES {
                for entry in std::fs::read_dir(self.state_dir().join(place)).into_iter().flatten() {
                    left.push(format!("{place}/{}", entry?.file_name().display()));
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed().as_secs() < 60, "still there: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How a server like the world's is started on the database at `url`, with a state directory of its own of that name. Whoever
    /// starts one takes its sandboxes away.
    ///
    /// # Errors
    /// No port is free.
    pub fn beside(&self, name: &str, url: &str) -> anyhow::Result<ServerSpec> {
        let mut spec = ServerSpec::new(&self.spec.parts, &self.directory.path().join(name), "")?;
        for (variable, value) in &self.spec.variables {
            spec.set(variable.trim_start_matches("CAISSON_"), value);
        }
        spec.set("DATABASE__URL", url);
        spec.set("MASTER_KEY_FILE", &self.state_dir().join("master.key").display().to_string());
        Ok(spec)
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

/// A command of an agent that ends once [`World::let_go`] was told the same file.
#[must_use]
pub fn until(file: &str) -> String {
    format!(
        "python3 -c 'import os, time\nwhile not os.path.exists(os.environ[\"HOME\"] + \"/{file}\"): time.sleep(0.05)'"
    )
}

fn known_keys(more: &[String]) -> Vec<KeyDigest> {
    let all = [MODEL_KEY, NEXT_MODEL_KEY].into_iter().chain(more.iter().map(String::as_str));
    all.map(KeyDigest::of).collect()
}

/// Whether a process is a tool that sleeps, and not a shell that starts it.
fn sleeps(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.starts_with(b"python3\0") && line.windows(10).any(|part| part == b"time.sleep")
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
