//! The workspace before the agent has it: a fresh clone, or the checkout that is there already.
//!
//! `git clone` into the empty workspace keeps the directory itself, so that an agent which was started in it meanwhile
//! stays in it. A checkout that an agent may have worked on is never overwritten; one that no agent has come to work in is told by a mark
//! in the home directory, or by the gateway, and made anew: what a set-up command has left in it is nobody's work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_domain::git::BranchName;
use caisson_domain::protocol::paths;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::WorkspaceAccess;

use crate::anchor;
use crate::failure::git_command;
use crate::git::{Git, is_empty, is_object_name, text};
use crate::plain_file;
use crate::process::Output;
use crate::renewal::{self, Renewal};
use crate::start;
use crate::steering::{attributes, discard};

/// Mark in the home directory from the making of a fresh checkout until its agent has its prompt: its remains hold nobody's work.
pub(crate) const PREPARING: &str = ".caisson-preparing";
/// File in the repository's own directory with the commit that the unpublished work starts from.
const BASE: &str = "caisson-base";
/// Longest note of that commit, in bytes: the longest name of an object.
const BASE_BYTES: u64 = 64;
/// Locks that a killed git leaves behind. Nothing else runs in the sandbox while the workspace is prepared.
const LOCKS: [&str; 4] = ["index.lock", "HEAD.lock", "config.lock", "packed-refs.lock"];

/// The workspace as the agent gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkout {
    /// The commit that the work starts from; none if the repository has no commit yet.
    pub(crate) base: Option<String>,
    /// The branch.
    pub(crate) branch: BranchName,
    /// The anchor's commit; none if the repository has no such branch.
    pub(crate) anchor: Option<String>,
    /// What became of the files of the run before, for people; none if they are as they were, or there was no such run.
    pub(crate) note: Option<String>,
    /// Whether an earlier run has had it.
    pub(crate) was_there: bool,
}

/// Whether an earlier run has had the workspace: its repository is an agent's to write.
pub(crate) fn is_used(git: &Git) -> bool {
    !is_unbegun(git) && !is_empty(&git.workspace)
}

/// Whether what is in the workspace is nobody's work.
fn is_unbegun(git: &Git) -> bool {
    git.work.is_first || is_mark(&git.home.join(PREPARING))
}

/// From here on the checkout is an agent's.
///
/// # Errors
/// [`Failure`] if the mark cannot be removed: the next run would make the checkout anew.
pub(crate) fn begun(git: &Git) -> Result<(), Failure> {
    let preparing = git.home.join(PREPARING);
    if !is_mark(&preparing) {
        return Ok(());
    }
    fs::remove_file(&preparing).map_err(|error| unusable("has a home that cannot be written", &error))
}

/// Brings the workspace to the run's branch; one in which agents may only read, to the newest commit that it is to show.
///
/// # Errors
/// [`Failure`] for people.
///
/// # Cancel safety
/// May be given up at any point and done again.
pub(crate) async fn prepare(git: &Git, access: WorkspaceAccess) -> Result<Checkout, Failure> {
    let (mut note, mut was_there) = (None, false);
    let preparing = git.home.join(PREPARING);
    if is_unbegun(git) && !is_empty(&git.workspace) {
        emptied(git.workspace.clone()).await?;
    }
    let (base, anchor) = if is_empty(&git.workspace) {
        discard(&preparing)
            .and_then(|()| plain_file::write(&preparing, b""))
            .map_err(|error| unusable("has a home that cannot be written", &error))?;
        let (base, anchor) = fresh(git).await?;
        set_base(git, base.as_deref());
        (base, anchor)
    } else if git.is_there() {
        was_there = true;
        let (base, anchor) = existing(git, access).await?;
        let renewal = renewal::renew(git, anchor.as_deref(), access).await?;
        note = renewal.note;
        (renewal.base.or(base), anchor)
    } else {
        return Err(Failure::new(
            FailureKind::PolicyDenied,
            "the workspace has files but no repository any more; begin a new session to get a fresh checkout",
        ));
    };
    Ok(Checkout { base, branch: git.work.branch.clone(), anchor, note, was_there })
}

