//! `kill -9` of what a sandbox consists of, in the middle of a run: the run goes on where it can, and where it cannot it
//! says so; nothing is left on the machine, and the next run is as any other.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use scripted_model::Record;
use serde_json::{Value, json};
use testkit::engine::{Engine, kill_9, leftovers, lives, parent, signal, supervisor};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::run_git;
use testkit::volumes::SessionFiles;
use testkit::world::{World, WorldSpec};

/// How long an end may be waited for.
const WAIT: Duration = Duration::from_mins(2);

/// Longer than three tries to place a run take, with the waits between them.
const THREE_TRIES: Duration = Duration::from_secs(4);

/// A reply of which so many bytes were served has begun to tell its text.
const BEGUN_BYTES: u64 = 600;

testkit::on_every_engine_and_database! {
    a_run_whose_first_process_is_killed_fails_as_lost_and_the_next_one_succeeds
    a_run_whose_first_process_is_killed_before_its_agent_starts_is_begun_again
    a_model_call_that_its_sandbox_does_not_live_to_hear_is_on_the_bill
    a_push_under_way_when_its_sandbox_is_killed_is_known_by_its_end
    a_sandbox_that_hears_nothing_is_killed_when_its_run_is_cancelled
    a_first_process_killed_while_no_server_is_there_is_judged_at_the_next_start
}

testkit::on_docker_with_sqlite! {
    a_run_whose_first_process_is_killed_fails_as_lost_and_the_next_one_succeeds
    a_run_whose_first_process_is_killed_before_its_agent_starts_is_begun_again
    a_model_call_that_its_sandbox_does_not_live_to_hear_is_on_the_bill
    a_push_under_way_when_its_sandbox_is_killed_is_known_by_its_end
    a_sandbox_that_hears_nothing_is_killed_when_its_run_is_cancelled
    a_first_process_killed_while_no_server_is_there_is_judged_at_the_next_start
}

async fn world(ground: impl Into<Ground>) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let spec = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 0.3, ..WorldSpec::on(ground) };
    Some(World::start(&parts, spec).await.unwrap())
}

/// What a living sandbox consists of, to be looked for when it is gone.
struct Seen {
    marks: Vec<String>,
    processes: Vec<u32>,
}

impl Seen {
    fn of(world: &World, sandbox: &str) -> Self {
        let marks = world.engine.marks(&world.spec.parts, sandbox).unwrap();
        Self { marks, processes: world.processes(sandbox).unwrap() }
    }

    fn first(&self) -> u32 {
        self.processes[0]
    }

    async fn assert_nothing_left(&self, world: &World) {
        world.wait_tidy().await.unwrap();
        for mark in &self.marks {
            assert_eq!(leftovers(mark).unwrap(), Vec::<String>::new());
        }
        let alive: Vec<_> = self.processes.iter().filter(|pid| lives(**pid)).collect();
        assert!(alive.is_empty(), "of the sandbox still live {alive:?}");
    }
}

