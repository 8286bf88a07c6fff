//! What is let through only so that a list can be made of it. Nothing here leaves the machine: a connection to any address leads
//! to a host on loopback, and is written down.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caisson_domain::credential::CredentialKind;
use caisson_domain::event::EventKind;
use futures_util::{FutureExt, future};
use serde_json::json;
use tokio::net::TcpStream;

use super::outside::{Outside, ask, choosing, denials, finish, scripted, setup, tunnel, uses};
use super::support::{Setup, World, run_spec, value};
use crate::EgressCredential;

const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A gateway that learns; names lead to `address`, and connections to `outside`. Beside it where they were to go.
fn learning(
    outside: &Outside,
    rules: &[&str],
    private: &[&str],
    address: &str,
) -> (Setup, Arc<Mutex<Vec<SocketAddr>>>) {
    let dialed = Arc::new(Mutex::new(Vec::new()));
    let (kept, place) = (Arc::clone(&dialed), outside.address);
    let mut setup = setup(rules, private);
    setup.egress.learn = true;
    setup.resolve = scripted(&[&[address]]).0;
    setup.dial = Arc::new(move |address| {
        kept.lock().unwrap().push(address);
        TcpStream::connect(place).boxed()
    });
    (setup, dialed)
}

#[tokio::test]
async fn what_no_rule_has_reaches_public_addresses_counted_and_said_to_be_learned() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (setup, dialed) = learning(&outside, &["ruled.example"], &[], "8.8.8.8");
    world.start(setup).await;
    for line in ["GET http://new.example/a/1", "GET http://new.example/a/2"] {
        assert!(ask(&sandbox, line, "").await.ends_with("ok"), "{line}");
    }
    let mut tool = tunnel(&sandbox, "new.example:8443").await;
    assert_eq!(tool.say("hello").await, "hello");
    drop(tool);
    drop(tunnel(&sandbox, "ruled.example:443").await);
    let to: Vec<String> = dialed.lock().unwrap().iter().map(SocketAddr::to_string).collect();
    assert_eq!(to, ["8.8.8.8:80", "8.8.8.8:80", "8.8.8.8:8443", "8.8.8.8:443"]);
    assert!(denials(&world, &sandbox).await.is_empty());
    let audit = world.audit().await.into_iter().filter(|(action, ..)| action == "egress.allow");
    let allowed: Vec<String> = audit.map(|(_, subject, ..)| subject).collect();
    assert_eq!(allowed, ["new.example:80 learned", "new.example:8443 learned", "ruled.example:443"]);
    finish(&sandbox).await;
    let told = uses(&world, &sandbox).await;
    let of = |host: &str, port: u16| {
        told.iter().find(|item| item["host"] == host && item["port"] == port).cloned().unwrap()
    };
    let learned = of("new.example", 80);
    assert_eq!(
        (&learned["learned"], &learned["path"], &learned["connections"]),
        (&json!(true), &json!("/a/"), &json!(2))
    );
    let learned = of("new.example", 8443);
    assert_eq!((&learned["learned"], &learned["sent_bytes"]), (&json!(true), &json!(5)));
    assert_eq!(of("ruled.example", 443).get("learned"), None);
    world.stop().await;
}

