//! Workflows on disk: files of our own format, and folders in Automagik's (`prompt.md`, `allowed_tools.json`, `.mcp.json`, `config.json`,
//! names of `.env`), which are made files of ours.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use caisson_domain::limits::WORKFLOW_BYTES;
use caisson_domain::tools::{self, is_name, is_rule};
use caisson_domain::workflow::{Workflow, WorkflowError, check_environment_name};
use serde_json::{Map, Value, json};

/// Files of a folder that are read; what else is in it is left alone, `.credentials.json` above all.
const PROMPT: &str = "prompt.md";
const TOOLS: &str = "allowed_tools.json";
const SERVERS: &str = ".mcp.json";
const CONFIG: &str = "config.json";
const ENVIRONMENT: &str = ".env";
/// What the names of the tools of MCP servers begin with.
const OF_SERVER: &str = "mcp__";
/// Most files of a folder that are told to be left alone.
const LEFT_ALONE: usize = 10;
/// Longest description, in characters.
const DESCRIPTION_CHARS: usize = 200;

/// A workflow that was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its file, or what its folder comes to as one.
    pub text: String,
    /// Whether it is a folder: then nobody has written the lines of the text.
    pub is_folder: bool,
    /// What of a folder was left out, and why.
    pub notes: Vec<String>,
    /// Whether it is to be offered: a folder's `config.json` may say that it is not.
    pub active: bool,
}

/// Whether a path is a folder that holds a workflow.
pub(crate) fn is_folder(path: &Path) -> bool {
    path.is_dir() && (path.join(PROMPT).is_file() || path.join(TOOLS).is_file())
}

/// Reads a workflow file or folder.
///
/// # Errors
/// It cannot be read, or a file of it is not what it should be.
pub(crate) fn read(path: &Path) -> anyhow::Result<Found> {
    if path.is_dir() {
        return folder(path)
            .with_context(|| format!("the workflow folder \"{}\" cannot be used", path.display()));
    }
    let text = text(path)?.with_context(|| format!("\"{}\" does not exist", path.display()))?;
    Ok(file(text))
}

/// A workflow file of our own format.
pub(crate) fn file(text: String) -> Found {
    Found { text, is_folder: false, notes: Vec::new(), active: true }
}

/// The workflow that was found at `origin`.
///
/// # Errors
/// It cannot be used; the error says what to change, and in which line, or which file of a folder.
pub(crate) fn parse(found: &Found, origin: &str) -> anyhow::Result<Workflow> {
    let parsed = Workflow::parse(&found.text);
    let told = parsed.map_err(|error| if found.is_folder { of_folder(error) } else { error.into() });
    told.with_context(|| format!("the workflow of \"{origin}\" cannot be used"))
}

/// What is wrong with a folder, with the file that it comes from.
fn of_folder(error: WorkflowError) -> anyhow::Error {
    let file = match error.field() {
        Some("mcpServers") => SERVERS,
        Some("tools" | "allowedTools" | "disallowedTools") => TOOLS,
        Some("maxTurns") => CONFIG,
        Some("caisson.environment") => ENVIRONMENT,
        Some("caisson.parameters") => PROMPT,
        Some("name") => "the folder's name",
        Some(_) => return error.without_line().into(),
        // Nothing else of a folder can be deeper, or more, than is read.
        None if matches!(error, WorkflowError::FrontMatter(_)) => {
            return anyhow!("{SERVERS}: it has too many entries, or too many levels of them; take some out");
        }
        None => return error.into(),
    };
    anyhow!("{file}: {}", error.without_line())
}

/// A file's text; none if there is none.
fn text(path: &Path) -> anyhow::Result<Option<String>> {
    let unread = || format!("\"{}\" cannot be read", path.display());
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(unread)?,
    };
    let mut text = String::new();
    file.take(WORKFLOW_BYTES as u64 + 1).read_to_string(&mut text).with_context(unread)?;
    ensure!(text.len() <= WORKFLOW_BYTES, "\"{}\" is longer than {WORKFLOW_BYTES} bytes", path.display());
    Ok(Some(text))
}

fn document(path: &Path) -> anyhow::Result<Option<Value>> {
    let Some(text) = text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("\"{}\" is not JSON", path.display()))
}

