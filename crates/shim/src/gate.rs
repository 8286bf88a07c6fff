//! Where an agent that is started early waits for its workspace.
//!
//! Claude Code 2.1.330 loads itself, reads on its main thread which profile is active ([`ACTIVE_PROFILE`]), and looks at its directory
//! and for instructions only behind that. A pipe in the place of that file holds it there, however fast the machine is and whatever else it
//! does: opening a pipe to read takes until somebody opens it to write.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_claude::ACTIVE_PROFILE;
use caisson_domain::protocol::places::STEERING;
use nix::errno::Errno;
use nix::libc::{O_CLOEXEC, O_NONBLOCK, O_PATH};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// How often an opened gate looks for somebody who had found the pipe's name and not yet opened it; the time between two looks doubles from
/// [`FIRST_LOOK`], to 8 seconds in all.
const LOOKS: u32 = 14;
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// Where the agent looks for profiles of its API. There are none.
pub(crate) fn profiles(home: &Path) -> PathBuf {
    home.join(STEERING).join("profiles")
}

/// A gate that is shut. Given up, it stays so until the home is cleared.
#[derive(Debug)]
pub(crate) struct Gate {
    path: PathBuf,
    pipe: File,
}

/// A gate that is open, with somebody waiting at it or about to.
#[derive(Debug)]
pub(crate) struct Opened(File);

impl Gate {
    /// Shuts the gate for an agent that is started in this home, which was cleared.
    ///
    /// # Errors
    /// That of the operating system, for example if there is such a file already.
    pub(crate) fn shut(home: &Path) -> io::Result<Self> {
        let profiles = profiles(home);
        DirBuilder::new().mode(0o700).recursive(true).create(&profiles)?;
        let path = profiles.join(ACTIVE_PROFILE);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let pipe = OpenOptions::new().read(true).custom_flags(O_PATH | O_CLOEXEC).open(&path)?;
        Ok(Self { path, pipe })
    }

    /// Opens the gate: for whoever comes from now on there is no such file. Who waits, waits on.
    ///
    /// # Errors
    /// That of the operating system.
    pub(crate) fn open(self) -> io::Result<Opened> {
        fs::remove_file(&self.path)?;
        Ok(Opened(self.pipe))
    }
}

impl Opened {
    /// Lets through who waits, and finds the file empty.
    ///
    /// # Errors
    /// That of the operating system; whoever waits may wait on.
    ///
    /// # Cancel safety
    /// Given up, it may leave somebody waiting.
    pub(crate) async fn let_through(self) -> io::Result<()> {
        let mut pause = FIRST_LOOK;
        for _ in 1..LOOKS {
            if self.lets_through()? {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.lets_through().map(drop)
    }

    /// Whether anybody waited.
    fn lets_through(&self) -> io::Result<bool> {
        // Its name is gone, or may be another file's by now.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits_at(path: PathBuf) -> std::thread::JoinHandle<io::Result<String>> {
        std::thread::spawn(move || fs::read_to_string(path))
    }

    #[tokio::test]
    async fn who_waits_is_let_through_and_who_comes_later_finds_nothing() {
        let home = tempfile::tempdir().unwrap();
        let gate = Gate::shut(home.path()).unwrap();
        let path = profiles(home.path()).join(ACTIVE_PROFILE);
        let waiting = waits_at(path.clone());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "the gate is shut");
        gate.open().unwrap().let_through().await.unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), "");
        assert_eq!(fs::read_to_string(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn who_had_found_the_name_and_opens_late_is_let_through() {
        let home = tempfile::tempdir().unwrap();
        let gate = Gate::shut(home.path()).unwrap();
        let late = home.path().join("late");
        fs::hard_link(profiles(home.path()).join(ACTIVE_PROFILE), &late).unwrap();
        let coming = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            waits_at(late)
        };
        let (opened, waiting) = tokio::join!(gate.open().unwrap().let_through(), coming);
        opened.unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), "");
    }

    #[test]
    fn a_gate_that_is_there_is_told_and_an_opened_one_touches_no_other() {
        let home = tempfile::tempdir().unwrap();
        let gate = Gate::shut(home.path()).unwrap();
        assert_eq!(Gate::shut(home.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let opened = gate.open().unwrap();
        let other = Gate::shut(home.path()).unwrap();
        drop(opened);
        other.open().unwrap();
    }
}
