//! Whether a run may push to the branch that it is asked to: one whose files steer agents is written by people.
//!
//! Only the workflows of the project say which such branches there are, beside the repository's default branch, which nobody
//! here knows: the gateway learns that one from the git host, before the run's agent begins and again with each push.

use caisson_domain::git::BranchName;
use caisson_domain::id::ProjectId;
use caisson_domain::workflow::Workflow;
use caisson_store::{Store, StoreError};

use crate::problem::Faults;

/// Adds a fault if a workflow of the project trusts the branch, and `workflow`, whose runs push to it, does not say that
/// they may.
///
/// # Errors
/// As every read of the store.
/// # Cancel safety
/// Safe: it only reads.
pub(crate) async fn check_branch(
    store: &Store,
    project: &ProjectId,
    (workflow, branch): (&Workflow, &BranchName),
    faults: &mut Faults,
) -> Result<(), StoreError> {
    let block = &workflow.caisson;
    if block.trust.publish || !block.publish.pushes() {
        return Ok(());
    }
    let trusting = if block.trust.names(branch) {
        Some(workflow.name.clone())
    } else {
        store.workflow_trusting(project, branch).await?
    };
    if let Some(trusting) = trusting {
        let message = format!(
            "the workflow {trusting} trusts \"{branch}\" to steer agents, so no run writes it: name another branch, or leave this \
             out; whoever keeps the workflow {} may add caisson.trust.publish to it",
            workflow.name
        );
        faults.add("branch", "branch_trusted", message);
    }
    Ok(())
}
