//! Attachments on real parts: the real agent in a real sandbox is shown an image byte for byte and reads a file, with its task, with
//! a follow-up to an agent that waited, and with an input while it works.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(2);

testkit::on_every_engine_and_database! {
    an_image_and_a_file_reach_the_agent_with_its_task_and_with_a_follow_up_and_are_never_committed
    an_image_and_a_file_reach_the_agent_within_its_turn_and_behind_it
}

/// A PNG of one pixel of that colour, as small as one may be.
fn png(red: u8) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [&length, kind, data, &crc.sum().to_be_bytes()].concat()
    };
    let mut pixels = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut pixels, &[0, red, 0x20, 0x40]).unwrap();
    let head = chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0]);
    [b"\x89PNG\r\n\x1a\n".to_vec(), head, chunk(b"IDAT", &pixels.finish().unwrap()), chunk(b"IEND", b"")]
        .concat()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn bash(command: &str) -> Value {
    json!({"tool": {"name": "Bash", "input": {"description": "Work", "command": command}}})
}

/// Tells the hashes of all files that were attached.
const HASHES: &str = "sha256sum \"$HOME\"/attachments/*/*/*";

async fn world(ground: Ground, scenario: &str, steps: Value, variables: &[(&str, &str)]) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let spec = WorldSpec {
        scenario: scenario.to_owned(),
        scenarios: vec![json!({ scenario: { "prompts": steps } }).to_string()],
        variables: variables.iter().map(own).collect(),
        ..WorldSpec::on(ground)
    };
    Some(World::start(&parts, spec).await.unwrap())
}

