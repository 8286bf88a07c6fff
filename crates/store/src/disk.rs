//! Waiting for the disk, once for many commits: whoever commits while the disk is being waited for waits for the next time,
//! together with everybody else who did.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Mutex;

/// The write-ahead log of a database, and how much of it is known to be on the disk. Commits that have to be there are
/// numbered; one connection alone makes them, one after another.
#[derive(Debug)]
pub(crate) struct Disk {
    log: PathBuf,
    /// The last commit that was begun.
    announced: AtomicU64,
    /// The last one that is known to have ended, well or not.
    ended: AtomicU64,
    /// The last one that is on the disk, with all before it.
    kept: AtomicU64,
    /// How often the disk was waited for.
    waits: AtomicU64,
    /// Whether the kernel said that it could not write the log.
    broken: AtomicBool,
    /// Held by whoever waits for the disk.
    turn: Mutex<()>,
}

/// Why nothing more is acknowledged: the kernel tells of a failed write once and may drop the data, so that a later
/// `fdatasync` that succeeds says nothing about them, and frames behind a lost one are lost with it.
const BROKEN: &str =
    "the database's log could not be written to the disk; look at the disk and start the server again";

impl Disk {
    /// For the database at `path`.
    pub(crate) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self {
            log: log.into(),
            announced: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            turn: Mutex::new(()),
        }
    }

    /// Says that a commit is about to be made, and numbers it. From here on others may read what it holds.
    pub(crate) fn announce(&self) -> u64 {
        self.announced.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Says that no commit is under way, whatever became of those who waited for one.
    pub(crate) fn quiet(&self) {
        self.ended.fetch_max(self.announced.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Waits until a commit that has been made is on the disk.
    ///
    /// # Errors
    /// The disk refuses. The commit stands and may be lost by a power cut, which its caller is told as for any write of
    /// which nobody knows whether it was made. If it was the `fdatasync` that failed, every later call fails as well.
    /// # Cancel safety
    /// Safe: nobody is told anything; the next one who waits takes this commit along.
    pub(crate) async fn keep(&self, commit: u64) -> io::Result<()> {
        self.ended.fetch_max(commit, Ordering::SeqCst);
        self.reach(commit).await
    }

    /// Waits until everything that can be read is on the disk: so that nobody is shown what a power cut may take back.
    ///
    /// # Errors
    /// As [`Disk::keep`].
    /// # Cancel safety
    /// As [`Disk::keep`].
    pub(crate) async fn settled(&self) -> io::Result<()> {
        // A commit can be read before whoever makes it hears so: one that was only announced has to be waited for as well.
        self.reach(self.announced.load(Ordering::SeqCst)).await
    }

    /// Has the disk waited for if it was not since that commit. Whatever could be read before the call is then there, also
    /// of a commit that has not ended.
    async fn reach(&self, wanted: u64) -> io::Result<()> {
        if self.kept.load(Ordering::SeqCst) >= wanted {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        // Whoever had the turn before may have waited for this one as well.
        if self.kept.load(Ordering::SeqCst) >= wanted {
            return Ok(());
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other(BROKEN));
        }
        let ended = self.ended.load(Ordering::SeqCst);
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || sync(&log)).await.map_err(io::Error::other)? {
            Ok(()) => {}
            Err(Unsynced::Absent(error)) => return Err(error),
            Err(Unsynced::Lost(error)) => {
                self.broken.store(true, Ordering::SeqCst);
                tracing::error!(error = %error, "{BROKEN}");
                return Err(error);
            }
        }
        self.waits.fetch_add(1, Ordering::SeqCst);
        self.kept.store(ended, Ordering::SeqCst);
        Ok(())
    }

    /// How often the disk was waited for.
    #[cfg(test)]
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::SeqCst)
    }

    /// The last commit that is known to have ended.
    #[cfg(test)]
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// Keeps everybody else from waiting for the disk.
    #[cfg(test)]
    pub(crate) async fn take_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

/// Has the log written to the disk. It is opened anew each time, since `SQLite` may make another one; no lock of `SQLite`'s
/// is on it that closing it could take away. One that is gone was folded into the database, which `SQLite` syncs itself.
fn sync(log: &Path) -> Result<(), Unsynced> {
    match File::open(log) {
        Ok(file) => file.sync_data().map_err(Unsynced::Lost),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Unsynced::Absent(error)),
    }
}

/// Why the log is not on the disk.
#[derive(Debug)]
enum Unsynced {
    /// It could not be looked at; nothing was tried.
    Absent(io::Error),
    /// It could not be written.
    Lost(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn commit(disk: &Disk) -> io::Result<()> {
        let commit = disk.announce();
        disk.keep(commit).await
    }

    #[tokio::test]
    async fn many_commits_at_once_wait_for_the_disk_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("caisson.db");
        std::fs::write(directory.path().join("caisson.db-wal"), "frames").unwrap();
        let disk = Disk::of(&path);
        let all = (0..50).map(|_| commit(&disk));
        for kept in futures_util::future::join_all(all).await {
            kept.unwrap();
        }
        assert_eq!(disk.kept.load(Ordering::SeqCst), 50);
        assert!((1..=3).contains(&disk.waits()), "{}", disk.waits());
        let waits = disk.waits();
        disk.settled().await.unwrap();
        assert_eq!(disk.waits(), waits, "nothing was left to wait for");
    }

    #[tokio::test]
    async fn one_commit_after_another_waits_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::of(&directory.path().join("caisson.db"));
        for waits in 1..=3 {
            commit(&disk).await.unwrap();
            assert_eq!(disk.waits(), waits);
        }
    }

    #[tokio::test]
    async fn what_a_commit_under_way_shows_already_is_waited_for_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::of(&directory.path().join("caisson.db"));
        // Whoever makes it goes away before hearing that it is made.
        disk.announce();
        for waits in 1..=2 {
            disk.settled().await.unwrap();
            assert_eq!((disk.waits(), disk.kept.load(Ordering::SeqCst)), (waits, 0));
        }
        disk.quiet();
        disk.settled().await.unwrap();
        disk.settled().await.unwrap();
        assert_eq!((disk.waits(), disk.kept.load(Ordering::SeqCst)), (3, 1));
    }

    #[tokio::test]
    async fn a_log_that_could_not_be_written_is_never_acknowledged_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("caisson.db-wal");
        // The kernel refuses to sync this one.
        std::os::unix::fs::symlink("/dev/null", &log).unwrap();
        let disk = Disk::of(&directory.path().join("caisson.db"));
        assert!(commit(&disk).await.is_err());
        std::fs::remove_file(&log).unwrap();
        std::fs::write(&log, "frames").unwrap();
        for _ in 0..2 {
            assert!(commit(&disk).await.unwrap_err().to_string().contains("start the server again"));
            assert!(disk.settled().await.is_err());
        }
        assert_eq!((disk.kept.load(Ordering::SeqCst), disk.waits()), (0, 0));
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_opened_is_told_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        // A log below a file cannot be opened.
        let disk = Disk::of(&file.join("caisson.db"));
        assert!(commit(&disk).await.is_err());
        assert_eq!(disk.kept.load(Ordering::SeqCst), 0);
        assert!(disk.settled().await.is_err(), "the commit is not on the disk yet");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        disk.settled().await.unwrap();
        assert_eq!(disk.kept.load(Ordering::SeqCst), 1);
    }
}
