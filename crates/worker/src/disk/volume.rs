//! Volumes: file systems of a fixed size, each in an image file of the server's disk and mounted through a loop device.
//!
//! What is written into one comes out of its own size, so that nobody can fill the server's disk; the image is sparse and
//! costs what is in it. The loop device goes by itself with the last mount (`autoclear`), so there is nothing to detach,
//! whoever was killed when: a mount is found by its place, and an image by its name.
//!
//! Everything here blocks. Images and mount points lie in directories that only the server can write to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::syncfs;

use super::mounts::{self, Mounted};

/// Bytes of a volume for each file that it may hold: what bounds the number of files.
pub const BYTES_PER_FILE: u64 = 8 * 1024;
/// How long `mkfs.ext4` or `mount` may take, in seconds.
pub const TOOL_S: u64 = 30;
/// How often a volume that is still in use is tried to be unmounted before it is only detached, and the time between.
const BUSY_TRIES: u32 = 20;
const BUSY_WAIT: Duration = Duration::from_millis(50);
/// Most of what a program says that an error repeats, in bytes.
const SAID_BYTES: u64 = 500;
/// Where the programs are looked for; no variable of the environment is asked.
const SEARCH: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Nothing in it is a device or gives rights; what is deleted is given back to the server's disk. The tables of a new image
/// are zeros already, since it is sparse.
const OPTIONS: &str = "loop,nodev,nosuid,noatime,discard,noinit_itable";
/// Every volume's file system is named so, for whoever looks at a loop device.
const LABEL: &str = "caisson";
/// Least and most size of the journal of a file system that has one, in MiB; in between it is a sixty-fourth of the volume.
const JOURNAL_MIB: (u32, u32) = (4, 64);
const MIB: u64 = 1024 * 1024;

/// What is kept in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It outlives power failures.
    Lasting,
    /// It goes with its sandbox, so that it needs no journal of its own.
    Passing,
}

/// The programs that make volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeTools {
    mkfs: PathBuf,
    mount: PathBuf,
}

impl VolumeTools {
    /// Finds the programs; `None` if one is not installed.
    #[must_use]
    pub fn find() -> Option<Self> {
        let find =
            |name: &str| SEARCH.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        Some(Self { mkfs: find("mkfs.ext4")?, mount: find("mount")? })
    }
}

/// The volumes of one server: their images, and how they are made.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    tools: VolumeTools,
    images: PathBuf,
}

impl Volumes {
    /// Volumes whose images lie in `images`, an absolute directory without links that only the server can write to.
    pub(crate) fn new(tools: VolumeTools, images: PathBuf) -> Self {
        Self { tools, images }
    }

    /// Whether there is an image of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.image(name).symlink_metadata().is_ok()
    }

    /// Mounts the volume `name` at `point`, an empty directory, and makes it first if there is none. One that is mounted there already stays.
    ///
    /// # Errors
    /// What a program said, or [`io::ErrorKind::StorageFull`] if the server's disk has no room for an image.
    pub(crate) fn mount(&self, name: &str, point: &Path, (mib, kept): (u32, Kept)) -> io::Result<()> {
        if let Some(found) = mounted_at(point)? {
            return self.check(name, &found);
        }
        if !self.has(name) {
            self.make(name, mib, kept)?;
        }
        run(Tool::new(&self.tools.mount)
            .args(["-t", "ext4", "-o", OPTIONS])
            .path(&self.image(name))
            .path(point))?;
        match mounted_at(point)? {
            Some(found) => self.check(name, &found),
            None => Err(io::Error::other("mount(8) said that it had mounted a volume, and has not")),
        }
    }

    /// Removes the image of a volume that is not mounted; fine if there is none.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        remove_file(&self.half_made(name))?;
        remove_file(&self.image(name))
    }

    fn half_made(&self, name: &str) -> PathBuf {
        self.images.join(format!("{name}.new"))
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.join(format!("{name}.img"))
    }

    /// Makes an image under a name of its own first, so that a half-made one is never taken for a whole one.
    fn make(&self, name: &str, mib: u32, kept: Kept) -> io::Result<()> {
        let new = self.half_made(name);
        remove_file(&new)?;
        let bytes = u64::from(mib) * MIB;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.set_len(bytes)?;
        drop(file);
        let files = (bytes / BYTES_PER_FILE).to_string();
        let mut command = Tool::new(&self.tools.mkfs)
            .args(["-q", "-F", "-m", "0", "-b", "4096", "-L", LABEL, "-N", &files])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"]);
        command = match kept {
            Kept::Lasting => {
                let journal_mib = (mib / 64).clamp(JOURNAL_MIB.0, JOURNAL_MIB.1);
                command.args(["-J", &format!("size={journal_mib}")])
            }
            Kept::Passing => command.args(["-O", "^has_journal"]),
        };
        run(command.path(&new))?;
        fs::rename(&new, self.image(name))
    }

    /// Something else in a volume's place would be used as if it were bounded.
    fn check(&self, name: &str, found: &Mounted) -> io::Result<()> {
        let device = found.source.file_name().unwrap_or_default();
        let backing = Path::new("/sys/block").join(device).join("loop/backing_file");
        let image = fs::read_to_string(backing).unwrap_or_default();
        let fits = Path::new(image.trim_end_matches('\n')) == self.image(name)
            && ["nosuid", "nodev"].iter().all(|wanted| found.options.split(',').any(|has| has == *wanted));
        if fits {
            return Ok(());
        }
        let other = format!("{} is mounted at {} already", found.source.display(), found.point.display());
        Err(io::Error::new(io::ErrorKind::AlreadyExists, other))
    }
}

