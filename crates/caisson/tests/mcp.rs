//! MCP servers over HTTP on real parts: the real agent calls a tool of one, whose credential it never has.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::hunt::{Canary, Hunt};
use testkit::mcp_server::McpServer;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};
use tokio::net::TcpListener;

const END: Duration = Duration::from_mins(1);
const HEADER: &str = "x-notes-key";
const SECRET: &str = "notes-canary-4b8d17e2c0a95f";
/// How long the agent may take from its prompt to its first line, in milliseconds: less than the 30 s for which Claude Code
/// tries to connect to a server, and more than the 3 s for which its first turn waits.
const BEGIN_MS: i64 = 15_000;
/// How long a run may take to fail by a server that it requires, in milliseconds, on an idle machine.
const SETUP_MS: i64 = 10_000;
/// How long of that an idle machine takes to make the sandbox and start the agent, at most. What a busy one takes longer for the
/// same, by a run that waits for no server, is no part of the failing; the rest of the bound is the same everywhere.
const START_MS: i64 = 4_000;

testkit::on_every_engine_and_database! {
    a_tool_of_a_server_is_called_and_its_credential_stays_outside
    a_required_server_that_does_not_connect_fails_the_run_before_its_prompt
    an_optional_server_that_says_nothing_does_not_hold_the_prompt_up
}

/// Writes a workflow with these servers.
fn workflow(directory: &Path, name: &str, mode: &str, servers: &Value) {
    let text = format!(
        "---\nname: {name}\ndescription: Asks servers\npermissionMode: {mode}\nmcpServers: {servers}\n---\nAsk.\n"
    );
    std::fs::write(directory.join(format!("{name}.md")), text).unwrap();
}

/// The agent asks the server, and then is inside a tool for a while.
fn scenario() -> String {
    let ask = json!({"name": "mcp__notes__echo", "input": {"text": "hello"}});
    let wait = json!({"name": "Bash", "input": {"description": "Wait",
        "command": "python3 -c 'import time; time.sleep(8)'"}});
    json!({"mcp": {"prompts": [[
        {"text": "I ask.", "tool": ask}, {"text": "I wait.", "tool": wait}, {"text": "Done."}
    ]]}})
    .to_string()
}

fn spec(ground: Ground, workflows: &Path, allow: &str) -> WorldSpec {
    let variables = [
        ("MCP__ALLOW", allow.to_owned()),
        ("MCP__ALLOW_PRIVATE", "127.0.0.1/32".to_owned()),
        ("EGRESS__HOSTS", "notes.example=127.0.0.1".to_owned()),
        ("WORKFLOWS_DIR", workflows.display().to_string()),
        ("LIMITS__WORKSPACE_MIB", "128".to_owned()),
    ];
    let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    WorldSpec { scenario: "mcp".to_owned(), variables, scenarios: vec![scenario()], ..WorldSpec::on(ground) }
}