/// Takes up the checkout that another run of the session had here, whose agent waits in it. What the agent has done to the
/// repository's own settings counts as little as in a checkout that is taken up cold; only the anchor is not fetched again.
///
/// # Errors
/// [`Failure`] for people.
///
/// # Cancel safety
/// May be given up at any point and done again.
pub(crate) async fn again(
    git: &Git,
    before: &Checkout,
    access: WorkspaceAccess,
) -> Result<Checkout, Failure> {
    unlock(git);
    attributes::forget(git);
    // One after the other they would take a third of a follow-up's time.
    tokio::try_join!(git.learn_drivers(), set_author(git))?;
    to_branch(git).await?;
    let anchor = before.anchor.as_deref();
    let (noted, ()) =
        tokio::try_join!(known_base(git, access), attributes::give_again(git, anchor, "HEAD", access))?;
    let Renewal { base, note } = renewal::renew(git, anchor, access).await?;
    Ok(Checkout { base: base.or(noted), note, ..before.clone() })
}

/// Notes which commit later work of this workspace starts from. Without the note it starts from its `HEAD`.
pub(crate) fn set_base(git: &Git, base: Option<&str>) {
    if let Err(error) = plain_file::write(&git.file(BASE), base.unwrap_or_default().as_bytes()) {
        crate::diagnostics::say(format_args!("cannot note the commit that the work starts from: {error}"));
    }
}

/// The commit that the work starts from, and the anchor's.
type Commits = (Option<String>, Option<String>);

async fn fresh(git: &Git) -> Result<Commits, Failure> {
    let continued = if git.work.go_on { continued(git).await? } else { None };
    let git = continued.as_ref().unwrap_or(git);
    let work = &git.work;
    let is_anchor = work.base == work.anchor && work.start.is_none();
    let mut output = clone(git, work.base.as_ref(), is_anchor).await?;
    if work.start.is_some() && is_branch_missing(&output) {
        // The files come from another commit, so the base need not be there any more.
        output = clone(git, None, is_anchor).await?;
    }
    if !output.exit.success() {
        return Err(match &work.base {
            Some(base) if is_branch_missing(&output) => missing_branch(base),
            Some(_) | None => {
                git.refusal(FailureKind::RepoUnreachable, "the repository could not be cloned", &output)
            }
        });
    }
    if is_anchor {
        // The commit is the same before and after the branch is made, so all is done at once.
        let (base, switched, kept) =
            tokio::join!(cloned_head(git), switch(git, None), anchor::keep_head(git));
        let base = base?;
        switched?;
        let kept = kept?;
        return match base {
            Some(_) if !kept.exit.success() => Err(git_command("update-ref", &kept.stderr)),
            Some(base) => Ok((Some(base.clone()), Some(base))),
            None => Ok((without_commits(git).await?, None)),
        };
    }
    let start = match &work.start {
        Some(start) => Some(start::find(git, start).await?),
        None => None,
    };
    let base = if start.is_some() { start.clone() } else { cloned_head(git).await? };
    let Some(base) = base else {
        switch(git, None).await?;
        return Ok((without_commits(git).await?, None));
    };
    let anchor = anchor::fetch(git).await?;
    attributes::give(git, anchor.as_deref(), &base).await?;
    if work.base.as_ref() == Some(&work.branch) && start.is_none() {
        git.run(&["checkout", "--quiet", work.branch.as_str(), "--"]).await?;
    } else {
        switch(git, start.as_deref()).await?;
    }
    Ok((Some(base), anchor))
}

