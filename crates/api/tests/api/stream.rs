//! Event streams of what is there already: order, resumption, end.

use axum::body::Body;
use caisson_api::ServeLimits;
use caisson_domain::sse::{Message, Parser};
use http::Method;
use serde_json::Value;

use crate::support::{Api, count, events_of, events_of_session, ids};

#[tokio::test]
async fn a_finished_run_is_replayed_and_ended() {
    let api = Api::start().await;
    let run = api.finished(40).await;
    let mut stream = api.stream(&events_of(&run.id), None).await;
    let messages = stream.rest().await;
    assert_eq!(ids(&messages), (1..=43).collect::<Vec<_>>());
    let [finished, end] = &messages[42..] else { panic!("{} messages", messages.len()) };
    assert_eq!(finished.event.as_deref(), Some("run.finished"));
    assert_eq!((end.event.as_deref(), end.id.as_deref()), (Some("end"), None));
    let data: Value = serde_json::from_str(&end.data).unwrap();
    assert_eq!(data, serde_json::json!({"run_id": run.id, "status": "succeeded"}));
}

#[tokio::test]
async fn a_message_is_the_event_of_the_page_in_one_line() {
    let api = Api::start().await;
    let claimed = api.running().await;
    api.say(&claimed, "{\r\n \"a\": [1,\n 2]\n}").await;
    api.finish(&claimed).await;
    let page = api.get(&events_of(&claimed.run.id)).await.json();
    let mut stream = api.stream(&events_of(&claimed.run.id), None).await;
    let messages = stream.rest().await;
    for (message, event) in messages.iter().zip(page["items"].as_array().unwrap()) {
        assert_eq!(message.id.as_deref(), Some(event["seq"].to_string().as_str()));
        assert_eq!(message.event.as_deref(), event["kind"].as_str());
        assert_eq!(&serde_json::from_str::<Value>(&message.data).unwrap(), event);
    }
    let text = String::from_utf8(stream.raw).unwrap();
    assert!(!text.contains('\r'));
    assert!(
        text.split("\n\n").filter(|part| !part.is_empty()).all(|part| part.matches("data: ").count() == 1),
        "{text}"
    );
}

#[tokio::test]
async fn a_reader_that_drops_at_any_byte_and_returns_sees_each_event_once() {
    let api = Api::start().await;
    let run = api.finished(6).await;
    let path = events_of(&run.id);
    let mut whole = api.stream(&path, None).await;
    let all = whole.rest().await;
    // What follows depends on the last id alone, so it is read once for each.
    let mut tails: Vec<Vec<Message>> = Vec::new();
    for last in 0..=9 {
        tails.push(api.stream(&path, Some(&last.to_string())).await.rest().await);
    }
    for at in 0..=whole.raw.len() {
        let mut seen = Parser::default().push(&whole.raw[..at]).unwrap();
        if count(&seen, "end") == 1 {
            continue;
        }
        let last = ids(&seen).last().copied().unwrap_or(0);
        seen.extend(tails[usize::try_from(last).unwrap()].clone());
        assert_eq!(seen, all, "dropped at byte {at}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_after_any_message_is_resumed_over_the_network() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    let run = api.finished(20).await;
    let path = events_of(&run.id);
    for stop in 0..=24 {
        let mut first = api.remote_stream(address, &path, None).await;
        let mut seen = Vec::new();
        for _ in 0..stop {
            seen.push(first.next().await.unwrap());
        }
        drop(first);
        if count(&seen, "end") == 0 {
            let last = ids(&seen).last().map(ToString::to_string);
            seen.extend(api.remote_stream(address, &path, last.as_deref()).await.rest().await);
        }
        assert_eq!(ids(&seen), (1..=23).collect::<Vec<_>>(), "broke after {stop}");
        assert_eq!(count(&seen, "end"), 1, "broke after {stop}");
    }
}

#[tokio::test]
async fn a_stream_begins_behind_the_header_or_else_behind_the_parameter() {
    let api = Api::start().await;
    let run = api.finished(2).await;
    let path = events_of(&run.id);
    let after = format!("{path}?after=3");
    assert_eq!(ids(&api.stream(&after, None).await.rest().await), [4, 5]);
    assert_eq!(ids(&api.stream(&after, Some("4")).await.rest().await), [5]);
    assert_eq!(ids(&api.stream(&after, Some("")).await.rest().await), [4, 5]);
    for bad in ["x", "-1", "1.5", "9223372036854775808"] {
        let request = api.request(Method::GET, &path).header("accept", "text/event-stream");
        let answer = api.send(request.header("last-event-id", bad).body(Body::empty()).unwrap()).await;
        answer.assert_problem(400, "last_event_id_invalid");
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_everything_is_told_the_end() {
    let api = Api::start().await;
    let run = api.finished(0).await;
    for last in ["3", "4", "1000000"] {
        let messages = api.stream(&events_of(&run.id), Some(last)).await.rest().await;
        assert_eq!(messages.len(), 1);
        assert_eq!(count(&messages, "end"), 1);
    }
}

#[tokio::test]
async fn a_cancelled_run_ends_its_stream_too() {
    let api = Api::start().await;
    let run = api.queued().await;
    let mut stream = api.stream(&events_of(&run.id), None).await;
    assert_eq!(stream.next().await.unwrap().event.as_deref(), Some("run.queued"));
    let cancel =
        api.request(Method::POST, &format!("/v1/runs/{}/cancel", run.id)).body(Body::empty()).unwrap();
    api.send(cancel).await;
    let rest = stream.rest().await;
    assert_eq!(ids(&rest), [2]);
    assert_eq!(serde_json::from_str::<Value>(&rest[1].data).unwrap()["status"], "cancelled");
}

#[tokio::test]
async fn a_sessions_stream_goes_on_after_a_run_has_ended() {
    let api = Api::start().await;
    let run = api.finished(1).await;
    let mut stream = api.stream(&events_of_session(&run.session), None).await;
    for seq in 1..=4 {
        assert_eq!(stream.next().await.unwrap().id, Some(seq.to_string()));
    }
    // Nothing more comes: it waits until the server ends it, and does not say that anything ended.
    api.cancel.cancel();
    assert!(stream.rest().await.is_empty());
}

#[tokio::test]
async fn a_fault_of_the_store_ends_the_stream_without_an_end_message() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), None).await;
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("1"));
    let database = api.database().await;
    sqlx::query("update event set kind = 'nonsense' where seq = 2").execute(&database).await.unwrap();
    // Both events were read before; what comes next is not.
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("2"));
    sqlx::query("update event set seq = 3 where seq = 2").execute(&database).await.unwrap();
    api.store.publish_delta(
        &claimed.run.session,
        caisson_domain::event::Delta {
            run: claimed.run.id.clone(),
            kind: caisson_domain::event::DeltaKind::Text,
            message_id: String::new(),
            block: 0,
            text: "x".to_owned(),
        },
    );
    let rest = stream.rest().await;
    assert!(ids(&rest).is_empty());
    assert_eq!(count(&rest, "end"), 0);
}
