//! What the repository says of itself, and running its commands: argument vectors, in the sandbox, with the agent's environment but
//! without what opens the model.

use std::fmt::Write as _;
use std::io;
use std::pin::pin;
use std::time::Duration;

use caisson_domain::protocol::{JournalBody, NoteLevel};
use caisson_domain::repository_file::{
    CheckName, Command, REPOSITORY_FILE, REPOSITORY_FILE_BYTES, RepositoryFile,
};
use caisson_domain::run::{Failure, FailureKind, cut};

use futures_util::future::maybe_done;
use tokio::time::timeout;

use crate::agent::{DRAIN_MS, variables};
use crate::checkout::Checkout;
use crate::failure::Halt;
use crate::git::{Git, is_object_name, text};
use crate::plain_file;
use crate::process::{Tail, command, find_program};
use crate::reaper::Exit;
use crate::run::Live;
use crate::shim::Shim;
use crate::turn::TurnEnd;

/// Longest time of a set-up command, in milliseconds.
const SETUP_MS: u64 = 20 * 60 * 1000;
/// Longest time of a check, in milliseconds.
const CHECK_MS: u64 = 30 * 60 * 1000;
/// Most of a command's output that a note or the agent is given, in bytes: its end.
const TOLD_BYTES: usize = 4 * 1024;

/// How a command ended.
struct Ended {
    /// None if its time was over.
    exit: Option<Exit>,
    /// The end of what it printed, on both descriptors.
    output: String,
}

impl Ended {
    fn success(&self) -> bool {
        self.exit.is_some_and(Exit::success)
    }

    fn how(&self) -> String {
        match self.exit {
            None => "did not end in its time and was killed".to_owned(),
            Some(Exit { code: Some(code), .. }) => format!("ended with code {code}"),
            Some(Exit { signal, .. }) => format!("was ended by signal {}", signal.unwrap_or_default()),
        }
    }
}

/// Reads the anchor's file; without one, there is nothing in it.
///
/// # Errors
/// [`Failure`] if it cannot be used, or git fails.
pub(crate) async fn read(git: &Git, checkout: &Checkout) -> Result<RepositoryFile, Failure> {
    let Some(anchor) = &checkout.anchor else { return Ok(RepositoryFile::default()) };
    let listed = git.run(&["ls-tree", "--long", anchor, "--", REPOSITORY_FILE]).await?;
    let words: Vec<&str> = listed.split_whitespace().take(4).collect();
    let [mode, "blob", object, size] = words.as_slice() else { return Ok(RepositoryFile::default()) };
    let bad = |reason: String| Failure::new(FailureKind::BadWorkflow, reason);
    if !mode.starts_with("100") || !is_object_name(object) {
        return Err(bad(format!(
            "{REPOSITORY_FILE} of the branch that steers the agent is not a plain file; make it one"
        )));
    }
    if size.parse().is_ok_and(|size: usize| size > REPOSITORY_FILE_BYTES) {
        return Err(bad(format!(
            "{REPOSITORY_FILE} has {size} bytes, and at most {REPOSITORY_FILE_BYTES} are read; shorten it"
        )));
    }
    let output = git.attempt(&["cat-file", "blob", object]).await?;
    RepositoryFile::parse(&text(&output)).map_err(|error| bad(error.to_string()))
}

/// Keeps the file's cache directories out of every commit, and runs its set-up command.
///
/// # Errors
/// [`Failure`]; `setup_failed` with the end of its output if the command fails.
///
/// # Cancel safety
/// Dropping it ends the command with its group.
pub(crate) async fn set_up(live: &Live<'_>, git: &Git, file: &RepositoryFile) -> Result<(), Failure> {
    exclude(git, &file.caches).map_err(|error| {
        Failure::new(FailureKind::Internal, "the cache directories cannot be noted in the workspace")
            .with_evidence(error.to_string())
    })?;
    let Some(setup) = &file.setup else { return Ok(()) };
    let failed = |how: &str, output: String| {
        let message = format!(
            "the set-up command of {REPOSITORY_FILE}, {setup}, {how}; mend it on the branch that steers the agent"
        );
        Failure::new(FailureKind::SetupFailed, message).with_evidence(output)
    };
    match run(live, setup, SETUP_MS).await {
        Ok(ended) if ended.success() => Ok(()),
        Ok(ended) => Err(failed(&ended.how(), ended.output)),
        Err(error) => Err(failed("cannot be started", error.to_string())),
    }
}

fn exclude(git: &Git, caches: &[String]) -> io::Result<()> {
    if caches.is_empty() {
        return Ok(());
    }
    let mut lines = String::new();
    for cache in caches {
        let _written = writeln!(lines, "/{}/", cache.trim_end_matches('/'));
    }
    std::fs::create_dir_all(git.file("info"))?;
    plain_file::write(&git.file("info/exclude"), lines.as_bytes())
}

