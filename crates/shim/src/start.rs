//! Commits that the gateway names, wherever the repository has them. A fork's checkout begins at one: in its base, by its name, or on the
//! branch to which the other session pushed it, or not at all, since other files would not be those of its conversation. And unpublished work
//! of a session starts from one.

use caisson_domain::git::BranchName;
use caisson_domain::run::{Failure, FailureKind};

use crate::git::{Git, is_object_name, text};

/// Finds the commit, and fetches it where the clone does not have it.
///
/// # Errors
/// [`Failure`] for people if it is not to be had.
pub(crate) async fn find(git: &Git, start: &str) -> Result<String, Failure> {
    let branch = git.work.start_branch.as_ref();
    found(git, (start, branch), &absent(start, branch)).await
}

/// Finds the commit that unpublished work of the session starts from, in a workspace that an earlier agent has had; none where there was no
/// commit. What that agent has noted in the workspace does not count. If it has taken the commit back since, by amending what it had pushed,
/// the work starts where the two parted.
///
/// # Errors
/// [`Failure`] for people if it is not to be had.
pub(crate) async fn since(git: &Git, since: &str) -> Result<Option<String>, Failure> {
    if since.is_empty() {
        return Ok(None);
    }
    let message = format!(
        "commit {since}, which the session's work starts from, is not in the workspace any more, nor in the repository; begin a new session"
    );
    // Nearly always it is there, and all is said by one command.
    if let Some(parted) = parting(git, since).await? {
        return Ok(Some(parted));
    }
    let found = found(git, (since, Some(&git.work.branch)), &message).await?;
    Ok(Some(parting(git, &found).await?.unwrap_or(found)))
}

/// Where `HEAD` parted from a commit; none if that is not there, or has no history with it.
async fn parting(git: &Git, commit: &str) -> Result<Option<String>, Failure> {
    if !is_object_name(commit) {
        return Ok(None);
    }
    let output = git.attempt(&["merge-base", commit, "HEAD"]).await?;
    Ok(Some(text(&output)).filter(|parted| is_object_name(parted)))
}

async fn found(
    git: &Git,
    (commit, branch): (&str, Option<&BranchName>),
    message: &str,
) -> Result<String, Failure> {
    let mut failure = Failure::new(FailureKind::RepoUnreachable, message);
    if !is_object_name(commit) {
        return Err(failure);
    }
    if let Some(found) = git.resolve(commit).await? {
        return Ok(found);
    }
    // A git host gives a commit by its name if it likes to: by protocol version 2 nearly each does, whatever branch it is on.
    let branch = branch.map(BranchName::full_ref);
    for wanted in [Some(commit), branch.as_deref()].into_iter().flatten() {
        let output = git.talk(&["fetch", "--quiet", "--no-tags", &git.url(), wanted]).await?;
        if let Some(found) = git.resolve(commit).await? {
            return Ok(found);
        }
        if !output.exit.success() {
            failure = git.refusal(FailureKind::RepoUnreachable, message, &output);
        }
    }
    Err(failure)
}

fn absent(start: &str, branch: Option<&BranchName>) -> String {
    let was = branch.map_or_else(
        || "the branch that the other session started from".to_owned(),
        |branch| format!("branch \"{branch}\" of the other session"),
    );
    format!(
        "the fork begins at commit {start}, which the repository does not have any more: {was} is gone, or was rewritten; push \
         a branch that has the commit, or begin a new session"
    )
}
