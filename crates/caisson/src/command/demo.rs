//! `caisson demo`: the main job once, end to end, on real parts, and a check of the result that trusts none of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use caisson_domain::git::BranchName;
use caisson_domain::id::ProjectId;
use caisson_domain::principal::Scope;
use scripted_model::{DelayScale, KeyDigest, Options, ScriptedModel};
use secrecy::SecretString;
use serde_json::json;
use url::Url;

use super::demo_project::{DemoRepository, SCENARIO};
use super::{DETACHED, DONE, complain, print, print_json, settings_with_engine, submit};
use crate::cli::{Demo, DemoModel};
use crate::client::Client;
use crate::serve::Server;
use crate::settings::{Environment, Settings, Tls};

/// The task given to the agent.
const TASK: &str = "The test suite of this project fails. Find the bug, fix it, and make the tests pass.";
/// How long the server may take until it can place runs.
const READY: Duration = Duration::from_secs(15);
/// How long the sandbox may take to be gone after the run.
const TIDY: Duration = Duration::from_secs(10);
/// The same after a run that was cancelled: its agent has a grace before it is killed.
const CANCEL: Duration = Duration::from_secs(45);
/// The scripted model's own key: it opens nothing else.
const SCRIPTED_KEY: &str = "demo-key-of-the-scripted-model";
/// Variable with the real key; read for `--model real` alone.
const REAL_KEY: &str = "ANTHROPIC_API_KEY";

/// Does the main job and checks it.
///
/// # Errors
/// A part is missing, or the job did not come out as it must.
pub(crate) async fn run(flags: Demo, environment: &Environment) -> anyhow::Result<u8> {
    let mut settings = settings_with_engine(&flags.server, &flags.engine, environment)?;
    // Installed agents are shared with the real server; everything else of the demo is its own.
    settings.agents_dir = Some(settings.agents_dir());
    let home = settings.state_dir.join("demo");
    let repositories = home.join("repositories");
    fs::create_dir_all(&repositories)
        .with_context(|| format!("\"{}\" cannot be made", repositories.display()))?;
    let started = Instant::now();
    let repository = DemoRepository::create(&repositories)?;
    let (passes, verdict) = repository.test("main")?;
    ensure!(!passes, "the example's tests pass already, so there is nothing to show");
    let say = Say { json: flags.json };
    say.words(&format!("repository  {} (its tests before: {verdict})", shown(repository.path()).display()));

    let model = model(&flags, environment, &mut settings).await?;
    let server = Server::start(isolated(settings, &home)).await?;
    let ended = job(&server, &repository, say).await;
    tidy(&server, if matches!(ended, Ok(Job::Cancelled)) { CANCEL } else { TIDY }).await;
    server.stop().await;
    if let Some(model) = model {
        say.words(&format!(
            "the scripted model served {} calls",
            model.records().iter().filter(|record| record.method == "POST").count()
        ));
        model.shutdown().await;
    }
    match ended? {
        Job::Cancelled => Ok(DETACHED),
        Job::Done(branch) => {
            check(&repository, &branch, started, say)?;
            Ok(DONE)
        }
    }
}

/// Starts the model, or takes the real one's key, and points the settings at it.
async fn model(
    flags: &Demo,
    environment: &Environment,
    settings: &mut Settings,
) -> anyhow::Result<Option<ScriptedModel>> {
    let say = Say { json: flags.json };
    settings.model.api_key_file = None;
    settings.model.auth_token_file = None;
    match flags.model {
        DemoModel::Real => {
            let key = environment.get(REAL_KEY).filter(|key| !key.is_empty());
            let key = key.with_context(|| format!("--model real needs the key in {REAL_KEY}"))?;
            settings.model.api_key = Some(SecretString::from(key.to_owned()));
            // Money is told of whatever the form.
            complain(&format!("model       {} (REAL: this costs money)", settings.model.base_url));
            Ok(None)
        }
        DemoModel::Scripted => {
            let options = Options {
                inline_scenarios: vec![SCENARIO.to_owned()],
                default_scenario: "cart".to_owned(),
                required_keys: vec![KeyDigest::of(SCRIPTED_KEY)],
                delay_scale: DelayScale::new(flags.delay_scale)?,
                ..Options::default()
            };
            let model = ScriptedModel::start(options).await.context("the scripted model cannot start")?;
            settings.model.base_url = Url::parse(model.base_url())?;
            settings.model.outbound_proxy = None;
            settings.model.api_key = Some(SecretString::from(SCRIPTED_KEY.to_owned()));
            say.words("model       scripted, inside this process: no key is read, nothing is spent");
            Ok(Some(model))
        }
    }
}

