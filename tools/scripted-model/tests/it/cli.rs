//! The real coding CLI, driven against the scripted model in a clean environment.
//!
//! The path of its binary comes in `TEST_CLAUDE_BIN`. These tests rest on what Claude Code 2.1.330 does.

use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use git_conventional::Commit;
use scripted_model::{Options, Outcome, ScriptedModel};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::client::{PATIENCE, start, start_with};
use crate::examples::{copy_of_cart, examples, run, run_its_tests};

const BINARY: &str = "TEST_CLAUDE_BIN";

/// Finds the CLI, or says that the test is skipped.
pub(crate) fn binary(test: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the tester names the CLI to test with")]
    let path = std::env::var_os(BINARY).map(PathBuf::from);
    if path.is_none() {
        #[expect(clippy::print_stderr, reason = "a skipped test must say so")]
        let () = eprintln!("SKIPPED: {test}: set {BINARY} to the path of the claude binary to run it");
    }
    path
}

/// A CLI with a fresh home and a working directory.
pub(crate) struct Cli<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) directory: &'a Path,
    pub(crate) base_url: String,
    pub(crate) model: &'a str,
}

/// What a CLI printed, and its exit code.
pub(crate) struct Transcript {
    pub(crate) events: Vec<Value>,
    code: Option<i32>,
}

impl Transcript {
    /// The last result.
    pub(crate) fn result(&self) -> &Value {
        self.events.iter().rfind(|event| event["type"] == "result").expect("a result")
    }

    /// The content of every tool result, and whether it is an error.
    fn tool_results(&self) -> Vec<(String, bool)> {
        let users = self.events.iter().filter(|event| event["type"] == "user");
        let blocks = users.filter_map(|event| event["message"]["content"].as_array()).flatten();
        let results = blocks.filter(|block| block["type"] == "tool_result");
        results.map(|block| (block["content"].to_string(), block["is_error"] == true)).collect()
    }

    fn assert_success(&self, text: &str) {
        let result = self.result();
        assert_eq!(
            (&result["is_error"], &result["terminal_reason"], result["result"].as_str(), self.code),
            (&json!(false), &json!("completed"), Some(text), Some(0)),
            "{result}"
        );
    }
}

impl Cli<'_> {
    /// Sends the prompts one after the other, each once the one before has its result.
    pub(crate) async fn converse(&self, prompts: &[&str]) -> Transcript {
        tokio::time::timeout(PATIENCE, self.exchange(prompts)).await.expect("in time")
    }

    async fn exchange(&self, prompts: &[&str]) -> Transcript {
        let home = tempfile::tempdir().expect("a home");
        let mut child = self.command(home.path()).spawn().expect("the CLI starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut events: Vec<Value> = Vec::new();
        for prompt in prompts {
            let line = json!({"type": "user", "message": {"role": "user", "content": prompt}});
            stdin.write_all(format!("{line}\n").as_bytes()).await.expect("a prompt");
            while let Some(line) = lines.next_line().await.expect("a line") {
                events.push(serde_json::from_str(&line).expect("JSON"));
                if events.last().is_some_and(|event| event["type"] == "result") {
                    break;
                }
            }
        }
        drop(stdin);
        while let Some(line) = lines.next_line().await.expect("a line") {
            events.push(serde_json::from_str(&line).expect("JSON"));
        }
        Transcript { events, code: child.wait().await.expect("an end").code() }
    }

    fn command(&self, home: &Path) -> Command {
        #[expect(clippy::disallowed_methods, reason = "the test drives the CLI")]
        let mut command = Command::new(self.binary);
        command
            .args(["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"])
            .args([
                "--model",
                self.model,
                "--permission-mode",
                "dontAsk",
                "--allowedTools",
                "Bash,Read,Write,Edit",
            ])
            .args(["--setting-sources", "", "--strict-mcp-config"])
            .current_dir(self.directory)
            .env_clear()
            .envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8")])
            .env("HOME", home)
            .env("ANTHROPIC_BASE_URL", &self.base_url)
            .envs([("ANTHROPIC_AUTH_TOKEN", "test-token"), ("CLAUDE_CODE_MAX_RETRIES", "2")])
            .envs([("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"), ("DISABLE_AUTOUPDATER", "1")])
            .envs([("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1"), ("PYTHONDONTWRITEBYTECODE", "1")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// Runs one prompt of a built-in scenario in an empty directory.
async fn one_prompt(binary: &Path, scenario: &str) -> (Transcript, ScriptedModel, tempfile::TempDir) {
    let model = start(json!({})).await;
    let dir = tempfile::tempdir().expect("a directory");
    let base_url = model.scenario_url(scenario, "r");
    let cli = Cli { binary, directory: dir.path(), base_url, model: "claude-opus-5-5" };
    (cli.converse(&["hello"]).await, model, dir)
}

#[tokio::test]
async fn the_cli_gets_a_text_with_one_request() {
    let Some(binary) = binary("the_cli_gets_a_text_with_one_request") else { return };
    let (transcript, model, _dir) = one_prompt(&binary, "text").await;
    transcript.assert_success("Hello from the scripted model.");
    let records = model.records();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].outcome, records[0].usage_final), (Outcome::Complete, true));
    assert_eq!(records[0].headers["x-claude-code-session-id"], transcript.result()["session_id"]);
    assert!(records[0].authorization.is_some());
    model.shutdown().await;
}

#[tokio::test]
async fn the_cli_runs_tools_in_its_working_directory() {
    let Some(binary) = binary("the_cli_runs_tools_in_its_working_directory") else { return };
    let (transcript, model, dir) = one_prompt(&binary, "tools").await;
    transcript.assert_success("Done: hello.txt is written and edited.");
    assert_eq!(std::fs::read_to_string(dir.path().join("hello.txt")).expect("a file"), "alpha\ngamma\n");
    let results = transcript.tool_results();
    assert_eq!((results.len(), results.iter().any(|(_, is_error)| *is_error)), (4, false), "{results:?}");
    assert!(results[0].0.contains("hi-from-bash"));
    let steps: Vec<usize> =
        model.records().iter().filter_map(|record| Some(record.script.as_ref()?.step)).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4]);
    let served: u64 = model.records().iter().filter_map(|record| Some(record.usage?.output_tokens)).sum();
    assert_eq!(transcript.result()["usage"]["output_tokens"], served, "the witness counts as the CLI does");
    model.shutdown().await;
}

