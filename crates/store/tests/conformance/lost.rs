//! Servers that are away: who takes up their runs, and when they are written off.

use caisson_domain::id::ServerId;
use caisson_domain::limits::{LEASE_MS, LOST_RUNS, SERVER_LOST_MS_MAX, SERVER_LOST_MS_MIN, SERVER_SILENT_MS};
use caisson_domain::run::{FailureKind, RunStatus};
use caisson_domain::server::{Role, ServerState};
use caisson_store::{
    Beat, Clock, Finish, JournalAppend, JournalEffect, NextWork, Presence, SandboxState, Store, Unowned,
};

use crate::credentials::{add, totals};
use crate::fixture::{Fixture, Placed, START_MS, assert_gapless, project, server_id, spec};

conformance! {
    a_run_is_written_off_once_after_the_silence_and_not_before,
    a_run_that_is_written_off_has_its_uses_of_credentials_in_the_audit_log,
    whoever_was_away_itself_writes_nothing_off,
    a_server_that_lives_or_a_lease_that_lasts_keeps_a_run,
    what_is_written_off_opens_nothing_any_more,
    so_many_runs_are_written_off_at_a_time,
    only_its_home_takes_a_run_up_again,
    a_lost_answer_of_taking_up_again_is_made_good,
    runs_without_an_owner_are_found_by_their_home_alone,
    a_session_waits_for_the_server_that_it_was_on_until_that_is_lost,
    a_session_waits_for_a_silent_home_until_the_claimer_has_witnessed_its_silence,
    a_session_waits_for_the_server_on_which_its_agent_worked_last,
    a_lost_run_whose_agent_never_started_goes_back_to_the_queue,
    a_lost_run_that_was_to_be_cancelled_before_its_agent_started_ends_as_cancelled,
    the_silence_is_kept_within_its_bounds,
    servers_are_listed_with_their_parts_and_what_they_have_in_hand,
    a_server_that_is_heard_of_from_another_place_is_told_of,
    of_two_places_that_are_one_server_the_first_that_tells_stays,
}

async fn a_server_that_is_heard_of_from_another_place_is_told_of(fixture: Fixture) {
    let server = server_id(1);
    let (clock, handle) = Clock::fixed_at(START_MS);
    let copy = fixture.beside(clock).await.unwrap();
    let parts = presence(&server, &[Role::Api, Role::Worker]);
    fixture.store.beat(&parts).await.unwrap();
    copy.set_place(&server, "there".to_owned());
    assert_eq!(
        copy.heard_elsewhere(&server).await.unwrap(),
        None,
        "an earlier version does not say where it is"
    );
    fixture.store.set_place(&server, "here".to_owned());
    fixture.store.beat(&parts).await.unwrap();
    assert_eq!(copy.heard_elsewhere(&server).await.unwrap(), Some(START_MS));
    assert_eq!(copy.heard_elsewhere(&server_id(2)).await.unwrap(), None);
    assert_eq!(fixture.store.heard_elsewhere(&server).await.unwrap(), None, "that is itself");
    fixture.clock.advance(1);
    fixture.store.beat(&presence(&server, &[Role::Worker])).await.unwrap();
    assert_eq!(copy.heard_elsewhere(&server).await.unwrap(), Some(START_MS + 1), "it lives");
    handle.advance(SERVER_SILENT_MS + 1);
    assert_eq!(copy.heard_elsewhere(&server).await.unwrap(), Some(START_MS + 1));
    handle.advance(1);
    assert_eq!(copy.heard_elsewhere(&server).await.unwrap(), None, "it is silent");
    copy.beat(&parts).await.unwrap();
    assert_eq!(fixture.store.heard_elsewhere(&server).await.unwrap(), Some(START_MS + SERVER_SILENT_MS + 2));
    copy.close().await.unwrap();
}

