//! `caisson egress suggest`: from what a run used and was denied to the smallest list of rules that has all of it.

use std::collections::{BTreeMap, BTreeSet};

use caisson_domain::egress::{
    Host, HostPattern, METHOD_BYTES, Rule, Scope, Target, Via, Wanted, common_path,
};
use serde_json::{Value, json};

use super::{DONE, client, print, print_json};
use crate::cli::One;
use crate::render::clean;

/// Reasons of denials that a rule would have avoided.
const BY_RULE: [&str; 3] = ["not_allowed", "not_in_workflow", "private_address"];

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
    let (allow, private) = (learned.rules(), &learned.private);
    let unruled: Vec<String> = learned.unruled.iter().map(Target::to_string).collect();
    if flags.client.json {
        let all = json!({"run": id, "allow": allow, "allow_private": private, "learned": unruled});
        print_json(&all)?;
    } else {
        print(&told(&id, &allow, private));
        if !unruled.is_empty() {
            print(&format!(
                "# no rule has these yet, and they were tried only since the server learns: {}",
                unruled.join(", ")
            ));
        }
    }
    Ok(DONE)
}

fn told(id: &str, allow: &[String], private: &BTreeSet<String>) -> String {
    if allow.is_empty() && private.is_empty() {
        return format!("# run {id} used nothing outside and was denied nothing that a rule would allow");
    }
    let list = |texts: &mut dyn Iterator<Item = &String>| -> String {
        texts.map(|text| ["\n    ", &Value::from(clean(text)).to_string(), ","].concat()).collect()
    };
    let mut out =
        format!("# all that run {id} used and was denied; look before you allow it\n[egress]\nallow = [");
    out.push_str(&list(&mut allow.iter()));
    out.push_str("\n]");
    if !private.is_empty() {
        out.push_str("\nallow_private = [");
        out.push_str(&list(&mut private.iter()));
        out.push_str("\n]");
    }
    out
}

/// Methods, and the path that all requests have in common.
type Requests = (BTreeSet<String>, String);

/// What a run's events say of its way outside.
#[derive(Debug, Default)]
struct Learned {
    /// Hosts with the ports of their tunnels.
    tunnels: BTreeMap<Host, BTreeSet<u16>>,
    /// Plain HTTP, by the target.
    http: BTreeMap<Target, Requests>,
    /// What the server sent over TLS, by the target.
    https: BTreeMap<Target, Requests>,
    private: BTreeSet<String>,
    /// Targets that were let through only since the server learns.
    unruled: BTreeSet<Target>,
}

impl Learned {
    fn observe(&mut self, kind: &str, data: &Value) {
        match kind {
            "egress.used" => {
                for item in data["items"].as_array().into_iter().flatten() {
                    self.note(item);
                }
            }
            "egress.denied" if data["reason"].as_str().is_some_and(|reason| BY_RULE.contains(&reason)) => {
                self.note(data);
                if data["setting"] == "egress.allow_private" {
                    self.private.extend(data["rule"].as_str().map(str::to_owned));
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, item: &Value) {
        let host = item["host"].as_str().and_then(|host| Host::parse(host).ok());
        let port = item["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let (Some(host), Some(port)) = (host, port) else { return };
        if item["learned"] == true {
            self.unruled.insert(Target { host: host.clone(), port });
        }
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

    /// One rule for each host's tunnels, one for each place of plain HTTP that no tunnel covers, and one for each place that the
    /// server spoke TLS to, which no tunnel covers: it is the rule that has the server do so.
    fn rules(&self) -> Vec<String> {
        let tunnels = self.tunnels.iter().map(|(host, ports)| Rule {
            host: HostPattern::Exactly(host.clone()),
            ports: ports.iter().copied().collect(),
            scope: Scope::Tunnel,
        });
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
            *named = methods.iter().cloned().collect();
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
            denied(tunnel("e.example", 443), "host_mismatch", "", ""),
            ("egress.denied", json!({"host": null, "port": null, "reason": "others", "count": 3})),
            ("note", tunnel("f.example", 443)),
        ]);
        assert_eq!(
            learned.rules(),
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
        assert!(learned.unruled.is_empty());
        for rule in learned.rules() {
            assert!(rule.parse::<Rule>().is_ok(), "{rule}");
        }
        let text = told("run_1", &learned.rules(), &learned.private);
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["egress"]["allow"].as_array().unwrap().len(), 7, "{text}");
    }

    #[test]
    fn what_was_let_through_for_learning_is_in_the_list_and_named() {
        let item = |host: &str, path: &str, learned: Value| json!({"host": host, "port": 80, "via": "http", "method": "GET", "path": path, "learned": learned});
        let items = [
            item("new.example", "/a/1", json!(true)),
            item("new.example", "/a/2", json!(true)),
            item("old.example", "/b", Value::Null),
            json!({"host": "cdn.example", "port": 8443, "via": "tunnel", "method": null, "learned": true}),
        ];
        let learned = learned(&[("egress.used", json!({"items": items}))]);
        assert_eq!(
            learned.rules(),
            ["cdn.example:8443", "http://new.example/a/#GET", "http://old.example/b#GET"]
        );
        let unruled: Vec<String> = learned.unruled.iter().map(Target::to_string).collect();
        assert_eq!(unruled, ["cdn.example:8443", "new.example:80"]);
    }

    #[test]
    fn a_run_that_wanted_nothing_needs_nothing() {
        let learned = learned(&[("run.finished", json!({}))]);
        assert!(told("run_1", &learned.rules(), &learned.private).starts_with("# run run_1 used nothing"));
    }
}
