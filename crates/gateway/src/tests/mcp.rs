//! MCP servers of the workflow: who reaches which, with what, and what comes back.

use caisson_domain::credential::CredentialKind;
use caisson_domain::event::EventKind;
use caisson_domain::run::RunSpec;
use caisson_store::{Actor, AuditFilter};
use http::Method;
use serde_json::{Value, json};

use super::model_host::{ModelHost, Piece, Script, piece};
use super::outside::scripted;
use super::support::{OK, Reply, Sandbox, Setup, World, fetch, run_spec, value};

const SECRET: &str = "mcp-canary-7b1e40c93d";
pub(super) const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// A run whose workflow has the server `notes` at this URL, and a program.
pub(super) fn naming(url: &str) -> RunSpec {
    let mut spec = run_spec(None);
    let servers = json!({"notes": {"type": "http", "url": url}, "here": {"command": "serve"}});
    spec.workflow.mcp_servers = servers.as_object().unwrap().clone();
    spec
}

/// A gateway that lets workflows name these hosts, to these private ranges; names are resolved to 127.0.0.1.
pub(super) fn setup(allow: &[&str], private: &[&str]) -> Setup {
    let mut setup = Setup::new();
    setup.mcp.allow = allow.iter().map(|text| text.parse().unwrap()).collect();
    setup.mcp.allow_private = private.iter().map(|text| text.parse().unwrap()).collect();
    setup.resolve = scripted(&[&["127.0.0.1"]]).0;
    setup
}

/// The URL by which a workflow names the host.
pub(super) fn url_of(host: &ModelHost) -> String {
    format!("http://notes.example:{}/base/mcp", host.url.port().unwrap())
}

/// A world in which the workflow's server answers with these scripts.
pub(super) async fn world_with(
    scripts: Vec<Script>,
    change: impl FnOnce(&mut Setup),
) -> (World, Sandbox, ModelHost) {
    let host = ModelHost::start_with(scripts).await;
    let world = World::new().await;
    world.unlock().await;
    let sandbox = world.sandbox(naming(&url_of(&host))).await;
    let mut setup = setup(&[&format!("notes.example:{}", host.url.port().unwrap())], &["127.0.0.1/32"]);
    change(&mut setup);
    world.start(setup).await;
    (world, sandbox, host)
}

async fn world(scripts: Vec<Script>) -> (World, Sandbox, ModelHost) {
    world_with(scripts, |_| {}).await
}

pub(super) async fn call(sandbox: &Sandbox) -> Reply {
    sandbox.agent(Method::POST, "/mcp/notes", CALL).await
}

fn answer() -> Script {
    Script::json(200, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}")
}

async fn denials(world: &World, sandbox: &Sandbox) -> Vec<Value> {
    world.events(&sandbox.run.id, EventKind::McpDenied).await
}

