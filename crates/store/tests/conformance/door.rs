//! What the gateway asks for a sandbox, and the events it vouches for.

use caisson_domain::event::EventKind;
use caisson_domain::id::{RunId, SandboxId, SessionId};
use caisson_domain::limits::PENDING_INPUTS;
use caisson_domain::protocol::StopReason;
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{Finish, JournalEffect, NextWork, SandboxState};

use crate::fixture::{Fixture, Placed, assert_corrupt, completed, note, project};

conformance! {
    work_is_offered_until_its_outcome_is_journaled,
    a_sandbox_that_ends_or_is_unknown_is_told_to_exit,
    a_conversation_is_resumed_only_if_another_attempt_began_it,
    an_adopted_run_is_offered_with_its_new_epoch,
    the_door_has_a_run_only_while_it_runs,
    a_run_is_only_placed_in_a_sandbox_of_its_session,
    inputs_come_after_the_number_given_and_for_the_living_run_alone,
    inputs_of_one_answer_are_bounded,
    numbers_of_inputs_are_never_used_twice,
    a_gateway_event_is_appended_until_the_run_has_ended,
    an_event_of_an_unknown_run_is_refused,
}

const FINISH: Finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };

async fn offered(fixture: &Fixture, sandbox: &SandboxId) -> Option<(Run, i64, String, bool)> {
    match fixture.store.next_work(sandbox).await.unwrap() {
        NextWork::Run { run, epoch, conversation, resume, .. } => Some((run, epoch.0, conversation, resume)),
        NextWork::Nothing => None,
        NextWork::Exit => panic!("told to exit"),
    }
}

async fn work_is_offered_until_its_outcome_is_journaled(fixture: Fixture) {
    fixture.queued().await;
    let claimed = fixture.claim().await;
    let (sandbox, _, _) = fixture.sandbox(&claimed.run.session, 1).await;
    assert_eq!(offered(&fixture, &sandbox).await, None, "not placed yet");
    fixture.store.place(&claimed.run.id, claimed.epoch, &sandbox).await.unwrap();
    let (run, epoch, conversation, resume) = offered(&fixture, &sandbox).await.unwrap();
    assert_eq!((&run.id, run.sandbox.as_ref(), epoch), (&claimed.run.id, Some(&sandbox), 1));
    assert_eq!((conversation.len(), resume), (36, false));
    let placed = Placed {
        run,
        epoch: claimed.epoch,
        sandbox: sandbox.clone(),
        control: fixture.sandbox(&claimed.run.session, 2).await.1,
        agent: fixture.sandbox(&claimed.run.session, 3).await.2,
    };
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    let again = offered(&fixture, &sandbox).await.unwrap();
    assert_eq!((again.2, again.3), (conversation, false), "its own start does not make it a resumption");
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    assert_eq!(offered(&fixture, &sandbox).await, None);
}

async fn a_sandbox_that_ends_or_is_unknown_is_told_to_exit(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.set_sandbox_state(&placed.sandbox, SandboxState::Running).await.unwrap();
    assert!(offered(&fixture, &placed.sandbox).await.is_some());
    for state in [SandboxState::Stopping, SandboxState::Destroyed] {
        fixture.store.set_sandbox_state(&placed.sandbox, state).await.unwrap();
        assert_eq!(fixture.store.next_work(&placed.sandbox).await.unwrap(), NextWork::Exit);
    }
    let unknown = SandboxId::new(1, [9; 10]);
    assert_eq!(fixture.store.next_work(&unknown).await.unwrap(), NextWork::Exit);
}

async fn a_conversation_is_resumed_only_if_another_attempt_began_it(fixture: Fixture) {
    let first = fixture.placed().await;
    fixture.store.requeue(&first.run.id, first.epoch, "engine away", 0).await.unwrap();
    let again = fixture.claim().await;
    let second = fixture.place(again, 2).await;
    let (_, _, conversation, resume) = offered(&fixture, &second.sandbox).await.unwrap();
    assert!(!resume, "the first attempt never reached the agent");
    fixture.execute("update attempt set agent_started_at_ms = 1 where number = 1").await;
    let offered = offered(&fixture, &second.sandbox).await.unwrap();
    assert_eq!((offered.2, offered.3), (conversation, true));
}

async fn an_adopted_run_is_offered_with_its_new_epoch(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.adopt(&fixture.server).await.unwrap();
    let (run, epoch, _, _) = offered(&fixture, &placed.sandbox).await.unwrap();
    assert_eq!((run.id, run.attempt, epoch), (placed.run.id, 1, 2));
}

