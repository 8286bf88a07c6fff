//! A checkout that agents only read. Set-up commands may write in it, and run what is checked out, whoever has written that: what
//! they leave running is ended, and the repository is the one that was cloned, before an agent reads it. What they have built beside
//! the files of the commit stays, until the next run's set-up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::run::{Failure, FailureKind};

use crate::checkout::{Checkout, PREPARING, set_base};
use crate::commands;
use crate::git::{Git, text};
use crate::plain_file;
use crate::steering::{attributes, discard, open_up, remove};

/// Where the repository is while the set-up command has another one: in the agent's home, where that command cannot write.
const KEPT: &str = ".caisson-repository";
/// Changed files that a note names.
const NAMED: usize = 10;

/// A checkout whose repository is out of the reach of a set-up command.
#[derive(Debug)]
pub(crate) struct Pristine<'a> {
    /// Held to the workspace: what lies there may have git start more than is known here.
    git: Git,
    file: &'a RepositoryFile,
    commit: &'a str,
}

impl<'a> Pristine<'a> {
    /// Looks at the checkout; none if it has no commit yet, and so nothing to be read. In one that an earlier run has had, the files
    /// are made those of the commit, and what is beside them is removed, but for the caches that `file` names. Where there is a set-up
    /// command, the anchor's attributes count whatever it writes, the repository is copied to where it cannot write, and until
    /// [`Pristine::put_back`] the checkout counts as not finished: if it does not come to that, the next run makes it anew.
    ///
    /// # Errors
    /// [`Failure`] if git fails, there are more attributes than can be replaced, or there is no room for the copy.
    pub(crate) async fn look(
        git: &'a Git,
        checkout: &'a Checkout,
        file: &'a RepositoryFile,
    ) -> Result<Option<Self>, Failure> {
        let Some(commit) = checkout.base.as_deref() else { return Ok(None) };
        let pristine = Self { git: Git { is_held: true, ..git.clone() }, file, commit };
        let git = &pristine.git;
        if let (Some(_), Some(anchor)) = (&file.setup, &checkout.anchor) {
            attributes::overrule(git, anchor, commit).await?;
        }
        if checkout.was_there {
            pristine.put_files_back().await?;
            let caches: Vec<String> = file
                .caches
                .iter()
                .map(|cache| format!("--exclude=/{}/", cache.trim_end_matches('/')))
                .collect();
            let mut clean = vec!["clean", "--quiet", "-ffdx"];
            clean.extend(caches.iter().map(String::as_str));
            git.run(&clean).await?;
        }
        if file.setup.is_some() {
            plain_file::write(&git.home.join(PREPARING), b"").map_err(|error| unreadable(&error))?;
            copied(git.workspace.join(".git"), git.home.join(KEPT)).await?;
        }
        Ok(Some(pristine))
    }

    /// Makes it again what it was, now that nothing of the set-up command runs any more; what people are told, if a file of the commit
    /// was another one.
    ///
    /// # Errors
    /// [`Failure`] if that is not to be had.
    pub(crate) async fn put_back(&self) -> Result<Option<String>, Failure> {
        let git = &self.git;
        let kept = git.home.join(KEPT);
        blocking(git.workspace.clone(), |workspace| {
            open_up(workspace)?;
            discard_repositories(workspace)
        })
        .await?;
        copied(kept.clone(), git.workspace.join(".git")).await?;
        remove(&kept).map_err(|error| unreadable(&error))?;
        commands::exclude_caches(git, self.file)?;
        let changed = self.put_files_back().await?;
        set_base(git, Some(self.commit));
        remove(&git.home.join(PREPARING)).map_err(|error| unreadable(&error))?;
        if changed.is_empty() {
            return Ok(None);
        }
        let more = changed.len().saturating_sub(NAMED);
        let named: Vec<_> = changed.into_iter().take(NAMED).collect();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let note = format!(
            "the set-up command has changed files of the commit, which the agent only reads: {}{more}; they were put back",
            named.join(", ")
        );
        Ok(Some(note))
    }

    /// Gives each file of the commit its content and its mode, whatever the index says of it; those that had others.
    async fn put_files_back(&self) -> Result<Vec<String>, Failure> {
        let git = &self.git;
        git.run(&["read-tree", self.commit]).await?;
        // It ends with another code where something differs.
        git.attempt(&["update-index", "-q", "--really-refresh"]).await?;
        let differing = git.attempt(&["diff-files", "-z", "--name-only", "--ignore-submodules=all"]).await?;
        git.run(&["reset", "--quiet", "--hard", self.commit]).await?;
        Ok(text(&differing).split_terminator('\0').map(str::to_owned).collect())
    }
}

/// Copies a repository's directory, in the place of whatever is there.
async fn copied(from: PathBuf, to: PathBuf) -> Result<(), Failure> {
    blocking(to, move |to| discard(to).and_then(|()| copy(&from, to))).await
}

async fn blocking(
    place: PathBuf,
    done: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
) -> Result<(), Failure> {
    let done = tokio::task::spawn_blocking(move || done(&place)).await;
    done.map_err(io::Error::other).flatten().map_err(|error| unreadable(&error))
}

/// Removes the repositories within the workspace's own: git would heed their settings where the commit has a submodule.
fn discard_repositories(workspace: &Path) -> io::Result<()> {
    let mut next = vec![workspace.to_owned()];
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_name() == ".git" {
                if directory != workspace {
                    discard(&entry.path())?;
                }
            } else if entry.file_type()?.is_dir() {
                next.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Copies a directory of plain files.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut next = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = next.pop() {
        fs::create_dir(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
            if kind.is_dir() {
                next.push((entry.path(), to));
            } else if kind.is_file() {
                fs::copy(entry.path(), to)?;
            }
        }
    }
    Ok(())
}

fn unreadable(error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let (kind, message) = if full {
        (
            FailureKind::DiskFull,
            "there is no room for a second copy of the workspace's repository, which a set-up command has",
        )
    } else {
        (FailureKind::Internal, "the workspace's repository cannot be kept as it is")
    };
    Failure::new(kind, message).with_evidence(error.to_string())
}
