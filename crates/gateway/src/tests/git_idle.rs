//! Exchanges that are held open: they take their own sandbox's places, and nobody else's.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use http::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::git_host::git;
use super::git_scene::{BRANCH, Kind, RECEIVE, Scene, scene};
use super::support::{OK, Reply, Sandbox, eventually, fetch, run_spec};
use crate::bounds::{GIT_EXCHANGES, PUSHES};

const REFS: &str = "/git/origin/info/refs?service=git-upload-pack";
const FETCH: &str = "/git/origin/git-upload-pack";

async fn get(sandbox: &Sandbox) -> Reply {
    fetch(sandbox.request(Method::GET, REFS, &sandbox.agent)).await
}

/// Requests whose body has `begun` and does not go on.
fn held_back(sandbox: &Sandbox, path: &str, count: usize, begun: &'static [u8]) -> JoinSet<()> {
    let mut waiting = JoinSet::new();
    for _ in 0..count {
        let first = (!begun.is_empty()).then_some(Ok::<_, std::io::Error>(begun));
        let body = stream::iter(first).chain(stream::pending());
        let request = sandbox.request(Method::POST, path, &sandbox.agent);
        let sent = request.body(reqwest::Body::wrap_stream(body)).send();
        waiting.spawn(async move { drop(sent.await) });
    }
    waiting
}

async fn short() -> Scene {
    let shorten = |setup: &mut super::support::Setup| {
        setup.bounds.store_hold = Duration::from_millis(200);
        setup.bounds.grace = Duration::from_millis(50);
    };
    scene(Kind::Directory, shorten, |_| {}).await
}

#[tokio::test]
async fn requests_that_are_kept_back_take_nobodys_place() {
    let scene = short().await;
    for path in [FETCH, RECEIVE] {
        let waiting = held_back(&scene.sandbox, path, 3 * GIT_EXCHANGES, b"");
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(get(&scene.sandbox).await.status, OK);
        }
        drop(waiting);
    }
    scene.world.stop().await;
}

#[tokio::test]
async fn exchanges_of_one_sandbox_are_bounded() {
    let scene = short().await;
    let waiting = held_back(&scene.sandbox, FETCH, GIT_EXCHANGES, b"00");
    let busy =
        eventually(|| async { Some(get(&scene.sandbox).await).filter(|reply| reply.status != OK) }).await;
    assert_eq!((busy.status, busy.code().as_str()), (503, "busy"));
    drop(waiting);
    eventually(|| async { (get(&scene.sandbox).await.status == OK).then_some(()) }).await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_request_that_stops_in_its_middle_is_given_up() {
    let shorten = |setup: &mut super::support::Setup| setup.bounds.body_idle = Duration::from_millis(100);
    let scene = scene(Kind::Directory, shorten, |_| {}).await;
    for begun in [&b""[..], b"00"] {
        let first = (!begun.is_empty()).then_some(Ok::<_, std::io::Error>(begun));
        let body = stream::iter(first).chain(stream::pending());
        let request = scene.sandbox.request(Method::POST, FETCH, &scene.sandbox.agent);
        let reply = fetch(request.body(reqwest::Body::wrap_stream(body))).await;
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
    }
    scene.world.stop().await;
}

#[tokio::test]
async fn pushes_of_one_sandbox_in_quarantine_are_bounded() {
    let scene = short().await;
    let command = format!("{} {} refs/heads/{BRANCH}\0 report-status", "0".repeat(40), "1".repeat(40));
    let section = format!("{:04x}{command}0000", command.len() + 4);
    let section: &'static [u8] = section.into_bytes().leak();
    let waiting = held_back(&scene.sandbox, RECEIVE, PUSHES, section);
    let push = async || scene.forge(&"1".repeat(40), "", b"no pack").await;
    let busy = eventually(|| async { Some(push().await).filter(|reply| reply.status != OK) }).await;
    assert_eq!((busy.status, busy.code().as_str()), (503, "busy"));
    drop(waiting);
    eventually(|| async { (push().await.status == OK).then_some(()) }).await;
    scene.world.stop().await;
}

/// Asks for the whole repository and does not read the answer.
async fn unread(sandbox: &Sandbox, want: &str) -> UnixStream {
    let line = |text: &str| format!("{:04x}{text}\n", text.len() + 5);
    let body = format!("{}0001{}{}0000", line("command=fetch"), line(&format!("want {want}")), line("done"));
    let head = format!(
        "POST {FETCH} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\ngit-protocol: version=2\r\n\
         content-length: {}\r\n\r\n{body}",
        sandbox.agent,
        body.len()
    );
    let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// More than every buffer on the way.
fn large(seeding: &std::path::Path) {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56).to_le_bytes()[0]
    })
    .take(4_000_000)
    .collect();
    std::fs::write(seeding.join("noise"), noise).unwrap();
}

#[tokio::test]
async fn answers_that_are_not_read_keep_no_other_sandbox_from_its_repository() {
    let shorten = |setup: &mut super::support::Setup| {
        setup.bounds.local_git = 1;
        setup.bounds.first_byte = Duration::from_millis(300);
        setup.bounds.body_idle = Duration::from_secs(4);
    };
    let scene = scene(Kind::Directory, shorten, large).await;
    let want = git(&scene.bare, &["rev-parse", "main"]).await;
    let mut spec = run_spec(Some(scene.bare.to_str().unwrap()));
    spec.branch = Some("caisson/fixer/2".parse().unwrap());
    let other = scene.world.sandbox(spec).await;
    eventually(|| async { other.socket.exists().then_some(()) }).await;
    // The sandbox's own process and the one for all.
    let held = [unread(&scene.sandbox, &want).await, unread(&scene.sandbox, &want).await];
    let busy =
        eventually(|| async { Some(get(&scene.sandbox).await).filter(|reply| reply.status != OK) }).await;
    assert_eq!((busy.status, busy.code().as_str()), (503, "busy"));
    assert_eq!(get(&other).await.status, OK);
    // Whoever does not read is left, and its places are free again.
    eventually(|| async { (get(&scene.sandbox).await.status == OK).then_some(()) }).await;
    drop(held);
    scene.world.stop().await;
}
