use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::{JournalBody, TRANSCRIPT_BUSY, TRANSCRIPT_EARLY, Work};
use caisson_domain::redact::MARKER;
use caisson_domain::run::RunStatus;
use caisson_store::Finish;
use http::Method;

use super::support::{MODEL_KEY, OK, Sandbox, Setup, World, eventually, fetch, run_spec};
use crate::bounds::TRANSCRIPT_PUTS;

async fn world() -> (World, Sandbox) {
    Box::pin(world_with(Setup::new())).await
}

async fn world_with(setup: Setup) -> (World, Sandbox) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(setup).await;
    begin(&sandbox).await;
    (world, sandbox)
}

/// The agent has started.
async fn begin(sandbox: &Sandbox) {
    let line = sandbox.line(JournalBody::AgentStarted);
    assert_eq!(sandbox.control(Method::POST, "/journal?offset=0", line).await.status, OK);
}

/// A transcript that no socket's buffer holds.
fn long() -> String {
    format!("{}\n", "x".repeat(TRANSCRIPT_BYTES - 1))
}

#[tokio::test]
async fn a_transcript_is_kept_and_given_back_byte_for_byte() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let none = sandbox.control(Method::GET, &path, "").await;
    assert_eq!((none.status, none.code().as_str()), (404, "no_transcript"));
    for text in ["{\"a\":1}\n", "{\"a\":\"ä\\u0000\"}\n{}\n"] {
        assert_eq!(sandbox.control(Method::PUT, &path, text).await.status, 204);
        let kept = sandbox.control(Method::GET, &path, "").await;
        assert_eq!((kept.status, kept.text().as_str()), (200, text));
    }
    let reply = sandbox.control(Method::GET, "/next", "").await;
    let Work::Run(work) = serde_json::from_slice(&reply.body).unwrap() else { panic!("no run") };
    let archive = work.agent.archive.unwrap();
    assert!(work.agent.resume && archive.is_latest && archive.run == sandbox.run.id);
    world.stop().await;
}

#[tokio::test]
async fn a_transcript_is_that_of_the_run_in_the_sandbox_and_needs_the_control_grant() {
    let (world, sandbox) = world().await;
    let other = world.sandbox(run_spec(None)).await;
    begin(&other).await;
    assert_eq!(
        other.control(Method::PUT, &format!("/transcript/{}", other.run.id), "theirs").await.status,
        204
    );
    for (method, body) in [(Method::PUT, "mine"), (Method::GET, "")] {
        for run in [&other.run.id, &RunId::new(1, [7; 10])] {
            let refused = sandbox.control(method.clone(), &format!("/transcript/{run}"), body).await;
            assert_eq!((refused.status, refused.code().as_str()), (403, "transcript_refused"));
        }
        let own = format!("/transcript/{}", sandbox.run.id);
        let with_agents = fetch(sandbox.request(method.clone(), &own, &sandbox.agent).body(body)).await;
        assert_eq!((with_agents.status, with_agents.code().as_str()), (403, "grant_refused"));
        assert_eq!(sandbox.control(method, "/transcript/nobody", body).await.status, 400);
    }
    assert_eq!(world.store.read_transcript(&other.run.session).await.unwrap().as_deref(), Some("theirs"));
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(world.store.finish(&other.run.id, other.epoch, &finish).await.unwrap());
    let late = other.control(Method::PUT, &format!("/transcript/{}", other.run.id), "late").await;
    assert_eq!(late.status, 403, "its run has ended");
    world.stop().await;
}

#[tokio::test]
async fn a_transcript_of_the_bound_is_kept_and_a_longer_one_or_no_text_is_refused() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let put = async |body: Vec<u8>| sandbox.control(Method::PUT, &path, body).await.status;
    assert_eq!(put(vec![b'x'; TRANSCRIPT_BYTES]).await, 204);
    assert_eq!(put(vec![b'y'; TRANSCRIPT_BYTES + 1]).await, 413);
    assert_eq!(put(b"\xff\n".to_vec()).await, 400);
    assert_eq!(put(b"a\0\n".to_vec()).await, 400);
    let kept = sandbox.control(Method::GET, &path, "").await;
    assert_eq!(kept.body.len(), TRANSCRIPT_BYTES, "the one before stays");
    assert!(kept.body.iter().all(|byte| *byte == b'x'));
    world.stop().await;
}

