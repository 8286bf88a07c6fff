//! What the end of a process by a signal leaves: the server's has secrets in memory, and must leave no core file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::engine::{lives, signal};

const WAIT: Duration = Duration::from_secs(20);

/// Lets a process make a core file of any size, ends it by a signal that does, and takes the file away; none if it made none.
///
/// # Errors
/// `prlimit` cannot be started, or the process does not end.
pub(super) async fn core_of(pid: u32) -> anyhow::Result<Option<PathBuf>> {
    let place = fs::read_link(format!("/proc/{pid}/cwd"))
        .with_context(|| format!("process {pid} has no working directory"))?;
    #[expect(clippy::disallowed_methods, reason = "prlimit is started here, with an argument vector")]
    let mut command = Command::new("prlimit");
    let unbounded = command.args(["--pid", &pid.to_string(), "--core=unlimited:unlimited"]).status();
    let unbounded = unbounded.context("prlimit cannot be started")?;
    ensure!(unbounded.success(), "prlimit gives process {pid} no room for a core file");
    let before = cores(&place)?;
    signal(pid, "ABRT")?;
    let start = Instant::now();
    while lives(pid) {
        ensure!(start.elapsed() < WAIT, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let made = cores(&place)?.into_iter().find(|file| !before.contains(file));
    if let Some(file) = &made {
        fs::remove_file(file).with_context(|| format!("{} cannot be removed", file.display()))?;
    }
    Ok(made)
}

/// Whether a process on this machine makes a core file that [`core_of`] finds.
///
/// # Errors
/// As of [`core_of`].
pub(super) async fn is_seen() -> anyhow::Result<bool> {
    let place = tempfile::tempdir()?;
    #[expect(clippy::disallowed_methods, reason = "a process to be ended, with an argument vector")]
    let mut command = Command::new("sleep");
    let sleeping = command.arg("60").current_dir(place.path()).stdin(Stdio::null()).spawn();
    let mut sleeping = sleeping.context("sleep cannot be started")?;
    let made = core_of(sleeping.id()).await;
    sleeping.kill().ok();
    sleeping.wait().context("a process that was ended")?;
    Ok(made?.is_some())
}

/// Core files of a directory, as the kernel calls them where nobody says otherwise.
fn cores(place: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let files = fs::read_dir(place)
        .with_context(|| format!("{} cannot be listed", place.display()))?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let is_core = |name: &str| name == "core" || name.starts_with("core.");
    let files = files.filter(|entry| entry.file_name().to_str().is_some_and(is_core));
    Ok(files.map(|entry| entry.path()).collect())
}
