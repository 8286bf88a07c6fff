//! What commands print about runs that go on: the real agent in a real sandbox.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::process::ServerSpec;
use testkit::world::{World, WorldSpec};

use super::{output_of, steady_words};

/// Commands that are typed here.
pub(crate) const TYPED: [&str; 9] =
    ["run", "attach", "input", "approvals", "approve", "deny", "session fork", "demo", "image scan"];
const END: Duration = Duration::from_mins(1);
/// What an account of a run has before what happened, in characters: the time, and a mark.
const HEAD: usize = 12;
/// What it has before live text, in characters.
const INDENT: usize = 11;

fn workflows() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, caisson) in [("patient", ""), ("careful", ", approvals: {ask: [\"Bash(touch *)\"]}")] {
        let text = format!(
            "---\nname: {name}\ndescription: Waits.\npermissionMode: bypassPermissions\ncaisson: {{publish: none{caisson}}}\n---\nWork.\n"
        );
        std::fs::write(directory.path().join(format!("{name}.md")), text).unwrap();
    }
    directory
}

fn scenarios() -> Vec<String> {
    let bash = |command: &str| json!({"tool": {"name": "Bash", "input": {"description": "Run it", "command": command}}});
    let sleep = bash("python3 -c 'import time; time.sleep(600)'");
    let touch = |name: &str| bash(&format!("touch /workspace/{name}"));
    let by_words =
        |words: &str, text: &str| json!({"when_prompt_contains": words, "steps": [{"text": text}]});
    vec![
        json!({"listening": {"prompts": [
            [sleep, {"text": "?"}], by_words("python 3", "Python 3 it is."), by_words("the docs", "The docs are written."),
        ]}})
        .to_string(),
        json!({"touching": {"prompts": [[touch("one"), touch("two"), touch("three"), {"text": "Done."}]]}}).to_string(),
    ]
}

/// Somebody at a terminal.
struct Typist<'w> {
    world: &'w World,
    /// What was printed, by the words of the command.
    printed: Vec<(String, String)>,
}

impl Typist<'_> {
    /// Types a command, with something on standard input; what is printed goes to its group.
    fn type_in(&mut self, group: &str, words: &[&str], input: &str) {
        let output = output_of(self.world.client(words), input);
        let (out, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{words:?}: {out}\n{error}");
        let quoted = |word: &&str| match (word.contains('"'), word.contains(' ')) {
            (true, _) => format!("'{word}'"),
            (false, true) => format!("\"{word}\""),
            (false, false) => (*word).to_owned(),
        };
        let typed: Vec<String> = words.iter().map(quoted).collect();
        let mut told = format!("$ caisson {}\n{out}", typed.join(" "));
        if !error.is_empty() {
            write!(told, "--- standard error\n{error}").unwrap();
        }
        told.push_str("--- ends with 0\n\n");
        let world = self.world;
        let places = [
            (world.directory.path().to_str().unwrap(), "$DIR"),
            (world.server.base.as_str(), "http://HOST:PORT"),
            (world.host.url("").as_str(), "https://git.example.com/"),
        ]
        .map(|(place, name)| (place.to_owned(), name));
        let told = places.iter().fold(told, |told, (place, name)| told.replace(place, name));
        self.printed.push((group.to_owned(), steady(&told)));
    }
}

/// Without what differs each time: times, ids, commits, and what the machine's walls are.
fn steady(text: &str) -> String {
    let words = steady_words(text);
    let lines = words.lines().map(|line| short_hashes(&timeless(line)));
    let lines: Vec<_> = lines.filter(|line| !line.contains("weaker than it could be")).collect();
    let whole: Vec<_> = lines.iter().filter(|line| !is_fragment(line, &lines)).map(String::as_str).collect();
    whole.join("\n") + "\n"
}

/// Whether a line is a part of what is said as a whole elsewhere: live text comes as it comes, and a line that comes between
/// cuts it.
fn is_fragment(line: &str, all: &[String]) -> bool {
    let said = |line: &str| Some(line.strip_prefix(&" ".repeat(INDENT))?.trim().to_owned());
    let Some(part) = said(line).filter(|part| !part.is_empty()) else { return false };
    all.iter().filter_map(|other| said(other)).any(|other| other.len() > part.len() && other.contains(&part))
}

