//! Inputs that come while checks run, within the turns that the shim itself begins, and when the agent takes none any more.

use caisson_domain::check_result::{CheckOutcome, CheckResult};
use caisson_domain::input::InputState::{Delivered, Held, Undelivered};
use caisson_domain::protocol::{Ending, InputBody, JournalBody, RunWork};
use caisson_domain::repository_file::CheckName;
use serde_json::{Value, json};

use crate::gateway::json_line;
use crate::inputs::{texts, told, told_so_many};
use crate::real_cli::{WAITING, bash, queued_so_many, real, sandbox};
use crate::sandbox::{BRANCH, Sandbox, git_work, plain_work};

/// A check that tells in the workspace's `.git` that it runs, waits for a file in its home if it is to, and passes once `mended` is there.
const CHECK: &str = "
import os, sys, time
with open('.git/checked', 'a') as file:
    file.write('x')
while not os.path.exists(os.path.join(os.environ['HOME'], sys.argv[1])):
    time.sleep(0.02)
sys.exit(0 if os.path.exists('mended') else 'mended is missing')
";
/// What is always there.
const NOTHING: &str = ".";
/// What comes with [`Sandbox::let_go`].
const GO: &str = "go";
/// What never comes.
const NEVER: &str = "never";

/// A run with the real agent on a repository whose first check waits for a file.
fn checked(sandbox: &Sandbox, awaited: &str) -> RunWork {
    let seed = sandbox.place("seed");
    let file = format!("lint: [python3, check.py, '{awaited}']\ntest: [python3, check.py, '{NOTHING}']\n");
    std::fs::write(seed.join(".caisson.yaml"), file).unwrap();
    sandbox.seed("check.py", CHECK, "build: add a check");
    let mut work = real(git_work("Add a line"));
    work.checks = vec![CheckName::Lint, CheckName::Test];
    work
}

fn started(sandbox: &mut Sandbox, work: &RunWork) {
    sandbox.deliver(work.clone());
    sandbox.start();
}