/// The demo's own server: own state, own port, one repository directory.
fn isolated(settings: Settings, home: &Path) -> Settings {
    Settings {
        state_dir: home.join("state"),
        listen: ([127, 0, 0, 1], 0).into(),
        allow_repo: vec![home.join("repositories")],
        repositories: Vec::new(),
        default_repository: None,
        workflows_dir: None,
        audit_head: None,
        tls: Tls::default(),
        ..settings
    }
}

/// How the demo tells of itself.
#[derive(Debug, Clone, Copy)]
struct Say {
    json: bool,
}

impl Say {
    /// Says something that only people need.
    fn words(self, text: &str) {
        if !self.json {
            print(text);
        }
    }
}

enum Job {
    Done(BranchName),
    /// By Ctrl-C.
    Cancelled,
}

async fn job(server: &Server, repository: &DemoRepository, say: Say) -> anyhow::Result<Job> {
    wait_ready(server).await?;
    let scopes = [Scope::RunsRead, Scope::RunsWrite];
    let (key_id, token) = server.store.create_api_key(&ProjectId::default_project(), "demo", &scopes).await?;
    let base = Url::parse(&format!("http://{}", server.address))?;
    let client = Client::new(base, Some(token.expose().to_owned()), None)?;
    let body = json!({"workflow": "bug-fixer", "prompt": TASK, "repository": repository.path()});
    let run = client.create_run(&body, &hex::encode(rand::random::<[u8; 16]>())).await?;
    say.words(&format!("run         {}\n", run.id));
    let ended = submit::watch(&client, &run.id, say.json).await?;
    if ended.is_none() {
        // Nobody could come back to it: its server ends with this process.
        complain("\ncancelling the run, since its server ends with the demo");
        client.cancel(&run.id).await?;
    }
    server.store.revoke_api_key(&key_id).await?;
    match ended {
        None => Ok(Job::Cancelled),
        Some(run) if run.status == "succeeded" => {
            Ok(Job::Done(run.text("branch").context("the run has no branch")?.parse()?))
        }
        Some(run) => bail!("the run ended as {}; its log is above", run.status),
    }
}

async fn wait_ready(server: &Server) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut problems = Vec::new();
    while start.elapsed() < READY {
        if let Some(live) = server.store.live_servers().await?.into_iter().next() {
            if live.problems.is_empty() {
                return Ok(());
            }
            problems = live.problems;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lines: Vec<_> = problems.into_iter().map(|problem| problem.message).collect();
    bail!("the server cannot place runs: {}", lines.join("; "))
}

/// Waits until the sandbox is gone, so that the demo leaves nothing behind.
async fn tidy(server: &Server, at_most: Duration) {
    let start = Instant::now();
    while start.elapsed() < at_most {
        let servers = server.store.live_servers().await.unwrap_or_default();
        let mut left = 0;
        for live in servers {
            left += server.store.sandboxes_of(&live.id).await.map_or(0, |rows| rows.len());
        }
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Looks at the bare repository alone: what is in it is what was really pushed.
fn check(repository: &DemoRepository, branch: &BranchName, started: Instant, say: Say) -> anyhow::Result<()> {
    let commits = repository.new_commits(branch.as_str())?;
    let [(commit, message)] = commits.as_slice() else {
        bail!("the branch has {} new commits; one was expected", commits.len());
    };
    git_conventional::Commit::parse(message)
        .with_context(|| format!("the commit message is not a Conventional Commit: {message}"))?;
    let (passes, verdict) = repository.test(branch.as_str())?;
    ensure!(passes, "a fresh clone of {branch} still fails its tests: {verdict}");
    let subject = message.lines().next().unwrap_or_default();
    if say.json {
        return print_json(&json!({
            "branch": branch.as_str(), "commit": commit, "subject": subject, "tests": verdict,
            "took_ms": u64::try_from(started.elapsed().as_millis())?,
        }));
    }
    print(&format!("fresh clone of {branch}: its tests now: {verdict}"));
    // The demo's server is gone, so nobody could be asked for the diff; the repository stays.
    print(&format!("see the change with: git -C {} show {branch}", shown(repository.path()).display()));
    print(&format!(
        "demo ok: commit {} \"{subject}\" in {:.1} s",
        commit.get(..10).unwrap_or(commit),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// A path as one would type it here.
fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or_else(|| path.to_owned())
}
