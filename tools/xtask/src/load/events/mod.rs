//! Events as fast as they are stored: through the doors of real sandboxes, in batches as the shim sends them, each
//! acknowledged before the next, and all of them read back through the API.

mod door;
mod record;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use testkit::engine::Engine;
use tokio::task::JoinSet;

use self::door::Door;
use super::databases::{Database, Kind};
use super::http::Caller;
use crate::bench::service::{Service, ServiceSpec};
use crate::bench::stage::Stage;
use crate::measuring::stats::Summary;
use crate::measuring::{say, tail};

/// What takes the shim's place.
const SHIM: &str = include_str!("stand_in_shim.py");
/// Bytes of an event's data.
pub(super) const EVENT_BYTES: usize = 500;
/// Events of a batch.
pub(super) const BATCH_EVENTS: usize = 100;
/// Batches of one session: its run may have twice as many events.
const BATCHES: usize = 1000;
/// How long sandboxes may take to start, and their runs to end.
const WAIT: Duration = Duration::from_mins(2);
/// Events of a page that is read back.
const PAGE: usize = 1000;
/// Pages of one session: more than its batches fill.
const PAGES: usize = BATCHES * BATCH_EVENTS / PAGE + 2;

/// How much is measured.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    sessions: u32,
    time: Duration,
}

impl Sizes {
    pub(super) fn whole() -> Self {
        Self { sessions: 50, time: Duration::from_mins(1) }
    }

    pub(super) fn short() -> Self {
        Self { sessions: 3, time: Duration::from_secs(1) }
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub(super) struct Events {
    /// Where they were stored.
    pub(super) database: Kind,
    /// Sessions.
    pub(super) sessions: u32,
    /// Events that were acknowledged, and in a second.
    pub(super) acknowledged: usize,
    pub(super) rate: f64,
    /// From before a batch is sent until it is acknowledged, in milliseconds.
    pub(super) batch_ms: Summary,
    /// CPU of the server for an event, in microseconds.
    pub(super) cpu_us: f64,
    /// Events read back in a second.
    pub(super) read_rate: f64,
    /// Events that were acknowledged and are missing, changed or out of order.
    pub(super) lost: usize,
}

/// What one session sent.
struct Sent {
    run: String,
    events: usize,
    batch_ms: Vec<f64>,
}

pub(super) async fn measure(stage: &Stage, database: &Database, sizes: &Sizes) -> anyhow::Result<Events> {
    let name = database.kind.name();
    say(&format!("events through the doors of {} sandboxes into {name}", sizes.sessions));
    let shim = stage.root().join("stand-in-shim");
    std::fs::write(&shim, SHIM)?;
    std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755))?;
    let spec = ServiceSpec {
        engine: Engine::Local,
        state_dir: stage.root().join(database.kind.of("state-events", "events-pg")),
        shim,
        slots: sizes.sessions,
        settings: [vec![("API__RATE_PER_MINUTE", "0".to_owned())], database.settings()].concat(),
        ..stage.service.clone()
    };
    let service = Service::start(&stage.parts, &spec).await?;
    let measured = on_server(&service, &spec.state_dir, database.kind, sizes).await;
    let log = service.process.log();
    let closed = service.close().await;
    let measured = measured.with_context(|| format!("the server's log ends with:\n{}", tail(&log)))?;
    closed.map(|()| measured)
}

async fn on_server(
    service: &Service,
    state_dir: &Path,
    database: Kind,
    sizes: &Sizes,
) -> anyhow::Result<Events> {
    let body = json!({ "workflow": "bug-fixer", "prompt": "Nobody reads this.", "repository": null });
    let mut runs = Vec::new();
    for _ in 0..sizes.sessions {
        runs.push(service.api.submit(&body).await?);
    }
    let mut doors = Vec::new();
    for run in &runs {
        doors.push(tokio::time::timeout(WAIT, Door::open(service, state_dir, run)).await??);
    }
    let cpu = service.cpu()?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for door in doors {
        tasks.spawn(send(door, began + sizes.time));
    }
    let mut sent = Vec::new();
    while let Some(done) = tasks.join_next().await {
        sent.push(done??);
    }
    let took = began.elapsed();
    let used_ms = service.cpu()?.since(cpu).own_ms;
    let acknowledged: usize = sent.iter().map(|session| session.events).sum();
    let batch_ms: Vec<f64> = sent.iter().flat_map(|session| session.batch_ms.iter().copied()).collect();
    for session in &sent {
        let run = service.api.wait_end(&session.run, WAIT).await?;
        ensure!(run["status"] == "succeeded", "run {} did not succeed: {run:#}", session.run);
    }
    say("reading them back");
    let began = Instant::now();
    let mut lost = 0;
    for session in &sent {
        lost += missing(service, session).await?;
    }
    let read_s = began.elapsed().as_secs_f64();
    service.wait_tidy_within(WAIT).await?;
    let count = f64::from(u32::try_from(acknowledged)?);
    Ok(Events {
        database,
        sessions: sizes.sessions,
        acknowledged,
        rate: count / took.as_secs_f64(),
        batch_ms: Summary::of(&batch_ms).context("nothing was acknowledged")?,
        cpu_us: used_ms * 1000.0 / count,
        read_rate: count / read_s,
        lost,
    })
}

/// Sends batches until the time is over, then the run's outcome.
async fn send(mut door: Door, until: Instant) -> anyhow::Result<Sent> {
    let mut lines = record::Lines::new(&door.run, door.attempt)?;
    let mut batch_ms = Vec::new();
    while Instant::now() < until && batch_ms.len() < BATCHES {
        let batch = lines.next_batch();
        batch_ms.push(door.append(&batch).await?);
    }
    let end = record::end(&door.run, door.attempt)?;
    door.append(&end).await?;
    Ok(Sent { run: door.run.to_string(), events: batch_ms.len() * BATCH_EVENTS, batch_ms })
}

/// A page of events, as far as it is looked at.
#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    seq: i64,
    kind: String,
    data: Box<RawValue>,
}

/// Reads a run's events back: how many of those that were sent are not where they must be, or not as they were sent.
async fn missing(service: &Service, sent: &Sent) -> anyhow::Result<usize> {
    let mut caller = Caller::tcp(&service.process.base, &service.key).await?;
    let (mut after, mut found) = (0, 0);
    for _ in 0..PAGES {
        let path = format!("/v1/runs/{}/events?after={after}&limit={PAGE}", sent.run);
        let reply = caller.get(&path).await?;
        ensure!(reply.status == 200, "{path} was answered with {}", reply.status);
        let page: Page = serde_json::from_slice(&reply.body)?;
        if page.items.is_empty() {
            return Ok(sent.events.abs_diff(found));
        }
        for item in page.items {
            ensure!(item.seq == after + 1, "event {} of run {} comes after {after}", item.seq, sent.run);
            after = item.seq;
            if item.kind == "agent.line" && item.data.get() == record::line(found) {
                found += 1;
            }
        }
    }
    anyhow::bail!("run {} has more events than were sent", sent.run)
}