#[tokio::test]
async fn only_what_the_protocol_needs_goes_to_the_server_and_comes_back() {
    let mut script = answer();
    script.headers.extend([
        ("mcp-session-id", "s-1"),
        ("set-cookie", "a=b"),
        ("www-authenticate", "Bearer resource_metadata=\"http://evil.example/\""),
        ("location", "http://evil.example/"),
        ("x-other", "1"),
    ]);
    let (world, sandbox, host) = world(vec![script]).await;
    let request = sandbox.request(Method::POST, "/mcp/notes", &sandbox.agent).body(CALL);
    let request = request
        .header("cookie", "own=1")
        .header("x-api-key", "own")
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json")
        .header("mcp-session-id", "s-0")
        .header("mcp-protocol-version", "2025-11-25")
        .header("last-event-id", "7");
    let reply = fetch(request).await;
    assert_eq!((reply.status, reply.json()["id"].as_i64()), (OK, Some(1)));
    assert_eq!(reply.headers["mcp-session-id"], "s-1");
    for gone in ["set-cookie", "www-authenticate", "location", "x-other"] {
        assert!(!reply.headers.contains_key(gone), "{gone}");
    }
    let seen = host.seen().remove(0);
    assert_eq!((seen.uri.as_str(), &seen.body[..]), ("/base/mcp", CALL.as_bytes()));
    assert_eq!(seen.headers["host"], format!("notes.example:{}", host.url.port().unwrap()).as_str());
    for (name, sent) in [
        ("accept", "application/json, text/event-stream"),
        ("content-type", "application/json"),
        ("accept-encoding", "identity"),
        ("mcp-session-id", "s-0"),
        ("mcp-protocol-version", "2025-11-25"),
        ("last-event-id", "7"),
        ("content-length", "46"),
    ] {
        assert_eq!(seen.headers[name], sent, "{name}");
    }
    for gone in ["authorization", "cookie", "x-api-key", "transfer-encoding"] {
        assert!(!seen.headers.contains_key(gone), "{gone} was sent");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_tool_that_the_workflow_takes_away_is_refused_to_every_program_of_the_sandbox() {
    let host = ModelHost::start_with(vec![answer()]).await;
    let world = World::new().await;
    let mut spec = naming(&url_of(&host));
    spec.workflow.disallowed_tools = vec!["Bash".to_owned(), "mcp__notes__delete".to_owned()];
    let sandbox = world.sandbox(spec).await;
    world.start(setup(&[&format!("notes.example:{}", host.url.port().unwrap())], &["127.0.0.1/32"])).await;
    let message = |tool: &str| {
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}).to_string()
    };
    let send = async |body: String| {
        let request = sandbox.request(Method::POST, "/mcp/notes", &sandbox.agent).body(body);
        fetch(request.header("content-type", "application/json; charset=utf-7")).await
    };
    let refused = send(message("delete")).await;
    assert_eq!((refused.status, refused.code().as_str()), (424, "mcp_tool_denied"));
    let named_twice = message("list").replace("\"name\"", "\"name\":\"delete\",\"name\"");
    let unclear = send(named_twice).await;
    assert_eq!((unclear.status, unclear.code().as_str()), (400, "mcp_unclear"));
    assert!(host.seen().is_empty(), "the server is not asked");
    assert_eq!(send(message("list")).await.status, OK);
    let seen = host.seen().remove(0);
    assert_eq!(
        (&seen.body[..], &seen.headers["content-type"]),
        (message("list").as_bytes(), &"application/json".parse().unwrap())
    );
    let reply = sandbox.agent(Method::DELETE, "/mcp/notes", message("delete")).await;
    assert_eq!(reply.status, OK, "what has no message is not read");
    assert!(host.seen().last().unwrap().body.is_empty(), "and none is sent");
    let told = denials(&world, &sandbox).await;
    assert_eq!(told.iter().map(|data| &data["reason"]).collect::<Vec<_>>(), ["tool_denied", "unclear"]);
    world.stop().await;
}

