//! What the repository says of itself, and running its commands: argument vectors, in the sandbox, with the agent's environment but
//! without what opens the model.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use caisson_domain::protocol::RunWork;
use caisson_domain::repository_file::{
    CheckName, Command, REPOSITORY_FILE, REPOSITORY_FILE_BYTES, RepositoryFile,
};
use caisson_domain::run::{Failure, FailureKind, cut};

use futures_util::future::maybe_done;
use tokio::time::timeout;

use crate::agent::DRAIN_MS;
use crate::anchor;
use crate::checkout::Checkout;
use crate::confine;
use crate::git::{Git, is_object_name, text};
use crate::launch::variables;
use crate::plain_file;
use crate::process::{Tail, command, find_program};
use crate::reaper::Exit;
use crate::shim::Shim;

/// Longest time of a set-up command, in milliseconds.
const SETUP_MS: u64 = 20 * 60 * 1000;

/// How a command ended.
pub(crate) struct Ended {
    /// None if its time was over.
    pub(crate) exit: Option<Exit>,
    /// The end of what it printed, on both descriptors.
    pub(crate) output: String,
}

impl Ended {
    /// Whether it ended with code 0.
    pub(crate) fn success(&self) -> bool {
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
    let git = &anchor::source(git, checkout);
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

/// Keeps the file's cache directories out of every commit.
///
/// # Errors
/// [`Failure`] if that cannot be written.
pub(crate) fn exclude_caches(git: &Git, file: &RepositoryFile) -> Result<(), Failure> {
    exclude(git, &file.caches).map_err(|error| {
        Failure::new(FailureKind::Internal, "the cache directories cannot be noted in the workspace")
            .with_evidence(error.to_string())
    })
}

/// Keeps the file's cache directories out of every commit, and runs its set-up command, `within` a place for its home and temporary
/// files and the workspace, if it is to write nowhere else. What it leaves running goes on.
///
/// # Errors
/// [`Failure`]; `setup_failed` with the end of its output if the command fails.
///
/// # Cancel safety
/// Dropping it ends the command with its group.
pub(crate) async fn set_up(
    (shim, work): (&Shim, &RunWork),
    git: &Git,
    file: &RepositoryFile,
    within: Option<&Path>,
) -> Result<(), Failure> {
    exclude_caches(git, file)?;
    let Some(setup) = &file.setup else { return Ok(()) };
    let failed = |how: &str, output: String| {
        let message = format!(
            "the set-up command of {REPOSITORY_FILE}, {setup}, {how}; mend it on the branch that steers the agent"
        );
        Failure::new(FailureKind::SetupFailed, message).with_evidence(output)
    };
    match run((shim, work), setup, SETUP_MS, within).await {
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

/// Runs a command in the workspace to its end; as [`set_up`] says if it is to stay within a place.
///
/// # Errors
/// That of the operating system if it cannot be started.
///
/// # Cancel safety
/// Dropping it ends the command with its group.
pub(crate) async fn run(
    (shim, work): (&Shim, &RunWork),
    wanted: &Command,
    limit_ms: u64,
    within: Option<&Path>,
) -> io::Result<Ended> {
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
    let environment = variables(shim, &work.agent).map_err(|failure| io::Error::other(failure.message))?;
    process.envs(
        environment
            .into_iter()
            .filter(|(name, _)| !name.starts_with("ANTHROPIC_") && !name.starts_with("CLAUDE")),
    );
    let mut child = match within {
        None => shim.reaper.spawn(&mut process)?,
        Some(place) => {
            for (name, directory) in [("HOME", "home"), ("TMPDIR", "tmp")] {
                std::fs::create_dir_all(place.join(directory))?;
                process.env(name, place.join(directory));
            }
            let places = [shim.places.workspace.as_path(), place];
            confine::spawn_within(&shim.reaper, &mut process, &places)
                .map_err(|failure| io::Error::other(failure.message))??
        }
    };
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
