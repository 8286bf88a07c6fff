//! Starts bubblewrap so that its first process waits until it has its limits and is written down.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use caisson_domain::protocol::places;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::setrlimit;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid, pipe2};
use rustix::process::{Resource, Rlimit, prlimit};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::bubblewrap::{Descriptors, Host, arguments, own_files};
use super::descriptors::{inherit, inherited, numbers};
use super::identity::Identity;
use super::order::Order;
use super::record::LOG;
use super::seccomp::filters;
use super::stage::Stage;
use super::supervisor::Signals;
use crate::profile::{LOG_BYTES, OOM_SCORE_ADJ};

/// How long bubblewrap may take to make the namespaces, and then to become the first program, in seconds.
const NAMESPACES_S: u64 = 20;
/// Time between looks at whether it has. The kernel tells nobody of that moment.
const LOOK: Duration = Duration::from_millis(1);
/// How long to wait for the rest of what was said by who has ended.
const REST: Duration = Duration::from_secs(1);
/// What bubblewrap says first when it fails, and its exit code then.
const FAILURE: (&str, i64) = ("bwrap: ", 1);
/// Longest description of the namespaces, in bytes.
const INFO_BYTES: u64 = 4096;
/// Most of it that an error repeats, in bytes.
const LAST_WORDS: usize = 1024;
/// What a signal adds to itself as an exit code.
const SIGNALLED: i64 = 128;

/// A sandbox in which nothing has run yet.
pub(super) struct Launch {
    pub(super) child: Child,
    pub(super) gate: Gate,
    pub(super) said: Said,
}

/// What bubblewrap and the first program say.
pub(super) struct Said {
    text: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
}

/// What keeps the first process waiting, also when everybody else of its sandbox has been killed.
pub(super) struct Gate(OwnedFd);

impl Gate {
    /// Lets it go on.
    pub(super) fn open(self) -> io::Result<()> {
        File::from(self.0).write_all(b"1")
    }
}

/// Bubblewrap, and the first process of its sandbox.
pub(super) struct Child {
    bubblewrap: Pid,
    pub(super) first: Identity,
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The first process's exit code; none if nobody knows it.
    pub(super) code: Option<i64>,
}

/// What bubblewrap tells on `--info-fd`.
#[derive(Deserialize)]
struct Info {
    #[serde(rename = "child-pid")]
    child_pid: i32,
}

/// Starts bubblewrap and waits until its first process exists.
pub(super) async fn launch(order: &Order, stage: &Stage, signals: &mut Signals) -> Result<Launch, String> {
    let Spawned { bubblewrap, info, gate, said } =
        spawn(order, stage).map_err(|error| format!("bubblewrap could not be started: {error}"))?;
    let read = async {
        let mut text = String::new();
        info.take(INFO_BYTES).read_to_string(&mut text).await.map(|_| text)
    };
    let text = tokio::time::timeout(Duration::from_secs(NAMESPACES_S), read).await;
    let told = text.ok().and_then(Result::ok).and_then(|text| serde_json::from_str::<Info>(&text).ok());
    let first = told.and_then(|info| Identity::of(info.child_pid).ok());
    let Some(first) = first else {
        if let Ok(Some(held)) = Identity::of(bubblewrap.as_raw()).and_then(|process| process.hold()) {
            held.signal(rustix::process::Signal::KILL).ok();
        }
        while waitpid(bubblewrap, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
            signals.child.recv().await;
        }
        return Err(format!("bubblewrap could not make the sandbox: {}", said.last_words().await));
    };
    Ok(Launch { child: Child { bubblewrap, first }, gate, said })
}

struct Spawned {
    bubblewrap: Pid,
    info: pipe::Receiver,
    gate: Gate,
    said: Said,
}

fn spawn(order: &Order, stage: &Stage) -> io::Result<Spawned> {
    let files = own_files(order.uid, order.gid);
    let files = files.iter().map(|file| inherited(file.text.as_bytes())).collect::<io::Result<Vec<_>>>()?;
    let filters = filters().map_err(io::Error::other)?;
    let filters = filters.iter().map(|filter| inherited(filter)).collect::<io::Result<Vec<_>>>()?;
    let descriptors = Descriptors { files: &numbers(&files), filters: &numbers(&filters) };
    let list = inherited(&arguments(order, &Host::look(), &descriptors, |index| stage.of(index)))?;
    let (info, info_end) = pipe2(OFlag::O_CLOEXEC)?;
    let (gate_end, gate) = gate()?;
    inherit(&info_end)?;
    inherit(&gate_end)?;
    #[expect(clippy::disallowed_methods, reason = "bubblewrap is started here, with an argument vector")]
    let mut command = Command::new(&order.bubblewrap);
    let number = |descriptor: &OwnedFd| descriptor.as_raw_fd().to_string();
    command
        .arg0(&order.mark)
        .args(["--args", &number(&list), "--info-fd", &number(&info_end), "--block-fd", &number(&gate_end)])
        .args(["--", places::SHIM])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if geteuid().is_root() {
        // Supplementary groups go with the user.
        command.uid(order.uid).gid(order.gid);
        if order.group.is_none() {
            inherit_limits(order)?;
        }
    }
    let mut child = command.spawn()?;
    let bubblewrap = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let mut said = Said { text: Arc::default(), readers: Vec::new() };
    for pipe in [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)] {
        said.keep(pipe)?;
    }
    Ok(Spawned { bubblewrap, info: pipe::Receiver::from_owned_fd(info)?, gate: Gate(gate), said })
}

