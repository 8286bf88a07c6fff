//! When the shims had the agents' lines, read off the host's side of their journals: a shim writes each line down before it
//! sends it. The kernel's own time of the write counts, whenever it is read here. It is no finer than a tick of the kernel, at
//! most 10 ms, and early rather than late.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use caisson_domain::protocol::{JournalBody, JournalRecord};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use serde_json::Value;
use tokio::time::MissedTickBehavior;

/// Where a server keeps its sandboxes' directories, below its state directory.
const SANDBOXES: &str = "sandboxes";
/// Where a sandbox's journal is, below its own directory.
const JOURNAL: &str = "journal";
/// Ending of the files of a journal.
const SEGMENT: &str = ".jsonl";
/// Time between two looks for new journals: less than an agent takes until its first line.
const LOOK: Duration = Duration::from_millis(50);
/// Time between two looks at what the kernel tells. Lines that are written within it seem to be written together.
const TICK: Duration = Duration::from_millis(2);
/// Room for what the kernel tells at once, in bytes.
const EVENTS_BYTES: usize = 64 * 1024;

/// When each line was written, in Unix microseconds, by the line's own id.
#[derive(Debug, Clone, Default)]
pub(super) struct Stamps(Arc<Mutex<HashMap<String, i64>>>);

impl Stamps {
    /// Notes a line of a journal that was written then.
    fn note(&self, line: &[u8], at_us: i64) {
        let Ok(record) = serde_json::from_slice::<JournalRecord>(line) else { return };
        let JournalBody::Line { line } = record.body else { return };
        if let Some(id) = serde_json::from_str::<Value>(&line).ok().as_ref().and_then(id_of) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_insert(at_us);
        }
    }

    /// When this line of the agent was written.
    pub(super) fn of(&self, line: &Value) -> Option<i64> {
        let stamps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stamps.get(id_of(line)?).copied()
    }
}

fn id_of(line: &Value) -> Option<&str> {
    line["uuid"].as_str()
}

/// A journal's file, as far as it was read.
#[derive(Debug)]
struct Segment {
    file: File,
    /// The beginning of a line.
    begun: Vec<u8>,
}

/// Watches the journals below a state directory.
#[derive(Debug)]
pub(super) struct Journals {
    kernel: OwnedFd,
    sandboxes: PathBuf,
    /// What is watched.
    directories: HashMap<i32, PathBuf>,
    segments: HashMap<PathBuf, Segment>,
    stamps: Stamps,
}

impl Journals {
    /// Begins, before the first run.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let kernel = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self {
            kernel,
            sandboxes: state_dir.join(SANDBOXES),
            directories: HashMap::new(),
            segments: HashMap::new(),
            stamps: Stamps::default(),
        })
    }

    /// What it finds, while it watches and afterwards.
    pub(super) fn stamps(&self) -> Stamps {
        self.stamps.clone()
    }

    /// Watches until it is dropped.
    ///
    /// # Errors
    /// The kernel lost events or watches nothing more, or a journal cannot be read.
    pub(super) async fn watch(mut self) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(LOOK);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    for (watch, name) in told(&self.kernel)? {
                        if let Some(directory) = self.directories.get(&watch).cloned() {
                            self.read(&directory.join(name))?;
                        }
                    }
                }
                _ = looks.tick() => self.look()?,
            }
        }
    }

    /// Looks for new journals. A sandbox's directory has a file system of its own, which is mounted after it was made: the kernel
    /// tells nothing of that.
    fn look(&mut self) -> anyhow::Result<()> {
        let Ok(sandboxes) = std::fs::read_dir(&self.sandboxes) else { return Ok(()) };
        for sandbox in sandboxes {
            let journal = sandbox?.path().join(JOURNAL);
            if !self.directories.values().any(|known| *known == journal) && journal.is_dir() {
                self.enter(journal)?;
            }
        }
        Ok(())
    }

    /// Watches a journal, and reads what is there already.
    fn enter(&mut self, journal: PathBuf) -> anyhow::Result<()> {
        let flags = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::ONLYDIR;
        let watch = match inotify::add_watch(&self.kernel, &journal, flags) {
            // It is gone again.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            watch => watch.map_err(io::Error::from)?,
        };
        for entry in std::fs::read_dir(&journal)? {
            self.read(&entry?.path())?;
        }
        self.directories.insert(watch, journal);
        Ok(())
    }

    /// Reads what was added to a file.
    fn read(&mut self, path: &Path) -> anyhow::Result<()> {
        if !path.as_os_str().as_bytes().ends_with(SEGMENT.as_bytes()) {
            return Ok(());
        }
        if !self.segments.contains_key(path) {
            match File::open(path) {
                Ok(file) => self.segments.insert(path.to_owned(), Segment { file, begun: Vec::new() }),
                // It is acknowledged and gone; whoever misses a line of it says so.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error).context("a journal cannot be read"),
            };
        }
        let segment = self.segments.get_mut(path).context("a file that was just opened")?;
        // Of the time before the reading: what is written meanwhile then seems older than it is, and its way longer.
        let about = segment.file.metadata()?;
        let at_us = about.mtime() * 1_000_000 + about.mtime_nsec() / 1000;
        segment.file.read_to_end(&mut segment.begun)?;
        while let Some(end) = segment.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = segment.begun.drain(..=end).collect();
            self.stamps.note(&line, at_us);
        }
        Ok(())
    }
}

