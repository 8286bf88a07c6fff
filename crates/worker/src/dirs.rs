//! The worker's directories on the host: what each sandbox sees, and who may write to it.
//!
//! ```text
//! state_dir/sessions/<session>/workspace   the session's uid, kept over runs
//! state_dir/sessions/<session>/home        the session's uid, kept over runs
//! state_dir/sandboxes/<sandbox>/journal    the session's uid, as long as the sandbox
//! state_dir/doors/<sandbox>/               the server; the gateway binds its socket there
//! state_dir/trash/<sandbox>/               the server; being removed
//! state_dir/volumes/<session or sandbox>.img   the server; what is mounted at sessions/… and sandboxes/…
//! ```
//! Every directory above those that a sandbox may write to is the server's own with mode 0700, so no sandbox can
//! exchange a name that the server acts on. What is inside a workspace or home is never looked at, but for its size.

mod aside;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::{SandboxId, SessionId};
use caisson_sandbox::VOLUMES_DIR as VOLUMES;

use crate::config::Owner;
use crate::disk::floor::Free;
use crate::disk::volume::{self, Kept, Volumes};
use crate::disk::{Cap, DiskCaps, HOME, JOURNAL_VOLUME_MIB, Room, WORKSPACE};
use crate::trash::Trash;

const SESSIONS: &str = "sessions";
const SANDBOXES: &str = "sandboxes";
const JOURNAL: &str = "journal";
const DOORS: &str = "doors";
const TRASH: &str = "trash";
/// How the name of a volume's image ends.
const IMAGE: &str = ".img";
/// What file systems count in.
const BLOCK_BYTES: u64 = 512;

/// Only the owner.
const PRIVATE: u32 = 0o700;
/// The sandbox's processes, which have another uid, may look up the socket.
const READABLE: u32 = 0o755;

/// The directory in which the gateway binds a sandbox's socket. It exists before the sandbox is written down, and is
/// seen in the sandbox read-only.
#[must_use]
pub fn door_dir(state_dir: &Path, sandbox: &SandboxId) -> PathBuf {
    state_dir.join(DOORS).join(sandbox.as_str())
}

/// Why a directory could not be made, given away, listed or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", .path.display())]
pub struct DirError {
    /// What was being done.
    pub operation: &'static str,
    /// To what.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl DirError {
    /// Whether somebody has to make room first.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// The directories of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxDirs {
    pub(crate) workspace: PathBuf,
    pub(crate) home: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) door: PathBuf,
}

/// The directories of one server. Every method blocks on the file system.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    state_dir: PathBuf,
    /// None where rooms are measured.
    volumes: Option<Volumes>,
    /// Held while directories are made or removed and while something is mounted or unmounted, so that nobody takes away what
    /// somebody else has just begun to use.
    mounting: Arc<Mutex<()>>,
}

impl Dirs {
    /// Makes what is the same for all sandboxes.
    pub(crate) fn open(state_dir: &Path, caps: DiskCaps) -> Result<Self, DirError> {
        fs::create_dir_all(state_dir).map_err(failed("make", state_dir))?;
        // The kernel tells of mounts by their places without links.
        let state_dir = state_dir.canonicalize().map_err(failed("resolve", state_dir))?;
        for part in [SESSIONS, SANDBOXES, DOORS, TRASH, VOLUMES] {
            make(&state_dir.join(part), PRIVATE)?;
        }
        let volumes = match caps {
            DiskCaps::Volumes(tools) => Some(Volumes::new(tools, state_dir.join(VOLUMES))),
            DiskCaps::Measured { .. } => None,
        };
        Ok(Self { state_dir, volumes, mounting: Arc::default() })
    }