/// Removes a file; fine if there is none.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes to the disk what a volume still has in memory, so that unmounting it takes no time: gigabytes may be left of a sandbox that
/// wrote until its end, and whoever unmounts keeps others from mounting. What goes wrong is told by unmounting.
pub(crate) fn write_back(point: &Path) {
    let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if is_mounted(point)
        && let Ok(root) = open(point, how, Mode::empty())
        && let Err(errno) = syncfs(root)
    {
        tracing::warn!(error = %errno, "the volume at {} cannot be written back", point.display());
    }
}

/// Unmounts whatever is mounted at `point`; fine if nothing is. One that somebody still uses is detached after a second: it
/// goes when they do.
pub(crate) fn unmount(point: &Path) -> io::Result<()> {
    for _ in 0..BUSY_TRIES {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => std::thread::sleep(BUSY_WAIT),
            Err(errno) => return Err(errno.into()),
        }
    }
    tracing::warn!(
        "the volume at {} is still in use; it is detached and goes when its user does",
        point.display()
    );
    match umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The places directly in `directory` at which something is mounted.
pub(crate) fn points_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mounts = mounts::read(&fs::read_to_string("/proc/self/mountinfo")?);
    Ok(mounts::directly_in(&mounts, directory).map(|mounted| mounted.point.clone()).collect())
}

/// Whether something is mounted at `point`: then it is another device than the directory around it.
pub(crate) fn is_mounted(point: &Path) -> bool {
    let device = |path: &Path| path.symlink_metadata().ok().map(|found| found.dev());
    match (device(point), point.parent().and_then(device)) {
        (Some(own), Some(around)) => own != around,
        (None, _) | (_, None) => false,
    }
}

fn mounted_at(point: &Path) -> io::Result<Option<Mounted>> {
    let mounts = mounts::read(&fs::read_to_string("/proc/self/mountinfo")?);
    Ok(mounts.into_iter().rfind(|mounted| mounted.point == point))
}

/// A program with its arguments; only the paths are not fixed texts.
struct Tool(Command);

impl Tool {
    fn new(program: &Path) -> Self {
        #[expect(clippy::disallowed_methods, reason = "volumes are made here, with an argument vector")]
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").env("PATH", SEARCH.join(":")).current_dir("/");
        Self(command)
    }

    fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.0.args(arguments);
        self
    }

    fn path(mut self, path: &Path) -> Self {
        self.0.arg(path);
        self
    }
}

/// Runs a program to its end, for at most [`TOOL_S`].
fn run(Tool(mut command): Tool) -> io::Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + Duration::from_secs(TOOL_S);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{name} took longer than {TOOL_S} s"),
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(SAID_BYTES).read_to_string(&mut said).ok();
    }
    let kind = if said.contains("No space left") { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, format!("{name} failed: {}", said.trim())))
}

/// Tries once whether volumes can be had: makes, mounts and removes a small one in `directory`, which must be there.
///
/// # Errors
/// Why not, for people.
pub(super) fn probe(tools: &VolumeTools, directory: &Path) -> Result<(), String> {
    let directory = directory.canonicalize().map_err(|error| error.to_string())?;
    let volumes = Volumes::new(tools.clone(), directory.clone());
    let point = directory.join("probe");
    let tried = fs::create_dir_all(&point)
        .and_then(|()| volumes.mount("probe", &point, (PROBE_MIB, Kept::Passing)))
        .and_then(|()| File::create(point.join("file")).map(drop));
    let cleared =
        unmount(&point).and_then(|()| volumes.remove("probe")).and_then(|()| fs::remove_dir(&point));
    tried.and(cleared).map_err(|error| error.to_string())
}

/// Size of the volume that is tried with, in MiB.
const PROBE_MIB: u32 = 2;

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
