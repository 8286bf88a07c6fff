//! Inputs to the real agent: within its turn, behind it, and in the place of what it does.

use caisson_domain::input::InputState;
use caisson_domain::protocol::{Ending, InputBody, JournalBody, RunWork};
use serde_json::{Value, json};

use crate::gateway::json_line;
use crate::real_cli::{WAITING, bash, real, sandbox};
use crate::sandbox::{BRANCH, Sandbox, git_work};

const SLEEP: &str = "python3 -c \"import time; time.sleep(600)\"";

fn started(sandbox: &mut Sandbox) -> RunWork {
    let work = real(git_work("Add a line"));
    sandbox.deliver(work.clone());
    sandbox.start();
    work
}

async fn tool_begun(sandbox: &Sandbox) {
    let uses_tool =
        |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("tool_use"));
    sandbox.gateway.wait_for("the tool", |state| state.bodies().iter().any(uses_tool).then_some(())).await;
}

/// How far the inputs are that the shim told of, in order.
pub(crate) fn told(bodies: &[JournalBody]) -> Vec<(i64, InputState)> {
    let told = |body: &JournalBody| match body {
        JournalBody::Input { seq, state } => Some((*seq, *state)),
        _ => None,
    };
    bodies.iter().filter_map(told).collect()
}

pub(crate) async fn told_so_many(sandbox: &Sandbox, count: usize) {
    let done = |bodies: Vec<JournalBody>| (told(&bodies).len() >= count).then_some(());
    sandbox.gateway.wait_for("what is told of the inputs", |state| done(state.bodies())).await;
}

pub(crate) fn texts(sandbox: &Sandbox) -> Vec<String> {
    let results = sandbox.bodies();
    let results = results.iter().filter_map(json_line).filter(|line| line["type"] == "result");
    results.map(|line| line["result"].as_str().unwrap_or("-").to_owned()).collect()
}

#[tokio::test]
async fn what_is_queued_has_turns_of_its_own_in_order_before_the_work_is_published() {
    let scenario = json!({ "prompts": [
        [bash(&format!("printf 'two\\n' >> a.txt && {WAITING}")), { "text": "First." }],
        { "when_prompt_contains": "AND-THREE", "steps": [bash("printf 'three\\n' >> a.txt"), { "text": "Second." }] },
        { "when_prompt_contains": "AND-FOUR", "steps": [
            bash("printf 'four\\n' >> a.txt && git commit -qam 'fix: add lines'"), { "text": "Third." },
        ] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    tool_begun(&sandbox).await;
    for text in ["AND-THREE", "AND-FOUR"] {
        sandbox.give(&work.run, InputBody::Queue { text: text.to_owned() });
    }
    told_so_many(&sandbox, 2).await;
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(outcome.result.as_deref(), Some("Third."), "the last turn is what the run comes to");
    assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:a.txt")]), "one\ntwo\nthree\nfour");
    assert_eq!(texts(&sandbox), ["First.", "Second.", "Third."]);
    let states = [
        (1, InputState::Held),
        (2, InputState::Held),
        (1, InputState::Delivered),
        (2, InputState::Delivered),
    ];
    assert_eq!(told(&sandbox.bodies()), states);
    model.shutdown().await;
}

#[tokio::test]
async fn an_interruption_ends_the_tool_and_the_agent_goes_on_with_its_text() {
    let scenario = json!({ "prompts": [
        [bash(SLEEP), { "text": "?" }],
        { "when_prompt_contains": "GO-ON", "steps": [
            bash("printf 'two\\n' >> a.txt && git commit -qam 'fix: add a line'"), { "text": "Did that instead." },
        ] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    tool_begun(&sandbox).await;
    sandbox.give(&work.run, InputBody::Interrupt { text: Some("GO-ON with this".to_owned()) });
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(outcome.result.as_deref(), Some("Did that instead."));
    assert_eq!(sandbox.remote(&["log", "-1", "--format=%s", BRANCH]), "fix: add a line");
    assert_eq!(told(&sandbox.bodies()), [(1, InputState::Held), (1, InputState::Delivered)]);
    model.shutdown().await;
}

#[tokio::test]
async fn an_interruption_without_a_text_publishes_what_there_is() {
    let scenario = json!({ "prompts": [
        [bash("printf 'two\\n' >> a.txt && git commit -qam 'fix: add a line'"), bash(SLEEP), { "text": "?" }],
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    let sleeps =
        |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("time.sleep"));
    sandbox.gateway.wait_for("the sleep", |state| state.bodies().iter().any(sleeps).then_some(())).await;
    sandbox.give(&work.run, InputBody::Interrupt { text: None });
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(outcome.result, None);
    assert_eq!(sandbox.remote(&["show", &format!("{BRANCH}:a.txt")]), "one\ntwo");
    model.shutdown().await;
}

#[tokio::test]
async fn an_interruption_goes_before_what_is_queued_and_two_of_them_end_two_things() {
    let scenario = json!({ "prompts": [
        [bash(SLEEP), { "text": "?" }],
        { "when_prompt_contains": "SECOND", "steps": [bash(SLEEP), { "text": "?" }] },
        { "when_prompt_contains": "THIRD", "steps": [{ "text": "Third." }] },
        { "when_prompt_contains": "QUEUED", "steps": [
            bash("printf 'two\\n' >> a.txt && git commit -qam 'fix: add a line'"), { "text": "Queued." },
        ] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    tool_begun(&sandbox).await;
    sandbox.give(&work.run, InputBody::Queue { text: "QUEUED".to_owned() });
    sandbox.give(&work.run, InputBody::Interrupt { text: Some("SECOND".to_owned()) });
    told_so_many(&sandbox, 2).await;
    let tools = |bodies: Vec<JournalBody>| {
        let uses = |line: &Value| line["type"] == "assistant" && line.to_string().contains("tool_use");
        (bodies.iter().filter_map(json_line).filter(uses).count() >= 2).then_some(())
    };
    sandbox.gateway.wait_for("the second tool", |state| tools(state.bodies())).await;
    sandbox.give(&work.run, InputBody::Interrupt { text: Some("THIRD".to_owned()) });
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(outcome.result.as_deref(), Some("Queued."));
    let last: Vec<String> = texts(&sandbox).into_iter().rev().take(2).collect();
    assert_eq!(last, ["Queued.", "Third."]);
    model.shutdown().await;
}

#[tokio::test]
async fn what_is_queued_for_an_agent_that_fails_is_told_as_undelivered() {
    let scenario = json!({ "prompts": [
        [bash(WAITING), { "status": 403, "error_type": "permission_error", "message": "no" }],
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = started(&mut sandbox);
    tool_begun(&sandbox).await;
    sandbox.give(&work.run, InputBody::Queue { text: "x".to_owned() });
    told_so_many(&sandbox, 1).await;
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert!(matches!(outcome.ending, Ending::Failed(_)), "{:?}", outcome.ending);
    assert_eq!(told(&sandbox.bodies()), [(1, InputState::Held), (1, InputState::Undelivered)]);
    model.shutdown().await;
}
