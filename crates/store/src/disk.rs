//! Waiting for the disk, once for many commits: whoever commits while the disk is being waited for waits for the next time,
//! together with everybody else who did.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// The write-ahead log of a database, and how much of it is known to be on the disk.
#[derive(Debug)]
pub(crate) struct Disk {
    log: PathBuf,
    /// Commits that were made and have to be on the disk.
    committed: AtomicU64,
    /// How many of them are.
    kept: AtomicU64,
    /// How often the disk was waited for.
    waits: AtomicU64,
    /// Held by whoever waits for the disk.
    turn: Mutex<()>,
}

impl Disk {
    /// For the database at `path`.
    pub(crate) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self {
            log: log.into(),
            committed: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            turn: Mutex::new(()),
        }
    }

    /// Waits until a commit that was made just before is on the disk.
    ///
    /// # Errors
    /// The disk refuses. The commit stands and may be lost by a power cut, which its caller is told as for any write of
    /// which nobody knows whether it was made.
    /// # Cancel safety
    /// Safe: nobody is told anything; the next one who waits takes this commit along.
    pub(crate) async fn keep(&self) -> io::Result<()> {
        let mine = self.committed.fetch_add(1, Ordering::SeqCst) + 1;
        self.reach(mine).await
    }

    /// Waits until every commit that has been made is on the disk: so that nobody is shown what a power cut may take back.
    ///
    /// # Errors
    /// As [`Disk::keep`].
    /// # Cancel safety
    /// As [`Disk::keep`].
    pub(crate) async fn settled(&self) -> io::Result<()> {
        self.reach(self.committed.load(Ordering::SeqCst)).await
    }

    async fn reach(&self, wanted: u64) -> io::Result<()> {
        if self.kept.load(Ordering::SeqCst) >= wanted {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        // Whoever had the turn before may have waited for this one as well.
        if self.kept.load(Ordering::SeqCst) >= wanted {
            return Ok(());
        }
        let committed = self.committed.load(Ordering::SeqCst);
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || sync(&log)).await.map_err(io::Error::other)??;
        self.waits.fetch_add(1, Ordering::SeqCst);
        self.kept.store(committed, Ordering::SeqCst);
        Ok(())
    }

    /// How often the disk was waited for.
    #[cfg(test)]
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::SeqCst)
    }
}

/// Has the log written to the disk. It is opened anew each time, since `SQLite` may make another one; no lock of `SQLite`'s
/// is on it that closing it could take away. One that is gone was folded into the database, which `SQLite` syncs itself.
fn sync(log: &Path) -> io::Result<()> {
    match File::open(log) {
        Ok(file) => file.sync_data(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_commits_at_once_wait_for_the_disk_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("caisson.db");
        std::fs::write(directory.path().join("caisson.db-wal"), "frames").unwrap();
        let disk = Disk::of(&path);
        let all = (0..50).map(|_| disk.keep());
        for kept in futures_util::future::join_all(all).await {
            kept.unwrap();
        }
        assert_eq!(disk.kept.load(Ordering::SeqCst), 50);
        assert!((1..=3).contains(&disk.waits()), "{}", disk.waits());
        disk.settled().await.unwrap();
        assert!(disk.waits() <= 3, "nothing was left to wait for");
    }

    #[tokio::test]
    async fn one_commit_after_another_waits_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::of(&directory.path().join("caisson.db"));
        for waits in 1..=3 {
            disk.keep().await.unwrap();
            assert_eq!(disk.waits(), waits);
        }
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_told_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        // A log below a file cannot be opened.
        let disk = Disk::of(&file.join("caisson.db"));
        assert!(disk.keep().await.is_err());
        assert_eq!(disk.kept.load(Ordering::SeqCst), 0);
        assert!(disk.settled().await.is_err(), "the commit is not on the disk yet");
    }
}
