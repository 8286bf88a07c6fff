//! A follow-up whose sandbox waits, and the bare agent started anew, one after another in every round: how long each takes until
//! the model has its first request.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::engine::Engine;

use super::bar::{Bar, Bound};
use super::clock::{ms_between, wall_us};
use super::engines::bare_turn;
use super::reader::{Arrival, follow};
use super::service::{Service, ServiceSpec};
use super::stage::{Stage, is_message};
use super::stats::median;
use super::{say, scenarios};

/// Most that a follow-up may take, in milliseconds (median).
const FOLLOW_UP_MS: f64 = 120.0;
/// Rounds that count; one more comes first and does not.
const ROUNDS: u32 = 20;
/// How long everything rests before each follow-up, as when a person reads what came before.
const REST: Duration = Duration::from_millis(300);
/// What the agent is told.
const PROMPT: &str = "Say that you are there.";

/// What came of the rounds; each series has a figure for every round, in milliseconds.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_field_names, reason = "each says its unit, as everywhere")]
pub(crate) struct FollowUps {
    /// The bare agent with a fresh home, from its start.
    pub(crate) bare_ms: Vec<f64>,
    /// A follow-up on the local engine, from the request.
    pub(crate) local_ms: Vec<f64>,
    /// A follow-up on Docker's, from the request.
    pub(crate) docker_ms: Vec<f64>,
}

impl FollowUps {
    /// A bar for each engine.
    #[must_use]
    pub(crate) fn bars(&self) -> [Bar; 2] {
        let bar = |name, figures: &[f64]| Bar::new(name, median(figures), Bound::AtMost(FOLLOW_UP_MS), 0);
        [bar("follow_up_p50_ms", &self.local_ms), bar("follow_up_docker_p50_ms", &self.docker_ms)]
    }
}

/// A server and the session whose sandbox waits there.
struct Side {
    service: Service,
    session: Value,
}

/// Measures on two servers of their own, of which one always rests, in sessions with a repository.
///
/// # Errors
/// A server does not start, or a run does not go as it must.
pub(crate) async fn measure(stage: &Stage) -> anyhow::Result<FollowUps> {
    let local = begin(stage, Engine::Local).await?;
    let docker = match begin(stage, Engine::Docker).await {
        Ok(docker) => docker,
        Err(error) => {
            local.service.close().await?;
            return Err(error);
        }
    };
    let measured = in_turn(stage, &local, &docker).await;
    let closed = local.service.close().await.and(docker.service.close().await);
    let measured = measured?;
    closed?;
    Ok(measured)
}

async fn begin(stage: &Stage, engine: Engine) -> anyhow::Result<Side> {
    let mut spec = ServiceSpec {
        state_dir: stage.root().join(format!("kept-{}", engine.name())),
        engine,
        ..stage.service.clone()
    };
    spec.settings.push(("KEEP_ALIVE_S", "600".to_owned()));
    let service = Service::start(&stage.parts, &spec).await?;
    let body = json!({
        "workflow": "bug-fixer", "prompt": prompt(), "repository": stage.repository,
    });
    match first(&service, &body).await {
        Ok(session) => Ok(Side { service, session }),
        Err(error) => {
            service.close().await?;
            Err(error)
        }
    }
}

async fn first(service: &Service, body: &Value) -> anyhow::Result<Value> {
    let (run, _) = done(service, body).await?;
    Ok(run["session_id"].clone())
}

fn prompt() -> String {
    format!("[[scn:{}]] {PROMPT}", scenarios::TURN)
}

/// Does a run to its end; it, and what its stream said.
async fn done(service: &Service, body: &Value) -> anyhow::Result<(Value, Vec<Arrival>)> {
    let id = service.api.submit(body).await?;
    let arrivals = follow(&service.api, &id, |_| {}).await?;
    let run = service.api.get(&format!("/v1/runs/{id}")).await?.body;
    ensure!(run["status"] == "succeeded", "run {id} did not succeed: {run:#}");
    Ok((run, arrivals))
}

async fn in_turn(stage: &Stage, local: &Side, docker: &Side) -> anyhow::Result<FollowUps> {
    let mut all = FollowUps::default();
    for round in 0..=ROUNDS {
        let local_ms = follow_up(stage, local).await?;
        let bare_ms = bare(stage, round).await?;
        let docker_ms = follow_up(stage, docker).await?;
        say(&format!(
            "follow-up {round} of {ROUNDS}: local {local_ms:.0} ms, docker {docker_ms:.0} ms, bare {bare_ms:.0} ms"
        ));
        if round > 0 {
            all.local_ms.push(local_ms);
            all.docker_ms.push(docker_ms);
            all.bare_ms.push(bare_ms);
        }
    }
    Ok(all)
}

async fn follow_up(stage: &Stage, side: &Side) -> anyhow::Result<f64> {
    tokio::time::sleep(REST).await;
    let body = json!({ "session": side.session, "prompt": prompt() });
    let (before, asked_us) = (stage.calls(), wall_us());
    let (_, arrivals) = done(&side.service, &body).await?;
    let reused = arrivals.iter().any(|arrival| arrival.kind == "sandbox.reused");
    ensure!(reused, "the sandbox did not wait for the follow-up");
    first_request_ms(stage, before, asked_us)
}

async fn bare(stage: &Stage, round: u32) -> anyhow::Result<f64> {
    tokio::time::sleep(REST).await;
    let (before, asked_us) = (stage.calls(), wall_us());
    bare_turn(stage, round).await?;
    first_request_ms(stage, before, asked_us)
}

/// From `asked_us` until the model had the first request after number `before`.
fn first_request_ms(stage: &Stage, before: u64, asked_us: i64) -> anyhow::Result<f64> {
    let records = stage.model.records();
    let first = records.iter().find(|record| record.seq > before && is_message(record));
    let at_ms = i64::try_from(first.context("the model had no request")?.at_ms)?;
    Ok(ms_between(asked_us, at_ms.saturating_mul(1000)))
}
