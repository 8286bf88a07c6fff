//! Limits of one sandbox by control groups, where they can be had.
//!
//! Version 1 has a hierarchy for each controller, and a server that is root makes its groups right below their roots. Version 2 has
//! one for all: a server makes its groups in the one that was delegated to it (systemd's `Delegate=yes`); where none was, one
//! that is root makes them below the root.

mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};
use serde::{Deserialize, Serialize};

use super::mountinfo::Mount;
use crate::{ResourceLimits, SandboxUsage};

/// Name of the directory above all groups of version 1, and beginning of the names of those of version 2.
const NAME: &str = "caisson";
/// The period over which CPU time is counted, in microseconds: the kernel's own default.
const PERIOD_MICROS: u64 = 100_000;
/// How often a group is looked at again until it is empty or gone.
const ROUNDS: u32 = 500;
/// Time between two such looks.
const ROUND: Duration = Duration::from_millis(10);

/// What is done about groups that are not yet as sandboxes need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// They are made so.
    Arrange,
    /// It is looked whether they could be made so, as far as that can be known before; nothing is changed.
    Look,
}

/// Which control groups this process can use for its sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Controllers {
    /// Version 1: the root of each hierarchy that is used.
    V1(v1::Roots),
    /// Version 2: the group below which sandboxes get theirs.
    V2 {
        /// Its directory.
        base: PathBuf,
        /// What is weaker so than it could be, for people.
        weakness: Option<String>,
    },
    /// None, and why.
    None {
        /// For people.
        reason: String,
    },
}

impl Controllers {
    /// Looks at this machine. What it arranges may be a group for this process itself, as version 2 wants it.
    pub(crate) fn find(does: Does) -> Self {
        let mounts = Mount::all(&fs::read("/proc/self/mountinfo").unwrap_or_default());
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let v1 = match v1::Roots::find(&mounts) {
            Some(roots) => match roots.usable(does) {
                Ok(()) => return Self::V1(roots),
                Err(error) => Some(format!("version 1 cannot be used: {error}")),
            },
            None => None,
        };
        match v2::Server::own(&own, does).find(&mounts) {
            Ok(v2::Found { base, weakness }) => Self::V2 { base, weakness },
            Err(error) => Self::None { reason: v1.unwrap_or(error) },
        }
    }

    /// The group of this name, whether it exists or not; none where there are no groups.
    pub(crate) fn group(&self, name: &str) -> Option<Group> {
        match self {
            Self::V1(roots) => Some(Group::V1(roots.group(name))),
            Self::V2 { base, .. } => Some(Group::V2 { directory: base.join(format!("{NAME}-{name}")) }),
            Self::None { .. } => None,
        }
    }

    /// Makes a group with its limits; none where there are no groups. A group that cannot have all its limits is removed again.
    ///
    /// # Errors
    /// The kernel refuses; [`io::ErrorKind::AlreadyExists`] if a group of this name is there, which stays as it is: it has the
    /// limits, and perhaps the processes, of somebody else.
    pub(crate) fn make(&self, name: &str, limits: &ResourceLimits) -> io::Result<Option<Group>> {
        let Some(group) = self.group(name) else { return Ok(None) };
        group.create()?;
        let limited = match &group {
            Group::V1(directories) => directories.limit(limits),
            Group::V2 { directory } => v2::limit(directory, limits),
        };
        match limited {
            Ok(()) => Ok(Some(group)),
            Err(error) => {
                // What is left is found by its name when the sandbox is destroyed.
                group.remove().ok();
                Err(error)
            }
        }
    }
}

/// The control group of one sandbox, found again by whoever reads its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Group {
    /// A directory in each hierarchy.
    V1(v1::Directories),
    /// One directory.
    V2 {
        /// Where it is.
        directory: PathBuf,
    },
}

impl Group {
    /// The group in which a process of this machine is, if it is one of that name; none if it is in another one, has ended, or has
    /// its number in another place than this process sees.
    pub(crate) fn of_process(pid: i64, name: &str) -> Option<Self> {
        let mounts = Mount::all(&fs::read("/proc/self/mountinfo").ok()?);
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Self::within(&mounts, &groups, name)
    }

