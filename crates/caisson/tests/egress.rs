//! The way outside on real parts: tools of the real agent in a real sandbox, hosts on this machine.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::process::ServerSpec;
use testkit::world::{World, WorldSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const END: Duration = Duration::from_mins(1);

testkit::on_every_engine_and_database! {
    tools_reach_what_is_allowed_and_are_told_what_is_not
    a_workflow_that_chose_nothing_reaches_nothing
    a_tools_plain_request_reaches_a_registry_over_tls_with_a_token_that_is_nowhere_inside
}

/// A certificate for `localhost`, of an authority of its own; the key is for tests alone and opens nothing.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../gateway/src/tests/tls");
const TOKEN: &str = "registry-canary-over-tls-4f0a";

/// A host on loopback that says where it was asked.
async fn host() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "the host lives as long as its test's runtime")]
    drop(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..read]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or_default();
            let body = format!("outside says {path}");
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.ok();
        }
    }));
    port
}

/// A scenario in which the agent runs one command and ends.
fn scenario(command: &str) -> String {
    let tool = json!({"name": "Bash", "input": {"command": command, "description": "Look outside"}});
    json!({"egress": {"prompts": [[{"text": "I look.", "tool": tool}, {"text": "Done."}]]}}).to_string()
}

/// What the command printed.
fn printed(events: &[Value]) -> String {
    let results =
        events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    results.filter_map(|event| event["data"]["tool_use_result"]["stdout"].as_str()).collect()
}

async fn run(world: &World, workflow: &str) -> (String, Vec<Value>) {
    let body = json!({"workflow": workflow, "prompt": "Look outside.", "repository": null});
    let id = world.api.submit(&body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    (id, events)
}

fn of_kind<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["kind"] == kind).map(|event| &event["data"]).collect()
}

fn spec(ground: Ground, port: u16, scenarios: Vec<String>) -> WorldSpec {
    let variables = [
        ("EGRESS__ALLOW", format!("allowed.example:{port}")),
        ("EGRESS__HOSTS", "allowed.example=127.0.0.1".to_owned()),
        ("EGRESS__ALLOW_PRIVATE", "127.0.0.1/32".to_owned()),
    ];
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    WorldSpec { scenario: "egress".to_owned(), variables, scenarios, ..WorldSpec::on(ground) }
}

/// What the agent's tool does.
const LOOK: &str = r#"exec 2>&1
curl -sS http://allowed.example:PORT/plain; echo
curl -sS -p http://allowed.example:PORT/tunnel; echo
python3 -c 'import urllib.request as u; print(u.urlopen("http://allowed.example:PORT/python").read().decode())'
curl -sS http://denied.example/secret; echo
curl -sS https://denied.example/; echo "curl ended with $?"
python3 -c 'import urllib.request as u; u.urlopen("https://denied.example/")' | tail -1
curl -sS https://denied.example/; echo
curl -sS http://127.0.0.1:4180/next; echo
curl -sS -x http://127.0.0.1:4180 --noproxy "" http://127.0.0.1:PORT/; echo
curl -sS --noproxy "*" --max-time 5 http://127.0.0.1:PORT/ > /dev/null; echo "own loopback $?"
curl -sS --noproxy "*" --max-time 5 http://192.0.2.1/ > /dev/null; echo "raw address $?"
python3 -c 'import socket; socket.getaddrinfo("allowed.example", 80)' 2>&1 | tail -1"#;

async fn tools_reach_what_is_allowed_and_are_told_what_is_not(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let port = host().await;
    let command = LOOK.replace("PORT", &port.to_string());
    let world = World::start(&parts, spec(ground, port, vec![scenario(&command)])).await.unwrap();
    let (id, events) = run(&world, "bug-fixer").await;
    let printed = printed(&events);
    for wanted in [
        "outside says /plain",
        "outside says /tunnel",
        "outside says /python",
        r#"the rule \"http://denied.example/secret#GET\" in egress.allow"#,
        "curl ended with 56",
        "Tunnel connection failed: 403 Refused by the sandbox: egress_not_allowed",
        r#"{"code":"not_found""#,
        "own loopback 7",
        "raw address 7",
        "socket.gaierror",
    ] {
        assert!(printed.contains(wanted), "{wanted} in:\n{printed}");
    }
    assert!(printed.contains(&format!("the rule \\\"http://127.0.0.1:{port}/#GET\\\"")), "{printed}");

    told(&events, port);

    let output = world.client(&["egress", "suggest", &id, "--json"]).output().unwrap();
    let suggested: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        suggested["allow"],
        json!([
            format!("allowed.example:{port}"),
            "denied.example:443",
            "http://denied.example/secret#GET",
            format!("http://127.0.0.1:{port}/#GET"),
        ]),
        "{suggested}"
    );
}

