//! Asking for a run's end.

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::protocol::{InputBody, StopReason};
use caisson_domain::run::RunStatus;
use caisson_store::{CancelRun, Finish};
use serde_json::json;

use crate::fixture::{Fixture, START_MS, project};

conformance! {
    a_waiting_run_is_cancelled_at_once,
    a_running_run_is_told_to_stop_once,
    a_run_that_has_ended_stays_as_it_is,
    an_unknown_run_and_another_projects_run_are_unknown,
    a_requeued_run_can_be_cancelled,
    each_reason_to_stop_is_told_once_and_the_first_sets_the_time,
    only_a_change_is_audited,
}

async fn a_waiting_run_is_cancelled_at_once(fixture: Fixture) {
    let run = fixture.queued().await;
    fixture.clock.advance(5);
    let CancelRun::Cancelled(cancelled) =
        fixture.store.request_cancel(&project(), &run.id, None).await.unwrap()
    else {
        panic!("not cancelled")
    };
    assert_eq!(cancelled, fixture.run(&run.id).await);
    assert_eq!((cancelled.status, cancelled.finished_at_ms), (RunStatus::Cancelled, Some(START_MS + 5)));
    assert_eq!(cancelled.cancel_requested_at_ms, Some(START_MS + 5));
    assert_eq!(fixture.kinds(&run.id).await, [EventKind::RunQueued, EventKind::RunFinished]);
    assert_eq!(fixture.data(&run.id, EventKind::RunFinished).await["status"], json!("cancelled"));
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
}

async fn a_running_run_is_told_to_stop_once(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..3 {
        fixture.clock.advance(5);
        let CancelRun::Requested(run) =
            fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap()
        else {
            panic!("not requested")
        };
        assert_eq!((run.status, run.cancel_requested_at_ms), (RunStatus::Running, Some(START_MS + 5)));
    }
    let inputs = fixture.store.inputs_after(&placed.sandbox, 0).await.unwrap();
    assert_eq!(inputs.len(), 1);
    assert_eq!(inputs[0].body, InputBody::Stop { reason: StopReason::Cancel });
    assert_eq!((inputs[0].seq, &inputs[0].run), (1, &placed.run.id));
    let data = fixture.data(&placed.run.id, EventKind::RunStopRequested).await;
    assert_eq!(data, json!({"reason": "cancel"}));
}

async fn a_run_that_has_ended_stays_as_it_is(fixture: Fixture) {
    let placed = fixture.placed().await;
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap();
    let ended = fixture.run(&placed.run.id).await;
    let answer = fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    assert_eq!(answer, CancelRun::Final(ended.clone()));
    assert_eq!(fixture.run(&placed.run.id).await, ended);
    assert_eq!(fixture.kinds(&ended.id).await.last(), Some(&EventKind::RunFinished));
}

async fn an_unknown_run_and_another_projects_run_are_unknown(fixture: Fixture) {
    let run = fixture.queued().await;
    let unknown = RunId::new(1, [9; 10]);
    assert_eq!(fixture.store.request_cancel(&project(), &unknown, None).await.unwrap(), CancelRun::Unknown);
    let other = "other".parse().unwrap();
    assert_eq!(fixture.store.request_cancel(&other, &run.id, None).await.unwrap(), CancelRun::Unknown);
    assert_eq!(fixture.run(&run.id).await, run);
}

async fn a_requeued_run_can_be_cancelled(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.requeue(&placed.run.id, placed.epoch, "engine away", 60_000).await.unwrap();
    let answer = fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    assert!(matches!(answer, CancelRun::Cancelled(_)), "{answer:?}");
    fixture.clock.advance(60_000);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
}

async fn each_reason_to_stop_is_told_once_and_the_first_sets_the_time(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..2 {
        fixture.clock.advance(5);
        assert!(fixture.store.request_stop(&placed.run.id, placed.epoch, StopReason::Timeout).await.unwrap());
    }
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    let inputs = fixture.store.inputs_after(&placed.sandbox, 0).await.unwrap();
    let told: Vec<_> = inputs.iter().map(|input| (input.seq, input.body.clone())).collect();
    let stop = |reason| InputBody::Stop { reason };
    assert_eq!(told, [(1, stop(StopReason::Timeout)), (2, stop(StopReason::Cancel))]);
    let progress = fixture.store.progress(&placed.run.id, placed.epoch).await.unwrap().unwrap();
    assert_eq!(progress.stop_requested_at_ms, Some(START_MS + 5));
    let kinds = fixture.kinds(&placed.run.id).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == EventKind::RunStopRequested).count(), 2);
}

async fn only_a_change_is_audited(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..3 {
        fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    }
    let subject: String = fixture.value("select subject from audit where action = 'run.cancel'").await;
    assert_eq!(subject, placed.run.id.as_str());
    assert_eq!(fixture.value::<i64>("select count(*) from audit where action = 'run.cancel'").await, 1);
}
