//! The engines that end-to-end tests run on, and what the host shows of a server's sandboxes whichever engine made them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::docker;
use crate::parts::Parts;
use crate::volumes;

/// How long a supervisor may take to end its sandbox.
const END: Duration = Duration::from_secs(20);

/// Which engine a test's server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A Docker Engine.
    Docker,
    /// Bubblewrap.
    Local,
}

impl Engine {
    /// Its name in the server's settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Local => "local",
        }
    }

    /// Names of a server's sandboxes, living or not.
    ///
    /// # Errors
    /// The engine cannot be asked.
    pub fn sandboxes(self, parts: &Parts, state_dir: &Path) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Docker => {
                let server = std::fs::read_to_string(state_dir.join("server_id"))?;
                docker::containers_of(parts, server.trim())
            }
            Self::Local => {
                let records = std::fs::read_dir(state_dir.join("local"))?;
                records.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
            }
        }
    }

    /// Takes every sandbox of a server away, and what is mounted for them, without the server.
    ///
    /// # Errors
    /// The engine refuses, or a sandbox does not go.
    pub fn remove_all(self, parts: &Parts, state_dir: &Path) -> anyhow::Result<()> {
        for sandbox in self.sandboxes(parts, state_dir)? {
            match self {
                Self::Docker => drop(docker::docker(parts, &["rm", "--force", &sandbox])?),
                Self::Local => end_supervisor(&state_dir.join("local").join(&sandbox), &sandbox)?,
            }
        }
        volumes::unmount_all(state_dir)
    }

    /// What this machine calls a sandbox: by these, processes around it, control groups and mounts are found.
    ///
    /// # Errors
    /// The engine does not know it.
    pub fn marks(self, parts: &Parts, sandbox: &str) -> anyhow::Result<Vec<String>> {
        let mut marks = vec![sandbox.to_owned()];
        if self == Self::Docker {
            let id = docker::inspect(parts, sandbox)?["Id"].as_str().map(str::to_owned);
            marks.push(id.context("the container has no id")?);
        }
        Ok(marks)
    }

    /// Host process ids of everything in a sandbox, its first process first.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(self, parts: &Parts, state_dir: &Path, sandbox: &str) -> anyhow::Result<Vec<u32>> {
        let first = match self {
            Self::Docker => docker::inspect(parts, sandbox)?["State"]["Pid"].as_u64(),
            Self::Local => {
                let file = state_dir.join("local").join(sandbox).join("first.json");
                serde_json::from_slice::<Value>(&std::fs::read(file)?)?["process"]["pid"].as_u64()
            }
        };
        let first = u32::try_from(first.context("no first process")?)?;
        let mut found = vec![first];
        let mut next = 0;
        while next < found.len() {
            found.extend(children(found[next]));
            next += 1;
        }
        Ok(found)
    }
}

/// Whether a process is there and has not merely been left for its parent to take in.
#[must_use]
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// A variable of a process's environment, as it was started.
///
/// # Errors
/// It has ended, does not have the variable, or this is not root.
pub fn variable(pid: u32, name: &str) -> anyhow::Result<String> {
    let all = std::fs::read(format!("/proc/{pid}/environ"))?;
    let begin = format!("{name}=");
    let found = all.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(begin.as_bytes()));
    Ok(String::from_utf8(found.with_context(|| format!("process {pid} has no {name}"))?.to_vec())?)
}

/// Kills a process with SIGKILL.
///
/// # Errors
/// It is not there.
pub fn kill_9(pid: u32) -> anyhow::Result<()> {
    signal(pid, "KILL")
}

/// Sends a process a signal, by its name without `SIG`.
///
/// # Errors
/// It is not there.
pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "kill(1) is started here, with an argument vector")]
    let sent = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status()?;
    anyhow::ensure!(sent.success(), "process {pid} was not there for SIG{name}");
    Ok(())
}

/// Host process id of the supervisor of a local sandbox.
///
/// # Errors
/// There is none.
pub fn supervisor(state_dir: &Path, sandbox: &str) -> anyhow::Result<u32> {
    let file = state_dir.join("local").join(sandbox).join("supervisor.json");
    let pid = serde_json::from_slice::<Value>(&std::fs::read(file)?)?["pid"].as_u64();
    Ok(u32::try_from(pid.context("no supervisor")?)?)
}

/// Host process id of a process's parent.
///
/// # Errors
/// It has ended.
pub fn parent(pid: u32) -> anyhow::Result<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before the last parenthesis may hold anything.
    let fields = stat.rsplit_once(')').context("an odd /proc/PID/stat")?.1;
    Ok(fields.split_ascii_whitespace().nth(1).context("no parent")?.parse()?)
}

/// What this machine still has of a sandbox by one of its marks: processes whose argument list names it, control groups
/// and mounts.
///
/// # Errors
/// `/proc` cannot be read.
pub fn leftovers(mark: &str) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains(mark) {
            left.push(line.replace('\0', " "));
        }
    }
    let mut directories = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(mark) {
                    left.push(entry.path().display().to_string());
                }
                directories.push(entry.path());
            }
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    left.extend(mounts.lines().filter(|line| line.contains(mark)).map(str::to_owned));
    Ok(left)
}

/// Tells a sandbox's supervisor to end, and with it the sandbox, and waits until it has.
fn end_supervisor(record: &Path, sandbox: &str) -> anyhow::Result<()> {
    let Ok(text) = std::fs::read(record.join("supervisor.json")) else { return Ok(()) };
    let pid = serde_json::from_slice::<Value>(&text)?["pid"].as_u64().context("no supervisor")?;
    // Its number may mean another process by now.
    let lives = || {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(sandbox)
    };
    if !lives() {
        return Ok(());
    }
    signal(u32::try_from(pid)?, "TERM")?;
    let start = Instant::now();
    while lives() {
        anyhow::ensure!(start.elapsed() < END, "the supervisor of {sandbox} did not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .flat_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

/// Makes a test of every named function, `async fn name(engine: Engine)`, for every engine: for what has its own database, or
/// needs a certain one. Every other story is told by
/// [`on_every_engine_and_database`](crate::on_every_engine_and_database).
#[macro_export]
macro_rules! on_every_engine {
    ($($name:ident)*) => {
        mod on_docker {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    super::$name($crate::engine::Engine::Docker).await;
                }
            )*
        }

        mod on_local {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    super::$name($crate::engine::Engine::Local).await;
                }
            )*
        }
    };
}
