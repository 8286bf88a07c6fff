//! A branch that somebody else has pushed meanwhile, on real parts: the agent is given the conflict, and what it does not solve
//! is kept.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_git};
use testkit::world::{World, WorldSpec, until};

const END: Duration = Duration::from_mins(2);
const BRANCH: &str = "feat/greeting";
const FILE: &str = "GREETING.md";

testkit::on_every_engine_and_database! {
    a_conflict_with_the_runs_branch_is_solved_by_the_agent_in_one_turn
    a_conflict_that_the_agent_leaves_fails_the_run_and_its_work_is_kept
    a_base_that_moved_is_no_conflict
}

fn bash(command: &str) -> Value {
    json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}})
}

/// A world whose agent writes a greeting, and then does `solving` when it is told of a conflict.
async fn world(ground: Ground, solving: &[Value]) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let work = format!(
        "printf 'Good morning.\\n' > {FILE} && git add -A && git commit -q -m 'feat: greet in the morning'"
    );
    let scenario = json!({"greeting": {"prompts": [
        [bash(&work), {"text": "It greets."}],
        {"when_prompt_contains": "has moved on", "steps": solving},
    ]}});
    let spec = WorldSpec {
        scenario: "greeting".to_owned(),
        scenarios: vec![scenario.to_string()],
        ..WorldSpec::on(ground)
    };
    Some(World::start(&parts, spec).await.unwrap())
}

/// Pushes a greeting of somebody else to a branch that begins at `main`; its commit.
fn push(world: &World, branch: &str) -> String {
    let clone = clone_branch(&world.bare, "main").unwrap();
    let checkout = clone.path().join("checkout");
    std::fs::write(checkout.join(FILE), "Good evening.\n").unwrap();
    run_git(&checkout, &["add", "-A"]).unwrap();
    run_git(&checkout, &["commit", "-q", "-m", "feat: greet in the evening"]).unwrap();
    run_git(&checkout, &["push", "-q", "origin", &format!("HEAD:refs/heads/{branch}")]).unwrap();
    run_git(&checkout, &["rev-parse", "HEAD"]).unwrap()
}

async fn run(world: &World) -> (Value, Vec<Value>) {
    let mut body = world.run_body();
    body["base"] = json!("main");
    body["branch"] = json!(BRANCH);
    let id = world.api.submit(&body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    (run, world.api.events(&id).await.unwrap())
}

fn notes(events: &[Value]) -> String {
    let notes = events.iter().filter(|event| event["kind"] == "note");
    notes.map(|event| event["data"]["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
}

async fn a_conflict_with_the_runs_branch_is_solved_by_the_agent_in_one_turn(ground: Ground) {
    let solve = format!(
        "printf 'Good morning, and good evening.\\n' > {FILE} && git add {FILE} && GIT_EDITOR=true git rebase --continue"
    );
    let Some(world) = world(ground, &[bash(&solve), json!({"text": "Both are there."})]).await else {
        return;
    };
    let there = push(&world, BRANCH);
    let (run, events) = run(&world).await;
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    assert_eq!(run["result"], "It greets.", "the task's last words, not those of the conflict");
    let commits = run_git(&world.bare, &["log", "--format=%H %s", &format!("main..{BRANCH}")]).unwrap();
    let expected = [
        format!("{} feat: greet in the morning", run["pushed_commit"].as_str().unwrap()),
        format!("{there} feat: greet in the evening"),
    ];
    assert_eq!(commits.lines().collect::<Vec<_>>(), expected, "nobody's commit is lost");
    let text = run_git(&world.bare, &["show", &format!("{BRANCH}:{FILE}")]).unwrap();
    assert_eq!(text, "Good morning, and good evening.");
    let told = notes(&events);
    assert!(
        told.contains(&format!("has a conflict with it in {FILE}; the agent was asked to solve it")),
        "{told}"
    );
}

async fn a_conflict_that_the_agent_leaves_fails_the_run_and_its_work_is_kept(ground: Ground) {
    // It stages the file with the marks of the conflict in it, which is not to have solved it.
    let pretend = format!("git add {FILE} && GIT_EDITOR=true git rebase --continue");
    for (solving, why) in [
        (vec![json!({"text": "I cannot say which is right."})], "still has it"),
        (vec![bash(&pretend), json!({"text": "Solved."})], "it left a mark of it in"),
        (vec![bash("git rebase --abort"), json!({"text": "No."})], "does not come after what the branch has"),
    ] {
        let Some(world) = world(ground, &solving).await else { return };
        let there = push(&world, BRANCH);
        let (run, _) = run(&world).await;
        assert_eq!(run["failure"]["kind"], "conflict", "{run:#}\n{}", world.server.log());
        let message = run["failure"]["message"].as_str().unwrap();
        assert!(message.contains(FILE) && message.contains(why), "{message}");
        assert_eq!(run_git(&world.bare, &["rev-parse", BRANCH]).unwrap(), there, "the branch is as it was");
        let id = run["id"].as_str().unwrap();
        let diff = world.api.bytes(&format!("/v1/runs/{id}/artifacts/diff.patch")).await.unwrap();
        let diff = String::from_utf8(diff).unwrap();
        assert!(diff.contains("+Good morning.") && !diff.contains("evening"), "the work as it was: {diff}");
        let bundle = world.api.bytes(&format!("/v1/runs/{id}/artifacts/work.bundle")).await.unwrap();
        assert!(!bundle.is_empty());
    }
}

async fn a_base_that_moved_is_no_conflict(ground: Ground) {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"));
    let Some(parts) = parts else { return };
    let work = format!("printf 'Good morning.\\n' > {FILE}; {}", until("go"));
    let scenario = json!({"slow": {"prompts": [
        [bash(&work), {"text": "It greets."}],
        {"when_prompt_contains": "commit message", "steps": [{"text": "feat: greet in the morning"}]},
    ]}});
    let scenarios = vec![scenario.to_string()];
    let spec = WorldSpec { scenario: "slow".to_owned(), scenarios, ..WorldSpec::on(ground) };
    let world = World::start(&parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    world.inside_a_tool(&id, END).await.unwrap();
    let there = push(&world, "main");
    world.let_go(&id, "go").await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let branch = run["branch"].as_str().unwrap();
    assert_eq!(run_git(&world.bare, &["rev-parse", "main"]).unwrap(), there, "the base is nobody's to push");
    assert_eq!(run_git(&world.bare, &["show", &format!("{branch}:{FILE}")]).unwrap(), "Good morning.");
}