/// An account's line without its time; what is said is the same whether it came as live text or not.
fn timeless(line: &str) -> String {
    let head: String = line.chars().take(HEAD).collect();
    let Some((time, mark)) = head.split_once("s  ") else { return line.to_owned() };
    if time.trim_start().parse::<f64>().is_err() {
        return line.to_owned();
    }
    let said: String = line.chars().skip(HEAD).collect();
    if mark.starts_with('|') { format!("{:INDENT$}{said}", "") } else { format!("    0.0s  {mark}{said}") }
}

/// Words of hexadecimal digits as long as the short form of a commit's or a run's id are zeros.
fn short_hashes(line: &str) -> String {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let (mut out, mut word) = (String::new(), String::new());
    for c in line.chars().chain(['\n']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        let short = matches!(word.len(), 7 | 8 | 10) && word.chars().all(is_digit);
        out.push_str(&if short { "0".repeat(word.len()) } else { std::mem::take(&mut word) });
        word.clear();
        out.push(c);
    }
    out.truncate(out.len() - 1);
    out
}

fn look(printed: &[(String, String)]) {
    let groups: std::collections::BTreeSet<&String> = printed.iter().map(|(group, _)| group).collect();
    for group in groups {
        let of_group = printed.iter().filter(|(of, _)| of == group);
        let text: String = of_group.map(|(_, text)| text.as_str()).collect();
        insta::assert_snapshot!(group.replace(' ', "_"), text);
    }
}

async fn submit(world: &World, workflow: &str, scenario: &str) -> String {
    let prompt = format!("[[scn:{scenario}]] Work.");
    let body = json!({"workflow": workflow, "prompt": prompt, "repository": null});
    world.api.submit(&body).await.unwrap()
}