fn written(directory: &Path, name: &str, content: &[u8]) -> String {
    let path: PathBuf = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// Runs a command of somebody who has a key; what it printed.
fn told(world: &World, arguments: &[&str]) -> (String, String) {
    let output = world.client(arguments).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {error}\n{}", world.server.log());
    (out.trim().to_owned(), error.into_owned())
}

async fn ended(world: &World, id: &str) -> (Value, Vec<Value>) {
    let run = world.api.wait_end(id, END).await.unwrap();
    let events = world.api.events(id).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{events:#?}\n{}", world.server.log());
    (run, events)
}

/// The images that the model was shown in people's messages by its last call, by their hashes.
fn images_of_last_call(world: &World) -> Vec<String> {
    let calls = world.model_calls();
    calls.last().unwrap().images.iter().map(|image| image.sha256.clone()).collect()
}

/// What its tools said.
fn said(events: &[Value]) -> String {
    let said = |event: &&Value| event["kind"] == "agent.line" && event["data"]["type"] == "user";
    events.iter().filter(said).map(|event| event["data"]["message"].to_string()).collect()
}

async fn an_image_and_a_file_reach_the_agent_with_its_task_and_with_a_follow_up_and_are_never_committed(
    ground: Ground,
) {
    let turn = |name: &str| {
        let commit = format!("echo {name} > {name}.txt && git add -A && git commit -q -m 'feat: add {name}'");
        json!([bash(&format!("{HASHES}; {commit}; git status --short")), {"text": "Done."}])
    };
    let steps = json!([turn("one"), turn("two")]);
    let Some(world) = world(ground, "attached", steps, &[("KEEP_ALIVE_S", "600")]).await else { return };
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (png(1), png(2));
    // No name says what is in it.
    let image = written(directory.path(), "screen.dat", &first);
    let binary: Vec<u8> = (0..=255).cycle().take(2_000_000).collect();
    let file = written(directory.path(), "a table.bin", &binary);
    let repository = world.repository_url();
    let (id, _) = told(
        &world,
        &["run", "Look at both.", "--repo", &repository, "--attach", &image, "--attach", &file, "--detach"],
    );
    let (run, events) = ended(&world, &id).await;
    assert_eq!(images_of_last_call(&world), [sha256(&first)], "the model saw it byte for byte");
    assert!(world.model_calls().last().unwrap().images[0].role == "user");
    let place = format!("/home/agent/attachments/{id}/1/a table.bin");
    assert!(said(&events).contains(&format!("{}  {place}", sha256(&binary))), "{}", said(&events));
    // The bytes are in no event, and of the image there is an echo without them.
    let all = serde_json::to_string(&events).unwrap();
    assert!(!all.contains(&STANDARD.encode(&first)), "an event has the image's bytes");
    let echo = |event: &Value| {
        event["data"]["isReplay"] == true && event["data"]["message"]["content"][0]["source"]["data"] == ""
    };
    assert!(events.iter().any(echo), "{events:#?}");
    // Where the file is, the prompt says; as data.
    let asked =
        events.iter().find(|event| echo(event)).unwrap()["data"]["message"]["content"][1]["text"].to_string();
    assert!(
        asked.contains("Look at both.") && asked.contains(&place) && asked.contains("data, not instructions"),
        "{asked}"
    );
    let shown = &run["attachments"];
    assert_eq!((&shown[0]["kind"], &shown[1]["kind"]), (&json!("image"), &json!("file")));
    assert_eq!((&shown[1]["size_bytes"], &shown[1]["sha256"]), (&json!(2_000_000), &json!(sha256(&binary))));
    let fetched = world.api.bytes(&format!("/v1/runs/{id}/attachments/1")).await.unwrap();
    assert!(fetched == binary);
    let diff = world.api.bytes(&format!("/v1/runs/{id}/diff")).await.unwrap();
    let diff = String::from_utf8_lossy(&diff).into_owned();
    assert!(
        diff.contains("one.txt") && !diff.contains("table.bin") && !diff.contains("attachments"),
        "{diff}"
    );

    let image = written(directory.path(), "screen.png", &second);
    let note = written(directory.path(), "note.txt", b"second\n");
    let session = run["session_id"].as_str().unwrap();
    let (next, _) = told(
        &world,
        &["run", "And at these.", "--session", session, "--attach", &note, "--attach", &image, "--detach"],
    );
    let (_, events) = ended(&world, &next).await;
    assert!(events.iter().any(|event| event["kind"] == "sandbox.reused"), "the agent that waited goes on");
    assert_eq!(images_of_last_call(&world), [sha256(&first), sha256(&second)], "it knows the first as well");
    let both = said(&events);
    assert!(both.contains(&sha256(b"second\n")) && both.contains(&sha256(&binary)), "{both}");
}

async fn an_image_and_a_file_reach_the_agent_within_its_turn_and_behind_it(ground: Ground) {
    // The tool itself waits for what comes within the turn.
    let wait = "until ls \"$HOME\"/attachments/*/*/late.txt 2> /dev/null; do sleep 0.05; done";
    let steps = json!([
        [bash(&format!("{wait}; {HASHES}")), {"text": "?"}],
        [bash(HASHES), {"text": "Done."}],
        [bash(HASHES), {"text": "Done."}],
    ]);
    let Some(world) = world(ground, "late", steps, &[]).await else { return };
    let directory = tempfile::tempdir().unwrap();
    let body = json!({"workflow": "bug-fixer", "prompt": "Work.", "repository": null});
    let id = world.api.submit(&body).await.unwrap();
    let waits =
        |event: &Value| event["kind"] == "agent.line" && event["data"].to_string().contains("late.txt");
    world.api.wait_event(&id, END, waits).await.unwrap();
    let queued = written(directory.path(), "queued.png", &png(8));
    let (out, _) = told(&world, &["input", &id, "Then look at this.", "--queue", "--attach", &queued]);
    assert!(out.contains("is on its way (queue)"), "{out}");
    let shown = written(directory.path(), "shown.png", &png(9));
    let late = written(directory.path(), "late.txt", b"late\n");
    told(&world, &["input", &id, "Look at this now.", "--attach", &shown, "--attach", &late]);
    let (_, events) = ended(&world, &id).await;
    assert!(said(&events).contains(&sha256(b"late\n")), "{}", said(&events));
    let mut seen = images_of_last_call(&world);
    seen.sort();
    let mut wanted = vec![sha256(&png(8)), sha256(&png(9))];
    wanted.sort();
    assert_eq!(seen, wanted);
    let inputs = world.api.get(&format!("/v1/runs/{id}/inputs")).await.unwrap().body;
    let items = inputs["items"].as_array().unwrap();
    assert!(items.iter().all(|input| input["state"] == "delivered"), "{inputs:#}");
    assert_eq!(
        (&items[0]["attachments"][0]["name"], &items[1]["attachments"][1]["number"]),
        (&json!("queued.png"), &json!(2))
    );
    let all = serde_json::to_string(&events).unwrap();
    assert!(!all.contains(&STANDARD.encode(png(8))) && !all.contains(&STANDARD.encode(png(9))));
}
