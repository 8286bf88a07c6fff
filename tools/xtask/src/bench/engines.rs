//! A run of one turn on each engine, and the same turn by the bare agent, one after another in every round.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use caisson_claude::{EnvironmentSpec, Line, environment, parse, user_prompt};
use serde_json::Value;
use testkit::engine::Engine;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};

use super::service::{Service, ServiceSpec, scenario_body};
use super::stage::Stage;
use super::{say, scenarios, script};

/// What the agent is told.
const PROMPT: &str = "Say that you are there.";
/// Time limit of one turn of the bare agent.
const TURN: Duration = Duration::from_mins(1);

/// What came of the rounds; each series has a figure for every round, in milliseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Engines {
    /// The bare agent, from its start until it has printed its result.
    pub(crate) bare_ms: Vec<f64>,
    /// On the local engine.
    pub(crate) local: OnEngine,
    /// On Docker's.
    pub(crate) docker: OnEngine,
}

/// What came of an engine's rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct OnEngine {
    /// A run, from the request to the end of its stream.
    pub(crate) runs_ms: Vec<f64>,
    /// The start of its sandbox, as the server says.
    pub(crate) starts_ms: Vec<f64>,
}

impl Engines {
    /// The local engine less the bare agent, round by round.
    #[must_use]
    pub(crate) fn local_over_bare_ms(&self) -> Vec<f64> {
        over(&self.local.runs_ms, &self.bare_ms)
    }

    /// Docker's engine less the bare agent, round by round.
    #[must_use]
    pub(crate) fn docker_over_bare_ms(&self) -> Vec<f64> {
        over(&self.docker.runs_ms, &self.bare_ms)
    }
}

impl OnEngine {
    async fn turn(&mut self, service: &Service, body: &Value) -> anyhow::Result<()> {
        let job = service.job(body, |_| {}).await?;
        service.wait_tidy().await?;
        self.runs_ms.push(job.timeline.total_ms().context("the run's end was not seen")?);
        self.starts_ms.push(job.start_ms);
        Ok(())
    }
}

fn over(runs: &[f64], bare: &[f64]) -> Vec<f64> {
    runs.iter().zip(bare).map(|(run, bare)| run - bare).collect()
}

/// A side of a round.
#[derive(Debug, Clone, Copy)]
enum Side {
    Bare,
    Local,
    Docker,
}

/// Measures on two servers of their own, of which one always rests. The first round is not counted.
///
/// # Errors
/// A server does not start, or a turn does not end as it must.
pub(crate) async fn measure(stage: &Stage, rounds: u32) -> anyhow::Result<Engines> {
    let spec = |engine: Engine| ServiceSpec {
        state_dir: stage.root().join(format!("state-{}", engine.name())),
        engine,
        ..stage.service.clone()
    };
    let local = Service::start(&stage.parts, &spec(Engine::Local)).await?;
    let docker = match Service::start(&stage.parts, &spec(Engine::Docker)).await {
        Ok(docker) => docker,
        Err(error) => {
            local.close().await?;
            return Err(error);
        }
    };
    let measured = in_turn(stage, &local, &docker, rounds).await;
    let closed = local.close().await.and(docker.close().await);
    let measured = measured?;
    closed?;
    Ok(measured)
}

async fn in_turn(stage: &Stage, local: &Service, docker: &Service, rounds: u32) -> anyhow::Result<Engines> {
    let body = scenario_body(scenarios::TURN, PROMPT);
    let mut order = [Side::Bare, Side::Local, Side::Docker];
    let mut engines = Engines::default();
    for round in 0..=rounds {
        if round == 1 {
            engines = Engines::default();
        }
        for side in order {
            match side {
                Side::Bare => engines.bare_ms.push(bare_turn(stage, round).await?),
                Side::Local => engines.local.turn(local, &body).await?,
                Side::Docker => engines.docker.turn(docker, &body).await?,
            }
        }
        // Nobody always comes first, or always after the same one.
        if round % 3 == 2 {
            order.swap(0, 1);
        }
        order.rotate_left(1);
        let last = |figures: &[f64]| figures.last().copied().unwrap_or(f64::NAN);
        say(&format!(
            "round {round} of {rounds}: bare {:.0} ms, local {:.0} ms, docker {:.0} ms",
            last(&engines.bare_ms),
            last(&engines.local.runs_ms),
            last(&engines.docker.runs_ms)
        ));
    }
    Ok(engines)
}

