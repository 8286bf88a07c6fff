//! The main job on real parts: a task posted over HTTP becomes a tested commit on a branch of a git host.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::engine::Engine;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_git, run_python_tests};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(1);

testkit::on_every_engine_and_database! {
    a_task_becomes_a_tested_commit_on_a_branch
    a_branch_that_has_the_fix_already_stays_and_the_run_succeeds
    an_agent_that_commits_by_itself_is_not_asked_again
    a_repository_on_this_machine_is_worked_on_only_below_an_allowed_directory
    a_run_without_a_repository_has_an_empty_workspace
    a_run_whose_work_must_not_be_pushed_ends_as_policy_denied
}

testkit::on_docker_with_sqlite! {
    a_task_becomes_a_tested_commit_on_a_branch
    a_branch_that_has_the_fix_already_stays_and_the_run_succeeds
    an_agent_that_commits_by_itself_is_not_asked_again
    a_repository_on_this_machine_is_worked_on_only_below_an_allowed_directory
    a_run_without_a_repository_has_an_empty_workspace
    a_run_whose_work_must_not_be_pushed_ends_as_policy_denied
}

// It has a server, and so a database, of its own.
testkit::on_every_engine! {
    the_demo_ends_with_demo_ok
}

fn parts() -> Option<Parts> {
    Parts::find(env!("CARGO_BIN_EXE_caisson"))
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["kind"].as_str()).collect()
}

async fn a_task_becomes_a_tested_commit_on_a_branch(ground: Ground) {
    let Some(parts) = parts() else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());

    let branch = run["branch"].as_str().unwrap();
    assert_eq!(branch, format!("caisson/bug-fixer/{}", &id[id.len() - 8..]));
    let before = clone_branch(&world.bare, "main").unwrap();
    assert!(!run_python_tests(&before.path().join("checkout")).unwrap().status.success());
    let after = clone_branch(&world.bare, branch).unwrap();
    let checkout = after.path().join("checkout");
    assert!(run_python_tests(&checkout).unwrap().status.success());
    let commits = run_git(&world.bare, &["rev-list", &format!("main..{branch}")]).unwrap();
    assert_eq!(commits.lines().collect::<Vec<_>>(), [run["pushed_commit"].as_str().unwrap()]);
    let message = run_git(&checkout, &["log", "-1", "--format=%B"]).unwrap();
    assert!(message.starts_with("fix(cart): "), "{message}");

    let events = world.api.events(&id).await.unwrap();
    let numbers: Vec<_> = events.iter().filter_map(|event| event["seq"].as_i64()).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
    let story = kinds(&events);
    for kind in [
        "run.queued",
        "run.started",
        "sandbox.started",
        "workspace.prepared",
        "agent.started",
        "git.commit",
        "git.push",
        "run.finished",
    ] {
        assert_eq!(story.iter().filter(|seen| **seen == kind).count(), 1, "{kind} in {story:?}");
    }
    assert_eq!(story.last(), Some(&"run.finished"));
    assert!(
        !story.contains(&"gateway.denied"),
        "nothing that shim and agent do by themselves is denied: {story:?}"
    );

    let calls = world.model_calls();
    assert_eq!(run["usage"]["calls"].as_u64(), Some(calls.len() as u64));
    assert_eq!(run["usage"]["estimated_calls"], 0);
    assert!(run["usage"]["cost_micro_usd"].as_i64().unwrap() > 0);
    assert!(calls.iter().all(|call| call.x_api_key.as_ref().is_some_and(|key| key.matched == Some(true))));

    let diff = world.api.get(&format!("/v1/runs/{id}/artifacts")).await.unwrap();
    let names: Vec<_> =
        diff.body["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    assert!(names.contains(&json!("diff.patch")), "{names:?}");
}

async fn a_branch_that_has_the_fix_already_stays_and_the_run_succeeds(ground: Ground) {
    let Some(parts) = parts() else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let mut body = world.run_body();
    body["base"] = json!("main");
    body["branch"] = json!("feat/tenth-piece");
    let mut tips = Vec::new();
    for pushes in [1, 0] {
        let id = world.api.submit(&body).await.unwrap();
        let run = world.api.wait_end(&id, END).await.unwrap();
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
        assert_eq!(run["pushed_commit"].is_string(), pushes == 1, "{run:#}");
        let events = world.api.events(&id).await.unwrap();
        assert_eq!(kinds(&events).iter().filter(|kind| **kind == "git.push").count(), pushes);
        let note = |event: &Value| event["data"].to_string().contains("has this change already");
        assert_eq!(events.iter().any(note), pushes == 0, "{events:?}");
        tips.push(run_git(&world.bare, &["rev-parse", "feat/tenth-piece"]).unwrap());
    }
    assert_eq!(tips[0], tips[1]);
}