/// Every event of a run; exactly one of them tells of its end, it is the last one, and no number is missing.
async fn events_with_one_end(world: &World, id: &str) -> Vec<Value> {
    let events = world.api.events(id).await.unwrap();
    assert_eq!(
        (count(&events, "run.finished"), &events.last().unwrap()["kind"]),
        (1, &json!("run.finished"))
    );
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    events
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

/// A run has succeeded, with one commit on its branch, one agent and one end, and every model call on its bill.
async fn assert_succeeded(world: &World, run: &Value, served: usize) -> Vec<Value> {
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let range = format!("main..{}", run["branch"].as_str().unwrap());
    assert_eq!(run_git(&world.bare, &["rev-list", &range]).unwrap().lines().count(), 1);
    assert_eq!(run["usage"]["calls"].as_u64(), Some(served as u64), "{}", run["usage"]);
    let events = events_with_one_end(world, run["id"].as_str().unwrap()).await;
    assert_eq!(count(&events, "agent.started"), 1);
    events
}

/// A run has failed as lost: what was served is paid for, nothing was pushed, and the work is where the failure says.
async fn assert_lost(world: &World, id: &str, evidence: &str) {
    let run = world.api.wait_end(id, WAIT).await.unwrap();
    let failure = &run["failure"];
    assert_eq!((&run["status"], &failure["kind"]), (&json!("failed"), &json!("sandbox_lost")), "{run:#}");
    assert!(failure["evidence"].as_str().is_some_and(|text| text.contains(evidence)), "{failure:#}");
    let served = world.model_calls().len();
    assert!(
        served > 1 && run["usage"]["calls"].as_u64() == Some(served as u64),
        "{served}: {}",
        run["usage"]
    );
    assert_eq!(run["usage"]["estimated_calls"], 0, "every reply had come to its end");
    assert_eq!(run["pushed_commit"], Value::Null);
    assert_eq!(run_git(&world.bare, &["branch", "--list", "caisson/*"]).unwrap(), "");
    let events = events_with_one_end(world, id).await;
    assert_eq!((count(&events, "agent.started"), count(&events, "sandbox.exited")), (1, 1));

    assert!(failure["message"].to_string().contains("its session's workspace is kept"), "{failure:#}");
    assert_workspace_kept(world, &run, &events);
}

/// Nobody has saved the work of a run that was half done, it is told so, and it is where it is told to be.
fn assert_workspace_kept(world: &World, run: &Value, events: &[Value]) {
    let exits: Vec<_> = events.iter().filter(|event| event["kind"] == "sandbox.exited").collect();
    let [exit] = exits[..] else { panic!("one exit: {exits:?}") };
    assert!(exit["data"]["message"].to_string().contains("its session's workspace is kept"), "{exit:#}");
    let files = SessionFiles::open(world.state_dir(), run["session_id"].as_str().unwrap()).unwrap();
    let read = |name: &str| std::fs::read_to_string(files.directory().join("workspace").join(name)).unwrap();
    assert!(read("shop/pricing.py").contains("quantity >= BULK_QUANTITY"), "what was committed");
    assert!(read("shop/cart.py").contains("# later") && read("later.txt") == "later\n", "what was not");
}

/// The next run on the same server is as any other.
async fn assert_next_succeeds(world: &World) {
    let before = world.model_calls().len();
    let mut body = world.run_body();
    body["prompt"] = json!("[[scn:cart]] The test suite fails. Fix the bug.");
    let id = world.api.submit(&body).await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_succeeded(world, &run, world.model_calls().len() - before).await;
    world.wait_tidy().await.unwrap();
}

async fn a_run_whose_first_process_is_killed_fails_as_lost_and_the_next_one_succeeds(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let (id, sandbox) = world.half_done(&world.run_body(), WAIT).await.unwrap();
    let seen = Seen::of(&world, &sandbox);
    kill_9(seen.first()).unwrap();
    assert_lost(&world, &id, "exit code 137").await;
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

async fn a_run_whose_first_process_is_killed_before_its_agent_starts_is_begun_again(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    world.host.hold(Some("/"));
    let mut body = world.run_body();
    body["prompt"] = json!("[[scn:cart]] The test suite fails. Fix the bug.");
    let id = world.api.submit(&body).await.unwrap();
    world.host.wait_held(WAIT).await.unwrap();
    let sandbox = world.sandboxes().unwrap().pop().expect("it is the sandbox that fetches");
    let seen = Seen::of(&world, &sandbox);
    kill_9(seen.first()).unwrap();
    let again = |event: &Value| event["kind"] == "run.requeued";
    world.api.wait_event(&id, WAIT, again).await.unwrap();
    world.host.hold(None);
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["attempt"], 2);
    let events = assert_succeeded(&world, &run, world.model_calls().len()).await;
    assert_eq!((count(&events, "run.requeued"), count(&events, "sandbox.started")), (1, 2));
    seen.assert_nothing_left(&world).await;
}

async fn a_model_call_that_its_sandbox_does_not_live_to_hear_is_on_the_bill(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let mut body = world.run_body();
    body["prompt"] = json!("[[scn:endless]] The test suite fails. Fix the bug.");
    let id = world.api.submit(&body).await.unwrap();
    let streaming = |calls: &[Record]| calls.iter().any(|call| call.bytes_served > BEGUN_BYTES);
    tokio::time::timeout(WAIT, world.model.wait_for(streaming)).await.expect("a reply begins");
    let sandbox = world.sandboxes().unwrap().pop().expect("the run has a sandbox");
    let seen = Seen::of(&world, &sandbox);
    kill_9(seen.first()).unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["failure"]["kind"], "sandbox_lost", "{run:#}");
    let usage = &run["usage"];
    assert_eq!(usage["calls"].as_u64(), Some(world.model_calls().len() as u64), "{usage}");
    assert_eq!(usage["estimated_calls"], 1, "nobody knows what the whole reply would have cost: {usage}");
    assert!(usage["cost_micro_usd"].as_i64().unwrap() > 0, "{usage}");
    events_with_one_end(&world, &id).await;
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

async fn a_push_under_way_when_its_sandbox_is_killed_is_known_by_its_end(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    world.host.hold(Some(".git/git-receive-pack"));
    let mut body = world.run_body();
    body["prompt"] = json!("[[scn:cart]] The test suite fails. Fix the bug.");
    let id = world.api.submit(&body).await.unwrap();
    world.host.wait_held(WAIT).await.unwrap();
    let sandbox = world.sandboxes().unwrap().pop().expect("it is the sandbox that pushes");
    let seen = Seen::of(&world, &sandbox);
    kill_9(seen.first()).unwrap();
    let exited = |event: &Value| event["kind"] == "sandbox.exited";
    world.api.wait_event(&id, WAIT, exited).await.unwrap();
    world.host.hold(None);
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["failure"]["kind"], "sandbox_lost", "{run:#}");
    let events = events_with_one_end(&world, &id).await;
    // The gateway has the whole push, and carries it on without the sandbox.
    let heads = ["for-each-ref", "--format=%(objectname)", "refs/heads/caisson"];
    assert_eq!(run_git(&world.bare, &heads).unwrap(), run["pushed_commit"].as_str().unwrap(), "{run:#}");
    assert_eq!(count(&events, "git.push"), 1);
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

async fn a_sandbox_that_hears_nothing_is_killed_when_its_run_is_cancelled(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let (id, sandbox) = world.half_done(&world.run_body(), WAIT).await.unwrap();
    let seen = Seen::of(&world, &sandbox);
    signal(seen.first(), "STOP").unwrap();
    if ground.engine == Engine::Local {
        kill_9(supervisor(world.state_dir(), &sandbox).unwrap()).unwrap();
    }
    let cancelled = world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    assert_eq!(cancelled.status, 202, "{}", cancelled.body);
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "cancelled", "{run:#}");
    let events = events_with_one_end(&world, &id).await;
    assert_workspace_kept(&world, &run, &events);
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

async fn a_first_process_killed_while_no_server_is_there_is_judged_at_the_next_start(ground: Ground) {
    let Some(mut world) = world(ground).await else { return };
    let (id, sandbox) = world.half_done(&world.run_body(), WAIT).await.unwrap();
    let seen = Seen::of(&world, &sandbox);
    world.server.kill().unwrap();
    kill_9(seen.first()).unwrap();
    world.server = world.spec.start().await.unwrap();
    assert_lost(&world, &id, "exit code 137").await;
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

/// The process of bubblewrap that watches over a sandbox's first process.
fn bubblewrap(seen: &Seen, sandbox: &str) -> u32 {
    let bubblewrap = parent(seen.first()).unwrap();
    let line = std::fs::read_to_string(format!("/proc/{bubblewrap}/cmdline")).unwrap();
    assert!(line.starts_with(&format!("caisson-{sandbox}")), "it bears the sandbox's mark: {line}");
    bubblewrap
}

/// Kills what a sandbox does not need once it runs, and looks at a run that does not notice.
async fn goes_on_without(kill: impl AsyncFnOnce(&mut World, &Seen, &str)) {
    let Some(mut world) = world(Engine::Local).await else { return };
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let sandbox = world.inside_a_tool(&id, WAIT).await.unwrap();
    let seen = Seen::of(&world, &sandbox);
    kill(&mut world, &seen, &sandbox).await;
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_succeeded(&world, &run, world.model_calls().len()).await;
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_goes_on_without_its_supervisor() {
    goes_on_without(async |world, _, sandbox| {
        kill_9(supervisor(world.state_dir(), sandbox).unwrap()).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_goes_on_without_bubblewrap() {
    goes_on_without(async |_, seen, sandbox| kill_9(bubblewrap(seen, sandbox)).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_goes_on_without_supervisor_bubblewrap_and_server() {
    goes_on_without(async |world, seen, sandbox| {
        kill_9(supervisor(world.state_dir(), sandbox).unwrap()).unwrap();
        kill_9(bubblewrap(seen, sandbox)).unwrap();
        world.server.kill().unwrap();
        world.server = world.spec.start().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_whose_supervisor_and_first_process_are_killed_is_lost_by_an_unknown_exit_code() {
    let Some(world) = world(Engine::Local).await else { return };
    let (id, sandbox) = world.half_done(&world.run_body(), WAIT).await.unwrap();
    let seen = Seen::of(&world, &sandbox);
    kill_9(supervisor(world.state_dir(), &sandbox).unwrap()).unwrap();
    kill_9(seen.first()).unwrap();
    assert_lost(&world, &id, "unknown exit code").await;
    seen.assert_nothing_left(&world).await;
    assert_next_succeeds(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_bubblewrap_nothing_is_claimed_or_accepted_until_it_is_back() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    // Where the sandboxes' users find it.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (bubblewrap, aside) = (place.path().join("bwrap"), place.path().join("aside"));
    std::fs::copy("/usr/bin/bwrap", &bubblewrap).unwrap();
    let named = ("LOCAL__BUBBLEWRAP".to_owned(), bubblewrap.display().to_string());
    let spec = WorldSpec { variables: vec![named], ..WorldSpec::on(Engine::Local) };
    let world = World::start(&parts, spec).await.unwrap();

    std::fs::rename(&bubblewrap, &aside).unwrap();
    // Accepted before anybody has noticed, or not at all.
    let early = world.api.post("/v1/runs", &world.run_body()).await.unwrap();
    assert!(early.status == 202 || early.status == 503, "{}", early.body);
    let told = readiness(&world, 503).await;
    assert_eq!(told["code"], "engine_unavailable", "{told:#}");
    assert!(!told.to_string().contains("bubblewrap"), "{told:#}");
    let operator = world.spec.create_key_with("admin").unwrap();
    let told = testkit::api::Api::new(&world.server.base, &operator).unwrap().get("/readyz").await.unwrap();
    assert!(told.body.to_string().contains("bubblewrap"), "the operator is told which: {:#}", told.body);
    let refused = world.api.post("/v1/runs", &world.run_body()).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.body);
    tokio::time::sleep(THREE_TRIES).await;
    if let Some(id) = early.body["id"].as_str() {
        let run = world.api.get(&format!("/v1/runs/{id}")).await.unwrap().body;
        assert_eq!(run["status"], "queued", "{run:#}");
        assert!(run["attempt"].as_u64().is_some_and(|attempt| attempt <= 1), "{run:#}");
    }
    std::fs::rename(&aside, &bubblewrap).unwrap();
    readiness(&world, 200).await;
    if let Some(id) = early.body["id"].as_str() {
        let run = world.api.wait_end(id, WAIT).await.unwrap();
        assert_succeeded(&world, &run, world.model_calls().len()).await;
    }
    assert_next_succeeds(&world).await;
}

/// Waits for an answer of the server on whether it can place runs.
async fn readiness(world: &World, status: u16) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let answer = world.api.get("/readyz").await.unwrap();
        if answer.status == status {
            return answer.body;
        }
        assert!(begun.elapsed() < WAIT, "{}", answer.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sandbox_that_was_half_made_when_its_server_was_killed_is_not_told_of() {
    const TRIES: usize = 20;
    let Some(mut world) = world(Engine::Local).await else { return };
    let mut body = world.run_body();
    body["prompt"] = json!("[[scn:cart]] The test suite fails. Fix the bug.");
    for _ in 0..TRIES {
        let id = world.api.submit(&body).await.unwrap();
        let half_made = kill_while_it_is_made(&mut world);
        world.server = world.spec.start().await.unwrap();
        let run = world.api.wait_end(&id, WAIT).await.unwrap();
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
        world.wait_tidy().await.unwrap();
        let Some(sandbox) = half_made else { continue };
        assert_eq!(run["attempt"], 2, "{run:#}");
        let events = events_with_one_end(&world, &id).await;
        let of_it = |event: &&Value| {
            event["kind"].as_str().is_some_and(|kind| kind.starts_with("sandbox."))
                && event.to_string().contains(&sandbox)
        };
        assert_eq!(events.iter().filter(of_it).collect::<Vec<_>>(), Vec::<&Value>::new());
        assert_eq!(count(&events, "sandbox.started"), 1);
        let again = events.iter().find(|event| event["kind"] == "run.requeued").unwrap();
        assert!(again.to_string().contains("the server stopped while"), "{again:#}");
        assert_eq!(leftovers(&sandbox).unwrap(), Vec::<String>::new());
        return;
    }
    panic!("the moment was never met in {TRIES} tries");
}

/// Kills the server when the next sandbox's record is there, and the sandbox's supervisor if there is one yet; the sandbox, if
/// its first process was not written down before.
fn kill_while_it_is_made(world: &mut World) -> Option<String> {
    let begun = std::time::Instant::now();
    let sandbox = loop {
        assert!(begun.elapsed() < WAIT, "no sandbox is made");
        if let Some(sandbox) = world.sandboxes().unwrap().pop() {
            break sandbox;
        }
    };
    world.server.kill().unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(b"caisson\0") && line.ends_with(format!("\0{sandbox}\0").as_bytes()) {
            // It may have ended by itself.
            kill_9(entry.file_name().to_str().unwrap().parse().unwrap()).ok();
        }
    }
    let first = world.state_dir().join("local").join(&sandbox).join("first.json");
    (!first.exists()).then_some(sandbox)
}
