//! What the repository says of itself, and running its commands: argument vectors, in the sandbox, with the agent's environment but
//! without what opens the model.

use std::fmt::Write as _;
use std::io;
use std::pin::pin;
use std::time::Duration;

use caisson_domain::check_result::{CHECK_TURNS, CheckOutcome, CheckResult};
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
    /// Runs the checks that the workflow asks for, as far as the repository has them. What fails is told to the agent, as often as
    /// the workflow says, and then all are run again. What still fails is told: whoever reads the change decides.
    pub(crate) async fn run_checks(&mut self) -> Result<(), Halt> {
        let most = self.work.check_turns.min(*CHECK_TURNS.end());
        let mut may_mend = true;
        loop {
            let failing = self.check_all().await?;
            if failing.is_empty() || !may_mend || self.mending_turns >= most {
                return Ok(());
            }
            self.mending_turns += 1;
            may_mend = self.have_mended(&failing).await?;
        }
    }

    /// Gives the agent what fails; whether it could be given more.
    async fn have_mended(&mut self, failing: &[CheckResult]) -> Result<bool, Halt> {
        let mut question = String::from(
            "These commands of the repository fail on your work. Mend what they find, if it is yours to mend.",
        );
        for result in failing {
            let _written = write!(question, "\n\n{}", told_of(result));
        }
        let mut stop = self.stop.clone();
        let Some(agent) = self.agent.as_mut() else { return Ok(false) };
        match agent.turn(&question, &mut stop).await {
            TurnEnd::Stopped(reason) => Err(Halt::Stopped(reason)),
            TurnEnd::Unwritten(error) => Err(error.into()),
            TurnEnd::Result(_) | TurnEnd::Interrupted => Ok(true),
            // Its work is there, and what the checks say of it is told.
            TurnEnd::Exited(_) | TurnEnd::Hung(_) | TurnEnd::Untaken(_) | TurnEnd::Unsent(_) => Ok(false),
        }
    }

    /// Runs them in order, tells how each ended, and gives those that did not pass.
    pub(crate) async fn check_all(&self) -> Result<Vec<CheckResult>, Halt> {
        let mut results = Vec::new();
        for &name in &self.work.checks {
            let Some(command) = self.repository.check(name) else { continue };
            let mut stop = self.stop.clone();
            let ended = tokio::select! {
                biased;
                reason = stop.told() => return Err(Halt::Stopped(reason)),
                ended = run(self, command, CHECK_MS) => ended,
            };
            let result = result(name, command, ended, self.mending_turns);
            let level = if result.passed() { NoteLevel::Info } else { NoteLevel::Warn };
            self.recorder.note(level, told_of(&result)).await?;
            results.push(result);
        }
        if !results.is_empty() {
            self.recorder.write(JournalBody::Checks(results.clone())).await?;
        }
        results.retain(|result| !result.passed());
        Ok(results)
    }
}

fn result(name: CheckName, command: &Command, ended: io::Result<Ended>, turns: u32) -> CheckResult {
    let (outcome, exit_code, output) = match ended {
        Ok(ended) if ended.success() => (CheckOutcome::Passed, Some(0), None),
        Ok(Ended { exit: None, output }) => (CheckOutcome::TimedOut, None, Some(output)),
        Ok(Ended { exit: Some(exit), output }) => {
            let signal = exit.signal.map(|signal| format!("\nended by signal {signal}")).unwrap_or_default();
            (CheckOutcome::Failed, exit.code, Some(output + &signal))
        }
        Err(error) => (CheckOutcome::NotStarted, None, Some(error.to_string())),
    };
    CheckResult { name, command: command.to_string(), outcome, exit_code, output, turns }.bounded()
}

/// A result for people and for the agent.
fn told_of(result: &CheckResult) -> String {
    let CheckResult { name, command, outcome, exit_code, output, .. } = result;
    let output = output.as_deref().unwrap_or_default();
    match (outcome, exit_code) {
        (CheckOutcome::Passed, _) => format!("{name} passed: {command}"),
        (CheckOutcome::Failed, Some(code)) => format!("{name} ended with code {code}: {command}\n{output}"),
        (CheckOutcome::Failed, None) => format!("{name} was killed: {command}\n{output}"),
        (CheckOutcome::TimedOut, _) => {
            format!("{name} did not end in its time and was killed: {command}\n{output}")
        }
        (CheckOutcome::NotStarted, _) => format!("{name} cannot be started: {command}: {output}"),
    }
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
