//! The journal: every record of a run is written to a file before it is sent, and sent until the gateway has
//! acknowledged it. It is sent from this process's own memory, which nothing else in the sandbox can change; see [`files`]
//! for what the files are good for.

mod files;
mod segments;
pub(crate) mod sender;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_domain::limits::{JOURNAL_BATCH_BYTES, JOURNAL_BYTES};
use caisson_domain::protocol::JournalRecord;
use tokio::sync::{Notify, watch};

use crate::diagnostics::say;
use files::Files;
pub(crate) use files::WriteError;

/// How often a record is tried again on a full disk: acknowledgements free some of it.
const DISK_TRIES: u32 = 20;
/// Time between two such tries, in milliseconds.
const DISK_WAIT_MS: u64 = 100;

/// The journal, open.
#[derive(Debug)]
pub(crate) struct Journal {
    state: Mutex<State>,
    written: Notify,
    acknowledged: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    files: Files,
    /// Local offset behind the last acknowledged byte.
    acknowledged: u64,
    /// The lines behind it.
    lines: VecDeque<Vec<u8>>,
    /// What is added to a local offset to give the gateway's: not 0 only when the two journals do not fit together.
    shift: i64,
    waiting_for_room: u32,
    room_bytes: u64,
}

/// What the sender sends next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Offset of its first byte, as the gateway counts.
    pub(crate) offset: u64,
    /// Whole lines.
    pub(crate) lines: Vec<u8>,
}

impl Journal {
    /// Begins a journal in a directory that has none.
    ///
    /// # Errors
    /// That of the operating system.
    pub(crate) fn open(directory: &Path) -> io::Result<Arc<Self>> {
        Self::open_bounded(directory, JOURNAL_BYTES)
    }

    fn open_bounded(directory: &Path, room_bytes: u64) -> io::Result<Arc<Self>> {
        let files = Files::open(directory)?;
        let lines = VecDeque::new();
        let state = State { files, acknowledged: 0, lines, shift: 0, waiting_for_room: 0, room_bytes };
        let (acknowledged, _) = watch::channel(0);
        Ok(Arc::new(Self { state: Mutex::new(state), written: Notify::new(), acknowledged }))
    }

    /// Writes a record and lets it be sent; answers the offset behind it.
    ///
    /// Waits while [`JOURNAL_BYTES`] are not acknowledged: whoever produces records stops meanwhile.
    ///
    /// # Errors
    /// [`WriteError`] when the disk stays full or fails.
    ///
    /// # Cancel safety
    /// The record was either written or not.
    pub(crate) async fn append(&self, record: &JournalRecord) -> Result<u64, WriteError> {
        let mut line = serde_json::to_vec(record).map_err(|error| WriteError::Other(error.into()))?;
        line.push(b'\n');
        let mut acknowledged = self.acknowledged.subscribe();
        let mut waiting = None;
        let mut disk_tries = 0;
        loop {
            match self.write(&line) {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => {
                    waiting.get_or_insert_with(|| Waiting::new(self));
                    // The channel's other end is in self.
                    let _open = acknowledged.changed().await;
                }
                Err(WriteError::Full) if disk_tries < DISK_TRIES => {
                    disk_tries += 1;
                    tokio::time::sleep(Duration::from_millis(DISK_WAIT_MS)).await;
                }
                Err(error) => {
                    say(format_args!("cannot write a record: {error}"));
                    return Err(error);
                }
            }
        }
    }

    /// Writes a line and answers the offset behind it; none if there is no room.
    fn write(&self, line: &[u8]) -> Result<Option<u64>, WriteError> {
        let mut state = self.lock();
        if state.unacknowledged() + line.len() as u64 > state.room_bytes {
            return Ok(None);
        }
        state.files.append(line)?;
        state.lines.push_back(line.to_vec());
        let end = state.files.end();
        drop(state);
        self.written.notify_one();
        Ok(Some(end))
    }

    /// Whether somebody waits for room: the agent's silence is then the journal's.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().waiting_for_room > 0
    }

    /// Waits until the gateway has stored everything before `offset`.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn acknowledged(&self, offset: u64) {
        let mut acknowledged = self.acknowledged.subscribe();
        // The sender of the channel is in self.
        let _open = acknowledged.wait_for(|stored| *stored >= offset).await;
    }

    /// Waits until the gateway has stored everything.
    pub(crate) async fn flushed(&self) {
        let end = self.lock().files.end();
        self.acknowledged(end).await;
    }

    /// Keeps a piece of the disk free for the next run's last records. Failing is no fault: then the disk is full now,
    /// and the run says so.
    pub(crate) fn reserve(&self) {
        if let Err(error) = self.lock().files.reserve() {
            say(format_args!("cannot keep room for a run's last records: {error}"));
        }
    }

    /// Gives that piece free.
    pub(crate) fn release(&self) {
        say("the room for a run's last records is used");
        if let Err(error) = self.lock().files.release() {
            say(format_args!("cannot free the room for a run's last records: {error}"));
        }
    }

    /// Waits until there is something to send, and gives all of it up to [`JOURNAL_BATCH_BYTES`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next_batch(&self) -> Batch {
        loop {
            let written = self.written.notified();
            {
                let state = self.lock();
                if !state.lines.is_empty() {
                    let offset = state.acknowledged.saturating_add_signed(state.shift);
                    return Batch { offset, lines: state.first_lines(JOURNAL_BATCH_BYTES) };
                }
            }
            written.await;
        }
    }

    /// Takes in how much the gateway has stored; whether that is news.
    ///
    /// An offset of which nothing is here means that the two journals do not fit together, for instance because one
    /// side was set back: then what is not acknowledged is sent again from where the gateway stands.
    pub(crate) fn acknowledge(&self, stored: u64) -> bool {
        let mut state = self.lock();
        let local = stored.checked_add_signed(-state.shift);
        let Some((local, whole)) = local.and_then(|local| Some((local, state.lines_before(local)?))) else {
            state.shift = stored.cast_signed() - state.acknowledged.cast_signed();
            say(format_args!("the gateway stores the journal from offset {stored}, which is not in it"));
            return true;
        };
        let news = local != state.acknowledged;
        state.acknowledged = local;
        state.lines.drain(..whole);
        if let Err(error) = state.files.forget_before(local) {
            say(format_args!("cannot delete a part of the journal that is stored: {error}"));
        }
        drop(state);
        self.acknowledged.send_replace(local);
        news
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn unacknowledged(&self) -> u64 {
        self.files.end() - self.acknowledged
    }

    /// The first lines, together at most `bytes` long, but at least one.
    fn first_lines(&self, bytes: usize) -> Vec<u8> {
        let mut first = Vec::new();
        for line in &self.lines {
            if !first.is_empty() && first.len() + line.len() > bytes {
                break;
            }
            first.extend_from_slice(line);
        }
        first
    }

    /// How many whole lines end at `offset`; none if no line begins or ends there.
    fn lines_before(&self, offset: u64) -> Option<usize> {
        let mut end = self.acknowledged;
        let ends = self.lines.iter().map(|line| {
            end += line.len() as u64;
            end
        });
        std::iter::once(self.acknowledged).chain(ends).position(|end| end == offset)
    }
}

/// Somebody who waits for room.
struct Waiting<'a> {
    journal: &'a Journal,
}

impl<'a> Waiting<'a> {
    fn new(journal: &'a Journal) -> Self {
        journal.lock().waiting_for_room += 1;
        Self { journal }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.journal.lock().waiting_for_room -= 1;
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
