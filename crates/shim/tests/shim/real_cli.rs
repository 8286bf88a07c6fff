//! The real Claude Code against a scripted model. `TEST_CLAUDE_BIN` names its program; without it these tests are
//! skipped, and with `TEST_REQUIRE=1` that is a failure.

use std::time::Duration;

use caisson_domain::protocol::{Ending, JournalBody, MessageAuthor, RunWork, StopReason};
use caisson_domain::run::FailureKind;
use scripted_model::{Options, ScriptedModel};
use serde_json::{Value, json};

use crate::gateway::{Model, json_line};
use crate::sandbox::{BRANCH, Sandbox, failed, git_work, plain_work, run_id};

/// A sandbox with the real agent, and the scripted model behind its gateway; none if the agent is not there.
pub(crate) async fn sandbox(scenario: Value) -> Option<(Sandbox, ScriptedModel)> {
    let Some(program) = variable("TEST_CLAUDE_BIN") else {
        assert_ne!(variable("TEST_REQUIRE").as_deref(), Some("1"), "TEST_CLAUDE_BIN is not set");
        skipped();
        return None;
    };
    let options = Options {
        inline_scenarios: vec![json!({ "it": scenario }).to_string()],
        default_scenario: "it".to_owned(),
        ..Options::default()
    };
    let model = ScriptedModel::start(options).await.unwrap();
    let mut sandbox = Sandbox::with_repository("");
    sandbox.set("agent", program);
    let address = model.address().unwrap().to_string();
    sandbox.gateway.with(|state| state.model = Model::Upstream(address));
    Some((sandbox, model))
}

#[expect(clippy::print_stdout, reason = "a test that cannot run here says so")]
fn skipped() {
    println!("SKIPPED: TEST_CLAUDE_BIN does not name the agent's program");
}

