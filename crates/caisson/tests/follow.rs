//! A run followed from a terminal that goes away, comes back, or is not there at all.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::engine::{Engine, signal};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long an end may be waited for.
const WAIT: Duration = Duration::from_mins(2);

testkit::on_every_engine_and_database! {
    ctrl_c_leaves_a_run_that_goes_on_and_is_come_back_to
    a_follower_outlives_its_server_and_misses_and_repeats_nothing
    a_run_that_is_cancelled_ends_its_follower_with_4
    a_run_that_is_not_followed_is_submitted_and_told_by_its_id
}

// It has a server, and so a database, of its own.
testkit::on_every_engine! {
    ctrl_c_in_the_demo_cancels_its_run_and_leaves_no_sandbox
}

async fn world(ground: impl Into<Ground>) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let spec = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 0.3, ..WorldSpec::on(ground) };
    Some(World::start(&parts, spec).await.unwrap())
}

/// A command of somebody who has the server's URL and a key.
fn command(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::from(world.client(arguments));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output(child: Child) -> Output {
    tokio::time::timeout(WAIT, child.wait_with_output()).await.expect("the command ends").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command whose standard output is read line by line.
fn spawned(mut command: Command) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// Reads until a line has this part; returns everything read.
async fn read_to(lines: &mut Lines<BufReader<ChildStdout>>, part: &str) -> Vec<String> {
    let mut read = Vec::new();
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            read.push(line);
            if read.last().is_some_and(|line| line.contains(part)) {
                return true;
            }
        }
        false
    };
    let found = tokio::time::timeout(WAIT, reading).await;
    assert_eq!(found, Ok(true), "{part} in {read:#?}");
    read
}

/// The newest run.
async fn newest(world: &World) -> Value {
    let runs = world.api.get("/v1/runs").await.unwrap().body;
    runs["items"][0].clone()
}

async fn ctrl_c_leaves_a_run_that_goes_on_and_is_come_back_to(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let url = world.repository_url();
    let (child, mut lines) = spawned(command(&world, &["run", "Fix the bug.", "--repo", &url]));
    read_to(&mut lines, "time.sleep").await;
    signal(child.id().unwrap(), "INT").unwrap();
    let left = output(child).await;
    let said = text(&left.stderr);
    assert_eq!(left.status.code(), Some(130), "{said}");
    let run = newest(&world).await;
    assert_eq!(run["status"], "running", "{run:#}");
    let id = run["id"].as_str().unwrap();
    let (back, end) = (format!("caisson logs -f {id}"), format!("caisson cancel {id}"));
    assert!(said.contains("the run goes on") && said.contains(&back) && said.contains(&end), "{said}");

    let followed = output(command(&world, &["logs", "-f", id]).spawn().unwrap()).await;
    let (told, said) = (text(&followed.stdout), text(&followed.stderr));
    assert_eq!(followed.status.code(), Some(0), "{told}\n{said}");
    for part in ["queued (bug-fixer)", "phase prepare", "time.sleep", "> Edit", "pushed ", "succeeded ("] {
        assert_eq!(told.matches(part).count(), 1, "{part} in {told}");
    }
    assert!(said.contains(&format!("caisson diff {id}")), "{said}");
    world.wait_tidy().await.unwrap();
}

async fn ctrl_c_in_the_demo_cancels_its_run_and_leaves_no_sandbox(engine: Engine) {
    let Some(world) = world(engine).await else { return };
    let arguments = ["demo", "--engine", engine.name(), "--delay-scale", "100"];
    let (child, mut lines) = spawned(command(&world, &arguments));
    read_to(&mut lines, "phase agent").await;
    signal(child.id().unwrap(), "INT").unwrap();
    let left = output(child).await;
    let said = text(&left.stderr);
    assert_eq!(left.status.code(), Some(130), "{said}");
    assert!(said.contains("cancelling the run") && !said.contains("goes on"), "{said}");
    let state = world.state_dir().join("demo/state");
    assert_eq!(engine.sandboxes(&world.spec.parts, &state).unwrap(), Vec::<String>::new());
}

async fn a_follower_outlives_its_server_and_misses_and_repeats_nothing(ground: Ground) {
    let Some(mut world) = world(ground).await else { return };
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let (child, mut lines) = spawned(command(&world, &["logs", "--follow", "--json", &id]));
    let mut told = read_to(&mut lines, "time.sleep").await;
    world.server.kill().unwrap();
    world.server = world.spec.start().await.unwrap();
    told.extend(read_to(&mut lines, "\"run.finished\"").await);
    assert_eq!(lines.next_line().await.unwrap(), None, "nothing comes after the end");
    let ended = output(child).await;
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let told: Vec<Value> = told.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stored = world.api.events(&id).await.unwrap();
    let seqs = |events: &[Value]| events.iter().map(|event| event["seq"].as_u64()).collect::<Vec<_>>();
    assert_eq!(seqs(&told), seqs(&stored));
    world.wait_tidy().await.unwrap();
}

async fn a_run_that_is_cancelled_ends_its_follower_with_4(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let url = world.repository_url();
    let task = "[[scn:half-done]] Fix the bug.";
    let (child, mut lines) = spawned(command(&world, &["run", task, "--repo", &url]));
    read_to(&mut lines, "time.sleep").await;
    let cancelled = output(command(&world, &["cancel"]).spawn().unwrap()).await;
    assert_eq!(cancelled.status.code(), Some(0), "{}", text(&cancelled.stderr));
    assert!(text(&cancelled.stdout).contains("its work is saved first"), "{}", text(&cancelled.stdout));
    read_to(&mut lines, "cancelled (").await;
    let ended = output(child).await;
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(4), "{said}");
    assert!(said.contains("work.bundle (") && said.contains("uncommitted.patch ("), "{said}");
    world.wait_tidy().await.unwrap();
}

async fn a_run_that_is_not_followed_is_submitted_and_told_by_its_id(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let url = world.repository_url();
    let task = "[[scn:cart]] Fix the bug.";
    let plain = ["run", task, "--repo", &url, "--detach"];
    let detached = output(command(&world, &plain).spawn().unwrap()).await;
    assert_eq!(detached.status.code(), Some(0), "{}", text(&detached.stderr));
    let told = text(&detached.stdout);
    let id = told.trim_end();
    assert!(id.starts_with("run_") && told == format!("{id}\n"), "the id and nothing else: {told}");
    assert_eq!(text(&detached.stderr), "");

    let json = ["run", task, "--repo", &url, "-d", "--json"];
    let detached = output(command(&world, &json).spawn().unwrap()).await;
    let other: Value = serde_json::from_slice(&detached.stdout).unwrap();
    assert_eq!((&other["status"], detached.status.code()), (&Value::from("queued"), Some(0)), "{other:#}");
    for id in [id, other["id"].as_str().unwrap()] {
        let run = world.api.wait_end(id, WAIT).await.unwrap();
        assert_eq!(run["status"], "succeeded", "{run:#}");
    }
    world.wait_tidy().await.unwrap();
}