/// What the events tell of it.
fn told(events: &[Value], port: u16) {
    let denied = of_kind(events, "egress.denied");
    let told: Vec<_> =
        denied.iter().map(|data| (data["rule"].as_str().unwrap(), data["count"].as_u64().unwrap())).collect();
    let address = format!("http://127.0.0.1:{port}/#GET");
    for expected in [
        ("http://denied.example/secret#GET", 1),
        ("denied.example:443", 1),
        ("denied.example:443", 2),
        (address.as_str(), 1),
    ] {
        assert!(told.contains(&expected), "{expected:?} in {told:?}");
    }
    assert_eq!(told.len(), 4, "{told:?}");
    let used: Vec<&Value> =
        of_kind(events, "egress.used").iter().flat_map(|data| data["items"].as_array().unwrap()).collect();
    let sum = |via: &str, field: &str| -> u64 {
        used.iter().filter(|item| item["via"] == via).map(|item| item[field].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("http", "connections"), sum("tunnel", "connections")), (2, 1), "{used:?}");
    assert!(sum("http", "received_bytes") > 40 && sum("tunnel", "sent_bytes") > 40, "{used:?}");
    assert!(used.iter().all(|item| item["host"] == "allowed.example"), "{used:?}");
    assert_eq!(events.last().unwrap()["kind"], "run.finished");
}

async fn a_workflow_that_chose_nothing_reaches_nothing(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let port = host().await;
    let directory = tempfile::tempdir().unwrap();
    let workflow = "---\nname: closed\ndescription: Reaches nothing\npermissionMode: bypassPermissions\n\
                    caisson:\n  egress: []\n---\nLook.\n";
    std::fs::write(directory.path().join("closed.md"), workflow).unwrap();
    let command = format!("curl -sS http://allowed.example:{port}/ 2>&1");
    let mut spec = spec(ground, port, vec![scenario(&command)]);
    spec.variables.push(("WORKFLOWS_DIR".to_owned(), directory.path().display().to_string()));
    let world = World::start(&parts, spec).await.unwrap();
    let (_, events) = run(&world, "closed").await;
    assert!(printed(&events).contains("egress_not_in_workflow"), "{}", printed(&events));
    let denied = of_kind(&events, "egress.denied");
    assert_eq!((denied.len(), &denied[0]["setting"]), (1, &json!("caisson.egress")));
    assert!(of_kind(&events, "egress.used").is_empty());
}

