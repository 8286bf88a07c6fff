//! What the end of a process by a signal leaves: the server's has secrets in memory, and must leave no core.
//!
//! Whether there was one is the kernel's own word to whoever waits for the process, wherever the machine puts cores: into files or
//! into another program (core(5)). Nobody can set that for one process alone, so on a machine that throws them away nothing is shown.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use testkit::engine::signal;

/// How long a process may take to end, its core included.
pub(super) const WAIT: Duration = Duration::from_mins(1);

/// A process that may leave a core of any size, and is ended by a signal that has one made.
#[derive(Debug)]
pub(super) struct Crash {
    /// Its working directory, where cores are files that nobody named otherwise.
    place: PathBuf,
    /// Those that lay there before.
    before: Vec<PathBuf>,
}

impl Crash {
    /// Brings it about; whoever started the process waits for its end.
    ///
    /// # Errors
    /// `prlimit` cannot be started, or the process does not live.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let place = fs::read_link(format!("/proc/{pid}/cwd"))
            .with_context(|| format!("process {pid} has no working directory"))?;
        #[expect(clippy::disallowed_methods, reason = "prlimit is started here, with an argument vector")]
        let mut command = Command::new("prlimit");
        let unbounded = command.args(["--pid", &pid.to_string(), "--core=unlimited:unlimited"]).status();
        let unbounded = unbounded.context("prlimit cannot be started")?;
        ensure!(unbounded.success(), "prlimit gives process {pid} no room for a core");
        let before = cores(&place)?;
        signal(pid, "ABRT")?;
        Ok(Self { place, before })
    }

    /// Whether the process, which ended so, has left a core; takes its file away.
    ///
    /// # Errors
    /// It ended in another way, or the file cannot be removed.
    pub(super) fn left_core(self, ended: ExitStatus) -> anyhow::Result<bool> {
        let is_dumped = is_dumped(ended)?;
        let made: Vec<_> =
            cores(&self.place)?.into_iter().filter(|file| !self.before.contains(file)).collect();
        for file in &made {
            fs::remove_file(file).with_context(|| format!("{} cannot be removed", file.display()))?;
        }
        Ok(is_dumped || !made.is_empty())
    }
}

/// Whether another process on this machine leaves a core that is seen.
///
/// # Errors
/// As of [`Crash`]; the process does not end.
pub(super) async fn is_seen() -> anyhow::Result<bool> {
    let place = tempfile::tempdir()?;
    #[expect(clippy::disallowed_methods, reason = "a process to be ended, with an argument vector")]
    let mut command = Command::new("sleep");
    let sleeping = command.arg("600").current_dir(place.path()).stdin(Stdio::null()).spawn();
    let mut sleeping = sleeping.context("sleep cannot be started")?;
    let crash = Crash::of(sleeping.id());
    if crash.is_err() {
        sleeping.kill().ok();
    }
    let start = Instant::now();
    let ended = loop {
        if let Some(ended) = sleeping.try_wait()? {
            break ended;
        }
        if start.elapsed() > WAIT {
            sleeping.kill().ok();
            bail!("a process that was aborted does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    crash?.left_core(ended)
}

/// Whether the kernel wrote out the memory of a process that was aborted; pure.
fn is_dumped(ended: ExitStatus) -> anyhow::Result<bool> {
    let aborted = nix::sys::signal::Signal::SIGABRT as i32;
    ensure!(ended.signal() == Some(aborted), "the process was to be aborted, and ended otherwise: {ended}");
    Ok(ended.core_dumped())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As wait(2) has it: the signal, and a bit if there was a core.
    const ABORTED: i32 = 0x06;
    const DUMPED: i32 = 0x80;

    fn ended(status: i32) -> ExitStatus {
        ExitStatus::from_raw(status)
    }

    fn crash(place: &Path) -> Crash {
        Crash { place: place.to_owned(), before: cores(place).unwrap() }
    }

    #[test]
    fn a_core_is_seen_wherever_the_machine_puts_it() {
        let place = tempfile::tempdir().unwrap();
        assert!(crash(place.path()).left_core(ended(ABORTED | DUMPED)).unwrap(), "the kernel says so");
        assert!(!crash(place.path()).left_core(ended(ABORTED)).unwrap());
        for other in [0x00, 0x09, 0x0b | DUMPED, 0x0100] {
            assert!(crash(place.path()).left_core(ended(other)).is_err(), "{other}");
        }
    }

    #[test]
    fn the_file_of_a_core_is_seen_and_taken_away_and_others_stay() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("core.1"), "of another").unwrap();
        let after = crash(place.path());
        for name in ["core", "core.2", "scores"] {
            fs::write(place.path().join(name), "").unwrap();
        }
        assert!(after.left_core(ended(ABORTED)).unwrap());
        let mut left: Vec<_> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["core.1", "scores"]);
    }

    #[tokio::test]
    async fn a_core_of_another_process_is_seen_where_the_kernel_writes_a_file() {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let seen = is_seen().await.unwrap();
        assert!(seen || pattern.trim() != "core", "the kernel wrote no core into its file");
    }
}
