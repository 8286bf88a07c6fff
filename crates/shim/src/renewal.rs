//! The newest commit for the next run of a session whose agents only read: nobody has worked in the workspace, so that nothing is lost
//! by it, and who asks again for a review means what there is now.

use caisson_domain::git::BranchName;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::WorkspaceAccess;

use crate::checkout::set_base;
use crate::git::Git;
use crate::steering::attributes;

/// Where the newest commit is kept.
const KEPT: &str = "refs/caisson/newest";

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    /// The commit that the workspace shows; none if it was left as it is.
    pub(crate) base: Option<String>,
    /// What people are told.
    pub(crate) note: Option<String>,
}

/// Brings the workspace to the newest commit of the branch that the run starts from, unless an agent may have worked in it. A fork stays
/// at the commit that its conversation is about.
///
/// # Errors
/// [`Failure`] for people.
///
/// # Cancel safety
/// May be given up at any point and done again: `HEAD` is moved last.
pub(crate) async fn renew(
    git: &Git,
    anchor: Option<&str>,
    access: WorkspaceAccess,
) -> Result<Renewal, Failure> {
    if access == WorkspaceAccess::ReadWrite || git.work.start.is_some() {
        return Ok(Renewal::default());
    }
    let named = git.work.base.as_ref();
    let from = named.map_or_else(|| "HEAD".to_owned(), BranchName::full_ref);
    let refspec = format!("+{from}:{KEPT}");
    let output = git.talk(&["fetch", "--quiet", "--no-tags", &git.url(), &refspec]).await?;
    let before = git.resolve("HEAD").await?;
    let branch = named.map_or_else(|| "the default branch".to_owned(), |name| format!("branch \"{name}\""));
    if !output.exit.success() {
        if output.stderr.contains("couldn't find remote ref") {
            let stays = before.as_deref().unwrap_or("it was at");
            let note =
                format!("{branch} is not in the repository any more; the workspace stays at commit {stays}");
            return Ok(Renewal { base: None, note: Some(note) });
        }
        let message = format!("the newest commit of {branch} could not be fetched");
        return Err(git.refusal(FailureKind::RepoUnreachable, &message, &output));
    }
    let Some(newest) = git.resolve(KEPT).await? else { return Ok(Renewal::default()) };
    attributes::give_again(git, anchor, &newest, access).await?;
    git.run(&["reset", "--quiet", "--hard", &newest]).await?;
    if before.as_deref() == Some(newest.as_str()) {
        return Ok(Renewal { base: Some(newest), note: None });
    }
    set_base(git, Some(&newest));
    let was = before.map(|before| format!("; the run before had {before}")).unwrap_or_default();
    let note = format!("the workspace was brought to commit {newest}, the newest of {branch}{was}");
    Ok(Renewal { base: Some(newest), note: Some(note) })
}
