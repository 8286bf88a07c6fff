//! Which process a number means: ids are used again, a start time beside them is not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A random text that is another one after each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Place of the start time behind the name in `/proc/<pid>/stat` (proc(5), field 22; the name is field 2).
const START_TIME: usize = 19;

/// One process of this machine, for as long as the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its id, as this server sees it.
    pub(crate) pid: i32,
    /// When it started, in the kernel's ticks.
    started: u64,
    /// Which run of the machine.
    boot: String,
}

impl Identity {
    /// Looks at a process that lives.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let (state, started) = stat(pid)?;
        if is_dead(state) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { pid, started, boot: fs::read_to_string(BOOT_ID)?.trim().to_owned() })
    }

    /// This process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub(crate) fn own() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// Whether it lives. One that has ended and was not waited for does not.
    pub(crate) fn is_alive(&self) -> bool {
        let same_boot = fs::read_to_string(BOOT_ID).is_ok_and(|boot| boot.trim() == self.boot);
        same_boot && stat(self.pid).is_ok_and(|(state, started)| started == self.started && !is_dead(state))
    }

    /// Holds on to it, so that its number cannot come to mean another one; none if it has ended.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub(crate) fn hold(&self) -> io::Result<Option<Held>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let held = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(held) => held,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after it is held: what has this start time now is what the descriptor means.
        Ok(self.is_alive().then_some(Held(held)))
    }
}

/// A process that is held on to.
#[derive(Debug)]
pub(crate) struct Held(OwnedFd);

impl Held {
    /// Sends a signal; one that has ended is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    /// # Cancel safety
    /// Safe: it only watches.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe code, for what does not own its descriptor; this one is owned by the watch"
        )]
        let watch = AsyncFd::with_interest(self.0.try_clone()?, Interest::READABLE)?;
        watch.readable().await.map(drop)
    }

    /// Waits for its end for so long; whether it came.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub(crate) async fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// State and start time of a process.
fn stat(pid: i32) -> io::Result<(u8, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be understood")))
}

/// The name may hold spaces and parentheses; nothing behind it does.
fn parse(text: &str) -> Option<(u8, u64)> {
    let (_, behind) = text.rsplit_once(')')?;
    let mut fields = behind.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state was field 0 behind the name.
    Some((state, fields.nth(START_TIME - 1)?.parse().ok()?))
}

/// Zombies and what is being removed.
fn is_dead(state: u8) -> bool {
    matches!(state, b'Z' | b'X' | b'x')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let text = "17 (a) S 1 (b)) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse(text), Some((b'R', 4711)));
        assert_eq!(parse("17 (a) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_number() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        for other in [
            Identity { started: own.started + 1, ..own.clone() },
            Identity { boot: "another".to_owned(), ..own.clone() },
            Identity { pid: i32::MAX, ..own.clone() },
        ] {
            assert!(!other.is_alive(), "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_held_process_is_signalled_and_waited_for_and_a_zombie_is_dead() {
        #[expect(clippy::disallowed_methods, reason = "a process to look at")]
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let held = identity.hold().unwrap().unwrap();
        assert!(!held.ended_within(Duration::from_millis(1)).await.unwrap());
        held.signal(Signal::KILL).unwrap();
        held.ended().await.unwrap();
        assert!(!identity.is_alive(), "it has ended and was not waited for");
        assert!(identity.hold().unwrap().is_none());
        held.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        held.signal(Signal::KILL).unwrap();
        assert!(Identity::of(identity.pid).is_err());
    }
}
