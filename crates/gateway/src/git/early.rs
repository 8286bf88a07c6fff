//! What would keep a run's branch from being pushed at its end: told before its agent begins, and not after its work was paid
//! for.

use caisson_domain::git::BranchName;
use caisson_domain::run::{Phase, Run};

use super::fault::Fault;
use super::{Upstream, trusted};
use crate::shared::Shared;

/// Why the branch of a run whose workspace is being prepared will not be pushed, as far as that is known.
pub(super) async fn unpushable(shared: &Shared, run: &Run, upstream: &Upstream) -> Option<Fault> {
    let branch = to_be_pushed(run)?;
    if upstream.is_checked_out(branch).await {
        return Some(Fault::CheckedOut { branch: branch.to_string() });
    }
    trusted::look_early(shared, run, branch, upstream).await
}

/// The branch that the run will push, while its workspace is prepared.
fn to_be_pushed(run: &Run) -> Option<&BranchName> {
    let pushes = run.spec.workflow.caisson.publish.pushes() && run.phase == Some(Phase::Prepare);
    run.spec.branch.as_ref().filter(|_| pushes)
}