#[test]
fn the_doctor_says_which_preset_came_to_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let parts = Parts {
        docker_host: "unix:///nonexistent/docker.sock".to_owned(),
        agents_dir: directory.path().join("agents"),
        shim: env!("CARGO_BIN_EXE_caisson").into(),
        caisson: env!("CARGO_BIN_EXE_caisson").into(),
    };
    let spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    let doctor = |variables: &[(&str, &str)]| {
        let mut command = spec.command(&["doctor"]);
        let output = command.env("CAISSON_EGRESS__PRESETS", "cargo").envs(variables.iter().copied()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let said = doctor(&[]);
    // As a server takes it.
    let is_egress = |line: &&str| line.split_whitespace().nth(1) == Some("egress");
    let lines: Vec<_> = said.lines().filter(is_egress).collect();
    assert!(lines[0].starts_with("warn") && lines[0].contains("preset cargo: its configuration"), "{said}");
    assert!(lines[1].starts_with("ok") && lines[1].contains("nothing outside"), "{said}");
    let said = doctor(&[("CARGO_REGISTRIES_MIRROR_INDEX", "sparse+https://mirror.example.com/index/")]);
    let line = said.lines().find(is_egress).unwrap();
    assert!(line.starts_with("ok") && line.contains("1 rule"), "{said}");
}

/// A host on loopback that speaks TLS; beside its port what it was sent.
fn secure_host() -> (u16, Arc<Mutex<Vec<String>>>) {
    let certificate = CertificateDer::from_pem_file(format!("{FIXTURES}/leaf.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(format!("{FIXTURES}/leaf.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    // It lives as long as the test's process.
    std::thread::spawn(move || {
        while let Ok((tcp, _)) = listener.accept() {
            let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
            let mut buffer = [0; 4096];
            let Ok(read @ 1..) = tls.read(&mut buffer) else { continue };
            kept.lock().unwrap().push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nover TLS it is").ok();
            tls.conn.send_close_notify();
            tls.flush().ok();
        }
    });
    (port, heard)
}

async fn a_tools_plain_request_reaches_a_registry_over_tls_with_a_token_that_is_nowhere_inside(
    ground: Ground,
) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (port, heard) = secure_host();
    // By the proxy also for a name that has none otherwise.
    let command = format!(
        "exec 2>&1; ask='curl -sS -x http://127.0.0.1:4180 --noproxy x'; $ask http://localhost/team/package; echo; \
         $ask http://localhost/else; echo; $ask https://localhost:{port}/team/package; $ask http://inside.example/; echo; env"
    );
    let mut spec = spec(ground, port, vec![scenario(&command)]);
    spec.variables = [
        ("EGRESS__ALLOW", format!("https://localhost:{port}/team/#GET")),
        ("EGRESS__HOSTS", "localhost=127.0.0.1 inside.example=10.0.0.1".to_owned()),
        ("EGRESS__ALLOW_PRIVATE", "127.0.0.1/32".to_owned()),
        ("EGRESS__EXTRA_CA_FILE", format!("{FIXTURES}/ca.pem")),
        ("EGRESS__LEARN", "true".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    let world = World::start(&parts, spec).await.unwrap();
    let body = json!({"name": "npm", "kind": "registry_token", "settings": {"host": format!("https://localhost:{port}")},
                      "secret": {"value": TOKEN}});
    let added = world.api_with("credentials").unwrap().post("/v1/credentials", &body).await.unwrap();
    assert_eq!(added.status, 201, "{:?}", added.body);
    let (id, events) = run(&world, "bug-fixer").await;
    let printed = printed(&events);
    for wanted in ["over TLS it is", "egress_not_allowed"] {
        assert!(printed.contains(wanted), "{wanted} in:\n{printed}");
    }
    assert_eq!(printed.matches("over TLS it is").count(), 1, "{printed}");
    assert!(!printed.contains("10.0.0.1"), "where a name inside leads: {printed}");
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].starts_with("GET /team/package HTTP/1.1\r\n"), "{heard:?}");
    assert!(heard[0].contains(&format!("authorization: Bearer {TOKEN}\r\n")), "{heard:?}");
    assert!(!serde_json::to_string(&events).unwrap().contains(TOKEN));
    let used: Vec<&Value> =
        of_kind(&events, "egress.used").iter().flat_map(|data| data["items"].as_array().unwrap()).collect();
    let over_tls = used.iter().find(|item| item["via"] == "https").unwrap();
    assert_eq!((&over_tls["path"], over_tls.get("learned")), (&json!("/team/package"), None), "{used:?}");
    let output = world.client(&["egress", "suggest", &id, "--json"]).output().unwrap();
    let suggested: Value = serde_json::from_slice(&output.stdout).unwrap();
    let allow = suggested["allow"].as_array().unwrap();
    assert!(allow.contains(&json!(format!("https://localhost:{port}/team/package#GET"))), "{suggested}");
    assert!(!allow.contains(&json!(format!("localhost:{port}"))), "a rule has it over TLS: {suggested}");
    let instead =
        json!([{"tunnel": format!("localhost:{port}"), "url": format!("http://localhost:{port}/team/")}]);
    assert_eq!(suggested["instead"], instead);
    let without_rule = suggested["without_rule"].as_array().unwrap();
    assert!(without_rule.contains(&json!("http://inside.example/#GET")), "{suggested}");
    assert_eq!(suggested["allow_private"], json!([]), "{suggested}");
    assert!(world.server.log().contains("egress.learn is on"), "the server warns");
    let doctor = world.spec.command(&["doctor"]).output().unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(doctor.contains("egress.learn is on") && doctor.contains("every public host"), "{doctor}");
}
