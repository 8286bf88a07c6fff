//! The disk of a session has a bound: whoever hits it ends alone, and nothing is left mounted.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::volumes::{loop_devices, mounted};
use testkit::world::{World, WorldSpec};

const WAIT: Duration = Duration::from_mins(2);
/// How long other programs on this machine may hold a copy of a mount in a namespace of their own.
const OTHERS: Duration = Duration::from_mins(1);
/// What a session may hold in these tests, in MiB.
const ROOM_MIB: u64 = 96;

testkit::on_every_engine_and_database! {
    a_session_that_fills_its_volume_fails_alone_and_its_work_is_saved
    a_session_that_fills_its_volume_with_files_fails_as_well
    a_session_is_measured_where_there_are_no_volumes
    volumes_of_a_killed_server_are_taken_over_or_unmounted
    a_volume_ends_with_its_sandbox_while_others_live
}

/// A scenario whose agent runs one command and then says that it is done.
fn command(name: &str, command: &str) -> String {
    let run = json!({"tool": {"name": "Bash", "input": {"command": command, "timeout": 110_000}}});
    json!({name: {"prompts": [[run, {"text": "Done."}]]}}).to_string()
}

async fn world(parts: &Parts, ground: Ground, volumes: bool, scenarios: &[String]) -> World {
    let spec = WorldSpec {
        scenario: "fill".to_owned(),
        scenarios: scenarios.to_vec(),
        variables: vec![
            ("LIMITS__WORKSPACE_MIB".to_owned(), ROOM_MIB.to_string()),
            ("LIMITS__VOLUMES".to_owned(), volumes.to_string()),
        ],
        ..WorldSpec::on(ground)
    };
    World::start(parts, spec).await.unwrap()
}

/// Tests of volumes need root and loop devices; they say so where they cannot run.
fn parts_for_volumes() -> Option<Parts> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    assert!(nix::unistd::geteuid().is_root(), "volumes can be tested by root only");
    Some(parts)
}

async fn failure(world: &World, body: &Value) -> Value {
    let id = world.api.submit(body).await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "failed", "{run:#}\n{}", world.server.log());
    run
}

fn run_of(world: &World, scenario: &str) -> Value {
    let mut body = world.run_body();
    body["prompt"] = json!(format!("Fix the bug. [[scn:{scenario}]]"));
    body
}

async fn artifacts(world: &World, run: &Value) -> Vec<String> {
    let listed = world.api.get(&format!("/v1/runs/{}/artifacts", run["id"].as_str().unwrap())).await.unwrap();
    listed.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].as_str().unwrap().to_owned())
        .collect()
}

/// What the session's image costs on the server's disk, in bytes.
fn image_bytes(world: &World, run: &Value) -> u64 {
    let session = run["session_id"].as_str().unwrap();
    let image = world.state_dir().join("volumes").join(format!("{session}.img"));
    std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap()) * 512
}

