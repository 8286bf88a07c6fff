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

/// Makes a directory one whose mounts are seen by who has mounts of their own as well; it is unmounted with those.
///
/// # Errors
/// This is not root.
pub fn share(directory: &Path) -> anyhow::Result<()> {
    for arguments in [&["--bind", "."][..], &["--make-shared"]] {
        #[expect(clippy::disallowed_methods, reason = "mount(8) is started here, with an argument vector")]
        let mut mount = std::process::Command::new("mount");
        let done = mount.args(arguments).arg(directory).current_dir(directory).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        anyhow::ensure!(done.status.success(), "{} could not be shared: {said}", directory.display());
    }
    Ok(())
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

/// The files of a session without a sandbox: its directory, or its volume mounted elsewhere until this is dropped.
#[derive(Debug)]
pub struct SessionFiles {
    mounted: Option<tempfile::TempDir>,
    directory: PathBuf,
}

impl SessionFiles {
    /// Waits until no sandbox uses them, a minute at most, and opens them.
    ///
    /// # Errors
    /// They are still in use, or the volume cannot be mounted.
    pub fn open(state_dir: &Path, session: &str) -> anyhow::Result<Self> {
        let directory = state_dir.join("sessions").join(session);
        let image = state_dir.join("volumes").join(format!("{session}.img"));
        if !image.exists() {
            return Ok(Self { mounted: None, directory });
        }
        let start = std::time::Instant::now();
        let place = directory.canonicalize()?;
        while mounted(state_dir)?.contains(&place) {
            anyhow::ensure!(start.elapsed().as_secs() < 60, "{} is still in use", place.display());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let point = tempfile::tempdir()?;
        #[expect(clippy::disallowed_methods, reason = "mount(8) is started here, with an argument vector")]
        let mounting = std::process::Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(point.path())
            .output()?;
        let said = String::from_utf8_lossy(&mounting.stderr);
        anyhow::ensure!(mounting.status.success(), "{} could not be mounted: {said}", image.display());
        Ok(Self { directory: point.path().to_owned(), mounted: Some(point) })
    }

    /// The directory in which `workspace` and `home` lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for SessionFiles {
    fn drop(&mut self) {
        if let Some(point) = &self.mounted {
            #[expect(
                clippy::disallowed_methods,
                reason = "umount(8) is started here, with an argument vector"
            )]
            let unmounted = std::process::Command::new("umount").arg(point.path()).status();
            drop(unmounted);
        }
    }
}
