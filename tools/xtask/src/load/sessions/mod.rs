//! Many sessions at the same time, each with a client that reads its stream, while somebody asks for status and lists.

mod census;
mod client;
mod journals;
mod polls;
pub(super) mod script;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::{Value, json};
use testkit::engine::Engine;
use testkit::parts::Parts;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;

use self::census::{Census, Usage};
use self::client::Session;
use self::journals::{Journals, Stamps};
use self::polls::Polled;
use super::http::Caller;
use super::scenario::WORD_PACE_MS;
use crate::bench::script::check_branch;
use crate::bench::service::{Service, ServiceSpec, job_body};
use crate::bench::stage::{Stage, TASK, is_message};
use crate::bench::stand_in;
use crate::measuring::clock::{ms_between, wall_us};
use crate::measuring::{say, tail};

/// Time limit of a batch, from its first request until its last sandbox is gone.
const BATCH: Duration = Duration::from_mins(8);
/// Time between two looks at the server and its surroundings.
const LOOK: Duration = Duration::from_millis(250);
/// Lines of a session with the stand-in: one for each turn of the agent.
const STAND_IN_LINES: usize = 5;

/// Who the agents of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agents {
    /// Real ones, each of which works as soon as it has started.
    Real,
    /// Real ones, none of which gets an answer of the model before all have asked.
    Gathered,
    /// Stand-ins.
    StandIns,
}

/// What came of a batch of sessions.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// How many there were.
    pub(super) count: u32,
    /// Who they were.
    pub(super) agents: Agents,
    /// Of each session.
    pub(super) sessions: Vec<Session>,
    /// When the last one had started: its first model request, or its first line, in Unix microseconds.
    pub(super) started_us: i64,
    /// Status and list requests that were made meanwhile.
    pub(super) polled: Polled,
    /// What it took.
    pub(super) usage: Usage,
    /// Runs that did not succeed, or whose work is not what it must be; one sentence each.
    pub(super) failed: Vec<String>,
}

impl Batch {
    /// A batch in which nothing was measured.
    #[cfg(test)]
    pub(super) fn of_nothing(count: u32) -> Self {
        Self {
            count,
            agents: Agents::Real,
            sessions: (0..count).map(|_| Session::of_nothing()).collect(),
            started_us: 0,
            polled: Polled::default(),
            usage: Usage::default(),
            failed: Vec::new(),
        }
    }

    /// From the first request until the last stream has said its end, in milliseconds.
    pub(super) fn wall_ms(&self) -> f64 {
        let from = self.sessions.iter().map(|session| session.asked_us).min().unwrap_or(0);
        let to = self.sessions.iter().map(|session| session.known_us).max().unwrap_or(0);
        ms_between(from, to)
    }

    /// How many agents worked at the same moment, at most.
    pub(super) fn peak(&self) -> usize {
        let works = |session: &Session, at_us: i64| (session.agent_us..session.known_us).contains(&at_us);
        let at = |one: &Session| self.sessions.iter().filter(|session| works(session, one.agent_us)).count();
        self.sessions.iter().map(at).max().unwrap_or(0)
    }

    /// Sessions whose stream or record has a gap.
    pub(super) fn gaps(&self) -> usize {
        self.sessions.iter().filter(|session| !session.gapless).count()
    }
}

/// Sessions with the real agent in real containers, on a server of their own.
///
/// # Errors
/// They could not be measured; runs that fail are no error.
pub(super) async fn real(stage: &Stage, count: u32) -> anyhow::Result<Batch> {
    say(&format!("{count} sessions at the same time"));
    stage.model.gather(0);
    with_real_agents(stage, count, Agents::Real).await
}

/// The same, but no session is answered by the model before all have asked it: then all of them work at once.
///
/// # Errors
/// They could not be measured; runs that fail are no error.
pub(super) async fn gathered(stage: &Stage, count: u32) -> anyhow::Result<Batch> {
    say(&format!("{count} sessions that work at the same moment"));
    stage.model.gather(count as usize);
    let batch = with_real_agents(stage, count, Agents::Gathered).await;
    stage.model.gather(0);
    batch
}

async fn with_real_agents(stage: &Stage, count: u32, agents: Agents) -> anyhow::Result<Batch> {
    let spec = spec(stage, &format!("state-{count}-{agents:?}").to_lowercase(), count);
    let repositories = stage.apart.get(..count as usize).context("there are too few repositories")?;
    let bodies = repositories.iter().map(|repository| job_body(TASK, repository)).collect();
    let before = stage.calls();
    let journals = Journals::open(&spec.state_dir)?;
    let stamps = journals.stamps();
    let measuring = measure(&stage.parts, &spec, bodies, Some(&stamps));
    let mut batch = tokio::select! {
        batch = measuring => batch?,
        watched = journals.watch() => return watched.and(Err(anyhow::anyhow!("the journals were not watched to the end"))),
    };
    let records = stage.model.records();
    let firsts = records.iter().filter(|record| {
        let first = record.script.as_ref().is_some_and(|place| place.prompt == 1 && place.step == 0);
        record.seq > before && is_message(record) && first
    });
    batch.agents = agents;
    batch.started_us = firsts
        .filter_map(|record| i64::try_from(record.at_ms).ok())
        .max()
        .context("the model was not asked")?
        .saturating_mul(1000);
    for session in &batch.sessions {
        let (repository, branch) = session.branch.as_ref().context("a session without a branch")?;
        if let Err(error) = check_branch(Path::new(repository), branch) {
            batch.failed.push(format!("run {}: {error:#}", session.run));
        }
    }
    Ok(batch)
}

