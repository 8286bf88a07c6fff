//! One opener at a time: a database is made, switched to its log and migrated once, whoever comes first.
//!
//! `SQLite` itself does not make openers wait here: the switch to the write-ahead log fails at once while another holds
//! a lock, and of two that find no table both make them.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Longest wait for whoever opens the database now, in milliseconds: as long as a migration may take.
const TURN_MS: u64 = 60_000;
/// Pause between two looks whether it is our turn, in milliseconds.
const LOOK_MS: u64 = 10;

/// The right to open the database; given back when dropped, also by a process that dies.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits until nobody else opens the database at `path`. The lock is on the directory, so that no file is left beside
    /// the database.
    ///
    /// # Errors
    /// The directory cannot be locked, or somebody has been opening for longer than [`TURN_MS`].
    /// # Cancel safety
    /// Safe: nothing is held before it answers.
    pub(crate) async fn take(path: &Path) -> io::Result<Self> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let file = File::open(directory.unwrap_or(Path::new(".")))?;
        let taken = async {
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => return Err(error),
                }
                tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
            }
        };
        let late =
            || io::Error::new(io::ErrorKind::TimedOut, "another process has been opening it for too long");
        tokio::time::timeout(Duration::from_millis(TURN_MS), taken).await.map_err(|_| late())??;
        Ok(Self { _lock: file })
    }
}

/// Makes the file before the driver does, which would let everybody read it; the log files get the same mode. One that
/// is there is not touched: closing any handle of it takes away the locks that this process has on it.
pub(crate) fn make_private_file(path: &Path) -> io::Result<()> {
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_and_given_up_at_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("caisson.db");
        let first = Turn::take(&path).await.unwrap();
        let late = Turn::take(&path).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let (second, ()) = tokio::join!(Turn::take(&path), async move { drop(first) });
        second.unwrap();
    }
}
