//! Sessions of which nothing is kept: told by what is really there.

use caisson_domain::id::SessionId;
use caisson_domain::retention::Kept;
use caisson_store::{CreateRun, ForgetServer};

use crate::fixture::{Fixture, new_run, project, spec_on};
use crate::going_on::{BY, DAY_MS, REPOSITORY, begin, days, end, ended, follow, fork};

conformance! {
    an_expired_session_is_told_and_one_that_goes_on_is_kept_again,
    a_session_that_never_had_anything_has_not_expired,
    a_fork_that_never_ran_tells_that_its_conversation_is_gone,
}

async fn an_expired_session_is_told_and_one_that_goes_on_is_kept_again(fixture: Fixture) {
    let first = ended(&fixture, 1).await;
    let store = &fixture.store;
    let policy = days(Kept::Volumes, 1);
    fixture.clock.advance(DAY_MS);
    assert!(store.delete_volume(&first.session, &fixture.server, &policy, &BY).await.unwrap());
    let expired = async || {
        let told = store.session(&project(), &first.session).await.unwrap().unwrap().expired;
        assert_eq!(store.go_on(&project(), &first.session).await.unwrap().unwrap().expired, told);
        told
    };
    assert!(!expired().await, "the archive is left");
    let waiting = follow(&fixture, &first.session).await;
    fixture.execute("delete from transcript_part").await;
    fixture.execute("delete from transcript").await;
    assert!(expired().await, "a run that waits has no workspace yet");
    let new = || new_run(spec_on(REPOSITORY, "work"));
    let refused = store.create_run_in(first.session.clone(), new()).await.unwrap();
    assert_eq!(refused, CreateRun::SessionExpired);
    store.request_cancel(&project(), &waiting.id, None).await.unwrap();
    assert!(expired().await, "and one that was cancelled never had one");
    assert_eq!(store.create_run_in(first.session.clone(), new()).await.unwrap(), CreateRun::SessionExpired);
    // As one that was queued before its session expired.
    fixture
        .execute("update run set status = 'queued', finished_at_ms = null where status = 'cancelled'")
        .await;
    let placed = begin(&fixture, 2).await;
    assert!(!expired().await, "it has a workspace again");
    end(&fixture, &placed).await;
    fixture.clock.advance(DAY_MS);
    let found = store.expired(Kept::Volumes, &fixture.server, &policy).await.unwrap();
    assert_eq!(found.len(), 1, "which expires again");
    fixture.clock.advance(DAY_MS);
    assert_eq!(store.forget_server(&fixture.server, BY).await.unwrap(), ForgetServer::Forgotten);
    assert!(expired().await, "its server is gone for good");
    store.heartbeat_server(&fixture.server, &[]).await.unwrap();
    assert!(!expired().await, "or not");
}

async fn a_session_that_never_had_anything_has_not_expired(fixture: Fixture) {
    let run = fixture.created(spec_on(REPOSITORY, "work")).await;
    let store = &fixture.store;
    let expired = async |id: &SessionId| store.go_on(&project(), id).await.unwrap().unwrap().expired;
    assert!(!expired(&run.session).await, "it waits");
    store.request_cancel(&project(), &run.id, None).await.unwrap();
    assert!(!expired(&run.session).await, "no agent has worked in it");
    assert!(matches!(
        store.create_run_in(run.session.clone(), new_run(spec_on(REPOSITORY, "work"))).await.unwrap(),
        CreateRun::Created(_)
    ));
}

async fn a_fork_that_never_ran_tells_that_its_conversation_is_gone(fixture: Fixture) {
    let origin = ended(&fixture, 1).await;
    let id = fork(&fixture, &origin.session).await;
    let store = &fixture.store;
    let expired = async || store.session(&project(), &id).await.unwrap().unwrap().expired;
    assert!(!expired().await);
    fixture.clock.advance(DAY_MS);
    store.delete_events(&id, &days(Kept::Events, 1), &BY).await.unwrap();
    assert!(expired().await);
    let refused = store.create_run_in(id.clone(), new_run(spec_on(REPOSITORY, "other"))).await.unwrap();
    assert_eq!(refused, CreateRun::SessionExpired);
    assert_eq!(
        store.read_transcript(&origin.session).await.unwrap().as_deref(),
        Some("said"),
        "the other one has it still"
    );
}
