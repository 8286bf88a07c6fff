//! MCP servers on real parts: the real agent calls tools of one outside, whose credential it never has, and of one in its sandbox; and
//! what is told of those that do not start.

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
    a_required_program_that_ends_fails_the_run_in_time_and_shows_what_it_wrote
    an_optional_program_that_ends_after_the_agent_began_is_told_with_what_it_wrote
    an_optional_server_that_says_nothing_does_not_hold_the_prompt_up
}

/// Writes a workflow with these servers.
fn workflow(directory: &Path, name: &str, mode: &str, servers: &Value) {
    let text = format!(
        "---\nname: {name}\ndescription: Asks servers\npermissionMode: {mode}\nmcpServers: {servers}\n---\nAsk.\n"
    );
    std::fs::write(directory.join(format!("{name}.md")), text).unwrap();
}

/// A server in the sandbox with one tool, which counts letters.
const COUNTING: &str = r#"
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    answer = {"jsonrpc": "2.0", "id": asked["id"]}
    params = asked.get("params") or {}
    if asked["method"] == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": "here", "version": "1"}}
    elif asked["method"] == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        answer["result"] = {"tools": [{"name": "count", "description": "Counts.", "inputSchema": schema}]}
    elif asked["method"] == "tools/call":
        said = "inside counted %d letters" % len(params["arguments"]["text"])
        answer["result"] = {"content": [{"type": "text", "text": said}]}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"#;

/// A program of the sandbox as an MCP server.
fn python(script: &str, required: bool) -> Value {
    json!({"command": "python3", "args": ["-c", script], "required": required})
}

