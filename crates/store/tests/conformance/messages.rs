//! Messages that people give to a run's agent.

use caisson_domain::event::EventKind;
use caisson_domain::id::{ApiKeyId, RunId};
use caisson_domain::limits::{RUN_MESSAGES, RUN_MESSAGES_WAITING};
use caisson_domain::principal::Scope;
use caisson_domain::protocol::InputBody;
use caisson_store::{JournalEffect, MessageQueue, SendMessage};
use serde_json::json;

use crate::fixture::{Fixture, START_MS, project};

conformance! {
    a_message_is_an_input_an_event_and_audited,
    the_same_text_counts_once_within_moments,
    so_many_messages_wait_and_so_many_are_taken,
    a_run_that_ends_takes_none,
}

async fn key(fixture: &Fixture) -> ApiKeyId {
    fixture.store.create_api_key(&project(), "k", &[Scope::Admin]).await.unwrap().0
}

async fn send(fixture: &Fixture, run: &RunId, text: &str, by: &ApiKeyId) -> SendMessage {
    fixture.store.send_message(&project(), run, text, by).await.unwrap()
}

async fn a_message_is_an_input_an_event_and_audited(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    let sent = send(&fixture, &placed.run.id, "Mind the tests.", &by).await;
    let queue = MessageQueue { added: 1, waiting: 1, oldest_waiting_at_ms: Some(START_MS) };
    assert_eq!(sent, SendMessage::Sent(queue));
    let inputs = fixture.store.inputs_after(&placed.sandbox, 0).await.unwrap();
    let bodies: Vec<InputBody> = inputs.into_iter().map(|input| input.body).collect();
    assert_eq!(bodies, [InputBody::Steer { text: "Mind the tests.".to_owned() }]);
    let told = fixture.data(&placed.run.id, EventKind::RunMessage).await;
    assert_eq!(told, json!({ "text": "Mind the tests." }));
    let audited: i64 = fixture.value("select count(*) from audit where action = 'run.message'").await;
    assert_eq!(audited, 1);
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    let (_, queue) = fixture.store.message_queue(&project(), &placed.run.id).await.unwrap().unwrap();
    assert_eq!(queue, MessageQueue { added: 1, waiting: 0, oldest_waiting_at_ms: None });
    let unknown = send(&fixture, &RunId::new(1, [9; 10]), "x", &by).await;
    assert_eq!(unknown, SendMessage::Unknown);
    let other =
        fixture.store.send_message(&"other".parse().unwrap(), &placed.run.id, "x", &by).await.unwrap();
    assert_eq!(other, SendMessage::Unknown);
}

async fn the_same_text_counts_once_within_moments(fixture: Fixture) {
    let by = key(&fixture).await;
    let run = fixture.queued().await;
    let added = async |text: &str| {
        let sent = send(&fixture, &run.id, text, &by).await;
        let SendMessage::Sent(queue) = sent else { panic!("{sent:?}") };
        queue.added
    };
    assert_eq!((added("a").await, added("a").await, added("b").await), (1, 1, 2));
    fixture.clock.advance(14_999);
    assert_eq!(added("a").await, 2);
    fixture.clock.advance(1);
    assert_eq!(added("a").await, 3, "later it is meant");
}

async fn so_many_messages_wait_and_so_many_are_taken(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    for number in 0..RUN_MESSAGES_WAITING {
        assert!(matches!(
            send(&fixture, &placed.run.id, &number.to_string(), &by).await,
            SendMessage::Sent(_)
        ));
    }
    assert_eq!(send(&fixture, &placed.run.id, "one more", &by).await, SendMessage::Full);
    fixture.journal(&placed, JournalEffect::AgentStarted).await;
    for number in RUN_MESSAGES_WAITING..RUN_MESSAGES {
        assert!(matches!(
            send(&fixture, &placed.run.id, &number.to_string(), &by).await,
            SendMessage::Sent(_)
        ));
    }
    assert_eq!(send(&fixture, &placed.run.id, "one more", &by).await, SendMessage::Full);
}

async fn a_run_that_ends_takes_none(fixture: Fixture) {
    let by = key(&fixture).await;
    let placed = fixture.placed().await;
    fixture.store.request_cancel(&project(), &placed.run.id, None).await.unwrap();
    assert!(matches!(send(&fixture, &placed.run.id, "x", &by).await, SendMessage::Over(_)));
    let waiting = fixture.queued().await;
    fixture.store.request_cancel(&project(), &waiting.id, None).await.unwrap();
    assert!(matches!(send(&fixture, &waiting.id, "x", &by).await, SendMessage::Over(_)));
}