async fn an_agent_that_commits_by_itself_is_not_asked_again(ground: Ground) {
    let Some(parts) = parts() else { return };
    let spec = WorldSpec { scenario: "cart-commits".to_owned(), ..WorldSpec::on(ground) };
    let world = World::start(&parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let message =
        run_git(&world.bare, &["log", "-1", "--format=%s", run["branch"].as_str().unwrap()]).unwrap();
    assert!(message.starts_with("fix(cart): "), "{message}");
    let asked = world
        .model_calls()
        .iter()
        .filter(|call| call.script.as_ref().is_some_and(|place| place.prompt > 1))
        .count();
    assert_eq!(asked, 0);
}

async fn a_repository_on_this_machine_is_worked_on_only_below_an_allowed_directory(ground: Ground) {
    let Some(parts) = parts() else { return };
    let allowed = tempfile::tempdir().unwrap();
    let variables = vec![("ALLOW_REPO".to_owned(), allowed.path().display().to_string())];
    let world = World::start(&parts, WorldSpec { variables, ..WorldSpec::on(ground) }).await.unwrap();
    run_git(allowed.path(), &["clone", "-q", "--bare", world.bare.to_str().unwrap(), "local.git"]).unwrap();
    let local = allowed.path().canonicalize().unwrap().join("local.git");
    let mut body = world.run_body();
    body["repository"] = json!(local);
    let id = world.api.submit(&body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    assert!(run_git(&local, &["rev-parse", run["branch"].as_str().unwrap()]).is_ok());

    body["repository"] = json!(world.bare);
    let refused = world.api.post("/v1/runs", &body).await.unwrap();
    assert_eq!(refused.status, 422, "{}", refused.body);
    assert!(refused.body.to_string().contains("--allow-repo"), "{}", refused.body);
}

async fn a_run_without_a_repository_has_an_empty_workspace(ground: Ground) {
    let Some(parts) = parts() else { return };
    let spec = WorldSpec { scenario: "text".to_owned(), ..WorldSpec::on(ground) };
    let world = World::start(&parts, spec).await.unwrap();
    let body = json!({"workflow": "bug-fixer", "prompt": "Say hello.", "repository": null});
    let id = world.api.submit(&body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    assert!(run["pushed_commit"].is_null() && run["branch"].is_null());
    assert!(!run["result"].as_str().unwrap().is_empty());
}

async fn a_run_whose_work_must_not_be_pushed_ends_as_policy_denied(ground: Ground) {
    let Some(parts) = parts() else { return };
    let variables = vec![("GIT__FORBIDDEN_PATHS".to_owned(), "**/*.py".to_owned())];
    let world = World::start(&parts, WorldSpec { variables, ..WorldSpec::on(ground) }).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["failure"]["kind"], "policy_denied", "{run:#}\n{}", world.server.log());
    let message = run["failure"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("the push was refused: a change in ") && message.contains(".py"),
        "{message}"
    );
    assert!(run["pushed_commit"].is_null());
    assert!(run_git(&world.bare, &["rev-parse", "--verify", run["branch"].as_str().unwrap()]).is_err());
    let events = world.api.events(&id).await.unwrap();
    let denied = events.iter().find(|event| event["kind"] == "gateway.denied").unwrap();
    assert_eq!(denied["data"]["rule"], "forbidden_path");
    assert!(denied["data"]["commit"].is_string(), "{denied}");
}

async fn the_demo_ends_with_demo_ok(engine: Engine) {
    let Some(parts) = parts() else { return };
    let directory = tempfile::tempdir().unwrap();
    let spec = testkit::process::ServerSpec::new(&parts, directory.path(), "http://127.0.0.1:9").unwrap();
    let mut command = spec.command(&["demo", "--engine", engine.name()]);
    // A key that happens to be in the environment must not be picked up: the demo would fail on the real API's name.
    command.env("ANTHROPIC_API_KEY", "sk-ant-must-not-be-used").env_remove("CAISSON_MODEL__API_KEY");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().last().unwrap().starts_with("demo ok"), "{said}");
    assert!(said.contains("scripted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_with_the_real_model_takes_no_key_but_the_one_meant_for_it() {
    let Some(parts) = parts() else { return };
    let directory = tempfile::tempdir().unwrap();
    // The server's own key is set, and is not for demonstrations.
    let spec = testkit::process::ServerSpec::new(&parts, directory.path(), "http://127.0.0.1:9").unwrap();
    for key in [None, Some("")] {
        let mut command = spec.command(&["demo", "--model", "real"]);
        command.envs(key.map(|key| ("ANTHROPIC_API_KEY", key)));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("--model real needs the key in ANTHROPIC_API_KEY"), "{said}");
        assert!(!directory.path().join("demo/state").exists(), "no server was started");
    }
}

/// A user that this machine does not know.
const SOMEBODY: u32 = 54_321;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_needs_neither_root_nor_a_daemon() {
    let Some(parts) = parts() else { return };
    let directory = tempfile::tempdir().unwrap();
    // Everything where somebody else can reach it.
    let place = |name: &str| directory.path().join(name);
    let agent = parts.claude("2.1.330");
    let agents = place("agents/claude-code/2.1.330");
    std::fs::create_dir_all(&agents).unwrap();
    for file in std::fs::read_dir(agent.parent().unwrap()).unwrap().flatten() {
        std::fs::copy(file.path(), agents.join(file.file_name())).unwrap();
    }
    std::fs::copy(&parts.caisson, place("caisson")).unwrap();
    std::fs::copy(&parts.shim, place("caisson-shim")).unwrap();
    std::fs::create_dir(place("state")).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the demo is started here, with an argument vector")]
    let mut demo = Command::new(place("caisson"));
    demo.args(["demo", "--delay-scale", "0"]).env_clear();
    demo.env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").current_dir("/");
    demo.env("CAISSON_STATE_DIR", place("state")).env("CAISSON_AGENTS_DIR", place("agents"));
    // No engine answers there, so that the local one is chosen without a word.
    demo.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    demo.env("CAISSON_MIN_FREE_DISK_MIB", "64");
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        chown(place("state"), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        demo.uid(SOMEBODY).gid(SOMEBODY);
    }
    let output = demo.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().last().unwrap().starts_with("demo ok"), "{said}");
    assert!(said.contains("sandbox runs (local)"), "{said}");
    assert!(said.contains("weaker than it could be: sandboxes have this server's uid"), "{said}");
}
