//! The commit at which a fork's checkout begins, wherever the repository has it: in its base, by its name, or on the branch to
//! which the other session pushed it. A fork begins there or not at all: other files would not be those of its conversation.

use caisson_domain::git::BranchName;
use caisson_domain::run::{Failure, FailureKind};

use crate::git::{Git, is_object_name};

/// Finds the commit, and fetches it where the clone does not have it.
///
/// # Errors
/// [`Failure`] for people if it is not to be had.
pub(crate) async fn find(git: &Git, start: &str) -> Result<String, Failure> {
    let message = absent(start, git.work.start_branch.as_ref());
    let mut failure = Failure::new(FailureKind::RepoUnreachable, message.as_str());
    if !is_object_name(start) {
        return Err(failure);
    }
    if let Some(found) = git.resolve(start).await? {
        return Ok(found);
    }
    // A git host gives a commit by its name if it likes to: by protocol version 2 nearly each does, whatever branch it is on.
    let branch = git.work.start_branch.as_ref().map(BranchName::full_ref);
    for wanted in [Some(start), branch.as_deref()].into_iter().flatten() {
        let output = git.talk(&["fetch", "--quiet", "--no-tags", &git.url(), wanted]).await?;
        if let Some(found) = git.resolve(start).await? {
            return Ok(found);
        }
        if !output.exit.success() {
            failure = git.refusal(FailureKind::RepoUnreachable, &message, &output);
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
