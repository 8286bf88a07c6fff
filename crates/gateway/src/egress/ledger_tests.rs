use super::*;

fn tunnel(host: &str) -> Wanted {
    Wanted { target: Target::parse(&format!("{host}:443"), None).unwrap(), via: Via::Tunnel }
}

fn get(host: &str, path: &str) -> Wanted {
    let via = Via::Http { method: "GET".to_owned(), path: path.to_owned() };
    Wanted { target: Target::parse(host, Some(80)).unwrap(), via }
}

fn not_allowed(wanted: &Wanted) -> Fault {
    Fault::NotAllowed { rule: Rule::exactly(wanted).to_string() }
}

#[test]
fn uses_are_told_as_what_was_moved_since() {
    let mut ledger = Ledger::default();
    let (moved, record) = ledger.begin(&get("a.example", "/x/1"), Ground::Rule).unwrap();
    moved.sent.fetch_add(3, Ordering::Relaxed);
    moved.received.fetch_add(5, Ordering::Relaxed);
    let of = |other: FirstUse| record.is_of(&other);
    assert!(of(ledger.begin(&get("a.example", "/x/2"), Ground::Rule).unwrap().1), "one record for both");
    assert!(!of(Ledger::default().begin(&get("a.example", "/x/2"), Ground::Rule).unwrap().1));
    let items = &ledger.used()[0]["items"];
    assert_eq!(
        items,
        &json!([{"host": "a.example", "port": 80, "via": "http", "method": "GET", "path": "/x/", "connections": 2,
                 "sent_bytes": 3, "received_bytes": 5}])
    );
    assert!(ledger.used().is_empty());
    moved.received.fetch_add(1, Ordering::Relaxed);
    let items = &ledger.used()[0]["items"];
    assert_eq!((items[0]["connections"].as_u64(), items[0]["received_bytes"].as_u64()), (Some(0), Some(1)));
}

#[test]
fn what_is_only_learned_is_told_apart_and_said_so() {
    let mut ledger = Ledger::default();
    let record = ledger.begin(&get("a.example", "/x/1"), Ground::Rule).unwrap().1;
    let learned = ledger.begin(&get("a.example", "/y/1"), Ground::Learning).unwrap().1;
    assert!(!record.is_of(&learned), "a record of its own");
    let items = &ledger.used()[0]["items"];
    assert_eq!((&items[0]["path"], items[0].get("learned")), (&json!("/x/1"), None));
    assert_eq!((&items[1]["path"], &items[1]["learned"]), (&json!("/y/1"), &json!(true)));
}

#[test]
fn what_goes_out_in_plain_and_over_tls_is_told_apart() {
    let mut ledger = Ledger::default();
    let plain = get("a.example:443", "/x/1");
    let via = Via::Https { method: "GET".to_owned(), path: "/y/1".to_owned() };
    let over_tls = Wanted { via, ..plain.clone() };
    let record = ledger.begin(&plain, Ground::Rule).unwrap().1;
    assert!(!record.is_of(&ledger.begin(&over_tls, Ground::Rule).unwrap().1), "a record of its own");
    let items = &ledger.used()[0]["items"];
    let told = |at: usize| (items[at]["via"].as_str().unwrap(), items[at]["path"].as_str().unwrap());
    assert_eq!([told(0), told(1)], [("http", "/x/1"), ("https", "/y/1")]);
    for wanted in [&plain, &over_tls] {
        let told = ledger.deny("", Some(wanted), &not_allowed(wanted));
        let Noted::First(told) = told else { panic!("{told:?}") };
        assert_eq!(
            (told["via"].as_str(), told["rule"].as_str()),
            (Some(wanted.via.as_str()), Some(Rule::exactly(wanted).to_string().as_str()),)
        );
    }
    let other = Via::Https { method: "GET".to_owned(), path: "/y/2".to_owned() };
    let other = Wanted { via: other, ..plain };
    assert_eq!(ledger.deny("", Some(&other), &not_allowed(&other)), Noted::Again);
    assert_eq!(ledger.repeated()[0]["rule"], "https://a.example/y/#GET");
}

