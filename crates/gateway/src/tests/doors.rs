use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::grant::{GrantKind, Token};
use caisson_domain::id::SandboxId;
use caisson_domain::usage::TokenCounts;
use caisson_store::{NewModelCall, NewSandbox, SandboxState};
use http::Method;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::support::{OK, PATIENCE, Setup, World, eventually, run_spec};
use crate::GatewayError;
use crate::bounds::{Bounds, CONNECTIONS, HEADER_BYTES, HEADERS};

const NEXT: &str = "GET /next HTTP/1.1\r\nhost: x\r\n";

async fn raw(stream: &mut UnixStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

#[tokio::test]
async fn a_door_is_opened_for_a_new_sandbox_and_closed_for_a_destroyed_one() {
    let world = World::new().await;
    world.start(Setup::new()).await;
    let sandbox = world.sandbox(run_spec(None)).await;
    eventually(|| async { sandbox.socket.exists().then_some(()) }).await;
    let mode = std::fs::metadata(&sandbox.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    assert!(world.store.set_sandbox_state(&sandbox.id, SandboxState::Destroyed).await.unwrap());
    eventually(|| async { (!sandbox.socket.exists()).then_some(()) }).await;
    world.stop().await;
}

/// What the other tests build on: a gateway opens a door some time after it has heard of the sandbox.
#[tokio::test]
async fn a_sandbox_that_is_made_beside_a_slow_gateway_has_its_door() {
    let world = World::new().await;
    world.serves.store(true, Ordering::Relaxed);
    let made = async {
        let sandbox = world.sandbox(run_spec(None)).await;
        (sandbox.socket.exists(), sandbox)
    };
    let start = async {
        eventually(|| async {
            let rows = world.store.sandboxes_of(&world.server).await.unwrap();
            rows.iter().any(|row| row.state == SandboxState::Running).then_some(())
        })
        .await;
        world.start(Setup::new()).await;
    };
    let ((open, sandbox), ()) = tokio::join!(made, start);
    assert!(open);
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    world.stop().await;
}

#[tokio::test]
async fn a_restarted_server_opens_the_doors_of_living_sandboxes_again() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    world.stop().await;
    assert!(sandbox.socket.exists());
    let call = NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts { output: 5, ..TokenCounts::default() },
        estimate_cost_micro_usd: 7,
        reserve_micro_usd: 7,
        only_alone: false,
    };
    world.store.begin_model_call(&sandbox.run.id, &call).await.unwrap();
    let again = World { cancel: CancellationToken::new(), tracker: TaskTracker::new(), ..world };
    again.start(Setup::new()).await;
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    let calls = again.events(&sandbox.run.id, EventKind::ModelCall).await;
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["estimated"], true);
    again.stop().await;
}

#[tokio::test]
async fn a_door_stays_shut_while_nobody_knows_what_must_be_kept_out_of_the_record() {
    let world = World::new().await;
    world.start(Setup::new()).await;
    let (first, second) = (world.sandbox(run_spec(None)).await, world.sandbox(run_spec(None)).await);
    let options = SqliteConnectOptions::new().filename(world.root.path().join("caisson.db"));
    let mut database = options.connect().await.unwrap();
    sqlx::query("alter table credential rename to away").execute(&mut database).await.unwrap();
    let id = SandboxId::new(1, [200; 10]);
    let directory = world.root.path().join("doors").join(id.as_str());
    std::fs::create_dir(&directory).unwrap();
    let hash = |kind| Token::grant(kind, [200; 32]).hash();
    let new = NewSandbox {
        id: id.clone(),
        session: first.run.session.clone(),
        server: world.server.clone(),
        engine: "test".to_owned(),
        image: "test".to_owned(),
        uid: 1000,
        control: hash(GrantKind::Control),
        agent: hash(GrantKind::Agent),
    };
    world.store.create_sandbox(&new).await.unwrap();
    let socket = directory.join("gateway.sock");
    // The look that has closed the second one's door comes after one that should have opened this one's.
    for other in [&first, &second] {
        assert!(world.store.set_sandbox_state(&other.id, SandboxState::Destroyed).await.unwrap());
        eventually(|| async { (!other.socket.exists()).then_some(()) }).await;
    }
    assert!(!socket.exists());
    sqlx::query("alter table away rename to credential").execute(&mut database).await.unwrap();
    assert!(world.store.set_sandbox_state(&id, SandboxState::Running).await.unwrap());
    eventually(|| async { socket.exists().then_some(()) }).await;
    world.stop().await;
}