async fn the_door_has_a_run_only_while_it_runs(fixture: Fixture) {
    let placed = fixture.placed().await;
    let run = fixture.store.door_run(&placed.sandbox).await.unwrap();
    assert_eq!(run, Some(fixture.run(&placed.run.id).await));
    fixture.journal(&placed, JournalEffect::Finished(completed("done"))).await;
    assert!(fixture.store.door_run(&placed.sandbox).await.unwrap().is_some(), "it may still push");
    fixture.store.finish(&placed.run.id, placed.epoch, &FINISH).await.unwrap();
    assert_eq!(fixture.store.door_run(&placed.sandbox).await.unwrap(), None);
    assert_eq!(fixture.store.door_run(&SandboxId::new(1, [9; 10])).await.unwrap(), None);
}

async fn a_run_is_only_placed_in_a_sandbox_of_its_session(fixture: Fixture) {
    let first = fixture.placed().await;
    fixture.queued().await;
    let second = fixture.claim().await;
    assert_ne!(second.run.session, first.run.session);
    let placed = fixture.store.place(&second.run.id, second.epoch, &first.sandbox).await;
    assert_corrupt(placed, "a constraint");
    assert_eq!(fixture.store.door_run(&first.sandbox).await.unwrap().unwrap().id, first.run.id);
}

async fn inputs_come_after_the_number_given_and_for_the_living_run_alone(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.request_stop(&placed.run.id, placed.epoch, StopReason::Timeout).await.unwrap();
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    let numbers = async |after| {
        let inputs = fixture.store.inputs_after(&placed.sandbox, after).await.unwrap();
        inputs.iter().map(|input| input.seq).collect::<Vec<_>>()
    };
    assert_eq!(numbers(0).await, [1, 2]);
    assert_eq!(numbers(1).await, [2]);
    assert_eq!(numbers(2).await, [] as [i64; 0]);
    fixture.store.finish(&placed.run.id, placed.epoch, &FINISH).await.unwrap();
    assert_eq!(numbers(0).await, [] as [i64; 0]);
    assert_eq!(fixture.store.inputs_after(&SandboxId::new(1, [9; 10]), 0).await.unwrap(), []);
}

async fn inputs_of_one_answer_are_bounded(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.request_stop(&placed.run.id, placed.epoch, StopReason::Timeout).await.unwrap();
    fixture
        .execute(
            "with recursive number (n) as (select 2 union all select n + 1 from number where n < 150) \
             insert into input (session_id, seq, project_id, run_id, created_at_ms, body) \
             select session_id, n, project_id, run_id, created_at_ms, body from input, number",
        )
        .await;
    let inputs = fixture.store.inputs_after(&placed.sandbox, 0).await.unwrap();
    assert_eq!(i64::try_from(inputs.len()), Ok(PENDING_INPUTS));
    assert_eq!(inputs.last().unwrap().seq, PENDING_INPUTS, "the oldest come first");
}

async fn numbers_of_inputs_are_never_used_twice(fixture: Fixture) {
    let first = fixture.placed().await;
    fixture.store.request_stop(&first.run.id, first.epoch, StopReason::Timeout).await.unwrap();
    fixture.store.requeue(&first.run.id, first.epoch, "engine away", 0).await.unwrap();
    let again = fixture.claim().await;
    let second = fixture.place(again, 2).await;
    fixture.store.request_stop(&second.run.id, second.epoch, StopReason::Timeout).await.unwrap();
    let inputs = fixture.store.inputs_after(&second.sandbox, 0).await.unwrap();
    assert_eq!(inputs.iter().map(|input| input.seq).collect::<Vec<_>>(), [2]);
}

async fn a_gateway_event_is_appended_until_the_run_has_ended(fixture: Fixture) {
    let run = fixture.queued().await;
    assert!(fixture.store.append_gateway_event(&run.id, note("early")).await.unwrap());
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    assert!(!fixture.store.append_gateway_event(&run.id, note("late")).await.unwrap());
    let kinds = fixture.kinds(&run.id).await;
    assert_eq!(kinds, [EventKind::RunQueued, EventKind::Note, EventKind::RunFinished]);
}

async fn an_event_of_an_unknown_run_is_refused(fixture: Fixture) {
    let unknown = RunId::new(1, [9; 10]);
    assert_corrupt(fixture.store.append_gateway_event(&unknown, note("x")).await, unknown.as_str());
    let session = SessionId::new(1, [9; 10]);
    assert!(fixture.store.session_events(&session, 0, 1).await.unwrap().is_empty());
}
