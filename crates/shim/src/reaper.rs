//! Child processes. PID 1 inherits every orphan of the sandbox, so one place waits for all of them: it hands the end of
//! a known child to whoever waits for it and drops the others'.
//!
//! A child is started and noted under the same lock that the reaper holds while it reaps, so that no end is missed.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::signal::unix;
use tokio::sync::{Notify, oneshot};

use crate::diagnostics::say;

/// How often ending everything looks again whether everything is gone.
pub(crate) const END_ROUNDS: u32 = 100;
/// Time between two such looks, in milliseconds, unless a child's end is noticed earlier.
pub(crate) const END_ROUND_MS: u64 = 20;

/// How a process ended. Neither value is known if it was ended by a signal that has no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal.
    pub(crate) signal: Option<i32>,
}

impl Exit {
    /// Whether it ended with code 0.
    pub(crate) fn success(self) -> bool {
        self.code == Some(0)
    }
}

/// Whose ends are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphans {
    /// Everybody's: this process is PID 1 or a subreaper.
    Adopted,
    /// Only those of children started here: tests share their process with other tests.
    Ignored,
}

/// A child that was started here and has not been reaped.
#[derive(Debug)]
struct Known {
    waiter: oneshot::Sender<Exit>,
    /// Whether it is to stay where it is.
    held: bool,
}

type Children = HashMap<i32, Known>;

/// Starts, signals and reaps child processes.
#[derive(Debug)]
pub(crate) struct Reaper {
    children: Mutex<Children>,
    orphans: Orphans,
    reaped: Notify,
}

impl Reaper {
    /// Makes the reaper; [`Reaper::watch`] must run for any end to be noticed.
    pub(crate) fn new(orphans: Orphans) -> Arc<Self> {
        Arc::new(Self { children: Mutex::default(), orphans, reaped: Notify::new() })
    }

    /// Reaps whenever a child ends, for ever. `ends` must have been made before the first child was started.
    pub(crate) async fn watch(self: Arc<Self>, mut ends: unix::Signal) {
        while ends.recv().await.is_some() {
            self.reap();
        }
    }

    /// Starts a process. The pipes that the command asks for become those of the child.
    ///
    /// # Errors
    /// That of the operating system if the process or a pipe cannot be made.
    pub(crate) fn spawn(self: &Arc<Self>, command: &mut Command) -> io::Result<Child> {
        let (sender, exit) = oneshot::channel();
        let mut started = {
            let mut children = self.lock();
            let started = command.spawn()?;
            children.insert(started.id().cast_signed(), Known { waiter: sender, held: false });
            started
        };
        let mut child = Child {
            reaper: Arc::clone(self),
            pid: Pid::from_raw(started.id().cast_signed()),
            stdin: None,
            stdout: None,
            stderr: None,
            exit,
            ended: None,
        };
        child.stdin =
            started.stdin.take().map(|pipe| pipe::Sender::from_owned_fd(pipe.into())).transpose()?;
        child.stdout = started.stdout.take().map(|p| pipe::Receiver::from_owned_fd(p.into())).transpose()?;
        child.stderr = started.stderr.take().map(|p| pipe::Receiver::from_owned_fd(p.into())).transpose()?;
        Ok(child)
    }

    /// Ends every process of the sandbox but this one and waits, for a bounded time, until they are gone.
    pub(crate) async fn end_all(&self) {
        for _ in 0..END_ROUNDS {
            let reaped = self.reaped.notified();
            self.kill_all();
            if !self.reap() {
                return;
            }
            // Either is reason enough to look again.
            let _elapsed = tokio::time::timeout(Duration::from_millis(END_ROUND_MS), reaped).await;
        }
        say("processes of the sandbox did not end though they were killed");
    }

    /// Ends every process below this one that was not started here, and waits, for a bounded time, until they are gone.
    pub(crate) async fn end_strays(&self) {
        self.end(Strays::All).await;
    }