#[tokio::test]
async fn the_cli_recovers_from_one_cut() {
    let Some(binary) = binary("the_cli_recovers_from_one_cut") else { return };
    let (transcript, model, _dir) = one_prompt(&binary, "cut_once").await;
    transcript.assert_success("Recovered after a cut.");
    let outcomes: Vec<Outcome> = model.records().iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cut, Outcome::Complete]);
    model.shutdown().await;
}

#[tokio::test]
async fn the_cli_gives_up_at_once_on_403() {
    let Some(binary) = binary("the_cli_gives_up_at_once_on_403") else { return };
    let (transcript, model, _dir) = one_prompt(&binary, "e403").await;
    let result = transcript.result();
    assert_eq!((&result["is_error"], &result["api_error_status"]), (&json!(true), &json!(403)), "{result}");
    assert_eq!((transcript.code, model.records().len()), (Some(1), 1));
    model.shutdown().await;
}

#[tokio::test]
async fn the_cli_reads_compressed_replies() {
    let Some(binary) = binary("the_cli_reads_compressed_replies") else { return };
    let (transcript, model, _dir) = one_prompt(&binary, "gzip").await;
    transcript.assert_success("Compressed, whatever was asked for.");
    model.shutdown().await;
}

#[tokio::test]
async fn the_cli_falls_back_to_a_whole_reply_after_garbage() {
    let Some(binary) = binary("the_cli_falls_back_to_a_whole_reply_after_garbage") else { return };
    let (transcript, model, _dir) = one_prompt(&binary, "garbage_once").await;
    transcript.assert_success("Recovered after garbage.");
    let streams: Vec<Option<bool>> = model.records().iter().map(|record| record.stream).collect();
    assert_eq!(streams, [Some(true), Some(false)]);
    model.shutdown().await;
}

/// The example's scenarios without their delays.
async fn example_model() -> ScriptedModel {
    let delay_scale = "0".parse().expect("a scale");
    start_with(Options { scenarios: vec![examples()], delay_scale, ..Options::default() }).await
}

#[tokio::test]
async fn the_cli_repairs_the_example_and_names_the_commit() {
    let Some(binary) = binary("the_cli_repairs_the_example_and_names_the_commit") else { return };
    let model = example_model().await;
    let dir = copy_of_cart();
    let base_url = model.scenario_url("cart", "r");
    let cli = Cli { binary: &binary, directory: dir.path(), base_url, model: "claude-opus-5-5" };
    let transcript = cli.converse(&["Fix the failing test.", "Now write a commit message."]).await;
    assert!(run_its_tests(dir.path()).status.success());
    let results = transcript.tool_results();
    let failures: Vec<usize> = (0..results.len()).filter(|index| results[*index].1).collect();
    assert_eq!(failures, [0], "only the first run of the tests fails: {results:?}");
    let message = transcript.result()["result"].as_str().expect("text");
    assert_eq!(Commit::parse(message.trim_end()).expect("a commit message").type_().as_str(), "fix");
    model.shutdown().await;
}

#[tokio::test]
async fn the_cli_repairs_the_example_and_commits() {
    let Some(binary) = binary("the_cli_repairs_the_example_and_commits") else { return };
    let model = example_model().await;
    let dir = copy_of_cart();
    let git = |arguments: &[&str]| {
        let output = run(dir.path(), "git", arguments);
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    git(&["init", "--quiet"]);
    git(&["config", "user.name", "Test"]);
    git(&["config", "user.email", "test@example.com"]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message", "chore: start"]);
    let base_url = model.scenario_url("cart-commits", "r");
    let cli = Cli { binary: &binary, directory: dir.path(), base_url, model: "claude-opus-5-5" };
    let transcript = cli.converse(&["Fix the failing test and commit."]).await;
    assert_eq!(transcript.result()["is_error"], false, "{}", transcript.result());
    assert_eq!(git(&["status", "--porcelain"]), "");
    let message = git(&["log", "-1", "--format=%B"]);
    assert_eq!(Commit::parse(message.trim_end()).expect("a commit message").type_().as_str(), "fix");
    model.shutdown().await;
}
