//! Version 2: one hierarchy. Processes live only in groups that have no groups below them, so whoever has a delegated group moves
//! into one below it first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::super::mountinfo::Mount;
use super::{Does, PERIOD_MICROS, keyed, named, quota_micros, read_number, refused, writable, write};
use crate::{ResourceLimits, SandboxUsage};

/// What sandboxes need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// CPU weight of a sandbox, and of all together below the root (usual is 100): half of the server's, so that the server answers
/// while sandboxes work.
const WEIGHT: &str = "50";
/// The group into which a server moves itself.
const OWN: &str = "server";
/// The group below the root of a server that is root and has none delegated.
const ROOT_GROUP: &str = "caisson";
/// How systemd marks a group that it delegates; the second since its version 251 (its `CGROUP_DELEGATION.md`).
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];
/// Every group but the root of all has this file (cgroups(7)).
const NOT_OF_ROOT: &str = "cgroup.type";

/// The server that looks for a group.
#[derive(Debug)]
pub(super) struct Server<'a> {
    /// Its process; 0 for the one that asks.
    pub(super) pid: u32,
    /// The text of its `/proc/…/cgroup`.
    pub(super) groups: &'a str,
    pub(super) owns: Owns,
    pub(super) needs: &'a [&'a str],
    pub(super) does: Does,
}

/// By what a server knows that the group it is in was given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owns {
    /// It is not root: whoever gave it the group made it writable to it.
    Writable,
    /// It is root, and systemd, which would undo what it does to any other group, marks those that it gives away. It must be in one
    /// below already (`DelegateSubgroup=`, since systemd 254): systemd starts a service in the marked group else, which the kernel
    /// refuses as long as sandboxes have groups beside it, and the server would not come up again while they live.
    Marked,
    /// It is root, and nobody else arranges groups here.
    All,
}

/// The group below which sandboxes get theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) base: PathBuf,
    /// What is weaker so than it could be, for people.
    pub(super) weakness: Option<String>,
}

impl<'a> Server<'a> {
    /// This process.
    pub(super) fn own(groups: &'a str, does: Does) -> Self {
        let owns = match (nix::unistd::geteuid().is_root(), Path::new("/run/systemd/system").is_dir()) {
            (false, _) => Owns::Writable,
            // Its presence says that systemd runs the machine (sd_booted(3)).
            (true, true) => Owns::Marked,
            (true, false) => Owns::All,
        };
        Self { pid: 0, groups, owns, needs: &CONTROLLERS, does }
    }

