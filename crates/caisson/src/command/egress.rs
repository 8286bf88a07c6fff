//! `caisson egress suggest`: from what a run used and was denied to the smallest list of rules that has all of it.

use std::collections::{BTreeMap, BTreeSet};

use caisson_domain::egress::{
    Host, HostPattern, METHOD_BYTES, RULE_PORTS, RULES, Rule, Scope, Target, Via, Wanted, common_path,
    methods_of_rule,
};
use serde_json::{Value, json};

use super::{DONE, client, print, print_json};
use crate::cli::One;
use crate::render::clean;

/// Reasons of denials that a rule would have avoided, and of those behind which nobody looked whether there is one.
const BY_RULE: [&str; 4] = ["not_allowed", "not_in_workflow", "private_address", "too_many_targets"];

/// `caisson egress suggest`.
///
/// # Errors
/// The server refuses, or is not there.
pub(crate) async fn suggest(flags: One) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_run(flags.run.as_deref()).await?;
    let mut learned = Learned::default();
    for event in client.events(&id, 0).await? {
        learned.observe(&event.kind, &event.data);
    }
    if flags.client.json {
        let instead =
            learned.instead.iter().map(|(tunnel, url)| json!({"tunnel": tunnel.to_string(), "url": url}));
        print_json(&json!({
            "run": id, "allow": learned.all.rules(), "allow_private": learned.private,
            "without_rule": learned.unruled.rules(), "in_workflow": learned.unchosen.rules(),
            "instead": instead.collect::<Vec<_>>(), "unnamed": learned.unnamed,
        }))?;
    } else {
        print(&told(&id, &learned));
    }
    Ok(DONE)
}

/// A block for the configuration, and behind it in comments what to look at in it, and what needs no rule.
fn told(id: &str, learned: &Learned) -> String {
    let (allow, private) = (learned.all.rules(), &learned.private);
    let quoted = |text: &String| Value::from(clean(text)).to_string();
    let list = |name: &str, texts: &mut dyn Iterator<Item = &String>| -> String {
        let texts: String = texts.map(|text| ["\n    ", &quoted(text), ","].concat()).collect();
        format!("{name} = [{texts}\n]")
    };
    let mut lines = Vec::new();
    if allow.is_empty() && private.is_empty() {
        lines.push(format!("# run {id} used nothing outside and was denied nothing that a rule would allow"));
    } else {
        lines.push(format!("# what run {id} used and was denied; look before you allow it\n[egress]"));
        lines.push(list("allow", &mut allow.iter()));
    }
    if !private.is_empty() {
        lines.push(list("allow_private", &mut private.iter()));
    }
    if allow.len() > RULES {
        let count = allow.len();
        lines.push(format!("# egress.allow takes {RULES} rules and these are {count}: `*.` before a domain allows all hosts in it"));
    }
    if learned.unnamed > 0 {
        let count = learned.unnamed;
        lines.push(format!("# {count} denials more are not in the list: their hosts were not kept; allow these, and run it again"));
    }
    let unruled: Vec<String> = learned.unruled.rules().iter().map(quoted).collect();
    if !unruled.is_empty() {
        lines.push(format!(
            "# no rule has these yet; an agent that was turned asks for its own hosts, too: {}",
            unruled.join(", ")
        ));
    }
    let unchosen: Vec<String> = learned.unchosen.rules().iter().map(quoted).collect();
    if !unchosen.is_empty() {
        let unchosen = unchosen.join(", ");
        lines.push(format!("# `caisson.egress` of the run's workflow has to name these as well: {unchosen}"));
    }
    lines.extend(learned.instead.iter().map(|(tunnel, url)| {
        let url = quoted(url);
        format!("# a tunnel to {tunnel} was asked for, where a rule has the server speak TLS; point the tool at {url}")
    }));
    lines.join("\n")
}

/// Methods, and the path that all requests have in common.
type Requests = (BTreeSet<String>, String);

/// What a run's events say of its way outside.
#[derive(Debug, Default)]
struct Learned {
    /// All that it used, and was denied for want of a rule.
    all: Places,
    /// That part of it for which no rule is there: let through since the server learns, or denied.
    unruled: Places,
    /// That part of it which the operator allows, and which the run's workflow did not choose.
    unchosen: Places,
    /// Addresses that are not public, to which a name of a rule led.
    private: BTreeSet<String>,
    /// Denials of which the number alone is known.
    unnamed: u64,
    /// Tunnels that were denied where a rule has plain requests go on over TLS, and what to ask for.
    instead: BTreeSet<(Target, String)>,
}