#[tokio::test]
async fn a_credential_is_added_for_its_own_server_and_rotation_and_removal_act_on_the_next_request() {
    let (world, sandbox, host) = world(vec![answer()]).await;
    let sent = async || {
        assert_eq!(call(&sandbox).await.status, OK);
        host.seen().last().unwrap().headers.get("x-notes").map(|value| value.to_str().unwrap().to_owned())
    };
    let kind = CredentialKind::McpHeader;
    let url = url_of(&host);
    // Another path of the same host, and another scheme, are other servers.
    for (name, other) in [("deeper", format!("{url}/x")), ("tls", url.replace("http:", "https:"))] {
        world
            .add_credential(name, kind, &[("url", &other), ("header", "X-Notes")], value("not-for-it"))
            .await;
    }
    assert_eq!(sent().await, None);
    let credential =
        world.add_credential("notes", kind, &[("url", &url), ("header", "X-Notes")], value(SECRET)).await;
    assert_eq!(sent().await.as_deref(), Some(SECRET));
    let rotated = format!("rotated-{SECRET}");
    world.rotate(&credential, &value(&rotated)).await;
    assert_eq!(sent().await, Some(rotated));
    let used = world.store.credentials_used(&sandbox.run.id).await.unwrap();
    assert_eq!((used.len(), used[0].credential.as_str()), (1, credential.id.as_str()));
    let known = world.store.credential(&credential.project, &credential.id).await.unwrap().unwrap();
    assert!(known.last_used_at_ms.is_some());
    let audit = world.audit().await;
    let recorded: Vec<_> = audit.iter().filter(|(action, ..)| action == "credential.use").collect();
    assert_eq!(recorded.len(), 1, "once for each run, purpose, credential and host: {recorded:?}");
    assert_eq!((recorded[0].1.as_str(), recorded[0].3.as_deref()), ("mcp", Some("notes.example")));
    let filter = AuditFilter { run: Some(sandbox.run.id.clone()), ..AuditFilter::default() };
    let of_run = world.store.list_audit(&sandbox.run.project, &filter, None, 100).await.unwrap();
    let allowed: Vec<_> = of_run.iter().filter(|record| record.action == "mcp.allow").collect();
    let told = |text: &Option<String>| text.clone().unwrap_or_default();
    assert_eq!(allowed.len(), 1, "{allowed:?}");
    assert!(allowed[0].subject.starts_with("notes notes.example:"), "{allowed:?}");
    assert_eq!(
        [
            told(&allowed[0].session),
            told(&allowed[0].host),
            told(&allowed[0].decision),
            allowed[0].actor.clone()
        ],
        [sandbox.run.session.as_str(), "notes.example", "allowed", "server"]
    );
    assert!(
        world.store.remove_credential(&credential.project, &credential.id, &Actor::Operator).await.unwrap()
    );
    assert_eq!(sent().await, None);
    world.stop().await;
    world.store.close().await.unwrap();
    assert!(!world.disk_has(SECRET));
}

#[tokio::test]
async fn a_server_that_sends_its_credential_back_is_read_without_it() {
    let mut script = Script::json(200, &format!("{{\"you\":\"sent {SECRET}\""));
    script.pieces.push(piece(&SECRET[..5]));
    script.pieces.push(piece(&format!("{}}} end", &SECRET[5..])));
    script.headers.push(("mcp-session-id", SECRET));
    let (world, sandbox, host) = world(vec![script]).await;
    let settings = [("url", url_of(&host)), ("header", "Authorization".to_owned())];
    let settings: Vec<_> = settings.iter().map(|(name, text)| (*name, text.as_str())).collect();
    world
        .add_credential("notes", CredentialKind::McpHeader, &settings, value(&format!("Bearer {SECRET}")))
        .await;
    let reply = call(&sandbox).await;
    assert_eq!(host.seen()[0].headers["authorization"], format!("Bearer {SECRET}").as_str());
    assert!(reply.text().contains("sent [redacted]") && reply.text().ends_with(" end"), "{}", reply.text());
    assert!(!reply.text().contains(&SECRET[5..]), "{}", reply.text());
    assert!(!reply.headers.contains_key("mcp-session-id"));
    world.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_open_before_a_rotation_shows_nothing_of_the_new_credential() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let rotated = format!("rotated-{SECRET}");
    let late = piece(&format!("data: {rotated}\n\n"));
    let pieces = vec![piece("data: open\n\n"), Piece::Gate(std::sync::Arc::clone(&gate)), late];
    let (world, sandbox, host) = world(vec![Script::stream(pieces), answer()]).await;
    let url = url_of(&host);
    let settings = [("url", url.as_str()), ("header", "X-Notes")];
    let credential =
        world.add_credential("notes", CredentialKind::McpHeader, &settings, value("of-before")).await;
    let request = sandbox.request(Method::GET, "/mcp/notes", &sandbox.agent);
    let mut open = request.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(open.chunk().await.unwrap().unwrap(), "data: open\n\n");
    world.rotate(&credential, &value(&rotated)).await;
    assert_eq!(call(&sandbox).await.status, OK);
    assert_eq!(host.seen()[1].headers["x-notes"], rotated.as_str());
    gate.notify_one();
    assert_eq!(open.text().await.unwrap(), "data: [redacted]\n\n");
    world.stop().await;
}

