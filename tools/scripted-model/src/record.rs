//! The witness: what was asked and what was served, in memory and in a file.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::images::SeenImage;
use crate::usage::Usage;

/// Records kept in memory; the oldest go first. A log file keeps them all.
pub const MAX_RECORDS: usize = 10_000;

/// One request and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the request since the start of the server, from 1.
    pub seq: u64,
    /// When the request had come in wholly, Unix ms.
    pub at_ms: u64,
    /// When its reply ended, Unix ms; `None` while it goes on.
    pub ended_at_ms: Option<u64>,
    /// Method of the request.
    pub method: String,
    /// Path and query as they came.
    pub path: String,
    /// The `RUN` of a `/s/SCENARIO/RUN` prefix.
    pub run: Option<String>,
    /// Where in which scenario the reply stands; `None` for other requests than messages, and refused ones.
    pub script: Option<ScriptPlace>,
    /// The model asked for.
    pub model: Option<String>,
    /// Whether a streamed reply was asked for.
    pub stream: Option<bool>,
    /// Size of the request's body.
    pub body_bytes: u64,
    /// SHA-256 of the request's body, hexadecimal.
    pub body_sha256: String,
    /// The images that its messages carried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<SeenImage>,
    /// The key in `x-api-key`.
    pub x_api_key: Option<SeenKey>,
    /// The bearer token in `authorization`.
    pub authorization: Option<SeenKey>,
    /// The request's headers that matter, by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Status of the reply; `None` until a status is served.
    pub status: Option<u16>,
    /// Token counts that the client can know from the bytes served so far.
    pub usage: Option<Usage>,
    /// Whether `usage` is what a complete reply ends with.
    pub usage_final: bool,
    /// Bytes of the reply's body given to the connection, compressed where it is compressed.
    pub bytes_served: u64,
    /// How the reply ended.
    pub outcome: Outcome,
}

/// Where in a scenario a reply stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptPlace {
    /// Name of the scenario.
    pub scenario: String,
    /// Number of the prompt, from 1.
    pub prompt: usize,
    /// Replies to that prompt before this one.
    pub step: usize,
}

/// A key that a request carried. The key itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenKey {
    /// SHA-256 of the key, hexadecimal.
    pub sha256: String,
    /// Whether it is one of the required keys; `None` when none is required.
    pub matched: Option<bool>,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Open,
    /// Every byte was given to the connection; errors with a body count as complete too.
    Complete,
    /// The connection was closed on purpose.
    Cut,
    /// It stopped on purpose until the client went or the bound was reached.
    Stalled,
    /// No byte was sent on purpose until the client went or the bound was reached.
    Hung,
    /// The client went before the end.
    ClientGone,
    /// The server was stopped before the end.
    Stopped,
}

/// A line of the log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Whether the reply begins or has ended.
    pub event: LogEvent,
    /// The request as it stood then.
    #[serde(flatten)]
    pub record: Record,
}

/// Which of the two lines of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogEvent {
    /// Written before the first byte of the reply.
    Begin,
    /// Written when the reply has ended.
    End,
}

/// All records, shared by everything that serves.
#[derive(Debug)]
pub(crate) struct Witness {
    ring: Mutex<Ring>,
    file: Option<Mutex<File>>,
    file_failed: AtomicBool,
    changed: watch::Sender<()>,
    stopping: CancellationToken,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<Record>,
    last_seq: u64,
}

impl Ring {
    fn push(&mut self, mut record: Record) -> Record {
        self.last_seq += 1;
        record.seq = self.last_seq;
        if self.records.len() == MAX_RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
        record
    }

    fn replace(&mut self, record: &Record) {
        // Sequence numbers are gapless, so the distance from the newest is the position from the end.
        let from_end = usize::try_from(self.last_seq - record.seq).ok();
        let index = from_end.and_then(|from_end| self.records.len().checked_sub(from_end + 1));
        if let Some(place) = index.and_then(|index| self.records.get_mut(index)) {
            place.clone_from(record);
        }
    }
}

impl Witness {
    pub(crate) fn open(log: Option<&Path>, stopping: CancellationToken) -> std::io::Result<Arc<Self>> {
        let file = log.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
        Ok(Arc::new(Self {
            ring: Mutex::default(),
            file: file.map(Mutex::new),
            file_failed: AtomicBool::new(false),
            changed: watch::Sender::new(()),
            stopping,
        }))
    }

    /// Numbers a record, writes its first line and returns the guard that writes the last one.
    pub(crate) fn begin(self: &Arc<Self>, record: Record) -> Serving {
        let record = lock(&self.ring).push(record);
        self.write(LogEvent::Begin, &record);
        self.changed.send_replace(());
        Serving { witness: Arc::clone(self), record, if_dropped: Outcome::ClientGone }
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        lock(&self.ring).records.iter().cloned().collect()
    }

    /// How many records are no longer in memory.
    pub(crate) fn dropped(&self) -> u64 {
        let ring = lock(&self.ring);
        ring.last_seq - ring.records.len() as u64
    }