/// Waits until so many checks have begun.
async fn checking(sandbox: &Sandbox, count: usize) {
    let begun = std::time::Instant::now();
    let place = sandbox.place("workspace/.git/checked");
    while !std::fs::read_to_string(&place).is_ok_and(|all| all.len() >= count) {
        assert!(begun.elapsed() < crate::gateway::PATIENCE, "{}", sandbox.shim_log());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn queue(text: &str) -> InputBody {
    InputBody::Queue { text: text.to_owned() }
}

/// The results of the checks that were told last.
fn results(sandbox: &Sandbox) -> Vec<CheckResult> {
    let results = |body| match body {
        JournalBody::Checks(results) => Some(results),
        _ => None,
    };
    sandbox.bodies().into_iter().rev().find_map(results).unwrap()
}

fn outcomes(sandbox: &Sandbox) -> Vec<CheckOutcome> {
    results(sandbox).into_iter().map(|result| result.outcome).collect()
}

const PASSED: [CheckOutcome; 2] = [CheckOutcome::Passed, CheckOutcome::Passed];

#[tokio::test]
async fn what_comes_while_checks_run_reaches_the_turn_that_mends_and_one_behind_it() {
    let mend = bash("touch mended && git add mended && git commit -qm 'fix: mend'");
    let scenario = json!({ "prompts": [
        [{ "text": "First." }],
        { "when_prompt_contains": "STEERED", "steps": [mend, { "text": "Mended, as told." }] },
        { "when_prompt_contains": "fail on your work", "steps": [mend, { "text": "Mended." }] },
        { "when_prompt_contains": "QUEUED", "steps": [{ "text": "And that." }] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = checked(&sandbox, GO);
    started(&mut sandbox, &work);
    checking(&sandbox, 1).await;
    sandbox.give(&work.run, queue("QUEUED"));
    sandbox.steer(&work.run, "STEERED");
    told_so_many(&sandbox, 2).await;
    assert!(!sandbox.place("workspace/mended").exists(), "the check still runs, and they are told of");
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(told(&sandbox.bodies()), [(1, Held), (2, Held), (2, Delivered), (1, Delivered)]);
    assert_eq!(
        outcome.result.as_deref(),
        Some("And that."),
        "what people send counts: {:?}",
        texts(&sandbox)
    );
    assert_eq!(outcomes(&sandbox), PASSED);
    assert!(results(&sandbox).iter().all(|result| result.turns == 1));
    let said =
        sandbox.gateway.with(|state| state.calls.iter().filter(|call| call.contains("STEERED")).count());
    assert!(said > 0, "the model has it");
    assert_eq!(sandbox.remote(&["log", "-1", "--format=%s", BRANCH]), "fix: mend");
    model.shutdown().await;
}

#[tokio::test]
async fn what_comes_while_checks_pass_has_a_turn_of_its_own_and_is_checked_again() {
    let scenario = json!({ "prompts": [
        [bash("touch mended && git add mended && git commit -qm 'fix: mend'"), { "text": "First." }],
        { "when_prompt_contains": "STEERED", "steps": [bash("git rm -q mended"), { "text": "Removed." }] },
        { "when_prompt_contains": "fail on your work", "steps": [
            bash("touch mended && git add mended && git commit -qm 'fix: mend again'"), { "text": "Mended." },
        ] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = checked(&sandbox, GO);
    started(&mut sandbox, &work);
    checking(&sandbox, 1).await;
    sandbox.steer(&work.run, "STEERED");
    told_so_many(&sandbox, 1).await;
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(told(&sandbox.bodies()), [(1, Held), (1, Delivered)]);
    assert_eq!(texts(&sandbox), ["First.", "Removed.", "Mended."]);
    assert_eq!(outcome.result.as_deref(), Some("Removed."));
    assert_eq!(outcomes(&sandbox), PASSED);
    model.shutdown().await;
}

#[tokio::test]
async fn an_interruption_ends_the_check_that_runs_and_those_behind_it() {
    let scenario = json!({ "prompts": [
        [bash("git commit -q --allow-empty -m 'fix: begin'"), { "text": "First." }],
        { "when_prompt_contains": "GO-ON", "steps": [
            bash("touch mended && sed -i s/never/./ .caisson.yaml && git add -A && git commit -qm 'fix: go on'"), { "text": "Did that." },
        ] },
    ] });
    for text in [None, Some("GO-ON")] {
        let Some((mut sandbox, model)) = sandbox(scenario.clone()).await else { return };
        let work = checked(&sandbox, NEVER);
        started(&mut sandbox, &work);
        checking(&sandbox, 1).await;
        sandbox.give(&work.run, InputBody::Interrupt { text: text.map(str::to_owned) });
        if text.is_some() {
            // The repository's commands are those of the anchor, so the same check runs again.
            checking(&sandbox, 2).await;
            sandbox.give(&work.run, InputBody::Interrupt { text: None });
        }
        let outcome = sandbox.outcome(&work.run).await;
        sandbox.exit().await;
        assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
        assert_eq!(outcomes(&sandbox), [CheckOutcome::Failed, CheckOutcome::NotStarted]);
        let output = results(&sandbox)[0].output.clone();
        assert_eq!(output.as_deref(), Some("an input has interrupted the checks"));
        let (states, texts_of): (&[_], &[&str]) = match text {
            None => (&[(1, Delivered)], &["First."]),
            Some(_) => (&[(1, Held), (1, Delivered), (2, Delivered)], &["First.", "Did that."]),
        };
        assert_eq!(
            (told(&sandbox.bodies()).as_slice(), texts(&sandbox)),
            (states, texts_of.iter().map(|text| (*text).to_owned()).collect())
        );
        model.shutdown().await;
    }
}

#[tokio::test]
async fn what_comes_within_the_turn_that_mends_is_given_within_it_and_behind_it() {
    let scenario = json!({ "prompts": [
        [{ "text": "First." }],
        { "when_prompt_contains": "fail on your work", "steps": [
            bash(&format!("touch mended && git add mended && git commit -qm 'fix: mend' && {WAITING}")),
            { "text": "Mended." },
        ] },
        { "when_prompt_contains": "STEERED", "steps": [{ "text": "Mended, as told." }] },
        { "when_prompt_contains": "QUEUED", "steps": [{ "text": "And that." }] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let work = checked(&sandbox, NOTHING);
    started(&mut sandbox, &work);
    let mends = |body: &JournalBody| {
        json_line(body)
            .is_some_and(|line| line["type"] == "assistant" && line.to_string().contains("touch mended"))
    };
    sandbox.gateway.wait_for("the turn", |state| state.bodies().iter().any(mends).then_some(())).await;
    sandbox.steer(&work.run, "STEERED");
    sandbox.give(&work.run, queue("QUEUED"));
    told_so_many(&sandbox, 2).await;
    queued_so_many(&sandbox, 3).await;
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!((outcome.ending, outcome.pushed), (Ending::Completed, true), "{}", sandbox.shim_log());
    assert_eq!(told(&sandbox.bodies()), [(1, Delivered), (2, Held), (2, Delivered)]);
    assert_eq!(texts(&sandbox), ["First.", "Mended, as told.", "And that."]);
    assert_eq!(outcomes(&sandbox), PASSED);
    model.shutdown().await;
}

#[tokio::test]
async fn what_comes_while_an_output_is_asked_for_again_is_given() {
    let give = json!({ "tool": { "name": "StructuredOutput", "input": { "a": 1 } } });
    let scenario = json!({ "prompts": [
        [{ "text": "No output." }],
        { "when_prompt_contains": "cannot be used", "steps": [
            bash(WAITING), give,
        ] },
        { "when_prompt_contains": "STEERED", "steps": [give] },
    ] });
    let Some((mut sandbox, model)) = sandbox(scenario).await else { return };
    let mut work = real(plain_work("Look"));
    work.output_schema =
        Some(json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] }));
    started(&mut sandbox, &work);
    let again = |body: &JournalBody| {
        json_line(body)
            .is_some_and(|line: Value| line["type"] == "assistant" && line.to_string().contains("time.sleep"))
    };
    sandbox.gateway.wait_for("the second turn", |state| state.bodies().iter().any(again).then_some(())).await;
    sandbox.steer(&work.run, "STEERED");
    queued_so_many(&sandbox, 3).await;
    sandbox.let_go();
    let outcome = sandbox.outcome(&work.run).await;
    sandbox.exit().await;
    assert_eq!(outcome.ending, Ending::Completed, "{}", sandbox.shim_log());
    assert_eq!(told(&sandbox.bodies()), [(1, Delivered)]);
    let output = |body: &JournalBody| matches!(body, JournalBody::Output { output } if output["a"] == 1);
    assert_eq!(sandbox.bodies().iter().filter(|body| output(body)).count(), 1);
    model.shutdown().await;
}

#[tokio::test]
async fn what_the_agents_standard_input_has_no_room_for_is_told_as_undelivered() {
    /// More than wait for an agent that reads nothing, in the pipe and before it.
    const MOST: usize = 300;
    /// As many as are read at once.
    const BATCH: usize = 25;
    let script = "
import time
def prompt(uuid, text, number):
    emit({'type': 'waiting'})
    while not os.path.exists(os.environ['HOME'] + '/go'):
        time.sleep(0.01)
    done(uuid)
";
    let mut sandbox = Sandbox::with_agent(script);
    let work = plain_work("Wait");
    started(&mut sandbox, &work);
    let waits = |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("waiting"));
    sandbox.gateway.wait_for("the agent", |state| state.bodies().iter().any(waits).then_some(())).await;
    let text = "x".repeat(8 * 1024);
    for batch in 1..=MOST / BATCH {
        for _ in 0..BATCH {
            sandbox.steer(&work.run, &text);
        }
        told_so_many(&sandbox, batch * BATCH).await;
    }
    let states = told(&sandbox.bodies());
    let written = states.iter().take_while(|(_, state)| *state == Delivered).count();
    assert!((256..MOST).contains(&written), "{written}");
    assert!(states[written..].iter().all(|(_, state)| *state == Undelivered));
    sandbox.let_go();
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.exit().await;
    let prompts = sandbox.agent_log().iter().filter(|line| line.starts_with("prompt ")).count();
    assert_eq!(prompts, written + 1, "the agent has what is told as delivered, and nothing else");
}

#[tokio::test]
async fn an_agent_that_has_closed_its_standard_input_is_told_nothing() {
    let script = "
import time
def prompt(uuid, text, number):
    os.close(0)
    emit({'type': 'waiting'})
    while not os.path.exists(os.environ['HOME'] + '/go'):
        time.sleep(0.01)
    done(uuid)
    os._exit(0)
";
    let mut sandbox = Sandbox::with_agent(script);
    let work = plain_work("Wait");
    started(&mut sandbox, &work);
    let waits = |body: &JournalBody| matches!(body, JournalBody::Line { line } if line.contains("waiting"));
    sandbox.gateway.wait_for("the agent", |state| state.bodies().iter().any(waits).then_some(())).await;
    // With the first, it is noticed that nobody reads.
    for count in 1..=3 {
        sandbox.give(&work.run, InputBody::Interrupt { text: None });
        told_so_many(&sandbox, count).await;
    }
    assert_eq!(told(&sandbox.bodies())[1..], [(2, Undelivered), (3, Undelivered)]);
    sandbox.let_go();
    assert_eq!(sandbox.outcome(&work.run).await.ending, Ending::Completed, "{}", sandbox.shim_log());
    sandbox.exit().await;
}
