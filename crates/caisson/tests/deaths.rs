//! `kill -9` of what a sandbox consists of, in the middle of a run: the run goes on where it can, and where it cannot it
//! says so; nothing is left on the machine, and the next run is as any other.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use serde_json::Value;
use testkit::engine::{Engine, leftovers, parent, supervisor};
use testkit::parts::Parts;
use testkit::repository::run_git;
use testkit::world::{World, WorldSpec};

/// How long an end may be waited for.
const WAIT: Duration = Duration::from_mins(2);

testkit::on_every_engine! {
    a_run_whose_first_process_is_killed_fails_as_lost_and_the_next_one_succeeds
}

/// Starts a run and waits until its agent is inside a tool; returns the run and its sandbox.
async fn inside_a_tool(parts: &Parts, engine: Engine) -> (World, String, String) {
    let spec = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 0.3, ..WorldSpec::on(engine) };
    let world = World::start(parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let sleeps =
        |event: &Value| event["kind"] == "agent.line" && event["data"].to_string().contains("time.sleep");
    world.api.wait_event(&id, WAIT, sleeps).await.unwrap();
    let sandbox = world.sandboxes().unwrap().pop().expect("the run has a sandbox");
    // The line tells that the tool begins: its process comes a moment later.
    let tool = async {
        while world.processes(&sandbox).unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT, tool).await.expect("the tool has a process");
    (world, id, sandbox)
}

#[expect(clippy::disallowed_methods, reason = "kill(1) is started here, with an argument vector")]
fn kill_9(pid: u32) {
    let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(killed.success(), "process {pid} was there to be killed");
}

/// Exactly one event tells of the end, it is the last one, and no number is missing.
async fn assert_one_end(world: &World, id: &str) {
    let events = world.api.events(id).await.unwrap();
    let ends = events.iter().filter(|event| event["kind"] == "run.finished").count();
    assert_eq!((ends, &events.last().unwrap()["kind"]), (1, &Value::from("run.finished")));
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

async fn assert_nothing_left(world: &World, sandbox: &str) {
    world.wait_tidy().await.unwrap();
    assert_eq!(leftovers(sandbox).unwrap(), Vec::<String>::new());
}

/// A killed process of the sandbox's surroundings, which the run does not notice.
async fn goes_on_without(victim: impl FnOnce(&World, &str) -> u32) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (world, id, sandbox) = inside_a_tool(&parts, Engine::Local).await;
    kill_9(victim(&world, &sandbox));
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let range = format!("main..{}", run["branch"].as_str().unwrap());
    assert_eq!(run_git(&world.bare, &["rev-list", &range]).unwrap().lines().count(), 1);
    assert_eq!(run["usage"]["calls"].as_u64(), Some(world.model_calls().len() as u64));
    assert_one_end(&world, &id).await;
    assert_nothing_left(&world, &sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_goes_on_without_its_supervisor() {
    goes_on_without(|world, sandbox| supervisor(world.state_dir(), sandbox).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_goes_on_without_bubblewrap() {
    goes_on_without(|world, sandbox| {
        let bubblewrap = parent(world.processes(sandbox).unwrap()[0]).unwrap();
        let line = std::fs::read_to_string(format!("/proc/{bubblewrap}/cmdline")).unwrap();
        assert!(line.starts_with(&format!("caisson-{sandbox}")), "it bears the sandbox's mark: {line}");
        bubblewrap
    })
    .await;
}

async fn a_run_whose_first_process_is_killed_fails_as_lost_and_the_next_one_succeeds(engine: Engine) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (world, id, sandbox) = inside_a_tool(&parts, engine).await;
    let (processes, served) = (world.processes(&sandbox).unwrap(), world.model_calls().len());
    assert!(served > 0, "the model has been asked");
    kill_9(processes[0]);
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(
        (&run["status"], &run["failure"]["kind"]),
        (&"failed".into(), &"sandbox_lost".into()),
        "{run:#}"
    );
    assert_eq!(run["usage"]["calls"].as_u64(), Some(served as u64), "what was served is paid for");
    assert_eq!(run["pushed_commit"], Value::Null);
    assert_one_end(&world, &id).await;
    assert_nothing_left(&world, &sandbox).await;
    let alive = processes.iter().filter(|pid| lives(**pid)).collect::<Vec<_>>();
    assert!(alive.is_empty(), "of the sandbox still live {alive:?}");

    let next = world.api.submit(&world.run_body()).await.unwrap();
    let next = world.api.wait_end(&next, WAIT).await.unwrap();
    assert_eq!(next["status"], "succeeded", "{next:#}\n{}", world.server.log());
    world.wait_tidy().await.unwrap();
}

/// Whether a process is there and has not merely been left for its parent to take in.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}
