//! Branches whose files steer agents: no run pushes to one, unless its workflow says so.
//!
//! They are the repository's default branch, which the git host names, and those that a workflow of the project trusts. Whoever
//! asks for a run names its branch, and an agent that writes such a branch writes what later agents obey.

use caisson_domain::checks::{Check, stands};
use caisson_domain::git::BranchName;
use caisson_domain::run::Run;
use caisson_domain::trust::MADE_BRANCHES;
use caisson_store::{Push, StoreError};

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

/// What store and git host say of a run's branch.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Why its files steer agents; none if they do not, if the run's workflow says that it may push to it all the same, or if the
    /// run has begun the repository with it.
    pub(super) steers: Option<Steers>,
    /// Whether a push that makes it begins the repository, which has no branch.
    pub(super) begins: bool,
}

impl Look {
    fn of(steers: Steers) -> Self {
        Self { steers: Some(steers), begins: false }
    }
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

/// Looks at the run's branch.
///
/// # Errors
/// [`AskError`] if store or git host do not say.
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn look(shared: &Shared, run: &Run, upstream: &Upstream) -> Result<Look, AskError> {
    let trust = &run.spec.workflow.caisson.trust;
    let Some(branch) = run.spec.branch.as_ref().filter(|_| !trust.publish && stands(Check::TrustedBranch))
    else {
        return Ok(Look::default());
    };
    if let Some(steers) = trusted(shared, run, branch).await? {
        return Ok(Look::of(steers));
    }
    let full = branch.full_ref();
    let heads = heads::ask(upstream, &full).await.map_err(AskError::Host)?;
    let led = heads.target.as_deref().unwrap_or(&full);
    // A name of something else has the trust of what it is a name of.
    let other = led.strip_prefix("refs/heads/").filter(|_| led != full).and_then(|name| name.parse().ok());
    if let Some(other) = other
        && let Some(steers) = trusted(shared, run, &other).await?
    {
        return Ok(Look::of(steers));
    }
    // Whatever is pushed first to a repository without a branch is its beginning.
    let beginning = Look { steers: None, begins: heads.empty };
    let is_default = heads.default.as_deref() == Some(led);
    if !is_default || heads.empty || (!heads.unborn && has_begun(shared, run, &full).await?) {
        return Ok(beginning);
    }
    Ok(Look::of(Steers::Default))
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

/// Whether the run itself has begun the repository with the branch: then all of it is the run's. One that it made beside others, and
/// that somebody makes the default branch while it lives, is the default branch like any other.
async fn has_begun(shared: &Shared, run: &Run, full: &str) -> Result<bool, AskError> {
    let (store, patience) = (&shared.store, shared.bounds.store_hold);
    let began = hold(&shared.cancel, patience, || store.began_repository(&run.id));
    if !began.await.map_err(AskError::Store)? {
        return Ok(false);
    }
    let pushed = hold(&shared.cancel, patience, || store.session_pushes(&run.session, full));
    let pushed = pushed.await.map_err(AskError::Store)?;
    Ok(pushed.iter().any(|push| push.run == run.id && makes_branch(&push.push)))
}

/// Whether the push makes its branch.
fn makes_branch(push: &Push) -> bool {
    push.old.bytes().all(|digit| digit == b'0')
}

/// Writes down, before a push that makes the run's branch is forwarded, whether it begins the repository.
///
/// # Errors
/// The store does not answer.
/// # Cancel safety
/// Safe: repeatable.
pub(super) async fn note_beginning(
    shared: &Shared,
    run: &Run,
    push: &Push,
    begins: bool,
) -> Result<(), StoreError> {
    if !makes_branch(push) {
        return Ok(());
    }
    let (store, patience) = (&shared.store, shared.bounds.store_hold);
    hold(&shared.cancel, patience, || async {
        if store.began_repository(&run.id).await? == begins {
            return Ok(());
        }
        store.set_began_repository(&run.id, begins).await
    })
    .await
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
        Ok(Look { steers, .. }) => {
            steers.map(|steers| Fault::TrustedBranch { reason: steers.reason(branch) })
        }
        Err(error) => {
            tracing::debug!(run.id = %run.id, error = ?error, "nobody says yet whether the branch of {} steers agents", run.id);
            None
        }
    }
}
