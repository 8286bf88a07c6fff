//! Deleting sessions: whose files are left to whom, and what happens at the same moment.

use std::collections::BTreeSet;

use caisson_domain::event::EventKind;
use caisson_domain::grant::GrantKind;
use caisson_domain::id::RunId;
use caisson_domain::limits::IDEMPOTENCY_MS;
use caisson_domain::run::RunStatus;
use caisson_store::{
    CreateRun, DeleteSession, FilesLeft, Finish, ForkSession, Idempotency, NewFork, NewRun, NextWork,
    RepeatWindow, Topic,
};
use futures_util::future::{join, join_all};

use crate::fixture::{ALL, Fixture, made, new_run, project, spec_on, woken};
use crate::going_on::{BY, REPOSITORY, audited, begun, ended, follow};

conformance! {
    whoever_has_files_of_a_deleted_session_is_woken_without_a_sandbox_as_well,
    a_session_of_a_lost_server_is_deleted_and_leaves_its_files_to_it,
    a_key_is_remembered_for_its_time_also_when_its_session_is_deleted,
    of_a_deletion_and_a_follow_up_at_once_one_is_refused,
    of_a_deletion_and_a_claim_at_once_the_claim_wins,
    of_a_deletion_and_a_fork_at_once_nothing_is_half_done,
    follow_ups_posted_at_once_run_in_the_order_in_which_they_were_accepted,
}

/// How often a race is run: the other one wins now and then.
const RACES: usize = 12;

