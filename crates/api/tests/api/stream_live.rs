//! Event streams of what is happening: hints, deltas, heartbeats, bounds.

use std::time::{Duration, Instant};

use axum::body::Body;
use caisson_api::ServeLimits;
use caisson_domain::event::{Delta, DeltaKind};
use caisson_domain::id::RunId;
use caisson_domain::limits;
use caisson_domain::principal::Scope;
use caisson_domain::sse::{Message, Parser};
use caisson_store::{Claimed, DELTA_CHANNEL_ITEMS};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::support::{Answer, Api, NOW_MS, PATIENCE, Stream, count, events_of, events_of_session, ids};

/// Publishes until the stream hands a delta out: nobody listens before the reader has caught up.
async fn first_delta(api: &Api, claimed: &Claimed, stream: &mut Stream) -> Message {
    let next = stream.next();
    tokio::pin!(next);
    loop {
        api.publish(claimed, "early");
        tokio::select! {
            biased;
            message = &mut next => return message.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    }
}

async fn ask_for_stream(api: &Api, path: &str) -> Answer {
    let request = api.request(Method::GET, path).header("accept", "text/event-stream");
    Answer::read(
        tower::ServiceExt::oneshot(api.router.clone(), request.body(Body::empty()).unwrap()).await.unwrap(),
    )
    .await
}

#[tokio::test]
async fn events_arrive_as_they_are_written() {
    // A long time between looks: what arrives has come by a hint.
    let api = Api::with(|config| config.limits.poll = PATIENCE * 2).await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), None).await;
    let mut seen = vec![stream.next().await.unwrap(), stream.next().await.unwrap()];
    for number in 0..20 {
        api.say(&claimed, &format!("{{\"line\":{number}}}")).await;
        seen.push(stream.next().await.unwrap());
    }
    api.finish(&claimed).await;
    seen.extend(stream.rest().await);
    assert_eq!(ids(&seen), (1..=23).collect::<Vec<_>>());
    assert_eq!(count(&seen, "end"), 1);
}

#[tokio::test]
async fn an_event_that_no_hint_tells_of_is_found_all_the_same() {
    let api = Api::with(|config| config.limits.poll = Duration::from_millis(10)).await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    let database = api.database().await;
    let sql = "insert into event (session_id, seq, project_id, run_id, at_ms, kind, data) \
         select session_id, 3, project_id, run_id, at_ms, 'note', '{}' from event where seq = 2";
    sqlx::query(sql).execute(&database).await.unwrap();
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("3"));
}

#[tokio::test]
async fn a_live_reader_that_drops_after_every_message_sees_each_event_once() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    let claimed = api.running().await;
    let path = events_of(&claimed.run.id);
    let (mut seen, mut written): (Vec<Message>, i64) = (Vec::new(), 2);
    // Each connection reads what is there and one event that is written while it waits, then breaks.
    while written < 30 {
        let last = ids(&seen).last().map(ToString::to_string);
        let mut stream = api.remote_stream(address, &path, last.as_deref()).await;
        while ids(&seen).last() != Some(&written) {
            seen.push(stream.next().await.unwrap());
        }
        let line = format!("{{\"line\":{written}}}");
        let (message, ()) = tokio::join!(stream.next(), api.say(&claimed, &line));
        seen.push(message.unwrap());
        written += 1;
        drop(stream);
        // One is written while nobody listens.
        api.say(&claimed, &line).await;
        written += 1;
    }
    api.finish(&claimed).await;
    let last = ids(&seen).last().map(ToString::to_string);
    seen.extend(api.remote_stream(address, &path, last.as_deref()).await.rest().await);
    assert_eq!(ids(&seen), (1..=written + 1).collect::<Vec<_>>());
    assert_eq!(count(&seen, "end"), 1);
}

#[tokio::test]
async fn live_text_comes_without_an_id_and_does_not_disturb_resumption() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    let claimed = api.running().await;
    let path = events_of(&claimed.run.id);
    let mut stream = api.remote_stream(address, &path, Some("2")).await;
    let delta = first_delta(&api, &claimed, &mut stream).await;
    assert_eq!((delta.event.as_deref(), delta.id), (Some("delta"), None));
    let data: Value = serde_json::from_str(&delta.data).unwrap();
    assert_eq!(
        data,
        json!({"run_id": claimed.run.id, "kind": "text", "message_id": "msg_1", "block": 0, "text": "early"})
    );
    api.publish(&claimed, "two\nlines");
    api.say(&claimed, "{}").await;
    api.finish(&claimed).await;
    let rest = stream.rest().await;
    assert!(rest.iter().any(|message| message.data.contains("two\\nlines")));
    assert_eq!(ids(&rest), [3, 4]);
    assert_eq!(api.store.events(&claimed.run.id, 0, 100).await.unwrap().len(), 4, "live text is not stored");
}

