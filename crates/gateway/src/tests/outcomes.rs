//! What is told before a run's outcome: by the one that counts, once, and by none that is forged.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::protocol::{Ending, JournalBody, JournalRecord, Outcome};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::outside::{ask, denials};
use super::support::{OK, Reply, Sandbox, Setup, World, eventually, fetch, run_spec};
use crate::bounds::{OUTCOME_TRIES, TOLD_EVENTS};

async fn world() -> (World, Sandbox) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(Some("/not/allowed"))).await;
    let mut setup = Setup::new();
    setup.bounds.store_hold = Duration::from_millis(100);
    world.start(setup).await;
    (world, sandbox)
}

/// Is refused a repository so often, and a way outside once.
async fn denied(sandbox: &Sandbox, times: u32) {
    let client = sandbox.client();
    let url = "http://gateway/git/origin/info/refs?service=git-upload-pack";
    for _ in 0..times {
        assert_eq!(fetch(client.get(url).bearer_auth(&sandbox.agent)).await.code(), "policy_denied");
    }
    assert!(ask(sandbox, "CONNECT denied.example:443", "").await.starts_with("HTTP/1.1 403"));
}

/// How often each refusal that was told is one with others.
async fn told(world: &World, sandbox: &Sandbox) -> (Vec<u64>, Vec<u64>) {
    let counts = |events: Vec<serde_json::Value>| {
        events.iter().filter_map(|event| event["count"].as_u64()).filter(|count| *count > 1).collect()
    };
    let refused = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    (counts(refused), counts(denials(world, sandbox).await))
}

fn outcome() -> JournalBody {
    let (ending, result, head) = (Ending::Completed, None, None);
    JournalBody::Finished(Outcome { ending, result, head, pushed: false, kept: false })
}

async fn post(sandbox: &Sandbox, offset: usize, lines: &[u8]) -> Reply {
    sandbox.control(Method::POST, &format!("/journal?offset={offset}"), lines.to_vec()).await
}

/// Whether the run still has no outcome.
async fn is_open(sandbox: &Sandbox) -> bool {
    sandbox.control(Method::GET, "/next", "").await.status == OK
}

#[tokio::test]
async fn a_forged_outcome_tells_nothing_and_the_one_that_counts_tells_everything_once() {
    let (world, sandbox) = world().await;
    denied(&sandbox, TOLD_EVENTS + 3).await;
    denied(&sandbox, 0).await;
    denied(&sandbox, 0).await;
    let audited = world.audit().await.len();
    let line = sandbox.line(outcome());
    let forged = |run: RunId, attempt: i64| {
        [serde_json::to_vec(&JournalRecord { run, attempt, body: outcome() }).unwrap(), b"\n".to_vec()]
            .concat()
    };
    for offset in [1, line.len()] {
        assert_eq!(post(&sandbox, offset, &line).await.status, 409, "elsewhere in the journal");
    }
    let other_run = forged(RunId::new(7, [7; 10]), sandbox.run.attempt);
    assert_eq!(post(&sandbox, 0, &other_run).await.status, OK);
    let other_attempt = forged(sandbox.run.id.clone(), sandbox.run.attempt + 1);
    assert_eq!(post(&sandbox, other_run.len(), &other_attempt).await.status, OK);
    assert_eq!(post(&sandbox, 0, &line).await.status, 409, "where the journal was");
    assert_eq!(told(&world, &sandbox).await, (vec![], vec![]));
    assert_eq!(world.audit().await.len(), audited);
    assert!(is_open(&sandbox).await);
    let mut offset = other_run.len() + other_attempt.len();
    assert_eq!(post(&sandbox, offset, &line).await.status, OK);
    assert_eq!(told(&world, &sandbox).await, (vec![2], vec![2]));
    assert!(!is_open(&sandbox).await);
    // A second one would not count.
    offset += line.len();
    denied(&sandbox, 2).await;
    assert_eq!(post(&sandbox, offset, &line).await.status, OK);
    assert_eq!(told(&world, &sandbox).await, (vec![2], vec![2]));
    world.stop().await;
}

#[tokio::test]
async fn what_was_told_before_an_outcome_is_followed_by_it_whoever_hangs_up_or_sends_another_batch() {
    let (world, sandbox) = world().await;
    denied(&sandbox, TOLD_EVENTS + 3).await;
    // Nothing can be told yet.
    let locked = world.locked().await;
    let line = sandbox.line(outcome());
    let head = format!(
        "POST /journal?offset=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        sandbox.control,
        line.len()
    );
    let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
    stream.write_all(&[head.as_bytes(), &line].concat()).await.unwrap();
    eventually(|| async { (post(&sandbox, 1, b"\n").await.code() == "busy").then_some(()) }).await;
    stream.shutdown().await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"", "the server hung up as well");
    let overtaking = post(&sandbox, 0, b"\n").await;
    assert_eq!((overtaking.status, overtaking.code().as_str()), (503, "busy"));
    drop(locked);
    eventually(|| async { (!is_open(&sandbox).await).then_some(()) }).await;
    assert_eq!(told(&world, &sandbox).await, (vec![2], vec![]));
    assert_eq!(post(&sandbox, line.len(), b"\n").await.status, OK, "the next one has its turn");
    world.stop().await;
}

#[tokio::test]
async fn outcomes_that_the_store_does_not_take_tell_so_often_and_no_more() {
    let (world, sandbox) = world().await;
    denied(&sandbox, TOLD_EVENTS + 1).await;
    let mut database = world.locked().await;
    for statement in [
        "create trigger refuse before update of outcome on run begin select raise(abort, 'no'); end",
        "commit",
    ] {
        sqlx::query(statement).execute(&mut database).await.unwrap();
    }
    let line = sandbox.line(outcome());
    let tries = usize::try_from(OUTCOME_TRIES).unwrap();
    // The tenth one of a kind is told by itself.
    for _ in 0..=tries {
        denied(&sandbox, 2).await;
        assert!(post(&sandbox, 0, &line).await.status >= 500);
    }
    assert_eq!(told(&world, &sandbox).await.0, vec![2; tries]);
    sqlx::query("drop trigger refuse").execute(&mut database).await.unwrap();
    assert_eq!(post(&sandbox, 0, &line).await.status, OK);
    assert!(!is_open(&sandbox).await);
    assert_eq!(told(&world, &sandbox).await.0, vec![2; tries]);
    world.stop().await;
}
