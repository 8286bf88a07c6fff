//! A checkout that agents only read. Set-up commands may write in it, and run what is checked out, whoever has written that: what
//! they leave running is ended, and the repository is what it was, before an agent reads it. What they have built beside the files of
//! the commit stays, until the next run's set-up.

use std::fs;
use std::io;

use caisson_domain::repository_file::RepositoryFile;
use caisson_domain::run::{Failure, FailureKind};

use crate::checkout::{Checkout, set_base, unlock};
use crate::git::{Git, text};
use crate::plain_file;

/// Longest settings of a repository, in bytes.
const SETTINGS_BYTES: u64 = 1024 * 1024;
/// The repository's own settings, which say among others where its files are and how they are compared.
const SETTINGS: &str = "config";
/// What would have git see other files than are there, or other commits; a clone has none of it.
const ADDED: [&str; 5] =
    ["config.worktree", "info/attributes", "info/sparse-checkout", "info/grafts", "index"];
/// Changed files that a note names.
const NAMED: usize = 10;

/// A repository as it was.
#[derive(Debug)]
pub(crate) struct Pristine<'a> {
    git: &'a Git,
    commit: &'a str,
    settings: Vec<u8>,
    /// Each ref with its object.
    refs: String,
}

impl<'a> Pristine<'a> {
    /// Looks at the repository; none if it has no commit yet, and so nothing to be read. In one that an earlier run has had, the files
    /// are made those of the commit, and what is beside them is removed, but for the caches that `file` names.
    ///
    /// # Errors
    /// [`Failure`] if git fails, or the settings cannot be read.
    pub(crate) async fn look(
        git: &'a Git,
        checkout: &'a Checkout,
        file: &RepositoryFile,
    ) -> Result<Option<Self>, Failure> {
        let Some(commit) = checkout.base.as_deref() else { return Ok(None) };
        let settings =
            plain_file::read(&git.file(SETTINGS), SETTINGS_BYTES).map_err(|error| unreadable(&error))?;
        let refs = refs(git).await?;
        let pristine = Self { git, commit, settings, refs };
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
        Ok(Some(pristine))
    }

    /// Makes it again what it was, now that nothing of the set-up command runs any more; what people are told, if a file of the commit
    /// was another one.
    ///
    /// # Errors
    /// [`Failure`] if that is not to be had.
    pub(crate) async fn put_back(&self) -> Result<Option<String>, Failure> {
        let git = self.git;
        plain_file::write(&git.file(SETTINGS), &self.settings).map_err(|error| unreadable(&error))?;
        unlock(git);
        git.learn_drivers().await?;
        self.put_refs_back().await?;
        let changed = self.put_files_back().await?;
        set_base(git, Some(self.commit));
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

    async fn put_refs_back(&self) -> Result<(), Failure> {
        let git = self.git;
        git.run(&["symbolic-ref", "HEAD", &git.work.branch.full_ref()]).await?;
        let now = refs(git).await?;
        if now == self.refs {
            return Ok(());
        }
        let known = |all: &str, line: &str| all.lines().any(|other| other == line);
        let name = |line: &str| line.split_once(' ').map(|(name, _)| name.to_owned());
        let changed = now.lines().filter(|line| !known(&self.refs, line)).filter_map(name);
        let mut wanted: String = changed.map(|name| ["delete ", &name, "\n"].concat()).collect();
        git.feed(&mut git.command(&["update-ref", "--no-deref", "--stdin"])?, wanted.as_bytes()).await?;
        let lost = self.refs.lines().filter(|line| !known(&now, line));
        wanted = lost.map(|line| ["update ", line, "\n"].concat()).collect();
        git.feed(&mut git.command(&["update-ref", "--no-deref", "--stdin"])?, wanted.as_bytes())
            .await
            .map(drop)
    }

    /// Gives each file of the commit its content and its mode, whatever the index says of it; those that had others.
    async fn put_files_back(&self) -> Result<Vec<String>, Failure> {
        let git = self.git;
        for name in ADDED {
            match fs::remove_file(git.file(name)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(&error)),
            }
        }
        git.run(&["read-tree", self.commit]).await?;
        // It ends with another code where something differs.
        git.attempt(&["update-index", "-q", "--really-refresh"]).await?;
        let differing = git.attempt(&["diff-files", "-z", "--name-only"]).await?;
        git.run(&["reset", "--quiet", "--hard", self.commit]).await?;
        Ok(text(&differing).split_terminator('\0').map(str::to_owned).collect())
    }
}

async fn refs(git: &Git) -> Result<String, Failure> {
    git.run(&["for-each-ref", "--format=%(refname) %(objectname)"]).await
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Internal, "the workspace's repository cannot be kept as it is")
        .with_evidence(error.to_string())
}
