use std::time::Duration;

use caisson_domain::event::{DeltaKind, EventKind};
use caisson_domain::id::RunId;
use caisson_domain::limits::{
    ARTIFACT_BYTES, DELTA_BYTES, DELTAS_PER_SECOND, JOURNAL_BATCH_BYTES, RUN_ARTIFACTS, STOP_GRACE_S,
};
use caisson_domain::protocol::{
    DeltaBatch, DeltaItem, Ending, Inputs, JournalBody, JournalRecord, Outcome, StopReason, VERSION_HEADER,
    Work,
};
use caisson_domain::run::Phase;
use caisson_store::{Clock, Store};
use http::Method;
use sha2::{Digest, Sha256};

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::log::Log;
use super::support::{OK, Sandbox, Setup, World, eventually, fetch, run_spec};
use crate::bounds::{BODY_POOL_BYTES, Bounds, DELTA_BODY_BYTES, FOREIGN_WARNINGS, LOOK};

async fn world() -> (World, Sandbox) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    (world, sandbox)
}

async fn post(sandbox: &Sandbox, offset: usize, bytes: Vec<u8>) -> super::support::Reply {
    sandbox.control(Method::POST, &format!("/journal?offset={offset}"), bytes).await
}

fn ack(offset: usize) -> String {
    format!("{{\"acknowledged\":{offset}}}")
}

#[tokio::test]
async fn the_next_work_comes_until_its_end_is_journaled() {
    let (world, sandbox) = world().await;
    let reply = sandbox.control(Method::GET, "/next", "").await;
    let Work::Run(work) = serde_json::from_slice(&reply.body).unwrap() else { panic!("no run") };
    assert_eq!((&work.run, work.attempt), (&sandbox.run.id, 1));
    assert_eq!(work.agent.conversation.len(), 36);
    assert!(!work.agent.resume && work.timeout_ms <= 600_000 && work.timeout_ms > 590_000);
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    let outcome = Outcome { ending: Ending::Completed, result: None, head: None, pushed: false, kept: false };
    let line = sandbox.line(JournalBody::Finished(outcome));
    assert_eq!(post(&sandbox, 0, line).await.status, OK);
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, 204);
    world.stop().await;
}

#[tokio::test]
async fn a_sandbox_that_journals_other_runs_for_ever_fills_no_log() {
    let (log, _guard) = Log::begin();
    let (world, sandbox) = world().await;
    let record = JournalRecord { run: RunId::new(7, [7; 10]), attempt: 1, body: JournalBody::AgentStarted };
    let line = [serde_json::to_vec(&record).unwrap(), b"\n".to_vec()].concat();
    let bound = FOREIGN_WARNINGS as usize;
    for number in 0..bound + 2 {
        assert_eq!(post(&sandbox, number * line.len(), line.clone()).await.status, OK);
    }
    world.stop().await;
    let (warned, all) =
        (log.lines("WARN", "journal entries of other runs"), log.lines("", "journal entries of other runs"));
    assert_eq!((warned, all), (bound, bound + 2));
}

#[tokio::test]
async fn a_newer_protocol_is_told_to_wait_for_a_newer_server() {
    let (world, sandbox) = world().await;
    let request = sandbox.request(Method::GET, "/next", &sandbox.control).header(VERSION_HEADER, "2");
    let reply = fetch(request).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "protocol_unknown"));
    world.stop().await;
}