    /// Whether every line so far has been written.
    pub(crate) fn is_sound(&self) -> bool {
        !self.file_failed.load(Ordering::Relaxed)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn write(&self, event: LogEvent, record: &Record) {
        let Some(file) = &self.file else { return };
        // A short line into a local file: the witness must stand even if the process is killed right after.
        let written = serde_json::to_vec(&LogLine { event, record: record.clone() })
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                lock(file).write_all(&line)
            });
        if written.is_err() {
            self.file_failed.store(true, Ordering::Relaxed);
        }
    }
}

/// No code panics while it holds one of these locks, and a poisoned record is still worth reading.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reply under way. Dropping it before its end is how a client that went away is noticed.
#[derive(Debug)]
pub(crate) struct Serving {
    witness: Arc<Witness>,
    record: Record,
    if_dropped: Outcome,
}

impl Serving {
    pub(crate) fn seq(&self) -> u64 {
        self.record.seq
    }

    /// Notes the status before the head of the reply is given to the connection.
    pub(crate) fn status(&mut self, status: u16) {
        self.record.status = Some(status);
        self.publish();
    }

    /// Notes bytes given to the connection, and the counts they tell.
    pub(crate) fn sent(&mut self, bytes: usize, usage: Option<(Usage, bool)>) {
        self.record.bytes_served += bytes as u64;
        if let Some((usage, last)) = usage {
            self.record.usage = Some(usage);
            self.record.usage_final = last;
        }
        self.publish();
    }

    /// Says what it means if the reply is dropped from now on.
    pub(crate) fn expect_drop(&mut self, outcome: Outcome) {
        self.if_dropped = outcome;
    }

    /// Ends the record. Only the first call counts.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if self.record.outcome != Outcome::Open {
            return;
        }
        self.record.outcome = outcome;
        self.record.ended_at_ms = Some(unix_ms());
        self.witness.write(LogEvent::End, &self.record);
        self.publish();
    }

    fn publish(&self) {
        lock(&self.witness.ring).replace(&self.record);
        self.witness.changed.send_replace(());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let stopped = self.witness.stopping.is_cancelled();
        self.finish(if stopped { Outcome::Stopped } else { self.if_dropped });
    }
}

/// The wall clock, Unix ms.
pub(crate) fn unix_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a witness tells the real time; no decision rests on it")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            seq: 0,
            at_ms: 1,
            ended_at_ms: None,
            method: "POST".to_owned(),
            path: "/v1/messages".to_owned(),
            run: None,
            script: None,
            model: None,
            stream: None,
            body_bytes: 0,
            body_sha256: String::new(),
            images: Vec::new(),
            x_api_key: None,
            authorization: None,
            headers: BTreeMap::new(),
            status: None,
            usage: None,
            usage_final: false,
            bytes_served: 0,
            outcome: Outcome::Open,
        }
    }

    fn witness(log: Option<&Path>) -> Arc<Witness> {
        Witness::open(log, CancellationToken::new()).expect("a witness")
    }

    #[test]
    fn the_oldest_records_go_first_and_late_ends_find_their_place() {
        let witness = witness(None);
        let mut first = witness.begin(record());
        let mut second = witness.begin(record());
        for _ in 2..=MAX_RECORDS {
            witness.begin(record()).finish(Outcome::Complete);
        }
        let records = witness.records();
        assert_eq!((records.len(), records[0].seq, witness.dropped()), (MAX_RECORDS, 2, 1));
        second.finish(Outcome::Cut);
        first.finish(Outcome::Cut);
        let records = witness.records();
        assert_eq!((records[0].seq, records[0].outcome), (2, Outcome::Cut));
        assert!(records[1..].iter().all(|record| record.outcome == Outcome::Complete));
    }

    #[test]
    fn each_request_has_two_lines_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let witness = witness(Some(&path));
        let mut serving = witness.begin(record());
        serving.status(200);
        serving.sent(7, Some((Usage::default(), true)));
        serving.finish(Outcome::Complete);
        drop(serving);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<LogLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].event, lines[0].record.outcome), (LogEvent::Begin, Outcome::Open));
        assert_eq!((lines[1].event, lines[1].record.outcome), (LogEvent::End, Outcome::Complete));
        assert_eq!((lines[1].record.bytes_served, lines[1].record.usage_final), (7, true));
        assert_eq!(lines[1].record, witness.records()[0]);
    }

    #[test]
    fn a_dropped_reply_tells_why() {
        let stopping = CancellationToken::new();
        let witness = Witness::open(None, stopping.clone()).unwrap();
        drop(witness.begin(record()));
        let mut hung = witness.begin(record());
        hung.expect_drop(Outcome::Hung);
        drop(hung);
        let open = witness.begin(record());
        stopping.cancel();
        drop(open);
        let outcomes: Vec<Outcome> = witness.records().iter().map(|record| record.outcome).collect();
        assert_eq!(outcomes, [Outcome::ClientGone, Outcome::Hung, Outcome::Stopped]);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_told() {
        let full = witness(Some(Path::new("/dev/full")));
        assert!(full.is_sound());
        drop(full.begin(record()));
        assert!(!full.is_sound());
    }
}
