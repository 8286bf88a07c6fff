use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

fn tunnel(target: &str) -> Wanted {
    Wanted { target: Target::parse(target, None).unwrap(), via: Via::Tunnel }
}

fn http(target: &str, method: &str, path: &str) -> Wanted {
    let via = Via::Http { method: method.to_owned(), path: path.to_owned() };
    Wanted { target: Target::parse(target, Some(80)).unwrap(), via }
}

fn https(target: &str, method: &str, path: &str) -> Wanted {
    let via = Via::Https { method: method.to_owned(), path: path.to_owned() };
    Wanted { target: Target::parse(target, Some(443)).unwrap(), via }
}

#[test]
fn a_host_has_one_spelling() {
    for (text, host) in [
        ("Registry.Example.COM.", "registry.example.com"),
        ("a_b-c.example", "a_b-c.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("[2001:DB8:0::1]", "[2001:db8::1]"),
        ("[::ffff:10.0.0.1]", "[::ffff:10.0.0.1]"),
    ] {
        assert_eq!(Host::parse(text).unwrap().to_string(), host);
    }
}

#[test]
fn what_a_resolver_would_take_for_an_address_is_no_host() {
    for text in [
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "127.0.0.01",
        "1.2.3.4.5",
        "0x",
        "x.0X7F",
        "",
        ".",
        "a..b",
        ".a",
        "*",
        "*.a",
        "a b",
        "a/b",
        "a@b",
        "a%00b",
        "[::1",
        "::1",
        "[::1%25lo]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "b\u{fc}cher.example",
        &"a".repeat(64),
        &"a.".repeat(128),
    ] {
        assert!(Host::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_target_has_a_port_that_exists() {
    assert_eq!(Target::parse("[::1]:8080", None).unwrap().to_string(), "[::1]:8080");
    assert_eq!(Target::parse("h.example", Some(80)).unwrap().port, 80);
    for text in ["h", "h:", "h:0", "h:65536", "h:+80", "h:080000", "h:80:80", "h: 80", ":80"] {
        assert!(Target::parse(text, None).is_err(), "{text}");
    }
}

#[test]
fn rules_are_read_and_written_the_same() {
    for text in [
        "registry.example.com:443",
        "*.example.com:443,8443",
        "127.0.0.1:8080",
        "[::1]:8080",
        "http://mirror.example.com/pool/#GET,HEAD",
        "http://mirror.example.com:8080/",
        "http://*.example.com:80,8080/a/b#PROPFIND",
        "https://registry.example.com/team/#GET,HEAD",
        "https://*.example.com:8443/",
        "https://h.example:80/",
        "https://[::1]:8443/",
    ] {
        assert_eq!(rule(text).to_string(), text);
    }
    assert_eq!(rule("example.com").to_string(), "example.com:443");
    assert_eq!(rule("http://example.com").to_string(), "http://example.com/");
    assert_eq!(rule("x.example:8443,443,443").to_string(), "x.example:443,8443");
    assert_eq!(rule("https://x.example:443,443").to_string(), "https://x.example/");
}

#[test]
fn what_is_no_rule_is_refused_with_a_reason() {
    let many = format!("h:{}", (1..=17).map(|port| port.to_string()).collect::<Vec<_>>().join(","));
    let methods = format!(
        "http://h/#{}",
        (b'A'..b'R').map(|b| char::from(b).to_string()).collect::<Vec<_>>().join(",")
    );
    let long = format!("http://h/{}", "x".repeat(RULE_PATH_BYTES));
    let (long_s, methods_s) = (long.replace("http:", "https:"), methods.replace("http:", "https:"));
    let fits = &long_s[..long_s.len() - 1];
    assert_eq!(rule(fits).to_string(), fits);
    for (text, reason) in [
        ("*", "no host name"),
        ("*.127.0.0.1", "behind the star"),
        ("a.*.example", "no host name"),
        ("ftp://example.com/", "nor an http:// or https:// URL"),
        ("HTTPS://example.com/", "nor an http:// or https:// URL"),
        ("https://h:443,8443/", "one port"),
        ("https://h:0/", "port"),
        ("https://u@h/", "user name"),
        ("https://h/../x", "plain prefix"),
        ("https://h/a?b", "plain prefix"),
        ("https://h/#get", "method"),
        ("https://127.1/", "four decimal"),
        (&long_s, "plain prefix"),
        (&methods_s, "method"),
        ("example.com/path", "without http://"),
        ("user@example.com", "user name"),
        ("http://u:p@example.com/", "user name"),
        ("example.com:0", "port"),
        (&many, "16 ports"),
        ("http://h/../x", "plain prefix"),
        ("http://h/%2e%2e/x", "plain prefix"),
        ("http://h/a?b", "plain prefix"),
        (&long, "plain prefix"),
        ("http://h/#get", "method"),
        ("http://h/#GET,", "method"),
        (&methods, "method"),
        ("127.1:80", "four decimal"),
    ] {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_rule_is_for_its_hosts_and_ports_alone() {
    assert!(rule("example.com").allows(&tunnel("example.com:443")));
    for other in ["example.com:80", "www.example.com:443", "xexample.com:443", "example.com.evil:443"] {
        assert!(!rule("example.com").allows(&tunnel(other)), "{other}");
    }
    let below = rule("*.example.com");
    assert!(below.allows(&tunnel("a.example.com:443")) && below.allows(&tunnel("a.b.example.com:443")));
    for other in ["example.com:443", "badexample.com:443", "a.example.com.evil:443"] {
        assert!(!below.allows(&tunnel(other)), "{other}");
    }
}

#[test]
fn an_address_needs_a_rule_of_its_own() {
    assert!(rule("10.0.0.1:443").allows(&tunnel("10.0.0.1:443")));
    assert!(rule("[::1]:443").allows(&tunnel("[0:0::1]:443")));
    assert!(!rule("*.0.example").allows(&tunnel("10.0.0.1:443")));
    assert!(!rule("[::ffff:10.0.0.1]:443").allows(&tunnel("10.0.0.1:443")));
}

#[test]
fn a_tunnel_covers_plain_http_and_plain_http_no_tunnel() {
    assert!(rule("h.example:80").allows(&http("h.example", "POST", "/x")));
    assert!(!rule("http://h.example/").allows(&tunnel("h.example:80")));
}

#[test]
fn an_https_rule_takes_plain_requests_to_its_host_and_is_for_no_tunnel_and_no_plain_way() {
    let secured = |text: &str, wanted: &Wanted| rule(text).secured(wanted);
    let narrow = "https://h.example/team/#GET,HEAD";
    let over_tls = https("h.example:443", "GET", "/team/x");
    assert_eq!(secured(narrow, &http("h.example", "GET", "/team/x")), Some(over_tls.clone()));
    assert_eq!(secured(narrow, &http("h.example:443", "GET", "/team/x")), Some(over_tls.clone()));
    let other_port = secured("https://h.example:8443/", &http("h.example", "GET", "/x"));
    assert_eq!(other_port, Some(https("h.example:8443", "GET", "/x")));
    assert!(secured("https://*.example/", &http("h.example", "GET", "/x")).is_some());
    for (text, wanted) in [
        (narrow, http("h.example", "POST", "/team/x")),
        (narrow, http("h.example", "GET", "/teamwork")),
        (narrow, http("h.example", "GET", "/team/%2e%2e/x")),
        (narrow, http("h.example:8080", "GET", "/team/x")),
        (narrow, http("other.example", "GET", "/team/x")),
        (narrow, tunnel("h.example:443")),
        (narrow, over_tls.clone()),
        ("https://h.example:8443/", http("h.example:443", "GET", "/x")),
        ("http://h.example/", http("h.example", "GET", "/x")),
        ("h.example:443", http("h.example", "GET", "/x")),
    ] {
        assert_eq!(secured(text, &wanted), None, "{text} {wanted:?}");
    }
    assert!(rule(narrow).allows(&over_tls) && rule("h.example:443").allows(&over_tls));
    for other in [tunnel("h.example:443"), http("h.example:443", "GET", "/team/x")] {
        assert!(!rule(narrow).allows(&other), "{other:?}");
    }
    assert!(!rule("http://h.example:443/").allows(&over_tls));
}

#[test]
fn method_and_path_narrow_plain_http() {
    let narrow = rule("http://h.example/pool/#GET,HEAD");
    assert!(narrow.allows(&http("h.example", "GET", "/pool/a/b.deb")));
    for (method, path) in [
        ("POST", "/pool/a"),
        ("get", "/pool/a"),
        ("GET", "/pool"),
        ("GET", "/poolx"),
        ("GET", "/"),
        ("GET", "/pool/../secret"),
        ("GET", "/pool/%2E%2e/secret"),
        ("GET", "/pool/%2fsecret"),
        ("GET", "/pool//secret"),
        ("GET", "/pool/a\\..\\b"),
        ("GET", "/pool/..;/secret"),
        ("GET", "/pool/..;x=1/secret"),
        ("GET", "/pool/..%3b/secret"),
        ("GET", "/pool/..%3B/secret"),
        ("GET", "/pool/a;b"),
        ("GET", "/pool/%252e%252e/secret"),
        ("GET", "/pool/%252fsecret"),
        ("GET", "/pool/100%25"),
        ("GET", "/pool%2f..%2fsecret"),
        ("GET", "/pool/..%2Fsecret"),
        ("GET", "/pool/x%2f..%2f..%2fsecret"),
        ("GET", "/pool/x%2f.%2fy"),
        ("GET", "/pool/x%2f%2Fy"),
        ("GET", "/pool/x%2f/y"),
        ("GET", "/pool%2fx"),
        ("GET", "%2fpool/x"),
    ] {
        assert!(!narrow.allows(&http("h.example", method, path)), "{method} {path}");
    }
    // As npm asks for a package of a scope.
    for path in ["/pool/@scope%2fname", "/pool/@scope%2Fname", "/pool/a%2fb%2fc", "/pool/a%2f", "/pool/a%20b"]
    {
        assert!(narrow.allows(&http("h.example", "GET", path)), "{path}");
    }
    let whole_parts = rule("http://h.example/simple");
    assert!(whole_parts.allows(&http("h.example", "GET", "/simple")));
    assert!(whole_parts.allows(&http("h.example", "GET", "/simple/x")));
    assert!(!whole_parts.allows(&http("h.example", "GET", "/simplex")));
    // Without a prefix there is nothing that a strange path could leave.
    assert!(rule("http://h.example/").allows(&http("h.example", "GET", "/a;b/..%2f%25")));
}

#[test]
fn the_smallest_rule_for_a_wish_allows_it_and_can_be_written_down() {
    for wanted in [
        tunnel("h.example:443"),
        tunnel("[::1]:443"),
        http("h.example:8080", "GET", "/a/b"),
        http("h.example", "GET", "/@scope%2fname"),
        http("h.example", "GET", "/@scope/name"),
        http("h.example", "GET", "/a;b"),
        http("h.example", "GET", "/a%252fb"),
        http("h.example", "GET", "/a#b"),
        https("h.example", "GET", "/a/b"),
        https("h.example:8443", "GET", "/@scope%2fname"),
        http("h.example", "GET", &format!("/a/{}", "b".repeat(RULE_PATH_BYTES - 3))),
        http("h.example", "GET", &format!("/a/{}", "b".repeat(RULE_PATH_BYTES - 2))),
        http("h.example", "post", "/a/b"),
        https("h.example", "M1", "/a/b"),
    ] {
        let smallest = Rule::exactly(&wanted);
        assert!(smallest.allows(&wanted), "{smallest}");
        assert_eq!(rule(&smallest.to_string()), smallest);
    }
    assert!(!Rule::exactly(&http("h.example", "GET", "/a/b")).allows(&http("h.example", "GET", "/a/c")));
    let long = http("h.example", "GET", &format!("/a/{}", "b".repeat(RULE_PATH_BYTES - 2)));
    assert_eq!(Rule::exactly(&long).to_string(), "http://h.example/a/#GET");
    assert_eq!(Rule::exactly(&http("h.example", "post", "/a/b")).to_string(), "http://h.example/a/b");
}

#[test]
fn a_path_is_shortened_to_whole_parts() {
    for (path, bytes, above) in [
        ("/a/bc", 5, "/a/bc"),
        ("/a/bc", 4, "/a/"),
        ("/a/bc", 3, "/a/"),
        ("/a/bc", 2, "/"),
        ("/a/bc", 0, "/"),
        ("*xy", 2, "/"),
        ("/a/\u{e9}\u{e9}", 4, "/a/"),
    ] {
        assert_eq!(path_above(path, bytes), above, "{path} {bytes}");
    }
}

#[test]
fn methods_that_no_rule_can_name_are_any() {
    let of = |names: &[String]| methods_of_rule(names);
    let many = |count: usize| -> Vec<String> { (0..count).map(|n| "A".repeat(n + 1)).collect() };
    assert_eq!(of(&many(RULE_METHODS)), many(RULE_METHODS));
    assert_eq!(of(&many(RULE_METHODS + 1)), [""; 0]);
    assert_eq!(of(&["GET".to_owned(), "get".to_owned()]), [""; 0]);
}

#[test]
fn a_workflow_chooses_presets_by_name_and_rules_by_their_text() {
    assert_eq!("npm".parse(), Ok(Choice::Preset(Preset::Npm)));
    assert_eq!("npm.example".parse(), Ok(Choice::Rule(rule("npm.example"))));
    assert!("no such thing".parse::<Choice>().is_err());
}

#[test]
fn ranges_hold_what_has_their_prefix() {
    let range = |text: &str| text.parse::<AddressRange>().unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(range("10.1.0.0/16").contains(address("10.1.255.255")));
    assert!(!range("10.1.0.0/16").contains(address("10.2.0.0")));
    assert!(range("127.0.0.1").contains(address("127.0.0.1")));
    assert!(!range("127.0.0.1/32").contains(address("127.0.0.2")));
    assert!(
        range("fd00::/8").contains(address("fd12::1")) && !range("fd00::/8").contains(address("fe80::1"))
    );
    assert!(range("::1").contains(address("::1")) && !range("::1").contains(address("::2")));
    assert!(!range("10.0.0.0/8").contains(address("::ffff:10.0.0.1")));
    assert_eq!(range("10.1.2.3/16").to_string(), "10.1.2.3/16");
    for bad in
        ["0.0.0.0/0", "10.0.0.0/7", "10.0.0.0/33", "::/0", "::1/129", "10.0.0.0/", "10.0.0.0/-1", "x", ""]
    {
        assert!(bad.parse::<AddressRange>().is_err(), "{bad}");
    }
}

#[test]
fn paths_have_whole_parts_in_common() {
    for (one, other, shared) in [
        ("/a/b", "/a/b", "/a/b"),
        ("/a/b", "/a/c", "/a/"),
        ("/a/bc", "/a/b", "/a/"),
        ("/a/", "/a/b", "/a/"),
        ("/a", "/b", "/"),
        ("/a/b/c", "/a/x/c", "/a/"),
        ("*", "/b", "/"),
        ("/\u{e9}/x", "/\u{ea}/x", "/"),
    ] {
        assert_eq!(common_path(one, other), shared);
        assert_eq!(common_path(other, one), shared);
    }
}
