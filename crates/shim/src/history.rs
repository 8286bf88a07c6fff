//! Rewording commits that the agent made itself, before anybody has seen them.
//!
//! Only messages change: each commit is made again from the same tree, author and dates on top of the reworded one
//! before it. History with a merge in it is left alone, and so is whatever the remote branch has already.

use caisson_domain::protocol::{MessageAuthor, NoteLevel};
use caisson_domain::run::Failure;

use crate::failure::Halt;
use crate::git::{Git, text};
use crate::message::{check, reworded};
use crate::recorder::Recorder;
use crate::survey::Commit;

/// Puts every message of `commits` (oldest first) right. `asked` is the agent's own better message for the last one.
///
/// # Errors
/// [`Halt`] if git fails or the journal cannot be written.
pub(crate) async fn put_right(
    git: &Git,
    recorder: &Recorder,
    commits: &mut [Commit],
    asked: Option<String>,
) -> Result<(), Halt> {
    let Some(first) = commits.iter().position(|commit| check(&commit.message).is_err()) else {
        return Ok(());
    };
    if !is_linear(&commits[first..]) {
        let note = "a commit's message does not follow Conventional Commits; it was left, since its history has a merge";
        recorder.note(NoteLevel::Warn, note).await?;
        return Ok(());
    }
    if let Some(pushed) = on_remote(git, commits).await?
        && first <= pushed
    {
        let note = "a commit's message does not follow Conventional Commits; it was left, since it is pushed already";
        recorder.note(NoteLevel::Warn, note).await?;
        return Ok(());
    }
    let old = commits.last().map(|commit| commit.id.clone()).unwrap_or_default();
    let mut parent = commits[first].parents.first().cloned();
    let mut asked = asked;
    for commit in &mut commits[first..] {
        if check(&commit.message).is_err() {
            let last = commit.id == old;
            (commit.message, commit.author) = match asked.take().filter(|_| last) {
                Some(message) => (message, MessageAuthor::Agent),
                None => (reworded(&commit.message, &git.work), MessageAuthor::Fallback),
            };
        }
        commit.id = remake(git, commit, parent.as_deref()).await?;
        commit.parents = parent.into_iter().collect();
        parent = Some(commit.id.clone());
    }
    let new = parent.unwrap_or_default();
    git.run(&["update-ref", "-m", "caisson: reword", "HEAD", &new, &old]).await?;
    Ok(())
}

/// Whether each commit has at most one parent, the one before it.
fn is_linear(commits: &[Commit]) -> bool {
    commits.iter().all(|commit| commit.parents.len() <= 1)
        && commits.windows(2).all(|pair| pair[1].parents.first() == Some(&pair[0].id))
}

/// The newest of `commits` that the remote branch has; the repository itself is asked, since only it knows.
async fn on_remote(git: &Git, commits: &[Commit]) -> Result<Option<usize>, Failure> {
    let branch = git.work.branch.full_ref();
    let output = git.talk(&["ls-remote", &git.url(), &branch]).await?;
    if !output.exit.success() {
        // Then nothing is known, and what is perhaps public is not changed.
        return Ok(commits.len().checked_sub(1));
    }
    let listed = text(&output);
    let tip = listed.split_ascii_whitespace().next().unwrap_or_default();
    Ok(commits.iter().rposition(|commit| commit.id == tip))
}

async fn remake(git: &Git, commit: &Commit, parent: Option<&str>) -> Result<String, Failure> {
    let show = [
        "show",
        "--no-patch",
        "--date=raw",
        "--encoding=UTF-8",
        "--format=%T%n%an%n%ae%n%ad%n%cd",
        &commit.id,
    ];
    let fields = git.run(&show).await?;
    let fields: Vec<&str> = fields.lines().collect();
    let [tree, name, email, written, committed] = fields[..] else {
        return Err(crate::failure::git_command("show", "a commit's fields are not on five lines"));
    };
    let mut arguments = vec!["commit-tree", tree];
    if let Some(parent) = parent {
        arguments.extend(["-p", parent]);
    }
    let mut command = git.command(&arguments)?;
    command
        .env("GIT_AUTHOR_NAME", name)
        .env("GIT_AUTHOR_EMAIL", email)
        .env("GIT_AUTHOR_DATE", written)
        .env("GIT_COMMITTER_DATE", committed);
    git.feed(&mut command, format!("{}\n", commit.message).as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(id: &str, parents: &[&str]) -> Commit {
        Commit {
            id: id.to_owned(),
            parents: parents.iter().map(|&parent| parent.to_owned()).collect(),
            message: String::new(),
            author: MessageAuthor::Agent,
        }
    }

    #[test]
    fn only_a_chain_without_merges_is_linear() {
        assert!(is_linear(&[commit("a", &[]), commit("b", &["a"])]));
        assert!(is_linear(&[commit("a", &["0"])]));
        assert!(!is_linear(&[commit("a", &["0"]), commit("b", &["a", "x"])]));
        assert!(!is_linear(&[commit("a", &["0"]), commit("b", &["x"])]));
    }
}