/// Sessions with a stand-in for the agent. It writes what the agent would, and asks no model. On the local engine, which
/// has no daemon of its own to be loaded: what many sessions cost the server is to be seen, not what they cost Docker.
///
/// # Errors
/// They could not be measured.
pub(super) async fn stand_ins(stage: &Stage, count: u32, words: usize) -> anyhow::Result<Batch> {
    say(&format!("{count} sessions at the same time with a stand-in for the agent"));
    let agents_dir = stage.root().join("stand-ins");
    stand_in::install(&agents_dir, &stage.agent_version)?;
    let parts = Parts { agents_dir, ..stage.parts.clone() };
    let spec =
        ServiceSpec { engine: Engine::Local, ..spec(stage, &format!("state-{count}-stand-ins"), count) };
    let prompt = json!({
        "lines": STAND_IN_LINES, "pace_ms": WORD_PACE_MS, "deltas": words, "delta_pace_ms": WORD_PACE_MS,
    });
    let body = json!({ "workflow": "bug-fixer", "prompt": prompt.to_string(), "repository": null });
    let mut batch = measure(&parts, &spec, vec![body; count as usize], None).await?;
    batch.agents = Agents::StandIns;
    batch.started_us =
        batch.sessions.iter().map(|session| session.agent_us).max().context("no session has begun")?;
    Ok(batch)
}

fn spec(stage: &Stage, name: &str, slots: u32) -> ServiceSpec {
    ServiceSpec {
        state_dir: stage.root().join(name),
        slots,
        settings: vec![
            ("API__RATE_PER_MINUTE", "0".to_owned()),
            ("API__CONNECTIONS_PER_PEER", "1024".to_owned()),
            // One key is all clients here.
            ("API__KEY_PERCENT", "100".to_owned()),
        ],
        ..stage.service.clone()
    }
}

async fn measure(
    parts: &Parts,
    spec: &ServiceSpec,
    bodies: Vec<Value>,
    stamps: Option<&Stamps>,
) -> anyhow::Result<Batch> {
    let service = Service::start(parts, spec).await?;
    let measured = tokio::time::timeout(BATCH, on_server(&service, bodies, stamps)).await;
    let log = service.process.log();
    let closed = service.close().await;
    let measured = measured.with_context(|| format!("the sessions took longer than {BATCH:?}")).flatten();
    let measured = measured.with_context(|| format!("the server's log ends with:\n{}", tail(&log)))?;
    closed.map(|()| measured)
}

async fn on_server(service: &Service, bodies: Vec<Value>, stamps: Option<&Stamps>) -> anyhow::Result<Batch> {
    let count = u32::try_from(bodies.len())?;
    let callers = Caller::many(&service.process.base, &service.key, count).await?;
    let together = Arc::new(Barrier::new(callers.len()));
    let (known, runs) = watch::channel(Vec::new());
    let known = Arc::new(known);
    let mut census = Census::begin(service.process.id())?;
    let mut tasks = JoinSet::new();
    for (caller, body) in callers.into_iter().zip(bodies) {
        let (api, together, known) = (service.api.clone(), Arc::clone(&together), Arc::clone(&known));
        let body = Bytes::from(body.to_string());
        tasks.spawn(client::work(api, caller, body, (together, known), stamps.cloned()));
    }
    let mut polling = JoinSet::new();
    let (stop, stopped) = watch::channel(false);
    polls::start(&mut polling, service, &runs, &stopped).await?;

    let mut sessions = Vec::new();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while sessions.len() < count as usize {
        tokio::select! {
            done = tasks.join_next() => sessions.push(done.context("a session is missing")???),
            _ = looks.tick() => census.look()?,
        }
    }
    stop.send_replace(true);
    let mut polled = Polled::default();
    while let Some(done) = polling.join_next().await {
        polled.add(done??);
    }
    let wall_us = wall_us();
    service.wait_tidy_within(BATCH).await?;
    let usage = census.end(wall_us)?;
    let mut failed = Vec::new();
    for session in &mut sessions {
        failed.extend(session.check(&service.api).await?);
    }
    Ok(Batch { count, agents: Agents::Real, sessions, started_us: 0, polled, usage, failed })
}
