//! How long the API takes to answer, one request after another.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::scenarios;
use super::service::{Service, scenario_body};
use super::stats::Summary;

/// Requests of each kind.
pub(crate) const REQUESTS: usize = 300;
/// How long the run that holds the slot may take to start, and to end.
const HOLD: Duration = Duration::from_mins(1);

/// Latencies of the API, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requests {
    /// From `POST /v1/runs` to the whole of its 202.
    pub(crate) post: Summary,
    /// From `GET /v1/runs/{id}` to the whole of its answer.
    pub(crate) get: Summary,
}

/// Measures while the only slot is taken by a run whose model call is never answered; what is queued is cancelled.
///
/// # Errors
/// The API refuses, or the run that holds the slot does not start or end.
pub(crate) async fn measure(service: &Service, job: &Value) -> anyhow::Result<Requests> {
    let holder = service.api.submit(&scenario_body(scenarios::HOLD, "Wait.")).await?;
    let busy = |run: &Value| run["phase"] == "agent";
    service.api.wait_run(&holder, HOLD, busy).await.context("the slot was not taken")?;

    let (mut post, mut get, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REQUESTS {
        let asked = Instant::now();
        runs.push(service.api.submit(job).await?);
        post.push(milliseconds(asked));
    }
    for run in &runs {
        let path = format!("/v1/runs/{run}");
        let asked = Instant::now();
        let found = service.api.get(&path).await?;
        get.push(milliseconds(asked));
        ensure!(found.body["status"] == "queued", "a run that should wait does not: {}", found.body);
    }
    for run in runs.iter().chain([&holder]) {
        let answer = service.api.post(&format!("/v1/runs/{run}/cancel"), &Value::Null).await?;
        ensure!(answer.status == 202, "run {run} was not cancelled: {} {}", answer.status, answer.body);
    }
    service.api.wait_end(&holder, HOLD).await?;
    service.wait_tidy().await?;
    let sum = |figures: &[f64]| Summary::of(figures).context("nothing was measured");
    Ok(Requests { post: sum(&post)?, get: sum(&get)? })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