#[tokio::test]
async fn live_text_reaches_the_streams_of_its_run_and_of_its_session_only() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let mut of_session = api.stream(&events_of_session(&claimed.run.session), Some("2")).await;
    let mut of_run = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    first_delta(&api, &claimed, &mut of_run).await;
    first_delta(&api, &claimed, &mut of_session).await;
    let (run, text) = (RunId::new(NOW_MS, [9; 10]), "of another run".to_owned());
    let other = Delta { run, kind: DeltaKind::Text, message_id: String::new(), block: 0, text };
    api.store.publish_delta(&claimed.run.session, other);
    api.say(&claimed, "{}").await;
    api.finish(&claimed).await;
    assert!(of_run.rest().await.iter().all(|message| !message.data.contains("of another run")));
    let mut seen = Vec::new();
    while ids(&seen).last() != Some(&4) {
        seen.push(of_session.next().await.unwrap());
    }
    assert!(seen.iter().any(|message| message.data.contains("of another run")));
}

#[tokio::test]
async fn a_reader_that_lags_loses_live_text_and_no_event() {
    // A long time between looks: a look that is due by itself would hand events out before older live text.
    let api = Api::with(|config| config.limits.poll = PATIENCE * 2).await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    first_delta(&api, &claimed, &mut stream).await;
    for number in 0..DELTA_CHANNEL_ITEMS * 3 {
        api.publish(&claimed, &format!("late {number}"));
    }
    for _ in 0..50 {
        api.say(&claimed, "{}").await;
    }
    api.finish(&claimed).await;
    let rest = stream.rest().await;
    assert_eq!(ids(&rest), (3..=53).collect::<Vec<_>>());
    assert!(count(&rest, "delta") <= DELTA_CHANNEL_ITEMS);
    let last = format!("late {}", DELTA_CHANNEL_ITEMS * 3 - 1);
    assert!(rest.iter().any(|message| message.data.contains(&last)), "the newest live text is kept");
}

#[tokio::test]
async fn live_text_without_pause_keeps_no_event_back() {
    let api = Api::start().await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    first_delta(&api, &claimed, &mut stream).await;
    api.say(&claimed, "{}").await;
    // There is always a newer piece of text, and still the event comes.
    let mut seen = Vec::new();
    while ids(&seen).is_empty() {
        api.publish(&claimed, "more");
        seen.push(stream.next().await.unwrap());
        assert!(seen.len() < 10_000, "the event is kept back");
    }
    assert_eq!(ids(&seen), [3]);
}

#[tokio::test]
async fn an_idle_stream_is_kept_open_by_comments() {
    let api = Api::with(|config| config.limits.heartbeat = Duration::from_millis(20)).await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), Some("2")).await;
    for _ in 0..3 {
        assert_eq!(stream.chunk().await.unwrap(), ": heartbeat\n\n");
    }
    api.finish(&claimed).await;
    assert_eq!(ids(&stream.rest().await), [3]);
}

#[tokio::test]
async fn a_reader_that_begins_behind_what_will_come_is_told_the_end_all_the_same() {
    let api = Api::with(|config| {
        config.limits.poll = Duration::from_millis(10);
        config.limits.heartbeat = Duration::from_millis(20);
    })
    .await;
    let claimed = api.running().await;
    let mut stream = api.stream(&events_of(&claimed.run.id), Some("1000")).await;
    assert_eq!(stream.chunk().await.unwrap(), ": heartbeat\n\n");
    api.finish(&claimed).await;
    let rest = stream.rest().await;
    assert!(ids(&rest).is_empty());
    assert_eq!(count(&rest, "end"), 1);
}

#[tokio::test]
async fn a_stream_ends_when_its_time_is_over_and_can_be_resumed() {
    let api = Api::with(|config| config.limits.stream_life = Duration::from_millis(50)).await;
    let claimed = api.running().await;
    let mut seen = api.stream(&events_of(&claimed.run.id), None).await.rest().await;
    assert_eq!((ids(&seen), count(&seen, "end")), (vec![1, 2], 0));
    api.finish(&claimed).await;
    seen.extend(api.stream(&events_of(&claimed.run.id), Some("2")).await.rest().await);
    assert_eq!((ids(&seen), count(&seen, "end")), (vec![1, 2, 3], 1));
}

#[tokio::test]
async fn a_stream_whose_time_is_over_before_it_was_read_hands_out_what_there_is() {
    let api = Api::with(|config| config.limits.stream_life = Duration::ZERO).await;
    let claimed = api.running().await;
    let seen = api.stream(&events_of(&claimed.run.id), None).await.rest().await;
    assert_eq!((ids(&seen), count(&seen, "end")), (vec![1, 2], 0));
    assert!(api.stream(&events_of(&claimed.run.id), Some("2")).await.rest().await.is_empty());
    api.finish(&claimed).await;
    let rest = api.stream(&events_of(&claimed.run.id), Some("2")).await.rest().await;
    assert_eq!((ids(&rest), count(&rest, "end")), (vec![3], 1));
}

