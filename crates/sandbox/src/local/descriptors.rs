//! Descriptors that bubblewrap inherits.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file in memory that holds these bytes, to be read from its beginning, and that the next program inherits.
///
/// # Errors
/// The kernel has no room.
pub(crate) fn inherited(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("caisson", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    inherit(&file)?;
    Ok(file.into())
}

/// Lets the next program that is started inherit a descriptor. The process must have no other thread that starts one.
///
/// # Errors
/// The descriptor is not open.
pub(crate) fn inherit(descriptor: &impl AsFd) -> io::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(Into::into)
}

/// The number of each.
pub(crate) fn numbers(descriptors: &[OwnedFd]) -> Vec<i32> {
    descriptors.iter().map(AsRawFd::as_raw_fd).collect()
}
