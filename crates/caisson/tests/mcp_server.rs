//! Caisson as an MCP server, for the real Claude Code as its client: over HTTP, and as a program that it starts.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use scripted_model::{Options, ScriptedModel};
use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(1);

testkit::on_every_engine_and_database! {
    the_real_agent_submits_a_run_and_waits_for_its_result
}

/// One prompt of a client whose model says so and no more; what it printed, line by line.
async fn client(directory: &Path, program: &Path, servers: &Value, steps: Value) -> Vec<Value> {
    let options = Options {
        inline_scenarios: vec![json!({"client": {"prompts": [steps]}}).to_string()],
        default_scenario: "client".to_owned(),
        ..Options::default()
    };
    let model = ScriptedModel::start(options).await.unwrap();
    let config = json!({ "mcpServers": servers }).to_string();
    #[expect(clippy::disallowed_methods, reason = "the client is started here, with an argument vector")]
    let mut command = Command::new(program);
    command
        .args(["-p", "Do it.", "--output-format", "stream-json", "--verbose", "--setting-sources", ""])
        .args(["--strict-mcp-config", "--mcp-config", &config, "--allowedTools", "mcp__caisson"])
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", directory)
        .env("ANTHROPIC_BASE_URL", model.base_url())
        .env("ANTHROPIC_AUTH_TOKEN", "none")
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        .env("CLAUDE_CODE_MAX_RETRIES", "1")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    model.shutdown().await;
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What the tools answered, in order.
fn answers(lines: &[Value]) -> Vec<Value> {
    let results = lines
        .iter()
        .filter(|line| line["type"] == "user")
        .flat_map(|line| line["message"]["content"].as_array().cloned().unwrap_or_default());
    let texts = results.filter(|block| block["type"] == "tool_result").map(|block| {
        assert_ne!(block["is_error"], true, "{block}");
        let text = block["content"].as_str().or_else(|| block["content"][0]["text"].as_str());
        serde_json::from_str(text.unwrap()).unwrap()
    });
    texts.collect()
}

fn call(tool: &str, input: &Value) -> Value {
    json!({"tool": {"name": format!("mcp__caisson__{tool}"), "input": input}})
}

async fn the_real_agent_submits_a_run_and_waits_for_its_result(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let program = parts.claude("2.1.330");
    let home = tempfile::tempdir().unwrap();
    let header = json!({ "Authorization": format!("Bearer {}", world.key) });
    let http =
        json!({"caisson": {"type": "http", "url": format!("{}/mcp", world.server.base), "headers": header}});
    let task = world.run_body();
    let lines =
        client(home.path(), &program, &http, json!([call("submit", &task), {"text": "Submitted."}])).await;
    let init = lines.iter().find(|line| line["subtype"] == "init").unwrap();
    assert_eq!(init["mcp_servers"][0]["status"], "connected", "{init}");
    let tools = init["tools"].as_array().unwrap();
    for tool in ["submit", "status", "events", "result", "cancel"] {
        assert!(tools.contains(&json!(format!("mcp__caisson__{tool}"))), "{tool} in {tools:?}");
    }
    let run = answers(&lines).remove(0);
    let id = run["id"].as_str().unwrap();
    let ended = world.api.wait_end(id, END).await.unwrap();
    assert_eq!(ended["status"], "succeeded", "{ended:#}");

    // The same as a program that the client starts, which has the key in its environment.
    let caisson = parts.caisson.display().to_string();
    let variables = json!({"CAISSON_URL": world.server.base, "CAISSON_API_KEY": world.key});
    let stdio = json!({"caisson": {"command": caisson, "args": ["mcp"], "env": variables}});
    let ask = json!({ "run": id });
    let waited = json!({ "run": id, "wait_s": 30 });
    let events = json!({ "run": id, "limit": 5 });
    let steps =
        json!([call("result", &waited), call("events", &events), call("cancel", &ask), {"text": "Seen."}]);
    let answered = answers(&client(home.path(), &program, &stdio, steps).await);
    assert_eq!((&answered[0]["final"], &answered[0]["status"]), (&json!(true), &json!("succeeded")));
    assert_eq!(answered[0]["pushed_commit"], ended["pushed_commit"]);
    assert_eq!(answered[1]["items"].as_array().unwrap().len(), 5);
    assert_eq!(answered[2]["status"], "succeeded", "what has ended stays so");
    says_why_it_cannot(&world);
}

/// What the client is told of a line that is no JSON, of a method that there is not, and of a server that refuses its key.
fn says_why_it_cannot(world: &World) {
    let said = |key: &str| {
        let mut command = world.client(&["mcp"]);
        let spawned =
            command.env("CAISSON_API_KEY", key).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.unwrap();
        let mut input = child.stdin.take().unwrap();
        for line in [
            "{",
            r#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/x"}"#,
        ] {
            writeln!(input, "{line}").unwrap();
        }
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let mut codes: Vec<i64> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["error"]["code"].as_i64().unwrap())
            .collect();
        codes.sort_unstable();
        codes
    };
    assert_eq!(said(&world.key), [-32_700, -32_601]);
    assert_eq!(said(&format!("csk_{}", "0".repeat(64))), [-32_700, -32_603]);
}