/// Waits until nothing of the server is mounted any more.
async fn nothing_mounted(state_dir: &Path) {
    let start = Instant::now();
    loop {
        let left: (Vec<PathBuf>, Vec<String>) =
            (mounted(state_dir).unwrap(), loop_devices(state_dir).unwrap());
        if left.0.is_empty() && left.1.is_empty() {
            return;
        }
        assert!(start.elapsed() < OTHERS, "{left:?} held by {:?}", holders(&left.1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Processes that have one of the devices mounted, in whatever namespace.
fn holders(devices: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let mounts = std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        if devices.iter().any(|device| mounts.contains(&format!("/dev/{device} "))) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// Changes a file first, so that there is work to be saved, and then fills the disk.
const FILL: &str = "printf '\\n# a change\\n' >> shop/pricing.py; dd if=/dev/urandom of=ballast bs=1M; true";

async fn a_session_that_fills_its_volume_fails_alone_and_its_work_is_saved(ground: Ground) {
    let Some(parts) = parts_for_volumes() else { return };
    let world = world(&parts, ground, true, &[command("fill", FILL)]).await;
    let run = failure(&world, &run_of(&world, "fill")).await;
    assert_eq!(run["failure"]["kind"], "disk_full", "{run:#}");
    let message = run["failure"]["message"].as_str().unwrap();
    assert!(message.contains("workspace_mib"), "{message}");
    assert!(image_bytes(&world, &run) <= ROOM_MIB << 20);
    // The agent was told by the system, and the journal went on.
    let events = world.api.events(run["id"].as_str().unwrap()).await.unwrap();
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("No space left on device"), "{text}");
    assert!(events.iter().any(|event| event["kind"] == "agent.exited"), "{text}");
    let started = events.iter().find(|event| event["kind"] == "sandbox.started").unwrap();
    assert_eq!(started["data"]["workspace_mib"], ROOM_MIB);
    assert!(artifacts(&world, &run).await.contains(&"uncommitted.patch".to_owned()), "{text}");
    nothing_mounted(world.state_dir()).await;
    // Others go on.
    let id = world.api.submit(&run_of(&world, "cart")).await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}");
}

async fn a_session_that_fills_its_volume_with_files_fails_as_well(ground: Ground) {
    let Some(parts) = parts_for_volumes() else { return };
    let fill = "mkdir many && cd many && python3 -c '
for number in range(10**6): open(str(number), \"w\").close()'; true";
    let world = world(&parts, ground, true, &[command("fill", fill)]).await;
    let run = failure(&world, &run_of(&world, "fill")).await;
    assert_eq!(run["failure"]["kind"], "disk_full", "{run:#}");
    world.wait_tidy().await.unwrap();
}

async fn a_session_is_measured_where_there_are_no_volumes(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let fill = "dd if=/dev/zero of=ballast bs=1M count=300; sleep 100";
    let world = world(&parts, ground, false, &[command("fill", fill)]).await;
    let run = failure(&world, &run_of(&world, "fill")).await;
    assert_eq!(run["failure"]["kind"], "disk_full", "{run:#}");
    assert!(run["failure"]["message"].to_string().contains("96 MiB"), "{run:#}");
    // It was told to stop, and saved its work: there is none but the ballast, which is longer than an artifact may be.
    assert!(artifacts(&world, &run).await.contains(&"uncommitted.patch".to_owned()), "{run:#}");
    let events = world.api.events(run["id"].as_str().unwrap()).await.unwrap();
    let asked = events.iter().find(|event| event["kind"] == "run.stop_requested").unwrap();
    assert_eq!(asked["data"]["reason"], "disk_full");
    assert!(!serde_json::to_string(&events).unwrap().contains("Done."), "it did not sleep to the end");
    let started = events.iter().find(|event| event["kind"] == "sandbox.started").unwrap();
    let weaknesses = started["data"]["weaknesses"].to_string();
    assert!(weaknesses.contains("measured and not walled in"), "{weaknesses}");
    assert!(mounted(world.state_dir()).unwrap().is_empty());
    let doctor = world.spec.command(&["doctor"]).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.contains("up to 96 MiB each, measured") && said.contains("switched off"), "{said}");
}

async fn volumes_of_a_killed_server_are_taken_over_or_unmounted(ground: Ground) {
    let Some(parts) = parts_for_volumes() else { return };
    let scenarios = [command("fill", "echo kept > kept; sync; sleep 12; cat kept")];
    let mut world = world(&parts, ground, true, &scenarios).await;
    let id = world.api.submit(&run_of(&world, "fill")).await.unwrap();
    let sleeps =
        |event: &Value| event["kind"] == "agent.line" && event["data"].to_string().contains("sleep 12");
    world.api.wait_event(&id, WAIT, sleeps).await.unwrap();
    assert_eq!(mounted(world.state_dir()).unwrap().len(), 2, "workspace and journal");
    world.server.kill().unwrap();
    world.server = world.spec.start().await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    world.wait_tidy().await.unwrap();
    nothing_mounted(world.state_dir()).await;

    // Killed, and then the sandbox vanishes too: nobody is left to unmount but the next start.
    let id = world.api.submit(&run_of(&world, "fill")).await.unwrap();
    world.api.wait_event(&id, WAIT, sleeps).await.unwrap();
    world.server.kill().unwrap();
    let sandboxes = world.sandboxes().unwrap();
    for pid in world.processes(&sandboxes[0]).unwrap() {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    }
    assert_eq!(mounted(world.state_dir()).unwrap().len(), 2);
    world.server = world.spec.start().await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["failure"]["kind"], "sandbox_lost", "{run:#}");
    nothing_mounted(world.state_dir()).await;
    assert!(image_bytes(&world, &run) > 0, "the session's work is kept");
}

async fn a_volume_ends_with_its_sandbox_while_others_live(ground: Ground) {
    let Some(parts) = parts_for_volumes() else { return };
    let scenarios = [command("fill", "sleep 1"), command("long", "sleep 90")];
    let world = world(&parts, ground, true, &scenarios).await;
    let short = world.api.submit(&run_of(&world, "fill")).await.unwrap();
    world.api.wait_event(&short, WAIT, |event| event["kind"] == "sandbox.started").await.unwrap();
    // Its sandbox is made while the other's volumes are mounted.
    let long = world.api.submit(&run_of(&world, "long")).await.unwrap();
    world.api.wait_event(&long, WAIT, |event| event["kind"] == "agent.started").await.unwrap();
    world.api.wait_end(&short, WAIT).await.unwrap();
    let start = Instant::now();
    loop {
        let left = loop_devices(world.state_dir()).unwrap();
        if left.len() == 2 {
            break;
        }
        assert!(start.elapsed() < OTHERS, "{left:?} held by {:?}", holders(&left));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.sandboxes().unwrap().len(), 1, "the other one still lives");
}
