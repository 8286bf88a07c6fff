//! Git commands of the shim's own: argument vectors, an environment made from nothing, and settings that keep the
//! repository's and the agent's configuration from steering them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::protocol::{GitWork, paths};
use caisson_domain::run::{Failure, FailureKind};
use tokio::time::Instant;

use crate::activity::Activity;
use crate::backoff::Backoff;
use crate::confine;
use crate::drivers::Drivers;
use crate::failure::{git_command, git_process, git_remote};
use crate::forward::HOLD_MS;
use crate::process::{Bounds, Output, command, finish, run};
use crate::reaper::Reaper;
use crate::shim::Shim;

/// Time of a command that talks to the repository, in milliseconds: longer than a request is held.
const REMOTE_MS: u64 = 60 * 60 * 1000;
/// Output kept of a command, in bytes.
const STDOUT_BYTES: usize = 4 * 1024 * 1024;

/// Settings of every command. Hooks and helpers are the agent's to write, so none runs here; only HTTP leads anywhere.
const SETTINGS: [&str; 21] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.askPass=",
    "credential.helper=",
    "commit.gpgSign=false",
    "push.gpgSign=false",
    "push.recurseSubmodules=no",
    "fetch.recurseSubmodules=false",
    "submodule.recurse=false",
    "log.showSignature=false",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.allow=never",
    "protocol.http.allow=always",
    "safe.directory=*",
    "core.attributesFile=/dev/null",
    "core.alternateRefsCommand=",
    "core.commitGraph=false",
    // What to do about a rebase that is given up is no part of what went wrong.
    "advice.mergeConflict=false",
];

/// Everything that a git command needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) activity: Arc<Activity>,
    /// The program; none if the image has none.
    pub(crate) program: Option<PathBuf>,
    /// The search path of programs.
    pub(crate) path: String,
    pub(crate) workspace: PathBuf,
    pub(crate) home: PathBuf,
    /// Directory for temporary files, which has a bound of its own.
    pub(crate) tmp: PathBuf,
    /// The loopback listener, for example `http://127.0.0.1:4180`.
    pub(crate) loopback: String,
    pub(crate) work: GitWork,
    /// Time of a command that works on the workspace alone.
    pub(crate) local: Duration,
    /// Programs that the repository's own settings would have git start.
    pub(crate) drivers: Drivers,
    /// Whether its commands on the workspace, and what they start, may change nothing else.
    pub(crate) is_held: bool,
}

impl Git {
    /// The same for a checkout that an earlier agent has had, before the next one looks around: whatever its repository brings git to
    /// start or to write, it is held to the workspace, where the kernel can hold it.
    pub(crate) fn for_used(&self, shim: &Shim) -> Self {
        Self { is_held: shim.holds, ..self.clone() }
    }

    /// URL of the run's repository.
    pub(crate) fn url(&self) -> String {
        format!("{}{}/{}", self.loopback, paths::GIT, paths::GIT_REMOTE)
    }

