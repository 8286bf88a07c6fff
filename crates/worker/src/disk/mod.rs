//! Keeps sessions from filling the server's disk: each has a room of a fixed size for workspace and home.
//!
//! Where the server is root and has loop devices, a room is a file system of its own ([`volume`]) and its bound is the
//! kernel's. Elsewhere the worker measures what lies in it ([`measure`]) and ends a run that has too much, which is weaker.

pub(crate) mod floor;
mod measure;
mod mounts;
pub(crate) mod places;
pub(crate) mod volume;

use std::io;
use std::path::Path;

pub(crate) use measure::Amount;
pub use measure::DEPTH;
use measure::measure;
pub use volume::{BYTES_PER_FILE, TOOL_S, VolumeTools};

/// Size of the volume that a sandbox's journal lies in, in MiB: the shim's own bound (64 MiB), its reserve, a segment that
/// is being deleted, and the file system's own needs.
pub const JOURNAL_VOLUME_MIB: u32 = 128;
/// A room with less free space than this is full, in bytes.
pub const FULL_BYTES: u64 = 1024 * 1024;
/// A room in which fewer further files can be made than this is full.
pub const FULL_FILES: u64 = 16;
const MIB: u64 = 1024 * 1024;

/// How sessions are kept within their rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskCaps {
    /// Each room is a file system of its own.
    Volumes(VolumeTools),
    /// Rooms are measured, and a run that has too much is ended.
    Measured {
        /// Why, for people.
        reason: String,
    },
}

impl DiskCaps {
    /// Finds out what can be had: makes, mounts and removes a small volume in `directory`, which must be there and be the
    /// server's alone. Blocks.
    ///
    /// An engine that runs elsewhere (the server in a container, the engine outside) must see what is mounted here; if it
    /// does not, it finds no workspace to show and every start fails, so that nobody works without a bound unnoticed.
    #[must_use]
    pub fn find(wanted: bool, directory: &Path) -> Self {
        let measured = |reason: &str| Self::Measured { reason: reason.to_owned() };
        if !wanted {
            return measured("switched off by the configuration");
        }
        if !nix::unistd::geteuid().is_root() {
            return measured("the server is not root");
        }
        let Some(tools) = VolumeTools::find() else {
            return measured("mkfs.ext4 or mount is not installed");
        };
        match volume::probe(&tools, directory) {
            Ok(()) => Self::Volumes(tools),
            Err(why) => measured(&format!("no volume can be mounted: {why}")),
        }
    }

    /// What is weaker than it could be, for people.
    #[must_use]
    pub fn weakness(&self) -> Option<String> {
        match self {
            Self::Volumes(_) => None,
            Self::Measured { reason } => Some(format!(
                "the disk space of sessions is measured and not walled in ({reason}): a workspace can be over its bound for seconds"
            )),
        }
    }
}

/// The most that a room may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cap {
    pub(crate) mib: u32,
}

impl Cap {
    /// The smaller of what was asked for and what the server gives.
    pub(crate) fn of(asked_mib: Option<u32>, most_mib: u32) -> Self {
        Self { mib: asked_mib.map_or(most_mib, |asked| asked.min(most_mib)) }
    }

    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.mib) * MIB
    }

    fn files(self) -> u64 {
        self.bytes() / BYTES_PER_FILE
    }
}

/// A bound of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Space,
    Files,
    Depth,
    /// Of the sandbox's journal directory.
    Journal,
}

/// How full a room is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) used: Amount,
    pub(crate) most: Amount,
    /// Whether the kernel keeps it within its bounds.
    pub(crate) walled: bool,
    /// Whether the sandbox's journal directory holds more than its own bound.
    pub(crate) journal_full: bool,
}