fn folder(path: &Path) -> anyhow::Result<Found> {
    ensure!(is_folder(path), "it has neither {PROMPT} nor {TOOLS}");
    let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let name = name.context("its name is not UTF-8")?.to_lowercase().replace('_', "-");
    let mut notes = Vec::new();
    let prompt = text(&path.join(PROMPT))?.unwrap_or_default();
    let config = document(&path.join(CONFIG))?.unwrap_or_default();
    let mut front = Map::new();
    front.insert("name".to_owned(), json!(name));
    front.insert("description".to_owned(), json!(description(&config, &prompt, &name)));
    let servers = servers(path)?;
    // As upstream runs it: the sandbox is the wall. But a list of tools binds here, as whoever wrote it meant it.
    let mut mode = "bypassPermissions";
    if let Some(tools) = document(&path.join(TOOLS))? {
        mode = "dontAsk";
        let Listed { tools, rules, unnamed } = listed(&tools, &servers, &mut notes)?;
        front.insert("tools".to_owned(), json!(tools));
        front.insert("allowedTools".to_owned(), json!(rules));
        front.insert("disallowedTools".to_owned(), json!(unnamed));
    }
    front.insert("permissionMode".to_owned(), json!(mode));
    match config.get("maxTurns") {
        None | Some(Value::Null) => {}
        Some(turns) if turns.as_u64().is_some_and(|turns| u32::try_from(turns).is_ok()) => {
            front.insert("maxTurns".to_owned(), turns.clone());
        }
        Some(_) => bail!("{CONFIG}: maxTurns is not a whole number that a run could have"),
    }
    let active = match config.get("active") {
        None | Some(Value::Null | Value::Bool(true)) => true,
        Some(Value::Bool(false)) => false,
        Some(_) => bail!("{CONFIG}: active is neither true nor false"),
    };
    if !servers.is_empty() {
        front.insert("mcpServers".to_owned(), json!(servers));
    }
    left_alone(path, &mut notes);
    if let Some(lines) = text(&path.join(ENVIRONMENT))? {
        let names = names(&lines, &mut notes);
        front.insert("caisson".to_owned(), json!({ "environment": names }));
    }
    // JSON is YAML.
    let text = format!("---\n{}\n---\n{}\n", Value::Object(front), prompt.trim());
    Ok(Found { text, is_folder: true, notes, active })
}

fn servers(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let Some(servers) = document(&path.join(SERVERS))? else { return Ok(Map::new()) };
    let named = servers.get("mcpServers").or(servers.get("servers")).and_then(Value::as_object);
    named.cloned().with_context(|| format!("{SERVERS} has no object \"mcpServers\""))
}

/// Tells of files that mean nothing here, so that nobody counts on them.
fn left_alone(path: &Path, notes: &mut Vec<String>) {
    let names = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut others: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| ![PROMPT, TOOLS, SERVERS, CONFIG, ENVIRONMENT].contains(&name.as_str()))
        .collect();
    others.sort();
    notes.extend(
        others.iter().take(LEFT_ALONE).map(|name| format!("{}: it is not read", name.escape_debug())),
    );
}

fn description(config: &Value, prompt: &str, name: &str) -> String {
    let given = ["description", "display_name"].iter().find_map(|key| config.get(key)?.as_str());
    let title =
        prompt.lines().map(|line| line.trim_start_matches(['#', ' '])).find(|line| !line.trim().is_empty());
    let text = given.or(title).unwrap_or(name).trim();
    text.chars().filter(|c| !c.is_control()).take(DESCRIPTION_CHARS).collect()
}

/// What a list of tools comes to.
struct Listed {
    /// The agent's own tools; it has no others.
    tools: Vec<String>,
    /// Rules for what needs no asking; everything else is denied.
    rules: Vec<String>,
    /// Rules that take away the servers of which the list names nothing.
    unnamed: Vec<String>,
}