/// The agent as a person would start it, with a fresh home and straight to the model: from its start to its result.
pub(super) async fn bare_turn(stage: &Stage, round: u32) -> anyhow::Result<f64> {
    let directory = stage.root().join("bare").join(round.to_string());
    let [home, workspace, tmpdir] = ["home", "workspace", "tmp"].map(|name| directory.join(name));
    for path in [&home, &workspace, &tmpdir] {
        fs::create_dir_all(path)?;
    }
    let mut command = agent(stage, &home, &tmpdir)?;
    let prompt = user_prompt(&script::random_uuid()?, &format!("[[scn:{}]] {PROMPT}", scenarios::TURN))?;
    let asked = Instant::now();
    let mut child = command.current_dir(&workspace).spawn().context("the agent cannot be started")?;
    let mut input = child.stdin.take().context("the agent has no standard input")?;
    input.write_all(prompt.as_bytes()).await?;
    drop(input);
    let output = child.stdout.take().context("the agent has no standard output")?;
    let turn = tokio::time::timeout(TURN, result_line(output));
    let said = turn.await.with_context(|| format!("the bare agent took longer than {TURN:?}"))??;
    let taken_ms = asked.elapsed().as_secs_f64() * 1000.0;
    ensure!(said.contains(scenarios::TURN_TEXT), "the bare agent said something else: {said}");
    let status = tokio::time::timeout(TURN, child.wait()).await.context("the bare agent did not end")??;
    ensure!(status.success(), "the bare agent ended with {status}");
    fs::remove_dir_all(directory)?;
    Ok(taken_ms)
}

/// The line with which the agent ends its turn.
async fn result_line(output: impl AsyncRead + Unpin) -> anyhow::Result<String> {
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        if matches!(parse(line.as_bytes()), Line::Result(_)) {
            return Ok(line);
        }
    }
    anyhow::bail!("the bare agent ended without a result")
}

fn agent(stage: &Stage, home: &Path, tmpdir: &Path) -> anyhow::Result<tokio::process::Command> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the bench's path is not UTF-8");
    let (home, tmpdir) = (text(home)?, text(tmpdir)?);
    let spec = EnvironmentSpec {
        home: &home,
        profiles: &format!("{home}/profiles"),
        path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        tmpdir: &tmpdir,
        base_url: stage.model.base_url(),
        agent_grant: script::TOKEN,
        proxy_url: None,
        extra: &[],
    };
    #[expect(clippy::disallowed_methods, reason = "the agent is started here, with an argument vector")]
    let mut command = tokio::process::Command::new(stage.parts.claude(&stage.agent_version));
    command
        .args(stage.script.agent_arguments()?)
        .env_clear()
        .envs(environment(&spec)?)
        // Where the bench is root's, the agent would refuse to work without asking.
        .env("IS_SANDBOX", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_taken_round_by_round() {
        let engines = Engines {
            bare_ms: vec![400.0, 500.0],
            local: OnEngine { runs_ms: vec![450.0, 560.0], starts_ms: Vec::new() },
            docker: OnEngine { runs_ms: vec![600.0, 650.0], starts_ms: Vec::new() },
        };
        assert_eq!(engines.local_over_bare_ms(), [50.0, 60.0]);
        assert_eq!(engines.docker_over_bare_ms(), [200.0, 150.0]);
    }
}