/// The two ends of the gate. Bubblewrap takes the end of what it waits on for the word to go on, so its own end can be written to
/// as well: as long as it is there, there is no end.
fn gate() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reading, gate) = pipe2(OFlag::O_CLOEXEC)?;
    let both =
        File::options().read(true).write(true).open(format!("/proc/self/fd/{}", reading.as_raw_fd()))?;
    Ok((both.into(), gate))
}

impl Said {
    /// Keeps what is said on a pipe, in memory for an error and in the record for whoever looks, up to the bound; the rest is
    /// read and dropped, so that nobody waits for it.
    fn keep(&mut self, pipe: Option<OwnedFd>) -> io::Result<()> {
        let Some(pipe) = pipe else { return Ok(()) };
        let mut log = File::options().create(true).append(true).open(LOG)?;
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let text = Arc::clone(&self.text);
        #[expect(
            clippy::disallowed_methods,
            reason = "this process ends when its sandbox has; nothing outlives it"
        )]
        self.readers.push(tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                let room = LOG_BYTES.saturating_sub(text.len()).min(read);
                text.extend_from_slice(&buffer[..room]);
                log.write_all(&buffer[..room]).ok();
            }
        }));
        Ok(())
    }

    /// The end of what was said by who has ended.
    async fn last_words(self) -> String {
        let rest = async {
            for reader in self.readers {
                // It does not panic.
                reader.await.ok();
            }
        };
        tokio::time::timeout(REST, rest).await.ok();
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let from = text.len().saturating_sub(LAST_WORDS);
        String::from_utf8_lossy(&text[from..]).trim().to_owned()
    }
}

/// Puts the waiting first process into its control group, or bounds it as well as can be without one.
pub(super) fn bound(order: &Order, pid: i32) -> io::Result<()> {
    match &order.group {
        Some(group) => group.add(pid)?,
        None if geteuid().is_root() => {}
        None => bound_in_its_namespace(order, pid)?,
    }
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ.to_string())
}

/// Limits of this process pass to what it starts. The session's user has no other processes that would count, and root is
/// not counted itself; but to bound another user's process afterwards would need more than root often has.
fn inherit_limits(order: &Order) -> io::Result<()> {
    let (pids, memory) = (order.limits.pids.into(), order.limits.memory_bytes);
    setrlimit(nix::sys::resource::Resource::RLIMIT_NPROC, pids, pids)?;
    setrlimit(nix::sys::resource::Resource::RLIMIT_DATA, memory, memory)?;
    Ok(())
}

/// A process of the server's own user is bounded once it is in its user namespace, where only the sandbox's count.
fn bound_in_its_namespace(order: &Order, pid: i32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid);
    let both = |most| Rlimit { current: Some(most), maximum: Some(most) };
    prlimit(pid, Resource::Nproc, both(order.limits.pids.into()))?;
    prlimit(pid, Resource::Data, both(order.limits.memory_bytes))?;
    Ok(())
}

impl Child {
    /// Waits until the first process has become the program that the sandbox is for, or has ended as it.
    ///
    /// # Errors
    /// It could not, in bubblewrap's words.
    pub(super) async fn executing(&mut self, mark: &str, said: Said) -> Result<Option<End>, String> {
        let failed = "the sandbox's program could not be started";
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(NAMESPACES_S) {
            if let Some(end) = self.reap() {
                let words = said.last_words().await;
                let (first, code) = FAILURE;
                return if end.code == Some(code) && words.starts_with(first) {
                    Err(format!("{failed}: {words}"))
                } else {
                    Ok(Some(end))
                };
            }
            let line = std::fs::read(format!("/proc/{}/cmdline", self.first.pid)).unwrap_or_default();
            // A process that is ending has an empty one.
            if !line.is_empty() && !line.starts_with(mark.as_bytes()) {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("{failed} in {NAMESPACES_S} s"))
    }

    /// Takes in every end so far; the sandbox's, once it has ended.
    pub(super) fn reap(&mut self) -> Option<End> {
        loop {
            let (pid, code, signalled) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, i64::from(code), false),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, SIGNALLED + signal as i64, true),
                Ok(WaitStatus::StillAlive) => return None,
                Err(Errno::EINTR) | Ok(_) => continue,
                // No child is left, and the first process was none.
                Err(_) => return Some(End { code: None }),
            };
            if pid.as_raw() == self.first.pid {
                return Some(End { code: Some(code) });
            }
            // Bubblewrap ends with the exit code of the first process, unless it was killed itself: then that process is this one's
            // own child now.
            if pid == self.bubblewrap && !signalled {
                return Some(End { code: Some(code) });
            }
        }
    }
}
