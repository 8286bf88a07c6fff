//! Whose files steer a run, from the request to the pushed branch: a branch that somebody outside wrote, the workflow's own
//! words, and the paths that it forbids.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_git};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(1);
/// The branch that somebody outside wrote.
const HEAD: &str = "pr/7";

testkit::on_every_engine_and_database! {
    a_branch_from_outside_steers_nothing_and_the_default_branch_does_where_it_may
    a_workflow_forbids_a_path_and_the_run_says_so
    no_run_writes_a_branch_that_steers_unless_its_workflow_says_so
}

/// What the agent does: it tells what it was given, in a file that is pushed.
const SCENARIO: &str = r#"{"tell": {"prompts": [
  [{"tool": {"name": "Bash", "input": {"description": "Tell", "command":
     "cat ~/.caisson/anchor/CLAUDE.md > told.txt; ls -a > there.txt; git diff refs/caisson/anchor HEAD -- CLAUDE.md > seen.txt"}}},
   {"text": "Told."}],
  {"when_prompt_contains": "commit message", "steps": [{"text": "docs: tell what was given"}]}
]}}"#;

/// The workflow `told` with this `caisson` block.
fn workflow(block: &str) -> String {
    format!(
        "---\nname: told\ndescription: Tells\npermissionMode: bypassPermissions\ncaisson: {block}\n---\nDo it.\n"
    )
}

/// A world whose server has the workflow `told` with this `caisson` block.
async fn world(ground: Ground, block: &str, scenario: &str) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let workflows = tempfile::tempdir().unwrap();
    std::fs::write(workflows.path().join("told.md"), workflow(block)).unwrap();
    let spec = WorldSpec {
        scenario: scenario.to_owned(),
        scenarios: vec![SCENARIO.to_owned()],
        variables: vec![("WORKFLOWS_DIR".to_owned(), workflows.path().display().to_string())],
        ..WorldSpec::on(ground)
    };
    // The server has read them when it has started.
    Some(World::start(&parts, spec).await.unwrap())
}

fn steer(seed: &Path, word: &str) {
    std::fs::create_dir_all(seed.join(".claude")).unwrap();
    std::fs::write(seed.join("CLAUDE.md"), format!("{word} text\n")).unwrap();
    let hook = json!([{"hooks": [{"type": "command", "command": format!("touch hooked-by-{word}")}]}]);
    let settings = json!({"hooks": {"SessionStart": hook, "PreToolUse": hook}});
    std::fs::write(seed.join(".claude/settings.json"), settings.to_string()).unwrap();
    let mcp = json!({"mcpServers": {"m": {"command": "touch", "args": [format!("served-by-{word}")]}}});
    std::fs::write(seed.join(".mcp.json"), mcp.to_string()).unwrap();
    if word == "head" {
        // Its change to the instructions would not be shown.
        std::fs::write(seed.join(".gitattributes"), "CLAUDE.md -diff\n").unwrap();
    }
    run_git(seed, &["add", "-A"]).unwrap();
    run_git(seed, &["commit", "-q", "-m", "docs: steer"]).unwrap();
}

/// Gives the repository files that steer: "base" on its default branch, "head" on [`HEAD`].
fn seed(world: &World) {
    let clone = clone_branch(&world.bare, "main").unwrap();
    let checkout = clone.path().join("checkout");
    let bare = world.bare.to_str().unwrap();
    for (word, branch) in [("base", "main"), ("head", HEAD)] {
        steer(&checkout, word);
        run_git(&checkout, &["push", "-q", bare, &format!("HEAD:refs/heads/{branch}")]).unwrap();
    }
}

