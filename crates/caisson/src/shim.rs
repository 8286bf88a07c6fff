//! The server's own copy of the shim.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// Copies the shim into a directory under its content's hash: a living sandbox keeps the one it was started with, whatever is
/// built or installed later. A copy that is not what its name says, as a crash of the machine leaves it, is made anew.
///
/// # Errors
/// The shim cannot be read, or the disk refuses.
pub(crate) fn install_shim(directory: &Path, shim: &Path) -> anyhow::Result<PathBuf> {
    let bytes = fs::read(shim).with_context(|| format!("the shim \"{}\" cannot be read", shim.display()))?;
    let hash = Sha256::digest(&bytes);
    let place = directory.join(&hex::encode(hash)[..16]);
    if fs::read(&place).is_ok_and(|there| Sha256::digest(there) == hash) && is_program(&place) {
        return Ok(place);
    }
    let mut staged = tempfile::NamedTempFile::new_in(directory)?;
    staged.write_all(&bytes)?;
    staged.as_file().set_permissions(fs::Permissions::from_mode(0o555))?;
    staged.as_file().sync_all()?;
    staged.persist(&place).context("the shim cannot be installed")?;
    fs::File::open(directory)?.sync_all()?;
    Ok(place)
}

/// A plain file that everybody may run: sandboxes have users of their own.
fn is_program(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o777 == 0o555)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_kept_under_its_hash_and_a_damaged_copy_is_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let (directory, shim) = (root.path().join("copies"), root.path().join("caisson-shim"));
        fs::create_dir(&directory).unwrap();
        fs::write(&shim, "one").unwrap();
        let first = install_shim(&directory, &shim).unwrap();
        assert_eq!(install_shim(&directory, &shim).unwrap(), first);
        fs::write(&shim, "two").unwrap();
        let second = install_shim(&directory, &shim).unwrap();
        assert_eq!(
            (fs::read(&first).unwrap(), fs::read(&second).unwrap()),
            (b"one".to_vec(), b"two".to_vec())
        );

        let damage: [&dyn Fn(); 3] = [
            &|| fs::write(&second, "").unwrap(),
            &|| fs::set_permissions(&second, fs::Permissions::from_mode(0o444)).unwrap(),
            &|| {
                fs::remove_file(&second).unwrap();
                std::os::unix::fs::symlink(&shim, &second).unwrap();
            },
        ];
        for harm in damage {
            fs::set_permissions(&second, fs::Permissions::from_mode(0o755)).unwrap();
            harm();
            assert_eq!(install_shim(&directory, &shim).unwrap(), second);
            assert!(is_program(&second));
            assert_eq!(fs::read(&second).unwrap(), b"two");
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing half made stays");
        assert!(
            install_shim(&directory, &root.path().join("none")).unwrap_err().to_string().contains("none")
        );
    }
}
