//! Inputs that people send to the agent of a live run.

use caisson_domain::event::EventKind;
use caisson_domain::id::{ApiKeyId, RunId, SessionId};
use caisson_domain::input::{InputKind, InputState, RUN_INPUTS, RUN_INPUTS_PENDING};
use caisson_domain::limits::SERVER_LOST_MS_MIN;
use caisson_domain::principal::Scope;
use caisson_domain::protocol::InputBody;
use caisson_domain::run::{Failure, FailureKind, Phase, RunStatus};
use caisson_store::{Finish, JournalEffect, NewInput, RunInput, SendInput, Topic};
use serde_json::json;

use crate::fixture::{Fixture, Placed, project, woken};

conformance! {
    an_input_is_accepted_delivered_told_and_audited,
    how_far_an_input_is_is_found_by_its_number_in_the_session,
    an_input_sent_again_with_its_key_is_the_same_and_another_one_is_refused,
    so_many_inputs_are_on_their_way_and_so_many_are_taken,
    a_run_that_is_not_live_takes_none_and_tells_what_it_did_not_deliver,
    however_a_run_ends_what_it_did_not_deliver_is_told_before_its_end,
    what_people_sent_outlives_a_way_back_to_the_queue,
    a_sandbox_moves_no_input_of_another_run_and_none_back,
}

async fn key(fixture: &Fixture) -> ApiKeyId {
    fixture.store.create_api_key(&project(), "k", &[Scope::Admin]).await.unwrap().0
}

fn new(kind: InputKind, text: Option<&str>, by: &ApiKeyId) -> NewInput {
    NewInput {
        kind,
        text: text.map(str::to_owned),
        by: by.clone(),
        idempotency_key: None,
        attachments: Vec::new(),
    }
}

async fn send(fixture: &Fixture, run: &RunId, input: &NewInput) -> SendInput {
    fixture.store.send_input(&project(), run, input).await.unwrap()
}

#[track_caller]
fn sent(answer: SendInput) -> RunInput {
    let SendInput::Sent(input) = answer else { panic!("not sent: {answer:?}") };
    input
}

async fn states(fixture: &Fixture, run: &RunId) -> Vec<InputState> {
    let inputs = fixture.store.inputs(&project(), run).await.unwrap().unwrap();
    inputs.into_iter().map(|input| input.state).collect()
}

async fn acknowledge(fixture: &Fixture, placed: &Placed, seq: i64, state: InputState) {
    fixture.journal(placed, JournalEffect::Input { seq, state }).await;
}

async fn an_input_is_accepted_delivered_told_and_audited(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    let mut watch = fixture.store.watch(Topic::Sandbox(placed.sandbox.clone()));
    let steer = sent(send(&fixture, &placed.run.id, &new(InputKind::Steer, Some("left"), &by)).await);
    assert!(woken(&mut watch), "its sandbox is told at once");
    let queue = sent(send(&fixture, &placed.run.id, &new(InputKind::Queue, Some("behind"), &by)).await);
    let stop = sent(send(&fixture, &placed.run.id, &new(InputKind::Interrupt, None, &by)).await);
    assert_eq!((steer.seq, queue.seq, stop.seq), (1, 2, 3));
    let bodies: Vec<InputBody> = fixture
        .store
        .inputs_after(&placed.sandbox, 0)
        .await
        .unwrap()
        .into_iter()
        .map(|input| input.body)
        .collect();
    assert_eq!(
        bodies,
        [
            InputBody::Steer { text: "left".to_owned() },
            InputBody::Queue { text: "behind".to_owned() },
            InputBody::Interrupt { text: None },
        ]
    );
    assert_eq!(states(&fixture, &placed.run.id).await, [InputState::Accepted; 3]);
    acknowledge(&fixture, &placed, steer.seq, InputState::Delivered).await;
    acknowledge(&fixture, &placed, queue.seq, InputState::Held).await;
    let held = [InputState::Delivered, InputState::Held, InputState::Accepted];
    assert_eq!(states(&fixture, &placed.run.id).await, held);
    let events = fixture.events(&placed.run.id).await;
    let accepted: Vec<_> = events.iter().filter(|event| event.kind == EventKind::InputAccepted).collect();
    let data: serde_json::Value = serde_json::from_str(accepted[0].data.get()).unwrap();
    assert_eq!(data, json!({ "input": 1, "kind": "steer", "text": "left" }));
    let audited: i64 = fixture.value("select count(*) from audit where action = 'run.input'").await;
    assert_eq!((accepted.len(), audited), (3, 3));
    let listed = fixture.store.inputs(&project(), &placed.run.id).await.unwrap().unwrap();
    assert_eq!(listed[2], stop);
    assert_eq!(listed[0].created_by.as_deref(), Some(by.as_str()));
    assert!(listed[0].acknowledged_at_ms.is_some());
    let other = "other".parse().unwrap();
    assert_eq!(fixture.store.inputs(&other, &placed.run.id).await.unwrap(), None);
    let input = new(InputKind::Steer, Some("x"), &by);
    assert_eq!(fixture.store.send_input(&other, &placed.run.id, &input).await.unwrap(), SendInput::Unknown);
}