/// Adds the server's credential as an operator does.
fn store_credential(world: &World, url: &str) {
    let (url, header) = (format!("url={url}"), format!("header={HEADER}"));
    let arguments = ["credential", "add", "notes", "--kind", "mcp_header", "--set", &url, "--set", &header];
    let mut command = world.spec.command(&arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(SECRET.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

async fn submit(world: &World, workflow: &str) -> String {
    let body = json!({"workflow": workflow, "prompt": "Ask the server.", "repository": null});
    world.api.submit(&body).await.unwrap()
}

fn of_kind<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["kind"] == kind).map(|event| &event["data"]).collect()
}

async fn a_tool_of_a_server_is_called_and_its_credential_stays_outside(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let server = McpServer::start(HEADER, SECRET).await.unwrap();
    let url = server.url("notes.example");
    let workflows = tempfile::tempdir().unwrap();
    let notes = json!({"notes": {"type": "http", "url": url, "required": true}});
    workflow(workflows.path(), "asking", "bypassPermissions", &notes);
    workflow(workflows.path(), "quiet", "dontAsk", &notes);
    let allow = format!("notes.example:{}", server.address.port());
    let world = World::start(&parts, spec(ground, workflows.path(), &allow)).await.unwrap();
    store_credential(&world, &url);

    let id = submit(&world, "asking").await;
    let sandbox = world.inside_a_tool(&id, END).await.unwrap();
    let mut hunt = Hunt::new(&[Canary { name: "MCP header", secret: SECRET }]).unwrap();
    let mut told = Vec::new();
    // Their memory is looked at afterwards: that takes longer than the tool.
    for pid in world.processes(&sandbox).unwrap() {
        told.extend(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    }
    for pid in world.processes(&sandbox).unwrap() {
        hunt.process(pid).unwrap();
    }
    let first = world.processes(&sandbox).unwrap()[0];
    let inside: usize = ["home", "tmp", "caisson/door", "caisson/journal", "workspace"]
        .map(|place| hunt.tree(&Path::new("/proc").join(first.to_string()).join("root").join(place), &[]))
        .iter()
        .sum();
    assert!(inside > 5, "{inside} files of the sandbox were looked at");
    // What the agent was started with: where its shim listens, and neither the grant nor the server's place.
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains(r#""notes":{"type":"http","url":"http://127.0.0.1:4180/mcp/notes"}"#), "{told}");
    assert!(!told.contains("csa_") && !told.contains("notes.example"), "{told}");

    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("outside heard hello from [redacted]"), "{text}");
    hunt.look("events", text.as_bytes());
    hunt.look("the server's log", world.server.log().as_bytes());
    assert!(hunt.tree(world.state_dir(), &[]) > 5);
    assert!(hunt.found.is_empty(), "{:#?}", hunt.found);
    let asked = world.model_calls();
    assert_eq!(asked.len(), 3, "the answer came back in the next call");

    let heard = server.heard();
    assert!(heard.iter().any(|one| one.call == "tools/call" && one.status == 200), "{heard:?}");
    for one in &heard {
        assert!(one.status != 401 && one.line.ends_with(" /team/mcp"), "{one:?}");
        assert_eq!(one.headers[HEADER], SECRET);
        assert!(!one.headers.contains_key("authorization") && !format!("{:?}", one.headers).contains("csa_"));
    }
    let used: u64 = of_kind(&events, "mcp.used")
        .iter()
        .flat_map(|data| data["items"].as_array().unwrap())
        .map(|item| item["requests"].as_u64().unwrap())
        .sum();
    assert_eq!(used, heard.len() as u64, "each request is told");
    assert!(
        of_kind(&events, "mcp.denied").is_empty() && of_kind(&events, "gateway.upstream_failed").is_empty()
    );
    assert!(!text.contains("caisson-servers-"), "the shim's own questions are no events");

    // What a workflow's own server offers needs no asking, even where nothing is asked.
    let id = submit(&world, "quiet").await;
    assert_eq!(world.api.wait_end(&id, END).await.unwrap()["status"], "succeeded");
    let text = serde_json::to_string(&world.api.events(&id).await.unwrap()).unwrap();
    assert!(text.contains("outside heard hello from [redacted]"), "{text}");
}

/// A host that takes connections and says nothing.
async fn silent() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "the host lives as long as its test's runtime")]
    drop(tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    }));
    port
}