#[test]
fn a_denial_is_told_once_and_then_counted_with_the_rule_for_all_of_it() {
    let mut ledger = Ledger::default();
    let one = get("a.example", "/x/1");
    let Noted::First(told) = ledger.deny("", Some(&one), &not_allowed(&one)) else { panic!() };
    assert_eq!((&told["host"], &told["port"], &told["count"]), (&json!("a.example"), &json!(80), &json!(1)));
    assert_eq!(
        (&told["rule"], &told["setting"]),
        (&json!("http://a.example/x/1#GET"), &json!("egress.allow"))
    );
    let other = get("a.example", "/x/2");
    for _ in 0..3 {
        assert_eq!(ledger.deny("", Some(&other), &not_allowed(&other)), Noted::Again);
    }
    let again = ledger.repeated();
    assert_eq!((again.len(), &again[0]["count"]), (1, &json!(3)));
    assert_eq!(again[0]["rule"], "http://a.example/x/#GET");
    assert!(ledger.repeated().is_empty());
}

#[test]
fn a_long_path_is_told_as_the_rule_for_it_has_it() {
    let mut ledger = Ledger::default();
    let path = |bytes: usize| format!("/x/{}", "y".repeat(bytes - 3));
    for (path, told) in
        [(path(RULE_PATH_BYTES), path(RULE_PATH_BYTES)), (path(RULE_PATH_BYTES + 1), "/x/".to_owned())]
    {
        let wanted = get(&format!("h{}.example", path.len()), &path);
        let Noted::First(denied) = ledger.deny("", Some(&wanted), &not_allowed(&wanted)) else { panic!() };
        assert_eq!(denied["path"], told.as_str());
        assert_eq!(denied["rule"], format!("http://{}{told}#GET", wanted.target.host));
        ledger.begin(&wanted, Ground::Rule).unwrap();
        assert_eq!(ledger.used()[0]["items"][0]["path"], told.as_str());
    }
}

#[test]
fn a_refused_tunnel_is_told_with_what_a_rule_has_instead() {
    let mut ledger = Ledger::default();
    let (wanted, other) = (tunnel("r.example"), tunnel("a.example"));
    let url = "http://r.example/team/".to_owned();
    let fault = Fault::NoTunnel { rule: Rule::exactly(&wanted).to_string(), url };
    let Noted::First(told) = ledger.deny("", Some(&wanted), &fault) else { panic!() };
    assert_eq!(
        (&told["instead"], &told["reason"], &told["rule"]),
        (&json!("http://r.example/team/"), &json!("not_allowed"), &json!("r.example:443"))
    );
    assert_eq!(ledger.deny("", Some(&wanted), &fault), Noted::Again);
    assert_eq!(ledger.repeated()[0]["instead"], "http://r.example/team/");
    let Noted::First(told) = ledger.deny("", Some(&other), &not_allowed(&other)) else { panic!() };
    assert_eq!(told.get("instead"), None);
}

/// One that has no room for more kinds of denials, all of them of tunnels that no rule has.
fn full() -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0..EGRESS_DENIALS {
        let wanted = tunnel(&format!("h{number}.example"));
        assert!(matches!(ledger.deny("", Some(&wanted), &not_allowed(&wanted)), Noted::First(_)));
    }
    ledger
}

