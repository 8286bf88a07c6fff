//! The shim's copy in the state directory: a living sandbox keeps the one it was started with, whatever is built or installed
//! later.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};
use tracing::warn;

/// Characters of the content's hash in a copy's name.
const NAME_CHARS: usize = 16;
/// Read and executed by every sandbox's user, written by nobody.
const MODE: u32 = 0o555;

/// Copies the shim into a directory under its content's hash, so that the copy is whole also after a loss of power. One that is there
/// already is taken only if it is what its name says; another is replaced, and sandboxes that live keep what they have.
///
/// # Errors
/// The shim cannot be read, or the copy not be written.
pub(crate) fn install(directory: &Path, shim: &Path) -> anyhow::Result<PathBuf> {
    let bytes = fs::read(shim).with_context(|| format!("the shim \"{}\" cannot be read", shim.display()))?;
    let hash = hex::encode(Sha256::digest(&bytes));
    let place = directory.join(&hash[..NAME_CHARS]);
    let damaged = match fs::symlink_metadata(&place) {
        Ok(data) if data.is_file() && data.permissions().mode() & 0o777 == MODE => {
            if fs::read(&place).is_ok_and(|found| found == bytes) {
                return Ok(place);
            }
            true
        }
        Ok(_) => true,
        Err(_) => false,
    };
    if damaged {
        warn!("the shim's copy \"{}\" was damaged and is replaced", place.display());
    }
    write(directory, &place, &bytes).context("the shim cannot be installed")?;
    Ok(place)
}

fn write(directory: &Path, place: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut staged = tempfile::NamedTempFile::new_in(directory)?;
    staged.write_all(bytes)?;
    let file = staged.as_file();
    file.set_permissions(Permissions::from_mode(MODE))?;
    // The content before the name, and the name before anybody relies on it.
    file.sync_all()?;
    // Closed at once: a file that is open for writing cannot be executed.
    drop(staged.persist(place)?);
    File::open(directory)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(directory: &Path) -> PathBuf {
        let shim = directory.join("built");
        fs::write(&shim, "the shim").unwrap();
        let copies = directory.join("copies");
        fs::create_dir_all(&copies).unwrap();
        install(&copies, &shim).unwrap()
    }

    fn is_whole(place: &Path) -> bool {
        let data = fs::symlink_metadata(place).unwrap();
        let mode = data.permissions().mode() & 0o777;
        data.is_file() && mode == MODE && fs::read(place).unwrap() == b"the shim"
    }

    #[test]
    fn a_whole_copy_is_kept_and_another_shim_gets_another() {
        let directory = tempfile::tempdir().unwrap();
        let place = installed(directory.path());
        assert!(is_whole(&place));
        let before = place.metadata().unwrap();
        assert_eq!(installed(directory.path()), place);
        assert_eq!(
            std::os::unix::fs::MetadataExt::ino(&place.metadata().unwrap()),
            std::os::unix::fs::MetadataExt::ino(&before)
        );
        fs::write(directory.path().join("built"), "another").unwrap();
        let other = install(place.parent().unwrap(), &directory.path().join("built")).unwrap();
        assert_ne!(other, place);
        assert!(is_whole(&place), "living sandboxes keep theirs");
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_damaged_copy_is_replaced_and_whoever_has_it_open_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = installed(directory.path());
        for damage in ["", "the shi", "the shin"] {
            fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
            fs::write(&place, damage).unwrap();
            fs::set_permissions(&place, Permissions::from_mode(MODE)).unwrap();
            let mut open = File::open(&place).unwrap();
            installed(directory.path());
            assert!(is_whole(&place), "{damage:?}");
            let mut text = String::new();
            std::io::Read::read_to_string(&mut open, &mut text).unwrap();
            assert_eq!(text, damage);
        }
        // One that sandboxes cannot execute, and one that is a link to what somebody else may change.
        fs::set_permissions(&place, Permissions::from_mode(0o600)).unwrap();
        installed(directory.path());
        assert!(is_whole(&place));
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(directory.path().join("built"), &place).unwrap();
        installed(directory.path());
        assert!(is_whole(&place));
    }

    #[test]
    fn a_shim_that_is_missing_is_told_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let error = install(directory.path(), Path::new("/does/not/exist")).unwrap_err();
        assert!(format!("{error:#}").contains("/does/not/exist"), "{error:#}");
    }
}
