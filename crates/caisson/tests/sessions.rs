//! Sessions that go on, on real parts: the real agent and a real git host, with everything of the host lost between two runs.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_git};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(3);

testkit::on_every_engine_and_database! {
    a_session_goes_on_and_is_rebuilt_from_its_archive_when_the_host_is_wiped
    both_sides_of_a_fork_go_on_and_neither_sees_the_other
    a_fork_begins_at_its_commit_when_the_branch_is_gone_and_nowhere_when_the_commit_is
    a_deleted_session_leaves_nothing_on_the_host
}

fn bash(command: &str) -> Value {
    json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}})
}

/// Commits a file with the name and shows what is there: files, and what was left in the agent's home.
fn turn(name: &str) -> Value {
    let command = format!(
        "echo {name} > {name}.txt && echo {name} >> \"$HOME/kept\" && git add -A && git commit -q -m 'feat: add {name}'; \
         ls; cat \"$HOME/kept\""
    );
    json!([bash(&command), {"text": format!("Added {name}.")}])
}

async fn start(ground: Ground) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let scenario = json!({ "turns": { "prompts": [turn("one"), turn("two"), turn("three")] } });
    let spec = WorldSpec {
        scenario: "turns".to_owned(),
        scenarios: vec![scenario.to_string()],
        ..WorldSpec::on(ground)
    };
    Some(World::start(&parts, spec).await.unwrap())
}

/// Runs to the end; the run, and what its tools said.
async fn run(world: &World, body: &Value) -> (Value, String) {
    let id = world.api.submit(body).await.unwrap();
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let events = world.api.events(&id).await.unwrap();
    let said = events.iter().filter(|event| event["kind"] == "agent.line" && event["data"]["type"] == "user");
    (run, said.map(|event| event["data"]["message"].to_string()).collect())
}

async fn follow(world: &World, session: &Value) -> (Value, String) {
    run(world, &json!({"session": session, "prompt": "Go on."})).await
}

/// A key that may delete sessions.
fn administrator(world: &World) -> String {
    world.spec.create_key_with("admin").unwrap()
}

/// Forks a session; the new one.
fn forked(world: &World, session: &Value, branch: &str) -> Value {
    let fork = ["session", "fork", session.as_str().unwrap(), "--branch", branch];
    let output = world.client(&fork).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    json!(String::from_utf8(output.stdout).unwrap().trim())
}

/// The number of the prompt that the last model call answers: what people said before is in the request.
fn prompt_of_last_call(world: &World) -> usize {
    world.model_calls().last().unwrap().script.as_ref().unwrap().prompt
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap()
}

/// The subjects of the branch's commits, newest first.
fn log(world: &World, branch: &str) -> Vec<String> {
    let log = run_git(&world.bare, &["log", "--format=%s", branch]).unwrap();
    log.lines().map(str::to_owned).collect()
}

/// What outlives the host: the database, the artifact store, the keys that seal and sign what is in them, and the name by which
/// the database knows the server. Without that it would be another server, and the session's runs would wait for this one.
const LEFT: [&str; 8] = [
    "caisson.db",
    "caisson.db-wal",
    "caisson.db-shm",
    "artifacts",
    "master.key",
    "audit_key",
    "audit_head",
    "server_id",
];

/// Removes everything that the host has, but for what outlives it.
fn wipe(state: &Path) {
    let mut gone = Vec::new();
    for entry in std::fs::read_dir(state).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if LEFT.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        } else {
            std::fs::remove_file(entry.path()).unwrap();
        }
        gone.push(name);
    }
    assert!(["sessions", "shim", "lock"].iter().all(|name| gone.iter().any(|one| one == name)), "{gone:?}");
}