#[tokio::test]
async fn only_the_agents_grant_opens_it() {
    let (world, sandbox, host) = world(vec![answer()]).await;
    let other = world.sandbox(naming(&url_of(&host))).await;
    for grant in [sandbox.control.as_str(), other.agent.as_str(), "made-up"] {
        let reply = fetch(sandbox.request(Method::POST, "/mcp/notes", grant).body(CALL)).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "grant_refused"));
    }
    let bare = sandbox.client().post("http://gateway/mcp/notes").body(CALL);
    assert_eq!(fetch(bare).await.code(), "grant_refused");
    assert!(host.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn only_the_runs_own_servers_are_there_and_nothing_below_them() {
    let (world, sandbox, host) = world(vec![answer()]).await;
    let mut elsewhere = naming(&url_of(&host)).workflow;
    elsewhere.name = "elsewhere".to_owned();
    elsewhere.mcp_servers.insert("secret".to_owned(), elsewhere.mcp_servers["notes"].clone());
    world.store.put_workflow(&sandbox.run.project, &elsewhere).await.unwrap();
    for (method, path, status, code) in [
        (Method::POST, "/mcp/secret", 404, "mcp_unknown"),
        (Method::POST, "/mcp/here", 404, "mcp_unknown"),
        (Method::POST, "/mcp/notes/", 404, "mcp_path"),
        (Method::POST, "/mcp/notes/admin", 404, "mcp_path"),
        (Method::POST, "/mcp/notes%2f..%2fadmin", 404, "mcp_path"),
        (Method::POST, "/mcp/notes?to=elsewhere", 404, "mcp_path"),
        (Method::POST, "/mcp/", 404, "mcp_path"),
        (Method::PUT, "/mcp/notes", 405, "mcp_method"),
        (Method::HEAD, "/mcp/notes", 405, ""),
    ] {
        let reply = sandbox.agent(method, path, CALL).await;
        let found = if reply.body.is_empty() { String::new() } else { reply.code() };
        assert_eq!((reply.status, found.as_str()), (status, code), "{path}");
    }
    assert!(host.seen().is_empty());
    let told: Vec<_> = denials(&world, &sandbox).await.iter().map(|data| data["reason"].clone()).collect();
    assert_eq!(told, ["unknown", "path", "method"], "each kind is told once");
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(sandbox.agent(method, "/mcp/notes", "").await.status, OK);
    }
    assert_eq!(host.seen().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn a_host_that_the_operator_does_not_allow_is_not_reached() {
    let (world, sandbox, host) = world_with(vec![answer()], |setup| setup.mcp.allow.clear()).await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (424, "mcp_not_allowed"));
    let rule = format!("notes.example:{}", host.url.port().unwrap());
    assert!(reply.text().contains(&format!("\\\"{rule}\\\" in mcp.allow")), "{}", reply.text());
    call(&sandbox).await;
    let told = denials(&world, &sandbox).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["server"], &told[0]["rule"], &told[0]["setting"]),
        (&json!("notes"), &json!(rule), &json!("mcp.allow"))
    );
    assert!(host.seen().is_empty());
    let records = world.store.audit_after(0).await.unwrap();
    let denied = records.iter().find(|record| record.action == "mcp.deny").unwrap();
    assert!(denied.subject.ends_with("not_allowed"), "{denied:?}");
    assert_eq!((denied.actor.as_str(), denied.run.as_deref()), ("server", Some(sandbox.run.id.as_str())));
    assert_eq!((denied.decision.as_deref(), denied.host.is_some()), (Some("denied"), true), "{denied:?}");
    world.stop().await;
}

