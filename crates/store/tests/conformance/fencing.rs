//! An older epoch, or the same one at another home, writes nothing, by any method.

use caisson_domain::id::RunId;
use caisson_domain::protocol::StopReason;
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_store::{Finish, HomeEpoch, Store, Unowned};

use crate::fixture::{Fixture, Placed, note, server_id};

conformance! {
    an_adopted_run_is_lost_to_its_old_owner_in_every_method,
    a_requeued_run_is_lost_to_its_owner_in_every_method,
    a_reclaimed_run_is_lost_to_its_old_owner_in_every_method,
    a_finished_run_is_lost_to_its_owner_in_every_method,
    an_unknown_run_is_lost_in_every_method,
    an_epoch_from_the_future_is_no_better_than_an_old_one,
    the_same_epoch_at_another_home_is_refused_in_every_method,
}

const FINISH: Finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };

/// Every row of every table that a worker's method could have changed.
const EVERYTHING: &str = "select 'run ' || id || status || lease_epoch || coalesce(cast(lease_expires_at_ms as text), '') || attempt \
     || coalesce(cast(sandbox_id as text), '') || coalesce(cast(stop_requested_at_ms as text), '') || not_before_ms as line from run \
     union all select 'event ' || session_id || seq || kind || data from event \
     union all select 'input ' || session_id || seq || body from input \
     union all select 'attempt ' || run_id || number || coalesce(cast(ended_at_ms as text), '') from attempt \
     union all select 'session ' || id || last_seq || last_input_seq from session order by line";

async fn everything(fixture: &Fixture) -> Vec<String> {
    fixture.rows(EVERYTHING).await.iter().map(|row| row.get("line")).collect()
}

/// Calls every fenced method and asserts that each says "lost" and leaves no trace.
async fn assert_lost(fixture: &Fixture, run: &RunId, epoch: HomeEpoch, placed: &Placed) {
    let before = everything(fixture).await;
    fixture.clock.advance(1_000);
    let store: &Store = &fixture.store;
    assert_eq!(store.heartbeat(run, epoch).await.unwrap(), None);
    assert_eq!(store.progress(run, epoch).await.unwrap(), None);
    assert!(!store.place(run, epoch, &placed.sandbox).await.unwrap());
    assert!(!store.request_stop(run, epoch, StopReason::Timeout).await.unwrap());
    assert!(!store.requeue(run, epoch, "lost", 0).await.unwrap());
    assert!(!store.append_run_event(run, epoch, note("lost")).await.unwrap());
    assert!(!store.finish(run, epoch, &FINISH).await.unwrap());
    let failure = Failure::new(FailureKind::Internal, "lost");
    assert!(!store.end_unread(run, epoch, &failure).await.unwrap());
    assert!(!store.expire_approvals(run, epoch).await.unwrap());
    assert_eq!(everything(fixture).await, before);
}

async fn an_adopted_run_is_lost_to_its_old_owner_in_every_method(fixture: Fixture) {
    let placed = fixture.placed().await;
    let adopted = fixture.store.adopt(&fixture.server).await.unwrap().remove(0);
    assert_lost(&fixture, &placed.run.id, placed.epoch, &placed).await;
    assert!(fixture.store.finish(&placed.run.id, adopted.epoch, &FINISH).await.unwrap());
}

async fn a_requeued_run_is_lost_to_its_owner_in_every_method(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap());
    assert_lost(&fixture, &placed.run.id, placed.epoch, &placed).await;
}

async fn a_reclaimed_run_is_lost_to_its_old_owner_in_every_method(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 0).await.unwrap());
    let again = fixture.claim().await;
    assert_eq!(again.run.id, placed.run.id);
    assert_lost(&fixture, &placed.run.id, placed.epoch, &placed).await;
    assert!(fixture.store.heartbeat(&again.run.id, again.epoch).await.unwrap().is_some());
}

async fn a_finished_run_is_lost_to_its_owner_in_every_method(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &FINISH).await.unwrap());
    assert_lost(&fixture, &placed.run.id, placed.epoch, &placed).await;
    assert_eq!(fixture.store.adopt(&fixture.server).await.unwrap(), []);
}

async fn an_unknown_run_is_lost_in_every_method(fixture: Fixture) {
    let placed = fixture.placed().await;
    assert_lost(&fixture, &RunId::new(1, [9; 10]), placed.epoch, &placed).await;
}

async fn an_epoch_from_the_future_is_no_better_than_an_old_one(fixture: Fixture) {
    let placed = fixture.placed().await;
    let ahead = placed.epoch.with_number(placed.epoch.number + 1);
    assert_lost(&fixture, &placed.run.id, ahead, &placed).await;
}

/// A database that lacks the last commits after a failover gives an epoch twice: the second owner is on another server.
async fn the_same_epoch_at_another_home_is_refused_in_every_method(fixture: Fixture) {
    let placed = fixture.placed().await;
    let other = server_id(2);
    fixture.store.register_server(&other).await.unwrap();
    fixture
        .execute(
            "update run set status = 'queued', lease_epoch = lease_epoch - 1, attempt = attempt - 1, \
        lease_expires_at_ms = null, home_server_id = null, sandbox_id = null",
        )
        .await;
    fixture.execute("delete from attempt").await;
    let second = fixture.store.claim(&other).await.unwrap().unwrap();
    assert_eq!((second.run.id.clone(), second.epoch.number), (placed.run.id.clone(), placed.epoch.number));
    assert_lost(&fixture, &placed.run.id, placed.epoch, &placed).await;
    let lapsed = Unowned { run: placed.run.id.clone(), epoch: placed.epoch, attempt: placed.run.attempt };
    assert_eq!(fixture.store.readopt(&lapsed, &fixture.server).await.unwrap(), None);
    assert!(fixture.store.heartbeat(&second.run.id, second.epoch).await.unwrap().is_some());
    assert!(fixture.store.finish(&second.run.id, second.epoch, &FINISH).await.unwrap());
}
