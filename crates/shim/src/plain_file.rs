//! Files at places where the agent can put anything: a pipe would block the shim for ever, and a link would lead it
//! somewhere else. So only regular files are opened, and what is written replaces whatever was there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a regular file for reading.
///
/// # Errors
/// That of the operating system, or [`io::ErrorKind::InvalidInput`] if it is anything else than a regular file.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(unfit("it is no regular file")) }
}

/// Makes a new file that is appended to, in the place of whatever is there.
///
/// # Errors
/// That of the operating system.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    // Usually there is none.
    let _absent = fs::remove_file(path);
    OpenOptions::new().append(true).create_new(true).open(path)
}

/// Reads a file of at most `bytes`.
///
/// # Errors
/// That of the operating system, or [`io::ErrorKind::InvalidInput`] if it is no regular file or longer.
pub(crate) fn read(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(bytes.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > bytes { Err(unfit("it is too long")) } else { Ok(content) }
}

/// Writes a file, in the place of whatever is there.
///
/// # Errors
/// That of the operating system.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    create(path)?.write_all(content)
}

/// Copies a file of at most `bytes`, in the place of whatever is at `to`. The copy is as old as the file: git compares the content of
/// what was changed no earlier than its index was written, and with a younger index would take it for unchanged.
///
/// # Errors
/// As [`read`] and [`write()`].
pub(crate) fn copy(from: &Path, to: &Path, bytes: u64) -> io::Result<()> {
    let source = open(from)?;
    let modified = source.metadata()?.modified()?;
    let mut target = create(to)?;
    let copied = io::copy(&mut source.take(bytes.saturating_add(1)), &mut target)?;
    target.set_modified(modified)?;
    if copied > bytes { Err(unfit("it is too long")) } else { Ok(()) }
}

fn unfit(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    #[test]
    fn a_copy_is_as_old_as_what_was_copied() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        write(&place("index"), b"entries").unwrap();
        let modified = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
        File::options().write(true).open(place("index")).unwrap().set_modified(modified).unwrap();
        copy(&place("index"), &place("copy"), 7).unwrap();
        assert_eq!(read(&place("copy"), 7).unwrap(), b"entries");
        assert_eq!(place("copy").metadata().unwrap().modified().unwrap(), modified);
    }

    #[test]
    fn a_pipe_or_a_link_is_not_read_and_is_replaced_when_written() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        fs::write(place("victim"), "kept").unwrap();
        mkfifo(&place("pipe"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(place("victim"), place("link")).unwrap();
        for name in ["pipe", "link"] {
            assert!(read(&place(name), 100).is_err(), "{name}");
            assert!(copy(&place(name), &place("copy"), 100).is_err(), "{name}");
            write(&place(name), b"new").unwrap();
            assert_eq!(read(&place(name), 100).unwrap(), b"new");
        }
        assert_eq!(read(&place("victim"), 100).unwrap(), b"kept");
        assert_eq!(read(directory.path(), 100).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_of_the_bound_is_read_and_copied_and_a_longer_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        write(&from, b"12345").unwrap();
        assert_eq!(read(&from, 5).unwrap(), b"12345");
        copy(&from, &to, 5).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"12345");
        assert!(read(&from, 4).is_err() && copy(&from, &to, 4).is_err());
    }
}