#[tokio::test]
async fn streams_are_counted_and_the_next_one_beyond_the_bound_is_refused() {
    let api = Api::with(|config| config.limits.streams = 2).await;
    let claimed = api.running().await;
    let path = events_of(&claimed.run.id);
    let first = api.stream(&path, None).await;
    let _second = api.stream(&path, None).await;
    let refused = ask_for_stream(&api, &path).await;
    refused.assert_problem(429, "streams_full");
    assert_eq!((refused.header("retry-after"), refused.header("connection")), ("10", "close"));
    assert_eq!(api.get(&path).await.status, StatusCode::OK, "pages are still read");
    drop(first);
    api.stream(&path, None).await;
}

#[tokio::test]
async fn a_key_with_as_many_streams_as_one_may_have_is_refused_and_others_are_not() {
    let api = Api::with(|config| config.limits.streams_per_key = 2).await;
    let claimed = api.running().await;
    let path = events_of(&claimed.run.id);
    let first = api.stream(&path, None).await;
    let _second = api.stream(&path, None).await;
    let refused = ask_for_stream(&api, &path).await;
    refused.assert_problem(429, "streams_of_key_full");
    assert_eq!((refused.header("retry-after"), refused.header("connection")), ("10", "close"));
    let other = api.key_with(&[Scope::RunsRead]).await;
    let theirs = http::Request::get(&path).header("x-api-key", &other).header("accept", "text/event-stream");
    let theirs = tower::ServiceExt::oneshot(api.router.clone(), theirs.body(Body::empty()).unwrap()).await;
    assert_eq!(theirs.unwrap().status(), StatusCode::OK);
    drop(first);
    api.stream(&path, None).await;
}

#[tokio::test]
async fn a_shutdown_ends_the_streams_and_the_server() {
    let mut api = Api::start().await;
    let address = api.listen(ServeLimits::default()).await;
    let claimed = api.running().await;
    let mut stream = api.remote_stream(address, &events_of(&claimed.run.id), None).await;
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("1"));
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("2"));
    let begun = Instant::now();
    api.cancel.cancel();
    assert!(stream.rest().await.is_empty());
    api.stopped().await;
    assert!(begun.elapsed() < ServeLimits::default().drain, "nothing was waited for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_that_stops_reading_slows_nobody_is_cut_and_can_resume() {
    const LINES: usize = 16;
    let mut api = Api::with(|config| config.limits.streams = 2).await;
    let stall = ServeLimits { write_stall: Duration::from_secs(2), ..ServeLimits::default() };
    let address = api.listen(stall).await;
    let claimed = api.running().await;
    let path = events_of(&claimed.run.id);
    let mut deaf = api.deaf_reader(address, &path).await;
    let mut reader = api.remote_stream(address, &path, None).await;
    let line = format!("{{\"text\":\"{}\"}}", "x".repeat(limits::JOURNAL_LINE_BYTES - 11));
    let write = async {
        for _ in 0..LINES {
            api.say(&claimed, &line).await;
        }
        api.finish(&claimed).await;
    };
    let (seen, ()) = tokio::join!(reader.rest(), write);
    let last = i64::try_from(LINES).unwrap() + 3;
    assert_eq!(ids(&seen), (1..=last).collect::<Vec<_>>(), "the other reader gets everything meanwhile");
    // One place is free now, and the other one when the deaf reader is cut.
    let _holder = api.remote_stream(address, &events_of_session(&claimed.run.session), None).await;
    let behind = format!("{path}?after={last}");
    let cut = async { while ask_for_stream(&api, &behind).await.status != StatusCode::OK {} };
    tokio::time::timeout(PATIENCE, cut).await.expect("the deaf reader is never cut");
    let mut raw = Vec::new();
    // What lies in the socket's buffers can still be read; then the connection is broken.
    let _broken = deaf.read_to_end(&mut raw).await;
    let text_at = raw.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let partial = Parser::default().push(&dechunk(&raw[text_at..])).unwrap();
    assert_eq!(count(&partial, "end"), 0);
    assert!(partial.len() < LINES, "it got {} messages", partial.len());
    let resume = ids(&partial).last().copied().unwrap_or(0);
    let rest = api.stream(&path, Some(&resume.to_string())).await.rest().await;
    assert_eq!(ids(&rest), (resume + 1..=last).collect::<Vec<_>>());
}

/// Takes a chunked body apart, as far as it came.
fn dechunk(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = raw.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..at]).unwrap(), 16).unwrap();
        let chunk = &raw[at + 2..];
        if size == 0 || chunk.len() < size + 2 {
            body.extend_from_slice(&chunk[..chunk.len().min(size)]);
            break;
        }
        body.extend_from_slice(&chunk[..size]);
        raw = &chunk[size + 2..];
    }
    body
}
