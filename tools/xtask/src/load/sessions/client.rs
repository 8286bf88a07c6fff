//! The client of one session: it asks for the run, reads the stream to its end, and looks at the record afterwards.

use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::Value;
use testkit::api::Api;
use tokio::sync::{Barrier, watch};

use super::super::http::Caller;
use super::journals::Stamps;
use crate::measuring::clock::{ms_between, wall_us};
use crate::measuring::reader::{Arrival, follow, stamped_lines};

/// What came of one session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// Its run.
    pub(crate) run: String,
    /// Its repository and branch, if it has them.
    pub(crate) branch: Option<(String, String)>,
    /// When it was asked for, in Unix microseconds.
    pub(crate) asked_us: i64,
    /// From the request to its 202, in milliseconds.
    pub(crate) post_ms: f64,
    /// When the server began to make its sandbox, by the server's clock.
    pub(crate) placed_us: i64,
    /// From its acceptance until a slot took it, in milliseconds.
    pub(crate) picked_up_ms: f64,
    /// When the agent's first line was there.
    pub(crate) agent_us: i64,
    /// When the stream had said the end.
    pub(crate) known_us: i64,
    /// Each line of the agent: when it was there, and how long it had taken since the shim (or a stand-in for the agent) had
    /// written it, in milliseconds.
    pub(crate) lines: Vec<(i64, f64)>,
    /// Pieces of live text.
    pub(crate) deltas: usize,
    /// The numbers of the events that the stream had.
    seen: Vec<i64>,
    /// Whether stream and record have every event once, in order.
    pub(crate) gapless: bool,
}

/// Asks for a run when everybody is ready, tells its id, and reads to the end.
///
/// # Errors
/// The run is not accepted, or its stream cannot be read.
pub(super) async fn work(
    api: Api,
    mut caller: Caller,
    body: Bytes,
    (together, known): (Arc<Barrier>, Arc<watch::Sender<Vec<String>>>),
    stamps: Option<Stamps>,
) -> anyhow::Result<Session> {
    together.wait().await;
    let asked_us = wall_us();
    let reply = caller.post("/v1/runs", body).await?;
    drop(caller);
    let accepted = reply.json(202)?;
    let run = accepted["id"].as_str().context("a run without an id")?.to_owned();
    known.send_modify(|runs| runs.push(run.clone()));
    let arrivals = follow(&api, &run, |_| {}).await?;
    let text = |name: &str| accepted[name].as_str().map(str::to_owned);
    let branch = text("repository").zip(text("branch"));
    let mut session = Session::of(run, branch, (asked_us, reply.took_ms()), &arrivals)?;
    session.lines = match stamps {
        Some(stamps) => written_lines(&arrivals, &stamps)?,
        None => stamped_lines(&arrivals)?,
    };
    Ok(session)
}

/// From the writing of each line of the agent in the shim's journal to its arrival, with the moment of that.
fn written_lines(arrivals: &[Arrival], stamps: &Stamps) -> anyhow::Result<Vec<(i64, f64)>> {
    let mut lines = Vec::new();
    for arrival in arrivals.iter().filter(|arrival| arrival.kind == "agent.line") {
        let event = arrival.json()?;
        if event["data"]["uuid"].is_string() {
            let written_us =
                stamps.of(&event["data"]).context("a line was not seen in the shim's journal")?;
            lines.push((arrival.at_us, ms_between(written_us, arrival.at_us)));
        }
    }
    ensure!(!lines.is_empty(), "the agent said nothing");
    Ok(lines)
}