    /// A file in the repository's own directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.workspace.join(".git").join(name)
    }

    /// Whether the workspace has a repository. A link to one elsewhere is none.
    pub(crate) fn is_there(&self) -> bool {
        self.workspace.join(".git").symlink_metadata().is_ok_and(|found| found.is_dir())
    }

    /// Begins a command.
    ///
    /// # Errors
    /// [`Failure`] if the image has no git.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Command, Failure> {
        let program = self.program.as_deref().ok_or_else(|| {
            Failure::new(
                FailureKind::BadWorkflow,
                "the sandbox's image has no git; use an image that has git",
            )
        })?;
        let mut command = command(program, &self.workspace);
        let work = &self.work;
        command
            .env("PATH", &self.path)
            .env("HOME", &self.home)
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            // To look at a workspace must not need room in it.
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_ATTR_NOSYSTEM", "1")
            // Counts more than what the repository's own settings allow.
            .env("GIT_ALLOW_PROTOCOL", "http")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            // What is told and kept of commits is what they are, not what refs of the agent's put in their place.
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            // A file that is there, though it is empty, has git print a warning with every command.
            .env("GIT_GRAFT_FILE", "/dev/null/none")
            .env("GIT_EDITOR", ":")
            .env("GIT_AUTHOR_NAME", &work.author_name)
            .env("GIT_AUTHOR_EMAIL", &work.author_email)
            .env("GIT_COMMITTER_NAME", &work.author_name)
            .env("GIT_COMMITTER_EMAIL", &work.author_email);
        // Where its files are is an agent's to write as well. A clone wants to make them itself, and has no repository yet.
        if self.is_there() {
            command.env("GIT_WORK_TREE", &self.workspace);
        }
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        self.drivers.put_out_of_work(&mut command);
        command.args(arguments);
        Ok(command)
    }

    /// Runs a command on the workspace, whatever its exit.
    ///
    /// # Errors
    /// [`Failure`] if it did not start or end.
    pub(crate) async fn attempt(&self, arguments: &[&str]) -> Result<Output, Failure> {
        self.finish(&mut self.command(arguments)?, b"", self.local).await
    }

    /// Runs a command on the workspace that has to succeed, and answers its output.
    ///
    /// # Errors
    /// [`Failure`] if it did not.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.feed(&mut self.command(arguments)?, b"").await
    }

    /// Runs a command with standard input that has to succeed, and answers its output.
    ///
    /// # Errors
    /// [`Failure`] if it did not.
    pub(crate) async fn feed(&self, command: &mut Command, input: &[u8]) -> Result<String, Failure> {
        let what = subcommand(command);
        let output = self.finish(command, input, self.local).await?;
        if output.exit.success() { Ok(text(&output)) } else { Err(git_command(&what, &output.stderr)) }
    }

    /// Runs a command with standard input, whatever its exit.
    ///
    /// # Errors
    /// [`Failure`] if it did not start or end.
    pub(crate) async fn answer(&self, command: &mut Command, input: &[u8]) -> Result<Output, Failure> {
        self.finish(command, input, self.local).await
    }

    /// Asks whether a commit or ref exists, and which commit it is.
    ///
    /// # Errors
    /// [`Failure`] if git did not start or end.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Option<String>, Failure> {
        let name = format!("{name}^{{commit}}");
        let output = self.attempt(&["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).await?;
        Ok(output.exit.success().then(|| text(&output)))
    }

    /// Runs a command that talks to the repository and may be repeated, whatever its exit. What the gateway said before
    /// is forgotten.
    ///
    /// # Errors
    /// [`Failure`] if it did not start or end.
    pub(crate) async fn talk(&self, arguments: &[&str]) -> Result<Output, Failure> {
        self.talk_again(arguments, || Ok(())).await
    }

    /// As [`Git::talk`], with something to do before each repetition. A reply that breaks off with the gateway cannot
    /// be carried again, since git has a part of it: then the whole command is repeated, until [`HOLD_MS`] have passed.
    ///
    /// # Errors
    /// [`Failure`] if it did not start or end, or that of `before_again`.
    pub(crate) async fn talk_again(
        &self,
        arguments: &[&str],
        before_again: impl Fn() -> Result<(), Failure>,
    ) -> Result<Output, Failure> {
        let until = Instant::now() + Duration::from_millis(HOLD_MS);
        let mut backoff = Backoff::new();
        loop {
            self.activity.take_git_problem();
            let output =
                self.finish(&mut self.command(arguments)?, b"", Duration::from_millis(REMOTE_MS)).await?;
            let wait = backoff.next();
            let missed = !output.exit.success() && self.activity.git_missed_the_gateway();
            if !missed || Instant::now() + wait > until {
                return Ok(output);
            }
            tokio::time::sleep(wait).await;
            before_again()?;
        }
    }

    /// What a failed [`Git::talk`] means.
    pub(crate) fn refusal(&self, kind: FailureKind, message: &str, output: &Output) -> Failure {
        git_remote(kind, message, self.activity.take_git_problem(), &output.stderr)
    }

    async fn finish(&self, command: &mut Command, input: &[u8], time: Duration) -> Result<Output, Failure> {
        let bounds = Bounds { stdout_bytes: STDOUT_BYTES, time };
        let output = if self.is_held {
            let started = confine::spawn_within(&self.reaper, command, &[&self.workspace])?;
            finish(started, command, input, bounds).await
        } else {
            run(&self.reaper, command, input, bounds).await
        };
        output.map_err(|error| git_process(&error))
    }
}

/// The output as text without its last line end.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}

/// The command's name among its arguments.
fn subcommand(command: &Command) -> String {
    let after_settings = command.get_args().skip(2 * SETTINGS.len());
    after_settings.map(|name| name.to_string_lossy().into_owned()).next().unwrap_or_default()
}

/// Whether a text is an object's full name.
pub(crate) fn is_object_name(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a directory has anything in it.
pub(crate) fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}