#[tokio::test]
async fn a_secret_in_a_transcript_is_taken_out_and_told() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let text = format!("{{\"said\":\"{MODEL_KEY}\"}}\n");
    assert_eq!(sandbox.control(Method::PUT, &path, text).await.status, 204);
    let kept = sandbox.control(Method::GET, &path, "").await.text();
    assert_eq!(kept, format!("{{\"said\":\"{MARKER}\"}}\n"));
    assert!(!world.disk_has(MODEL_KEY));
    let notes = world.events(&sandbox.run.id, EventKind::Note).await;
    assert!(notes.iter().any(|note| note["message"].to_string().contains("transcript")), "{notes:?}");
    world.stop().await;
}

#[tokio::test]
async fn one_transcript_is_on_its_way_at_a_time_until_it_is_read_or_its_reader_is_left() {
    let mut setup = Setup::new();
    setup.bounds.body_idle = Duration::from_secs(2);
    let (world, sandbox) = Box::pin(world_with(setup)).await;
    let path = format!("/transcript/{}", sandbox.run.id);
    assert_eq!(sandbox.control(Method::PUT, &path, long()).await.status, 204);
    let ask = async || sandbox.request(Method::GET, &path, &sandbox.control).send().await.unwrap();
    let busy = async || {
        for (method, body) in [(Method::GET, ""), (Method::PUT, "another\n")] {
            let reply = sandbox.control(method, &path, body).await;
            assert_eq!((reply.status, reply.code().as_str()), (429, TRANSCRIPT_BUSY));
        }
    };
    let free = async || {
        eventually(|| async { (ask().await.status() == OK).then_some(()) }).await;
    };
    let unread = ask().await;
    assert_eq!(unread.status(), OK);
    busy().await;
    // Whoever hangs up, and whoever does not read, has none on its way any more.
    drop(unread);
    free().await;
    let unread = eventually(|| async { Some(ask().await).filter(|reply| reply.status() == OK) }).await;
    busy().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    free().await;
    assert!(unread.bytes().await.is_err(), "and finds it cut");
    let read = eventually(|| async { Some(ask().await).filter(|reply| reply.status() == OK) }).await;
    assert_eq!(read.bytes().await.unwrap().len(), TRANSCRIPT_BYTES, "whoever reads has it whole");
    // Another sandbox has its own.
    let held = eventually(|| async { Some(ask().await).filter(|reply| reply.status() == OK) }).await;
    let other = world.sandbox(run_spec(None)).await;
    begin(&other).await;
    let theirs = format!("/transcript/{}", other.run.id);
    assert_eq!(other.control(Method::PUT, &theirs, "theirs\n").await.status, 204);
    drop(held);
    world.stop().await;
}

#[tokio::test]
async fn so_many_transcripts_of_a_run_are_taken() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let put = async |body: Vec<u8>| sandbox.control(Method::PUT, &path, body).await;
    assert_eq!(put(b"a\0\n".to_vec()).await.status, 400, "what is not taken does not count");
    for number in 0..TRANSCRIPT_PUTS {
        assert_eq!(put(format!("{number}\n").into_bytes()).await.status, 204, "{number}");
    }
    for body in ["one more\n".to_owned(), format!("{}\n", TRANSCRIPT_PUTS - 1)] {
        let reply = put(body.into_bytes()).await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "transcripts_full"));
    }
    let kept = sandbox.control(Method::GET, &path, "").await.text();
    assert_eq!(kept, format!("{}\n", TRANSCRIPT_PUTS - 1), "the last one that was taken stays");
    world.stop().await;
}

#[tokio::test]
async fn no_transcript_is_taken_before_the_agent_has_started() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let early = sandbox.control(Method::PUT, &path, "early\n").await;
    assert_eq!((early.status, early.code().as_str()), (409, TRANSCRIPT_EARLY));
    let none = sandbox.control(Method::GET, &path, "").await;
    assert_eq!((none.status, none.code().as_str()), (404, "no_transcript"), "an archived one is brought");
    begin(&sandbox).await;
    assert_eq!(sandbox.control(Method::PUT, &path, "now\n").await.status, 204);
    world.stop().await;
}

#[tokio::test]
async fn a_transcript_that_is_archived_already_is_answered_without_writing() {
    let mut setup = Setup::new();
    setup.bounds.store_hold = Duration::from_millis(200);
    let (world, sandbox) = Box::pin(world_with(setup)).await;
    let path = format!("/transcript/{}", sandbox.run.id);
    assert_eq!(sandbox.control(Method::PUT, &path, "said\n").await.status, 204);
    let locked = world.locked().await;
    assert_eq!(sandbox.control(Method::PUT, &path, "said\n").await.status, 204, "nobody can write");
    drop(locked);
    world.stop().await;
}