#[tokio::test]
async fn an_address_inside_is_refused_as_a_name_and_as_itself() {
    let (world, sandbox, host) = world_with(vec![answer()], |setup| {
        setup.mcp.allow_private.clear();
        setup.mcp.allow.push("127.0.0.1:1".parse().unwrap());
    })
    .await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (424, "mcp_private_address"), "{}", reply.text());
    let literal = world.sandbox(naming("http://127.1:1/")).await;
    let reply = fetch(literal.request(Method::POST, "/mcp/notes", &literal.agent).body(CALL)).await;
    assert_eq!(reply.code(), "mcp_private_address", "{}", reply.text());
    assert_eq!(denials(&world, &literal).await[0]["rule"], "127.0.0.1/32");
    assert!(host.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn what_is_connected_to_is_what_was_checked() {
    let (resolve, asked) = scripted(&[&["10.9.9.9"], &["127.0.0.1"]]);
    let (world, sandbox, host) = world_with(vec![answer()], |setup| setup.resolve = resolve).await;
    assert_eq!(call(&sandbox).await.code(), "mcp_private_address");
    assert!(host.seen().is_empty());
    assert_eq!(call(&sandbox).await.status, OK);
    assert_eq!(
        asked.lock().unwrap().as_slice(),
        ["notes.example", "notes.example"],
        "once for each connection"
    );
    world.stop().await;
}

#[tokio::test]
async fn what_would_send_the_agent_elsewhere_is_told_in_words_of_the_gateway() {
    let with = |status, name: &'static str, text: &'static str| {
        let mut script = Script::json(status, "{\"error\":\"x\"}");
        script.headers.push((name, text));
        script
    };
    let scripts = vec![
        with(401, "www-authenticate", "Bearer"),
        with(403, "x", "y"),
        with(302, "location", "http://127.0.0.1:1/"),
        with(200, "content-encoding", "gzip"),
        with(404, "x", "y"),
        with(500, "x", "y"),
    ];
    let (world, sandbox, host) = world(scripts).await;
    for (status, code) in
        [(424, "mcp_no_credential"), (424, "mcp_no_credential"), (424, "mcp_redirect"), (424, "mcp_encoded")]
    {
        let reply = call(&sandbox).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code));
    }
    for status in [404, 500] {
        let reply = call(&sandbox).await;
        assert_eq!(
            (reply.status, reply.json()["error"].as_str()),
            (status, Some("x")),
            "the server's own word"
        );
    }
    let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    let kinds: Vec<_> = told.iter().map(|data| data["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["mcp_no_credential", "mcp_redirect", "mcp_encoded"]);
    assert_eq!(host.seen().len(), 6, "no redirect was followed");
    world.stop().await;
}

#[tokio::test]
async fn a_credential_that_the_server_refuses_is_named_and_not_shown() {
    let (world, sandbox, host) = world(vec![Script::json(401, SECRET)]).await;
    let settings = [("url", url_of(&host)), ("header", "X-Notes".to_owned())];
    let settings: Vec<_> = settings.iter().map(|(name, text)| (*name, text.as_str())).collect();
    world.add_credential("notes-key", CredentialKind::McpHeader, &settings, value(SECRET)).await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (424, "mcp_refused"));
    assert!(reply.text().contains("notes-key") && !reply.text().contains(SECRET), "{}", reply.text());
    world.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_with_its_name() {
    let (world, sandbox, _host) = world(vec![Script { hangs: true, ..answer() }]).await;
    let away = |url: &str| world.sandbox(naming(url));
    let nobody = away("http://notes.example:1/").await;
    let reply = fetch(nobody.request(Method::POST, "/mcp/notes", &nobody.agent).body(CALL)).await;
    assert_eq!(reply.code(), "mcp_not_allowed", "another port is another host");
    drop(sandbox);
    world.stop().await;

    let (world, sandbox, host) = world_with(vec![answer()], |setup| {
        setup.resolve = Setup::new().resolve;
    })
    .await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "mcp_unresolved"));
    drop(host);
    world.stop().await;

    let (world, sandbox, host) = self::world(vec![answer()]).await;
    drop(host);
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "mcp_unreachable"), "{}", reply.text());
    let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!((&told[0]["upstream"], &told[0]["server"]), (&json!("mcp"), &json!("notes")));
    world.stop().await;
}

#[tokio::test]
async fn messages_come_as_they_are_sent() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let event = "data: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\n";
    let pieces = vec![piece(event), Piece::Gate(std::sync::Arc::clone(&gate)), piece("data: {}\n\n")];
    let (world, sandbox, _host) = world(vec![Script::stream(pieces)]).await;
    let request = sandbox.request(Method::GET, "/mcp/notes", &sandbox.agent);
    let mut response = request.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.chunk().await.unwrap().unwrap(), event, "the second one is not sent yet");
    gate.notify_one();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: {}\n\n");
    assert!(response.chunk().await.unwrap().is_none());
    world.stop().await;
}
