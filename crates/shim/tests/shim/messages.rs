//! Messages to the real agent within its turn: when it takes them up, and what the turn's end is then.

use caisson_domain::protocol::{Ending, JournalBody, MessageAuthor, RunWork, StopReason};
use serde_json::{Value, json};

use crate::gateway::json_line;
use crate::real_cli::{WAITING, bash, queued_so_many, real, sandbox};
use crate::sandbox::{BRANCH, Sandbox, git_work};

const MESSAGE: &str = "Wrap up now, said whoever pays.";

fn started(sandbox: &mut Sandbox) -> RunWork {
    let work = real(git_work("Add a line"));
    sandbox.deliver(work.clone());
    sandbox.start();
    work
}

/// Waits until the model was called so often.
async fn called(sandbox: &Sandbox, times: usize) {
    sandbox.gateway.wait_for("a call", |state| (state.calls.len() >= times).then_some(())).await;
}

async fn tool_begun(sandbox: &Sandbox) {
    let uses_tool =
        |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("tool_use"));
    sandbox.gateway.wait_for("the tool", |state| state.bodies().iter().any(uses_tool).then_some(())).await;
}

/// Which calls carry the message.
fn told(sandbox: &Sandbox) -> Vec<bool> {
    sandbox.gateway.with(|state| state.calls.iter().map(|call| call.contains(MESSAGE)).collect())
}

fn results(sandbox: &Sandbox) -> Vec<Value> {
    let lines = sandbox.bodies();
    lines.iter().filter_map(json_line).filter(|line| line["type"] == "result").collect()
}

#[tokio::test]
async fn a_message_is_taken_up_between_two_tool_calls_of_the_turn() {
    let scenario = json!({ "prompts": [
        [bash(&format!("printf 'two\\n' >> a.txt && {WAITING}")), bash("exit 1")],
        { "when_prompt_contains": MESSAGE, "steps": [
            bash("git commit -qam 'fix: add a line'"), { "text": "Wrapped up." },
        ] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    tool_begun(&sandbox).await;
    sandbox.steer(&work.run, MESSAGE);
    queued_so_many(&sandbox, 2).await;
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(outcome.result.as_deref(), Some("Wrapped up."));
    assert_eq!(sandbox.remote(&["log", "--format=%s", &format!("main..{BRANCH}")]), "fix: add a line");
    assert_eq!(told(&sandbox), [false, true, true]);
    let results = results(&sandbox);
    assert_eq!(results.len(), 1, "it is one turn: {results:?}");
    let echoes = |line: &Value| line["isReplay"] == true && line.to_string().contains(MESSAGE);
    assert_eq!(sandbox.bodies().iter().filter_map(json_line).filter(echoes).count(), 1, "it is journaled");
    model.shutdown().await;
}

/// Whether the agent still takes it into the turn or begins another one for it: nothing is published before it is answered.
#[tokio::test]
async fn a_message_that_comes_with_the_last_reply_is_answered_before_the_work_is_published() {
    let scenario = json!({ "prompts": [
        [bash("printf 'two\\n' >> a.txt"), { "text": "All is done now. ", "text_repeat": 40, "chunk_delay_ms": 50 }],
        { "when_prompt_contains": MESSAGE, "steps": [
            bash("printf 'three\\n' >> a.txt && git commit -qam 'fix: add two lines'"), { "text": "Wrapped up." },
        ] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    called(&sandbox, 2).await;
    sandbox.steer(&work.run, MESSAGE);
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(sandbox.remote(&["log", "--format=%s", &format!("main..{BRANCH}")]), "fix: add two lines");
    assert_eq!(told(&sandbox), [false, false, true, true]);
    // Claude Code 2.1.330 begins another turn; what came of the task is what its own turn ended with.
    assert!(outcome.result.is_some_and(|text| text.starts_with("All is done now.")));
    let by_agent =
        |body: &JournalBody| matches!(body, JournalBody::Commit { author: MessageAuthor::Agent, .. });
    assert_eq!(sandbox.bodies().iter().filter(|body| by_agent(body)).count(), 1);
    model.shutdown().await;
}

#[tokio::test]
async fn a_run_that_was_told_to_wrap_up_can_still_be_stopped() {
    let wait = "python3 -c \"import time; time.sleep(600)\"";
    let scenario = json!({ "prompts": [[bash(wait), { "text": "?" }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    tool_begun(&sandbox).await;
    sandbox.steer(&work.run, MESSAGE);
    queued_so_many(&sandbox, 2).await;
    sandbox.stop(&work.run, StopReason::Timeout);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Stopped(StopReason::Timeout));
    sandbox.exit().await;
    model.shutdown().await;
}