/// Takes a list of tools apart. Names that are neither the agent's nor of a server are told.
fn listed(list: &Value, servers: &Map<String, Value>, notes: &mut Vec<String>) -> anyhow::Result<Listed> {
    let Some(list) = list.as_array() else { bail!("{TOOLS} is not a list") };
    ensure!(list.len() <= tools::TOOLS, "{TOOLS} has more than {} entries", tools::TOOLS);
    let server_of = |rule: &str| {
        let rest = rule.strip_prefix(OF_SERVER)?;
        let names = |server: &&String| {
            rest.strip_prefix(server.as_str()).is_some_and(|tool| tool.is_empty() || tool.starts_with("__"))
        };
        servers.keys().find(names)
    };
    let (mut tools, mut rules): (Vec<String>, Vec<String>) = Default::default();
    let mut named: Vec<&String> = Vec::new();
    for entry in list {
        let Some(entry) = entry.as_str() else { bail!("{TOOLS} has an entry that is not a text") };
        let name = entry.split('(').next().unwrap_or_default();
        let own = name.starts_with(|first: char| first.is_ascii_uppercase()) && is_name(name);
        let server = server_of(entry);
        if !is_rule(entry) || !(own || server.is_some()) {
            let shown = entry.escape_debug();
            notes.push(if entry.starts_with(OF_SERVER) {
                format!("{TOOLS}: \"{shown}\" is of no server in {SERVERS}, and was left out")
            } else {
                format!("{TOOLS}: \"{shown}\" is no tool of the agent, and was left out")
            });
            continue;
        }
        if own && !tools.iter().any(|tool| tool == name) {
            tools.push(name.to_owned());
        }
        named.extend(server);
        rules.push(entry.to_owned());
    }
    let unnamed = servers.keys().filter(|server| !named.contains(server));
    Ok(Listed { tools, rules, unnamed: unnamed.map(|server| format!("{OF_SERVER}{server}")).collect() })
}

