//! The journal's files.
//!
//! A record is given to the kernel by write(2) before it is sent, which is enough against the death of any process:
//! the page cache outlives it. It is not synced, so a power loss may cost the records that the gateway had not stored.
//! The writes are done in place and not on another thread: each is one short copy into the page cache, and the record
//! must not wait for a thread to be sent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;

use super::segments::{Segment, Segments, base_of};

/// Size of the piece that is kept free for the last records of a run on a full disk, in bytes.
pub(super) const RESERVE_BYTES: i64 = 1024 * 1024;
/// File name of that piece.
const RESERVE: &str = "reserve";
/// File name of what must be known after a restart.
const PROGRESS: &str = "progress.json";

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
    /// Opens the directory and takes up what an earlier process left. A last line that was cut is dropped: it was
    /// never sent.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let found = found(directory)?;
        let segments = Segments::recovered(&found);
        for (old, new) in found.iter().zip(segments.iter()) {
            if old.base != new.base {
                fs::rename(directory.join(old.file_name()), directory.join(new.file_name()))?;
            }
        }
        let active = append_to(&directory.join(segments.active().file_name()))?;
        Ok(Self { directory: directory.to_owned(), segments, active })
    }

    pub(super) fn segments(&self) -> &Segments {
        &self.segments
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
            self.active = append_to(&self.directory.join(next.file_name()))?;
        }
        Ok(())
    }

    /// Reads whole lines from `offset`, at most `bytes` and not beyond the segment's end.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let Some(segment) = self.segments.holding(offset) else { return Ok(Vec::new()) };
        let file = File::open(self.directory.join(segment.file_name()))?;
        let left = usize::try_from(segment.end() - offset).unwrap_or(usize::MAX).min(bytes);
        let mut lines = vec![0; left];
        file.read_exact_at(&mut lines, offset - segment.base)?;
        if let Some(end) = lines.iter().rposition(|byte| *byte == b'\n') {
            lines.truncate(end + 1);
        }
        Ok(lines)
    }

    /// The last line of all, if it has not been deleted.
    pub(super) fn last_line(&self) -> Option<Vec<u8>> {
        let last = self.segments.iter().filter(|segment| segment.length > 0).last()?;
        let mut lines = fs::read(self.directory.join(last.file_name())).ok()?;
        lines.truncate(usize::try_from(last.length).ok()?.saturating_sub(1));
        let begin = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        Some(lines.split_off(begin))
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
        let file = append_to(&self.directory.join(RESERVE))?;
        posix_fallocate(&file, 0, RESERVE_BYTES).map_err(io::Error::from)
    }

    /// Gives that piece free.
    pub(super) fn release(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(RESERVE))
    }

    /// Reads what must be known after a restart.
    pub(super) fn progress(&self) -> Option<Vec<u8>> {
        fs::read(self.directory.join(PROGRESS)).ok()
    }

    /// Writes it, all or nothing.
    pub(super) fn set_progress(&self, progress: &[u8]) -> io::Result<()> {
        let new = self.directory.join("progress.new");
        fs::write(&new, progress)?;
        fs::rename(new, self.directory.join(PROGRESS))
    }
}

/// The segments in the directory, sorted, the last one cut to whole lines.
fn found(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(base) = entry.file_name().to_str().and_then(base_of) {
            found.push(Segment { base, length: entry.metadata()?.len() });
        }
    }
    found.sort_by_key(|segment| segment.base);
    if let Some(last) = found.last_mut() {
        let path = directory.join(last.file_name());
        let content = fs::read(&path)?;
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        last.length = whole as u64;
        OpenOptions::new().write(true).open(path)?.set_len(last.length)?;
    }
    Ok(found)
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::segments::SEGMENT_BYTES;

    #[test]
    fn a_cut_last_line_is_dropped_and_writing_goes_on_behind_the_whole_ones() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        files.append(b"one\n").unwrap();
        files.append(b"two\n").unwrap();
        let name = directory.path().join(files.segments().active().file_name());
        fs::write(&name, b"one\ntwo\nthr").unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        assert_eq!(files.segments().end(), 8);
        files.append(b"four\n").unwrap();
        assert_eq!(fs::read(name).unwrap(), b"one\ntwo\nfour\n");
        assert_eq!(files.read(4, 100).unwrap(), b"two\nfour\n");
        // Only whole lines: four bytes more would cut the last one.
        assert_eq!(files.read(4, 8).unwrap(), b"two\n");
        assert_eq!(files.read(13, 100).unwrap(), b"");
    }

    #[test]
    fn acknowledged_segments_are_deleted_and_the_offset_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        let mut long = vec![b'x'; usize::try_from(SEGMENT_BYTES).unwrap()];
        long.push(b'\n');
        files.append(&long).unwrap();
        let end = files.segments().end();
        files.forget_before(end).unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        let files = Files::open(directory.path()).unwrap();
        assert_eq!((files.segments().begin(), files.segments().end()), (end, end));
    }

    #[test]
    fn segments_that_do_not_fit_together_are_moved_together() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(Segment { base: 0, length: 0 }.file_name()), b"a\n").unwrap();
        fs::write(directory.path().join(Segment { base: 9, length: 0 }.file_name()), b"b\n").unwrap();
        let files = Files::open(directory.path()).unwrap();
        assert_eq!(files.read(2, 10).unwrap(), b"b\n");
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