#[test]
fn beyond_the_kinds_of_denials_the_first_of_each_reason_and_way_has_its_name() {
    let mut ledger = full();
    let mut host = |wanted: &Wanted, fault: &Fault| match ledger.deny("", Some(wanted), fault) {
        Noted::First(told) => told["host"].as_str().map(str::to_owned),
        Noted::Again => None,
    };
    let known = tunnel("h0.example");
    assert_eq!(host(&known, &not_allowed(&known)), None, "its kind has a place");
    let inside = |address| Fault::PrivateAddress { address, what: "a private address" };
    let private = inside([10, 0, 0, 1].into());
    for (wanted, fault) in [
        (tunnel("one.example"), not_allowed(&known)),
        (get("one.example", "/"), not_allowed(&known)),
        (tunnel("one.example"), Fault::NotInWorkflow { rule: String::new() }),
        (tunnel("inside.example"), private.clone()),
        (tunnel("169.254.169.254"), not_allowed(&known)),
        (tunnel("10.0.0.1"), not_allowed(&known)),
        (get("169.254.169.254", "/"), not_allowed(&known)),
    ] {
        assert_eq!(host(&wanted, &fault), Some(wanted.target.host.to_string()), "{wanted:?} {fault:?}");
    }
    let other = tunnel("other.example");
    assert_eq!([host(&other, &not_allowed(&other)), host(&other, &private)], [None, None]);
    assert_eq!(host(&tunnel("8.8.8.8"), &not_allowed(&known)), None, "a public address is no other kind");
    let fault = Fault::BadRequest { reason: "it is strange".to_owned() };
    assert!(matches!(ledger.deny("what", None, &fault), Noted::First(_)));
}

#[test]
fn those_beyond_the_kinds_are_told_by_their_count_once() {
    let mut ledger = full();
    let mut deny =
        |wanted: &Wanted| matches!(ledger.deny("", Some(wanted), &not_allowed(wanted)), Noted::First(_));
    assert_eq!([deny(&tunnel("a.example")), deny(&tunnel("10.0.0.1"))], [true, true]);
    assert_eq!(
        [deny(&tunnel("b.example")), deny(&tunnel("c.example")), deny(&tunnel("10.0.0.2"))],
        [false; 3]
    );
    assert!(ledger.repeated().is_empty());
    let told = ledger.others();
    let subjects: Vec<_> = told.iter().map(|others| others.subject.as_str()).collect();
    assert_eq!(
        subjects,
        ["others tunnel not_allowed (2 more)", "others to a private address tunnel not_allowed (1 more)"]
    );
    let Others { event, .. } = &told[0];
    assert_eq!(
        (&event["host"], &event["via"], &event["reason"], &event["count"]),
        (&Value::Null, &json!("tunnel"), &json!("not_allowed"), &json!(2))
    );
    assert!(ledger.others().is_empty(), "once");
}

#[test]
fn kinds_of_uses_end_and_their_events_are_bounded() {
    let mut ledger = Ledger::default();
    for number in 0..EGRESS_TARGETS {
        ledger.begin(&tunnel(&format!("h{number}.example")), Ground::Rule).unwrap();
    }
    assert_eq!(
        ledger.begin(&tunnel("one-too-many.example"), Ground::Rule).unwrap_err(),
        Fault::TooManyTargets
    );
    assert!(ledger.begin(&tunnel("h0.example"), Ground::Rule).is_ok());
    let told = ledger.used();
    assert_eq!(told.len(), EGRESS_TARGETS.div_ceil(EGRESS_USED_ITEMS));
    assert!(told.iter().all(|event| event["items"].as_array().unwrap().len() <= EGRESS_USED_ITEMS));
}

#[test]
fn what_cannot_be_read_is_told_without_what_could_hide_in_it() {
    let mut ledger = Ledger::default();
    let asked = format!("evil\u{7}\n{}", "x".repeat(1000));
    let fault = Fault::BadRequest { reason: "it is strange".to_owned() };
    let Noted::First(told) = ledger.deny(&asked, None, &fault) else { panic!() };
    let host = told["host"].as_str().unwrap();
    assert!(host.starts_with("evilx") && host.len() == EXCERPT_BYTES, "{host}");
    assert_eq!((&told["port"], &told["rule"]), (&Value::Null, &Value::Null));
}
