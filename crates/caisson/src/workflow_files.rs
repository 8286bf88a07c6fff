//! Workflows on disk: files of our own format, and folders in Automagik's (`prompt.md`, `allowed_tools.json`, `.mcp.json`, `config.json`,
//! names of `.env`), which are made files of ours.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use caisson_domain::limits::WORKFLOW_BYTES;
use caisson_domain::tools::is_name;
use caisson_domain::workflow::{Workflow, check_environment_name};
use serde_json::{Map, Value, json};

/// Files of a folder that are read; what else is in it is left alone, `.credentials.json` above all.
const PROMPT: &str = "prompt.md";
const TOOLS: &str = "allowed_tools.json";
const SERVERS: &str = ".mcp.json";
const CONFIG: &str = "config.json";
const ENVIRONMENT: &str = ".env";
/// Longest description, in characters.
const DESCRIPTION_CHARS: usize = 200;

/// A workflow that was found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its file, or what its folder comes to as one.
    pub text: String,
    /// What of a folder was left out, and why.
    pub notes: Vec<String>,
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
    Ok(Found { text, notes: Vec::new() })
}

/// The workflow that was found.
///
/// # Errors
/// It cannot be used; the error says what to change.
pub(crate) fn parse(found: &Found, path: &Path) -> anyhow::Result<Workflow> {
    Workflow::parse(&found.text)
        .with_context(|| format!("the workflow of \"{}\" cannot be used", path.display()))
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
    // As upstream runs it: the sandbox is the wall. What the list of tools leaves out is not there at all.
    front.insert("permissionMode".to_owned(), json!("bypassPermissions"));
    if let Some(tools) = document(&path.join(TOOLS))? {
        front.insert("tools".to_owned(), json!(built_in(&tools, &mut notes)?));
    }
    if let Some(turns) = config.get("maxTurns").filter(|turns| turns.is_u64()) {
        front.insert("maxTurns".to_owned(), turns.clone());
    }
    if let Some(servers) = document(&path.join(SERVERS))? {
        let named = servers.get("mcpServers").or(servers.get("servers")).and_then(Value::as_object);
        let named = named.with_context(|| format!("{SERVERS} has no object \"mcpServers\""))?;
        front.insert("mcpServers".to_owned(), json!(named));
    }
    if let Some(lines) = text(&path.join(ENVIRONMENT))? {
        let names = names(&lines, &mut notes);
        front.insert("caisson".to_owned(), json!({ "environment": names }));
    }
    // JSON is YAML.
    Ok(Found { text: format!("---\n{}\n---\n{}\n", Value::Object(front), prompt.trim()), notes })
}

fn description(config: &Value, prompt: &str, name: &str) -> String {
    let given = ["description", "display_name"].iter().find_map(|key| config.get(key)?.as_str());
    let title =
        prompt.lines().map(|line| line.trim_start_matches(['#', ' '])).find(|line| !line.trim().is_empty());
    let text = given.or(title).unwrap_or(name).trim();
    text.chars().filter(|c| !c.is_control()).take(DESCRIPTION_CHARS).collect()
}

/// The agent's own tools in a list; those of MCP servers come with their servers, and names of neither kind are told.
fn built_in(tools: &Value, notes: &mut Vec<String>) -> anyhow::Result<Vec<String>> {
    let Some(list) = tools.as_array() else { bail!("{TOOLS} is not a list") };
    let mut kept = Vec::new();
    for tool in list {
        let Some(tool) = tool.as_str() else { bail!("{TOOLS} has an entry that is not a text") };
        if tool.starts_with(|first: char| first.is_ascii_uppercase()) && is_name(tool) {
            kept.push(tool.to_owned());
        } else if !tool.starts_with("mcp__") {
            notes.push(format!(
                "{TOOLS}: \"{}\" is no tool of the agent, and was left out",
                tool.escape_debug()
            ));
        }
    }
    Ok(kept)
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
            ("allowed_tools.json", r#"["Read", "Bash", "git_diff", "mcp__git__git_status"]"#),
            (".mcp.json", r#"{"servers": {"git": {"command": "mcp-server-git", "args": ["-r", "."]}}}"#),
            ("config.json", r#"{"display_name": "Fixer", "maxTurns": 40, "emoji": "x"}"#),
            (".env", "# ours\nexport CI=1\nDATABASE_URL=postgres://u:secret@h/d\nPATH=/x\nCI=2\n"),
            (".credentials.json", "{\"token\": \"secret\"}"),
        ]);
        let found = read(&path).unwrap();
        assert!(!found.text.contains("secret"), "{}", found.text);
        let workflow = parse(&found, &path).unwrap();
        assert_eq!((workflow.name.as_str(), workflow.description.as_str()), ("bug-fixer", "Fixer"));
        assert_eq!(workflow.tools.unwrap(), ["Read", "Bash"]);
        assert_eq!(workflow.max_turns, Some(40));
        assert_eq!(workflow.prompt, "# 🐛 Fixes bugs\n\nDo it.");
        assert!(workflow.mcp_servers.contains_key("git"));
        assert_eq!(workflow.caisson.environment, ["CI", "DATABASE_URL"]);
        let notes = found.notes.join("\n");
        assert!(
            notes.contains("git_diff") && notes.contains("PATH") && notes.contains("CI, DATABASE_URL"),
            "{notes}"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_used_says_why() {
        for (files, told) in [
            (&[("readme.md", "x")][..], "neither prompt.md nor allowed_tools.json"),
            (&[("allowed_tools.json", "{}")], "is not a list"),
            (&[("prompt.md", "x"), ("config.json", "{")], "is not JSON"),
            (&[("prompt.md", "x"), (".mcp.json", "{}")], "no object \"mcpServers\""),
        ] {
            let (_root, path) = folder_with(files);
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
        let (_root, path) = folder_with(&[("prompt.md", &"x".repeat(WORKFLOW_BYTES + 1))]);
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("longer than"));
    }
}
