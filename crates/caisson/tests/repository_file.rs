//! What a repository says of itself, on real parts: the image that it chooses, and checks whose outcome people are told.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::api::Api;
use testkit::docker::docker;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_git};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(2);
/// Where the image lies that repositories may choose here.
const ALLOWED: &str = "caisson-test/chosen";

testkit::on_every_engine_and_database! {
    a_repository_chooses_an_image_among_those_that_the_operator_allows
    checks_that_still_fail_are_told_and_keep_no_work_back
    what_is_formatted_is_pushed_and_what_is_cached_stays_with_the_session
}

async fn world(ground: Ground, scenarios: Vec<String>, scenario: &str) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let variables = vec![("REPOSITORY_IMAGES".to_owned(), format!("other.example/team/* {ALLOWED}:*"))];
    let scenario = scenario.to_owned();
    let spec = WorldSpec { variables, scenarios, scenario, ..WorldSpec::on(ground) };
    Some(World::start(&parts, spec).await.unwrap())
}

/// Gives the repository's `main` this file.
fn write(world: &World, text: &str) {
    let clone = clone_branch(&world.bare, "main").unwrap();
    let checkout = clone.path().join("checkout");
    std::fs::write(checkout.join(".caisson.yaml"), text).unwrap();
    run_git(&checkout, &["add", "-A"]).unwrap();
    run_git(&checkout, &["commit", "-q", "--allow-empty", "-m", "chore: say what this is"]).unwrap();
    run_git(&checkout, &["push", "-q", "origin", "main"]).unwrap();
}

async fn run(world: &World, body: &Value) -> (Value, Vec<Value>) {
    let id = world.api.submit(body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    (run, world.api.events(&id).await.unwrap())
}

/// The API of somebody who may put workflows.
fn keeper(world: &World) -> Api {
    world.api_with("workflows").unwrap()
}

/// Puts the workflow `checked`.
async fn put(keeper: &Api, block: &str) {
    let text = format!(
        "---\nname: checked\ndescription: Is checked.\npermissionMode: bypassPermissions\ncaisson: {{{block}}}\n---\nDo it.\n"
    );
    let put = keeper.put("/v1/workflows/checked", &json!({ "text": text })).await.unwrap();
    assert!(put.status == 200 || put.status == 201, "{}", put.body);
}

/// The images of a run's sandboxes, in order; null for one without.
fn images(events: &[Value]) -> Vec<Value> {
    let started = events.iter().filter(|event| event["kind"] == "sandbox.started");
    started.map(|event| event["data"]["image"].clone()).collect()
}

fn notes(events: &[Value]) -> Vec<String> {
    let notes = events.iter().filter(|event| event["kind"] == "note");
    notes.map(|event| event["data"]["message"].as_str().unwrap().to_owned()).collect()
}

/// A name of its own for the image of the sandboxes; taken away when dropped.
struct Tag<'a> {
    parts: &'a Parts,
    name: String,
}

impl<'a> Tag<'a> {
    fn new(parts: &'a Parts, image: &str) -> Self {
        let name = format!("{ALLOWED}:{}", std::process::id());
        docker(parts, &["tag", image, &name]).unwrap();
        Self { parts, name }
    }
}

impl Drop for Tag<'_> {
    fn drop(&mut self) {
        docker(self.parts, &["rmi", &self.name]).ok();
    }
}

async fn a_repository_chooses_an_image_among_those_that_the_operator_allows(ground: Ground) {
    let Some(world) = world(ground, Vec::new(), "cart").await else { return };
    let plain = world.run_body();
    let (first, events) = run(&world, &plain).await;
    assert_eq!(first["status"], "succeeded", "{first:#}\n{}", world.server.log());
    let default = images(&events).remove(0);
    let Some(default) = default.as_str() else {
        // The local engine has no images, and a repository that names one is worked on all the same.
        write(&world, "# ours\nimage: other.example/team/tools:1\n");
        let (run, events) = run(&world, &plain).await;
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
        assert_eq!((images(&events), &run["image"]), (vec![Value::Null], &Value::Null));
        let told = notes(&events).join("\n");
        assert!(told.contains(".caisson.yaml, line 2 names the image other.example/team/tools:1"), "{told}");
        assert!(told.contains("has no images"), "{told}");
        return;
    };
    let tag = Tag::new(&world.spec.parts, default);

    write(&world, &format!("# ours\nimage: {}\n", tag.name));
    let (chosen, events) = run(&world, &plain).await;
    assert_eq!(chosen["status"], "succeeded", "{chosen:#}\n{}", world.server.log());
    assert_eq!(images(&events), [json!(default), json!(tag.name)]);
    assert_eq!((&chosen["image"], &chosen["attempt"]), (&json!(tag.name), &json!(2)));
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "agent.started").count(), 1, "{kinds:?}");
    let requeued = events.iter().find(|event| event["kind"] == "run.requeued").unwrap();
    let reason = format!("its repository chose the image {}", tag.name);
    assert_eq!(requeued["data"]["reason"], reason);

    // Whoever starts the run, or wrote its workflow, has the last word.
    let mut named = plain.clone();
    named["image"] = json!(default);
    let (run_of_it, events) = run(&world, &named).await;
    assert_eq!(run_of_it["status"], "succeeded", "{run_of_it:#}");
    assert_eq!(images(&events), [json!(default)]);
    assert!(notes(&events).iter().any(|note| note.contains("since the run or its workflow says so")));

    // The default image is everybody's.
    write(&world, &format!("image: {default}\n"));
    let (same, events) = run(&world, &plain).await;
    assert_eq!((&same["status"], images(&events)), (&json!("succeeded"), vec![json!(default)]), "{same:#}");

    write(&world, "test: 'true'\n\nimage: elsewhere.example/tools:1\n");
    let (refused, events) = run(&world, &plain).await;
    assert_eq!(refused["failure"]["kind"], "bad_workflow", "{refused:#}");
    let message = refused["failure"]["message"].as_str().unwrap();
    assert!(message.starts_with(".caisson.yaml, line 3: image \"elsewhere.example/tools:1\""), "{message}");
    assert!(message.contains(&format!("other.example/team/*, {ALLOWED}:*")), "{message}");
    assert!(message.contains("repository_images"), "{message}");
    assert!(!events.iter().any(|event| event["kind"] == "agent.started"));

    // Allowed, but not there: nobody pulls it.
    write(&world, "image: other.example/team/tools:1\n");
    let (missing, _) = run(&world, &plain).await;
    assert_eq!(missing["failure"]["kind"], "sandbox_start", "{missing:#}");
    let message = missing["failure"]["message"].as_str().unwrap();
    assert!(message.contains("other.example/team/tools:1"), "{message}");
}