impl Room {
    /// Looks at the room of a session: its directory, in which workspace and home lie, and at the journal of its sandbox,
    /// in which the agent can write too. Blocks on the file system.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn look(session: &Path, journal: &Path, cap: Cap) -> io::Result<Self> {
        if volume::is_mounted(session) {
            let stat = nix::sys::statvfs::statvfs(session)?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
            let most = Amount { bytes: bytes(stat.blocks()), files: stat.files(), too_deep: false };
            let used = Amount {
                bytes: most.bytes.saturating_sub(bytes(stat.blocks_available())),
                files: most.files.saturating_sub(stat.files_available()),
                too_deep: false,
            };
            return Ok(Self { used, most, walled: true, journal_full: false });
        }
        let journal_cap = Cap { mib: JOURNAL_VOLUME_MIB };
        // It goes with its sandbox, which may have ended.
        let journal = measure(&[journal], journal_cap.files()).unwrap_or_default();
        let journal_full = journal.bytes > journal_cap.bytes() || journal.files > journal_cap.files();
        let (workspace, home) = (session.join(WORKSPACE), session.join(HOME));
        let used = measure(&[&workspace, &home], cap.files())?;
        let most = Amount { bytes: cap.bytes(), files: cap.files(), too_deep: false };
        Ok(Self { used, most, walled: false, journal_full })
    }

    /// What lies in the room of a session that nobody uses, as far as it can be looked at.
    pub(crate) fn bytes_of(session: &Path) -> u64 {
        let parts = [session.join(WORKSPACE), session.join(HOME)];
        measure(&[&parts[0], &parts[1]], u64::MAX).unwrap_or_default().bytes
    }

    /// The bound that is reached.
    pub(crate) fn full(&self) -> Option<Bound> {
        let (used, most) = (self.used, self.most);
        let (bytes, files) = if self.walled { (FULL_BYTES, FULL_FILES) } else { (0, 0) };
        if self.journal_full {
            Some(Bound::Journal)
        } else if used.too_deep {
            Some(Bound::Depth)
        } else if used.bytes > most.bytes.saturating_sub(bytes) {
            Some(Bound::Space)
        } else if used.files > most.files.saturating_sub(files) {
            Some(Bound::Files)
        } else {
            None
        }
    }
}

/// Names of a session's directories in its room.
pub(crate) const WORKSPACE: &str = "workspace";
pub(crate) const HOME: &str = "home";

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: u64, files: u64, walled: bool) -> Room {
        let most = Amount { bytes: 64 * MIB, files: 1000, too_deep: false };
        Room { used: Amount { bytes, files, too_deep: false }, most, walled, journal_full: false }
    }

    #[test]
    fn a_walled_room_is_full_just_before_its_end_and_a_measured_one_beyond_it() {
        let most = 64 * MIB;
        assert_eq!(room(most - FULL_BYTES, 1000 - FULL_FILES, true).full(), None);
        assert_eq!(room(most - FULL_BYTES + 1, 0, true).full(), Some(Bound::Space));
        assert_eq!(room(0, 1000 - FULL_FILES + 1, true).full(), Some(Bound::Files));
        assert_eq!(room(most, 1000, false).full(), None);
        assert_eq!(room(most + 1, 0, false).full(), Some(Bound::Space));
        assert_eq!(room(0, 1001, false).full(), Some(Bound::Files));
        let deep = Room { used: Amount { too_deep: true, ..Amount::default() }, ..room(0, 0, false) };
        assert_eq!(deep.full(), Some(Bound::Depth));
        assert_eq!(Room { journal_full: true, ..deep }.full(), Some(Bound::Journal));
    }

    #[test]
    fn a_run_gets_what_it_asks_for_up_to_what_the_server_gives() {
        assert_eq!(Cap::of(None, 100).mib, 100);
        assert_eq!(Cap::of(Some(64), 100).mib, 64);
        assert_eq!(Cap::of(Some(101), 100).mib, 100);
    }

    #[test]
    fn whoever_is_not_root_or_does_not_want_volumes_measures_and_says_so() {
        let caps = DiskCaps::find(false, Path::new("/nonexistent"));
        let weakness = caps.weakness().unwrap();
        assert!(weakness.contains("switched off by the configuration"), "{weakness}");
        let caps = DiskCaps::find(true, Path::new("/nonexistent"));
        assert!(matches!(caps, DiskCaps::Measured { .. }), "{caps:?}");
    }
}
