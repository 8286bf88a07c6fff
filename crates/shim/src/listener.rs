//! Reads the agent's output: each line is journaled for the run that goes on before anybody acts on it.

use std::sync::{Arc, Mutex, PoisonError};

use caisson_claude::{Delta, Line, parse};
use caisson_domain::event::DeltaKind;
use caisson_domain::limits::JOURNAL_LINE_BYTES;
use caisson_domain::protocol::{DeltaItem, JournalBody};
use caisson_domain::run::cut;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::agent::Heard;
use crate::approvals::Approvals;
use crate::deltas::Deltas;
use crate::journal::WriteError;
use crate::latecomers::Latecomers;
use crate::lines::{Lines, RawLine};
use crate::recorder::Recorder;
use crate::servers::Questions;

/// What the agent's lines are for: a run.
pub(crate) struct Purpose {
    pub(crate) recorder: Recorder,
    pub(crate) approvals: Approvals,
    pub(crate) deltas: Arc<Deltas>,
}

/// What the agent's lines are for now. Between two runs they are for nobody, and dropped.
#[derive(Clone)]
pub(crate) struct Purposes(Arc<Mutex<Option<Arc<Purpose>>>>);

impl Purposes {
    pub(crate) fn new(purpose: Purpose) -> Self {
        Self(Arc::new(Mutex::new(Some(Arc::new(purpose)))))
    }

    /// From the next line on they are for this, or for nobody.
    pub(crate) fn change(&self, purpose: Option<Purpose>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = purpose.map(Arc::new);
    }

    fn now(&self) -> Option<Arc<Purpose>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads the agent's output as long as there is any.
pub(crate) struct Listener {
    pub(crate) purposes: Purposes,
    pub(crate) moved: Arc<Mutex<Instant>>,
    pub(crate) questions: Questions,
    pub(crate) latecomers: Latecomers,
    pub(crate) hear: mpsc::Sender<Heard>,
}

impl Listener {
    pub(crate) async fn listen(self, stdout: impl AsyncRead + Unpin) {
        let mut lines = Lines::new(stdout);
        while let Some(raw) = lines.next().await {
            *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let Some(purpose) = self.purposes.now() else { continue };
            let line = if raw.cut_bytes == 0 { parse(&raw.bytes) } else { Line::NotJson };
            if line.is_delta() {
                purpose.pass_on(line);
                continue;
            }
            if is_main_answer(&line) {
                purpose.deltas.clear();
            }
            let heard = match self.take_in(raw, &line, &purpose).await {
                Ok(Whose::Drivers) => Heard::Line(Box::new(line)),
                Ok(Whose::Nobodys) => continue,
                Err(error) => Heard::Unwritten(error),
            };
            let lost = matches!(heard, Heard::Unwritten(_));
            if self.hear.send(heard).await.is_err() || lost {
                return;
            }
        }
    }
}

/// Whom a line is for, beside the journal.
enum Whose {
    Drivers,
    Nobodys,
}

impl Listener {
    /// Journals a line, unless it answers a question of the shim's own, and has it heard by whoever does not wait for it.
    async fn take_in(&self, raw: RawLine, line: &Line, purpose: &Purpose) -> Result<Whose, WriteError> {
        if self.questions.are_answered_by(line) {
            return Ok(Whose::Drivers);
        }
        if self.latecomers.heard(line, &purpose.recorder).await? {
            return Ok(Whose::Nobodys);
        }
        purpose.recorder.write(record(raw, line)).await?;
        purpose.approvals.heard(line, &purpose.recorder).await?;
        Ok(Whose::Drivers)
    }
}

impl Purpose {
    /// Deltas of the agent itself go to live readers; those of its subagents would only mix with them.
    fn pass_on(&self, line: Line) {
        if let Line::StreamDelta(delta) = line
            && delta.parent_tool_use_id.is_none()
        {
            let (kind, text) = match delta.delta {
                Delta::Text(text) => (DeltaKind::Text, text),
                Delta::Thinking(text) => (DeltaKind::Thinking, text),
                Delta::Other { .. } => return,
            };
            self.deltas.push(DeltaItem { kind, message_id: delta.message_id, block: delta.block, text });
        }
    }
}

fn is_main_answer(line: &Line) -> bool {
    matches!(line, Line::Assistant(assistant) if assistant.parent_tool_use_id.is_none())
}

/// The record of a line: as it is if it is a JSON object and whole.
fn record(raw: RawLine, line: &Line) -> JournalBody {
    let cut_bytes = raw.cut_bytes;
    let decoded = match String::from_utf8(raw.bytes) {
        Ok(line_text) if *line != Line::NotJson => return JournalBody::Line { line: line_text },
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    // A byte that is no text becomes three.
    let text = cut(&decoded, JOURNAL_LINE_BYTES);
    let cut_bytes = cut_bytes + (decoded.len() - text.len()) as u64;
    JournalBody::Text { text: text.to_owned(), cut_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_domain::id::RunId;
    use caisson_domain::limits::JOURNAL_BATCH_BYTES;
    use caisson_domain::protocol::JournalRecord;

    #[test]
    fn a_line_is_kept_as_it_is_only_if_it_is_json_and_whole() {
        let of = |bytes: &[u8], cut_bytes| {
            let raw = RawLine { bytes: bytes.to_vec(), cut_bytes };
            let line = if cut_bytes == 0 { parse(bytes) } else { Line::NotJson };
            record(raw, &line)
        };
        let json = r#"{"b" : 1, "a":2}"#;
        assert_eq!(of(json.as_bytes(), 0), JournalBody::Line { line: json.to_owned() });
        assert_eq!(of(b"[1]", 0), JournalBody::Text { text: "[1]".to_owned(), cut_bytes: 0 });
        assert_eq!(of(b"{\"a\":\"x", 7), JournalBody::Text { text: "{\"a\":\"x".to_owned(), cut_bytes: 7 });
        assert_eq!(of(b"\xff", 0), JournalBody::Text { text: "\u{fffd}".to_owned(), cut_bytes: 0 });
        let JournalBody::Text { text, cut_bytes } = of(&vec![0xff; JOURNAL_LINE_BYTES], 0) else { panic!() };
        assert!(text.len() <= JOURNAL_LINE_BYTES && text.len() > JOURNAL_LINE_BYTES - 3);
        assert_eq!(text.len() as u64 + cut_bytes, 3 * JOURNAL_LINE_BYTES as u64);
    }

    #[test]
    fn the_longest_line_with_every_byte_escaped_fits_into_a_batch() {
        let raw = RawLine { bytes: vec![1; JOURNAL_LINE_BYTES], cut_bytes: u64::MAX };
        let body = record(raw, &Line::NotJson);
        let whole = JournalRecord { run: RunId::new(1, [0; 10]), attempt: i64::MAX, body };
        let bytes = serde_json::to_vec(&whole).unwrap().len();
        assert!(bytes > 6 * JOURNAL_LINE_BYTES && bytes < JOURNAL_BATCH_BYTES);
    }
}