/// Clones a branch, or the default one, with its files if they are the anchor's: else they come when it is known whose attributes
/// they follow.
async fn clone(git: &Git, branch: Option<&BranchName>, is_anchor: bool) -> Result<Output, Failure> {
    let work = &git.work;
    let (name, email) =
        (format!("user.name={}", work.author_name), format!("user.email={}", work.author_email));
    let url = git.url();
    let mut clone = vec!["clone", "--quiet", "--no-tags", "--single-branch", "--template="];
    clone.extend(["--origin", paths::GIT_REMOTE, "--config", &name, "--config", &email]);
    if let Some(branch) = branch {
        clone.extend(["--branch", branch.as_str()]);
    }
    if !is_anchor {
        clone.push("--no-checkout");
    }
    clone.extend([url.as_str(), "."]);
    git.talk_again(&clone, || unfinished_emptied(git)).await
}

/// `HEAD` of a clone, which is the commit of the branch that was named, if one was: where there is no such branch, `git clone` takes a
/// tag of that name, and who may push tags is not who may push branches.
async fn cloned_head(git: &Git) -> Result<Option<String>, Failure> {
    let Some(named) = &git.work.base else { return git.resolve("HEAD").await };
    let tracked = format!("refs/remotes/{}/{named}", paths::GIT_REMOTE);
    let (head, branch) = tokio::try_join!(git.resolve("HEAD"), git.resolve(&tracked))?;
    if branch.is_none() || branch != head {
        return Err(missing_branch(named));
    }
    Ok(head)
}

/// The same git, but starting from the run's own branch, which an earlier run of the session has pushed; none if the branch is not
/// there any more, since somebody may have merged and removed it.
async fn continued(git: &Git) -> Result<Option<Git>, Failure> {
    let full = git.work.branch.full_ref();
    let output = git.talk(&["ls-remote", &git.url(), &full]).await?;
    if !output.exit.success() {
        return Err(git.refusal(FailureKind::RepoUnreachable, "the repository could not be listed", &output));
    }
    if text(&output).is_empty() {
        return Ok(None);
    }
    let mut git = git.clone();
    git.work.base = Some(git.work.branch.clone());
    Ok(Some(git))
}

/// Whether it is the mark of a clone that is not finished. An agent can put other things in its place, which say nothing.
fn is_mark(preparing: &Path) -> bool {
    preparing.symlink_metadata().is_ok_and(|found| found.is_file())
}

/// Removes what a clone that broke off left. The agent's process may wait in the directory, which stays.
fn unfinished_emptied(git: &Git) -> Result<(), Failure> {
    if !is_mark(&git.home.join(PREPARING)) {
        // Then the files may be somebody's work.
        return Ok(());
    }
    empty(&git.workspace).map_err(|error| unusable("cannot be emptied", &error))
}

/// Whether a clone failed because the repository has no such branch.
pub(crate) fn is_branch_missing(output: &Output) -> bool {
    !output.exit.success() && output.stderr.contains("not found in upstream")
}

/// Makes the run's branch at `start`, or at `HEAD`, also where there is no commit yet.
async fn switch(git: &Git, start: Option<&str>) -> Result<(), Failure> {
    let branch = git.work.branch.as_str();
    if git.work.base.as_ref() == Some(&git.work.branch) && start.is_none() {
        return Ok(());
    }
    // With -B also where the remote's default branch has this very name.
    let mut checkout = vec!["checkout", "--quiet", "--no-track", "-B", branch];
    checkout.extend(start);
    git.run(&checkout).await.map(drop)
}

/// A clone without a commit is one of an empty repository, or of one whose default branch does not exist.
async fn without_commits(git: &Git) -> Result<Option<String>, Failure> {
    let output = git.talk(&["ls-remote", "--heads", &git.url()]).await?;
    if !output.exit.success() {
        return Err(git.refusal(FailureKind::RepoUnreachable, "the repository could not be listed", &output));
    }
    if text(&output).is_empty() {
        return Ok(None);
    }
    Err(Failure::new(
        FailureKind::RepoUnreachable,
        "the repository's default branch does not exist; name the branch to start from",
    ))
}

pub(crate) fn missing_branch(base: &BranchName) -> Failure {
    Failure::new(
        FailureKind::RepoUnreachable,
        format!("branch \"{base}\" does not exist in the repository; name one that does"),
    )
}