    /// The group below which sandboxes can get theirs: in the one given to this server, so that its limits bound them too, else
    /// below the root of all.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn find(&self, mounts: &[Mount]) -> Result<Found, String> {
        let mount =
            mounts.iter().find(|mount| mount.kind == "cgroup2").ok_or("the kernel has no control groups")?;
        let own = self.groups.lines().find_map(|line| line.strip_prefix("0::"));
        let own = own.ok_or("this process is in no control group")?;
        let top = &mount.place;
        self.has_controllers(top).map_err(|error| format!("version 2 cannot be used: {error}"))?;
        let own = Path::new(own).strip_prefix(&mount.root).map(|below| top.join(below));
        let reason = match own.as_deref().map(|own| self.delegated(own, top)) {
            Ok(Ok(base)) => return Ok(Found { base, weakness: None }),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its own group is not seen from here".to_owned(),
        };
        let base = self
            .below_root(top)
            .map_err(|error| format!("no control group is delegated to this server: {reason}; {error}"))?;
        // Whoever is in the root itself has no limits that could bound anything.
        let bounded = own.is_ok_and(|own| own != *top);
        let weakness = bounded.then(|| {
            format!("limits on this server's own control group do not bound its sandboxes, which are in {}: {reason}", base.display())
        });
        Ok(Found { base, weakness })
    }

    /// A group that was given to this server: it moves into one below, and hands the controllers on to the others.
    fn delegated(&self, own: &Path, top: &Path) -> io::Result<PathBuf> {
        // Moved already, by this server or by systemd's `DelegateSubgroup=`.
        let above = if own.file_name().is_some_and(|name| name == OWN) { own.parent() } else { None };
        let mut candidates = [above, Some(own)].into_iter().flatten();
        let base = candidates.find(|group| group.starts_with(top) && self.is_given(group));
        let base = base.ok_or_else(|| io::Error::other(format!("{} is not given to it", own.display())))?;
        self.has_controllers(base)?;
        let leaf = base.join(OWN);
        if own == leaf {
            self.delegate(base)?;
            return Ok(base.to_owned());
        }
        if self.owns == Owns::Marked {
            return Err(io::Error::other(format!(
                "systemd could not start it again in {} while sandboxes live; that needs DelegateSubgroup=server, which systemd has since 254",
                base.display()
            )));
        }
        if self.does == Does::Look {
            self.could_move(base)?;
            return Ok(base.to_owned());
        }
        let made = make_directory(&leaf)?;
        let pid = self.pid.to_string();
        let moved = write(&leaf.join("cgroup.procs"), &pid).and_then(|()| self.delegate(base));
        if let Err(error) = moved {
            // Others are in the group as well, or it may not be changed: everything is as it was.
            write(&base.join("cgroup.procs"), &pid).ok();
            if made == Made::Now {
                fs::remove_dir(&leaf).ok();
            }
            return Err(error);
        }
        Ok(base.to_owned())
    }

    /// Whether the server could move out of its group into one below: the kernel refuses that where others are in it as well.
    fn could_move(&self, base: &Path) -> io::Result<()> {
        writable(base)?;
        self.delegate(base)?;
        let file = base.join("cgroup.procs");
        let own = if self.pid == 0 { std::process::id() } else { self.pid }.to_string();
        let processes = fs::read_to_string(&file).map_err(|error| named(&error, &file))?;
        if processes.lines().all(|process| process == own) {
            return Ok(());
        }
        Err(named(&io::ErrorKind::ResourceBusy.into(), &base.join("cgroup.subtree_control")))
    }

    fn is_given(&self, group: &Path) -> bool {
        let writable = || {
            ["", "cgroup.procs", "cgroup.subtree_control"]
                .iter()
                .all(|file| access(&group.join(file), AccessFlags::W_OK).is_ok())
        };
        let marked = |mark: &str| {
            let mut value = [0; 1];
            rustix::fs::getxattr(group, mark, &mut value).is_ok_and(|length| value[..length] == *b"1")
        };
        let given = match self.owns {
            Owns::Writable => writable(),
            Owns::Marked => MARKS.iter().any(|mark| marked(mark)),
            Owns::All => true,
        };
        given && group.join(NOT_OF_ROOT).exists()
    }

    /// The group of servers that are root, right below the root that is seen.
    fn below_root(&self, top: &Path) -> io::Result<PathBuf> {
        let base = top.join(ROOT_GROUP);
        if self.does == Does::Look {
            return self.could_be_below_root(top, &base).map(|()| base);
        }
        let made = make_directory(&base)?;
        let ready = self
            .delegate(top)
            .and_then(|()| self.delegate(&base))
            .and_then(|()| write(&base.join("cpu.weight"), WEIGHT));
        if let Err(error) = ready {
            if made == Made::Now {
                fs::remove_dir(&base).ok();
            }
            return Err(error);
        }
        Ok(base)
    }

    fn could_be_below_root(&self, top: &Path, base: &Path) -> io::Result<()> {
        self.delegate(top)?;
        if !base.exists() {
            return writable(top);
        }
        self.delegate(base)?;
        let weight = base.join("cpu.weight");
        if weight.exists() { writable(&weight) } else { Ok(()) }
    }

    fn has_controllers(&self, group: &Path) -> io::Result<()> {
        let file = group.join("cgroup.controllers");
        let available = fs::read_to_string(&file).map_err(|error| named(&error, &file))?;
        match self.needs.iter().find(|name| !names(&available, name)) {
            Some(missing) => {
                Err(io::Error::other(format!("{} has no controller {missing}", group.display())))
            }
            None => Ok(()),
        }
    }

    /// Hands the controllers on to the groups below one, or looks whether it may: all at once, so that the kernel does so with all
    /// or none.
    fn delegate(&self, group: &Path) -> io::Result<()> {
        let file = group.join("cgroup.subtree_control");
        let has = fs::read_to_string(&file).map_err(|error| named(&error, &file))?;
        let missing: Vec<_> =
            self.needs.iter().filter(|name| !names(&has, name)).map(|name| format!("+{name}")).collect();
        match self.does {
            _ if missing.is_empty() => Ok(()),
            Does::Arrange => write(&file, &missing.join(" ")),
            Does::Look => writable(&file),
        }
    }
}

/// Whether a list of controllers has this one.
fn names(list: &str, controller: &str) -> bool {
    list.split_whitespace().any(|name| name == controller)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Now,
    Before,
}

fn make_directory(directory: &Path) -> io::Result<Made> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(Made::Now),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Made::Before),
        Err(error) => Err(named(&error, directory)),
    }
}

/// Limits a group.
pub(super) fn limit(directory: &Path, limits: &ResourceLimits) -> io::Result<()> {
    write(&directory.join("memory.max"), &limits.memory_bytes.to_string())?;
    // Kernels without swap lack the file.
    let swap = directory.join("memory.swap.max");
    if swap.exists() {
        write(&swap, "0")?;
    }
    write(&directory.join("pids.max"), &limits.pids.to_string())?;
    write(&directory.join("cpu.weight"), WEIGHT)?;
    write(&directory.join("cpu.max"), &format!("{} {PERIOD_MICROS}", quota_micros(limits)))
}

/// The group of a process, by its `/proc/PID/cgroup`.
pub(super) fn within(mounts: &[Mount], groups: &str) -> Option<PathBuf> {
    let mount = mounts.iter().find(|mount| mount.kind == "cgroup2")?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(mount.place.join(Path::new(path).strip_prefix(&mount.root).ok()?))
}

/// What a group uses now.
pub(super) fn usage(directory: &Path) -> io::Result<SandboxUsage> {
    let cache = fs::read_to_string(directory.join("memory.stat"))?;
    let cache = keyed(&cache, "inactive_file").unwrap_or(0);
    let cpu = fs::read_to_string(directory.join("cpu.stat"))?;
    Ok(SandboxUsage {
        memory_bytes: read_number(&directory.join("memory.current"))?.saturating_sub(cache),
        // Since Linux 5.19.
        memory_peak_bytes: read_number(&directory.join("memory.peak")).ok(),
        cpu_micros: keyed(&cpu, "usage_usec").unwrap_or(0),
        pids: read_number(&directory.join("pids.current"))?,
        pids_refused: refused(directory),
    })
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
