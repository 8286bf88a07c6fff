//! Settings of the anchor, for workflows that let them act: what narrows the agent or works beside it, and nothing that would
//! lead its model calls elsewhere or widen what it may do.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use caisson_claude::closed_to_tools;
use caisson_domain::protocol::places::STEERING;
use caisson_domain::run::{Failure, FailureKind};
use caisson_domain::workflow::check_environment_name;
use serde_json::{Map, Value};

use super::Acting;
use super::agent_home::DIRECTORY;
use super::anchor::Files;

const SETTINGS: &str = ".claude/settings.json";
const MCP: &str = ".mcp.json";
/// Directories of the anchor's `.claude` that the agent reads in its home as well.
const LINKED: [&str; 4] = ["agents", "commands", "output-styles", "skills"];
/// Settings that are taken as they are; `hooks`, `permissions` and `env` are looked at. `apiKeyHelper` and the like run
/// programs that take the place of the agent's grant.
const TAKEN: [&str; 3] = ["attribution", "includeCoAuthoredBy", "outputStyle"];
/// What hooks call the repository's directory.
const PROJECT: [&str; 5] = [
    "\"$CLAUDE_PROJECT_DIR\"/",
    "\"${CLAUDE_PROJECT_DIR}\"/",
    "$CLAUDE_PROJECT_DIR/",
    "${CLAUDE_PROJECT_DIR}/",
    "./",
];

/// What the agent is started with, of the files at `place`.
///
/// # Errors
/// [`Failure`] for a file that cannot be read: a hook in it may be the one that forbids something.
pub(super) fn acting(files: &Files, place: &Path, notes: &mut Vec<String>) -> Result<Acting, Failure> {
    let there = place.to_string_lossy();
    let settings = object(files, SETTINGS)?;
    let mut acting = Acting { settings: Some(taken(settings, &there, notes)), mcp_servers: Map::new() };
    let mut mcp = object(files, MCP)?;
    if let Some(Value::Object(servers)) = mcp.remove("mcpServers") {
        for (name, mut server) in servers {
            if server.get("command").is_some_and(Value::is_string) {
                lead(&mut server, &there);
                acting.mcp_servers.insert(name, server);
            } else {
                notes.push(format!(
                    "the MCP server \"{name}\" of {MCP} is left out: it has no command to start"
                ));
            }
        }
    }
    Ok(acting)
}

fn object(files: &Files, path: &str) -> Result<Map<String, Value>, Failure> {
    let Some((_, content)) = files.contents.get(path) else { return Ok(Map::new()) };
    serde_json::from_slice(content).map_err(|error| {
        let message = format!(
            "{path} of the anchor is no JSON object: mend it there, or take caisson.trust.settings out of the workflow"
        );
        Failure::new(FailureKind::BadWorkflow, message).with_evidence(error.to_string())
    })
}

/// What acts of the settings; pure.
fn taken(settings: Map<String, Value>, place: &str, notes: &mut Vec<String>) -> Value {
    let mut taken = Map::new();
    let mut denied: Vec<Value> = closed_to_tools(STEERING).into_iter().map(Value::String).collect();
    let mut permissions = Map::new();
    let mut left = Vec::new();
    for (name, mut value) in settings {
        match name.as_str() {
            "hooks" => {
                lead(&mut value, place);
                taken.insert(name, value);
            }
            "permissions" => {
                if let Some(Value::Array(rules)) = value.get_mut("deny") {
                    denied.append(rules);
                }
                permissions.extend(value.get("ask").map(|rules| ("ask".to_owned(), rules.clone())));
            }
            "env" => {
                let Value::Object(mut variables) = value else { continue };
                variables.retain(|name, value| check_environment_name(name).is_ok() && value.is_string());
                taken.insert(name, Value::Object(variables));
            }
            known if TAKEN.contains(&known) => drop(taken.insert(name, value)),
            _ => left.push(name),
        }
    }
    permissions.insert("deny".to_owned(), denied.into());
    taken.insert("permissions".to_owned(), permissions.into());
    if !left.is_empty() {
        left.truncate(20);
        notes.push(format!("settings of {SETTINGS} that do not act: {}", left.join(", ")));
    }
    Value::Object(taken)
}