async fn a_required_server_that_does_not_connect_fails_the_run_before_its_prompt(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let server = McpServer::start(HEADER, SECRET).await.unwrap();
    let silent = silent().await;
    let workflows = tempfile::tempdir().unwrap();
    let http =
        |url: String, required: bool| json!({"notes": {"type": "http", "url": url, "required": required}});
    workflow(workflows.path(), "denied", "dontAsk", &http("https://denied.example/mcp".to_owned(), true));
    workflow(workflows.path(), "locked", "dontAsk", &http(server.url("notes.example"), true));
    workflow(
        workflows.path(),
        "silent",
        "dontAsk",
        &http(format!("http://notes.example:{silent}/mcp"), true),
    );
    workflow(
        workflows.path(),
        "program",
        "dontAsk",
        &json!({"notes": {"command": "/bin/false", "required": true}}),
    );
    workflow(workflows.path(), "optional", "dontAsk", &http("https://denied.example/mcp".to_owned(), false));
    let allow = format!("notes.example:{},{silent}", server.address.port());
    let world = World::start(&parts, spec(ground, workflows.path(), &allow)).await.unwrap();
    let before = start_ms(&world, "optional").await;
    let (calls, mut took) = (world.model_calls().len(), Vec::new());
    for (workflow, words) in [
        ("denied", "\"denied.example:443\" in mcp.allow"),
        ("locked", "wants a credential (status 401)"),
        ("silent", "\"notes\", which the workflow requires, did not connect within"),
        ("program", "\"notes\", which the workflow requires, did not start or connect"),
    ] {
        let id = submit(&world, workflow).await;
        let run = world.api.wait_end(&id, END).await.unwrap();
        assert_eq!(run["failure"]["kind"], "setup_failed", "{workflow}: {run:#}\n{}", world.server.log());
        let message = run["failure"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{workflow}: {message}");
        took.push((
            workflow,
            run["finished_at_ms"].as_i64().unwrap() - run["started_at_ms"].as_i64().unwrap(),
        ));
        let events = world.api.events(&id).await.unwrap();
        assert!(of_kind(&events, "agent.started").is_empty(), "{workflow}: it got its prompt");
    }
    assert_eq!(world.model_calls().len(), calls, "who has no prompt asks no model");
    // The agent looked for no login at the door, and what it asked for went to the server's own URL.
    assert!(server.heard().iter().all(|one| one.line.ends_with(" /team/mcp")), "{:?}", server.heard());

    let id = submit(&world, "optional").await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}");
    let events = world.api.events(&id).await.unwrap();
    let denied = of_kind(&events, "mcp.denied");
    assert_eq!((denied.len(), &denied[0]["rule"]), (1, &json!("denied.example:443")), "{denied:?}");
    let init = |event: &&Value| event["kind"] == "agent.line" && event["data"]["subtype"] == "init";
    let init = events.iter().find(init).unwrap();
    assert_eq!(
        init["data"]["mcp_servers"][0]["status"], "failed",
        "the agent's own word is an event as well"
    );
    let start = before.max(begun_ms(&run, &events));
    let bound = SETUP_MS + (start - START_MS).max(0);
    assert!(took.iter().all(|(_, took)| *took < bound), "{took:?}; {start} ms to start, and so {bound} ms");
}

/// How long a run of the workflow, which waits for no server, takes until its agent says its first line, in milliseconds.
async fn start_ms(world: &World, workflow: &str) -> i64 {
    let id = submit(world, workflow).await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    begun_ms(&run, &world.api.events(&id).await.unwrap())
}

fn begun_ms(run: &Value, events: &[Value]) -> i64 {
    let init = |event: &&Value| event["kind"] == "agent.line" && event["data"]["subtype"] == "init";
    let init = events.iter().find(init).unwrap();
    init["at_ms"].as_i64().unwrap() - run["started_at_ms"].as_i64().unwrap()
}

async fn an_optional_server_that_says_nothing_does_not_hold_the_prompt_up(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let silent = silent().await;
    let workflows = tempfile::tempdir().unwrap();
    let servers = json!({
        "notes": {"type": "http", "url": format!("http://notes.example:{silent}/mcp")},
        "program": {"command": "sleep", "args": ["600"]},
    });
    workflow(workflows.path(), "patient", "dontAsk", &servers);
    let spec = spec(ground, workflows.path(), &format!("notes.example:{silent}"));
    let world = World::start(&parts, WorldSpec { scenario: "text".to_owned(), ..spec }).await.unwrap();
    let id = submit(&world, "patient").await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    let at_ms = |found: &dyn Fn(&Value) -> bool| {
        events.iter().find(|event| found(event)).unwrap()["at_ms"].as_i64().unwrap()
    };
    let prompted = at_ms(&|event| event["kind"] == "agent.started");
    let begun = at_ms(&|event| event["kind"] == "agent.line" && event["data"]["subtype"] == "init");
    assert!(begun - prompted < BEGIN_MS, "it began {} ms after its prompt", begun - prompted);
}
