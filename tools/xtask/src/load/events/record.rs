//! Batches of a journal, as the shim would send them; pure.

use caisson_domain::id::RunId;
use caisson_domain::protocol::{Ending, JournalBody, JournalRecord, Outcome};
use caisson_domain::run::Phase;

use super::{BATCH_EVENTS, EVENT_BYTES};

/// Digits of an event's number.
const DIGITS: usize = 8;

/// The line of the agent with a number: [`EVENT_BYTES`] long.
pub(super) fn line(number: usize) -> String {
    let head = format!(r#"{{"type":"assistant","number":"{number:0DIGITS$}","text":""#);
    let fill = "x".repeat(EVENT_BYTES - head.len() - 2);
    format!(r#"{head}{fill}"}}"#)
}

/// What comes before the first line.
pub(super) fn start(run: &RunId, attempt: i64) -> anyhow::Result<Vec<u8>> {
    journal(run, attempt, [JournalBody::Phase { phase: Phase::Agent }, JournalBody::AgentStarted])
}

/// What comes behind the last one.
pub(super) fn end(run: &RunId, attempt: i64) -> anyhow::Result<Vec<u8>> {
    let result = Some("All events are sent.".to_owned());
    let outcome = Outcome { ending: Ending::Completed, result, head: None, pushed: false, kept: false };
    journal(run, attempt, [JournalBody::Finished(outcome)])
}

/// The batches of one session, one after another. Making one costs no more than writing its numbers.
pub(super) struct Lines {
    batch: Vec<u8>,
    /// Where the number of each line stands.
    places: Vec<usize>,
    next: usize,
}

impl Lines {
    pub(super) fn new(run: &RunId, attempt: i64) -> anyhow::Result<Self> {
        let one = journal(run, attempt, [JournalBody::Line { line: line(0) }])?;
        let zeros = "0".repeat(DIGITS);
        let text = String::from_utf8(one.clone())?;
        // The line's number stands behind the run's id, whose digits might be zeros as well.
        let behind = text.find("number").ok_or_else(|| anyhow::anyhow!("a line without a number"))?;
        let place = text[behind..].find(&zeros).ok_or_else(|| anyhow::anyhow!("a line without digits"))?;
        let places = (0..BATCH_EVENTS).map(|index| index * one.len() + behind + place).collect();
        Ok(Self { batch: one.repeat(BATCH_EVENTS), places, next: 0 })
    }

    /// The next batch.
    pub(super) fn next_batch(&mut self) -> Vec<u8> {
        for place in &self.places {
            let digits = format!("{:0DIGITS$}", self.next);
            self.batch[*place..place + DIGITS].copy_from_slice(digits.as_bytes());
            self.next += 1;
        }
        self.batch.clone()
    }
}

fn journal<const N: usize>(run: &RunId, attempt: i64, bodies: [JournalBody; N]) -> anyhow::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for body in bodies {
        serde_json::to_writer(&mut lines, &JournalRecord { run: run.clone(), attempt, body })?;
        lines.push(b'\n');
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_go_on_where_the_last_one_ended() {
        let run = RunId::new(0, [0; 10]);
        let mut lines = Lines::new(&run, 3).unwrap();
        for batch in 0..2 {
            let text = String::from_utf8(lines.next_batch()).unwrap();
            assert_eq!(text.lines().count(), BATCH_EVENTS);
            for (index, text) in text.lines().enumerate() {
                let record: JournalRecord = serde_json::from_str(text).unwrap();
                assert_eq!((&record.run, record.attempt), (&run, 3));
                let expected = line(batch * BATCH_EVENTS + index);
                assert_eq!(record.body, JournalBody::Line { line: expected });
            }
        }
    }

    #[test]
    fn a_line_is_json_of_the_wanted_length() {
        for number in [0, 99_999_999] {
            assert_eq!(line(number).len(), EVENT_BYTES);
            serde_json::from_str::<serde_json::Value>(&line(number)).unwrap();
        }
        assert_ne!(line(1), line(2));
    }
}