#[tokio::test]
async fn a_journal_goes_on_where_it_is_acknowledged() {
    let (world, sandbox) = world().await;
    let first = sandbox.line(JournalBody::Phase { phase: Phase::Prepare });
    let second = sandbox.line(JournalBody::AgentStarted);
    let end = first.len() + second.len();
    assert_eq!(post(&sandbox, 0, first.clone()).await.text(), ack(first.len()));
    // The answer was lost, so it is sent again.
    let again = post(&sandbox, 0, [first.clone(), second.clone()].concat()).await;
    assert_eq!((again.status, again.text()), (409, ack(first.len())));
    assert_eq!(sandbox.control(Method::GET, "/journal", "").await.text(), ack(first.len()));
    assert_eq!(post(&sandbox, first.len(), second).await.text(), ack(end));
    assert_eq!(post(&sandbox, end, Vec::new()).await.text(), ack(end));
    let run = world.run(&sandbox.run.id).await;
    assert!(run.agent_started && run.phase == Some(Phase::Prepare));
    assert_eq!(world.events(&run.id, EventKind::AgentStarted).await.len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_journal_is_never_wedged_by_what_is_in_it() {
    let (world, sandbox) = world().await;
    let mut bytes = b"\xff\xfe nonsense\n{\"kind\":\"later\"}\n\n".to_vec();
    bytes.extend(sandbox.line(JournalBody::Line { line: "{\"type\":\"x\"}".to_owned() }));
    let end = bytes.len();
    assert_eq!(post(&sandbox, 0, bytes).await.text(), ack(end));
    let notes = world.events(&sandbox.run.id, EventKind::Note).await;
    assert_eq!(notes.len(), 2);
    assert!(notes[1]["message"].as_str().unwrap().contains("journal line 2 not understood"));
    assert_eq!(world.events(&sandbox.run.id, EventKind::AgentLine).await, [serde_json::json!({"type": "x"})]);
    world.stop().await;
}

#[tokio::test]
async fn a_journal_batch_ends_with_a_line_and_within_its_bound() {
    let (world, sandbox) = world().await;
    let half = post(&sandbox, 0, b"{\"run\"".to_vec()).await;
    assert_eq!((half.status, half.code().as_str()), (400, "journal_incomplete"));
    assert_eq!(sandbox.control(Method::POST, "/journal", "\n").await.status, 400);
    let line = |bytes: usize| [vec![b'x'; bytes - 1], vec![b'\n']].concat();
    assert_eq!(post(&sandbox, 0, line(JOURNAL_BATCH_BYTES + 1)).await.status, 413);
    assert_eq!(post(&sandbox, 0, line(JOURNAL_BATCH_BYTES)).await.text(), ack(JOURNAL_BATCH_BYTES));
    let far = sandbox.control(Method::POST, &format!("/journal?offset={}", u64::MAX), "\n").await;
    assert_eq!(far.status, 400);
    world.stop().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let body_idle = Duration::from_millis(50);
    world.start(Setup { bounds: Bounds { body_idle, ..Bounds::default() }, ..Setup::new() }).await;
    let silent = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let body = reqwest::Body::wrap_stream(silent);
    let reply = sandbox.control(Method::POST, "/journal?offset=0", body).await;
    assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
    world.stop().await;
}

#[tokio::test]
async fn bodies_in_memory_are_bounded_for_one_sandbox() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let store_hold = Duration::from_millis(200);
    world
        .start(Setup {
            bounds: Bounds { store_hold, grace: store_hold, ..Bounds::default() },
            ..Setup::new()
        })
        .await;
    // Each announces the largest batch and sends nothing of it.
    let mut slow = Vec::new();
    for _ in 0..BODY_POOL_BYTES / JOURNAL_BATCH_BYTES {
        let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
        let head = format!(
            "POST /journal?offset=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-length: {JOURNAL_BATCH_BYTES}\r\n\r\n",
            sandbox.control
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let one = || sandbox.control(Method::POST, "/deltas", "{");
    eventually(|| async { (one().await.code() == "busy").then_some(()) }).await;
    drop(slow.pop());
    eventually(|| async { (one().await.code() == "bad_request").then_some(()) }).await;
    world.stop().await;
}

#[tokio::test]
async fn inputs_come_in_order_and_at_once() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let long_poll = super::support::PATIENCE * 10;
    world.start(Setup { bounds: Bounds { long_poll, ..Bounds::default() }, ..Setup::new() }).await;
    let poll = sandbox.control(Method::GET, "/inputs?after=0", "");
    let stop = world.store.request_stop(&sandbox.run.id, sandbox.epoch, StopReason::Timeout);
    let (reply, stopped) = tokio::join!(poll, stop);
    assert!(stopped.unwrap());
    let inputs: Inputs = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((inputs.items.len(), &inputs.items[0].run), (1, &sandbox.run.id));
    assert_eq!(sandbox.control(Method::GET, "/inputs?after=x", "").await.status, 400);
    world.stop().await;
}

/// Nobody in the server hears of it: as with a wake-up of another server that did not arrive.
#[tokio::test]
async fn a_stop_whose_hint_is_lost_reaches_the_sandbox_long_before_it_would_be_killed() {
    assert!(LOOK * 5 <= Duration::from_secs(STOP_GRACE_S.into()), "most of the grace is for saving the work");
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let (long_poll, look) = (super::support::PATIENCE * 10, Duration::from_millis(50));
    world.start(Setup { bounds: Bounds { long_poll, look, ..Bounds::default() }, ..Setup::new() }).await;
    let elsewhere = Store::open(&world.root.path().join("caisson.db"), Clock::system()).await.unwrap();
    let inputs = sandbox.control(Method::GET, "/inputs?after=0", "");
    let poll = tokio::time::timeout(super::support::PATIENCE, inputs);
    let stop = async {
        // As many exchanges of the same door as the poll needs to have looked, and found nothing.
        for _ in 0..20 {
            assert_eq!(sandbox.control(Method::GET, "/journal", "").await.status, 200);
        }
        elsewhere.request_stop(&sandbox.run.id, sandbox.epoch, StopReason::Timeout).await
    };
    let (reply, stopped) = tokio::join!(poll, stop);
    assert!(stopped.unwrap());
    let inputs: Inputs = serde_json::from_slice(&reply.expect("the stop was not told in time").body).unwrap();
    assert_eq!(inputs.items.len(), 1);
    elsewhere.close().await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_poll_without_news_ends_in_time() {
    let (world, sandbox) = world().await;
    let reply = sandbox.control(Method::GET, "/inputs?after=0", "").await;
    assert_eq!(reply.text(), r#"{"items":[]}"#);
    world.stop().await;
}

#[tokio::test]
async fn deltas_reach_live_readers_within_their_bounds() {
    let (world, sandbox) = world().await;
    let mut live = world.store.subscribe_deltas(&sandbox.run.session);
    let message_id = "msg_1".to_owned();
    let item = |text: &str| DeltaItem {
        kind: DeltaKind::Text,
        message_id: message_id.clone(),
        block: 3,
        text: text.to_owned(),
    };
    let batch = |run: &caisson_domain::id::RunId, items: Vec<DeltaItem>| {
        serde_json::to_vec(&DeltaBatch { run: run.clone(), items }).unwrap()
    };
    let other = caisson_domain::id::RunId::new(7, [7; 10]);
    let foreign = batch(&other, vec![item("forged")]);
    assert_eq!(sandbox.control(Method::POST, "/deltas", foreign).await.status, 204);
    let long = batch(&sandbox.run.id, vec![item(&"x".repeat(DELTA_BYTES + 1))]);
    assert_eq!(sandbox.control(Method::POST, "/deltas", long).await.status, 204);
    let delta = live.recv().await.unwrap();
    assert_eq!((delta.text.len(), delta.message_id, delta.block), (DELTA_BYTES, message_id.clone(), 3));
    let many = batch(&sandbox.run.id, vec![item("y"); 10 * DELTAS_PER_SECOND as usize]);
    sandbox.control(Method::POST, "/deltas", many).await;
    let mut passed = 0;
    while live.try_recv().is_ok() {
        passed += 1;
    }
    // The second may have turned in between.
    assert!((1..=DELTAS_PER_SECOND).contains(&passed), "{passed}");
    assert_eq!(sandbox.control(Method::POST, "/deltas", "{}").await.status, 400);
    let large = vec![b' '; DELTA_BODY_BYTES + 1];
    assert_eq!(sandbox.control(Method::POST, "/deltas", large).await.status, 413);
    let at_bound = vec![b' '; DELTA_BODY_BYTES];
    assert_eq!(sandbox.control(Method::POST, "/deltas", at_bound).await.status, 400);
    world.stop().await;
}

#[tokio::test]
async fn an_artifact_is_kept_whole_and_replaced_by_name() {
    let (world, sandbox) = world().await;
    let path = format!("/artifacts/{}/work.patch", sandbox.run.id);
    assert_eq!(sandbox.control(Method::PUT, &path, "one").await.status, 204);
    let first = world.store.artifact(&sandbox.run.id, "work.patch").await.unwrap().unwrap();
    let file = |path: &str| world.root.path().join("artifacts").join(path);
    assert_eq!(std::fs::read_to_string(file(&first.path)).unwrap(), "one");
    assert_eq!((first.size_bytes, first.sha256), (3, hex::encode(Sha256::digest("one"))));
    assert_eq!(sandbox.control(Method::PUT, &path, "one").await.status, 204);
    assert!(file(&first.path).exists());
    assert_eq!(sandbox.control(Method::PUT, &path, "two").await.status, 204);
    let second = world.store.artifact(&sandbox.run.id, "work.patch").await.unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(file(&second.path)).unwrap(), "two");
    assert!(!file(&first.path).exists());
    let incoming = world.root.path().join("artifacts/.incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
    world.stop().await;
}

#[tokio::test]
async fn artifacts_are_bounded_in_size_number_and_owner() {
    let (world, sandbox) = world().await;
    let put = |name: String, bytes: usize| {
        let path = format!("/artifacts/{}/{name}", sandbox.run.id);
        sandbox.request(Method::PUT, &path, &sandbox.control).body(vec![0_u8; bytes])
    };
    assert_eq!(fetch(put("fits".to_owned(), ARTIFACT_BYTES)).await.status, 204);
    assert_eq!(fetch(put("large".to_owned(), ARTIFACT_BYTES + 1)).await.status, 413);
    let pieces = (0..=ARTIFACT_BYTES >> 20).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 1 << 20]));
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let path = format!("/artifacts/{}/chunked", sandbox.run.id);
    assert_eq!(sandbox.control(Method::PUT, &path, chunked).await.status, 413);
    for number in 1..RUN_ARTIFACTS {
        assert_eq!(fetch(put(format!("n{number}"), 1)).await.status, 204);
    }
    let full = fetch(put("one-more".to_owned(), 1)).await;
    assert_eq!((full.status, full.code().as_str()), (409, "artifacts_full"));
    assert_eq!(fetch(put("n1".to_owned(), 2)).await.status, 204);
    let other = format!("/artifacts/{}/x", caisson_domain::id::RunId::new(5, [5; 10]));
    let foreign = sandbox.control(Method::PUT, &other, "x").await;
    assert_eq!((foreign.status, foreign.code().as_str()), (403, "artifact_refused"));
    let directory = world.root.path().join("artifacts").join(sandbox.run.id.as_str());
    let kept = std::fs::read_dir(directory).unwrap().count();
    assert_eq!(i64::try_from(kept).unwrap(), RUN_ARTIFACTS);
    assert_eq!(std::fs::read_dir(world.root.path().join("artifacts/.incoming")).unwrap().count(), 0);
    world.stop().await;
}

#[tokio::test]
async fn the_artifacts_of_a_run_are_bounded_together() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world
        .start(Setup { bounds: Bounds { run_artifact_bytes: 10, ..Bounds::default() }, ..Setup::new() })
        .await;
    let path = |name: &str| format!("/artifacts/{}/{name}", sandbox.run.id);
    let put = |name: &str, bytes: usize| {
        let path = format!("/artifacts/{}/{name}", sandbox.run.id);
        fetch(sandbox.request(Method::PUT, &path, &sandbox.control).body(vec![0_u8; bytes]))
    };
    assert_eq!(put("a", 6).await.status, 204);
    let over = put("b", 5).await;
    assert_eq!((over.status, over.code().as_str()), (413, "artifacts_full"));
    assert!(over.text().contains("larger than 10 bytes together"), "{}", over.text());
    assert_eq!(put("b", 4).await.status, 204);
    // One that is replaced does not count, and a length that is not told is counted when it is there.
    assert_eq!(put("a", 6).await.status, 204);
    assert_eq!(put("a", 7).await.status, 413);
    let pieces = [Ok::<_, std::io::Error>(vec![0_u8; 4]), Ok(vec![0_u8; 3])];
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    assert_eq!(sandbox.control(Method::PUT, &path("a"), chunked).await.code(), "artifacts_full");
    assert_eq!(world.store.artifact(&sandbox.run.id, "a").await.unwrap().unwrap().size_bytes, 6);
    let root = world.root.path().join("artifacts");
    assert_eq!(std::fs::read_dir(root.join(sandbox.run.id.as_str())).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(root.join(".incoming")).unwrap().count(), 0);
    world.stop().await;
}

#[tokio::test]
async fn artifacts_of_one_sandbox_come_one_after_another() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let store_hold = Duration::from_millis(200);
    let bounds = Bounds { store_hold, grace: store_hold, ..Bounds::default() };
    world.start(Setup { bounds, ..Setup::new() }).await;
    let path = format!("/artifacts/{}/a", sandbox.run.id);
    let mut slow = UnixStream::connect(&sandbox.socket).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 9\r\n\r\n",
        sandbox.control
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let one = || sandbox.control(Method::PUT, &path, "x");
    eventually(|| async { (one().await.status == 503).then_some(()) }).await;
    drop(slow);
    eventually(|| async { (one().await.status == 204).then_some(()) }).await;
    world.stop().await;
}
