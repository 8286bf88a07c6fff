//! Saving work that is not on the git host: the diff to look at, a bundle of the commits to fetch from, and a patch of
//! what was not committed. Nothing is committed or changed by this.

use std::fs;
use std::process::Command;

use caisson_domain::protocol::NoteLevel;
use caisson_domain::run::{Failure, FailureKind};

use crate::artifacts::{Artifacts, Longer};
use crate::git::Git;
use crate::journal::WriteError;
use crate::plain_file;
use crate::survey::survey;

/// Artifact: the changes from the base to the last commit.
pub(crate) const DIFF: &str = "diff.patch";
/// Artifact: the commits.
pub(crate) const BUNDLE: &str = "work.bundle";
/// Artifact: what was not committed.
pub(crate) const UNCOMMITTED: &str = "uncommitted.patch";
/// A copy of the index in the repository's own directory, so that the real one stays as the agent left it.
const INDEX: &str = "caisson-index";

/// Longest index that is copied, in bytes: one of some two million files.
const INDEX_BYTES: u64 = 256 * 1024 * 1024;

/// Begins a command that prints a patch, the same whatever the repository's settings are.
const PATCH: [&str; 5] = ["diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv"];

/// Keeps the changes from `base` to `head` as an artifact.
///
/// # Errors
/// As [`Artifacts::keep`].
pub(crate) async fn keep_diff(
    artifacts: &Artifacts<'_>,
    base: Option<&str>,
    head: &str,
) -> Result<(), WriteError> {
    let from = match base {
        Some(base) => base.to_owned(),
        None => match artifacts.git.run(&["hash-object", "-t", "tree", "--stdin"]).await {
            Ok(nothing) => nothing,
            Err(failure) => return note(artifacts, &failure).await,
        },
    };
    let command = || artifacts.git.command(&[&PATCH, [from.as_str(), head, "--"].as_slice()].concat());
    artifacts.keep(DIFF, Longer::Cut, command).await
}

/// Keeps everything that is not on the git host.
///
/// # Errors
/// As [`Artifacts::keep`].
pub(crate) async fn salvage(artifacts: &Artifacts<'_>, base: Option<&str>) -> Result<(), WriteError> {
    let git = artifacts.git;
    let found = match survey(git, base).await {
        Ok(found) => found,
        Err(failure) => return note(artifacts, &failure).await,
    };
    if let Some(head) = found.status.head.as_deref().filter(|head| base != Some(*head)) {
        keep_diff(artifacts, base, head).await?;
        let without = base.map(|base| format!("^{base}"));
        let mut bundle = vec!["bundle", "create", "--quiet", "-", "HEAD"];
        bundle.extend(without.as_deref());
        artifacts.keep(BUNDLE, Longer::Dropped, || git.command(&bundle)).await?;
    }
    if found.status.dirty {
        match stage_apart(git).await {
            Ok(()) => {
                let command = || apart(git, &[&PATCH, ["--cached"].as_slice()].concat());
                artifacts.keep(UNCOMMITTED, Longer::Cut, command).await?;
            }
            Err(failure) => note(artifacts, &failure).await?,
        }
        // A file too many in the repository's own directory does no harm.
        let _absent = fs::remove_file(git.file(INDEX));
    }
    Ok(())
}

/// Stages everything in a copy of the index.
async fn stage_apart(git: &Git) -> Result<(), Failure> {
    for remains in [INDEX.to_owned(), format!("{INDEX}.lock")] {
        let _absent = fs::remove_file(git.file(&remains));
    }
    let index = git.file("index");
    // Before the first commit there may be none.
    if index.symlink_metadata().is_ok() {
        plain_file::copy(&index, &git.file(INDEX), INDEX_BYTES).map_err(|error| {
            Failure::new(FailureKind::Internal, "the index cannot be copied").with_evidence(error.to_string())
        })?;
    }
    git.feed(&mut apart(git, &["add", "--all"])?, b"").await.map(drop)
}

fn apart(git: &Git, arguments: &[&str]) -> Result<Command, Failure> {
    let mut command = git.command(arguments)?;
    command.env("GIT_INDEX_FILE", git.file(INDEX));
    Ok(command)
}

async fn note(artifacts: &Artifacts<'_>, failure: &Failure) -> Result<(), WriteError> {
    let why = failure.evidence.as_deref().unwrap_or_default();
    let message = format!("the work could not be saved: {}: {why}", failure.message);
    artifacts.recorder.note(NoteLevel::Warn, message).await.map(drop)
}