#[tokio::test]
async fn a_sandbox_without_a_directory_hinders_no_other() {
    let world = World::new().await;
    let broken = world.sandbox(run_spec(None)).await;
    std::fs::remove_dir(broken.socket.parent().unwrap()).unwrap();
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    world.stop().await;
}

#[tokio::test]
async fn headers_are_bounded_in_number_and_size() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let connect = || UnixStream::connect(&sandbox.socket);
    let many = |count: usize| format!("{NEXT}{}\r\n", "a: b\r\n".repeat(count - 1));
    assert!(raw(&mut connect().await.unwrap(), &many(HEADERS)).await.starts_with("HTTP/1.1 403"));
    assert!(raw(&mut connect().await.unwrap(), &many(HEADERS + 1)).await.starts_with("HTTP/1.1 431"));
    let long = |bytes: usize| {
        let rest = bytes - NEXT.len() - "a: \r\n\r\n".len();
        format!("{NEXT}a: {}\r\n\r\n", "x".repeat(rest))
    };
    let fits = raw(&mut connect().await.unwrap(), &long(HEADER_BYTES)).await;
    assert!(fits.starts_with("HTTP/1.1 403"), "{fits}");
    let over = raw(&mut connect().await.unwrap(), &long(HEADER_BYTES + 1)).await;
    assert!(over.starts_with("HTTP/1.1 431"), "{over}");
    world.stop().await;
}

#[tokio::test]
async fn a_head_that_never_ends_has_its_connection_closed_without_an_answer() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.bounds.header_read = Duration::from_millis(100);
    world.start(setup).await;
    assert_eq!(raw(&mut UnixStream::connect(&sandbox.socket).await.unwrap(), NEXT).await, "");
    world.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_their_turn() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
        assert!(raw(&mut stream, &format!("{NEXT}\r\n")).await.starts_with("HTTP/1.1 403"));
        idle.push(stream);
    }
    let mut late = UnixStream::connect(&sandbox.socket).await.unwrap();
    late.write_all(format!("{NEXT}\r\n").as_bytes()).await.unwrap();
    let mut buffer = [0; 64];
    let early = tokio::time::timeout(Duration::from_millis(100), late.read(&mut buffer)).await;
    assert!(early.is_err());
    drop(idle.pop());
    tokio::time::timeout(PATIENCE, late.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer.starts_with(b"HTTP/1.1 403"));
    world.stop().await;
}

#[tokio::test]
async fn stopping_ends_polls_at_once() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let setup = Setup { bounds: Bounds { long_poll: PATIENCE * 10, ..Bounds::default() }, ..Setup::new() };
    world.start(setup).await;
    let idle = world.tracker.len();
    let poll = sandbox.request(Method::GET, "/inputs?after=0", &sandbox.control).send();
    let stop = async {
        eventually(|| async { (world.tracker.len() > idle).then_some(()) }).await;
        world.stop().await;
    };
    // Ending within the patience is what counts; the request may or may not have been read by then.
    if let (Ok(reply), ()) = tokio::join!(poll, stop) {
        assert_eq!(reply.text().await.unwrap(), r#"{"items":[]}"#);
    }
}

#[tokio::test]
async fn a_door_is_no_way_out_without_a_grant() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    for line in ["CONNECT example.com:443 HTTP/1.1", "GET http://example.com/next HTTP/1.1"] {
        let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
        let answer = raw(&mut stream, &format!("{line}\r\nhost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("grant_refused"), "{answer}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_at_start() {
    let world = World::new().await;
    let mut setup = Setup::new();
    setup.model.base_url = "https://user@model.example.com/".parse().unwrap();
    assert!(matches!(world.try_start(setup).await, Err(GatewayError::Url { .. })));
    let mut setup = Setup::new();
    setup.model.extra_ca_pem =
        Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec());
    assert!(matches!(world.try_start(setup).await, Err(GatewayError::Client { .. })));
    std::fs::write(world.root.path().join("artifacts"), "a file").unwrap();
    assert!(matches!(world.try_start(Setup::new()).await, Err(GatewayError::Artifacts(_))));
    std::fs::remove_file(world.root.path().join("artifacts")).unwrap();
    world.store.close().await.unwrap();
    assert!(matches!(world.try_start(Setup::new()).await, Err(GatewayError::Store(_))));
}
