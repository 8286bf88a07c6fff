//! Approvals with the real agent: it asks, waits as long as it takes, and does as it is answered.

use std::time::Duration;

use caisson_domain::approval::{Answer, ApprovalWork};
use caisson_domain::input::InputState;
use caisson_domain::protocol::{Ending, InputBody, JournalBody, RunWork, StopReason};
use caisson_domain::workflow::PermissionMode;
use serde_json::{Value, json};

use crate::gateway::json_line;
use crate::real_cli::{bash, real, sandbox};
use crate::sandbox::{Sandbox, plain_work};

/// A run that asks.
fn asking(prompt: &str, mode: PermissionMode, ask: &[&str]) -> RunWork {
    let mut work = real(plain_work(prompt));
    work.agent.permission_mode = mode;
    let ask = ask.iter().map(|&rule| rule.to_owned()).collect();
    work.agent.approvals = Some(ApprovalWork { ask });
    work
}

fn write(content: &str) -> Value {
    json!({ "tool": { "name": "Write", "input": { "file_path": "/workspace/asked.txt", "content": content } } })
}

/// What is asked for the n-th time, from 0: its name, the tool and what it is to be given.
async fn asked(sandbox: &Sandbox, number: usize) -> (String, String, Value) {
    let found = |bodies: Vec<JournalBody>| {
        let asked = bodies.into_iter().filter_map(|body| match body {
            JournalBody::ApprovalRequested { request, tool, input, .. } => Some((request, tool, input)),
            _ => None,
        });
        asked
            .skip(number)
            .map(|(request, tool, input)| (request, tool, serde_json::from_str(&input).unwrap()))
            .next()
    };
    sandbox.gateway.wait_for("a question", |state| found(state.bodies())).await
}

fn answer(sandbox: &Sandbox, work: &RunWork, request: &str, answer: Answer) {
    sandbox.give(&work.run, InputBody::Answer { request: request.to_owned(), answer });
}

fn text_of(sandbox: &Sandbox, part: &str) -> bool {
    sandbox.bodies().iter().filter_map(json_line).any(|line| line.to_string().contains(part))
}

#[tokio::test]
async fn a_tool_is_used_as_it_is_allowed_denied_or_changed() {
    let scenario = json!({ "prompts": [[write("as asked"), write("denied"), write("to be changed"), { "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let place = sandbox.place("workspace").join("asked.txt");
    let path = place.to_str().unwrap().to_owned();
    let work = asking("Write", PermissionMode::Default, &[]);
    sandbox.deliver(work.clone());
    sandbox.start();
    let at = |content: &str| json!({ "file_path": path, "content": content }).as_object().cloned();
    let (request, tool, input) = asked(&sandbox, 0).await;
    assert_eq!((tool.as_str(), &input["content"]), ("Write", &json!("as asked")));
    answer(&sandbox, &work, &request, Answer::Allow { input: at("first") });
    let (request, _, _) = asked(&sandbox, 1).await;
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "first");
    answer(&sandbox, &work, &request, Answer::Deny { message: "Not that one, said somebody.".to_owned() });
    let (request, _, _) = asked(&sandbox, 2).await;
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "first", "what is denied is not done");
    answer(&sandbox, &work, &request, Answer::Deny { message: "Nor that.".to_owned() });
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert!(text_of(&sandbox, "Not that one, said somebody."), "the agent is told why");
    let told = |body: &JournalBody| matches!(body, JournalBody::Input { state: InputState::Delivered, .. });
    assert_eq!(sandbox.bodies().iter().filter(|body| told(body)).count(), 3);
    model.shutdown().await;
}

#[tokio::test]
async fn a_rule_has_an_agent_ask_that_may_do_everything_else() {
    let scenario = json!({ "prompts": [[bash("echo free"), bash("touch asked-for"), { "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = asking("Touch", PermissionMode::BypassPermissions, &["Bash(touch *)"]);
    sandbox.deliver(work.clone());
    sandbox.start();
    let (request, tool, input) = asked(&sandbox, 0).await;
    assert_eq!((tool.as_str(), &input["command"]), ("Bash", &json!("touch asked-for")));
    let place = sandbox.place("workspace").join("asked-for");
    assert!(!place.exists());
    answer(&sandbox, &work, &request, Answer::Allow { input: None });
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.exit().await;
    assert!(place.exists());
    model.shutdown().await;
}

#[tokio::test]
async fn a_question_of_the_agent_is_answered_the_same_way() {
    let options = json!([{ "label": "Red", "description": "r" }, { "label": "Blue", "description": "b" }]);
    let questions = json!([{ "question": "Which colour?", "header": "Colour", "options": options, "multiSelect": false }]);
    let ask = json!({ "tool": { "name": "AskUserQuestion", "input": { "questions": questions } } });
    let scenario = json!({ "prompts": [[ask, { "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = asking("Ask", PermissionMode::BypassPermissions, &[]);
    sandbox.deliver(work.clone());
    sandbox.start();
    let (request, tool, mut input) = asked(&sandbox, 0).await;
    assert_eq!(
        (tool.as_str(), &input["questions"][0]["question"]),
        ("AskUserQuestion", &json!("Which colour?"))
    );
    input["answers"] = json!({ "Which colour?": "Blue" });
    answer(&sandbox, &work, &request, Answer::Allow { input: input.as_object().cloned() });
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.exit().await;
    let heard = sandbox.gateway.with(|state| state.calls.last().unwrap().clone());
    assert!(heard.contains("Blue"), "the model is told the answer");
    model.shutdown().await;
}

/// Nothing hangs: told to stop while it waits, the run ends at once, and the wait is over.
#[tokio::test]
async fn a_run_that_waits_for_an_answer_can_be_stopped() {
    let scenario = json!({ "prompts": [[write("x"), { "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = asking("Write", PermissionMode::Default, &[]);
    sandbox.deliver(work.clone());
    sandbox.start();
    asked(&sandbox, 0).await;
    sandbox.stop(&work.run, StopReason::Cancel);
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Stopped(StopReason::Cancel));
    sandbox.exit().await;
    model.shutdown().await;
}

/// Nothing hangs and nothing is forgotten: the answer may come after the gateway was away, and silence while waiting is
/// longer here than the agent may be silent.
#[tokio::test]
async fn an_answer_comes_after_the_gateway_was_away_and_waiting_is_no_silence() {
    let scenario = json!({ "prompts": [[write("x"), { "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    sandbox.set("tool_ms", 10_000);
    sandbox.set("silence_ms", 10_000);
    let work = asking("Write", PermissionMode::Default, &[]);
    sandbox.deliver(work.clone());
    sandbox.start();
    let (request, ..) = asked(&sandbox, 0).await;
    sandbox.gateway.down().await;
    tokio::time::sleep(Duration::from_secs(21)).await;
    sandbox.gateway.up();
    answer(&sandbox, &work, &request, Answer::Deny { message: "no".to_owned() });
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.exit().await;
    model.shutdown().await;
}

/// An agent whose workflow does not ask is denied at once, as ever.
#[tokio::test]
async fn an_agent_that_does_not_ask_is_denied_at_once() {
    let scenario = json!({ "prompts": [[write("x"), { "text": "Done." }]] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let mut work = real(plain_work("Write"));
    work.agent.permission_mode = PermissionMode::Default;
    assert_eq!(sandbox.run(work).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    let asks = |body: &JournalBody| matches!(body, JournalBody::ApprovalRequested { .. });
    assert!(!sandbox.bodies().iter().any(asks));
    model.shutdown().await;
}