#[expect(clippy::disallowed_methods, reason = "tests are told by variables what is there")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Waits until the clone is held, and the agent that was started beside it has had three times as long as it needs to look at its directory.
pub(crate) async fn hold_the_clone(sandbox: &Sandbox) {
    sandbox.gateway.wait_for("the clone", |state| (!state.carried.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// The CLI refuses to skip permissions as root, which tests may be, unless it is told that it is in a sandbox.
pub(crate) fn real(mut work: RunWork) -> RunWork {
    work.agent.environment.insert("IS_SANDBOX".to_owned(), "1".to_owned());
    work
}

pub(crate) fn bash(command: &str) -> Value {
    json!({ "tool": { "name": "Bash", "input": { "command": command, "description": "Run it" } } })
}

/// A command of the agent that ends once the test lets it, with [`Sandbox::let_go`].
pub(crate) const WAITING: &str = r#"python3 -c 'import os, time
while not os.path.exists(os.environ["HOME"] + "/go"): time.sleep(0.02)'"#;

/// Waits until the agent has so many prompts and messages in its queue, or had them there: its own prompts count as well.
pub(crate) async fn queued_so_many(sandbox: &Sandbox, count: usize) {
    let queued = |body: &JournalBody| {
        json_line(body).is_some_and(|line| line["type"] == "command_lifecycle" && line["state"] == "queued")
    };
    let waits =
        |bodies: Vec<JournalBody>| (bodies.iter().filter(|body| queued(body)).count() >= count).then_some(());
    sandbox.gateway.wait_for("the agent's queue", |state| waits(state.bodies())).await;
}

fn lines(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.bodies().iter().filter_map(json_line).collect()
}

#[tokio::test]
async fn the_agent_changes_a_file_and_writes_the_commit_message() {
    let scenario = json!({ "prompts": [
        [bash("cat a.txt && printf 'two\\n' >> a.txt && cat a.txt"), { "text": "I added a line." }],
        { "when_prompt_contains": "commit message", "steps": [{ "text": "feat: add a line\n\nIt was missing." }] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let outcome = sandbox.run(real(git_work("Add a line to a.txt"))).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(outcome.result.as_deref(), Some("I added a line."));
    assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:a.txt")]), "one\ntwo");
    let message = sandbox.remote(&["log", "-1", "--format=%B", BRANCH]);
    assert_eq!(message, "feat: add a line\n\nIt was missing.");
    let told = |body: &JournalBody| matches!(body, JournalBody::Commit { author: MessageAuthor::Agent, .. });
    assert!(sandbox.bodies().iter().any(told));
    // One result for each of the two prompts, in one process, which ended well by itself.
    assert_eq!(lines(&sandbox).iter().filter(|line| line["type"] == "result").count(), 2);
    let exits: Vec<_> =
        sandbox.bodies().into_iter().filter(|body| matches!(body, JournalBody::AgentExited { .. })).collect();
    assert_eq!(exits, [JournalBody::AgentExited { code: Some(0), signal: None, stderr: String::new() }]);
    // Started before the checkout was there, the agent still saw it as it is.
    let first = sandbox.gateway.with(|state| state.calls[0].clone());
    assert!(first.contains("Is a git repository: true"), "{first}");
    assert!(first.contains("feat: begin") && first.contains(&format!("Current branch: {BRANCH}")));
    assert!(!lines(&sandbox).iter().any(|line| line["type"] == "stream_event"));
    assert!(!sandbox.gateway.with(|state| state.deltas.is_empty()));
    model.shutdown().await;
}

/// The agent waits before it looks at its directory: what it tells the model of the repository is there, however long the clone takes.
#[tokio::test]
async fn an_agent_that_is_held_for_a_slow_clone_sees_the_whole_checkout() {
    let scenario = json!({ "prompts": [[{ "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    sandbox.gateway.with(|state| state.hold = Some("/git/"));
    let work = real(git_work("Look"));
    sandbox.deliver(work.clone());
    sandbox.start();
    hold_the_clone(&sandbox).await;
    sandbox.gateway.with(|state| state.hold = None);
    let outcome = sandbox.outcome(&work.run).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.exit().await;
    let first = sandbox.gateway.with(|state| state.calls[0].clone());
    for part in ["Is a git repository: true", &format!("Current branch: {BRANCH}"), "feat: begin"] {
        assert!(first.contains(part), "{part}: {first}");
    }
    model.shutdown().await;
}

#[tokio::test]
async fn the_agent_commits_itself() {
    let scenario = json!({ "prompts": [
        [bash("printf 'two\\n' >> a.txt && git commit -qam 'fix: add a line'"), { "text": "Done." }],
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let outcome = sandbox.run(real(git_work("Add a line"))).await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(
        sandbox.remote(&["log", "-1", "--format=%an: %s", BRANCH]),
        "Caisson \"the\" Agent: fix: add a line"
    );
    assert_eq!(lines(&sandbox).iter().filter(|line| line["type"] == "result").count(), 1);
    model.shutdown().await;
}

#[tokio::test]
async fn a_running_tool_is_interrupted_by_a_stop() {
    let wait = "python3 -c \"import time; time.sleep(600)\"";
    let Some((mut sandbox, model)) = sandbox(json!({ "prompts": [[bash(wait), { "text": "?" }]] })).await
    else {
        return;
    };
    let work = real(git_work("Wait"));
    sandbox.deliver(work.clone());
    sandbox.start();
    let uses_tool =
        |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("tool_use"));
    sandbox.gateway.wait_for("the tool", |state| state.bodies().iter().any(uses_tool).then_some(())).await;
    sandbox.stop(&work.run, StopReason::Cancel);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Stopped(StopReason::Cancel));
    sandbox.exit().await;
    let result = lines(&sandbox).into_iter().find(|line| line["type"] == "result").unwrap();
    assert!(result["terminal_reason"].as_str().unwrap().starts_with("aborted_"), "{result}");
    model.shutdown().await;
}

#[tokio::test]
async fn a_conversation_goes_on_in_a_later_run() {
    let scenario = json!({ "prompts": [[{ "text": "First." }], [{ "text": "Second." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let first = real(plain_work("One"));
    sandbox.deliver(first.clone());
    sandbox.start();
    assert_eq!(sandbox.outcome(&first.run).await.result.as_deref(), Some("First."));
    let mut second = RunWork { run: run_id(2), prompt: "Two".to_owned(), ..first };
    second.agent.resume = true;
    sandbox.deliver(second.clone());
    assert_eq!(sandbox.outcome(&second.run).await.result.as_deref(), Some("Second."));
    sandbox.exit().await;
    model.shutdown().await;
}

#[tokio::test]
async fn the_agent_does_not_notice_that_the_gateway_died() {
    let scenario = json!({ "prompts": [
        [bash("printf 'two\\n' >> a.txt"), { "text": "I added a line that is long enough to be cut." }],
        { "when_prompt_contains": "commit message", "steps": [{ "text": "feat: add a line" }] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    sandbox.gateway.with(|state| state.hold = Some("/model/"));
    let work = real(git_work("Add a line to a.txt"));
    sandbox.deliver(work.clone());
    sandbox.start();
    let called =
        |state: &crate::gateway::State| state.carried.iter().any(|(path, ..)| path.starts_with("/model/"));
    sandbox.gateway.wait_for("the first call", |state| called(state).then_some(())).await;
    sandbox.gateway.down().await;
    sandbox.gateway.with(|state| state.hold = None);
    sandbox.gateway.up();
    // And once more in the middle of a reply, which the agent repeats by itself.
    let answered = |body: &JournalBody| {
        json_line(body).is_some_and(|line| line["type"] == "user" && line["isReplay"] != true)
    };
    sandbox.gateway.wait_for("the tool's result", |s| s.bodies().iter().any(answered).then_some(())).await;
    sandbox.gateway.down().await;
    sandbox.gateway.up();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(sandbox.remote(&["log", "--format=%s", &format!("main..{BRANCH}")]), "feat: add a line");
    model.shutdown().await;
}

#[tokio::test]
async fn a_model_reply_that_breaks_off_is_called_for_again_by_the_agent() {
    let scenario = json!({ "prompts": [[{ "text": "A text that takes more than one piece to be sent." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    sandbox.gateway.with(|state| state.cut_after = Some(1));
    let outcome = sandbox.run(real(plain_work("Say something"))).await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(outcome.result.as_deref(), Some("A text that takes more than one piece to be sent."));
    assert!(sandbox.gateway.with(|state| state.calls.len()) > 1);
    model.shutdown().await;
}

#[tokio::test]
async fn an_api_that_refuses_the_credential_fails_the_run_at_once() {
    let refused = json!({ "status": 403, "error_type": "permission_error", "message": "no longer allowed" });
    let Some((mut sandbox, model)) = sandbox(json!({ "prompts": [[refused]] })).await else { return };
    let outcome = sandbox.run(real(plain_work("x"))).await;
    failed(&outcome, FailureKind::ProviderAuth);
    model.shutdown().await;
}
