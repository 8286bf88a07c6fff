use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::run::RunStatus;
use caisson_store::Finish;
use futures_util::FutureExt;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::outside::{Outside, Tool, ask, denials, finish, head, setup, tunnel, uses};
use super::support::{Setup, World, eventually, run_spec};
use crate::bounds::{Bounds, EGRESS_ADDRESSES, EGRESS_CONNECTIONS, EGRESS_DENIALS};

const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SHORT: Duration = Duration::from_millis(100);

async fn world(bounds: Bounds) -> (World, super::support::Sandbox, Outside, String) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    world.start(Setup { bounds, ..setup(&[&target], &["127.0.0.1/32"]) }).await;
    (world, sandbox, outside, target)
}

fn reasons(told: &[serde_json::Value]) -> Vec<&str> {
    told.iter().map(|event| event["reason"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn connections_at_once_end_and_a_closed_one_makes_room() {
    let (world, sandbox, _outside, target) = world(Bounds::default()).await;
    let mut open = Vec::new();
    for _ in 0..EGRESS_CONNECTIONS {
        open.push(tunnel(&sandbox, &target).await);
    }
    let line = format!("CONNECT {target}");
    let answer = ask(&sandbox, &line, "").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("egress_too_many_at_once"), "{answer}");
    drop(open.pop());
    eventually(|| async {
        let mut tool = Tool::new(&sandbox).await;
        tool.say(&head(&sandbox, &line, "")).await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    assert_eq!(reasons(&denials(&world, &sandbox).await), ["too_many_at_once"]);
    world.stop().await;
}

#[tokio::test]
async fn plain_requests_give_their_place_back() {
    let (world, sandbox, outside, target) = world(Bounds::default()).await;
    for _ in 0..EGRESS_CONNECTIONS * 2 {
        assert!(ask(&sandbox, &format!("GET http://{target}/"), "").await.ends_with("ok"));
    }
    assert_eq!(outside.heard().len(), EGRESS_CONNECTIONS * 2);
    world.stop().await;
}

#[tokio::test]
async fn only_so_many_addresses_of_a_name_are_tried() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = |host: &str| format!("{host}.example:{}", outside.address.port());
    let mut setup = setup(&[&target("*")], &["127.0.0.0/8"]);
    setup.resolve = Arc::new(|name| {
        // Nobody listens at the others.
        let dead = if name == "last.example" { EGRESS_ADDRESSES - 1 } else { EGRESS_ADDRESSES };
        let dead = (0..dead).map(|number| IpAddr::from([127, 0, 1, u8::try_from(number).unwrap()]));
        let all: Vec<IpAddr> = dead.chain([IpAddr::from([127, 0, 0, 1])]).collect();
        async { Ok(all) }.boxed()
    });
    world.start(setup).await;
    assert!(ask(&sandbox, &format!("GET http://{}/", target("last")), "").await.ends_with("ok"));
    let answer = ask(&sandbox, &format!("GET http://{}/", target("behind")), "").await;
    assert!(answer.contains("egress_unreachable"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn what_a_long_connection_moves_is_told_while_it_is_open() {
    let bounds = Bounds { egress_check: SHORT, egress_told_first: SHORT, ..Bounds::default() };
    let (world, sandbox, _outside, target) = world(bounds).await;
    let mut tool = tunnel(&sandbox, &target).await;
    assert_eq!(tool.say("hello").await, "hello");
    let sent = async || {
        let told = uses(&world, &sandbox).await;
        told.iter().map(|item| item["sent_bytes"].as_u64().unwrap()).sum::<u64>()
    };
    // What is told first may hold nothing of it yet.
    eventually(|| async { (sent().await == 5).then_some(()) }).await;
    assert_eq!(uses(&world, &sandbox).await[0]["connections"], 1);
    assert_eq!(tool.say("on").await, "on");
    finish(&sandbox).await;
    let all = uses(&world, &sandbox).await;
    let sent: u64 = all.iter().map(|item| item["sent_bytes"].as_u64().unwrap()).sum();
    assert_eq!(sent, 7, "{all:?}");
    world.stop().await;
}

#[tokio::test]
async fn connections_in_all_end() {
    let (world, sandbox, outside, target) = world(Bounds { egress_total: 2, ..Bounds::default() }).await;
    let line = format!("GET http://{target}/");
    for _ in 0..2 {
        assert!(ask(&sandbox, &line, "").await.ends_with("ok"));
    }
    let answer = ask(&sandbox, &line, "").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("egress_too_many_connections"), "{answer}");
    assert_eq!(outside.heard().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn bytes_sent_end_in_tunnels_and_in_requests() {
    let (world, sandbox, outside, target) =
        world(Bounds { egress_sent_bytes: 2000, ..Bounds::default() }).await;
    let line = format!("POST http://{target}/");
    let answer = ask(&sandbox, &line, &format!("content-length: 3000\r\n\r\n{}", "x".repeat(3000))).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("egress_too_much_sent"), "{answer}");
    let answer = ask(&sandbox, &format!("CONNECT {target}"), "").await;
    assert!(answer.contains("egress_too_much_sent"), "{answer}");
    assert!(!outside.heard().concat().contains("xxx"), "{:?}", outside.heard());
    world.stop().await;

    let (world, sandbox, _outside, target) =
        self::world(Bounds { egress_sent_bytes: 2000, ..Bounds::default() }).await;
    let mut tool = tunnel(&sandbox, &target).await;
    assert_eq!(tool.say(&"x".repeat(2000)).await.len(), 2000);
    assert_eq!(tool.say("x").await, "", "the tunnel is cut");
    eventually(|| async { (reasons(&denials(&world, &sandbox).await) == ["too_much_sent"]).then_some(()) })
        .await;
    finish(&sandbox).await;
    assert_eq!(uses(&world, &sandbox).await[0]["sent_bytes"], 2000);
    world.stop().await;
}

#[tokio::test]
async fn bytes_received_end() {
    let (world, sandbox, _outside, target) =
        world(Bounds { egress_received_bytes: 10, ..Bounds::default() }).await;
    let mut tool = tunnel(&sandbox, &target).await;
    assert_eq!(tool.say("0123456789").await, "0123456789");
    assert_eq!(tool.say("x").await, "");
    let answer = ask(&sandbox, &format!("GET http://{target}/"), "").await;
    assert!(answer.contains("egress_too_much_received"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn a_restarted_server_goes_on_with_what_the_run_has_had() {
    let bounds = || Bounds { egress_total: 2, egress_sent_bytes: 20, ..Bounds::default() };
    let (world, sandbox, _outside, target) = world(bounds()).await;
    assert_eq!(tunnel(&sandbox, &target).await.say("0123456789").await, "0123456789");
    world.stop().await;
    let again = World { cancel: CancellationToken::new(), tracker: TaskTracker::new(), ..world };
    let outside = Outside::start(&again, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    again.start(Setup { bounds: bounds(), ..setup(&[&target], &["127.0.0.1/32"]) }).await;
    let mut tool = tunnel(&sandbox, &target).await;
    assert_eq!(tool.say("0123456789").await, "0123456789");
    assert_eq!(tool.say("x").await, "", "ten bytes were sent before");
    let answer = ask(&sandbox, &format!("CONNECT {target}"), "").await;
    assert!(answer.contains("egress_too_many_connections"), "{answer}");
    again.stop().await;
}

#[tokio::test]
async fn silence_ends_a_tunnel_and_a_request() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("there.example:{}", silent.local_addr().unwrap().port());
    let bounds = Bounds { egress_idle: SHORT, ..Bounds::default() };
    world.start(Setup { bounds, ..setup(&[&target], &["127.0.0.1/32"]) }).await;
    assert_eq!(tunnel(&sandbox, &target).await.hear().await, "");
    let answer = ask(&sandbox, &format!("GET http://{target}/"), "").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("egress_idle"), "{answer}");
    let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((&told[0]["upstream"], &told[0]["kind"]), (&json!("egress"), &json!("egress_idle")));
    world.stop().await;
}

#[tokio::test]
async fn what_moves_is_not_idle() {
    let (world, sandbox, _outside, target) =
        world(Bounds { egress_idle: SHORT * 30, ..Bounds::default() }).await;
    let mut tool = tunnel(&sandbox, &target).await;
    for _ in 0..35 {
        tokio::time::sleep(SHORT).await;
        assert_eq!(tool.say("x").await, "x");
    }
    world.stop().await;
}

/// A host whose backlog is full: it lets whoever comes wait.
async fn full_host() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..16 {
        let Ok(stream) = tokio::time::timeout(SHORT * 5, TcpStream::connect(address)).await else {
            return (listener, waiting);
        };
        waiting.push(stream.unwrap());
    }
    panic!("the backlog takes everything");
}

#[tokio::test]
async fn connecting_and_resolving_have_their_time_and_their_errors() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let (full, _waiting) = full_host().await;
    let target = format!("full.example:{}", full.local_addr().unwrap().port());
    let bounds = Bounds { egress_connect: SHORT, ..Bounds::default() };
    world.start(Setup { bounds, ..setup(&[&target], &["127.0.0.1/32"]) }).await;
    let answer = ask(&sandbox, &format!("CONNECT {target}"), "").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("egress_connect_timeout"), "{answer}");
    world.stop().await;

    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let bounds = Bounds { egress_resolve: SHORT, ..Bounds::default() };
    let mut setup = Setup { bounds, ..setup(&["*.example:1"], &["127.0.0.1/32"]) };
    setup.egress.hosts = vec![("nobody.example".to_owned(), "127.0.0.1".parse().unwrap())];
    setup.resolve = Arc::new(|name| match name.as_str() {
        "slow.example" => std::future::pending().boxed(),
        "empty.example" => async { Ok(Vec::new()) }.boxed(),
        _ => async { Err(io::Error::other("no such name")) }.boxed(),
    });
    world.start(setup).await;
    for (host, status, code) in [
        ("slow", "504", "egress_resolve_timeout"),
        ("empty", "502", "egress_unresolved"),
        ("missing", "502", "egress_unresolved"),
        ("nobody", "502", "egress_unreachable"),
    ] {
        let answer = ask(&sandbox, &format!("CONNECT {host}.example:1"), "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code), "{answer}");
    }
    assert!(denials(&world, &sandbox).await.is_empty(), "nothing was denied");
    world.stop().await;
}

#[tokio::test]
async fn what_answers_in_no_http_is_an_upstream_failure() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", "SSH-2.0-nothing\r\n\r\n").await;
    let target = format!("there.example:{}", outside.address.port());
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    let answer = ask(&sandbox, &format!("GET http://{target}/"), "").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("egress_broken"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn the_outcome_of_a_run_cuts_its_way_outside_and_tells_the_rest() {
    let (world, sandbox, _outside, target) = world(Bounds::default()).await;
    let mut tool = tunnel(&sandbox, &target).await;
    assert_eq!(tool.say("hello").await, "hello");
    for _ in 0..3 {
        ask(&sandbox, "CONNECT denied.example:443", "").await;
    }
    assert_eq!(denials(&world, &sandbox).await.len(), 1, "told once, then counted");
    finish(&sandbox).await;
    assert_eq!(tool.hear().await, "");
    let told = denials(&world, &sandbox).await;
    assert_eq!(told.iter().map(|event| event["count"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(uses(&world, &sandbox).await.len(), 1);
    let answer = ask(&sandbox, &format!("CONNECT {target}"), "").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("egress_run_over"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn a_denial_behind_many_others_is_told_and_audited_by_its_name_and_those_that_are_not_by_their_count() {
    let (world, sandbox, _outside, target) = world(Bounds::default()).await;
    assert_eq!(tunnel(&sandbox, &target).await.say("hello").await, "hello");
    for number in 0..=EGRESS_DENIALS {
        ask(&sandbox, &format!("CONNECT n{number}.example:443"), "").await;
    }
    for line in ["CONNECT evil.example:443", "CONNECT 169.254.169.254:80", "GET http://evil.example/"] {
        assert!(ask(&sandbox, line, "").await.contains("egress_not_allowed"), "{line}");
    }
    let hosts = |told: &[serde_json::Value]| -> Vec<String> {
        told[EGRESS_DENIALS..].iter().map(|event| event["host"].to_string()).collect()
    };
    let first = [r#""n200.example""#, r#""169.254.169.254""#, r#""evil.example""#];
    assert_eq!(hosts(&denials(&world, &sandbox).await), first);
    finish(&sandbox).await;
    let told = denials(&world, &sandbox).await;
    assert_eq!(hosts(&told)[first.len()..], ["null"], "evil.example by a tunnel is one of the others");
    assert_eq!(told.last().unwrap()["count"], 1);
    let records: Vec<_> =
        world.audit().await.into_iter().filter(|record| record.0 == "egress.deny").collect();
    let subjects: Vec<&str> = records.iter().map(|record| record.1.as_str()).collect();
    assert_eq!(
        subjects[EGRESS_DENIALS..],
        [
            "n200.example:443 not_allowed",
            "169.254.169.254:80 not_allowed",
            "evil.example:80 not_allowed",
            "others tunnel not_allowed (1 more)",
        ]
    );
    assert_eq!((records[201].3.as_deref(), records[203].3.as_deref()), (Some("169.254.169.254"), None));
    world.stop().await;
}

#[tokio::test]
async fn a_run_that_ends_without_a_word_loses_its_tunnels_too() {
    let (world, sandbox, _outside, target) = world(Bounds { egress_check: SHORT, ..Bounds::default() }).await;
    let mut tool = tunnel(&sandbox, &target).await;
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(world.store.finish(&sandbox.run.id, sandbox.epoch, &finish).await.unwrap());
    assert_eq!(tool.hear().await, "");
    let answer = ask(&sandbox, &format!("CONNECT {target}"), "").await;
    assert!(answer.contains("no_run"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn a_stopping_server_gives_tunnels_their_grace_and_no_more() {
    let (world, sandbox, _outside, target) = world(Bounds { grace: SHORT, ..Bounds::default() }).await;
    let mut tool = tunnel(&sandbox, &target).await;
    tool.0.write_all(b"hello").await.unwrap();
    assert_eq!(tool.hear().await, "hello");
    world.stop().await;
    assert_eq!(tool.hear().await, "");
    assert_eq!(uses(&world, &sandbox).await[0]["received_bytes"], 5);
}
