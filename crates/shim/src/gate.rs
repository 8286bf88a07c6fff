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
use nix::errno::Errno;
use nix::libc::{O_CLOEXEC, O_NONBLOCK, O_PATH};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// How often an opened gate looks for somebody who had found the pipe's name and not yet opened it; the time between two looks doubles from
/// [`FIRST_LOOK`], to 8 seconds in all.
const LOOKS: u32 = 14;
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// A gate that is shut. Given up, it lets nobody else wait at it.
#[derive(Debug)]
pub(crate) struct Gate {
    path: PathBuf,
    pipe: File,
}

impl Gate {
    /// Shuts the gate for an agent whose directory of profiles this is. The agent has not been started.
    ///
    /// # Errors
    /// That of the operating system, for example if there is such a file already.
    pub(crate) fn shut(profiles: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(profiles)?;
        let path = profiles.join(ACTIVE_PROFILE);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let pipe = OpenOptions::new().read(true).custom_flags(O_PATH | O_CLOEXEC).open(&path)?;
        Ok(Self { path, pipe })
    }

    /// Opens the gate: there is no such file for whoever comes from now on, and it is empty for whoever waits.
    ///
    /// # Errors
    /// That of the operating system; whoever waits may wait on.
    ///
    /// # Cancel safety
    /// Given up, it may leave somebody waiting.
    pub(crate) async fn open(self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        let mut pause = FIRST_LOOK;
        for _ in 0..LOOKS {
            if self.let_through()? {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    /// Lets through who waits; whether anybody did.
    fn let_through(&self) -> io::Result<bool> {
        // Its name is gone, or may be another file's by now.
        let path = format!("/proc/self/fd/{}", self.pipe.as_raw_fd());
        match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // It is gone where the gate was opened.
        let _gone = fs::remove_file(&self.path);
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
        let profiles = home.path().join("a/b");
        let gate = Gate::shut(&profiles).unwrap();
        let path = profiles.join(ACTIVE_PROFILE);
        let waiting = waits_at(path.clone());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished(), "the gate is shut");
        gate.open().await.unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), "");
        assert_eq!(fs::read_to_string(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn who_had_found_the_name_and_opens_late_is_let_through() {
        let home = tempfile::tempdir().unwrap();
        let gate = Gate::shut(home.path()).unwrap();
        let late = home.path().join("late");
        fs::hard_link(home.path().join(ACTIVE_PROFILE), &late).unwrap();
        let coming = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            waits_at(late)
        };
        let (opened, waiting) = tokio::join!(gate.open(), coming);
        opened.unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), "");
    }

    #[test]
    fn a_gate_that_is_given_up_is_gone_and_one_that_is_there_is_told() {
        let home = tempfile::tempdir().unwrap();
        let gate = Gate::shut(home.path()).unwrap();
        assert_eq!(Gate::shut(home.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(gate);
        drop(Gate::shut(home.path()).unwrap());
    }
}
