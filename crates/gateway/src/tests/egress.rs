use caisson_store::AuditFilter;
use serde_json::json;

use super::outside::{Outside, Tool, ask, choosing, denials, finish, head, scripted, setup, tunnel, uses};
use super::support::{Setup, World, run_spec};
use crate::EgressCredential;

const REPLY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nkeep-alive: timeout=5\r\nx-kept: 1\r\n\r\nok";

#[tokio::test]
async fn without_a_rule_nothing_goes_out_and_the_tool_is_told_what_would_let_it() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let answer = ask(&sandbox, "CONNECT example.com:443", "host: example.com:443\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 Refused by the sandbox: egress_not_allowed\r\n"), "{answer}");
    assert!(answer.contains(r#"the rule \"example.com:443\" in egress.allow"#), "{answer}");
    let answer = ask(&sandbox, "GET http://example.com/a/b?c", "host: example.com\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("egress_not_allowed"), "{answer}");
    let told = denials(&world, &sandbox).await;
    assert_eq!(told.len(), 2, "{told:?}");
    let tunnel = &told[0];
    assert_eq!(
        (&tunnel["host"], &tunnel["port"], &tunnel["via"]),
        (&json!("example.com"), &json!(443), &json!("tunnel"))
    );
    assert_eq!((&tunnel["reason"], &tunnel["rule"]), (&json!("not_allowed"), &json!("example.com:443")));
    assert_eq!(told[1]["rule"], "http://example.com/a/b#GET");
    assert!(world.disk_has("egress.deny"), "the audit log has it");
    world.stop().await;
}

#[tokio::test]
async fn only_the_agent_grant_where_a_proxy_expects_it_opens_the_way() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    for field in [
        String::new(),
        format!("authorization: Bearer {}\r\n", sandbox.agent),
        format!("proxy-authorization: Bearer {}\r\n", sandbox.control),
        format!("proxy-authorization: Basic {}\r\n", sandbox.agent),
        format!("proxy-authorization: Bearer {0}\r\nproxy-authorization: Bearer {0}\r\n", sandbox.agent),
    ] {
        let mut tool = Tool::new(&sandbox).await;
        let answer = tool.say(&format!("CONNECT {target} HTTP/1.1\r\n{field}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("grant_refused"), "{field}: {answer}");
    }
    assert!(outside.heard().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_over_both_families_and_they_are_counted() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let four = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let six = Outside::start(&world, "[::1]:0", REPLY).await;
    let (four_port, six_port) = (four.address.port(), six.address.port());
    let mut setup = setup(
        &[&format!("*.example:{four_port},{six_port}"), &format!("[::1]:{six_port}")],
        &["127.0.0.1/32", "::1/128"],
    );
    setup.egress.hosts = vec![("six.example".to_owned(), "::1".parse().unwrap())];
    world.start(setup).await;
    for target in
        [format!("four.example:{four_port}"), format!("SIX.example:{six_port}"), format!("[::1]:{six_port}")]
    {
        let mut tool = tunnel(&sandbox, &target).await;
        assert_eq!(tool.say("hello").await, "hello", "{target}");
        assert_eq!(tool.say("again!").await, "again!", "{target}");
    }
    finish(&sandbox).await;
    let told = uses(&world, &sandbox).await;
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.iter().any(|item| item["host"] == "six.example"), "{told:?}");
    for item in &told {
        let numbers =
            ["connections", "sent_bytes", "received_bytes"].map(|name| item[name].as_u64().unwrap());
        assert_eq!(numbers, [1, 11, 11], "{item}");
    }
    assert!(world.disk_has("egress.allow"), "the audit log has it");
    world.stop().await;
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    use tokio::io::AsyncWriteExt;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("there.example:{}", listener.local_addr().unwrap().port());
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    let mut tool = tunnel(&sandbox, &target).await;
    let (mut outside, _) = listener.accept().await.unwrap();
    tool.0.shutdown().await.unwrap();
    assert_eq!(tokio::io::AsyncReadExt::read(&mut outside, &mut [0; 8]).await.unwrap(), 0);
    outside.write_all(b"late").await.unwrap();
    drop(outside);
    assert_eq!(tool.rest().await.as_deref(), Some("late"));
    world.stop().await;
}

#[tokio::test]
async fn plain_http_is_taken_apart_and_put_together_again() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let port = outside.address.port();
    world.start(setup(&[&format!("http://mirror.example:{port}/pool/#GET,POST")], &["127.0.0.1/32"])).await;
    let fields = format!(
        "host: mirror.example:{port}\r\nauthorization: Bearer own\r\nx-private: 1\r\nconnection: x-private\r\n\
         proxy-connection: keep-alive\r\nupgrade: websocket\r\nexpect: 100-continue\r\n"
    );
    let answer = ask(&sandbox, &format!("GET http://MIRROR.example:{port}/pool/a?b=c"), &fields).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    assert!(answer.contains("x-kept: 1") && !answer.contains("keep-alive: timeout"), "{answer}");
    let heard = outside.heard().remove(0);
    assert!(heard.starts_with("GET /pool/a?b=c HTTP/1.1\r\n"), "{heard}");
    assert!(heard.contains(&format!("host: mirror.example:{port}\r\n")), "{heard}");
    assert!(heard.contains("authorization: Bearer own\r\n") && heard.ends_with("\r\n\r\n"), "{heard}");
    for gone in ["proxy-", "x-private", "upgrade", "expect", "csa_", "content-length", "chunked"] {
        assert!(!heard.contains(gone), "{gone} in {heard}");
    }
    for (line, code) in [
        ("PUT http://mirror.example:PORT/pool/a", "egress_not_allowed"),
        ("GET http://mirror.example:PORT/poolx", "egress_not_allowed"),
        ("GET http://mirror.example:PORT/pool/../etc", "egress_not_allowed"),
        ("GET http://mirror.example:PORT/pool/%2e%2e/etc", "egress_not_allowed"),
        ("CONNECT mirror.example:PORT", "egress_not_allowed"),
    ] {
        let answer = ask(&sandbox, &line.replace("PORT", &port.to_string()), "").await;
        assert!(answer.contains(code), "{line}: {answer}");
    }
    assert_eq!(outside.heard().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_body_passes_with_a_length_and_in_pieces() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    let line = format!("POST http://{target}/x");
    assert!(ask(&sandbox, &line, "content-length: 4\r\n\r\nbody").await.ends_with("ok"));
    let pieces = "transfer-encoding: chunked\r\n\r\n2;name=value\r\nbo\r\n2\r\ndy\r\n0\r\nx-trailer: 1\r\n";
    assert!(ask(&sandbox, &line, pieces).await.ends_with("ok"));
    let heard = outside.heard();
    assert!(heard[0].contains("content-length: 4\r\n") && heard[0].contains("\r\n\r\n"), "{heard:?}");
    assert!(heard[1].contains("transfer-encoding: chunked\r\n"), "{heard:?}");
    assert!(!heard[1].contains("name=value") && !heard[1].contains("x-trailer"), "{heard:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_credential_is_added_to_plain_http_below_its_prefix_and_shown_to_nobody_else() {
    const TOKEN: &str = "egress-canary-55aa0c";
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("npm.example:{}", outside.address.port());
    let mut setup = setup(&[&target], &["127.0.0.1/32"]);
    setup.egress.credentials = vec![EgressCredential {
        url_prefix: format!("http://{target}/team").parse().unwrap(),
        username: None,
        token: TOKEN.to_owned().into(),
    }];
    world.start(setup).await;
    let own = "authorization: Bearer own\r\n";
    let answer = ask(&sandbox, &format!("GET http://{target}/team/package"), own).await;
    assert!(answer.ends_with("ok") && !answer.contains(TOKEN), "{answer}");
    assert!(ask(&sandbox, &format!("GET http://{target}/teamwork"), own).await.ends_with("ok"));
    let refused = ask(&sandbox, &format!("TRACE http://{target}/team/package"), "").await;
    assert!(refused.contains("egress_bad_request"), "{refused}");
    let heard = outside.heard();
    assert!(heard[0].contains(&format!("authorization: Bearer {TOKEN}\r\n")), "{heard:?}");
    assert!(!heard[0].contains("own") && heard[1].contains("Bearer own"), "{heard:?}");
    assert_eq!(heard.len(), 2);
    let audit = world.audit().await;
    let used: Vec<_> = audit.into_iter().filter(|(action, ..)| action == "credential.use").collect();
    let name = Some(format!("http://{target}/team"));
    let host = Some("npm.example".to_owned());
    assert_eq!(used, [("credential.use".to_owned(), "registry".to_owned(), name, host)]);
    world.stop().await;
    assert!(!world.disk_has(TOKEN));
}

#[tokio::test]
async fn nobody_goes_out_unrecorded_however_often_the_record_cannot_be_written() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    let mut setup = setup(&[&target], &["127.0.0.1/32"]);
    setup.bounds.store_hold = std::time::Duration::from_millis(10);
    world.start(setup).await;
    let get = format!("GET http://{target}/a");
    let locked = world.locked().await;
    // The second one finds the record of the first one under way.
    let (one, other) = tokio::join!(ask(&sandbox, &get, ""), ask(&sandbox, &get, ""));
    for answer in [one, other, ask(&sandbox, &get, "").await] {
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("store_unavailable"), "{answer}");
    }
    assert!(outside.heard().is_empty());
    drop(locked);
    for _ in 0..2 {
        assert!(ask(&sandbox, &get, "").await.ends_with("ok"));
    }
    let audit = world.audit().await;
    let allowed: Vec<_> = audit.iter().filter(|(action, ..)| action == "egress.allow").collect();
    assert_eq!((allowed.len(), allowed[0].1.as_str()), (1, target.as_str()));
    assert!(ask(&sandbox, "GET http://other.example/a", "").await.contains("egress_not_allowed"));
    let filter = AuditFilter { run: Some(sandbox.run.id.clone()), ..AuditFilter::default() };
    let of_run = world.store.list_audit(&sandbox.run.project, &filter, None, 100).await.unwrap();
    let told: Vec<_> = of_run
        .iter()
        .filter(|record| record.action.starts_with("egress."))
        .map(|record| {
            assert_eq!(record.session.as_deref(), Some(sandbox.run.session.as_str()));
            (
                record.action.as_str(),
                record.actor.as_str(),
                record.host.as_deref(),
                record.decision.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("egress.deny", "server", Some("other.example"), Some("denied")),
            ("egress.allow", "server", Some("there.example"), Some("allowed")),
        ]
    );
    world.stop().await;
}

#[tokio::test]
async fn a_name_is_resolved_once_and_the_checked_address_is_the_one_connected_to() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let good = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let port = good.address.port();
    // Where a rebinding name leads the second time: the same port, another private address.
    let evil = Outside::start(&world, &format!("127.0.0.2:{port}"), REPLY).await;
    let target = format!("rebind.example:{port}");
    let mut setup = setup(&[&target], &["127.0.0.1/32"]);
    let (resolve, asked) = scripted(&[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.2", "127.0.0.1"]]);
    setup.resolve = resolve;
    world.start(setup).await;
    assert!(ask(&sandbox, &format!("GET http://{target}/1"), "").await.ends_with("ok"));
    assert_eq!(asked.lock().unwrap().len(), 1, "one connection, one lookup");
    let answer = ask(&sandbox, &format!("GET http://{target}/2"), "").await;
    assert!(answer.contains("egress_private_address") && answer.contains("127.0.0.2"), "{answer}");
    // Of a mixed answer only what may be reached is.
    assert!(ask(&sandbox, &format!("GET http://{target}/3"), "").await.ends_with("ok"));
    assert_eq!(asked.lock().unwrap().len(), 3);
    assert_eq!((good.heard().len(), evil.heard().len()), (2, 0));
    let told = denials(&world, &sandbox).await;
    assert_eq!(
        (&told[0]["setting"], &told[0]["rule"]),
        (&json!("egress.allow_private"), &json!("127.0.0.2/32"))
    );
    world.stop().await;
}

#[tokio::test]
async fn names_that_lead_to_private_addresses_are_refused() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let addresses = [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
    ];
    let answers: Vec<Vec<&str>> = addresses.iter().map(|address| vec![*address]).collect();
    let answers: Vec<&[&str]> = answers.iter().map(Vec::as_slice).collect();
    let mut setup = setup(&["evil.example:443"], &[]);
    setup.resolve = scripted(&answers).0;
    world.start(setup).await;
    for address in addresses {
        let answer = ask(&sandbox, "CONNECT evil.example:443", "").await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("egress_private_address"),
            "{address}: {answer}"
        );
    }
    world.stop().await;
}

#[tokio::test]
async fn an_address_needs_a_rule_and_a_private_one_a_range_as_well() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let port = outside.address.port();
    world
        .start(setup(&[&format!("127.0.0.1:{port}"), "127.0.0.2:80", "*.example:80"], &["127.0.0.1/32"]))
        .await;
    assert!(ask(&sandbox, &format!("GET http://127.0.0.1:{port}/"), "").await.ends_with("ok"));
    for (line, code) in [
        ("CONNECT 127.0.0.2:80", "egress_private_address"),
        ("CONNECT 127.0.0.1:80", "egress_not_allowed"),
        ("CONNECT [::ffff:127.0.0.1]:80", "egress_not_allowed"),
        ("CONNECT 8.8.8.8:53", "egress_not_allowed"),
        ("CONNECT 2130706433:80", "egress_bad_request"),
        ("CONNECT 127.1:80", "egress_bad_request"),
        ("GET http://0x7f.0.0.1/", "egress_bad_request"),
        ("GET http://0177.0.0.1/", "egress_bad_request"),
    ] {
        let answer = ask(&sandbox, line, "").await;
        assert!(answer.contains(code), "{line}: {answer}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_workflow_chooses_among_what_the_operator_allows() {
    let world = World::new().await;
    let sandbox = world.sandbox(choosing(&["b.example", "npm"])).await;
    let mut setup = setup(&["a.example"], &[]);
    setup.egress.presets =
        vec![(caisson_domain::egress::Preset::Npm, vec!["npm.example:443".parse().unwrap()])];
    world.start(setup).await;
    for (host, code) in [
        ("a.example", "egress_not_in_workflow"),
        ("b.example", "egress_not_allowed"),
        // Allowed; that it leads to a private address is another matter.
        ("npm.example", "egress_private_address"),
    ] {
        let answer = ask(&sandbox, &format!("CONNECT {host}:443"), "").await;
        assert!(answer.contains(code), "{host}: {answer}");
    }
    let told = denials(&world, &sandbox).await;
    assert_eq!((&told[0]["setting"], &told[0]["rule"]), (&json!("caisson.egress"), &json!("a.example:443")));
    world.stop().await;
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_refused() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    for (line, fields) in [
        ("CONNECT TARGET", "host: other.example\r\n"),
        ("GET http://TARGET/", "host: other.example\r\n"),
        ("GET http://TARGET/", "host: TARGET\r\nhost: other.example\r\n"),
        ("CONNECT TARGET", "content-length: 5\r\n"),
        ("CONNECT user@TARGET", ""),
        ("GET http://other.example@TARGET/", ""),
        ("GET http://TARGET@other.example/", ""),
        ("POST http://TARGET/", "transfer-encoding: xchunked\r\n"),
        ("POST http://TARGET/", "transfer-encoding: chunked, identity\r\n"),
        ("POST http://TARGET/", "content-length: 4\r\ncontent-length: 5\r\n"),
        ("POST http://TARGET/", "content-length: +4\r\n"),
        ("POST http://TARGET/", "content-length : 4\r\n"),
        ("GET http://TARGET/", "x: a\0b\r\n"),
        ("GET http://TARGET/", "x: a\r\n folded: b\r\n"),
        ("GET https://TARGET/", ""),
        ("GET TARGET", ""),
        ("GET  http://TARGET/", ""),
    ] {
        let line = line.replace("TARGET", &target);
        let answer = ask(&sandbox, &line, &fields.replace("TARGET", &target)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{line} {fields:?}: {answer}");
    }
    assert!(outside.heard().is_empty(), "{:?}", outside.heard());
    world.stop().await;
}

#[tokio::test]
async fn what_follows_a_request_is_no_part_of_it() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let outside = Outside::start(&world, "127.0.0.1:0", REPLY).await;
    let target = format!("there.example:{}", outside.address.port());
    world.start(setup(&[&format!("http://{target}/open/")], &["127.0.0.1/32"])).await;
    // A second request behind the first one is judged by itself, and never reaches the host in the first one's shadow.
    let smuggled = format!("GET http://{target}/closed/ HTTP/1.1\r\n\r\n");
    let mut tool = Tool::new(&sandbox).await;
    let first = head(&sandbox, &format!("GET http://{target}/open/"), "content-length: 0\r\n");
    let answer = tool.say(&format!("{first}{smuggled}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Of two lengths the one that every reader must prefer is kept, and the other one is not sent on.
    let two = format!("content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}");
    let answer = ask(&sandbox, &format!("POST http://{target}/open/"), &two).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!outside.heard().last().unwrap().contains("content-length"), "{:?}", outside.heard());
    // A piece whose length is none breaks the request off.
    let broken = "transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n";
    let answer = ask(&sandbox, &format!("POST http://{target}/open/"), broken).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!outside.heard().concat().contains("closed"), "{:?}", outside.heard());
    world.stop().await;
}

#[tokio::test]
async fn heads_of_requests_to_the_outside_are_bounded() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(setup(&["there.example"], &[])).await;
    let long = "x".repeat(crate::bounds::HEADER_BYTES);
    for (line, fields) in [
        ("GET http://there.example/".to_owned(), format!("x: {long}\r\n")),
        (format!("GET http://there.example/{long}"), String::new()),
        ("GET http://there.example/".to_owned(), "a: b\r\n".repeat(crate::bounds::HEADERS)),
    ] {
        let answer = ask(&sandbox, &line, &fields).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "431" | "414"), "{answer}");
    }
    let name = format!("{}.example", "a.".repeat(200));
    let answer = ask(&sandbox, &format!("CONNECT {name}:443"), "").await;
    assert!(answer.contains("egress_bad_request"), "{answer}");
    world.stop().await;
}
