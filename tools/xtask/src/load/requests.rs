//! A server without runs: how soon it is ready, how little it takes, and how fast it answers.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;

use super::http::Caller;
use crate::bench::scenarios;
use crate::bench::service::{Service, ServiceSpec, job_body, scenario_body};
use crate::bench::stage::{Stage, TASK};
use crate::measuring::stats::Summary;
use crate::measuring::{proc, say, tail};

/// Connections that ask at the same time, and POSTs of a burst.
const CONNECTIONS: u32 = 50;
/// Requests a second of the fixed rate.
const RATE: u32 = 1000;
/// How long a server may take until it is ready.
const READY: Duration = Duration::from_secs(30);
/// Pause between two looks at whether it is.
const LOOK: Duration = Duration::from_millis(1);
/// How long the run that holds the slot may take to start, and to end.
const HOLD: Duration = Duration::from_mins(1);

/// How much is measured.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Starts of the server on a state directory that it knows.
    starts: u32,
    /// How long it is left alone before it is looked at.
    idle: Duration,
    /// How long it is asked as fast as it answers.
    flat_out: Duration,
    /// How long it is asked at the fixed rate.
    paced: Duration,
    /// Bursts of POSTs.
    bursts: u32,
}

impl Sizes {
    pub(super) fn whole() -> Self {
        Self {
            starts: 9,
            idle: Duration::from_secs(5),
            flat_out: Duration::from_secs(10),
            paced: Duration::from_secs(10),
            bursts: 5,
        }
    }

