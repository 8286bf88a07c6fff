//! Somebody who asks for status and lists all the while, at a fixed rate: each answer counts from when its request was due.

use std::time::Duration;

use anyhow::ensure;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::http::Caller;
use crate::bench::service::Service;
use crate::measuring::clock::wall_us;

/// Connections that ask for status, in turn.
const ASKERS: u32 = 4;
/// Time between two status requests of one of them: 40 a second together.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// Time between two list requests.
const LIST_EVERY: Duration = Duration::from_millis(200);
/// Requests of one of them; far more than a batch has time for.
const REQUESTS: usize = 100_000;

/// When each answer was there, in Unix microseconds, and how long it had taken, in milliseconds.
type Answers = Vec<(i64, f64)>;

/// What was asked meanwhile.
#[derive(Debug, Clone, Default)]
pub(crate) struct Polled {
    /// Requests for one run.
    pub(crate) status: Answers,
    /// Requests for the first page of runs.
    pub(crate) list: Answers,
}

impl Polled {
    pub(super) fn add(&mut self, other: Self) {
        self.status.extend(other.status);
        self.list.extend(other.list);
    }
}

/// Begins to ask, until `stopped` says so.
pub(super) async fn start(
    tasks: &mut JoinSet<anyhow::Result<Polled>>,
    service: &Service,
    runs: &watch::Receiver<Vec<String>>,
    stopped: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    for (number, caller) in (0..).zip(Caller::many(&service.process.base, &service.key, ASKERS).await?) {
        let (runs, stopped) = (runs.clone(), stopped.clone());
        let first = began + STATUS_EVERY / ASKERS * number;
        tasks.spawn(async move {
            let path = |round: usize| {
                let runs = runs.borrow();
                // A different run each time.
                let index = (round * ASKERS as usize + number as usize).checked_rem(runs.len())?;
                Some(format!("/v1/runs/{}", runs[index]))
            };
            let status = ask(caller, (first, STATUS_EVERY), path, stopped).await?;
            Ok(Polled { status, list: Vec::new() })
        });
    }
    let (caller, stopped) = (Caller::tcp(&service.process.base, &service.key).await?, stopped.clone());
    tasks.spawn(async move {
        let list = ask(caller, (began, LIST_EVERY), |_| Some("/v1/runs".to_owned()), stopped).await?;
        Ok(Polled { status: Vec::new(), list })
    });
    Ok(())
}

async fn ask(
    mut caller: Caller,
    (first, every): (Instant, Duration),
    path: impl Fn(usize) -> Option<String>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Answers> {
    let mut answers = Vec::new();
    let mut due = first;
    for round in 0..REQUESTS {
        tokio::time::sleep_until(due).await;
        if *stopped.borrow() {
            break;
        }
        // Before the first run is there, there is nothing to ask for.
        if let Some(path) = path(round) {
            let reply = caller.get(&path).await?;
            ensure!(reply.status == 200, "{path} was answered with {}", reply.status);
            answers.push((wall_us(), due.elapsed().as_secs_f64() * 1000.0));
        }
        due += every;
    }
    Ok(answers)
}