    /// The same for those alone that are below no child that was started here and still lives.
    pub(crate) async fn end_orphans(&self) {
        self.end(Strays::Orphans).await;
    }

    async fn end(&self, which: Strays) {
        for _ in 0..END_ROUNDS {
            let reaped = self.reaped.notified();
            let found = match self.reach() {
                Reach::Everybody => self.kill_strays_at_once(which),
                Reach::Found => self.kill_strays_found(which),
            };
            if !found {
                return;
            }
            // Either is reason enough to look again.
            let _elapsed = tokio::time::timeout(Duration::from_millis(END_ROUND_MS), reaped).await;
        }
        say("processes that were left running did not end though they were killed");
    }

    /// Takes in the ends that nobody has noticed yet.
    pub(crate) fn look(&self) {
        self.reap();
    }

    /// Whether any process lives below this one that was not started here.
    pub(crate) fn has_strays(&self) -> bool {
        !self.strays(Strays::All).is_empty()
    }

    /// How a signal reaches the strays.
    fn reach(&self) -> Reach {
        let first = self.orphans != Orphans::Ignored && std::process::id() == 1;
        if first { Reach::Everybody } else { Reach::Found }
    }

    /// Kills the strays while nobody runs; whether there were any. One that changes its number faster than `/proc` can be read
    /// would never be found otherwise.
    fn kill_strays_at_once(&self, which: Strays) -> bool {
        let children = self.lock();
        // One call reaches all of them at once, also those that are being made: a fork begins again after a signal.
        let _nobody = kill(Pid::from_raw(-1), Signal::SIGSTOP);
        let (strays, others) = strays(&children, which);
        send(&strays, Signal::SIGKILL);
        let held = |pid: &&i32| children.get(*pid).is_some_and(|known| known.held);
        send(others.iter().filter(|pid| !held(pid)), Signal::SIGCONT);
        !strays.is_empty()
    }

    /// Kills the strays that can be found; whether there were any. They are stopped first, again and again while there are new
    /// ones: those that multiply take each other's room as long as none of them goes.
    fn kill_strays_found(&self, which: Strays) -> bool {
        let mut stopped = BTreeSet::new();
        for _ in 0..END_ROUNDS {
            let new: Vec<_> = self.strays(which).into_iter().filter(|pid| !stopped.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            send(&new, Signal::SIGSTOP);
            stopped.extend(new);
        }
        send(&stopped, Signal::SIGKILL);
        !stopped.is_empty()
    }

    /// The processes below this one that were not started here.
    fn strays(&self, which: Strays) -> Vec<i32> {
        strays(&self.lock(), which).0
    }

    fn lock(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in all ends there are; whether any child is left.
    fn reap(&self) -> bool {
        let mut children = self.lock();
        let left = match self.orphans {
            Orphans::Adopted => loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => break true,
                    Ok(status) => settle(&mut children, status),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EINVAL) => settle_vanished(&mut children),
                    Err(_) => break false,
                }
            },
            Orphans::Ignored => {
                for pid in children.keys().copied().collect::<Vec<_>>() {
                    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                        Ok(status) => settle(&mut children, status),
                        Err(_) => settle_vanished(&mut children),
                    }
                }
                !children.is_empty()
            }
        };
        self.reaped.notify_waiters();
        left
    }

    fn kill_all(&self) {
        match (self.orphans, self.reach()) {
            (Orphans::Ignored, _) => {
                for pid in self.lock().keys() {
                    let _gone = killpg(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            }
            (Orphans::Adopted, Reach::Everybody) => {
                let _nobody = kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
            (Orphans::Adopted, Reach::Found) => {
                send(&descendants(std::process::id().cast_signed()), Signal::SIGKILL);
            }
        }
    }

    /// Signals the group of a child that has not been reaped, so that its number cannot mean somebody else.
    fn signal(&self, pid: Pid, signal: Signal) {
        if let Some(known) = self.lock().get_mut(&pid.as_raw()) {
            known.held = signal == Signal::SIGSTOP;
            let _gone = killpg(pid, signal);
        }
    }
}

/// Whom this process can signal without having found them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Everybody in the sandbox: it is PID 1.
    Everybody,
    /// Nobody.
    Found,
}

fn send<'a>(pids: impl IntoIterator<Item = &'a i32>, signal: Signal) {
    for pid in pids {
        let _gone = kill(Pid::from_raw(*pid), signal);
    }
}

