//! Removes directory trees that a hostile process has filled.
//!
//! A sandbox can nest directories tens of thousands deep. A removal that goes down into such a tree holds one open
//! directory and one stack frame a level, and ends with no file descriptors left or with an overflown stack: a sandbox
//! could take the server down, again at each start. So nothing here goes down: a directory that is met inside another
//! one is moved up beside it first, and one level is all there ever is.
//!
//! No link is followed: names are unlinked or renamed, never opened, until they lie in a directory that only the server
//! can write to; there they are looked at, and nobody can exchange them any more.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};

/// A directory that only the server can write to and in which one tree is taken apart.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    next: u64,
}

impl Trash {
    /// Makes `dir`, or removes what an interrupted removal left in it.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut trash = Self { dir, next: 0 };
        trash.clear()?;
        Ok(trash)
    }

    /// Moves a directory into the trash; one that is not there is fine.
    pub(crate) fn take(&mut self, directory: &Path) -> io::Result<()> {
        loop {
            let target = self.dir.join(self.next.to_string());
            self.next += 1;
            let error = match fs::rename(directory, &target) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => error,
            };
            if error.kind() == io::ErrorKind::PermissionDenied {
                // Moving a directory writes its `..`, so a server that is not root needs its write bit.
                fchmodat(AT_FDCWD, directory, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
                return fs::rename(directory, &target);
            }
            if fs::symlink_metadata(&target).is_err() {
                return Err(error);
            }
            // The number is in use, after an interrupted removal: there are only so many.
        }
    }

    /// Removes everything that was taken, and the trash itself.
    pub(crate) fn empty(mut self) -> io::Result<()> {
        self.clear()?;
        fs::remove_dir(&self.dir)
    }

    fn clear(&mut self) -> io::Result<()> {
        while let Some(entry) = fs::read_dir(&self.dir)?.next() {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.is_dir() {
                self.dissolve(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Removes one directory that lies in the trash; directories in it move up beside it.
    fn dissolve(&mut self, directory: &Path) -> io::Result<()> {
        // It is a real directory, and nobody else can exchange it here.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.take(&entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deeper than the usual number of file descriptors allows a removal that goes down.
    const DEPTH: usize = 5_000;

    fn remove(root: &Path, directory: &Path) -> io::Result<()> {
        let mut trash = Trash::open(root.join("trash"))?;
        trash.take(directory)?;
        trash.empty()
    }

    #[test]
    fn a_tree_deeper_than_any_stack_is_removed() {
        let root = tempfile::tempdir().unwrap();
        // Built from the inside out, so that no path gets long.
        let (tree, outer) = (root.path().join("tree"), root.path().join("outer"));
        fs::create_dir(&tree).unwrap();
        for _ in 0..DEPTH {
            fs::create_dir(&outer).unwrap();
            fs::rename(&tree, outer.join("d")).unwrap();
            fs::rename(&outer, &tree).unwrap();
        }
        remove(root.path(), &tree).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        for place in ["link", "a/link", "a/b/link"] {
            std::os::unix::fs::symlink(&kept, tree.join(place)).unwrap();
        }
        remove(root.path(), &tree).unwrap();
        assert!(kept.join("file").is_file() && !tree.exists());
        // The tree itself exchanged for a link.
        std::os::unix::fs::symlink(&kept, &tree).unwrap();
        remove(root.path(), &tree).unwrap();
        assert!(kept.join("file").is_file() && tree.symlink_metadata().is_err());
    }

    #[test]
    fn an_interrupted_removal_is_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        for left in ["trash/0/deep/deeper", "trash/0/deeper", "trash/1", "trash/2/x"] {
            fs::create_dir_all(root.path().join(left)).unwrap();
        }
        std::os::unix::fs::symlink("/", root.path().join("trash/3")).unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        remove(root.path(), &tree).unwrap();
        remove(root.path(), &tree).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn directories_without_permissions_are_removed_without_being_root() {
        if nix::unistd::geteuid().is_root() {
            return again_as_nobody();
        }
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        for place in ["a/b/c", "a/b", "a", ""] {
            fs::set_permissions(tree.join(place), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove(root.path(), &tree).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// Runs the test above once more, as the user `nobody`: root passes every permission check.
    #[expect(clippy::disallowed_methods, reason = "a test that starts itself again, with fixed arguments")]
    fn again_as_nobody() {
        use std::os::unix::process::CommandExt;
        const NOBODY: u32 = 65_534;
        let name = "trash::tests::directories_without_permissions_are_removed_without_being_root";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact"])
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
