//! Where bubblewrap finds what it is to show.
//!
//! A server that is root drops to the session's uid before bubblewrap starts, and that uid may not pass the directories
//! above a session's own, which are the server's alone. So the supervisor shows them to it in a mount namespace of its own,
//! below one directory that the rest of the machine sees unchanged. A server that is not root has the sandbox's uid, and
//! bubblewrap goes by the sources themselves.
//!
//! Either way the supervisor goes on in a mount namespace in which nothing appears any more: by itself bubblewrap takes over what the
//! host mounts later below a directory that it shows, and not read-only.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use caisson_domain::id::{SandboxId, SessionId};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid};

use super::mountinfo::Mount;
use super::order::Shown;
use crate::VOLUMES_DIR;

/// A directory that every system has (Filesystem Hierarchy Standard 3.0) and bubblewrap has no other use for.
const STAGE: &str = "/mnt";
/// Room for the names of what is staged.
const STAGE_OPTIONS: &str = "mode=0755,size=256k";

/// Where the sources of an order's binds are for bubblewrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// At their own places.
    Direct(Vec<PathBuf>),
    /// Below [`STAGE`], by their numbers.
    Private,
}

impl Stage {
    /// Puts the sources where the sandbox's uid finds them. The process must have one thread only, and goes on in a mount
    /// namespace of its own; if it is not root, in a user namespace as well, in which it is still who it was. As root it lets go of
    /// the volumes of other sandboxes there; only a server that is root has any.
    ///
    /// # Errors
    /// A source is gone, or this process may not mount.
    pub(crate) fn prepare(binds: &[Shown], as_root: bool) -> io::Result<Self> {
        let (uid, gid) = (geteuid(), getegid());
        let namespaces = if as_root { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
        unshare(namespaces | CloneFlags::CLONE_NEWNS)?;
        if !as_root {
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
        }
        mount_plain(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        if !as_root {
            return Ok(Self::Direct(binds.iter().map(|shown| PathBuf::from(&shown.source)).collect()));
        }
        // Opened before the stage is there: a source may lie below it.
        let sources = binds.iter().map(hold).collect::<io::Result<Vec<_>>>()?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), STAGE, Some("tmpfs"), flags, Some(STAGE_OPTIONS))?;
        for (index, (shown, source)) in binds.iter().zip(&sources).enumerate() {
            let place = place(index);
            if shown.is_file {
                fs::write(&place, [])?;
            } else {
                fs::create_dir(&place)?;
            }
            let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&from), &place, None::<&str>, flags, None::<&str>)?;
        }
        mount_plain(Path::new(STAGE), flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        let_go()?;
        Ok(Self::Private)
    }

    /// Where the source of a bind is.
    pub(crate) fn of(&self, index: usize) -> PathBuf {
        match self {
            Self::Direct(sources) => sources[index].clone(),
            Self::Private => place(index),
        }
    }
}

fn place(index: usize) -> PathBuf {
    Path::new(STAGE).join(index.to_string())
}

fn hold(shown: &Shown) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(shown.source.as_str(), flags, Mode::empty())
        .map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", shown.source)))
}

/// Unmounts, in this namespace alone, the volumes of all sandboxes: a copy of somebody else's mount would keep it in use for
/// as long as this sandbox lives. What of this sandbox's own is staged has a mount of its own.
fn let_go() -> io::Result<()> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    for (point, device) in loop_mounts(&mounts).into_iter().rev() {
        let image = fs::read_to_string(Path::new("/sys/block").join(device).join("loop/backing_file"));
        if point.starts_with(STAGE) || !image.is_ok_and(|image| is_volume(Path::new(image.trim_end()))) {
            continue;
        }
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It went with one above it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Where loop devices are mounted, and which; pure.
fn loop_mounts(mountinfo: &[u8]) -> Vec<(PathBuf, String)> {
    let read = |mount: Mount| {
        let device = mount.source.to_str()?.strip_prefix("/dev/")?.to_owned();
        device.starts_with("loop").then_some((mount.place, device))
    };
    Mount::all(mountinfo).into_iter().filter_map(read).collect()
}

/// Whether an image is a volume of a Caisson server, this one or another on the same machine.
fn is_volume(image: &Path) -> bool {
    let in_volumes = image.parent().and_then(Path::file_name).is_some_and(|name| name == VOLUMES_DIR);
    let name = image.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    in_volumes && (name.parse::<SessionId>().is_ok() || name.parse::<SandboxId>().is_ok())
}

fn mount_plain(target: &Path, flags: MsFlags) -> io::Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_volumes_of_servers_are_let_go_of() {
        let (session, sandbox) = (SessionId::new(1, [1; 10]), SandboxId::new(1, [2; 10]));
        for name in [session.as_str(), sandbox.as_str()] {
            assert!(is_volume(Path::new(&format!("/srv/caisson/volumes/{name}.img"))));
            assert!(!is_volume(Path::new(&format!("/srv/caisson/other/{name}.img"))));
        }
        assert!(!is_volume(Path::new("/var/lib/volumes/disk.img")) && !is_volume(Path::new("")));
    }

    #[test]
    fn loop_mounts_are_read_and_others_are_not() {
        let text = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            42 27 7:0 / /s/ses rw,nosuid shared:1 - ext4 /dev/loop0 rw\n\
            43 27 7:1 / /s/with\\040space rw - ext4 /dev/loop1 rw\n\
            44 27 0:9 / /t rw - tmpfs tmpfs rw\n";
        let expected = [("/s/ses", "loop0"), ("/s/with space", "loop1")];
        assert_eq!(loop_mounts(text), expected.map(|(place, name)| (place.into(), name.to_owned())));
    }
}
