//! What a killed server has left mounted.

use std::path::{Path, PathBuf};

/// The places below a server's state directory at which something is mounted.
///
/// # Errors
/// The kernel does not tell.
pub fn mounted(state_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let state_dir = state_dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(&state_dir)).collect())
}

/// The loop devices whose images lie below a server's state directory.
///
/// # Errors
/// The kernel does not tell.
pub fn loop_devices(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let state_dir = state_dir.canonicalize()?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let image = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(image.trim_end()).starts_with(&state_dir) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Unmounts everything below a state directory whose server and sandboxes are gone.
///
/// # Errors
/// Something is still in use.
pub fn unmount_all(state_dir: &Path) -> anyhow::Result<()> {
    if !state_dir.exists() {
        return Ok(());
    }
    for point in mounted(state_dir)?.into_iter().rev() {
        #[expect(clippy::disallowed_methods, reason = "umount(8) is started here, with an argument vector")]
        let unmounted = std::process::Command::new("umount").arg(&point).output()?;
        let said = String::from_utf8_lossy(&unmounted.stderr);
        anyhow::ensure!(unmounted.status.success(), "{} could not be unmounted: {said}", point.display());
    }
    Ok(())
}