async fn of_two_places_that_are_one_server_the_first_that_tells_stays(fixture: Fixture) {
    let server = server_id(1);
    let (clock, handle) = Clock::fixed_at(START_MS);
    let copy = fixture.beside(clock).await.unwrap();
    fixture.store.set_place(&server, "here".to_owned());
    copy.set_place(&server, "there".to_owned());
    let parts = presence(&server, &[Role::Api, Role::Worker]);
    for store in [&fixture.store, &copy] {
        assert_eq!(store.heard_elsewhere(&server).await.unwrap(), None, "neither sees the other");
    }
    let (here, there) = tokio::join!(fixture.store.beat(&parts), copy.beat(&parts));
    let (here, there) = (here.unwrap(), there.unwrap());
    if fixture.store.is_shared() {
        assert_ne!(here, there, "one of them stays");
        let (first, second) =
            if here == Beat::Noted { (&fixture.store, &copy) } else { (&copy, &fixture.store) };
        for clock in [&fixture.clock, &handle] {
            clock.advance(SERVER_SILENT_MS);
        }
        assert_eq!(second.beat(&parts).await.unwrap(), Beat::Elsewhere, "the first one lives");
        for clock in [&fixture.clock, &handle] {
            clock.advance(1);
        }
        assert_eq!(second.beat(&parts).await.unwrap(), Beat::Noted, "the first one is silent");
        assert_eq!(first.beat(&parts).await.unwrap(), Beat::Elsewhere, "and is not the server any more");
        assert_eq!(fixture.value::<i64>("select count(distinct place) from server_role").await, 1);
    } else {
        assert_eq!((here, there), (Beat::Noted, Beat::Noted), "a file goes with its directory");
    }
    copy.close().await.unwrap();
}

const LOST_MS: i64 = SERVER_LOST_MS_MIN;

fn presence(server: &ServerId, roles: &[Role]) -> Presence {
    Presence { server: server.clone(), roles: roles.to_vec(), version: "1.2.3".to_owned(), slots: Some(3) }
}

/// A second server that lives for so long without a pause.
pub(crate) async fn witness(fixture: &Fixture, ms: i64) -> ServerId {
    let other = server_id(2);
    let mut left = ms;
    loop {
        fixture.store.beat(&presence(&other, &[Role::Worker])).await.unwrap();
        fixture.store.register_server(&other).await.unwrap();
        if left == 0 {
            return other;
        }
        let step = left.min(SERVER_SILENT_MS);
        fixture.clock.advance(step);
        left -= step;
    }
}

async fn placed(fixture: &Fixture) -> Placed {
    fixture.store.set_server_lost_after_ms(LOST_MS);
    let placed = fixture.placed().await;
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    placed
}

fn lapsed(placed: &Placed) -> Unowned {
    Unowned { run: placed.run.id.clone(), epoch: placed.epoch, attempt: placed.run.attempt }
}

async fn a_run_is_written_off_once_after_the_silence_and_not_before(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, LOST_MS - 1).await;
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), []);
    assert_eq!(fixture.run(&placed.run.id).await.status, RunStatus::Running);
    fixture.clock.advance(1);
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), std::slice::from_ref(&placed.run.id));
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), [], "once");
    let run = fixture.run(&placed.run.id).await;
    let failure = run.failure.unwrap();
    assert_eq!((run.status, failure.kind), (RunStatus::Failed, FailureKind::SandboxLost));
    assert!(failure.message.contains("more than 40 s"), "{}", failure.message);
    let events = fixture.events(&placed.run.id).await;
    assert_gapless(&events);
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert!(kinds.ends_with(&["note", "run.finished"]), "{kinds:?}");
    let told = events[events.len() - 2].data.get();
    assert!(
        told.contains(fixture.server.as_str()) && told.contains("keeps the session's workspace"),
        "{told}"
    );
    let audited = "select count(*) from audit where action = 'run.write_off'";
    assert_eq!(fixture.value::<i64>(audited).await, 1);
    // Its home comes back: what it had is lost, and it is told so.
    assert!(fixture.store.adopt(&fixture.server).await.unwrap().is_empty());
    assert_eq!(fixture.store.readopt(&lapsed(&placed), &fixture.server).await.unwrap(), None);
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(!fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert!(!fixture.store.is_sandbox_needed(&placed.sandbox).await.unwrap());
}

