//! The anchor in the checkout: its commit, and its attributes instead of those of what is checked out.

use caisson_domain::run::{Failure, FailureKind};

use crate::checkout::missing_branch;
use crate::git::Git;
use crate::process::Output;

/// Where the anchor's commit is kept, so that the agent can compare with it.
const KEPT: &str = "refs/caisson/anchor";
/// Git's setting for a tree whose attributes count; git before 2.43 does not know it.
const TREE: &str = "attr.tree";

/// Keeps `HEAD` as the anchor's commit, where it is that one; git refuses where there is none.
///
/// # Errors
/// [`Failure`] if git did not start or end.
pub(crate) async fn keep_head(git: &Git) -> Result<Output, Failure> {
    git.attempt(&["update-ref", KEPT, "HEAD"]).await
}

/// Fetches the anchor; none if nothing names a branch for it and the repository's default branch does not exist.
///
/// # Errors
/// [`Failure`] for people.
pub(crate) async fn fetch(git: &Git) -> Result<Option<String>, Failure> {
    let named = git.work.anchor.as_ref();
    let from = named.map_or_else(|| "HEAD".to_owned(), caisson_domain::git::BranchName::full_ref);
    let refspec = format!("+{from}:{KEPT}");
    let output = git.talk(&["fetch", "--quiet", "--no-tags", &git.url(), &refspec]).await?;
    if output.exit.success() {
        return git.resolve(KEPT).await;
    }
    let absent = output.stderr.contains("couldn't find remote ref");
    match named {
        Some(branch) if absent => Err(missing_branch(branch)),
        None if absent => Ok(None),
        Some(_) | None => {
            let message = "the branch that steers the agent could not be fetched";
            Err(git.refusal(FailureKind::RepoUnreachable, message, &output))
        }
    }
}

/// Lets the anchor's attributes count where `commit` has others: they decide what a file is checked out as, and what of a
/// change is shown.
///
/// # Errors
/// [`Failure`] if git fails.
pub(crate) async fn give_attributes(git: &Git, anchor: Option<&str>, commit: &str) -> Result<(), Failure> {
    if let Some(anchor) = anchor {
        let files = ":(glob)**/.gitattributes";
        let compared = git.attempt(&["diff-tree", "-r", "--quiet", anchor, commit, "--", files]).await?;
        if !compared.exit.success() {
            return git.run(&["config", TREE, anchor]).await.map(drop);
        }
    }
    // Usually it is not set.
    git.attempt(&["config", "--unset-all", TREE]).await.map(drop)
}
