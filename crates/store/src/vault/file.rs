//! The file of the master key. Nothing here overwrites one: a file is complete before it has its name.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::zeroize::Zeroizing;

use super::MasterKeyError;
use super::key::{KEY_BYTES, MasterKey};

/// Name of the file in a state directory.
const NAME: &str = "master.key";
/// Longest file that is read, in bytes.
const FILE_BYTES: u64 = 256;
/// Permission bits that a file may have.
const MODE: u32 = 0o600;

/// Where the master key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterKeyFile {
    path: PathBuf,
    /// Whether it is made when it is missing.
    made: bool,
}

/// The keys of the files: the one in use, and while it is being replaced the one to come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    pub(crate) current: Option<Arc<MasterKey>>,
    pub(crate) next: Option<Arc<MasterKey>>,
}

impl Keys {
    pub(crate) fn find(&self, id: &str) -> Option<Arc<MasterKey>> {
        [&self.current, &self.next].into_iter().flatten().find(|key| key.id() == id).cloned()
    }
}

/// The right to replace the key; given back when dropped, also by a process that dies.
#[derive(Debug)]
pub(crate) struct Replacing {
    _lock: File,
}

impl MasterKeyFile {
    /// `master.key` in a state directory, made when it is missing.
    #[must_use]
    pub fn in_state_dir(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME), made: true }
    }

    /// A file that somebody else keeps; it must be there.
    #[must_use]
    pub const fn named(path: PathBuf) -> Self {
        Self { path, made: false }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn is_made(&self) -> bool {
        self.made
    }

    /// The key that comes after it.
    pub(crate) fn next_path(&self) -> PathBuf {
        self.beside(".next")
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(end);
        path.into()
    }

    /// Reads both files. The one to come is read first: if it takes its place in between, it is found there.
    pub(crate) fn read(&self) -> Result<Keys, MasterKeyError> {
        let next = read_key(&self.next_path())?.map(Arc::new);
        let current = read_key(&self.path)?.map(Arc::new);
        Ok(Keys { current, next })
    }

    /// Makes the first key, unless somebody else was faster, and reads whatever is there then.
    pub(crate) fn make(&self, key: [u8; KEY_BYTES], name: [u8; 8]) -> Result<Keys, MasterKeyError> {
        if self.made {
            self.place(&self.path, &MasterKey::new(key), name)?;
        }
        let keys = self.read()?;
        if keys.current.is_none() {
            return Err(MasterKeyError::Missing { path: self.path.clone() });
        }
        Ok(keys)
    }

    /// Makes the key to come, unless one is there from a replacement that was cut off, and reads it.
    pub(crate) fn make_next(
        &self,
        key: [u8; KEY_BYTES],
        name: [u8; 8],
        _: &Replacing,
    ) -> Result<Arc<MasterKey>, MasterKeyError> {
        let path = self.next_path();
        self.place(&path, &MasterKey::new(key), name)?;
        // What is on the disk counts, and not what was meant to be there.
        let found = read_key(&path)?;
        found.map(Arc::new).ok_or(MasterKeyError::Missing { path })
    }

    /// Puts the key to come in the place of the old one.
    pub(crate) fn put_next_in_place(&self, _: &Replacing) -> Result<(), MasterKeyError> {
        let written = fs::rename(self.next_path(), &self.path).and_then(|()| sync_directory(&self.path));
        written.map_err(|source| self.unwritten(source))
    }

    /// Ends a replacement whose key, `id`, is in use already. `false` if somebody else is at it.
    pub(crate) fn end_replacement(&self, id: &str) -> Result<bool, MasterKeyError> {
        let replacing = match self.replace() {
            Ok(replacing) => replacing,
            Err(MasterKeyError::Busy { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let still = read_key(&self.next_path())?.is_some_and(|next| next.id() == id);
        if still {
            self.put_next_in_place(&replacing)?;
        }
        Ok(still)
    }

    /// Keeps other processes from replacing the key.
    pub(crate) fn replace(&self) -> Result<Replacing, MasterKeyError> {
        let path = self.beside(".lock");
        let opened = File::options().create(true).truncate(false).write(true).mode(MODE).open(path);
        let lock = opened.map_err(|source| self.unwritten(source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Replacing { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(MasterKeyError::Busy { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(self.unwritten(source)),
        }
    }

    /// Writes a key under a name of its own and gives it the right one, unless that is taken.
    fn place(&self, path: &Path, key: &MasterKey, name: [u8; 8]) -> Result<(), MasterKeyError> {
        let staged = self.beside(&format!(".{}", hex::encode(name)));
        let placed = write_key(&staged, key).and_then(|()| match fs::hard_link(&staged, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
        // It is a second name of the key, or holds one that nothing was sealed with.
        let removed = fs::remove_file(&staged);
        placed.and(removed).and_then(|()| sync_directory(path)).map_err(|source| self.unwritten(source))
    }

    fn unwritten(&self, source: io::Error) -> MasterKeyError {
        MasterKeyError::Io { what: "written", path: self.path.clone(), source }
    }
}

fn write_key(path: &Path, key: &MasterKey) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(key.to_text().as_bytes())?;
    file.sync_all()
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a key; none if there is no such file.
fn read_key(path: &Path) -> Result<Option<MasterKey>, MasterKeyError> {
    let unread = |source| MasterKeyError::Io { what: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unread)?,
    };
    // Of the file that was opened, whatever its name leads to by now.
    let mode = file.metadata().map_err(unread)?.permissions().mode() & 0o7777;
    if mode & !MODE != 0 {
        return Err(MasterKeyError::Open { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(FILE_BYTES).unwrap_or(0)));
    let read = file.take(FILE_BYTES).read_to_string(&mut text);
    match read {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(unread(error)),
        Ok(_) | Err(_) => {}
    }
    let key = MasterKey::parse(&text);
    key.map(Some).ok_or_else(|| MasterKeyError::Malformed { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> (tempfile::TempDir, MasterKeyFile) {
        let root = tempfile::tempdir().unwrap();
        let file = MasterKeyFile::in_state_dir(root.path());
        (root, file)
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_never_overwritten() {
        let (root, file) = new();
        let first = file.make([1; KEY_BYTES], [1; 8]).unwrap().current.unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, MODE);
        let second = file.make([2; KEY_BYTES], [2; 8]).unwrap().current.unwrap();
        assert_eq!(first.id(), second.id());
        let names: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["master.key"], "nothing is left beside it");
    }

    #[test]
    fn a_file_that_others_can_reach_or_that_holds_no_key_is_refused() {
        let (_root, file) = new();
        file.make([1; KEY_BYTES], [1; 8]).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o700, 0o4600] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = file.read().unwrap_err();
            assert!(matches!(error, MasterKeyError::Open { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o400)).unwrap();
        assert!(file.read().unwrap().current.is_some());
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let long = "a".repeat(usize::try_from(FILE_BYTES).unwrap());
        for bad in [&b""[..], b"short", long.as_bytes(), &[0xff; 64]] {
            fs::write(file.path(), bad).unwrap();
            assert!(matches!(file.read(), Err(MasterKeyError::Malformed { .. })));
        }
    }

    #[test]
    fn a_named_file_is_not_made() {
        let (root, _) = new();
        let file = MasterKeyFile::named(root.path().join("elsewhere"));
        assert!(matches!(file.make([1; KEY_BYTES], [1; 8]), Err(MasterKeyError::Missing { .. })));
        assert!(!file.path().exists());
        fs::create_dir(file.path()).unwrap();
        assert!(file.read().is_err());
    }

    #[test]
    fn one_process_replaces_the_key_at_a_time() {
        let (_root, file) = new();
        file.make([1; KEY_BYTES], [1; 8]).unwrap();
        let replacing = file.replace().unwrap();
        assert!(matches!(file.replace(), Err(MasterKeyError::Busy { .. })));
        let next = file.make_next([2; KEY_BYTES], [2; 8], &replacing).unwrap();
        let again = file.make_next([3; KEY_BYTES], [3; 8], &replacing).unwrap();
        assert_eq!(next.id(), again.id(), "the key to come is not overwritten either");
        assert!(!file.end_replacement(next.id()).unwrap(), "whoever holds the lock ends it");
        drop(replacing);
        assert!(!file.end_replacement("another").unwrap());
        assert!(file.end_replacement(next.id()).unwrap());
        let keys = file.read().unwrap();
        assert_eq!(keys.current.unwrap().id(), next.id());
        assert!(keys.next.is_none());
    }
}