    fn within(mounts: &[Mount], groups: &str, name: &str) -> Option<Self> {
        let found = v1::Directories::within(mounts, groups).map(Self::V1);
        let found = found.or_else(|| v2::within(mounts, groups).map(|directory| Self::V2 { directory }))?;
        let is_named = |directory: &&Path| directory.to_string_lossy().contains(name);
        found.directories().iter().all(is_named).then_some(found)
    }

    fn directories(&self) -> Vec<&Path> {
        match self {
            Self::V1(directories) => directories.all(),
            Self::V2 { directory } => vec![directory],
        }
    }

    /// Makes its directories, all or none.
    fn create(&self) -> io::Result<()> {
        let directories = self.directories();
        for (made, directory) in directories.iter().enumerate() {
            if let Err(error) = fs::create_dir(directory) {
                for directory in &directories[..made] {
                    fs::remove_dir(directory).ok();
                }
                return Err(named(&error, directory));
            }
        }
        Ok(())
    }

    /// Puts a process into it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        for directory in self.directories() {
            write(&directory.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// How many of its processes the kernel killed for want of memory; 0 if it is gone.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match self {
            Self::V1(directories) => directories.memory.join("memory.oom_control"),
            Self::V2 { directory } => directory.join("memory.events"),
        };
        fs::read_to_string(file).ok().and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0)
    }

    /// What it uses now.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn usage(&self) -> io::Result<SandboxUsage> {
        match self {
            Self::V1(directories) => directories.usage(),
            Self::V2 { directory } => v2::usage(directory),
        }
    }

    /// Every process in it.
    fn processes(&self) -> io::Result<Vec<i32>> {
        let mut found = Vec::new();
        for directory in self.directories() {
            match fs::read_to_string(directory.join("cgroup.procs")) {
                Ok(text) => found.extend(text.lines().filter_map(process)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Kills everything in it; blocks until it is empty, for a bounded time.
    ///
    /// # Errors
    /// It did not become empty.
    pub(crate) fn kill(&self) -> io::Result<()> {
        // Nothing in it can start anything from here on; a group that is gone has no such file.
        for directory in self.directories() {
            let most = directory.join("pids.max");
            if most.exists() {
                write(&most, "0").ok();
            }
            // All at once, also where version 2 does not count processes; since Linux 5.14.
            let all = directory.join("cgroup.kill");
            if all.exists() {
                write(&all, "1").ok();
            }
        }
        for _ in 0..ROUNDS {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes {
                // A process that is in the group is the sandbox's, whatever its number was before.
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
            sleep(ROUND);
        }
        Err(io::Error::other("processes of the sandbox's control group did not end though they were killed"))
    }

    /// Removes it; one that is gone is fine. Blocks for a bounded time, since the kernel may still count what has just ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for directory in self.directories() {
            let mut left = ROUNDS;
            loop {
                match fs::remove_dir(directory) {
                    Ok(()) => break,
                    Err(error) if is_gone(&error) => break,
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy && left > 0 => {
                        left -= 1;
                        sleep(ROUND);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// Whether a group was removed, before its file was opened or after.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// A line of `cgroup.procs`. A process that this one cannot see has the number 0, which a signal takes for one's own group.
fn process(line: &str) -> Option<i32> {
    line.parse().ok().filter(|pid| *pid > 0)
}

/// CPU time of each period, in microseconds. Always written, also if it is more than the machine has: how many cores this
/// process itself may use says nothing about a group outside its own.
fn quota_micros(limits: &ResourceLimits) -> u64 {
    u64::from(limits.cpu_millis) * PERIOD_MICROS / 1000
}

/// Writes one value to a file of the kernel's, with the file's name in the error.
fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::write(file, text).map_err(|error| named(&error, file))
}

/// Whether this process may write to a file or in a directory of the kernel's.
fn writable(place: &Path) -> io::Result<()> {
    access(place, AccessFlags::W_OK).map_err(|error| named(&error.into(), place))
}

fn named(error: &io::Error, file: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

fn read_number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file).map_err(|error| named(&error, file))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{}: not a number", file.display())))
}

/// How often a process or thread was refused in a group, by the file that the kernel has for it since Linux 4.3.
fn refused(directory: &Path) -> Option<u64> {
    keyed(&fs::read_to_string(directory.join("pids.events")).ok()?, "max")
}

/// The number behind a word at the beginning of a line.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