/// Takes up the checkout that is there: an earlier run or attempt worked on it. The anchor is fetched into it for the agent to compare
/// with, and not for what steers.
async fn existing(git: &Git, access: WorkspaceAccess) -> Result<Commits, Failure> {
    unlock(git);
    attributes::forget(git);
    git.learn_drivers().await?;
    let anchor = anchor::fetch(git).await?;
    set_author(git).await?;
    to_branch(git).await?;
    attributes::give_again(git, anchor.as_deref(), "HEAD", access).await?;
    Ok((known_base(git, access).await?, anchor))
}

/// Has the agent's commits carry the run's author, unless they do.
async fn set_author(git: &Git) -> Result<(), Failure> {
    let settings = [("user.name", &git.work.author_name), ("user.email", &git.work.author_email)];
    let found = git.attempt(&["config", "-z", "--get-regexp", r"^user\.(name|email)$"]).await?;
    let [(name, author), (email, address)] = settings;
    let wanted = format!("{name}\n{author}\0{email}\n{address}\0");
    if found.stdout != wanted.as_bytes() {
        for (name, value) in settings {
            git.run(&["config", "--replace-all", name, value]).await?;
        }
    }
    Ok(())
}

/// Brings the work tree to the run's branch, which is made where it is if there is none.
async fn to_branch(git: &Git) -> Result<(), Failure> {
    let branch = git.work.branch.as_str();
    let current = git.attempt(&["symbolic-ref", "--quiet", "--short", "HEAD"]).await?;
    if text(&current) != branch {
        let full = git.work.branch.full_ref();
        let known = git.resolve(&full).await?.is_some();
        let arguments: &[&str] = if known {
            &["checkout", "--quiet", branch, "--"]
        } else {
            // The work goes on from where the session is.
            &["checkout", "--quiet", "--no-track", "-b", branch]
        };
        let output = git.attempt(arguments).await?;
        if !output.exit.success() {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("the workspace cannot be switched to branch \"{branch}\" without losing work in it"),
            )
            .with_evidence(output.stderr));
        }
    }
    Ok(())
}

/// Removes the locks of a git that was killed.
pub(crate) fn unlock(git: &Git) {
    let branch_lock = format!("{}.lock", git.work.branch.full_ref());
    for lock in LOCKS.into_iter().chain([branch_lock.as_str()]) {
        // Usually there is none.
        let _absent = fs::remove_file(git.file(lock));
    }
}

/// The commit that the work starts from, as the gateway says. Where agents only read, none can have changed the note.
async fn known_base(git: &Git, access: WorkspaceAccess) -> Result<Option<String>, Failure> {
    match (&git.work.since, access) {
        (Some(since), WorkspaceAccess::ReadWrite) => start::since(git, since).await,
        (Some(_) | None, _) => noted_base(git).await,
    }
}

/// The commit that [`set_base`] noted; where there is no usable note, `HEAD`.
async fn noted_base(git: &Git) -> Result<Option<String>, Failure> {
    let noted = plain_file::read(&git.file(BASE), BASE_BYTES).ok();
    match noted.and_then(|noted| String::from_utf8(noted).ok()).as_deref() {
        Some("") => return Ok(None),
        Some(noted) if is_object_name(noted) => {
            if let Some(base) = git.resolve(noted).await? {
                return Ok(Some(base));
            }
        }
        Some(_) | None => {}
    }
    git.resolve("HEAD").await
}

/// As [`empty`], while a stop is heard: a set-up command may have left very many files.
async fn emptied(workspace: PathBuf) -> Result<(), Failure> {
    let emptied = tokio::task::spawn_blocking(move || empty(&workspace)).await;
    emptied.map_err(io::Error::other).flatten().map_err(|error| unusable("cannot be emptied", &error))
}

/// Removes everything in a directory, but not the directory.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        discard(&entry?.path())?;
    }
    Ok(())
}

fn unusable(what: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("the workspace {what}")).with_evidence(error.to_string())
}