/// What people should know if the repository wants another image than the sandbox has: it is made before the file is read.
pub(crate) fn other_image(file: &RepositoryFile, image: Option<&str>) -> Option<String> {
    let wanted = file.image.as_deref().filter(|wanted| Some(*wanted) != image)?;
    Some(format!(
        "{REPOSITORY_FILE} names the image {wanted}, and the sandbox of this run has {}; name it in the run or its workflow to have it",
        image.unwrap_or("the server's own")
    ))
}

/// Tells the agent the repository's commands, behind its prompt.
pub(crate) fn told(prompt: &str, file: &RepositoryFile) -> String {
    let lines: Vec<String> = CheckName::ALL
        .iter()
        .filter_map(|name| file.check(*name).map(|command| format!("- {name}: {command}")))
        .collect();
    if lines.is_empty() {
        return prompt.to_owned();
    }
    format!(
        "{prompt}\n\n---\nThe repository's own commands, by {REPOSITORY_FILE} of a trusted branch; use these and no others for:\n{}",
        lines.join("\n")
    )
}

impl Live<'_> {
    /// Runs the checks that the workflow asks for, as far as the repository has them. What fails is told to the agent, once, and
    /// then run again. What still fails is noted: whoever reads the change decides.
    pub(crate) async fn run_checks(&mut self) -> Result<(), Halt> {
        let checks: Vec<(CheckName, Command)> = self
            .work
            .checks
            .iter()
            .filter_map(|name| self.repository.check(*name).map(|command| (*name, command.clone())))
            .collect();
        if checks.is_empty() {
            return Ok(());
        }
        let failing = self.check_all(&checks).await?;
        if failing.is_empty() {
            return Ok(());
        }
        let mut question = String::from(
            "These commands of the repository fail on your work. Mend what they find, if it is yours to mend.",
        );
        for (name, how) in &failing {
            let _written = write!(question, "\n\n{name} {how}");
        }
        let mut stop = self.stop.clone();
        let Some(agent) = self.agent.as_mut() else { return Ok(()) };
        match agent.turn(&question, &mut stop).await {
            TurnEnd::Stopped(reason) => return Err(Halt::Stopped(reason)),
            TurnEnd::Unwritten(error) => return Err(error.into()),
            // Its work is there, and what the checks say of it is noted below.
            TurnEnd::Result(_)
            | TurnEnd::Interrupted
            | TurnEnd::Exited(_)
            | TurnEnd::Hung(_)
            | TurnEnd::Untaken(_)
            | TurnEnd::Unsent(_) => {}
        }
        self.check_all(&checks).await.map(drop)
    }

    /// Runs them in order, notes how each ended, and gives those that failed.
    async fn check_all(&self, checks: &[(CheckName, Command)]) -> Result<Vec<(CheckName, String)>, Halt> {
        let mut failing = Vec::new();
        for (name, command) in checks {
            let mut stop = self.stop.clone();
            let ended = tokio::select! {
                biased;
                reason = stop.told() => return Err(Halt::Stopped(reason)),
                ended = run(self, command, CHECK_MS) => ended,
            };
            let (passed, how) = match ended {
                Ok(ended) if ended.success() => (true, format!("passed: {command}")),
                Ok(ended) => (false, format!("{}: {command}\n{}", ended.how(), last(&ended.output))),
                Err(error) => (false, format!("cannot be started: {command}: {error}")),
            };
            let level = if passed { NoteLevel::Info } else { NoteLevel::Warn };
            self.recorder.write(JournalBody::Note { level, message: format!("{name} {how}") }).await?;
            if !passed {
                failing.push((*name, how));
            }
        }
        Ok(failing)
    }
}

fn last(output: &str) -> &str {
    &output[output.ceil_char_boundary(output.len().saturating_sub(TOLD_BYTES))..]
}

/// Runs a command in the workspace to its end.
async fn run(live: &Live<'_>, wanted: &Command, limit_ms: u64) -> io::Result<Ended> {
    let shim: &Shim = live.shim;
    let Some((program, arguments)) = wanted.arguments().split_first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let found = if program.contains('/') {
        shim.places.workspace.join(program)
    } else {
        find_program(&shim.path, program)
            .ok_or_else(|| io::Error::other(format!("there is no {}", cut(program, 64))))?
    };
    let mut process = command(&found, &shim.places.workspace);
    process.args(arguments).stdin(std::process::Stdio::null());
    let environment =
        variables(shim, &live.work.agent).map_err(|failure| io::Error::other(failure.message))?;
    process.envs(
        environment
            .into_iter()
            .filter(|(name, _)| !name.starts_with("ANTHROPIC_") && !name.starts_with("CLAUDE")),
    );
    let mut child = shim.reaper.spawn(&mut process)?;
    let tail = Tail::default();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut reading =
        pin!(maybe_done(async { tokio::join!(tail.clone().read(stdout), tail.clone().read(stderr)) }));
    let exit = timeout(Duration::from_millis(limit_ms), async {
        tokio::select! {
            biased;
            exit = child.wait() => exit,
            () = &mut reading => child.wait().await,
        }
    })
    .await;
    // What it left running may hold its output open.
    let _drained = timeout(Duration::from_millis(DRAIN_MS), reading).await;
    Ok(Ended { exit: exit.ok(), output: tail.text() })
}