async fn an_input_sent_again_with_its_key_is_the_same_and_another_one_is_refused(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    let keyed =
        |text: &str, kind| NewInput { idempotency_key: Some("k1".to_owned()), ..new(kind, Some(text), &by) };
    let first = sent(send(&fixture, &placed.run.id, &keyed("a", InputKind::Steer)).await);
    let again = send(&fixture, &placed.run.id, &keyed("a", InputKind::Steer)).await;
    assert_eq!(again, SendInput::Replayed(first.clone()));
    for other in [keyed("b", InputKind::Steer), keyed("a", InputKind::Queue)] {
        assert_eq!(send(&fixture, &placed.run.id, &other).await, SendInput::KeyReused);
    }
    assert_eq!(states(&fixture, &placed.run.id).await.len(), 1);
    // The answer to a repeat does not depend on whether the run still takes inputs.
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    let late = send(&fixture, &placed.run.id, &keyed("a", InputKind::Steer)).await;
    assert_eq!(late, SendInput::Replayed(first));
}

async fn how_far_an_input_is_is_found_by_its_number_in_the_session(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    on_their_way(&fixture, &placed, &by).await;
    let session = &placed.run.session;
    let states = async || {
        let mut states = Vec::new();
        for seq in 1..=4 {
            states.push(fixture.store.input_state(session, seq).await.unwrap());
        }
        states
    };
    let (delivered, undelivered) = (Some(InputState::Delivered), Some(InputState::Undelivered));
    assert_eq!(states().await, [delivered, Some(InputState::Held), Some(InputState::Accepted), None]);
    let elsewhere = SessionId::new(1, [9; 10]);
    assert_eq!(fixture.store.input_state(&elsewhere, 1).await.unwrap(), None);
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert_eq!(states().await, [delivered, undelivered, undelivered, None]);
    // A row that an older version left is told the same way.
    fixture.execute("update input set state = 'held' where seq = 2").await;
    assert_eq!(states().await, [delivered, undelivered, undelivered, None]);
}

async fn so_many_inputs_are_on_their_way_and_so_many_are_taken(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    let one = new(InputKind::Steer, Some("x"), &by);
    for _ in 0..RUN_INPUTS_PENDING {
        sent(send(&fixture, &placed.run.id, &one).await);
    }
    assert_eq!(send(&fixture, &placed.run.id, &one).await, SendInput::Full);
    acknowledge(&fixture, &placed, 1, InputState::Held).await;
    assert_eq!(
        send(&fixture, &placed.run.id, &one).await,
        SendInput::Full,
        "one that is held is not there yet"
    );
    let interrupt = new(InputKind::Interrupt, None, &by);
    sent(send(&fixture, &placed.run.id, &interrupt).await);
    assert_eq!(send(&fixture, &placed.run.id, &interrupt).await, SendInput::Full, "one is enough");
    let interrupted = RUN_INPUTS_PENDING + 1;
    for seq in 1..=interrupted {
        acknowledge(&fixture, &placed, seq, InputState::Delivered).await;
    }
    for seq in interrupted + 1..=RUN_INPUTS {
        sent(send(&fixture, &placed.run.id, &one).await);
        acknowledge(&fixture, &placed, seq, InputState::Delivered).await;
    }
    assert_eq!(send(&fixture, &placed.run.id, &one).await, SendInput::Spent);
}

async fn a_run_that_is_not_live_takes_none_and_tells_what_it_did_not_deliver(fixture: Fixture) {
    let by = key(&fixture).await;
    let one = new(InputKind::Steer, Some("x"), &by);
    let queued = fixture.queued().await;
    assert!(matches!(send(&fixture, &queued.id, &one).await, SendInput::NotLive(_)), "it waits");
    fixture.store.request_cancel(&project(), &queued.id, None).await.unwrap();
    let placed = fixture.placed().await;
    sent(send(&fixture, &placed.run.id, &one).await);
    sent(send(&fixture, &placed.run.id, &one).await);
    acknowledge(&fixture, &placed, 1, InputState::Delivered).await;
    fixture.journal(&placed, JournalEffect::Phase(Phase::Publish)).await;
    assert!(matches!(send(&fixture, &placed.run.id, &one).await, SendInput::NotLive(_)), "it publishes");
    fixture.journal(&placed, JournalEffect::Phase(Phase::Agent)).await;
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    assert!(matches!(send(&fixture, &placed.run.id, &one).await, SendInput::NotLive(_)), "it ends now");
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(fixture.store.finish(&placed.run.id, placed.epoch, &finish).await.unwrap());
    assert!(matches!(send(&fixture, &placed.run.id, &one).await, SendInput::NotLive(_)), "it has ended");
    let over = [InputState::Delivered, InputState::Undelivered];
    assert_eq!(states(&fixture, &placed.run.id).await, over);
}