/// Which of the processes that were not started here are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strays {
    /// All.
    All,
    /// Those below none of the children.
    Orphans,
}

/// The processes below this one that are strays, and those that are not.
fn strays(children: &Children, which: Strays) -> (Vec<i32>, Vec<i32>) {
    let parents = parents();
    let theirs: BTreeSet<i32> = match which {
        Strays::All => BTreeSet::new(),
        Strays::Orphans => children.keys().flat_map(|child| below(&parents, *child)).collect(),
    };
    let all = below(&parents, std::process::id().cast_signed());
    all.into_iter().partition(|pid| !children.contains_key(pid) && !theirs.contains(pid))
}

fn settle(children: &mut Children, status: WaitStatus) {
    let (pid, exit) = match status {
        WaitStatus::Exited(pid, code) => (pid, Exit { code: Some(code), signal: None }),
        WaitStatus::Signaled(pid, signal, _) => (pid, Exit { code: None, signal: Some(signal as i32) }),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => return,
    };
    if let Some(known) = children.remove(&pid.as_raw()) {
        // Whoever started it may have stopped waiting.
        let _unwanted = known.waiter.send(exit);
    }
}

/// A real-time signal has no name, so that the end of a child by one is reaped without telling whose it was: it is
/// that of every known child that is no more.
fn settle_vanished(children: &mut Children) {
    let vanished = |pid: &i32| kill(Pid::from_raw(*pid), None) == Err(Errno::ESRCH);
    for pid in children.keys().copied().filter(vanished).collect::<Vec<_>>() {
        if let Some(known) = children.remove(&pid) {
            let _unwanted = known.waiter.send(Exit { code: None, signal: None });
        }
    }
}

/// All processes below `root`.
fn descendants(root: i32) -> Vec<i32> {
    below(&parents(), root)
}

/// Every process that runs, with its parent.
fn parents() -> Vec<(i32, i32)> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent_of(&stat) {
            parents.push((pid, parent));
        }
    }
    parents
}

/// All processes below `root` among them. An orphan's parent is PID 1 or the next subreaper, so nothing below escapes the list.
fn below(parents: &[(i32, i32)], root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&above) = found.get(next) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// The parent in `/proc/<pid>/stat` of a process that still runs. The command's name before it may hold anything,
/// also parentheses.
fn parent_of(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.next()?.parse().ok()).flatten()
}

/// A child process. Dropping it kills its group.
#[derive(Debug)]
pub(crate) struct Child {
    reaper: Arc<Reaper>,
    pid: Pid,
    /// Its standard input.
    pub(crate) stdin: Option<pipe::Sender>,
    /// Its standard output.
    pub(crate) stdout: Option<pipe::Receiver>,
    /// Its standard error.
    pub(crate) stderr: Option<pipe::Receiver>,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Exit>,
}

impl Child {
    /// Waits for its end.
    ///
    /// # Cancel safety
    /// Safe: the end is kept, and every later call answers it.
    pub(crate) async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.ended {
            return exit;
        }
        let exit = (&mut self.exit).await.unwrap_or(Exit { code: None, signal: None });
        self.ended = Some(exit);
        exit
    }

    /// Whether it stays where it was held.
    pub(crate) fn is_held(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
    }

    /// Whether it still runs: one that was killed can be waited for only when the last of its threads has gone.
    pub(crate) fn runs(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| parent_of(&stat).is_some())
    }

    /// Signals its group.
    pub(crate) fn signal(&self, signal: Signal) {
        self.reaper.signal(self.pid, signal);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

#[cfg(test)]
#[path = "reaper_tests.rs"]
mod tests;