async fn a_run_that_is_written_off_has_its_uses_of_credentials_in_the_audit_log(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let placed = placed(&fixture).await;
    fixture.store.use_credential(&credential, &placed.run.id).await.unwrap();
    let other = witness(&fixture, LOST_MS).await;
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), std::slice::from_ref(&placed.run.id));
    let told = totals(&fixture, &placed.run).await;
    assert_eq!(told.len(), 1);
    assert!(told[0].0.starts_with("uses 1, ") && told[0].1 == format!("{} one", credential.id), "{told:?}");
}

async fn whoever_was_away_itself_writes_nothing_off(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, 0).await;
    // As when the database was away for everybody.
    fixture.clock.advance(10 * LOST_MS);
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), [], "it is silent");
    fixture.store.beat(&presence(&other, &[Role::Worker])).await.unwrap();
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), [], "it has just come back");
    witness(&fixture, LOST_MS).await;
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), [placed.run.id]);
}

async fn a_server_that_lives_or_a_lease_that_lasts_keeps_a_run(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, LOST_MS).await;
    fixture.store.heartbeat(&placed.run.id, placed.epoch).await.unwrap();
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), [], "the lease lasts");
    witness(&fixture, LEASE_MS).await;
    fixture.store.register_server(&fixture.server).await.unwrap();
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), [], "the server is back");
    assert_eq!(fixture.store.write_off_lost(&fixture.server).await.unwrap(), []);
    assert_eq!(fixture.run(&placed.run.id).await.status, RunStatus::Running);
}

async fn what_is_written_off_opens_nothing_any_more(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, LOST_MS).await;
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap().len(), 1);
    let knock = fixture.store.knock(&placed.sandbox, &placed.agent.hash()).await.unwrap();
    assert_eq!(knock, caisson_store::Knock::Refused);
    assert_eq!(fixture.store.next_work(&placed.sandbox).await.unwrap(), NextWork::Exit);
    let left = fixture.store.sandboxes_of(&fixture.server).await.unwrap();
    assert_eq!(left.iter().map(|row| row.state).collect::<Vec<_>>(), [SandboxState::Stopping]);
}

async fn so_many_runs_are_written_off_at_a_time(fixture: Fixture) {
    fixture.store.set_server_lost_after_ms(LOST_MS);
    for _ in 0..=LOST_RUNS {
        fixture.queued().await;
        fixture.claim().await;
    }
    let other = witness(&fixture, LOST_MS).await;
    let first = fixture.store.write_off_lost(&other).await.unwrap();
    assert_eq!(first.len(), usize::try_from(LOST_RUNS).unwrap());
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap().len(), 1);
}

async fn only_its_home_takes_a_run_up_again(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, 0).await;
    fixture.clock.advance(LEASE_MS + 1);
    assert_eq!(fixture.store.readopt(&lapsed(&placed), &other).await.unwrap(), None);
    let before = fixture.kinds(&placed.run.id).await;
    let again = fixture.store.readopt(&lapsed(&placed), &fixture.server).await.unwrap().unwrap();
    assert_eq!((again.epoch.number, again.run.attempt), (placed.epoch.number + 1, placed.run.attempt));
    assert_eq!(fixture.kinds(&placed.run.id).await, before, "no event tells of it");
    assert_eq!(
        fixture.store.heartbeat(&placed.run.id, placed.epoch).await.unwrap(),
        None,
        "the old epoch is over"
    );
    assert!(fixture.store.heartbeat(&placed.run.id, again.epoch).await.unwrap().is_some());
}

async fn a_lost_answer_of_taking_up_again_is_made_good(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let first = fixture.store.readopt(&lapsed(&placed), &fixture.server).await.unwrap().unwrap();
    let second = fixture.store.readopt(&lapsed(&placed), &fixture.server).await.unwrap().unwrap();
    assert_eq!(second.epoch.number, first.epoch.number + 1);
    let other_attempt = Unowned { attempt: placed.run.attempt + 1, ..lapsed(&placed) };
    assert_eq!(fixture.store.readopt(&other_attempt, &fixture.server).await.unwrap(), None);
}

