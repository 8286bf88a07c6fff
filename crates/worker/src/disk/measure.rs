//! Measures directories in which a hostile process writes, with bounded effort.
//!
//! No link is followed: each directory is opened by its name in its parent, and only if it is one. What changes meanwhile
//! may be counted or not. Blocks on the file system.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use caisson_domain::checks::{Check, stands};
use rustix::fs::{AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// How deep directories are gone into: each level holds one open file.
pub const DEPTH: usize = 256;
/// The unit of `st_blocks`, in bytes (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What lies in some directories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Space on disk, in bytes. What was deleted and is still open does not show.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) files: u64,
    /// Whether there are directories deeper than [`DEPTH`], which were not looked into.
    pub(crate) too_deep: bool,
}

/// Adds up what lies in `roots`, and stops as soon as there are more than `most_files`.
///
/// # Errors
/// A root cannot be opened, or the process may open no more files. What else cannot be read below it is left out.
pub(crate) fn measure(roots: &[&Path], most_files: u64) -> io::Result<Amount> {
    let mut amount = Amount::default();
    for root in roots {
        walk(openat(CWD, *root, DIRECTORY, Mode::empty())?, most_files, &mut amount)?;
    }
    Ok(amount)
}

const DIRECTORY: OFlags = LINKED.union(OFlags::NOFOLLOW);
/// The same where a link leads there.
const LINKED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Goes down entry by entry: no names are kept, of which there may be millions.
fn walk(root: OwnedFd, most_files: u64, amount: &mut Amount) -> io::Result<()> {
    let mut levels = vec![Dir::new(root)?];
    while let Some(level) = levels.last_mut() {
        let Some(Ok(entry)) = level.next() else {
            levels.pop();
            continue;
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        amount.files += 1;
        if amount.files > most_files {
            return Ok(());
        }
        let directory = level.fd()?;
        if !count(directory, &entry, amount) {
            continue;
        }
        let how = if stands(Check::Links) { DIRECTORY } else { LINKED };
        let directory = match openat(directory, entry.file_name(), how, Mode::empty()) {
            Ok(directory) => directory,
            // What is left out then could be anything.
            Err(errno @ (Errno::MFILE | Errno::NFILE)) => return Err(errno.into()),
            // Gone, exchanged for something else, or closed to us: there is nothing to be counted.
            Err(_) => continue,
        };
        if levels.len() >= DEPTH {
            amount.too_deep = true;
        } else if let Ok(level) = Dir::new(directory) {
            levels.push(level);
        }
    }
    Ok(())
}

/// Adds what an entry takes, and says whether it is a directory.
fn count(directory: BorrowedFd<'_>, entry: &DirEntry, amount: &mut Amount) -> bool {
    let how = if stands(Check::Links) { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
    let Ok(found) = statat(directory, entry.file_name(), how) else { return false };
    // A file with several names is met that often.
    let names = found.st_nlink.max(1);
    let kind = entry.file_type();
    let is_directory = [FileType::Directory, FileType::Unknown].contains(&kind)
        || (kind == FileType::Symlink && !stands(Check::Links));
    let bytes = u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
    amount.bytes = amount.bytes.saturating_add(if is_directory { bytes } else { bytes / names });
    is_directory
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const MANY: u64 = 100_000;

    fn of(root: &Path) -> Amount {
        measure(&[root], MANY).unwrap()
    }

    #[test]
    fn space_and_files_of_a_tree_are_counted_and_names_of_one_file_once() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), vec![1; 256 * 1024]).unwrap();
        let once = of(root.path());
        assert_eq!(once.files, 3);
        assert!((256 * 1024..320 * 1024).contains(&once.bytes), "{once:?}");
        fs::hard_link(inner.join("file"), root.path().join("again")).unwrap();
        let twice = of(root.path());
        assert_eq!((twice.files, twice.bytes), (4, once.bytes));
        let sparse = fs::File::create(root.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert_eq!(of(root.path()).bytes, once.bytes, "what costs no disk does not count");
    }

    #[test]
    fn links_are_counted_and_never_followed() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("big"), vec![1; 1 << 20]).unwrap();
        symlink(other.path(), root.path().join("link")).unwrap();
        symlink(root.path(), root.path().join("round")).unwrap();
        let amount = of(root.path());
        assert_eq!(amount.files, 2);
        assert!(amount.bytes < 64 * 1024, "{amount:?}");
        assert!(measure(&[&root.path().join("link")], MANY).is_err(), "a root is no link either");
    }

    #[test]
    fn counting_stops_just_behind_the_most_files() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..50 {
            fs::create_dir_all(root.path().join(format!("{number}/x"))).unwrap();
        }
        assert_eq!(of(root.path()).files, 100);
        assert_eq!(measure(&[root.path()], 20).unwrap().files, 21);
        assert_eq!(measure(&[root.path(), root.path()], 100).unwrap().files, 101, "over all roots together");
    }

    #[test]
    fn a_tree_that_is_too_deep_is_told_and_costs_no_more_than_its_depth() {
        let root = tempfile::tempdir().unwrap();
        let (tree, outer) = (root.path().join("tree"), root.path().join("outer"));
        fs::create_dir(&tree).unwrap();
        for _ in 0..DEPTH - 1 {
            fs::create_dir(&outer).unwrap();
            fs::rename(&tree, outer.join("d")).unwrap();
            fs::rename(&outer, &tree).unwrap();
        }
        assert!(!of(&tree).too_deep);
        assert!(of(root.path()).too_deep);
    }

    #[test]
    fn a_missing_root_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(measure(&[&root.path().join("gone")], MANY).is_err());
    }
}