/// Waits until the run's agent has asked so often, and waits for an answer.
async fn asked(world: &World, id: &str, times: usize) {
    let begun = Instant::now();
    loop {
        let approvals = world.api.get(&format!("/v1/runs/{id}/approvals")).await.unwrap().body;
        let items = approvals["items"].as_array().unwrap();
        if items.len() == times && items.iter().any(|one| one["state"] == "waiting") {
            return;
        }
        assert!(begun.elapsed() < END, "{approvals:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A task, followed to its end, and a fork of what came of it.
async fn run_and_fork(typist: &mut Typist<'_>) {
    let world = typist.world;
    let url = world.repository_url();
    let task = "The test suite fails. Fix the bug.";
    typist.type_in("run", &["run", "--repo", &url, "--branch", "fix/tenth-piece", task], "");
    let listed = world.api.get("/v1/runs").await.unwrap().body;
    let run = &listed["items"][0];
    world.wait_tidy().await.unwrap();
    let session = run["session_id"].as_str().unwrap();
    let fork = |branch| vec!["session", "fork", session, "--branch", branch];
    typist.type_in("session fork", &fork("try/another"), "");
    typist.type_in("session fork", &[&fork("try/third")[..], &["--json"]].concat(), "");
    let task = ["run", "--session", session, "--detach", "And once more."];
    typist.type_in("run", &task, "");
    let listed = world.api.get("/v1/runs").await.unwrap().body;
    world.api.wait_end(listed["items"][0]["id"].as_str().unwrap(), END).await.unwrap();
}

/// Three times asked: allowed, denied, and allowed with something else.
async fn answers(typist: &mut Typist<'_>) {
    let world = typist.world;
    let id = submit(world, "careful", "touching").await;
    asked(world, &id, 1).await;
    typist.type_in("approvals", &["approvals", &id], "");
    typist.type_in("approvals", &["approvals", &id, "--json"], "");
    typist.type_in("approve", &["approve", &id], "");
    asked(world, &id, 2).await;
    typist.type_in("deny", &["deny", &id, "--message", "Use what is there.", "--json"], "");
    asked(world, &id, 3).await;
    let changed = r#"{"command":"touch /workspace/changed"}"#;
    typist.type_in("approve", &["approve", &id, "--input", changed, "--json"], "");
    world.api.wait_end(&id, END).await.unwrap();
    typist.type_in("approvals", &["approvals", &id], "");
    let id = submit(world, "careful", "touching").await;
    asked(world, &id, 1).await;
    typist.type_in("deny", &["deny", &id], "");
    world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    world.api.wait_end(&id, END).await.unwrap();
}

/// Something queued, something within the turn, and an interruption from `attach`, which follows to the end.
async fn inputs(typist: &mut Typist<'_>) {
    let world = typist.world;
    let id = submit(world, "patient", "listening").await;
    world.inside_a_tool(&id, END).await.unwrap();
    typist.type_in("input", &["input", &id, "Then write the docs.", "--queue"], "");
    typist.type_in("input", &["input", &id, "Use Python 3.", "--json"], "");
    world.api.wait_event(&id, END, |event| event["kind"] == "input.delivered").await.unwrap();
    typist.type_in("attach", &["attach", &id], "/help\n/interrupt\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn what_is_printed_about_a_run_that_goes_on_changes_only_on_purpose() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let workflows = workflows();
    let variables = vec![("WORKFLOWS_DIR".to_owned(), workflows.path().display().to_string())];
    let spec = WorldSpec { scenarios: scenarios(), variables, ..WorldSpec::on(Engine::Local) };
    let world = World::start(&parts, spec).await.unwrap();
    let mut typist = Typist { world: &world, printed: Vec::new() };
    run_and_fork(&mut typist).await;
    answers(&mut typist).await;
    inputs(&mut typist).await;
    look(&typist.printed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn what_the_demo_prints_changes_only_on_purpose() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spec = ServerSpec::new(&parts, directory.path(), "http://127.0.0.1:9").unwrap();
    let mut command = spec.command(&["demo", "--engine", "local", "--delay-scale", "0"]);
    command.env_remove("CAISSON_MODEL__API_KEY");
    let output = output_of(command, "");
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
    let out = out.replace(directory.path().to_str().unwrap(), "$DIR");
    let (out, took) = out.rsplit_once("\" in ").unwrap();
    assert!(took.ends_with(" s\n"), "{took}");
    let out = format!("{out}\" in N s\n");
    look(&[("demo".to_owned(), steady(&format!("$ caisson demo --engine local --delay-scale 0\n{out}")))]);
}

/// What is known of an image with a hole in git that a later version closes.
fn hole(file: &Path, told: &Value) {
    let git = told["packages"].as_array().unwrap().iter().find(|package| package["name"] == "git").unwrap();
    let release = told["release"].as_str().unwrap();
    let hole =
        json!({"releases": {release: {"status": "resolved", "fixed_version": "1:999", "urgency": "high"}}});
    let known = json!({git["source"].as_str().unwrap(): {"CVE-2099-0001": hole}});
    std::fs::write(file, known.to_string()).unwrap();
}

#[test]
fn what_a_look_at_an_image_prints_changes_only_on_purpose() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    let scan = |arguments: &[&str]| {
        let output = output_of(spec.command(&[&["image", "scan"], arguments].concat()), "");
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (_, told) = scan(&["--advisories", "http://127.0.0.1:9/data.json", "--format", "json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let file = directory.path().join("advisories.json");
    hole(&file, &told);
    let (code, out) = scan(&["--advisories", file.to_str().unwrap()]);
    assert_eq!(code, Some(3), "{out}");
    // The image's packages are those of the day on which it was built.
    let packages = told["packages"].as_array().unwrap();
    let sources: std::collections::BTreeSet<_> =
        packages.iter().map(|package| package["source"].as_str()).collect();
    let git = packages.iter().find(|package| package["name"] == "git").unwrap();
    let out = out
        .replace(
            &format!("{} packages from {} sources", packages.len(), sources.len()),
            "N packages from N sources",
        )
        .replace(told["release"].as_str().unwrap(), "RELEASE")
        .replace(git["source_version"].as_str().unwrap(), "VERSION");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let out: Vec<String> = out.lines().map(words).collect();
    let told = format!("$ caisson image scan --advisories FILE\n{}\n--- ends with 3\n", out.join("\n"));
    look(&[("image_scan".to_owned(), told)]);
}
