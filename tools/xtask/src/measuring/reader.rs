//! Reads a run's live stream and stamps each message at the moment its bytes are there.

use std::time::Duration;

use anyhow::{Context, bail};
use caisson_domain::sse::{Message, Parser};
use serde_json::Value;
use testkit::api::Api;

use super::clock::{ms_between, parse_stamp, wall_us};

/// Longest silence of a stream; the server says something every few seconds.
const SILENCE: Duration = Duration::from_mins(1);

/// One message of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// When its last byte was there, Unix microseconds.
    pub(crate) at_us: i64,
    /// The message's kind.
    pub(crate) kind: String,
    /// Its data, as JSON text.
    pub(crate) data: String,
}

impl Arrival {
    fn new(at_us: i64, message: Message) -> Self {
        Self { at_us, kind: message.event.unwrap_or_default(), data: message.data }
    }

    /// The data.
    ///
    /// # Errors
    /// It is not JSON.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.data)
            .with_context(|| format!("a message of kind {} is not JSON", self.kind))
    }
}

/// Reads the stream of a run to its end, and hands each message to `look` as it comes.
///
/// # Errors
/// The stream breaks off, is silent for too long, or cannot be read.
pub(crate) async fn follow(
    api: &Api,
    run: &str,
    mut look: impl FnMut(&Arrival),
) -> anyhow::Result<Vec<Arrival>> {
    let mut response = api.open_events(run).await?;
    let mut parser = Parser::default();
    let mut arrivals = Vec::new();
    loop {
        let piece =
            tokio::time::timeout(SILENCE, response.chunk()).await.context("the event stream fell silent")?;
        let at_us = wall_us();
        let Some(piece) = piece? else { bail!("the event stream of run {run} broke off") };
        for message in parser.push(&piece)? {
            let arrival = Arrival::new(at_us, message);
            look(&arrival);
            let ended = arrival.kind == "end";
            arrivals.push(arrival);
            if ended {
                return Ok(arrivals);
            }
        }
    }
}

/// From the agent's own stamp on a line to its arrival, in milliseconds, for every line of the agent that is stamped.
///
/// # Errors
/// A message is not JSON.
pub(crate) fn stamped_line_latencies(arrivals: &[Arrival]) -> anyhow::Result<Vec<f64>> {
    Ok(stamped_lines(arrivals)?.into_iter().map(|(_, latency_ms)| latency_ms).collect())
}

/// The same, each with the moment of its arrival, in Unix microseconds.
///
/// # Errors
/// A message is not JSON.
pub(crate) fn stamped_lines(arrivals: &[Arrival]) -> anyhow::Result<Vec<(i64, f64)>> {
    let mut lines = Vec::new();
    for arrival in arrivals.iter().filter(|arrival| arrival.kind == "agent.line") {
        let event = arrival.json()?;
        let line = &event["data"];
        // A whole-nanosecond stamp is one that the stand-in for the agent took right before it wrote the line.
        let exact = line["stamp_ns"].as_i64().map(|nanos| nanos / 1000);
        let rounded = || line["timestamp"].as_str().and_then(parse_stamp);
        if let Some(stamp_us) = exact.or_else(rounded) {
            lines.push((arrival.at_us, ms_between(stamp_us, arrival.at_us)));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(at_us: i64, kind: &str, data: &str) -> Arrival {
        Arrival { at_us, kind: kind.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn only_stamped_lines_of_the_agent_count() {
        let arrivals = [
            arrival(
                5_000,
                "agent.line",
                r#"{"data": {"type": "user", "timestamp": "1970-01-01T00:00:00.003Z"}}"#,
            ),
            arrival(6_000, "agent.line", r#"{"data": {"type": "result"}}"#),
            arrival(7_000, "run.phase", r#"{"data": {"timestamp": "1970-01-01T00:00:00.003Z"}}"#),
            arrival(8_500, "agent.line", r#"{"data": {"stamp_ns": 8000000}}"#),
        ];
        let latencies = stamped_line_latencies(&arrivals).unwrap();
        assert_eq!(latencies.len(), 2);
        assert!((latencies[0] - 2.0).abs() < 1e-9 && (latencies[1] - 0.5).abs() < 1e-9);
        assert!(stamped_line_latencies(&[arrival(1, "agent.line", "x")]).is_err());
    }
}
