//! Version 2: one hierarchy. Processes live only in groups that have no groups below them, so whoever has a delegated group moves
//! into one below it first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::Mount;
use super::{PERIOD_MICROS, keyed, named, quota_micros, read_number, write};
use crate::{ResourceLimits, SandboxUsage};

/// What sandboxes need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// CPU weight of a sandbox, and of all together below the root (usual is 100): half of the server's, so that the server answers
/// while sandboxes work.
const WEIGHT: &str = "50";
/// The group into which a server moves itself.
const OWN: &str = "server";
/// The group of a server that is root and has none delegated.
const ROOT_GROUP: &str = "caisson";

/// The group below which sandboxes can get theirs.
///
/// # Errors
/// Why there is none, for people.
pub(super) fn find(mounts: &[Mount], own: &str) -> Result<PathBuf, String> {
    let mount =
        mounts.iter().find(|mount| mount.kind == "cgroup2").ok_or("the kernel has no control groups")?;
    let own =
        own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("this process is in no control group")?;
    let own = own.trim_start_matches('/');
    let own = Path::new("/")
        .join(own)
        .strip_prefix(&mount.root)
        .map_or_else(|_| mount.place.clone(), |below| mount.place.join(below));
    let available = fs::read_to_string(mount.place.join("cgroup.controllers")).unwrap_or_default();
    if let Some(missing) =
        CONTROLLERS.iter().find(|name| !available.split_whitespace().any(|has| has == **name))
    {
        return Err(format!("version 2 has no controller {missing} here"));
    }
    let by_root = || {
        let base = mount.place.join(ROOT_GROUP);
        make_directory(&base)
            .and_then(|()| delegate(&mount.place))
            .and_then(|()| delegate(&base))
            .and_then(|()| write(&base.join("cpu.weight"), WEIGHT))
            .map(|()| base)
    };
    by_root()
        .or_else(|_| delegated(&own, &mount.place))
        .map_err(|error| format!("no control group is delegated to this server: {error}"))
}

/// A group that was given to this process: it moves into one below, and hands the controllers on to the others.
fn delegated(own: &Path, top: &Path) -> io::Result<PathBuf> {
    // Moved already, by this process or by systemd's `DelegateSubgroup=`.
    let base =
        if own.file_name().is_some_and(|name| name == OWN) { own.parent().unwrap_or(own) } else { own };
    if !base.starts_with(top) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let leaf = base.join(OWN);
    make_directory(&leaf)?;
    write(&leaf.join("cgroup.procs"), "0")?;
    delegate(base)?;
    Ok(base.to_owned())
}

/// Hands the controllers on to the groups below one.
fn delegate(group: &Path) -> io::Result<()> {
    let file = group.join("cgroup.subtree_control");
    let has = fs::read_to_string(&file).map_err(|error| named(&error, &file))?;
    for controller in CONTROLLERS {
        if !has.split_whitespace().any(|name| name == controller) {
            write(&file, &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(named(&error, directory)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a group with its limits.
pub(super) fn make(directory: &Path, limits: &ResourceLimits) -> io::Result<()> {
    make_directory(directory)?;
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
    })
}