async fn runs_without_an_owner_are_found_by_their_home_alone(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let store = &fixture.store;
    fixture.clock.advance(LEASE_MS - 1);
    assert_eq!(store.unowned_runs(&fixture.server).await.unwrap(), [], "the lease lasts");
    fixture.clock.advance(1);
    assert_eq!(store.unowned_runs(&fixture.server).await.unwrap(), [lapsed(&placed)]);
    assert_eq!(store.unowned_runs(&server_id(2)).await.unwrap(), []);
}

async fn a_session_waits_for_the_server_that_it_was_on_until_that_is_lost(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, 0).await;
    // As a follow-up in the session, which was last on the first server.
    fixture.execute("update run set status = 'queued', lease_expires_at_ms = null, home_server_id = null, sandbox_id = null").await;
    let claim = async |store: &Store, server: &ServerId| {
        store.claim(server).await.unwrap().map(|claimed| claimed.run.id)
    };
    assert_eq!(claim(&fixture.store, &other).await, None, "its home lives");
    witness(&fixture, LOST_MS - 1).await;
    assert_eq!(claim(&fixture.store, &other).await, None, "its home is away");
    fixture.clock.advance(1);
    assert_eq!(claim(&fixture.store, &other).await, Some(placed.run.id.clone()), "its home is lost");
    let (sandbox, _, _) = fixture.sandbox(&placed.run.session, 9).await;
    let epoch = fixture.value::<i64>("select lease_epoch from run").await;
    fixture
        .store
        .place(&placed.run.id, caisson_store::HomeEpoch::new(epoch, &other), &sandbox)
        .await
        .unwrap();
    let NextWork::Run { resume, archive, .. } = fixture.store.next_work(&sandbox).await.unwrap() else {
        panic!("there is work")
    };
    assert!(resume && archive.is_none(), "there may be a conversation, and none is archived");
}

async fn a_session_waits_for_a_silent_home_until_the_claimer_has_witnessed_its_silence(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, 0).await;
    fixture.execute("update run set status = 'queued', lease_expires_at_ms = null, home_server_id = null, sandbox_id = null").await;
    let claim = async || fixture.store.claim(&other).await.unwrap().map(|claimed| claimed.run.id);
    // As when the database was away for everybody: whoever comes back first has heard of nobody.
    fixture.clock.advance(10 * LOST_MS);
    assert_eq!(claim().await, None, "it was silent itself");
    witness(&fixture, LOST_MS - SERVER_SILENT_MS).await;
    assert_eq!(claim().await, None, "it has not been back for long enough");
    // A run of another session waits for nobody.
    let free = fixture.queued().await;
    assert_eq!(claim().await, Some(free.id));
    witness(&fixture, SERVER_SILENT_MS).await;
    assert_eq!(claim().await, Some(placed.run.id));
}

async fn a_session_waits_for_the_server_on_which_its_agent_worked_last(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let other = witness(&fixture, 0).await;
    fixture.execute("update run set status = 'queued', lease_expires_at_ms = null, home_server_id = null, sandbox_id = null").await;
    let claim =
        async |server: &ServerId| fixture.store.claim(server).await.unwrap().map(|claimed| claimed.run.id);
    // An attempt that came after it, on the other server, whose agent began earlier, never, and later.
    let attempt = "insert into attempt (run_id, number, project_id, session_id, server_id, started_at_ms) \
         select run_id, 9, project_id, session_id, (select max(id) from server), started_at_ms from attempt";
    fixture.execute(attempt).await;
    assert_eq!(claim(&other).await, None, "its agent never began there");
    fixture.execute("update attempt set agent_started_at_ms = 1 where number = 9").await;
    assert_eq!(claim(&other).await, None, "it has worked elsewhere since");
    fixture.execute("update attempt set agent_started_at_ms = 9999999999999 where number = 9").await;
    assert_eq!(claim(&fixture.server).await, None, "it has worked on the other server since");
    assert_eq!(claim(&other).await, Some(placed.run.id));
}

