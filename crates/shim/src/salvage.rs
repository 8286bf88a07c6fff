//! Saving work that is not on the git host: the diff to look at, a bundle of the commits to fetch from, and a patch of
//! what was not committed. Nothing is committed or changed by this.

use std::fs;
use std::io;
use std::path::PathBuf;
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

/// Largest new file that is saved from a full disk, in bytes.
const SMALL_BYTES: u64 = 1024 * 1024;

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
        let mut apart = Apart::beside(git);
        let mut staged = apart.stage_everything().await;
        if staged.as_ref().is_err_and(|failure| failure.kind == FailureKind::DiskFull) {
            apart = Apart::elsewhere(git);
            staged = apart.stage_what_is_small(artifacts).await;
        }
        match staged {
            Ok(()) => {
                let command = || apart.command(&[&PATCH, ["--cached"].as_slice()].concat());
                artifacts.keep(UNCOMMITTED, Longer::Cut, command).await?;
            }
            Err(failure) => note(artifacts, &failure).await?,
        }
        apart.clear();
    }
    Ok(())
}

/// What is not committed, staged without touching the agent's own index.
struct Apart<'a> {
    git: &'a Git,
    index: PathBuf,
    /// Where new objects go; none means the repository.
    objects: Option<PathBuf>,
}

impl<'a> Apart<'a> {
    /// In the repository's own directory.
    fn beside(git: &'a Git) -> Self {
        Self { git, index: git.file(INDEX), objects: None }
    }

    /// Where there is room even if the workspace has none.
    fn elsewhere(git: &'a Git) -> Self {
        let name = |what: &str| git.tmp.join(format!("caisson-{what}-{}", std::process::id()));
        Self { git, index: name("index"), objects: Some(name("objects")) }
    }

    async fn stage_everything(&self) -> Result<(), Failure> {
        self.copy_index()?;
        self.git.feed(&mut self.command(&["add", "--all"])?, b"").await.map(drop)
    }

    /// Stages changes of files that git knows, and new files up to [`SMALL_BYTES`]: on a full disk the large ones are what
    /// filled it, and the room elsewhere is small too.
    async fn stage_what_is_small(&self, artifacts: &Artifacts<'_>) -> Result<(), Failure> {
        self.copy_index()?;
        if let Some(objects) = &self.objects {
            fs::create_dir_all(objects)
                .map_err(|error| unusable("no directory for objects can be made", &error))?;
        }
        self.git.feed(&mut self.command(&["add", "--update"])?, b"").await?;
        let new = self.git.run(&["ls-files", "--others", "--exclude-standard", "-z"]).await?;
        let small = |name: &&str| {
            let found = self.git.workspace.join(name).symlink_metadata();
            found.is_ok_and(|found| found.len() <= SMALL_BYTES)
        };
        let names: Vec<&str> = new.split('\0').filter(|name| !name.is_empty()).collect();
        let kept: Vec<&str> = names.iter().copied().filter(small).collect();
        if kept.len() < names.len() {
            let left = names.len() - kept.len();
            let message = format!(
                "the workspace is full: {left} new files larger than {SMALL_BYTES} bytes are not saved"
            );
            // A note that cannot be written saves nothing either.
            let _noted = artifacts.recorder.note(NoteLevel::Warn, message).await;
        }
        let add = ["--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul"];
        if kept.is_empty() {
            return Ok(());
        }
        self.git.feed(&mut self.command(&add)?, kept.join("\0").as_bytes()).await.map(drop)
    }

    fn copy_index(&self) -> Result<(), Failure> {
        self.clear();
        let index = self.git.file("index");
        // Before the first commit there may be none.
        if index.symlink_metadata().is_ok() {
            plain_file::copy(&index, &self.index, INDEX_BYTES)
                .map_err(|error| unusable("the index cannot be copied", &error))?;
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Result<Command, Failure> {
        let mut command = self.git.command(arguments)?;
        command.env("GIT_INDEX_FILE", &self.index);
        if let Some(objects) = &self.objects {
            command
                .env("GIT_OBJECT_DIRECTORY", objects)
                .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", self.git.file("objects"));
        }
        Ok(command)
    }

    /// What cannot be removed does no harm.
    fn clear(&self) {
        let _absent = fs::remove_file(&self.index);
        let _absent = fs::remove_file(self.index.with_extension("lock"));
        if let Some(objects) = &self.objects {
            let _absent = fs::remove_dir_all(objects);
        }
    }
}

fn unusable(what: &str, error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { FailureKind::DiskFull } else { FailureKind::Internal };
    Failure::new(kind, what).with_evidence(error.to_string())
}

async fn note(artifacts: &Artifacts<'_>, failure: &Failure) -> Result<(), WriteError> {
    let why = failure.evidence.as_deref().unwrap_or_default();
    let message = format!("the work could not be saved: {}: {why}", failure.message);
    artifacts.recorder.note(NoteLevel::Warn, message).await.map(drop)
}
