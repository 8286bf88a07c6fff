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

/// Starts, signals and reaps child processes.
#[derive(Debug)]
pub(crate) struct Reaper {
    waiters: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    orphans: Orphans,
    reaped: Notify,
}

impl Reaper {
    /// Makes the reaper; [`Reaper::watch`] must run for any end to be noticed.
    pub(crate) fn new(orphans: Orphans) -> Arc<Self> {
        Arc::new(Self { waiters: Mutex::default(), orphans, reaped: Notify::new() })
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
            let mut waiters = self.lock();
            let started = command.spawn()?;
            waiters.insert(started.id().cast_signed(), sender);
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
        for _ in 0..END_ROUNDS {
            let reaped = self.reaped.notified();
            let strays = self.hold_strays();
            if strays.is_empty() {
                return;
            }
            for pid in &strays {
                let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            // Either is reason enough to look again.
            let _elapsed = tokio::time::timeout(Duration::from_millis(END_ROUND_MS), reaped).await;
        }
        say("processes that the agent left did not end though they were killed");
    }

    /// Takes in the ends that nobody has noticed yet.
    pub(crate) fn look(&self) {
        self.reap();
    }

    /// Whether any process lives below this one that was not started here.
    pub(crate) fn has_strays(&self) -> bool {
        !self.strays().is_empty()
    }

    /// Stops the strays, again and again while there are new ones: those that multiply take each other's room as long as
    /// none of them goes.
    fn hold_strays(&self) -> BTreeSet<i32> {
        let mut held = BTreeSet::new();
        for _ in 0..END_ROUNDS {
            let new: Vec<_> = self.strays().into_iter().filter(|pid| !held.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGSTOP);
                held.insert(pid);
            }
        }
        held
    }

    /// The processes below this one that were not started here.
    fn strays(&self) -> Vec<i32> {
        let own = self.lock();
        let below = descendants(std::process::id().cast_signed());
        below.into_iter().filter(|pid| !own.contains_key(pid)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in all ends there are; whether any child is left.
    fn reap(&self) -> bool {
        let mut waiters = self.lock();
        let left = match self.orphans {
            Orphans::Adopted => loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => break true,
                    Ok(status) => settle(&mut waiters, status),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EINVAL) => settle_vanished(&mut waiters),
                    Err(_) => break false,
                }
            },
            Orphans::Ignored => {
                for pid in waiters.keys().copied().collect::<Vec<_>>() {
                    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                        Ok(status) => settle(&mut waiters, status),
                        Err(_) => settle_vanished(&mut waiters),
                    }
                }
                !waiters.is_empty()
            }
        };
        self.reaped.notify_waiters();
        left
    }

    fn kill_all(&self) {
        if self.orphans == Orphans::Ignored {
            for pid in self.lock().keys() {
                let _gone = killpg(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        } else if std::process::id() == 1 {
            // One call reaches all of them at once, also those that are being made.
            let _nobody = kill(Pid::from_raw(-1), Signal::SIGKILL);
        } else {
            for pid in descendants(std::process::id().cast_signed()) {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Signals the group of a child that has not been reaped, so that its number cannot mean somebody else.
    fn signal(&self, pid: Pid, signal: Signal) {
        if self.lock().contains_key(&pid.as_raw()) {
            let _gone = killpg(pid, signal);
        }
    }
}

fn settle(waiters: &mut HashMap<i32, oneshot::Sender<Exit>>, status: WaitStatus) {
    let (pid, exit) = match status {
        WaitStatus::Exited(pid, code) => (pid, Exit { code: Some(code), signal: None }),
        WaitStatus::Signaled(pid, signal, _) => (pid, Exit { code: None, signal: Some(signal as i32) }),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => return,
    };
    if let Some(waiter) = waiters.remove(&pid.as_raw()) {
        // Whoever started it may have stopped waiting.
        let _unwanted = waiter.send(exit);
    }
}

/// A real-time signal has no name, so that the end of a child by one is reaped without telling whose it was: it is
/// that of every known child that is no more.
fn settle_vanished(waiters: &mut HashMap<i32, oneshot::Sender<Exit>>) {
    let vanished = |pid: &i32| kill(Pid::from_raw(*pid), None) == Err(Errno::ESRCH);
    for pid in waiters.keys().copied().filter(vanished).collect::<Vec<_>>() {
        if let Some(waiter) = waiters.remove(&pid) {
            let _unwanted = waiter.send(Exit { code: None, signal: None });
        }
    }
}

/// All processes below `root`. An orphan's parent is PID 1 or the next subreaper, so nothing below escapes the list.
fn descendants(root: i32) -> Vec<i32> {
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
mod tests {
    use super::*;
    use crate::process::command;
    use tokio::io::AsyncReadExt;

    fn reaper() -> (Arc<Reaper>, tokio::task::JoinHandle<()>) {
        let reaper = Reaper::new(Orphans::Ignored);
        let ends = unix::signal(unix::SignalKind::child()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
        let watching = tokio::spawn(Arc::clone(&reaper).watch(ends));
        (reaper, watching)
    }

    fn shell(script: &str) -> Command {
        let mut command = command("/bin/sh".as_ref(), "/".as_ref());
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn the_end_of_each_child_reaches_whoever_waits_for_it() {
        let (reaper, watching) = reaper();
        let mut three = reaper.spawn(&mut shell("exit 3")).unwrap();
        let mut killed = reaper.spawn(&mut shell("kill -TERM $$")).unwrap();
        assert_eq!(killed.wait().await, Exit { code: None, signal: Some(15) });
        assert_eq!(three.wait().await, Exit { code: Some(3), signal: None });
        assert_eq!(three.wait().await.code, Some(3));
        watching.abort();
    }

    #[tokio::test]
    async fn a_signal_without_a_name_is_an_end_too() {
        let (reaper, watching) = reaper();
        let mut child = reaper.spawn(&mut shell("kill -40 $$; exec cat")).unwrap();
        assert_eq!(child.wait().await, Exit { code: None, signal: None });
        watching.abort();
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed_with_its_group() {
        let (reaper, watching) = reaper();
        let mut child = reaper.spawn(&mut shell("cat /dev/zero >/dev/null & echo $!; wait")).unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0; 1];
        stdout.read_exact(&mut first).await.unwrap();
        drop(child);
        // Both held the pipe: its end says that both are gone.
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).await.unwrap();
        watching.abort();
    }

    #[tokio::test]
    async fn ending_all_leaves_no_child() {
        let (reaper, watching) = reaper();
        let mut child = reaper.spawn(&mut shell("trap '' TERM; cat")).unwrap();
        reaper.end_all().await;
        assert_eq!(child.wait().await.signal, Some(9));
        assert!(!reaper.reap());
        watching.abort();
    }

    #[tokio::test]
    async fn strays_end_and_children_go_on() {
        let (reaper, watching) = reaper();
        let mut child = reaper.spawn(&mut shell("cat /dev/zero >/dev/null & echo; exec cat")).unwrap();
        let mut first = [0; 1];
        child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
        assert!(!reaper.strays().is_empty());
        reaper.end_strays().await;
        assert_eq!(reaper.strays(), Vec::<i32>::new());
        drop(child.stdin.take());
        assert!(child.wait().await.success(), "it was not ended itself");
        watching.abort();
    }

    #[test]
    fn the_parent_is_found_behind_any_name_and_zombies_have_none() {
        assert_eq!(parent_of("12 (a b) S) S 7 12 12"), Some(7));
        assert_eq!(parent_of("12 (x) Z 7 12 12"), None);
        assert_eq!(parent_of("12 (x"), None);
    }
}