async fn finished(world: &World, body: &Value) -> (Value, Vec<Value>) {
    let id = world.api.submit(body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    let events = world.api.events(&id).await.unwrap();
    (run, events)
}

fn steered(events: &[Value]) -> &Value {
    &events.iter().find(|event| event["kind"] == "workspace.steered").unwrap()["data"]
}

async fn a_branch_from_outside_steers_nothing_and_the_default_branch_does_where_it_may(ground: Ground) {
    for settings in [false, true] {
        let block = format!("{{trust: {{settings: {settings}}}}}");
        let Some(world) = world(ground, &block, "tell").await else { return };
        seed(&world);
        let mut body = world.run_body();
        (body["workflow"], body["base"]) = (json!("told"), json!(HEAD));
        let (run, events) = finished(&world, &body).await;
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
        let branch = run["branch"].as_str().unwrap();
        let show = |path: &str| run_git(&world.bare, &["show", &format!("{branch}:{path}")]).unwrap();
        assert_eq!(show("told.txt"), "base text");
        assert_eq!(show("CLAUDE.md"), "head text", "what the branch has stays its own");
        assert!(show("seen.txt").contains("+head text"), "and is seen");
        let there = show("there.txt");
        assert!(!there.contains("by-head"), "{there}");
        assert_eq!(there.contains("hooked-by-base"), settings, "{there}");
        assert_eq!(there.contains("served-by-base"), settings, "{there}");
        let told = steered(&events);
        assert_eq!((&told["settings"], &told["anchor"]), (&json!(settings), &Value::Null));
        assert_eq!(
            told["replaced"],
            json!([".claude/settings.json", ".gitattributes", ".mcp.json", "CLAUDE.md"])
        );
        assert_eq!(told["commit"], run_git(&world.bare, &["rev-parse", "main"]).unwrap());
        // Whoever asks for a run cannot make the branch trusted.
        body["anchor"] = json!(HEAD);
        let refused = world.api.post("/v1/runs", &body).await.unwrap();
        assert_eq!(refused.status, 422, "{}", refused.body);
        assert!(refused.body.to_string().contains("anchor_not_trusted"), "{}", refused.body);
    }
}

async fn a_workflow_forbids_a_path_and_the_run_says_so(ground: Ground) {
    let Some(world) = world(ground, "{forbidden_paths: ['**/*.py']}", "cart").await else { return };
    let mut body = world.run_body();
    body["workflow"] = json!("told");
    let (run, events) = finished(&world, &body).await;
    assert_eq!(run["failure"]["kind"], "policy_denied", "{run:#}\n{}", world.server.log());
    let message = run["failure"]["message"].as_str().unwrap();
    assert!(message.contains(".py") && message.contains("the run's workflow forbids"), "{message}");
    let denied = events.iter().find(|event| event["kind"] == "gateway.denied").unwrap();
    assert_eq!(denied["data"]["rule"], "forbidden_path");
    assert!(run_git(&world.bare, &["rev-parse", "--verify", run["branch"].as_str().unwrap()]).is_err());
}

async fn no_run_writes_a_branch_that_steers_unless_its_workflow_says_so(ground: Ground) {
    let block = "{trust: {branches: [release/*]}}";
    let Some(world) = world(ground, block, "tell").await else { return };
    let main = || run_git(&world.bare, &["rev-parse", "main"]).unwrap();
    let before = main();
    let mut body = world.run_body();
    (body["workflow"], body["branch"]) = (json!("told"), json!("release/1"));
    let refused = world.api.post("/v1/runs", &body).await.unwrap();
    assert_eq!((refused.status, &refused.body["code"]), (422, &json!("branch_trusted")), "{}", refused.body);
    // Only the git host knows which branch is its default one.
    body["branch"] = json!("main");
    let (run, events) = finished(&world, &body).await;
    assert_eq!(run["failure"]["kind"], "policy_denied", "{run:#}\n{}", world.server.log());
    let message = run["failure"]["message"].as_str().unwrap();
    assert!(message.contains("is the repository's default branch"), "{message}");
    assert!(message.contains("name another branch"), "{message}");
    let denied = events.iter().find(|event| event["kind"] == "gateway.denied").unwrap();
    assert!(denied["data"]["remedy"].as_str().unwrap().contains("trust.publish"), "{denied}");
    assert_eq!((world.model_calls().len(), main()), (0, before.clone()), "told before anything is paid for");
    let text = workflow("{trust: {publish: true}}");
    let keeper = world.api_with("workflows").unwrap();
    let put = keeper.put("/v1/workflows/told", &json!({"text": text})).await.unwrap();
    assert_eq!(put.status, 200, "{}", put.body);
    let (run, _) = finished(&world, &body).await;
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    assert!(main() != before && run["pushed_commit"] == main().as_str(), "{run:#}");
}