async fn checks_that_still_fail_are_told_and_keep_no_work_back(ground: Ground) {
    let bash = |command: &str| json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}});
    let scenario = json!({"trying": {"prompts": [
        [bash("echo one >> tries"), {"text": "Done."}],
        {"when_prompt_contains": "fail on your work", "steps": [bash("echo more >> tries"), {"text": "Tried."}]},
        {"when_prompt_contains": "commit message", "steps": [{"text": "chore: try"}]},
    ]}});
    let Some(world) = world(ground, vec![scenario.to_string()], "trying").await else { return };
    write(
        &world,
        "lint: [sh, -c, 'echo linted; test $(wc -l < tries) -ge 2']\ntest: [sh, -c, 'echo no good; exit 3']\nformat: no-such-program\n",
    );
    let keeper = keeper(&world);
    let mut body = world.run_body();
    body["workflow"] = json!("checked");
    for (turns, lint) in [(0_usize, "failed"), (2, "passed")] {
        put(&keeper, &format!("checks: [format, lint, test], check_turns: {turns}")).await;
        let (run, events) = run(&world, &body).await;
        assert_eq!(
            run["status"],
            "succeeded",
            "whoever reads the change decides: {run:#}\n{}",
            world.server.log()
        );
        assert!(run["pushed_commit"].is_string(), "{run:#}");
        let checks = run["checks"].as_array().unwrap();
        let told: Vec<_> =
            checks.iter().map(|check| (&check["name"], &check["outcome"], &check["turns"])).collect();
        let turns_had = json!(turns);
        assert_eq!(
            told,
            [
                (&json!("format"), &json!("not_started"), &turns_had),
                (&json!("lint"), &json!(lint), &turns_had),
                (&json!("test"), &json!("failed"), &turns_had),
            ],
            "{run:#}"
        );
        assert_eq!((&checks[2]["exit_code"], checks[2]["output"].as_str()), (&json!(3), Some("no good")));
        assert_eq!(checks[2]["command"], "sh -c 'echo no good; exit 3'");
        let asked = |event: &&Value| {
            event["data"]["isReplay"] == true && event["data"].to_string().contains("fail on your work")
        };
        assert_eq!(events.iter().filter(asked).count(), turns);
        let finished = events.last().unwrap();
        assert_eq!(finished["data"]["checks"].as_array().map(Vec::len), Some(3), "{finished:#}");
        let shown = world.client(&["show", run["id"].as_str().unwrap()]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("test failed with code 3"), "{shown}");
        let logs = world.client(&["logs", run["id"].as_str().unwrap()]).output().unwrap();
        let logs = String::from_utf8(logs.stdout).unwrap();
        assert!(logs.contains("x check test failed with code 3"), "{logs}");
        assert_eq!(logs.contains("+ check lint passed after 2 turns to mend it"), turns == 2, "{logs}");
    }
}

async fn what_is_formatted_is_pushed_and_what_is_cached_stays_with_the_session(ground: Ground) {
    let bash = |command: &str| json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}});
    let scenario = json!({"forming": {"prompts": [
        [bash("echo '  b' >> list.txt; cat .cache/made/runs"), {"text": "Done."}],
        {"when_prompt_contains": "commit message", "steps": [{"text": "chore: list b"}]},
    ]}});
    let Some(world) = world(ground, vec![scenario.to_string()], "forming").await else { return };
    write(
        &world,
        "setup: [sh, -c, 'mkdir -p .cache/made; echo run >> .cache/made/runs']\nformat: [sed, -i, 's/^ *//', list.txt]\ncaches: [.cache/made]\n",
    );
    put(&keeper(&world), "checks: [format]").await;
    let mut body = world.run_body();
    body["workflow"] = json!("checked");
    let (first, _) = run(&world, &body).await;
    assert_eq!(first["status"], "succeeded", "{first:#}\n{}", world.server.log());
    assert_eq!(first["checks"][0]["outcome"], "passed", "{first:#}");
    let branch = first["branch"].as_str().unwrap();
    let listed = run_git(&world.bare, &["diff", "--name-only", "main", branch]).unwrap();
    assert_eq!(listed, "list.txt", "nothing that is cached");
    assert_eq!(run_git(&world.bare, &["show", &format!("{branch}:list.txt")]).unwrap(), "b");

    let on = json!({"workflow": "checked", "prompt": "Once more.", "session": first["session_id"]});
    let (second, events) = run(&world, &on).await;
    assert_eq!(second["status"], "succeeded", "{second:#}\n{}", world.server.log());
    let seen = |event: &Value| event["data"].to_string().contains("run\\nrun");
    assert!(events.iter().any(seen), "the cache of the first run is there: {events:#?}");
}