/// Places outside, by the way in which they were asked for.
#[derive(Debug, Default)]
struct Places {
    /// Hosts with the ports of their tunnels.
    tunnels: BTreeMap<Host, BTreeSet<u16>>,
    /// Plain HTTP, by the target.
    http: BTreeMap<Target, Requests>,
    /// What the server sent over TLS, by the target.
    https: BTreeMap<Target, Requests>,
}

impl Learned {
    fn observe(&mut self, kind: &str, data: &Value) {
        match kind {
            "egress.used" => {
                for item in data["items"].as_array().into_iter().flatten() {
                    self.note(item, item["learned"] == true);
                }
            }
            "egress.denied" if data["reason"].as_str().is_some_and(|reason| BY_RULE.contains(&reason)) => {
                if let Some(url) = data["instead"].as_str() {
                    // A rule for the tunnel would undo the one that is there.
                    self.instead.extend(target(data).map(|target| (target, url.to_owned())));
                    return;
                }
                if data["host"].is_null() {
                    self.unnamed = self.unnamed.saturating_add(data["count"].as_u64().unwrap_or(1));
                    return;
                }
                self.note(data, data["reason"] == "not_allowed");
                if data["reason"] == "not_in_workflow" {
                    self.unchosen.note(data);
                }
                if data["setting"] == "egress.allow_private" {
                    self.private.extend(data["rule"].as_str().map(str::to_owned));
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, item: &Value, is_unruled: bool) {
        self.all.note(item);
        if is_unruled {
            self.unruled.note(item);
        }
    }
}

fn target(item: &Value) -> Option<Target> {
    let host = item["host"].as_str().and_then(|host| Host::parse(host).ok())?;
    let port = item["port"].as_u64().and_then(|port| u16::try_from(port).ok())?;
    Some(Target { host, port })
}

impl Places {
    fn note(&mut self, item: &Value) {
        let Some(Target { host, port }) = target(item) else { return };
        match item["method"].as_str() {
            None => drop(self.tunnels.entry(host).or_default().insert(port)),
            Some(method) if method.len() <= METHOD_BYTES => {
                let path = item["path"].as_str().unwrap_or("/");
                let places = if item["via"] == "https" { &mut self.https } else { &mut self.http };
                let entry = places.entry(Target { host, port });
                let (methods, common) = entry.or_insert_with(|| (BTreeSet::new(), path.to_owned()));
                methods.insert(method.to_owned());
                *common = common_path(common, path);
            }
            Some(_) => {}
        }
    }

    /// One rule for each host's tunnels (of more ports than one may have, some), one for each place of plain HTTP that no tunnel covers, and one for each place that the
    /// server spoke TLS to, which no tunnel covers: it is the rule that has the server do so.
    fn rules(&self) -> Vec<String> {
        let of_ports = |(host, ports): (&Host, &BTreeSet<u16>)| -> Vec<Rule> {
            let ports: Vec<u16> = ports.iter().copied().collect();
            let rule = |ports: &[u16]| Rule {
                host: HostPattern::Exactly(host.clone()),
                ports: ports.to_vec(),
                scope: Scope::Tunnel,
            };
            ports.chunks(RULE_PORTS).map(rule).collect()
        };
        let tunnels = self.tunnels.iter().flat_map(of_ports);
        let covered = |target: &Target| {
            self.tunnels.get(&target.host).is_some_and(|ports| ports.contains(&target.port))
        };
        let http = self.http.iter().filter(|(target, _)| !covered(target)).map(|(target, requests)| {
            of_requests(target, requests, |method, path| Via::Http { method, path })
        });
        let https = self.https.iter().map(|(target, requests)| {
            of_requests(target, requests, |method, path| Via::Https { method, path })
        });
        tunnels.chain(http).chain(https).map(|rule| rule.to_string()).collect()
    }
}

/// The smallest rule that has all the requests.
fn of_requests(target: &Target, (methods, path): &Requests, via: impl FnOnce(String, String) -> Via) -> Rule {
    let via = via(String::new(), path.clone());
    let mut rule = Rule::exactly(&Wanted { target: target.clone(), via });
    match &mut rule.scope {
        Scope::Tunnel => {}
        Scope::Http { methods: named, .. } | Scope::Https { methods: named, .. } => {
            *named = methods_of_rule(methods);
        }
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(events: &[(&str, Value)]) -> Learned {
        let mut learned = Learned::default();
        for (kind, data) in events {
            learned.observe(kind, data);
        }
        learned
    }

    #[test]
    fn the_list_is_the_smallest_that_has_all_of_it() {
        let http = |host: &str, method: &str, path: &str| json!({"host": host, "port": 80, "via": "http", "method": method, "path": path});
        let tunnel =
            |host: &str, port: u16| json!({"host": host, "port": port, "via": "tunnel", "method": null});
        let https = |host: &str, port: u16, method: &str, path: &str| json!({"host": host, "port": port, "via": "https", "method": method, "path": path});
        let denied = |mut item: Value, reason: &str, setting: &str, rule: &str| {
            item["reason"] = json!(reason);
            item["setting"] = json!(setting);
            item["rule"] = json!(rule);
            ("egress.denied", item)
        };
        let mut instead = tunnel("b.example", 443);
        instead["instead"] = json!("http://b.example/t/");
        let learned = learned(&[
            ("egress.used", json!({"items": [tunnel("a.example", 443), http("b.example", "GET", "/x/1")]})),
            ("egress.used", json!({"items": [tunnel("a.example", 443), http("b.example", "HEAD", "/x/2")]})),
            denied(tunnel("a.example", 8443), "not_allowed", "egress.allow", "a.example:8443"),
            denied(tunnel("c.example", 80), "not_in_workflow", "caisson.egress", "c.example:80"),
            denied(http("c.example", "GET", "/y"), "not_allowed", "egress.allow", "http://c.example/y#GET"),
            denied(tunnel("d.example", 443), "private_address", "egress.allow_private", "10.0.0.1/32"),
            (
                "egress.used",
                json!({"items": [https("b.example", 443, "GET", "/t/1"), https("a.example", 443, "GET", "/x")]}),
            ),
            denied(
                https("b.example", 443, "POST", "/t/2"),
                "private_address",
                "egress.allow_private",
                "10.0.0.2/32",
            ),
            denied(
                https("g.example", 8443, "GET", "/"),
                "not_in_workflow",
                "caisson.egress",
                "https://g.example:8443/#GET",
            ),
            denied(instead, "not_allowed", "egress.allow", "b.example:443"),
            denied(tunnel("e.example", 443), "host_mismatch", "", ""),
            (
                "egress.denied",
                json!({"host": null, "port": null, "via": "tunnel", "reason": "not_allowed", "count": 3}),
            ),
            ("note", tunnel("f.example", 443)),
        ]);
        assert_eq!(
            learned.all.rules(),
            [
                "a.example:443,8443",
                "c.example:80",
                "d.example:443",
                "http://b.example/x/#GET,HEAD",
                "https://a.example/x#GET",
                "https://b.example/t/#GET,POST",
                "https://g.example:8443/#GET",
            ]
        );
        assert_eq!(learned.private.iter().collect::<Vec<_>>(), ["10.0.0.1/32", "10.0.0.2/32"]);
        assert_eq!(learned.unruled.rules(), ["a.example:8443", "http://c.example/y#GET"]);
        assert_eq!(learned.unchosen.rules(), ["c.example:80", "https://g.example:8443/#GET"]);
        for rule in learned.all.rules() {
            assert!(rule.parse::<Rule>().is_ok(), "{rule}");
        }
        let text = told("run_1", &learned);
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["egress"]["allow"].as_array().unwrap().len(), 7, "{text}");
        assert!(text.contains("\n# no rule has these yet; an agent that was turned asks for its own hosts, too: \"a.example:8443\", "), "{text}");
        assert!(text.contains("\n# `caisson.egress` of the run's workflow has to name these as well: \"c.example:80\", \"https:"), "{text}");
        assert!(
            text.contains("a tunnel to b.example:443") && text.contains("at \"http://b.example/t/\""),
            "{text}"
        );
    }

    #[test]
    fn a_tunnel_that_a_rule_makes_needless_is_no_proposal() {
        let denied = json!({"host": "r.example", "port": 443, "via": "tunnel", "method": null, "reason": "not_allowed",
                            "setting": "egress.allow", "rule": "r.example:443", "instead": "http://r.example/team/"});
        let learned = learned(&[("egress.denied", denied)]);
        assert!(learned.all.rules().is_empty() && learned.unruled.rules().is_empty(), "{learned:?}");
        let text = told("run_1", &learned);
        assert!(text.starts_with("# run run_1 used nothing"), "{text}");
        assert!(text.ends_with("point the tool at \"http://r.example/team/\""), "{text}");
        assert_eq!(text.parse::<toml::Table>().unwrap().len(), 0, "comments alone: {text}");
    }

    #[test]
    fn what_no_rule_has_is_in_the_list_and_named_by_the_rule_that_it_lacks() {
        let item = |host: &str, path: &str, learned: Value| json!({"host": host, "port": 80, "via": "http", "method": "GET", "path": path, "learned": learned});
        let items = [
            item("new.example", "/a/1", json!(true)),
            item("new.example", "/a/2", json!(true)),
            item("old.example", "/b", Value::Null),
            json!({"host": "cdn.example", "port": 8443, "via": "tunnel", "method": null, "learned": true}),
            // The same host has a rule for another place.
            item("old.example", "/c", json!(true)),
        ];
        let mut inside = item("inside.example", "/", Value::Null);
        inside["reason"] = json!("not_allowed");
        let learned = learned(&[("egress.used", json!({"items": items})), ("egress.denied", inside)]);
        assert_eq!(
            learned.all.rules(),
            [
                "cdn.example:8443",
                "http://inside.example/#GET",
                "http://new.example/a/#GET",
                "http://old.example/#GET"
            ]
        );
        assert_eq!(
            learned.unruled.rules(),
            [
                "cdn.example:8443",
                "http://inside.example/#GET",
                "http://new.example/a/#GET",
                "http://old.example/c#GET"
            ]
        );
        assert!(learned.private.is_empty() && learned.unchosen.rules().is_empty());
    }

    #[test]
    fn what_no_one_rule_can_have_is_in_rules_that_the_server_takes() {
        let item = |host: &str, port: usize, method: Option<&str>| {
            let via = method.map_or("tunnel", |_| "http");
            json!({"host": host, "port": port, "via": via, "method": method, "path": "/a/b"})
        };
        let mut items: Vec<Value> = (1..=RULE_PORTS + 1).map(|port| item("p.example", port, None)).collect();
        let methods: Vec<String> = (1..=17).map(|length| "M".repeat(length)).collect();
        items.extend(methods.iter().map(|method| item("m.example", 80, Some(method))));
        items.push(item("l.example", 80, Some("post")));
        let found = learned(&[("egress.used", json!({"items": items}))]);
        let rules = found.all.rules();
        let first: Vec<String> = (1..=RULE_PORTS).map(|port| port.to_string()).collect();
        let first = format!("p.example:{}", first.join(","));
        assert_eq!(rules, [&first, "p.example:17", "http://l.example/a/b", "http://m.example/a/b"]);
        assert!(rules.iter().all(|rule| rule.parse::<Rule>().is_ok()), "{rules:?}");

        let more = |count: usize| {
            let items: Vec<Value> = (0..count).map(|n| item(&format!("h{n}.example"), 443, None)).collect();
            told("run_1", &learned(&[("egress.used", json!({"items": items}))]))
        };
        assert!(!more(RULES).contains("takes 256 rules"));
        assert!(more(RULES + 1).contains("\n# egress.allow takes 256 rules and these are 257: "));
    }

    #[test]
    fn denials_whose_hosts_were_not_kept_are_counted() {
        let others = |reason: &str, count: u64| {
            let data = json!({"host": null, "port": null, "via": "tunnel", "reason": reason, "count": count});
            ("egress.denied", data)
        };
        let late = json!({"host": "late.example", "port": 443, "via": "tunnel", "method": null, "reason": "too_many_targets"});
        let learned = learned(&[
            others("not_allowed", 3),
            others("private_address", 4),
            others("host_mismatch", 5),
            ("egress.denied", late),
        ]);
        assert_eq!((learned.unnamed, learned.all.rules()), (7, vec!["late.example:443".to_owned()]));
        let text = told("run_1", &learned);
        assert!(text.contains("\n# 7 denials more are not in the list: "), "{text}");
        assert_eq!(text.parse::<toml::Table>().unwrap()["egress"]["allow"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_run_that_wanted_nothing_needs_nothing() {
        let learned = learned(&[("run.finished", json!({}))]);
        assert!(told("run_1", &learned).starts_with("# run run_1 used nothing"));
    }
}