/// Sends three inputs, of which the first is delivered, the second held, and the third on its way.
async fn on_their_way(fixture: &Fixture, placed: &Placed, by: &ApiKeyId) {
    for kind in [InputKind::Steer, InputKind::Queue, InputKind::Steer] {
        sent(send(fixture, &placed.run.id, &new(kind, Some("x"), by)).await);
    }
    acknowledge(fixture, placed, 1, InputState::Delivered).await;
    acknowledge(fixture, placed, 2, InputState::Held).await;
}

/// Asserts what is told of the inputs of [`on_their_way`], once, and that the run's end is its last event.
async fn assert_told(fixture: &Fixture, run: &RunId, how: &str) {
    let events = fixture.events(run).await;
    let undelivered = events.iter().filter(|event| event.kind == EventKind::InputUndelivered);
    let data: Vec<serde_json::Value> =
        undelivered.map(|event| serde_json::from_str(event.data.get()).unwrap()).collect();
    assert_eq!(data, [json!({ "input": 2 }), json!({ "input": 3 })], "{how}");
    assert_eq!(events.last().unwrap().kind, EventKind::RunFinished, "{how}");
    let rows = fixture.rows("select run_id, state from input where kind is not null order by seq").await;
    let of_run = rows.iter().filter(|row| row.get::<String>(0) == run.as_str());
    let stored: Vec<String> = of_run.map(|row| row.get(1)).collect();
    assert_eq!(stored, ["delivered", "undelivered", "undelivered"], "{how}");
}

async fn however_a_run_ends_what_it_did_not_deliver_is_told_before_its_end(fixture: Fixture) {
    let by = key(&fixture).await;
    let next = async |number: u8| {
        fixture.queued().await;
        let claimed = fixture.claim().await;
        let placed = fixture.place(claimed, number).await;
        on_their_way(&fixture, &placed, &by).await;
        placed
    };
    let ended = next(1).await;
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&ended.run.id, ended.epoch, &finish).await.unwrap());
    acknowledge(&fixture, &ended, 3, InputState::Delivered).await;
    assert_told(&fixture, &ended.run.id, "ended by its worker").await;

    let unread = next(2).await;
    let failure = Failure::new(FailureKind::Internal, "it cannot be read");
    assert!(fixture.store.end_unread(&unread.run.id, unread.epoch, &failure).await.unwrap());
    assert_told(&fixture, &unread.run.id, "ended without being read").await;

    let given_back = next(3).await;
    assert!(fixture.store.requeue(&given_back.run.id, given_back.epoch, "test", 0).await.unwrap());
    fixture.store.request_cancel(&project(), &given_back.run.id, None).await.unwrap();
    assert_told(&fixture, &given_back.run.id, "cancelled while it waited").await;

    let cancelled = next(4).await;
    fixture.store.request_cancel(&project(), &cancelled.run.id, None).await.unwrap();
    assert!(fixture.store.requeue(&cancelled.run.id, cancelled.epoch, "test", 0).await.unwrap());
    assert_told(&fixture, &cancelled.run.id, "cancelled on its way back to the queue").await;

    let lost = next(5).await;
    fixture.journal(&lost, JournalEffect::AgentStarted).await;
    fixture.store.set_server_lost_after_ms(SERVER_LOST_MS_MIN);
    let witness = crate::lost::witness(&fixture, SERVER_LOST_MS_MIN).await;
    assert_eq!(fixture.store.write_off_lost(&witness).await.unwrap(), std::slice::from_ref(&lost.run.id));
    assert_told(&fixture, &lost.run.id, "lost with its server").await;
}

async fn what_people_sent_outlives_a_way_back_to_the_queue(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    sent(send(&fixture, &placed.run.id, &new(InputKind::Steer, Some("x"), &by)).await);
    fixture.store.send_message(&project(), &placed.run.id, "from elsewhere", &by).await.unwrap();
    assert!(fixture.store.requeue(&placed.run.id, placed.epoch, "test", 0).await.unwrap());
    let claimed = fixture.claim().await;
    let again = fixture.place(claimed, 2).await;
    let inputs = fixture.store.inputs_after(&again.sandbox, 0).await.unwrap();
    assert_eq!(inputs.len(), 1, "its next sandbox is given it: {inputs:?}");
    assert_eq!(inputs[0].body, InputBody::Steer { text: "x".to_owned() });
}

async fn a_sandbox_moves_no_input_of_another_run_and_none_back(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    let seq = sent(send(&fixture, &placed.run.id, &new(InputKind::Steer, Some("x"), &by)).await).seq;
    acknowledge(&fixture, &placed, seq, InputState::Delivered).await;
    acknowledge(&fixture, &placed, seq, InputState::Undelivered).await;
    assert_eq!(states(&fixture, &placed.run.id).await, [InputState::Delivered], "what is delivered stays so");
    fixture.queued().await;
    let claimed = fixture.claim().await;
    let other = fixture.place(claimed, 2).await;
    let theirs = sent(send(&fixture, &other.run.id, &new(InputKind::Steer, Some("y"), &by)).await).seq;
    assert_eq!(theirs, seq, "each session counts its own");
    acknowledge(&fixture, &placed, theirs, InputState::Undelivered).await;
    assert_eq!(states(&fixture, &other.run.id).await, [InputState::Accepted]);
}
