//! Workflow folders in Automagik's format, on real parts: what their files say binds the agent.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(2);

testkit::on_every_engine_and_database! {
    a_folders_list_of_tools_binds_the_agents_own_and_those_of_servers
}

/// A server with two tools, in the sandbox's own Python, that echoes which of them was called and one of its variables.
const SERVER: &str = r#"
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    answer = {"jsonrpc": "2.0", "id": asked["id"]}
    method, params = asked["method"], asked.get("params") or {}
    tool = lambda name: {"name": name, "description": name, "inputSchema": {"type": "object", "properties": {}}}
    if method == "initialize":
        answer["result"] = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                            "serverInfo": {"name": "two", "version": "1"}}
    elif method == "tools/list":
        answer["result"] = {"tools": [tool("look"), tool("change")]}
    elif method == "tools/call":
        said = params["name"] + " was called; TEAM is " + os.environ.get("TEAM", "not set")
        answer["result"] = {"content": [{"type": "text", "text": said}]}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"#;

fn folder(root: &Path, name: &str, files: &[(&str, String)]) {
    let path = root.join(name);
    std::fs::create_dir(&path).unwrap();
    for (name, text) in files {
        std::fs::write(path.join(name), text).unwrap();
    }
}

fn call(name: &str, input: &Value) -> Value {
    json!({"tool": {"name": name, "input": input}})
}

/// What the tools answered, in order: whether it was an error, and the text.
fn answers(events: &[Value]) -> Vec<(bool, String)> {
    let lines =
        events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    let blocks = lines.filter_map(|event| event["data"]["message"]["content"].as_array()).flatten();
    let results = blocks.filter(|block| block["type"] == "tool_result");
    results.map(|block| (block["is_error"] == true, block["content"].to_string())).collect()
}

async fn a_folders_list_of_tools_binds_the_agents_own_and_those_of_servers(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let workflows = tempfile::tempdir().unwrap();
    let program = json!({"command": "python3", "args": ["-c", SERVER], "env": {"TEAM": "${TEAM}"}});
    let servers = json!({"mcpServers": {"two": program, "spare": program}});
    let tools = json!(["Read", "Write", "Bash(touch *)", "mcp__two__look"]);
    folder(
        workflows.path(),
        "Old_Hand",
        &[
            ("prompt.md", "# Does as it is told\n\nDo as you are told.\n".to_owned()),
            ("allowed_tools.json", tools.to_string()),
            (".mcp.json", servers.to_string()),
            ("config.json", json!({"display_name": "Old hand", "maxTurns": 30, "icon": "x"}).to_string()),
            (".env", "TEAM=not-taken-from-here\n".to_owned()),
        ],
    );
    folder(
        workflows.path(),
        "retired",
        &[("prompt.md", "x".to_owned()), ("config.json", json!({"active": false}).to_string())],
    );
    let bash = |command: &str| call("Bash", &json!({"description": "Work", "command": command}));
    let file = json!({"file_path": "$CWD/made", "content": "x"});
    let edit = json!({"file_path": "$CWD/made", "old_string": "x", "new_string": "y"});
    let nothing = json!({});
    let scenario = json!({"told": {"prompts": [[
        call("Write", &file),
        bash("touch by-bash"),
        bash("rm -rf made"),
        call("Edit", &edit),
        call("mcp__two__look", &nothing),
        call("mcp__two__change", &nothing),
        call("mcp__spare__look", &nothing),
        {"text": "Done."},
    ]]}});
    let spec = WorldSpec {
        scenario: "told".to_owned(),
        scenarios: vec![scenario.to_string()],
        variables: vec![("WORKFLOWS_DIR".to_owned(), workflows.path().display().to_string())],
        ..WorldSpec::on(ground)
    };
    let world = World::start(&parts, spec).await.unwrap();
    let listed = world.api.get("/v1/workflows").await.unwrap().body.to_string();
    assert!(listed.contains("\"old-hand\"") && !listed.contains("retired"), "{listed}");
    let shown = world.api.get("/v1/workflows/old-hand").await.unwrap().body;
    assert_eq!((&shown["description"], &shown["max_turns"]), (&json!("Old hand"), &json!(30)), "{shown:#}");
    assert_eq!(shown["caisson"]["environment"], json!(["TEAM"]));

    let body = json!({
        "workflow": "old-hand", "prompt": "Do it.", "repository": null, "environment": {"TEAM": "blue"},
    });
    let id = world.api.submit(&body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let said = answers(&world.api.events(&id).await.unwrap());
    let errors: Vec<bool> = said.iter().map(|(is_error, _)| *is_error).collect();
    assert_eq!(errors, [false, false, true, true, false, true, true], "{said:#?}");
    assert!(said[4].1.contains("look was called; TEAM is blue"), "{said:#?}");
    let mut other = body.clone();
    other["environment"] = json!({"LD_TEAM": "blue"});
    let refused = world.api.post("/v1/runs", &other).await.unwrap();
    assert_eq!(refused.status, 422, "a name that the folder does not have: {}", refused.body);
}