async fn a_session_goes_on_and_is_rebuilt_from_its_archive_when_the_host_is_wiped(ground: Ground) {
    let Some(mut world) = start(ground).await else { return };
    let (first, said) = run(&world, &world.run_body()).await;
    assert!(said.contains("one.txt"), "{said}");
    let (session, branch) = (first["session_id"].clone(), text(&first, "branch").to_owned());

    // The second run is in the same workspace and home, and knows the first.
    let (second, said) = follow(&world, &session).await;
    assert_eq!((&second["session_id"], text(&second, "branch")), (&session, branch.as_str()));
    assert!(said.contains("one.txt") && said.contains("two.txt") && said.contains("one\\ntwo"), "{said}");
    assert_eq!(prompt_of_last_call(&world), 2);
    assert_eq!(log(&world, &branch)[..2], ["feat: add two", "feat: add one"]);

    world.wait_tidy().await.unwrap();
    world.server.terminate().await.unwrap();
    wipe(world.state_dir());
    world.server = world.spec.start().await.unwrap();

    // The third has its files from the branch and the conversation from the archive; the home is another one.
    let (third, said) = follow(&world, &session).await;
    assert_eq!((&third["session_id"], text(&third, "branch")), (&session, branch.as_str()));
    assert!(["one.txt", "two.txt", "three.txt"].iter().all(|name| said.contains(name)), "{said}");
    assert!(!said.contains("two\\nthree"), "nothing but the conversation was brought: {said}");
    assert_eq!(prompt_of_last_call(&world), 3, "it knows the first two");
    assert_eq!(log(&world, &branch)[..3], ["feat: add three", "feat: add two", "feat: add one"]);
    let events = world.api.events(text(&third, "id")).await.unwrap();
    let archive = format!("brought from the archive, as run {} had left it", text(&second, "id"));
    assert!(
        events.iter().any(|event| event["data"]["message"].to_string().contains(&archive)),
        "{events:#?}"
    );
    assert_eq!(third["base_commit"], second["pushed_commit"]);
    let output = world.client(&["session", "messages", session.as_str().unwrap()]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let order: Vec<_> =
        ["Added one.", "Added two.", "Added three."].iter().map(|text| told.find(text)).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{told}");
}

async fn both_sides_of_a_fork_go_on_and_neither_sees_the_other(ground: Ground) {
    let Some(world) = start(ground).await else { return };
    let (first, _) = run(&world, &world.run_body()).await;
    let session = first["session_id"].clone();
    world.wait_tidy().await.unwrap();
    let fork = forked(&world, &session, "mine");
    assert_ne!(fork, session);

    // The origin goes on first, so that what it does is there to be seen.
    let (second, _) = follow(&world, &session).await;
    assert_eq!(prompt_of_last_call(&world), 2);
    let (forked, said) = follow(&world, &fork).await;
    assert_eq!(prompt_of_last_call(&world), 2, "it knows what was said before the fork, and nothing else");
    assert!(said.contains("one.txt") && said.contains("two.txt"), "{said}");
    assert_eq!((text(&forked, "branch"), &forked["session_id"]), ("mine", &fork));
    let (again, said) = follow(&world, &fork).await;
    assert_eq!(prompt_of_last_call(&world), 3);
    assert!(said.contains("three.txt"), "{said}");
    assert_eq!(log(&world, "mine")[..3], ["feat: add three", "feat: add two", "feat: add one"]);
    let theirs = log(&world, text(&second, "branch"));
    assert_eq!(theirs[..2], ["feat: add two", "feat: add one"], "the fork has not touched it");
    let common = run_git(&world.bare, &["merge-base", "mine", text(&second, "branch")]).unwrap();
    assert_eq!(common, text(&first, "pushed_commit"), "it began where the other was");
    assert_ne!(again["pushed_commit"], second["pushed_commit"]);
    let clone = clone_branch(&world.bare, "mine").unwrap();
    assert!(clone.path().join("checkout/shop").is_dir(), "the repository's own files are there");
}

async fn a_fork_begins_at_its_commit_when_the_branch_is_gone_and_nowhere_when_the_commit_is(ground: Ground) {
    let Some(world) = start(ground).await else { return };
    let (first, _) = run(&world, &world.run_body()).await;
    world.wait_tidy().await.unwrap();
    let [mine, yours] = ["mine", "yours"].map(|branch| forked(&world, &first["session_id"], branch));
    run_git(&world.bare, &["branch", "-q", "-D", text(&first, "branch")]).unwrap();
    let (again, said) = follow(&world, &mine).await;
    assert!(said.contains("one.txt") && said.contains("two.txt"), "{said}");
    assert_eq!((&again["base_commit"], &again["base"]), (&first["pushed_commit"], &first["base"]));
    assert_eq!(log(&world, "mine")[..2], ["feat: add two", "feat: add one"]);

    // Nothing of the repository refers to the commit any more, and it is gone for good.
    run_git(&world.bare, &["branch", "-q", "-D", "mine"]).unwrap();
    run_git(&world.bare, &["reflog", "expire", "--expire=now", "--all"]).unwrap();
    run_git(&world.bare, &["gc", "-q", "--prune=now"]).unwrap();
    let id = world.api.submit(&json!({"session": yours, "prompt": "Go on."})).await.unwrap();
    let failed = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(
        (&failed["status"], &failed["failure"]["kind"]),
        (&json!("failed"), &json!("repo_unreachable"))
    );
    let told = text(&failed["failure"], "message");
    for part in [text(&first, "pushed_commit"), text(&first, "branch"), "push a branch that has the commit"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(failed["usage"]["calls"], 0, "no agent worked elsewhere");
}

async fn a_deleted_session_leaves_nothing_on_the_host(ground: Ground) {
    let Some(world) = start(ground).await else { return };
    let (first, _) = run(&world, &world.run_body()).await;
    let (session, id) = (text(&first, "session_id").to_owned(), text(&first, "id").to_owned());
    world.wait_tidy().await.unwrap();
    let parts = |path: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(world.state_dir().join(path)).into_iter().flatten().flatten();
        let ours = |path: &PathBuf| path.to_string_lossy().contains(&session) || path.ends_with(&id);
        entries.map(|entry| entry.path()).filter(ours).collect()
    };
    let left = || ["sessions", "volumes", "artifacts", "trash"].map(parts).concat();
    assert!(left().len() >= 2, "{:?}", left());
    let mut delete = world.client(&["session", "delete", &session]);
    let output = delete.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("lacks the scope admin"), "{told}");
    let output = delete.env("CAISSON_API_KEY", administrator(&world)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let begun = Instant::now();
    while !left().is_empty() {
        assert!(begun.elapsed() < END, "{:?}\n{}", left(), world.server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.api.get(&format!("/v1/runs/{id}")).await.unwrap().status, 404);
    let branch = text(&first, "branch");
    assert_eq!(log(&world, branch)[0], "feat: add one", "what was pushed stays");
    for command in [["db", "check"], ["audit", "verify"]] {
        let output = world.spec.command(&command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
