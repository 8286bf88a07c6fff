//! The anchor in the checkout. Where an agent has had the checkout, what steers the next one is read from a repository apart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::protocol::places::STEERING;
use caisson_domain::run::{Failure, FailureKind};

use crate::checkout::{Checkout, is_branch_missing, missing_branch};
use crate::drivers::Drivers;
use crate::git::Git;
use crate::process::Output;
use crate::steering::remove;

/// Where the anchor's commit is kept, so that the agent can compare with it.
const KEPT: &str = "refs/caisson/anchor";
/// The repository apart, below the place of what steers, which is cleared before each run.
const APART: &str = "repository";
/// Larger files are left at the git host until one is asked for: nothing that large steers.
const FILTER: &str = "--filter=blob:limit=1m";

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

/// The git that reads what steers: that of the repository apart where an agent has had the checkout. Git does not look whether an
/// object is what its name says, and fetches none that is there, so that whoever can write a repository has it say anything.
pub(crate) fn source(git: &Git, checkout: &Checkout) -> Git {
    if checkout.was_there { apart(git) } else { git.clone() }
}

/// Brings the anchor into a new repository apart, and says which commit it is; none as for [`fetch`]. Nothing that an earlier agent has
/// had git start may live any more: it could write there as well.
///
/// # Errors
/// [`Failure`] for people.
pub(crate) async fn fetch_apart(git: &Git) -> Result<Option<String>, Failure> {
    let (apart, named) = (apart(git), git.work.anchor.as_ref());
    let made = || made_anew(&apart.workspace).map_err(|error| unusable("made", &error));
    made()?;
    let url = git.url();
    let mut clone = vec!["clone", "--quiet", "--bare", "--no-tags", "--single-branch", "--depth=1", FILTER];
    clone.push("--template=");
    if let Some(branch) = named {
        clone.extend(["--branch", branch.as_str()]);
    }
    clone.extend([url.as_str(), "."]);
    let output = apart.talk_again(&clone, made).await?;
    match named {
        Some(branch) if is_branch_missing(&output) => Err(missing_branch(branch)),
        Some(_) | None if !output.exit.success() => {
            let message = "the branch that steers the agent could not be fetched";
            Err(git.refusal(FailureKind::RepoUnreachable, message, &output))
        }
        // By its full name it is no tag.
        Some(branch) => {
            apart.resolve(&branch.full_ref()).await?.ok_or_else(|| missing_branch(branch)).map(Some)
        }
        None => apart.resolve("HEAD").await,
    }
}

/// Removes the repository apart; nothing is read from it any more.
///
/// # Errors
/// [`Failure`] if it cannot be removed.
pub(crate) fn forget_apart(git: &Git) -> Result<(), Failure> {
    let place = place(git);
    remove(&place).map_err(|error| unusable("removed", &error))?;
    if let Some(above) = place.parent() {
        // Usually there is something else in it.
        let _full = fs::remove_dir(above);
    }
    Ok(())
}

fn place(git: &Git) -> PathBuf {
    git.home.join(STEERING).join(APART)
}

fn apart(git: &Git) -> Git {
    // It has no settings that somebody else has written.
    Git { workspace: place(git), drivers: Drivers::default(), ..git.clone() }
}

fn made_anew(place: &Path) -> io::Result<()> {
    remove(place)?;
    fs::create_dir_all(place)
}

fn unusable(what: &str, error: &io::Error) -> Failure {
    let message =
        format!("the repository with the branch that steers the agent cannot be {what} in its home");
    Failure::new(FailureKind::Internal, message).with_evidence(error.to_string())
}