#[tokio::test]
async fn what_is_not_public_stays_refused_while_a_server_learns() {
    for address in [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "100.64.0.1",
        "::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "fd00:ec2::254",
    ] {
        let world = World::new().await;
        let sandbox = world.sandbox(run_spec(None)).await;
        let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
        let (setup, dialed) = learning(&outside, &[], &[], address);
        world.start(setup).await;
        for line in ["CONNECT new.example:443", "GET http://new.example/"] {
            let answer = ask(&sandbox, line, "").await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{address}: {answer}");
            assert!(answer.contains("egress_not_allowed"), "{address}: {answer}");
            // Where a name inside leads is nothing that an agent may ask for.
            assert!(!answer.contains(address), "{address}: {answer}");
        }
        assert!(dialed.lock().unwrap().is_empty(), "{address}");
        let told = denials(&world, &sandbox).await;
        let settings: Vec<_> = told.iter().map(|data| data["setting"].as_str().unwrap()).collect();
        assert_eq!(settings, ["egress.allow"; 2], "no list opens an address that a tool chose: {told:?}");
        assert!(!serde_json::to_string(&told).unwrap().contains(address), "{address}: {told:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn whether_there_is_a_name_inside_is_not_told_while_a_server_learns() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (mut setup, dialed) = learning(&outside, &["ghost.ruled.example"], &[], "10.1.2.3");
    setup.bounds.egress_resolve = Duration::from_millis(50);
    setup.resolve = Arc::new(|name| match name.split('.').next() {
        Some("inner") => future::ready(Ok(vec![IpAddr::from([10, 1, 2, 3])])).boxed(),
        Some("ghost") => future::ready(Err(io::Error::other("no such name"))).boxed(),
        Some("empty") => future::ready(Ok(Vec::new())).boxed(),
        _ => future::pending().boxed(),
    });
    world.start(setup).await;
    for line in ["CONNECT NAME.example:443", "GET http://NAME.example/"] {
        let mut answers = Vec::new();
        for name in ["inner", "ghost", "empty", "later"] {
            let answer = ask(&sandbox, &line.replace("NAME", name), "").await;
            answers.push(answer.replace(name, "NAME"));
        }
        assert!(answers[0].starts_with("HTTP/1.1 403") && answers[0].contains("egress_not_allowed"));
        let without_date = |answer: &str| {
            let lines = answer.lines().filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        for answer in &answers[1..] {
            assert_eq!(without_date(answer), without_date(&answers[0]));
        }
    }
    let told = denials(&world, &sandbox).await;
    let reasons: Vec<_> = told.iter().map(|data| (&data["reason"], &data["setting"])).collect();
    assert_eq!(reasons, [(&json!("not_allowed"), &json!("egress.allow")); 8]);
    assert!(world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await.is_empty());
    // Of a name that a rule has it is told what is the matter.
    let answer = ask(&sandbox, "CONNECT ghost.ruled.example:443", "").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("egress_unresolved"), "{answer}");
    assert!(dialed.lock().unwrap().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn addresses_that_the_operator_opened_need_a_rule_while_a_server_learns() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (mut setup, dialed) = learning(&outside, &["ruled.example:80"], &["10.0.0.0/8"], "10.1.2.3");
    setup.egress.hosts = vec![("named.example".to_owned(), "10.0.0.1".parse().unwrap())];
    setup.resolve = scripted(&[&["10.1.2.3"], &["10.1.2.3", "8.8.8.8"], &["10.1.2.3"]]).0;
    world.start(setup).await;
    let answer = ask(&sandbox, "CONNECT inside.example:443", "").await;
    assert!(answer.contains("egress_not_allowed") && answer.contains("inside.example:443"), "{answer}");
    // Of a name that leads to both, what is public is reached.
    assert!(ask(&sandbox, "GET http://mixed.example/", "").await.ends_with("ok"));
    let answer = ask(&sandbox, "GET http://named.example/x", "").await;
    assert!(answer.contains("egress_not_allowed"), "{answer}");
    assert!(ask(&sandbox, "GET http://ruled.example/", "").await.ends_with("ok"));
    let to: Vec<String> = dialed.lock().unwrap().iter().map(SocketAddr::to_string).collect();
    assert_eq!(to, ["8.8.8.8:80", "10.1.2.3:80"]);
    let told = denials(&world, &sandbox).await;
    let rules: Vec<_> = told.iter().map(|data| (&data["setting"], &data["rule"])).collect();
    let allow = json!("egress.allow");
    let expected = [json!("inside.example:443"), json!("http://named.example/x#GET")];
    assert_eq!(rules, [(&allow, &expected[0]), (&allow, &expected[1])]);
    world.stop().await;
}

#[tokio::test]
async fn literals_workflows_and_bounds_stay_walls_while_a_server_learns() {
    let world = World::new().await;
    let sandbox = world.sandbox(choosing(&["chosen.example", "npm"])).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (mut setup, dialed) = learning(&outside, &["ruled.example"], &[], "8.8.8.8");
    setup.bounds.egress_total = 1;
    world.start(setup).await;
    for (line, code) in [
        ("CONNECT 8.8.8.8:443", "egress_not_allowed"),
        ("GET http://[2606:4700::1]/", "egress_not_allowed"),
        ("CONNECT 127.1:80", "egress_bad_request"),
        ("CONNECT new.example:443", "egress_not_in_workflow"),
        ("CONNECT ruled.example:443", "egress_not_in_workflow"),
        ("CONNECT chosen.example:80", "egress_not_in_workflow"),
        ("TRACE http://chosen.example:443/", "egress_bad_request"),
    ] {
        let answer = ask(&sandbox, line, "").await;
        assert!(answer.contains(code), "{line}: {answer}");
    }
    assert!(dialed.lock().unwrap().is_empty());
    drop(tunnel(&sandbox, "chosen.example:443").await);
    let answer = ask(&sandbox, "CONNECT chosen.example:443", "").await;
    assert!(answer.contains("egress_too_many_connections"), "{answer}");
    assert_eq!(dialed.lock().unwrap().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_tunnel_to_where_the_gateway_speaks_tls_is_told_so_while_a_server_learns() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (setup, dialed) = learning(&outside, &["https://ruled.example/team/"], &[], "8.8.8.8");
    world.start(setup).await;
    let answer = ask(&sandbox, "CONNECT ruled.example:443", "").await;
    assert!(answer.contains("ask for http://ruled.example/team/ without TLS"), "{answer}");
    assert!(dialed.lock().unwrap().is_empty());
    let told = denials(&world, &sandbox).await;
    assert_eq!((told.len(), &told[0]["instead"]), (1, &json!("http://ruled.example/team/")), "{told:?}");
    drop(tunnel(&sandbox, "ruled.example:8443").await);
    world.stop().await;
}

#[tokio::test]
async fn no_credential_goes_where_no_rule_is_while_a_server_learns() {
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (mut setup, _) = learning(&outside, &["http://ruled.example/team/"], &[], "8.8.8.8");
    setup.egress.credentials = vec![EgressCredential {
        url_prefix: "http://new.example/".parse().unwrap(),
        username: None,
        token: "settings-canary-learn".to_owned().into(),
    }];
    world.start(setup).await;
    let host = [("host", "ruled.example")];
    world.add_credential("npm", CredentialKind::RegistryToken, &host, value("registry-canary-learn")).await;
    for line in
        ["GET http://new.example/x", "GET http://ruled.example/else", "GET http://ruled.example/team/x"]
    {
        assert!(ask(&sandbox, line, "").await.ends_with("ok"), "{line}");
    }
    let heard = outside.heard();
    assert!(!heard[0].contains("authorization") && !heard[1].contains("authorization"), "{heard:?}");
    assert!(heard[2].contains("authorization: Bearer registry-canary-learn\r\n"), "the rule's: {heard:?}");
    world.stop().await;
}

#[tokio::test]
async fn what_is_refused_without_learning_is_refused_before_a_name_is_looked_up() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let (mut setup, dialed) = learning(&outside, &["ruled.example"], &[], "8.8.8.8");
    let (resolve, asked) = scripted(&[&["8.8.8.8"]]);
    (setup.resolve, setup.egress.learn) = (resolve, false);
    world.start(setup).await;
    assert!(ask(&sandbox, "CONNECT new.example:443", "").await.contains("egress_not_allowed"));
    assert!(asked.lock().unwrap().is_empty() && dialed.lock().unwrap().is_empty());
    world.stop().await;
}