/// What the kernel has to tell: in which watch, and about which name.
fn told(kernel: &OwnedFd) -> anyhow::Result<Vec<(i32, PathBuf)>> {
    let mut buffer = vec![MaybeUninit::uninit(); EVENTS_BYTES];
    let mut reader = Reader::new(kernel, &mut buffer);
    let mut told = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                anyhow::ensure!(
                    !event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                    "the kernel lost events"
                );
                let name = event.file_name().map_or(&[][..], CStr::to_bytes);
                told.push((event.wd(), PathBuf::from(std::ffi::OsStr::from_bytes(name))));
                if reader.is_buffer_empty() {
                    return Ok(told);
                }
            }
            Err(error) if error == rustix::io::Errno::AGAIN => return Ok(told),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::measuring::clock::wall_us;

    fn record(id: &str) -> String {
        let line = json!({"type": "assistant", "uuid": id}).to_string();
        let run = "run_01a215045aed75499f4a1dd06e0fbad7";
        json!({"run": run, "attempt": 1, "kind": "line", "data": {"line": line}}).to_string()
    }

    #[tokio::test]
    async fn a_line_is_stamped_with_the_time_of_its_writing_wherever_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let journals = Journals::open(directory.path()).unwrap();
        let stamps = journals.stamps();
        let before_us = wall_us();
        let writing = async {
            for sandbox in ["sbx_1", "sbx_2"] {
                let journal = directory.path().join(SANDBOXES).join(sandbox).join(JOURNAL);
                std::fs::create_dir_all(&journal).unwrap();
                let mut file = File::create(journal.join("00000000000000000000.jsonl")).unwrap();
                let text = record(sandbox) + "\n" + &record(&format!("{sandbox}-later")) + "\n";
                // In two pieces, in the middle of a line.
                let (first, second) = text.split_at(text.len() / 2 + 5);
                file.write_all(first.as_bytes()).unwrap();
                tokio::time::sleep(LOOK * 3).await;
                file.write_all(second.as_bytes()).unwrap();
                let of = |id: &str| stamps.of(&json!({"uuid": id}));
                while of(&format!("{sandbox}-later")).is_none() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                assert!(of(&format!("{sandbox}-later")).unwrap() - of(sandbox).unwrap() >= 40_000);
            }
        };
        tokio::select! {
            watched = journals.watch() => panic!("it ended: {watched:?}"),
            written = timeout(Duration::from_secs(10), writing) => written.unwrap(),
        }
        let first_us = stamps.of(&json!({"uuid": "sbx_1"})).unwrap();
        assert!((before_us - 10_000..=wall_us()).contains(&first_us), "{before_us} {first_us}");
        assert_eq!(stamps.of(&json!({"uuid": "sbx_3"})), None);
        assert_eq!(stamps.of(&json!({})), None);
    }
}