/// Leads every command in a value to the copy of the anchor's `.claude`: in the workspace there may be another one.
fn lead(value: &mut Value, place: &str) {
    match value {
        Value::String(text) => *text = led(text, place),
        Value::Array(items) => items.iter_mut().for_each(|item| lead(item, place)),
        Value::Object(fields) => fields.values_mut().for_each(|field| lead(field, place)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The command with the copy's place; pure.
fn led(command: &str, place: &str) -> String {
    const NAME: &str = ".claude/";
    let mut led = String::new();
    let mut rest = command;
    while let Some(at) = rest.find(NAME) {
        let before = &rest[..at];
        let named = PROJECT.iter().find(|name| before.ends_with(*name)).map_or(0, |name| name.len());
        let before_name = &before[..at - named];
        led.push_str(before_name);
        let begins =
            before_name.chars().next_back().is_none_or(|c| !(c.is_alphanumeric() || "/._-~}".contains(c)));
        if begins {
            led.push_str(place);
            led.push('/');
        } else {
            led.push_str(&before[at - named..]);
        }
        led.push_str(NAME);
        rest = &rest[at + NAME.len()..];
    }
    led.push_str(rest);
    led
}

/// Lets the agent find subagents, commands and skills of the anchor, which are at `place`, as its user's own.
///
/// # Errors
/// That of the operating system.
pub(super) fn give(home: &Path, place: &Path) -> io::Result<()> {
    let directory = home.join(DIRECTORY);
    fs::create_dir_all(&directory)?;
    for name in LINKED {
        let there = place.join(DIRECTORY).join(name);
        if there.is_dir() {
            symlink(&there, directory.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::anchor::Entry;
    use serde_json::json;

    fn files(contents: &[(&str, &str)]) -> Files {
        let mut files = Files::default();
        for (path, content) in contents {
            let entry = Entry { path: (*path).to_owned(), executable: false };
            files.contents.insert((*path).to_owned(), (entry, content.as_bytes().to_vec()));
        }
        files
    }

    #[test]
    fn commands_are_led_to_the_copy_and_nothing_else_is() {
        for (command, expected) in [
            ("$CLAUDE_PROJECT_DIR/.claude/hooks/a.sh", "/p/.claude/hooks/a.sh"),
            ("\"$CLAUDE_PROJECT_DIR\"/.claude/a b", "/p/.claude/a b"),
            ("sh \"${CLAUDE_PROJECT_DIR}/.claude/a\" x", "sh \"/p/.claude/a\" x"),
            ("python3 .claude/a.py --with ./.claude/b", "python3 /p/.claude/a.py --with /p/.claude/b"),
            ("A=.claude/x;.claude/y", "A=/p/.claude/x;/p/.claude/y"),
            (
                "cat ~/.claude/x /home/a/.claude/y sub/.claude/z my.claude/w",
                "cat ~/.claude/x /home/a/.claude/y sub/.claude/z my.claude/w",
            ),
            ("cd $CLAUDE_PROJECT_DIR && make lint", "cd $CLAUDE_PROJECT_DIR && make lint"),
        ] {
            assert_eq!(led(command, "/p"), expected);
        }
    }

    #[test]
    fn settings_that_lead_the_agent_elsewhere_do_not_act() {
        let settings = json!({
            "hooks": {"PreToolUse": [{"hooks": [{"type": "command", "command": ".claude/guard.sh"}]}]},
            "permissions": {"allow": ["Bash"], "deny": ["Read(secret)"], "ask": ["Bash(rm *)"], "defaultMode": "auto"},
            "env": {"CI": "1", "ANTHROPIC_BASE_URL": "http://x", "LD_PRELOAD": "x", "N": 1},
            "apiKeyHelper": "echo x", "statusLine": {}, "model": "x", "outputStyle": "Terse",
        });
        let mut notes = Vec::new();
        let acting = acting(&files(&[(SETTINGS, &settings.to_string())]), "/p".as_ref(), &mut notes).unwrap();
        let settings = acting.settings.unwrap();
        assert_eq!(settings["hooks"]["PreToolUse"][0]["hooks"][0]["command"], "/p/.claude/guard.sh");
        assert_eq!(settings["env"], json!({"CI": "1"}));
        assert_eq!(settings["outputStyle"], "Terse");
        let permissions = settings["permissions"].as_object().unwrap();
        assert_eq!(permissions.keys().collect::<Vec<_>>(), ["ask", "deny"]);
        let denied = permissions["deny"].as_array().unwrap();
        assert!(
            denied.contains(&json!("Read(secret)"))
                && denied.contains(&json!("Edit(~/.claude/settings*.json)"))
        );
        assert_eq!(
            notes,
            ["settings of .claude/settings.json that do not act: apiKeyHelper, model, statusLine"]
        );
        assert_eq!(settings.as_object().unwrap().len(), 4);
    }

    #[test]
    fn servers_that_can_be_started_here_are_taken() {
        let mcp = r#"{"mcpServers": {"a": {"command": "node", "args": [".claude/a.js"]}, "b": {"type": "http", "url": "x"}}}"#;
        let mut notes = Vec::new();
        let acting = acting(&files(&[(MCP, mcp)]), "/p".as_ref(), &mut notes).unwrap();
        assert_eq!(acting.mcp_servers["a"]["args"][0], "/p/.claude/a.js");
        assert!(acting.mcp_servers.len() == 1 && notes.len() == 1, "{notes:?}");
    }

    #[test]
    fn settings_that_cannot_be_read_fail_the_run() {
        for (path, content) in [(SETTINGS, "{"), (SETTINGS, "[]"), (MCP, "x")] {
            let failure = acting(&files(&[(path, content)]), "/p".as_ref(), &mut Vec::new()).unwrap_err();
            assert_eq!(failure.kind, FailureKind::BadWorkflow, "{content}");
            assert!(failure.message.starts_with(path), "{}", failure.message);
        }
    }
}
