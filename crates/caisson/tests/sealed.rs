//! What a sandbox is and holds, judged from the host's side while its agent works.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use testkit::ground::Ground;
use testkit::hunt::{Canary, Hunt, LEAVE_MARKS};
use testkit::parts::Parts;
use testkit::world::{GIT_TOKEN, MODEL_KEY, World, WorldSpec};

const WAIT: Duration = Duration::from_mins(1);
const WAITING: &str = r#"python3 -c 'import os, time
while not os.path.exists(".git/go"): time.sleep(0.05)'"#;
const FIX: &str = "sed -i 's/quantity > BULK/quantity >= BULK/' shop/pricing.py";

testkit::on_every_engine_and_database! {
    canaries_reach_the_upstreams_and_nothing_else
    a_sandbox_is_sealed_as_the_host_sees_it
}

/// The hunt for both canaries.
fn hunt() -> Hunt {
    let canaries =
        [Canary { name: "model key", secret: MODEL_KEY }, Canary { name: "git token", secret: GIT_TOKEN }];
    Hunt::new(&canaries).unwrap()
}

/// The agent leaves marks, waits until it was looked at, and fixes the bug.
fn scenario() -> String {
    let bash = |command: &str| json!({ "tool": { "name": "Bash", "input": { "command": command, "description": "Work" } } });
    let steps = [bash(LEAVE_MARKS), bash(WAITING), bash(FIX), json!({ "text": "Fixed." })];
    json!({ "sealed": { "prompts": [steps, [{ "text": "fix(cart): count the tenth piece" }]] } }).to_string()
}

/// Ends the agent's wait.
fn go_on(world: &World) {
    let sessions = world.state_dir().join("sessions").read_dir().unwrap();
    let session = sessions.map(|entry| entry.unwrap().path()).next().unwrap();
    std::fs::write(session.join("workspace/.git/go"), "").unwrap();
}

async fn working(parts: &Parts, ground: Ground) -> (World, String, String) {
    let spec = WorldSpec {
        scenario: "sealed".to_owned(),
        scenarios: vec![scenario()],
        // Afterwards the workspace is an image, which is read whole.
        variables: vec![("LIMITS__WORKSPACE_MIB".to_owned(), "256".to_owned())],
        ..WorldSpec::on(ground)
    };
    let world = World::start(parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let sandbox = world.inside_a_tool(&id, WAIT).await.unwrap();
    assert_eq!(world.sandboxes().unwrap(), [sandbox.as_str()]);
    (world, id, sandbox)
}

/// A field of `/proc/<pid>/status`.
fn status_field(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn canaries_reach_the_upstreams_and_nothing_else(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (world, id, sandbox) = working(&parts, ground).await;
    let mut hunt = hunt();

    // While the agent works: the sandbox as the kernel and the engine show it.
    let pids = world.processes(&sandbox).unwrap();
    assert!(pids.len() >= 3, "shim, agent and tool were expected: {pids:?}");
    for pid in pids {
        hunt.process(pid).unwrap();
    }
    hunt.sandbox(&world, &sandbox).unwrap();
    Hunt::prove_in_memory(&world, &sandbox).unwrap();
    let while_working = hunt.tree(world.state_dir(), &[]);
    go_on(&world);

    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}");
    // When it is done: database, logs, artifacts, workspace with its git configuration, events, the pushed repository.
    let afterwards = hunt.tree(world.state_dir(), &[]);
    // By then the session's files are inside one image, if it has a volume.
    assert!(while_working > 20 && afterwards > 5, "{while_working} and {afterwards} files looked at");
    if let Some(postgres) = &world.postgres {
        let dump = postgres.dump().unwrap();
        assert!(dump.contains(&id), "it holds the rows");
        hunt.look("database", dump.as_bytes());
    }
    let events = serde_json::to_vec(&world.api.events(&id).await.unwrap()).unwrap();
    assert!(events.len() > 1_000);
    hunt.look("events", &events);
    hunt.repository(&world.bare).unwrap();
    assert!(hunt.found.is_empty(), "{:#?}", hunt.found);

    // The hunt can find: the upstreams did receive both.
    assert!(world.host.shown_tokens().iter().any(|token| token == GIT_TOKEN));
    assert!(!world.model_calls().is_empty());
    assert!(
        world
            .model_calls()
            .iter()
            .all(|call| call.x_api_key.as_ref().is_some_and(|key| key.matched == Some(true)))
    );
    let planted: PathBuf = world.state_dir().join("planted");
    std::fs::write(&planted, format!("x{}y", STANDARD.encode(GIT_TOKEN))).unwrap();
    hunt.tree(world.state_dir(), &[]);
    assert!(hunt.found.iter().any(|place| place.contains("planted")), "{:?}", hunt.found);
}

async fn a_sandbox_is_sealed_as_the_host_sees_it(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (world, id, sandbox) = working(&parts, ground).await;
    let pids = world.processes(&sandbox).unwrap();
    for pid in pids.iter().copied() {
        let uids = status_field(pid, "Uid");
        let uid: u32 = uids.split(' ').next().unwrap().parse().unwrap();
        assert!(uid >= 1000 && uids.split(' ').all(|text| text == uid.to_string()), "{pid} has {uids}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_field(pid, set), "0000000000000000", "{set} of {pid}");
        }
        assert_eq!(status_field(pid, "NoNewPrivs"), "1");
        assert_eq!(status_field(pid, "Seccomp"), "2", "a filter");
    }
    let pid = pids[0];
    let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let devices: Vec<_> =
        devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(devices, ["lo"]);
    mounts(pid);
    let start_ms = world
        .api
        .events(&id)
        .await
        .unwrap()
        .iter()
        .find(|event| event["kind"] == "sandbox.started")
        .and_then(|event| event["data"]["start_ms"].as_i64())
        .expect("the start is measured");
    assert!((1..10_000).contains(&start_ms), "the start took {start_ms} ms");
}

/// The mounts of a process in the sandbox: what may be written, and what is not there at all.
fn mounts(pid: u32) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mounted: Vec<(&str, &str)> = text
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            (fields[4], fields[5])
        })
        .collect();
    let options =
        |place: &str| mounted.iter().find(|(target, _)| *target == place).map(|(_, options)| *options);
    for read_only in ["/", "/caisson/shim", "/caisson/agent", "/caisson/door"] {
        let options = options(read_only).unwrap_or_else(|| panic!("{read_only} is no mount"));
        assert!(options.split(',').any(|option| option == "ro"), "{read_only} is {options}");
    }
    for writable in ["/workspace", "/home/agent", "/caisson/journal", "/tmp"] {
        let options = options(writable).unwrap_or_else(|| panic!("{writable} is no mount"));
        assert!(options.split(',').any(|option| option == "rw"), "{writable} is {options}");
    }
    assert!(!text.contains("docker.sock"), "{text}");
}
