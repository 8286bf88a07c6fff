//! The same sessions by the bench's script: as many containers with the same profile, each started at the moment at which
//! the service began with the sandbox of the run that stands beside it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Batch;
use crate::bench::stage::Stage;
use crate::measuring::say;

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scripted {
    /// Containers.
    pub(crate) count: u32,
    /// From the moment at which the first one could have started until the last docker client has ended, in milliseconds.
    pub(crate) wall_ms: f64,
    /// The service, in milliseconds.
    pub(crate) service_ms: f64,
}

impl Scripted {
    /// The service through the script.
    pub(crate) fn ratio(&self) -> f64 {
        self.service_ms / self.wall_ms
    }
}

/// Does by the script what a batch did through the service.
///
/// # Errors
/// A job of the script fails.
pub(crate) async fn measure(stage: &Stage, batch: &Batch) -> anyhow::Result<Scripted> {
    say(&format!("{} containers by the script", batch.count));
    let script = Arc::clone(&stage.script);
    let offsets = offsets(batch);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (number, offset) in (1..).zip(offsets) {
        let script = Arc::clone(&script);
        tasks.spawn(async move {
            tokio::time::sleep_until(began + offset).await;
            anyhow::Ok((number, script.job(number).await?.branch))
        });
    }
    let mut branches = Vec::new();
    while let Some(done) = tasks.join_next().await {
        branches.push(done??);
    }
    let wall_ms = began.elapsed().as_secs_f64() * 1000.0;
    branches.sort_unstable();
    for (number, branch) in branches {
        script.remove(number).await?;
        script.check(number, &branch).with_context(|| format!("the script's work on {branch}"))?;
    }
    Ok(Scripted { count: batch.count, wall_ms, service_ms: batch.wall_ms() })
}

/// When the making of each sandbox began, from the first request on.
fn offsets(batch: &Batch) -> Vec<Duration> {
    let began_us = batch.sessions.iter().map(|session| session.asked_us).min().unwrap_or(0);
    let since = |placed_us: i64| u64::try_from(placed_us - began_us).unwrap_or(0);
    let mut offsets: Vec<_> =
        batch.sessions.iter().map(|session| Duration::from_micros(since(session.placed_us))).collect();
    offsets.sort_unstable();
    offsets
}
