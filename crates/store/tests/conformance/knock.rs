//! Knocking at a sandbox's door.

use caisson_domain::credential::CredentialKind;
use caisson_domain::run::RunStatus;
use caisson_store::{Actor, DoorRun, Finish, Knock, NewCredential, RefusedGrant, SandboxState};

use crate::credentials::{oauth, settings, value};
use crate::fixture::{Fixture, project};

conformance! {
    an_agents_grant_opens_its_own_sandbox_for_the_run_that_runs_in_it,
    a_grant_opens_nothing_once_its_run_or_its_sandbox_has_ended,
    a_refused_grant_is_told_apart_while_a_run_is_running_and_the_sandbox_has_its_own,
    a_knock_tells_of_the_projects_newest_model_credential_and_its_version,
}

async fn an_agents_grant_opens_its_own_sandbox_for_the_run_that_runs_in_it(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.queued().await;
    let claimed = fixture.claim().await;
    let other = fixture.place(claimed, 2).await;
    let knock = async |at, grant: &caisson_domain::grant::Token| {
        fixture.store.knock(at, &grant.hash()).await.unwrap()
    };
    let open = |id| Knock::Open { run: DoorRun { id, project: project() }, model_credential: None };
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

async fn a_refused_grant_is_told_apart_while_a_run_is_running_and_the_sandbox_has_its_own(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.queued().await;
    let claimed = fixture.claim().await;
    let other = fixture.place(claimed, 2).await;
    let told = async |grant: Option<&caisson_domain::grant::Token>| {
        let hash = grant.map(caisson_domain::grant::Token::hash);
        fixture.store.refused_grant(&placed.sandbox, hash.as_ref()).await.unwrap()
    };
    let refused = |is_own| Some(RefusedGrant { run: placed.run.id.clone(), is_own });
    assert_eq!(
        [told(Some(&placed.control)).await, told(Some(&placed.agent)).await],
        [refused(true), refused(true)]
    );
    assert_eq!([told(Some(&other.agent)).await, told(None).await], [refused(false), refused(false)]);
    assert!(fixture.store.set_sandbox_state(&other.sandbox, SandboxState::Stopping).await.unwrap());
    let late = fixture.store.refused_grant(&other.sandbox, Some(&other.agent.hash())).await.unwrap();
    assert_eq!(late, None, "its run is running, and its grants are revoked");
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert_eq!(told(Some(&other.agent)).await, None, "no run is running");
}

async fn a_knock_tells_of_the_projects_newest_model_credential_and_its_version(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let placed = fixture.placed().await;
    fixture.execute("insert into project (id, created_at_ms) values ('other', 0)").await;
    let told = async || match fixture.store.knock(&placed.sandbox, &placed.agent.hash()).await.unwrap() {
        Knock::Open { model_credential, .. } => model_credential.map(|told| (told.id, told.version)),
        refused @ (Knock::Refused | Knock::NoRun) => panic!("{refused:?}"),
    };
    let add = async |project: &str, name: &str, kind, fields: &[_], secret| {
        fixture.clock.advance(1);
        let settings = settings(kind, fields);
        let project = project.parse().unwrap();
        let new = NewCredential { project, name: name.to_owned(), settings, secret };
        fixture.store.add_credential(new, &Actor::Server).await.unwrap().id
    };
    let key = async |project, name| add(project, name, CredentialKind::ModelApiKey, &[], value("k")).await;
    let git = [("url_prefix", "https://git.example.com/")];
    add("default", "git", CredentialKind::GitToken, &git, value("t")).await;
    key("other", "elsewhere").await;
    assert_eq!(told().await, None);
    let first = key("default", "first").await;
    assert_eq!(told().await, Some((first.clone(), 1)));
    let token = [("token_url", "https://id.example.com/token")];
    let second = add("default", "second", CredentialKind::ModelOauth, &token, oauth("a")).await;
    key("other", "later").await;
    add("default", "git-too", CredentialKind::GitToken, &git, value("t")).await;
    assert_eq!(told().await, Some((second.clone(), 1)));
    fixture
        .store
        .rotate_credential((&project(), &second), &oauth("b"), &Actor::Server)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(told().await, Some((second.clone(), 2)));
    assert!(fixture.store.remove_credential(&project(), &second, &Actor::Server).await.unwrap());
    assert_eq!(told().await, Some((first, 1)));
}