    /// Makes everything that a sandbox is to see, and gives its owner what it may write to. A session that has no room yet
    /// gets one of this size.
    pub(crate) fn make(
        &self,
        (session, cap): (&SessionId, Cap),
        sandbox: &SandboxId,
        owner: Owner,
    ) -> Result<SandboxDirs, DirError> {
        let room = self.session(session);
        let own = self.state_dir.join(SANDBOXES).join(sandbox.as_str());
        let dirs = SandboxDirs {
            workspace: room.join(WORKSPACE),
            home: room.join(HOME),
            journal: own.join(JOURNAL),
            door: door_dir(&self.state_dir, sandbox),
        };
        // Held until everything is there: what is half made looks unused to whoever removes a session.
        let _mounting = self.mounting();
        make(&room, PRIVATE)?;
        make(&own, PRIVATE)?;
        let image = self.image(session);
        if self.volumes.is_none() && image.symlink_metadata().is_ok() && !volume::is_mounted(&room) {
            // An empty workspace in its place would look as if the session's work were lost.
            let why = "the session has a volume, and this server cannot mount any; start it as one that can";
            return Err(failed("open", &room)(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        if let Some(volumes) = &self.volumes {
            // One from before there were volumes stays as it is, and is measured.
            if volumes.has(session.as_str()) || dirs.workspace.symlink_metadata().is_err() {
                mount(volumes, session.as_str(), &room, (cap.mib, Kept::Lasting))?;
            }
            mount(volumes, sandbox.as_str(), &own, (JOURNAL_VOLUME_MIB, Kept::Passing))?;
        }
        for given in [&dirs.workspace, &dirs.home, &dirs.journal] {
            make(given, PRIVATE)?;
            give(given, owner)?;
        }
        make(&dirs.door, READABLE)?;
        Ok(dirs)
    }

    fn mounting(&self) -> MutexGuard<'_, ()> {
        // It guards no data.
        self.mounting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, session: &SessionId) -> PathBuf {
        self.state_dir.join(SESSIONS).join(session.as_str())
    }

    /// How full a session's room is, and its sandbox's journal.
    pub(crate) fn room(&self, session: &SessionId, sandbox: &SandboxId, cap: Cap) -> Result<Room, DirError> {
        let room = self.session(session);
        let journal = self.state_dir.join(SANDBOXES).join(sandbox.as_str()).join(JOURNAL);
        Room::look(&room, &journal, cap).map_err(failed("measure", &room))
    }

    /// The sessions whose volumes are mounted.
    pub(crate) fn mounted_sessions(&self) -> Result<Vec<SessionId>, DirError> {
        let directory = self.state_dir.join(SESSIONS);
        let points = volume::points_in(&directory).map_err(failed("look for mounts in", &directory))?;
        Ok(points.iter().filter_map(|point| point.file_name()?.to_str()?.parse().ok()).collect())
    }

    /// Unmounts a session's volume unless `is_used`, which is asked while nobody can mount one. The files stay in its image.
    pub(crate) fn unmount_session(
        &self,
        session: &SessionId,
        is_used: impl FnOnce() -> bool,
    ) -> Result<(), DirError> {
        let room = self.session(session);
        volume::write_back(&room);
        let _mounting = self.mounting();
        if is_used() || !volume::is_mounted(&room) {
            return Ok(());
        }
        volume::unmount(&room).map_err(failed("unmount", &room))
    }

    /// Removes the sandbox's journal and door; the session's directories stay. Fine if they are gone.
    pub(crate) fn remove(&self, sandbox: &SandboxId) -> Result<(), DirError> {
        let trash = self.state_dir.join(TRASH).join(sandbox.as_str());
        let parts =
            [self.state_dir.join(SANDBOXES).join(sandbox.as_str()), door_dir(&self.state_dir, sandbox)];
        if volume::is_mounted(&parts[0]) {
            volume::write_back(&parts[0]);
            let _mounting = self.mounting();
            volume::unmount(&parts[0]).map_err(failed("unmount", &parts[0]))?;
        }
        if let Some(volumes) = &self.volumes {
            volumes.remove(sandbox.as_str()).map_err(failed("remove the volume of", &parts[0]))?;
        }
        if ![&trash, &parts[0], &parts[1]].iter().any(|path| path.symlink_metadata().is_ok()) {
            return Ok(());
        }
        let mut bin = Trash::open(trash.clone()).map_err(failed("make", &trash))?;
        for part in &parts {
            bin.take(part).map_err(failed("move to the trash", part))?;
        }
        bin.empty().map_err(failed("remove", &trash))
    }

    /// The sandboxes of which a directory is left. Names that are no sandbox ids are not ours, and are left alone.
    pub(crate) fn sandboxes(&self) -> Result<BTreeSet<SandboxId>, DirError> {
        let mut found = BTreeSet::new();
        for part in [SANDBOXES, DOORS, TRASH] {
            let path = self.state_dir.join(part);
            for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
                let name = entry.map_err(failed("list", &path))?.file_name();
                found.extend(name.to_str().and_then(|name| name.parse::<SandboxId>().ok()));
            }
        }
        Ok(found)
    }

    /// Removes a session's workspace and home, and what of them was set aside, unless `is_used`, which is asked while nobody can
    /// begin to use them; `false` if it is. Fine if they are gone.
    pub(crate) fn remove_session(
        &self,
        session: &SessionId,
        is_used: impl FnOnce() -> bool,
    ) -> Result<bool, DirError> {
        let room = self.session(session);
        let trash = self.state_dir.join(TRASH).join(session.as_str());
        let image = self.image(session);
        volume::write_back(&room);
        let bin = {
            let _mounting = self.mounting();
            if is_used() {
                return Ok(false);
            }
            if volume::is_mounted(&room) {
                volume::unmount(&room).map_err(failed("unmount", &room))?;
            }
            for image in aside::with_left(&image)? {
                match fs::remove_file(&image) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed("remove", &image)(error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            let mut bin = Trash::open(trash.clone()).map_err(failed("make", &trash))?;
            for room in aside::with_left(&room)? {
                bin.take(&room).map_err(failed("move to the trash", &room))?;
            }
            bin
        };
        bin.empty().map_err(failed("remove", &trash))?;
        // Nothing looks for them any more once they are said to be gone.
        for part in [SESSIONS, VOLUMES, TRASH] {
            let path = self.state_dir.join(part);
            fs::File::open(&path)
                .and_then(|directory| directory.sync_all())
                .map_err(failed("sync", &path))?;
        }
        Ok(true)
    }

    /// About how much a session's workspace and home take of the server's disk, in bytes.
    pub(crate) fn session_bytes(&self, session: &SessionId) -> u64 {
        if let Ok(image) = self.image(session).symlink_metadata() {
            return image.blocks().saturating_mul(BLOCK_BYTES);
        }
        Room::bytes_of(&self.session(session))
    }

    fn image(&self, session: &SessionId) -> PathBuf {
        self.state_dir.join(VOLUMES).join(format!("{session}{IMAGE}"))
    }

    /// Free space for the server on the disk of the state directory.
    pub(crate) fn free(&self) -> Result<Free, DirError> {
        let stat = nix::sys::statvfs::statvfs(&self.state_dir)
            .map_err(|errno| failed("look at the disk of", &self.state_dir)(errno.into()))?;
        let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
        Ok(Free { bytes, files: (stat.files() > 0).then(|| stat.files_available()) })
    }
}

/// Runs file system work on the threads made for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DirError> + Send + 'static,
) -> Result<T, DirError> {
    let lost = |source| DirError {
        operation: "finish work on",
        path: PathBuf::from("."),
        source: io::Error::other(source),
    };
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// Mounts a volume at a directory that [`make`] has made.
fn mount(volumes: &Volumes, name: &str, at: &Path, size: (u32, Kept)) -> Result<(), DirError> {
    volumes.mount(name, at, size).map_err(failed("mount the volume of", at))?;
    // The root of a file system has a mode of its own.
    make(at, PRIVATE)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirError {
    move |source| DirError { operation, path: path.to_path_buf(), source }
}

/// Makes a directory whose parent only the server can write to; fine if it is there.
fn make(path: &Path, mode: u32) -> Result<(), DirError> {
    match fs::DirBuilder::new().mode(PRIVATE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if !found.is_dir() {
        return Err(failed("make", path)(io::ErrorKind::NotADirectory.into()));
    }
    if found.mode() & 0o777 != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(failed("set the mode of", path))?;
    }
    Ok(())
}

/// Gives a directory that [`make`] has looked at to the sandbox's owner; not what is in it.
fn give(path: &Path, owner: Owner) -> Result<(), DirError> {
    let found = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if (found.uid(), found.gid()) == (owner.uid, owner.gid) {
        return Ok(());
    }
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(failed("give away", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs() -> (tempfile::TempDir, Dirs) {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::open(&root.path().join("state"), caps()).unwrap();
        (root, dirs)
    }

    const CAP: Cap = Cap { mib: 64 };

    fn caps() -> DiskCaps {
        DiskCaps::Measured { reason: "a test".to_owned() }
    }

    fn ids() -> (SessionId, SandboxId) {
        (SessionId::new(1, [1; 10]), SandboxId::new(1, [2; 10]))
    }

    /// This process's own ids, which it may always give a directory to.
    fn me() -> Owner {
        Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_sandbox_gets_private_directories_and_a_readable_door() {
        let (_root, dirs) = dirs();
        let (session, sandbox) = ids();
        let made = dirs.make((&session, CAP), &sandbox, me()).unwrap();
        for path in [&made.workspace, &made.home, &made.journal] {
            assert_eq!(mode(path), 0o700, "{path:?}");
            assert_eq!(mode(path.parent().unwrap()), 0o700, "{path:?}");
        }
        assert_eq!(mode(&made.door), 0o755);
        assert_eq!(made.door, door_dir(&dirs.state_dir, &sandbox));
        assert_eq!(dirs.make((&session, CAP), &sandbox, me()).unwrap(), made, "again");
    }

    #[test]
    fn a_root_server_gives_each_session_what_is_its_own() {
        if !nix::unistd::geteuid().is_root() {
            let (_root, dirs) = dirs();
            let (session, sandbox) = ids();
            let error = dirs.make((&session, CAP), &sandbox, Owner { uid: 1, gid: 1 }).unwrap_err();
            assert_eq!(
                (error.operation, error.source.kind()),
                ("give away", io::ErrorKind::PermissionDenied)
            );
            return;
        }
        let (_root, dirs) = dirs();
        let (session, sandbox) = ids();
        let made = dirs.make((&session, CAP), &sandbox, Owner { uid: 200_001, gid: 200_001 }).unwrap();
        for path in [&made.workspace, &made.home, &made.journal] {
            let found = path.symlink_metadata().unwrap();
            assert_eq!((found.uid(), found.gid()), (200_001, 200_001), "{path:?}");
            assert_eq!(path.parent().unwrap().symlink_metadata().unwrap().uid(), 0);
        }
        assert_eq!(made.door.symlink_metadata().unwrap().uid(), 0);
    }

    /// Whoever removes a session asks whether it is used before it moves the directories away; a sandbox that is made from then on
    /// must not have its directories moved along.
    #[test]
    fn directories_that_are_made_during_a_removal_stay() {
        let (_root, dirs) = dirs();
        let (session, sandbox) = ids();
        let room = dirs.session(&session);
        let (starting, started) = std::sync::mpsc::channel();
        let made = std::thread::scope(|scope| {
            let mut making = None;
            dirs.remove_session(&session, || {
                making = Some(scope.spawn(|| {
                    starting.send(()).unwrap();
                    dirs.make((&session, CAP), &sandbox, me())
                }));
                started.recv().unwrap();
                // As long as it would take without a lock, many times over.
                let until = std::time::Instant::now() + std::time::Duration::from_millis(200);
                while !room.join(HOME).exists() && std::time::Instant::now() < until {
                    std::thread::yield_now();
                }
                false
            })
            .unwrap();
            making.unwrap().join().unwrap().unwrap()
        });
        assert!(made.workspace.is_dir() && made.home.is_dir(), "{made:?}");
    }

    #[test]
    fn removing_a_sandbox_keeps_its_session() {
        let (_root, dirs) = dirs();
        let (session, sandbox) = ids();
        let made = dirs.make((&session, CAP), &sandbox, me()).unwrap();
        fs::write(made.workspace.join("file"), "x").unwrap();
        fs::write(made.journal.join("journal"), "x").unwrap();
        fs::write(made.door.join("gateway.sock"), "x").unwrap();
        assert_eq!(dirs.sandboxes().unwrap(), BTreeSet::from([sandbox.clone()]));
        dirs.remove(&sandbox).unwrap();
        dirs.remove(&sandbox).unwrap();
        assert!(dirs.sandboxes().unwrap().is_empty());
        assert!(made.workspace.join("file").is_file() && !made.journal.exists() && !made.door.exists());
    }

    #[test]
    fn an_interrupted_removal_is_found_again_and_foreign_names_are_left_alone() {
        let (_root, dirs) = dirs();
        let (_, sandbox) = ids();
        fs::create_dir_all(dirs.state_dir.join(TRASH).join(sandbox.as_str()).join("0/x")).unwrap();
        fs::create_dir(dirs.state_dir.join(SANDBOXES).join("lost+found")).unwrap();
        assert_eq!(dirs.sandboxes().unwrap(), BTreeSet::from([sandbox.clone()]));
        dirs.remove(&sandbox).unwrap();
        assert!(dirs.sandboxes().unwrap().is_empty());
        assert!(dirs.state_dir.join(SANDBOXES).join("lost+found").is_dir());
    }

    #[test]
    fn a_file_or_link_in_the_way_is_an_error_and_not_followed() {
        let (root, dirs) = dirs();
        let (session, sandbox) = ids();
        let own = dirs.state_dir.join(SESSIONS).join(session.as_str());
        fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink(root.path(), own.join("workspace")).unwrap();
        let error = dirs.make((&session, CAP), &sandbox, me()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotADirectory);
        assert!(error.to_string().starts_with("cannot make ") && !error.is_full(), "{error}");
        assert!(Dirs::open(&own.join("workspace/../no\0name"), caps()).is_err());
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let error = |kind: io::ErrorKind| failed("make", Path::new("/x"))(kind.into());
        assert!(error(io::ErrorKind::StorageFull).is_full());
        assert!(error(io::ErrorKind::QuotaExceeded).is_full());
        assert!(!error(io::ErrorKind::PermissionDenied).is_full());
    }

    #[test]
    fn free_space_is_read_from_the_state_directorys_disk() {
        let (root, dirs) = dirs();
        assert!(dirs.free().unwrap().bytes > 0);
        drop(root);
        assert!(dirs.free().is_err());
    }
}
