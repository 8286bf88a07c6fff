//! Version 1: a hierarchy for each controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::mountinfo::Mount;
use super::{Does, NAME, PERIOD_MICROS, keyed, named, quota_micros, read_number, refused, writable, write};
use crate::{ResourceLimits, SandboxUsage};

/// CPU weight of all sandboxes together (usual is 1024): half of what a process outside has, so that the server answers while they
/// work.
const SHARES: &str = "512";

/// Most that buffers of TCP and UDP sockets may take, in bytes, beside the memory: the machine has one pool of them for all.
const SOCKET_BYTES: u64 = 64 * 1024 * 1024;

/// The root of each hierarchy that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roots {
    memory: PathBuf,
    pids: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
}

impl Roots {
    /// The hierarchies among these mounts; none unless there are all.
    pub(super) fn find(mounts: &[Mount]) -> Option<Self> {
        let of = |controller: &str| {
            mounts.iter().find(|mount| has(mount, controller)).map(|mount| mount.place.clone())
        };
        Some(Self { memory: of("memory")?, pids: of("pids")?, cpu: of("cpu")?, cpuacct: of("cpuacct")? })
    }

    /// Makes the directory above all groups, or looks whether it is or could be there.
    pub(super) fn usable(&self, does: Does) -> io::Result<()> {
        for root in [&self.memory, &self.pids, &self.cpu, &self.cpuacct] {
            let directory = root.join(NAME);
            if does == Does::Look && !directory.exists() {
                writable(root)?;
                continue;
            }
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(named(&error, &directory));
                }
                Ok(()) | Err(_) => {}
            }
            // One that is another user's is not ours to use.
            writable(&directory)?;
        }
        let shares = self.cpu.join(NAME).join("cpu.shares");
        match does {
            Does::Arrange => write(&shares, SHARES),
            Does::Look if shares.exists() => writable(&shares),
            Does::Look => Ok(()),
        }
    }

    pub(super) fn group(&self, name: &str) -> Directories {
        let of = |root: &Path| root.join(NAME).join(name);
        Directories {
            memory: of(&self.memory),
            pids: of(&self.pids),
            cpu: of(&self.cpu),
            cpuacct: of(&self.cpuacct),
        }
    }
}

fn has(mount: &Mount, controller: &str) -> bool {
    mount.kind == "cgroup" && mount.options.iter().any(|option| option == controller)
}

/// The directories of one group. Two of them are the same where two controllers share a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Directories {
    pub(super) memory: PathBuf,
    pids: PathBuf,
    cpu: PathBuf,
    cpuacct: PathBuf,
}

impl Directories {
    /// Those of a process, by its `/proc/PID/cgroup`; none unless there are all.
    pub(super) fn within(mounts: &[Mount], groups: &str) -> Option<Self> {
        let of = |controller: &str| {
            let mount = mounts.iter().find(|mount| has(mount, controller))?;
            let path = groups.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers.split(',').any(|one| one == controller).then_some(path)
            })?;
            Some(mount.place.join(Path::new(path).strip_prefix(&mount.root).ok()?))
        };
        Some(Self { memory: of("memory")?, pids: of("pids")?, cpu: of("cpu")?, cpuacct: of("cpuacct")? })
    }

    /// Each once.
    pub(super) fn all(&self) -> Vec<&Path> {
        let mut found: Vec<&Path> = Vec::new();
        for directory in [&self.memory, &self.pids, &self.cpu, &self.cpuacct] {
            if !found.contains(&directory.as_path()) {
                found.push(directory);
            }
        }
        found
    }

    pub(super) fn limit(&self, limits: &ResourceLimits) -> io::Result<()> {
        let memory = limits.memory_bytes.to_string();
        write(&self.memory.join("memory.limit_in_bytes"), &memory)?;
        // Memory and swap together: no swap beside it. Kernels without accounting of swap lack the file.
        let swap = self.memory.join("memory.memsw.limit_in_bytes");
        if swap.exists() {
            write(&swap, &memory)?;
        }
        // Sockets' buffers count as memory from version 2 on. Kernels that do not count them at all lack the file.
        let sockets = self.memory.join("memory.kmem.tcp.limit_in_bytes");
        if sockets.exists() {
            write(&sockets, &SOCKET_BYTES.min(limits.memory_bytes).to_string())?;
        }
        write(&self.pids.join("pids.max"), &limits.pids.to_string())?;
        write(&self.cpu.join("cpu.cfs_period_us"), &PERIOD_MICROS.to_string())?;
        write(&self.cpu.join("cpu.cfs_quota_us"), &quota_micros(limits).to_string())
    }

    pub(super) fn usage(&self) -> io::Result<SandboxUsage> {
        let cache = fs::read_to_string(self.memory.join("memory.stat"))?;
        let cache = keyed(&cache, "total_inactive_file").unwrap_or(0);
        Ok(SandboxUsage {
            memory_bytes: read_number(&self.memory.join("memory.usage_in_bytes"))?.saturating_sub(cache),
            memory_peak_bytes: read_number(&self.memory.join("memory.max_usage_in_bytes")).ok(),
            cpu_micros: read_number(&self.cpuacct.join("cpuacct.usage"))? / 1000,
            pids: read_number(&self.pids.join("pids.current"))?,
            pids_refused: refused(&self.pids),
        })
    }
}