    pub(super) fn short() -> Self {
        Self {
            starts: 1,
            idle: Duration::from_millis(500),
            flat_out: Duration::from_millis(500),
            paced: Duration::from_millis(500),
            bursts: 1,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    /// From the process's start to the first 200 of `/readyz`, in milliseconds.
    pub(super) ready_ms: Summary,
    /// Share of memory when nothing happens, in MiB.
    pub(super) idle_mib: f64,
    /// Status requests answered in a second, and how long each took, in milliseconds.
    pub(super) flat_out_rate: f64,
    pub(super) flat_out_ms: Summary,
    /// At the fixed rate, from when each was due.
    pub(super) paced_ms: Summary,
    /// POSTs of a burst.
    pub(super) burst_ms: Summary,
}

pub(super) async fn measure(stage: &Stage, sizes: &Sizes) -> anyhow::Result<Requests> {
    let spec = ServiceSpec {
        state_dir: stage.root().join("state"),
        settings: vec![("API__RATE_PER_MINUTE", "0".to_owned())],
        ..stage.service.clone()
    };
    say("starts of a server");
    let mut service = Service::start(&stage.parts, &spec).await?;
    let mut starts = Vec::new();
    for _ in 0..sizes.starts {
        starts.push(ready_ms(&mut service).await?);
    }
    let measured = on_server(stage, &service, sizes).await;
    let log = service.process.log();
    let closed = service.close().await;
    let (idle_mib, flat_out, paced_ms, burst_ms) =
        measured.with_context(|| format!("the server's log ends with:\n{}", tail(&log)))?;
    closed?;
    Ok(Requests {
        ready_ms: Summary::of(&starts).context("the server was not started")?,
        idle_mib,
        flat_out_rate: flat_out.0,
        flat_out_ms: flat_out.1,
        paced_ms,
        burst_ms,
    })
}

type OnServer = (f64, (f64, Summary), Summary, Summary);

async fn on_server(stage: &Stage, service: &Service, sizes: &Sizes) -> anyhow::Result<OnServer> {
    say("an idle server");
    tokio::time::sleep(sizes.idle).await;
    let idle_mib = proc::memory(service.process.id())?.pss_mib;
    let run = service.api.submit(&scenario_body(scenarios::TURN, "Say that you are there.")).await?;
    let ended = service.api.wait_end(&run, HOLD).await?;
    ensure!(ended["status"] == "succeeded", "the run that is asked for did not succeed: {ended:#}");
    service.wait_tidy().await?;
    let path = format!("/v1/runs/{run}");
    say("status requests, as many as are answered");
    let flat_out = flat_out(service, &path, sizes.flat_out).await?;
    say("status requests at a fixed rate");
    let paced = paced(service, &path, sizes.paced).await?;
    say("bursts of POSTs");
    let bursts = bursts(stage, service, sizes.bursts).await?;
    Ok((idle_mib, flat_out, paced, bursts))
}

/// Ends the server, starts it again and asks until it is ready.
async fn ready_ms(service: &mut Service) -> anyhow::Result<f64> {
    service.process.terminate().await?;
    let began = Instant::now();
    service.process = service.spec.spawn()?;
    while began.elapsed() < READY {
        if let Ok(mut caller) = Caller::tcp(&service.process.base, "none").await
            && caller.get("/readyz").await.is_ok_and(|reply| reply.status == 200)
        {
            return Ok(began.elapsed().as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("the server was not ready after {READY:?}")
}

/// Asks on every connection, one request right after the other; answers a second, and what each took.
async fn flat_out(service: &Service, path: &str, time: Duration) -> anyhow::Result<(f64, Summary)> {
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for mut caller in Caller::many(&service.process.base, &service.key, CONNECTIONS).await? {
        let path = path.to_owned();
        tasks.spawn(async move {
            let mut took_ms = Vec::new();
            while began.elapsed() < time {
                let reply = caller.get(&path).await?;
                ensure!(reply.status == 200, "answered with {}", reply.status);
                took_ms.push(reply.took_ms());
            }
            anyhow::Ok(took_ms)
        });
    }
    let took_ms = all(tasks).await?;
    let elapsed = began.elapsed().as_secs_f64();
    let summary = Summary::of(&took_ms).context("nothing was answered")?;
    let count = u32::try_from(summary.count).context("more answers than can be counted")?;
    Ok((f64::from(count) / elapsed, summary))
}

/// Asks at [`RATE`], each connection in its turn, whether the answers before have come or not: a request that could not be
/// sent when it was due counts from then.
async fn paced(service: &Service, path: &str, time: Duration) -> anyhow::Result<Summary> {
    let mut tasks = JoinSet::new();
    let callers = Caller::many(&service.process.base, &service.key, CONNECTIONS).await?;
    let rounds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX) / 1000 * RATE / CONNECTIONS;
    let rounds = rounds.max(10);
    let began = tokio::time::Instant::now();
    for (number, mut caller) in (0_u32..).zip(callers) {
        let path = path.to_owned();
        tasks.spawn(async move {
            let mut took_ms = Vec::new();
            for round in 0..rounds {
                let due = began + Duration::from_secs(1) / RATE * (round * CONNECTIONS + number);
                tokio::time::sleep_until(due).await;
                let reply = caller.get(&path).await?;
                ensure!(reply.status == 200, "answered with {}", reply.status);
                took_ms.push(due.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(took_ms)
        });
    }
    Summary::of(&all(tasks).await?).context("nothing was answered")
}

/// As many runs at once as there are connections, while the only slot is taken, so that all of them wait; afterwards they
/// are cancelled.
async fn bursts(stage: &Stage, service: &Service, bursts: u32) -> anyhow::Result<Summary> {
    let holder = service.api.submit(&scenario_body(scenarios::HOLD, "Wait.")).await?;
    let busy = |run: &Value| run["phase"] == "agent";
    service.api.wait_run(&holder, HOLD, busy).await.context("the slot was not taken")?;
    let body = Bytes::from(job_body(TASK, &stage.repository).to_string());
    let (mut took_ms, mut runs) = (Vec::new(), vec![holder.clone()]);
    for _ in 0..bursts {
        let mut tasks = JoinSet::new();
        for mut caller in Caller::many(&service.process.base, &service.key, CONNECTIONS).await? {
            let body = body.clone();
            tasks.spawn(async move {
                let reply = caller.post("/v1/runs", body).await?;
                let run = reply.json(202)?["id"].as_str().context("no id")?.to_owned();
                anyhow::Ok((run, reply.took_ms()))
            });
        }
        while let Some(done) = tasks.join_next().await {
            let (run, ms) = done??;
            runs.push(run);
            took_ms.push(ms);
        }
    }
    for run in runs.iter().rev() {
        let answer = service.api.post(&format!("/v1/runs/{run}/cancel"), &Value::Null).await?;
        ensure!(answer.status == 202, "run {run} was not cancelled: {} {}", answer.status, answer.body);
    }
    service.api.wait_end(&holder, HOLD).await?;
    service.wait_tidy().await?;
    Summary::of(&took_ms).context("nothing was measured")
}

/// Everything that tasks measured.
async fn all(mut tasks: JoinSet<anyhow::Result<Vec<f64>>>) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}
