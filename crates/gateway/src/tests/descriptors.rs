//! Descriptors that a sandbox sends over its door.

use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use http::Method;
use nix::libc::linger;
use nix::sys::socket::{ControlMessage, MsgFlags, SetSockOpt, sendmsg, sockopt};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::model_host::{END, ModelHost, Piece, START, Script, TEXT, piece};
use super::outside::{Outside, setup, tunnel};
use super::support::{OK, PATIENCE, Sandbox, Setup, World, run_spec};
use crate::bounds::CONNECTIONS;

const REQUEST: &[u8] = b"GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
/// How long a descriptor's close waits that nobody relieves, in seconds: longer than an answer takes.
const LINGER_S: i32 = 20;

/// A world whose doors take descriptors, as on a kernel that cannot refuse them.
fn taking(mut setup: Setup) -> Setup {
    setup.bounds.refuse_descriptors = false;
    setup
}

/// A connection whose close waits until its other end goes away.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut full = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let deaf = listener.accept().unwrap().0;
    sockopt::Linger.set(&full, &linger { l_onoff: 1, l_linger: LINGER_S }).unwrap();
    full.set_nonblocking(true).unwrap();
    while full.write(&[0; 1 << 12]).is_ok() {}
    (full, deaf)
}

/// A connection that sent a request and, with it, a descriptor whose close waits: the only one, since the door takes it when this
/// has closed its own.
async fn connection_with(sandbox: &Sandbox, descriptor: TcpStream) -> UnixStream {
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(UnixStream::connect(&sandbox.socket).await.unwrap());
    }
    let stream = StdStream::connect(&sandbox.socket).unwrap();
    assert_eq!(send(&stream, REQUEST, descriptor), Ok(REQUEST.len()));
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

fn send(over: &StdStream, bytes: &[u8], descriptor: impl AsRawFd) -> nix::Result<usize> {
    let sent = [descriptor.as_raw_fd()];
    let message = ControlMessage::ScmRights(&sent);
    let sent = sendmsg::<()>(over.as_raw_fd(), &[IoSlice::new(bytes)], &[message], MsgFlags::empty(), None);
    drop(descriptor);
    sent
}

/// One thread alone runs all of it.
#[tokio::test]
async fn a_descriptor_whose_close_waits_holds_up_no_other_sandbox() {
    let world = World::new().await;
    world.start(taking(Setup::new())).await;
    let (bad, good) = (world.sandbox(run_spec(None)).await, world.sandbox(run_spec(None)).await);
    let (full, deaf) = lingering();
    let mut held = connection_with(&bad, full).await;
    let mut buffer = [0; 64];
    assert!(timeout(Duration::from_millis(500), held.read(&mut buffer)).await.is_err(), "its close waits");
    assert_eq!(good.control(Method::GET, "/next", "").await.status, OK);
    assert!(timeout(Duration::ZERO, held.read(&mut buffer)).await.is_err(), "it waits still");
    drop(deaf);
    timeout(PATIENCE, held.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer.starts_with(b"HTTP/1.1 403"), "{buffer:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_server_stops_while_the_kernel_holds_a_doors_thread() {
    let world = World::new().await;
    let mut setup = taking(Setup::new());
    setup.bounds.grace = Duration::from_millis(10);
    world.start(setup).await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let (full, deaf) = lingering();
    let mut held = connection_with(&sandbox, full).await;
    let waits = timeout(Duration::from_millis(500), held.read(&mut [0; 64])).await;
    assert!(waits.is_err(), "its close waits");
    let stopped = timeout(Duration::from_secs(LINGER_S.unsigned_abs().into()) / 2, world.stop()).await;
    assert!(stopped.is_ok());
    drop(deaf);
}

#[tokio::test]
async fn a_descriptor_comes_to_nobody_where_the_kernel_refuses_them() {
    let world = World::new().await;
    world.start(Setup::new()).await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let stream = StdStream::connect(&sandbox.socket).unwrap();
    let sent = send(&stream, REQUEST, TcpListener::bind("127.0.0.1:0").unwrap());
    let probe = StdStream::pair().unwrap().0;
    let expected =
        if crate::descriptors::refuse(&probe) { Err(nix::errno::Errno::EPERM) } else { Ok(REQUEST.len()) };
    assert_eq!(sent, expected);
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);
    world.stop().await;
}

#[tokio::test]
async fn a_door_that_takes_descriptors_carries_the_same() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let pieces = vec![piece(START), Piece::Gate(std::sync::Arc::clone(&gate)), piece(TEXT), piece(END)];
    let host = ModelHost::start(Script::stream(pieces)).await;
    let world = World::new().await;
    let outside = Outside::start(&world, "127.0.0.1:0", "").await;
    let target = format!("there.example:{}", outside.address.port());
    let mut setup = taking(setup(&[&target], &["127.0.0.1/32"]));
    setup.model.base_url = host.url.clone();
    world.start(setup).await;
    let sandbox = world.sandbox(run_spec(None)).await;
    assert_eq!(sandbox.control(Method::GET, "/next", "").await.status, OK);

    let body = format!(r#"{{"model":"claude-opus-5-5","x":"{}"}}"#, "x".repeat(1 << 20));
    let request = sandbox.request(Method::POST, "/model/v1/messages", &sandbox.agent).body(body.clone());
    let mut reply = request.send().await.unwrap();
    let mut text = Vec::new();
    while text.len() < START.len() {
        text.extend_from_slice(&reply.chunk().await.unwrap().unwrap());
    }
    assert_eq!(text, START.as_bytes(), "a piece comes when it is there");
    gate.notify_one();
    while let Some(more) = reply.chunk().await.unwrap() {
        text.extend_from_slice(&more);
    }
    assert_eq!(text, format!("{START}{TEXT}{END}").as_bytes());
    assert_eq!(host.seen()[0].body, body);

    let mut tool = tunnel(&sandbox, &target).await;
    assert_eq!(tool.say("hello").await, "hello");
    world.stop().await;
    assert_eq!(tool.rest().await.as_deref(), Some(""), "it is cut with the door");
}