/// The names that an environment file sets. Its values are not taken: they are secrets or belong to another machine.
fn names(lines: &str, notes: &mut Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.trim_start_matches("export ").split('=').next().unwrap_or_default().trim();
        match check_environment_name(name) {
            Ok(()) if kept.iter().any(|other| other == name) => {}
            Ok(()) => kept.push(name.to_owned()),
            Err(reason) => notes.push(format!("{ENVIRONMENT}: {reason}; it was left out")),
        }
    }
    if !kept.is_empty() {
        notes.push(format!(
            "{ENVIRONMENT}: its values are not taken; a run may give {} as its environment",
            kept.join(", ")
        ));
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use caisson_domain::workflow::PermissionMode;

    use super::*;

    fn folder_with(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("Bug_Fixer");
        fs::create_dir(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        (root, path)
    }

    #[test]
    fn a_folder_of_automagik_loads_without_its_secrets() {
        let (_root, path) = folder_with(&[
            ("prompt.md", "# 🐛 Fixes bugs\n\nDo it.\n"),
            (
                "allowed_tools.json",
                r#"["Read", "Bash(make *)", "git_diff", "mcp__git__git_status", "mcp__linear__get"]"#,
            ),
            (
                ".mcp.json",
                r#"{"servers": {"git": {"command": "mcp-server-git", "args": ["-r", "."]}, "unused": {"command": "x"}}}"#,
            ),
            ("config.json", r#"{"display_name": "Fixer", "maxTurns": 40, "emoji": "x"}"#),
            (".env", "# ours\nexport CI=1\nDATABASE_URL=postgres://u:secret@h/d\nPATH=/x\nCI=2\n"),
            (".credentials.json", "{\"token\": \"secret\"}"),
        ]);
        let found = read(&path).unwrap();
        assert!(!found.text.contains("secret"), "{}", found.text);
        let workflow = parse(&found, &path.display().to_string()).unwrap();
        assert_eq!((workflow.name.as_str(), workflow.description.as_str()), ("bug-fixer", "Fixer"));
        assert!(found.active);
        assert_eq!(workflow.tools.unwrap(), ["Read", "Bash"]);
        assert_eq!(workflow.permission_mode, PermissionMode::DontAsk);
        assert_eq!(workflow.allowed_tools, ["Read", "Bash(make *)", "mcp__git__git_status"]);
        assert_eq!(workflow.disallowed_tools, ["mcp__unused"]);
        assert_eq!(workflow.max_turns, Some(40));
        assert_eq!(workflow.prompt, "# 🐛 Fixes bugs\n\nDo it.");
        assert!(workflow.mcp_servers.contains_key("git"));
        assert_eq!(workflow.caisson.environment, ["CI", "DATABASE_URL"]);
        let notes = found.notes.join("\n");
        assert!(
            notes.contains("git_diff") && notes.contains("PATH") && notes.contains("CI, DATABASE_URL"),
            "{notes}"
        );
        assert!(notes.contains("\"mcp__linear__get\" is of no server in .mcp.json"), "{notes}");
        assert!(notes.contains(".credentials.json: it is not read"), "{notes}");
    }

    #[test]
    fn a_folder_without_a_list_of_tools_has_all_of_them_and_one_may_say_that_it_is_not_active() {
        let (_root, path) =
            folder_with(&[("prompt.md", "x"), ("config.json", r#"{"active": false, "maxTurns": null}"#)]);
        let found = read(&path).unwrap();
        assert!(!found.active);
        let workflow = parse(&found, &path.display().to_string()).unwrap();
        assert_eq!((workflow.tools, workflow.permission_mode), (None, PermissionMode::BypassPermissions));
        assert!(workflow.allowed_tools.is_empty() && workflow.max_turns.is_none());
    }

    #[test]
    fn a_folder_that_cannot_be_used_says_why() {
        for (files, told) in [
            (&[("readme.md", "x")][..], "neither prompt.md nor allowed_tools.json"),
            (&[("allowed_tools.json", "{}")], "is not a list"),
            (&[("prompt.md", "x"), ("config.json", "{")], "is not JSON"),
            (&[("prompt.md", "x"), (".mcp.json", "{}")], "no object \"mcpServers\""),
            (
                &[("prompt.md", "x"), ("config.json", r#"{"maxTurns": "50"}"#)],
                "maxTurns is not a whole number",
            ),
            (
                &[("prompt.md", "x"), ("config.json", r#"{"active": "no"}"#)],
                "active is neither true nor false",
            ),
        ] {
            let (_root, path) = folder_with(files);
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
        let (_root, path) = folder_with(&[("prompt.md", &"x".repeat(WORKFLOW_BYTES + 1))]);
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("longer than"));
    }

    #[test]
    fn what_a_folder_comes_to_is_told_by_the_file_that_it_comes_from() {
        let deep = format!(
            r#"{{"mcpServers": {{"x": {{"command": "x", "env": {}1{}}}}}}}"#,
            "[".repeat(60),
            "]".repeat(60)
        );
        for (file, text, told) in [
            (".mcp.json", r#"{"mcpServers": {"x": {"args": []}}}"#, "has no command"),
            (".mcp.json", deep.as_str(), "too many levels"),
            ("config.json", r#"{"maxTurns": 0}"#, "maxTurns cannot be used"),
            ("prompt.md", "Look at {{ what }}.", "{{ what }}"),
        ] {
            let (_root, path) = folder_with(&[("prompt.md", "x"), (file, text)]);
            let found = read(&path).unwrap();
            let error = format!("{:#}", parse(&found, &path.display().to_string()).unwrap_err());
            assert!(error.contains(&format!("cannot be used: {file}: ")) && error.contains(told), "{error}");
            assert!(!error.contains("line "), "nobody has written a line: {error}");
        }
        let many = json!(vec!["Read"; tools::TOOLS + 1]).to_string();
        let (_root, path) = folder_with(&[("prompt.md", "x"), ("allowed_tools.json", &many)]);
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("allowed_tools.json has more than"));
        let root = tempfile::tempdir().unwrap();
        let odd = root.path().join("an odd name");
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join("prompt.md"), "x").unwrap();
        let error = format!("{:#}", parse(&read(&odd).unwrap(), "x").unwrap_err());
        assert!(error.contains("the folder's name: "), "{error}");
        let syntax = folder_with(&[("prompt.md", "x"), (".mcp.json", "{\n  \"mcpServers\": {,\n}")]);
        let error = format!("{:#}", read(&syntax.1).unwrap_err());
        assert!(error.contains(".mcp.json\" is not JSON") && error.contains("line 2"), "{error}");
    }
}