async fn whoever_has_files_of_a_deleted_session_is_woken_without_a_sandbox_as_well(fixture: Fixture) {
    let store = &fixture.store;
    fixture.created(spec_on(REPOSITORY, "work")).await;
    // Its directories are made before its sandbox is, and that is refused.
    let claimed = fixture.claim().await;
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    assert!(store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
    let mut watch = store.watch(Topic::Server(fixture.server.clone()));
    let deleted = store.delete_session_of(&project(), &claimed.run.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    assert!(woken(&mut watch), "it looks at once");
    assert_eq!(store.files_left(&fixture.server).await.unwrap().len(), 2);
}

async fn a_session_of_a_lost_server_is_deleted_and_leaves_its_files_to_it(fixture: Fixture) {
    let store = &fixture.store;
    let placed = begun(&fixture, 1).await;
    let session = placed.run.session.clone();
    let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
    assert!(store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    let deleted = async || store.delete_session_of(&project(), &session, BY).await.unwrap();
    fixture.beat().await;
    fixture.clock.advance(store.server_lost_after_ms() - 1);
    assert_eq!(deleted().await, DeleteSession::SandboxLeft, "its server may come back for it");
    // A part of the server that is heard of is the server.
    fixture.beat().await;
    fixture.clock.advance(1);
    assert_eq!(deleted().await, DeleteSession::SandboxLeft);
    fixture.clock.advance(store.server_lost_after_ms());
    assert_eq!(deleted().await, DeleteSession::Deleted);
    assert_eq!(audited(&fixture, "session.delete").await.len(), 1);
    assert_eq!(store.next_work(&placed.sandbox).await.unwrap(), NextWork::Exit, "whatever still lives of it");
    let grant = store.check_grant(&placed.sandbox, GrantKind::Control, &placed.control.hash()).await.unwrap();
    assert!(!grant);
    store.heartbeat_server(&fixture.server, &[]).await.unwrap();
    let left = store.files_left(&fixture.server).await.unwrap();
    let wanted = [FilesLeft::Volume(session.clone()), FilesLeft::Artifacts(placed.run.id.clone())];
    assert!(left.len() == 2 && wanted.iter().all(|files| left.contains(files)), "{left:?}");
}

async fn a_key_is_remembered_for_its_time_also_when_its_session_is_deleted(fixture: Fixture) {
    let store = &fixture.store;
    let first = ended(&fixture, 1).await;
    let asked = |key: &str, request: &str| {
        let idempotency = Idempotency { key: key.to_owned(), request_sha256: request.to_owned() };
        NewRun { idempotency: Some(idempotency), ..new_run(spec_on(REPOSITORY, "work")) }
    };
    let made = store.create_run_in(first.session.clone(), asked("k", "a")).await.unwrap();
    let CreateRun::Created(run) = made else { panic!("not made: {made:?}") };
    store.request_cancel(&project(), &run.id, None).await.unwrap();
    let deleted = store.delete_session_of(&project(), &first.session, BY).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    let again = async |key, request| store.create_run(asked(key, request)).await.unwrap();
    fixture.clock.advance(IDEMPOTENCY_MS - 1);
    assert_eq!(again("k", "a").await, CreateRun::Deleted);
    let idempotency = asked("k", "a").idempotency.unwrap();
    let replayed = store.replayed(&project(), &idempotency, RepeatWindow::default()).await.unwrap();
    assert_eq!(replayed, Some(CreateRun::Deleted));
    assert_eq!(again("k", "b").await, CreateRun::KeyReused);
    assert_eq!(fixture.value::<i64>("select count(*) from run").await, 0, "nothing was made");
    fixture.clock.advance(1);
    assert!(matches!(again("k", "a").await, CreateRun::Created(_)), "its time is over");
}

async fn of_a_deletion_and_a_follow_up_at_once_one_is_refused(fixture: Fixture) {
    let store = &fixture.store;
    for number in 1..=RACES {
        let first = ended(&fixture, u8::try_from(number).unwrap()).await;
        let new = new_run(spec_on(REPOSITORY, "work"));
        let (deleted, made) = join(
            store.delete_session_of(&project(), &first.session, BY),
            store.create_run_in(first.session.clone(), new),
        )
        .await;
        match (deleted.unwrap(), made.unwrap()) {
            (DeleteSession::Deleted, CreateRun::NoSession) => {}
            (DeleteSession::Busy, CreateRun::Created(run)) => {
                assert_eq!(fixture.run(&run.id).await.status, RunStatus::Queued);
                store.request_cancel(&project(), &run.id, None).await.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    let report = store.check_references().await.unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
}

async fn of_a_deletion_and_a_claim_at_once_the_claim_wins(fixture: Fixture) {
    let store = &fixture.store;
    for _ in 0..RACES {
        let run = fixture.created(spec_on(REPOSITORY, "work")).await;
        let (deleted, claimed) =
            join(store.delete_session_of(&project(), &run.session, BY), store.claim(&fixture.server)).await;
        assert_eq!(deleted.unwrap(), DeleteSession::Busy, "it waits, or it runs");
        let claimed = claimed.unwrap().unwrap();
        assert_eq!(claimed.run.id, run.id);
        // Cancelled before its sandbox is made: whoever makes it then is told that the session is gone.
        let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
        assert!(store.finish(&run.id, claimed.epoch, &finish).await.unwrap());
        let deleted = store.delete_session_of(&project(), &run.session, BY).await.unwrap();
        assert_eq!(deleted, DeleteSession::Deleted);
        assert_eq!(store.heartbeat(&run.id, claimed.epoch).await.unwrap(), None);
        assert_eq!(store.progress(&run.id, claimed.epoch).await.unwrap(), None);
    }
    assert_eq!(fixture.value::<i64>("select count(*) from removal").await, i64::try_from(2 * RACES).unwrap());
}

async fn of_a_deletion_and_a_fork_at_once_nothing_is_half_done(fixture: Fixture) {
    let store = &fixture.store;
    for number in 1..=RACES {
        let first = ended(&fixture, u8::try_from(number).unwrap()).await;
        let new = NewFork::default();
        let (deleted, forked) = join(
            store.delete_session_of(&project(), &first.session, BY),
            store.fork_session(&project(), &first.session, &new, BY),
        )
        .await;
        assert_eq!(deleted.unwrap(), DeleteSession::Deleted, "a fork keeps no session from being deleted");
        let forked = forked.unwrap();
        if let ForkSession::Forked { session } = &forked {
            let said = store.read_transcript(session).await.unwrap();
            assert_eq!(said.as_deref(), Some("said"), "it has all of it");
            let deleted = store.delete_session_of(&project(), session, BY).await.unwrap();
            assert_eq!(deleted, DeleteSession::Deleted);
        } else {
            assert_eq!(forked, ForkSession::Unknown);
        }
        assert_eq!(
            fixture.value::<i64>("select count(*) from transcript_part").await,
            0,
            "and no text is left"
        );
    }
}

async fn follow_ups_posted_at_once_run_in_the_order_in_which_they_were_accepted(fixture: Fixture) {
    let store = &fixture.store;
    let first = ended(&fixture, 1).await;
    let new = || new_run(spec_on(REPOSITORY, "work"));
    let posts = (0..RACES).map(|_| store.create_run_in(first.session.clone(), new()));
    let ids: BTreeSet<RunId> = join_all(posts).await.into_iter().map(|run| made(run).id).collect();
    assert_eq!(ids.len(), RACES);
    let events = store.session_events(&first.session, 0, ALL).await.unwrap();
    let accepted: Vec<RunId> = events
        .into_iter()
        .filter(|event| event.kind == EventKind::RunQueued)
        .map(|event| event.run)
        .collect();
    let last = store.session(&project(), &first.session).await.unwrap().unwrap().last_run;
    assert_eq!(last.as_ref(), accepted.last(), "the last one is the last one");
    for run in &accepted[1..] {
        let claimed = store.claim(&fixture.server).await.unwrap().unwrap();
        assert_eq!(claimed.run.id, *run);
        assert_eq!(store.claim(&fixture.server).await.unwrap(), None, "one at a time");
        let finish = Finish { status: RunStatus::Failed, failure: None, result: None };
        assert!(store.finish(run, claimed.epoch, &finish).await.unwrap());
    }
    let another = follow(&fixture, &first.session).await;
    assert!(accepted.iter().all(|run| *run < another.id));
}