impl Session {
    fn of(
        run: String,
        branch: Option<(String, String)>,
        (asked_us, post_ms): (i64, f64),
        arrivals: &[Arrival],
    ) -> anyhow::Result<Self> {
        let (mut seen, mut queued_ms, mut claimed_ms, mut placed_ms) = (Vec::new(), None, None, None);
        for arrival in arrivals.iter().filter(|arrival| !matches!(arrival.kind.as_str(), "delta" | "end")) {
            let event = arrival.json()?;
            seen.extend(event["seq"].as_i64());
            match arrival.kind.as_str() {
                "run.queued" => queued_ms = queued_ms.or(event["at_ms"].as_i64()),
                "run.started" => claimed_ms = claimed_ms.or(event["at_ms"].as_i64()),
                // The event is written when the sandbox runs, and tells how long that took.
                "sandbox.started" => {
                    let took_ms = event["data"]["start_ms"].as_i64().unwrap_or(0);
                    placed_ms = placed_ms.or(event["at_ms"].as_i64().map(|at_ms| at_ms - took_ms));
                }
                _ => {}
            }
        }
        let first_line = arrivals.iter().find(|arrival| arrival.kind == "agent.line");
        let (queued_ms, claimed_ms) =
            queued_ms.zip(claimed_ms).with_context(|| format!("run {run} was not taken by a slot"))?;
        let waited_ms = i32::try_from(claimed_ms - queued_ms).unwrap_or(i32::MAX);
        Ok(Self {
            branch,
            asked_us,
            post_ms,
            placed_us: placed_ms.unwrap_or(claimed_ms).saturating_mul(1000),
            picked_up_ms: f64::from(waited_ms),
            agent_us: first_line.map_or(0, |line| line.at_us),
            known_us: arrivals.last().map_or(0, |end| end.at_us),
            lines: Vec::new(),
            deltas: arrivals.iter().filter(|arrival| arrival.kind == "delta").count(),
            seen,
            gapless: false,
            run,
        })
    }

    /// A session that has done nothing.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Self {
            run: String::new(),
            branch: None,
            asked_us: 0,
            post_ms: 1.0,
            placed_us: 0,
            picked_up_ms: 0.0,
            agent_us: 0,
            known_us: 50_000_000,
            lines: Vec::new(),
            deltas: 0,
            seen: Vec::new(),
            gapless: true,
        }
    }

    /// Looks at the record; says why the run is not as it must be.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn check(&mut self, api: &Api) -> anyhow::Result<Option<String>> {
        let recorded = api.events(&self.run).await?;
        let recorded: Vec<_> = recorded.iter().filter_map(|event| event["seq"].as_i64()).collect();
        self.gapless = recorded == self.seen && is_gapless(&self.seen);
        let run = api.get(&format!("/v1/runs/{}", self.run)).await?.body;
        Ok(failure(&run).map(|why| format!("run {}: {why}", self.run)))
    }
}

fn failure(run: &Value) -> Option<String> {
    (run["status"] != "succeeded").then(|| format!("{} {}", run["status"], run["failure"]))
}

/// Whether the numbers are 1, 2, 3 and so on.
fn is_gapless(numbers: &[i64]) -> bool {
    !numbers.is_empty() && numbers.iter().zip(1..).all(|(number, expected)| *number == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(at_us: i64, kind: &str, data: &str) -> Arrival {
        Arrival { at_us, kind: kind.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn numbers_without_the_first_one_or_with_one_twice_have_a_gap() {
        assert!(is_gapless(&[1, 2, 3]));
        for bad in [&[][..], &[2, 3], &[1, 3], &[1, 1, 2]] {
            assert!(!is_gapless(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_session_is_read_off_its_stream() {
        let arrivals = [
            arrival(1, "run.queued", r#"{"seq": 1, "at_ms": 1000}"#),
            arrival(2, "run.started", r#"{"seq": 2, "at_ms": 1007}"#),
            arrival(3, "sandbox.started", r#"{"seq": 3, "at_ms": 1107, "data": {"start_ms": 80}}"#),
            arrival(5_000, "agent.line", r#"{"seq": 4, "at_ms": 5, "data": {"stamp_ns": 3000000}}"#),
            arrival(6_000, "delta", "{}"),
            arrival(7_000, "end", "{}"),
        ];
        let session = Session::of("run_1".to_owned(), None, (0, 1.5), &arrivals).unwrap();
        assert!((session.picked_up_ms - 7.0).abs() < 1e-9);
        assert_eq!((session.placed_us, session.agent_us, session.known_us), (1_027_000, 5_000, 7_000));
        assert_eq!((session.seen.as_slice(), session.deltas), (&[1, 2, 3, 4][..], 1));
        assert!(Session::of("run_1".to_owned(), None, (0, 1.5), &arrivals[..1]).is_err());
    }

    #[test]
    fn only_success_is_no_failure() {
        assert_eq!(failure(&serde_json::json!({"status": "succeeded"})), None);
        assert!(failure(&serde_json::json!({"status": "failed", "failure": {"kind": "oom"}})).is_some());
    }
}