async fn a_lost_run_whose_agent_never_started_goes_back_to_the_queue(fixture: Fixture) {
    fixture.store.set_server_lost_after_ms(LOST_MS);
    let placed = fixture.placed().await;
    let other = witness(&fixture, LOST_MS).await;
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap(), std::slice::from_ref(&placed.run.id));
    let run = fixture.run(&placed.run.id).await;
    assert_eq!((run.status, run.failure, run.sandbox), (RunStatus::Queued, None, None));
    let kinds: Vec<_> = fixture.kinds(&run.id).await.iter().map(|kind| kind.as_str()).collect();
    assert!(kinds.ends_with(&["note", "run.requeued"]), "{kinds:?}");
    assert_eq!(fixture.value::<i64>("select count(*) from audit where action = 'run.write_off'").await, 1);
    // Nothing of the old sandbox may start an agent, whenever its server comes back.
    let journaled = fixture.journal(&placed, JournalEffect::AgentStarted).await;
    assert_eq!(journaled, JournalAppend::Withdrawn { acknowledged: 0 });
    assert_eq!(fixture.store.readopt(&lapsed(&placed), &fixture.server).await.unwrap(), None);
    let again = fixture.store.claim(&other).await.unwrap().unwrap();
    assert_eq!((again.run.id, again.run.attempt), (placed.run.id, 2));
    assert!(!fixture.store.is_sandbox_needed(&placed.sandbox).await.unwrap());
}

async fn a_lost_run_that_was_to_be_cancelled_before_its_agent_started_ends_as_cancelled(fixture: Fixture) {
    fixture.store.set_server_lost_after_ms(LOST_MS);
    let placed = fixture.placed().await;
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    let other = witness(&fixture, LOST_MS).await;
    assert_eq!(fixture.store.write_off_lost(&other).await.unwrap().len(), 1);
    assert_eq!(fixture.run(&placed.run.id).await.status, RunStatus::Cancelled);
}

async fn the_silence_is_kept_within_its_bounds(fixture: Fixture) {
    for (asked, kept) in [
        (0, SERVER_LOST_MS_MIN),
        (SERVER_LOST_MS_MIN, SERVER_LOST_MS_MIN),
        (SERVER_LOST_MS_MAX + 1, SERVER_LOST_MS_MAX),
    ] {
        fixture.store.set_server_lost_after_ms(asked);
        assert_eq!(fixture.store.server_lost_after_ms(), kept);
    }
}

async fn servers_are_listed_with_their_parts_and_what_they_have_in_hand(fixture: Fixture) {
    let placed = placed(&fixture).await;
    let (store, own) = (&fixture.store, &fixture.server);
    store.beat(&presence(own, &[Role::Gateway, Role::Worker])).await.unwrap();
    store.beat(&presence(&server_id(3), &[Role::Api])).await.unwrap();
    fixture.created(spec()).await;
    let listed = store.list_servers(None, 10).await.unwrap();
    let states: Vec<_> = listed.iter().map(|server| server.state).collect();
    assert_eq!(states, [ServerState::Live, ServerState::Live]);
    let roles: Vec<_> = listed[0].parts.iter().map(|part| (part.role, part.version.as_str())).collect();
    assert_eq!(roles, [(Role::Gateway, "1.2.3"), (Role::Worker, "1.2.3")]);
    assert_eq!((listed[0].slots, listed[0].runs, listed[0].sandboxes), (Some(3), 1, 1));
    assert_eq!((listed[1].slots, listed[1].runs, listed[1].sandboxes), (None, 0, 0));
    assert_eq!(store.list_servers(Some(own), 10).await.unwrap(), listed[1..]);
    assert_eq!(store.live_servers().await.unwrap().len(), 1, "one without a worker takes no runs");
    assert!(store.is_part_live(own, Role::Gateway).await.unwrap());
    assert!(!store.is_part_live(own, Role::Api).await.unwrap());
    fixture.clock.advance(SERVER_SILENT_MS + 1);
    assert!(!store.is_part_live(own, Role::Gateway).await.unwrap());
    let state = async || store.list_servers(None, 1).await.unwrap()[0].state;
    assert_eq!(state().await, ServerState::Away);
    fixture.clock.advance(LOST_MS);
    assert_eq!(state().await, ServerState::Lost);
    assert_eq!(fixture.run(&placed.run.id).await.status, RunStatus::Running);
}
