//! Knocking at a sandbox's door.

use caisson_domain::run::RunStatus;
use caisson_store::{DoorRun, Finish, Knock, SandboxState};

use crate::fixture::{Fixture, project};

conformance! {
    an_agents_grant_opens_its_own_sandbox_for_the_run_that_runs_in_it,
    a_grant_opens_nothing_once_its_run_or_its_sandbox_has_ended,
}

async fn an_agents_grant_opens_its_own_sandbox_for_the_run_that_runs_in_it(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.queued().await;
    let claimed = fixture.claim().await;
    let other = fixture.place(claimed, 2).await;
    let knock = async |at, grant: &caisson_domain::grant::Token| {
        fixture.store.knock(at, &grant.hash()).await.unwrap()
    };
    let open = |id| Knock::Open(DoorRun { id, project: project() });
    assert_eq!(knock(&placed.sandbox, &placed.agent).await, open(placed.run.id.clone()));
    assert_eq!(knock(&other.sandbox, &other.agent).await, open(other.run.id.clone()));
    assert_eq!(knock(&placed.sandbox, &placed.control).await, Knock::Refused, "of another kind");
    assert_eq!(knock(&placed.sandbox, &other.agent).await, Knock::Refused, "of another sandbox");
}

async fn a_grant_opens_nothing_once_its_run_or_its_sandbox_has_ended(fixture: Fixture) {
    let placed = fixture.placed().await;
    let knock = async || fixture.store.knock(&placed.sandbox, &placed.agent.hash()).await.unwrap();
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert_eq!(knock().await, Knock::NoRun);
    assert!(fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Stopping).await.unwrap());
    assert_eq!(knock().await, Knock::Refused);
}
