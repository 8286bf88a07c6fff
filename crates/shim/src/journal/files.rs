//! The journal's files.
//!
//! A record is given to the kernel by write(2) before it is sent: the page cache outlives every process, and what was not
//! sent can be read by people if the sandbox is lost. It is not synced. The shim itself never reads it again: every
//! process of the sandbox could have changed it meanwhile. The writes are done in place and not on another thread: each is
//! one short copy into the page cache, and the record must not wait for a thread to be sent.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;

use super::segments::{Segments, is_segment};
use crate::plain_file::create;

/// Size of the piece that is kept free for the last records of a run on a full disk, in bytes.
pub(super) const RESERVE_BYTES: i64 = 1024 * 1024;
/// File name of that piece.
const RESERVE: &str = "reserve";

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The disk is full.
    #[error("the journal's disk is full")]
    Full,
    /// Something else.
    #[error("cannot write the journal")]
    Other(#[source] io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        let full = [Errno::ENOSPC, Errno::EDQUOT];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if full.contains(&errno) => Self::Full,
            Some(_) | None => Self::Other(error),
        }
    }
}

/// The journal's directory, open.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    segments: Segments,
    active: File,
}

impl Files {
    /// Opens the directory for the one process that ever writes there: a sandbox is not started twice.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            if entry?.file_name().to_str().is_some_and(is_segment) {
                let used = "there is a journal already, and a sandbox is not started twice";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, used));
            }
        }
        let segments = Segments::new();
        let active = create(&directory.join(segments.active().file_name()))?;
        Ok(Self { directory: directory.to_owned(), segments, active })
    }

    /// Offset behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.segments.active().end()
    }

    /// Appends one whole line; all of it or nothing.
    pub(super) fn append(&mut self, line: &[u8]) -> Result<(), WriteError> {
        if let Err(error) = self.active.write_all(line) {
            // Otherwise the next line would continue the cut one.
            self.active.set_len(self.segments.active().length).map_err(WriteError::Other)?;
            return Err(error.into());
        }
        self.segments.grow(line.len() as u64);
        if let Some(next) = self.segments.rotate() {
            self.active = create(&self.directory.join(next.file_name()))?;
        }
        Ok(())
    }

    /// Deletes the segments that are wholly acknowledged.
    pub(super) fn forget_before(&mut self, offset: u64) -> io::Result<()> {
        self.segments
            .forget_before(offset)
            .into_iter()
            .try_for_each(|segment| fs::remove_file(self.directory.join(segment.file_name())))
    }

    /// Keeps a piece of the disk free for a run's last records.
    pub(super) fn reserve(&self) -> io::Result<()> {
        let file = create(&self.directory.join(RESERVE))?;
        posix_fallocate(&file, 0, RESERVE_BYTES).map_err(io::Error::from)
    }

    /// Gives that piece free.
    pub(super) fn release(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(RESERVE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::segments::{SEGMENT_BYTES, Segment};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    #[test]
    fn a_directory_is_written_by_one_process_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        files.append(b"one\n").unwrap();
        files.append(b"two\n").unwrap();
        assert_eq!(files.end(), 8);
        let name = directory.path().join(files.segments.active().file_name());
        assert_eq!(fs::read(name).unwrap(), b"one\ntwo\n");
        assert_eq!(Files::open(directory.path()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn acknowledged_segments_are_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        let mut long = vec![b'x'; usize::try_from(SEGMENT_BYTES).unwrap()];
        long.push(b'\n');
        files.append(&long).unwrap();
        files.forget_before(files.end()).unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn pipes_in_the_way_of_the_next_files_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        let length = SEGMENT_BYTES + 1;
        let next = directory.path().join(Segment { base: length, length: 0 }.file_name());
        for pipe in [&next, &directory.path().join(RESERVE)] {
            mkfifo(pipe, Mode::S_IRWXU).unwrap();
        }
        files.append(&vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
        files.append(b"next\n").unwrap();
        assert_eq!(fs::read(next).unwrap(), b"next\n");
        files.reserve().unwrap();
    }

    #[test]
    fn the_reserve_is_really_there_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        files.reserve().unwrap();
        let reserve = directory.path().join(RESERVE);
        assert_eq!(reserve.metadata().unwrap().len().cast_signed(), RESERVE_BYTES);
        files.release().unwrap();
        assert!(!reserve.exists());
    }

    #[test]
    fn a_full_disk_is_told_from_other_faults() {
        let full = WriteError::from(io::Error::from(Errno::ENOSPC));
        assert!(matches!(full, WriteError::Full));
        assert!(matches!(WriteError::from(io::Error::from(Errno::EIO)), WriteError::Other(_)));
    }
}