/// The agent asks both servers, and then is inside a tool for a while.
fn scenario() -> String {
    let ask = json!({"name": "mcp__notes__echo", "input": {"text": "hello"}});
    let count = json!({"name": "mcp__here__count", "input": {"text": "seven.."}});
    let wait = |seconds: u32| {
        let command = format!("python3 -c 'import time; time.sleep({seconds})'");
        json!({"name": "Bash", "input": {"description": "Wait", "command": command}})
    };
    json!({
        "mcp": {"prompts": [[
            {"text": "I ask.", "tool": ask}, {"text": "I count.", "tool": count},
            {"text": "I wait.", "tool": wait(12)}, {"text": "Done."}
        ]]},
        "waiting": {"prompts": [[{"text": "I wait.", "tool": wait(25)}, {"text": "Done."}]]},
    })
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

/// Looks into a living sandbox: at what its agent was started with, at its files, and at the memory of its processes.
fn look_inside(world: &World, sandbox: &str, hunt: &mut Hunt) {
    let mut told = Vec::new();
    let processes = world.processes(sandbox).unwrap();
    for pid in &processes {
        told.extend(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    }
    let inside: usize = ["home", "tmp", "caisson/door", "caisson/journal", "workspace"]
        .map(|place| {
            hunt.tree(&Path::new("/proc").join(processes[0].to_string()).join("root").join(place), &[])
        })
        .iter()
        .sum();
    assert!(inside > 5, "{inside} files of the sandbox were looked at");
    // Their memory is looked at last: on a busy machine that may take longer than the tool.
    let mut lived = 0;
    for pid in processes {
        lived += u32::from(hunt.process(pid).unwrap().is_some());
    }
    assert!(lived > 3, "of {lived} processes the memory was looked at");
    // What the agent was started with: where its shim listens, and neither the grant nor the server's place.
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains(r#""notes":{"type":"http","url":"http://127.0.0.1:4180/mcp/notes"}"#), "{told}");
    assert!(!told.contains("csa_") && !told.contains("notes.example"), "{told}");
}

async fn a_tool_of_a_server_is_called_and_its_credential_stays_outside(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let server = McpServer::start(HEADER, SECRET).await.unwrap();
    let url = server.url("notes.example");
    let workflows = tempfile::tempdir().unwrap();
    let both = json!({
        "notes": {"type": "http", "url": url, "required": true},
        "here": python(COUNTING, true),
    });
    workflow(workflows.path(), "asking", "bypassPermissions", &both);
    workflow(workflows.path(), "quiet", "dontAsk", &both);
    let allow = format!("notes.example:{}", server.address.port());
    let world = World::start(&parts, spec(ground, workflows.path(), &allow)).await.unwrap();
    store_credential(&world, &url);

    let id = submit(&world, "asking").await;
    let inside = world.inside_a_tool(&id, END).await;
    let sandbox = match inside {
        Ok(sandbox) => sandbox,
        Err(error) => {
            let run = world.api.get(&format!("/v1/runs/{id}")).await.unwrap().body;
            panic!("{error:#}: {run:#}\n{}", world.server.log());
        }
    };
    let mut hunt = Hunt::new(&[Canary { name: "MCP header", secret: SECRET }]).unwrap();
    look_inside(&world, &sandbox, &mut hunt);

    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("outside heard hello from [redacted]"), "{text}");
    assert!(text.contains("inside counted 7 letters"), "{text}");
    hunt.look("events", text.as_bytes());
    hunt.look("the server's log", world.server.log().as_bytes());
    assert!(hunt.tree(world.state_dir(), &[]) > 5);
    assert!(hunt.found.is_empty(), "{:#?}", hunt.found);
    let asked = world.model_calls();
    assert_eq!(asked.len(), 4, "each answer came back in the next call");

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
    assert!(text.contains("inside counted 7 letters"), "{text}");
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
    assert_eq!(
        init(&events)["data"]["mcp_servers"][0]["status"],
        "failed",
        "the agent's own word is an event as well"
    );
    let told = of_kind(&events, "note");
    let told = told
        .iter()
        .filter(|data| data["message"].as_str().unwrap().contains("\"denied.example:443\" in mcp.allow"));
    assert_eq!(told.count(), 1, "{events:#?}");
    let start = before.max(begun_ms(&run, &events));
    let bound = bound_ms(start);
    assert!(took.iter().all(|(_, took)| *took < bound), "{took:?}; {start} ms to start, and so {bound} ms");
}

/// How long a run may take to fail by a server that it requires where another one takes so long to start, in milliseconds.
fn bound_ms(start_ms: i64) -> i64 {
    SETUP_MS + (start_ms - START_MS).max(0)
}

/// How long a run of the workflow, which waits for no server, takes until its agent says its first line, in milliseconds.
async fn start_ms(world: &World, workflow: &str) -> i64 {
    let id = submit(world, workflow).await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    begun_ms(&run, &world.api.events(&id).await.unwrap())
}

fn begun_ms(run: &Value, events: &[Value]) -> i64 {
    init(events)["at_ms"].as_i64().unwrap() - run["started_at_ms"].as_i64().unwrap()
}

/// The line with which the agent begins.
fn init(events: &[Value]) -> &Value {
    let init = |event: &&Value| event["kind"] == "agent.line" && event["data"]["subtype"] == "init";
    events.iter().find(init).unwrap()
}

async fn a_required_program_that_ends_fails_the_run_in_time_and_shows_what_it_wrote(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let workflows = tempfile::tempdir().unwrap();
    // What it has no business to know is taken out, wherever it is told.
    let script = format!(
        "import sys; print('starting', 'notes', file=sys.stderr); sys.exit('no index for ' + '{SECRET}')"
    );
    workflow(workflows.path(), "broken", "dontAsk", &json!({"notes": python(&script, true)}));
    let denied = json!({"notes": {"type": "http", "url": "https://denied.example/mcp", "required": false}});
    workflow(workflows.path(), "optional", "dontAsk", &denied);
    let world = World::start(&parts, spec(ground, workflows.path(), "notes.example:1")).await.unwrap();
    store_credential(&world, "https://notes.example/team/mcp");
    let before = start_ms(&world, "optional").await;
    let calls = world.model_calls().len();
    let id = submit(&world, "broken").await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    let failure = &run["failure"];
    assert_eq!(failure["kind"], "setup_failed", "{run:#}\n{}", world.server.log());
    let message = failure["message"].as_str().unwrap();
    assert!(message.ends_with("; its standard error ends with: no index for [redacted]"), "{message}");
    let evidence = failure["evidence"].as_str().unwrap();
    // The agent may have tried it twice.
    let wrote = "Connection closed\nstandard error of the server:\nstarting notes\nno index for [redacted]";
    assert!(evidence.starts_with(wrote), "{evidence}");
    let events = world.api.events(&id).await.unwrap();
    assert_eq!(&of_kind(&events, "run.finished")[0]["failure"], failure, "it is in an event");
    assert!(!serde_json::to_string(&events).unwrap().contains(SECRET));
    assert!(of_kind(&events, "agent.started").is_empty() && world.model_calls().len() == calls);
    // From the request to the end, with the making of the sandbox and the start of the agent.
    let took = run["finished_at_ms"].as_i64().unwrap() - run["created_at_ms"].as_i64().unwrap();
    let start = before.max(start_ms(&world, "optional").await);
    let bound = bound_ms(start);
    assert!(took < bound, "{took} ms; {start} ms to start, and so {bound} ms");
}

async fn an_optional_program_that_ends_after_the_agent_began_is_told_with_what_it_wrote(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let workflows = tempfile::tempdir().unwrap();
    // Longer than the first turn waits for it, and shorter than the agent goes on, which tries it twice.
    let script = "import sys, time; time.sleep(8); sys.exit('gave up on the lock')";
    workflow(workflows.path(), "late", "bypassPermissions", &json!({"late": python(script, false)}));
    let spec = spec(ground, workflows.path(), "notes.example:1");
    let world = World::start(&parts, WorldSpec { scenario: "waiting".to_owned(), ..spec }).await.unwrap();
    let id = submit(&world, "late").await;
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    assert_eq!(init(&events)["data"]["mcp_servers"][0]["status"], "pending", "{:#}", init(&events));
    let notes = of_kind(&events, "note");
    let told =
        "the MCP server \"late\" did not start or connect; its standard error ends with: gave up on the lock";
    let told = notes.iter().filter(|data| data["message"].as_str().unwrap().starts_with(told));
    assert_eq!(told.count(), 1, "{notes:#?}");
    assert!(!serde_json::to_string(&events).unwrap().contains("caisson-latecomers-"));
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
