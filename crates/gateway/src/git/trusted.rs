//! Branches whose files steer agents: no run pushes to one, unless its workflow says so.
//!
//! They are the repository's default branch, which the git host names, and those that a workflow of the project trusts. Whoever
//! asks for a run names its branch, and an agent that writes such a branch writes what later agents obey.

use caisson_domain::checks::{Check, stands};
use caisson_domain::git::BranchName;
use caisson_domain::run::Run;
use caisson_domain::trust::MADE_BRANCHES;
use caisson_store::StoreError;

use super::fault::Fault;
use super::receive::Denial;
use super::{Upstream, heads};
use crate::hold::hold;
use crate::shared::Shared;

/// Why a branch's files steer agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Steers {
    /// It is the repository's default branch, or another name of it.
    Default,
    /// It, or what it is another name of, is one that this workflow trusts.
    Trusted { workflow: String },
}

/// Why nobody can say whether a branch's files steer agents.
#[derive(Debug)]
pub(super) enum AskError {
    Store(StoreError),
    Host(Fault),
}

impl Steers {
    /// The push that is refused for it.
    pub(super) fn denial(&self, branch: &BranchName) -> Denial {
        Denial::new(&branch.full_ref(), "trusted_branch", self.reason(branch))
    }

    /// In a sentence with a remedy.
    pub(super) fn reason(&self, branch: &BranchName) -> String {
        let why = match self {
            Self::Default => "is the repository's default branch".to_owned(),
            Self::Trusted { workflow } => format!("is trusted by the workflow {workflow}"),
        };
        format!(
            "{branch} {why}, whose files steer agents, so no run pushes to it; name another branch for the run, or add \
             caisson.trust.publish to its workflow"
        )
    }
}

/// Why the files of the run's branch steer agents; none if they do not, if its workflow says that it may push to it all the
/// same, or if nobody has made it before the run did.
///
/// # Errors
/// [`AskError`] if store or git host do not say.
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn look(
    shared: &Shared,
    run: &Run,
    upstream: &Upstream,
) -> Result<Option<Steers>, AskError> {
    let trust = &run.spec.workflow.caisson.trust;
    let Some(branch) = run.spec.branch.as_ref().filter(|_| !trust.publish && stands(Check::TrustedBranch))
    else {
        return Ok(None);
    };
    if let Some(steers) = trusted(shared, run, branch).await? {
        return Ok(Some(steers));
    }
    let full = branch.full_ref();
    let heads = heads::ask(upstream, &full).await.map_err(AskError::Host)?;
    let led = heads.target.as_deref().unwrap_or(&full);
    // A name of something else has the trust of what it is a name of.
    let other = led.strip_prefix("refs/heads/").filter(|_| led != full).and_then(|name| name.parse().ok());
    if let Some(other) = other
        && let Some(steers) = trusted(shared, run, &other).await?
    {
        return Ok(Some(steers));
    }
    if heads.default.as_deref() != Some(led) {
        return Ok(None);
    }
    let may_be_made = if heads.unborn {
        // Whatever is pushed first to a repository without a branch is its beginning.
        !heads::has_branches(upstream).await.map_err(AskError::Host)?
    } else {
        was_made(shared, run, &full).await?
    };
    Ok((!may_be_made).then_some(Steers::Default))
}

async fn trusted(shared: &Shared, run: &Run, branch: &BranchName) -> Result<Option<Steers>, AskError> {
    let workflow = &run.spec.workflow;
    if workflow.caisson.trust.names(branch) {
        return Ok(Some(Steers::Trusted { workflow: workflow.name.clone() }));
    }
    let asked = hold(&shared.cancel, shared.bounds.store_hold, || {
        shared.store.workflow_trusting(&run.project, branch)
    });
    let trusting = asked.await.map_err(AskError::Store)?;
    Ok(trusting.map(|workflow| Steers::Trusted { workflow }))
}

/// Whether the run itself has made the branch, as it does where the repository was empty: then all of it is the run's.
async fn was_made(shared: &Shared, run: &Run, full: &str) -> Result<bool, AskError> {
    let asked =
        hold(&shared.cancel, shared.bounds.store_hold, || shared.store.session_pushes(&run.session, full));
    let earlier = asked.await.map_err(AskError::Store)?;
    Ok(earlier.iter().any(|push| push.run == run.id && push.push.old.bytes().all(|digit| digit == b'0')))
}

/// As [`look`], before the agent begins: what cannot be said then is said when it pushes. Names that are made for runs are not
/// looked at so early, since they are hardly ever anything else.
pub(super) async fn look_early(
    shared: &Shared,
    run: &Run,
    branch: &BranchName,
    upstream: &Upstream,
) -> Option<Fault> {
    if branch.as_str().starts_with(MADE_BRANCHES) {
        return None;
    }
    match look(shared, run, upstream).await {
        Ok(steers) => steers.map(|steers| Fault::TrustedBranch { reason: steers.reason(branch) }),
        Err(error) => {
            tracing::debug!(run.id = %run.id, error = ?error, "nobody says yet whether the branch of {} steers agents", run.id);
            None
        }
    }
}
