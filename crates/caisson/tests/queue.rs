//! The queue as those who wait in it and those who keep it meet it: a real server with one slot, real runs.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::api::Api;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(2);
/// Runs that may wait.
const MAX_QUEUED: usize = 3;

testkit::on_every_database! {
    who_waits_is_told_where_and_how_long_and_the_queue_refuses_at_its_bound
    a_start_that_is_put_off_comes_in_its_time_and_not_before
    a_drained_server_sees_its_runs_through_and_takes_the_next_when_it_is_resumed
}

async fn world(ground: Ground) -> Option<World> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let scenarios = json!({
        "short": {"prompts": [[{"text": "Done."}]]},
        "long": {"prompts": [[{"text": "word after word ", "text_repeat": 10_000, "chunk_delay_ms": 1_000}]]},
    });
    let spec = WorldSpec {
        scenario: "short".to_owned(),
        scenarios: vec![scenarios.to_string()],
        delay_scale: 1.0,
        variables: vec![
            ("SLOTS".to_owned(), "1".to_owned()),
            ("QUEUE__MAX_QUEUED".to_owned(), MAX_QUEUED.to_string()),
        ],
        ..WorldSpec::on(ground)
    };
    Some(World::start(&parts, spec).await.unwrap())
}

fn body(scenario: &str) -> Value {
    json!({"workflow": "bug-fixer", "prompt": format!("[[scn:{scenario}]] Say that you are done."), "repository": null})
}

/// The key of an operator.
fn operator(world: &World) -> String {
    world.spec.create_key_with("admin").unwrap()
}

/// What a command of the operator said that succeeded.
async fn said(world: &World, key: &str, arguments: &[&str]) -> String {
    let mut command = world.client(arguments);
    command.env("CAISSON_API_KEY", key);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

async fn run(api: &Api, id: &str) -> Value {
    api.get(&format!("/v1/runs/{id}")).await.unwrap().body
}

async fn cancel(api: &Api, id: &str) {
    let answer = api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    assert!(answer.status < 300, "{:#}", answer.body);
}

async fn occupied(world: &World) -> String {
    let id = world.api.submit(&body("long")).await.unwrap();
    world.api.wait_run(&id, END, |run| run["phase"] == "agent").await.unwrap();
    id
}

async fn who_waits_is_told_where_and_how_long_and_the_queue_refuses_at_its_bound(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let api = &world.api;
    for _ in 0..3 {
        let id = api.submit(&body("short")).await.unwrap();
        let ended = api.wait_end(&id, END).await.unwrap();
        assert_eq!(ended["status"], "succeeded", "{ended:#}\n{}", world.server.log());
        assert_eq!((&ended["queue_position"], &ended["queue_estimate"]), (&Value::Null, &Value::Null));
    }
    let long = occupied(&world).await;
    let mut waiting = Vec::new();
    for position in 1..=MAX_QUEUED {
        let id = api.submit(&body("short")).await.unwrap();
        let told = run(api, &id).await;
        assert_eq!((&told["status"], &told["queue_position"]), (&json!("queued"), &json!(position)));
        let estimate = &told["queue_estimate"];
        assert_eq!((&estimate["runs_measured"], &estimate["running"]), (&json!(3), &json!(1)), "{told:#}");
        let mean_ms = estimate["mean_run_ms"].as_i64().unwrap();
        let expected = mean_ms * i64::try_from(position).unwrap() / 1_000;
        assert_eq!(estimate["seconds"], expected);
        waiting.push(id);
    }
    let refused = api.post("/v1/runs", &body("short")).await.unwrap();
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("queue_full")), "{:#}", refused.body);
    cancel(api, &waiting.pop().unwrap()).await;
    let mut urgent = body("short");
    urgent["priority"] = json!(10);
    let urgent = api.submit(&urgent).await.unwrap();
    assert_eq!(run(api, &urgent).await["queue_position"], 1);
    assert_eq!(run(api, &waiting[0]).await["queue_position"], 2);
    cancel(api, &long).await;
    let first = api.wait_end(&urgent, END).await.unwrap();
    let second = api.wait_end(&waiting[0], END).await.unwrap();
    assert!(first["started_at_ms"].as_i64() < second["started_at_ms"].as_i64(), "{first:#} {second:#}");
}

async fn a_start_that_is_put_off_comes_in_its_time_and_not_before(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let command = ["run", "--detach", "--no-repo", "--delay", "10s", "[[scn:short]] Say that you are done."];
    let output = world.client(&command).output().unwrap();
    let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let told = run(&world.api, &id).await;
    let start_at_ms = told["start_at_ms"].as_i64().unwrap();
    // The delay counts from when the request was read, and the run is made a moment later.
    let delay_ms = start_at_ms - told["created_at_ms"].as_i64().unwrap();
    assert!((1..=10_000).contains(&delay_ms), "{told:#}");
    assert_eq!((&told["status"], &told["queue_position"]), (&json!("queued"), &Value::Null));
    let ended = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(ended["status"], "succeeded", "{ended:#}\n{}", world.server.log());
    assert!(ended["started_at_ms"].as_i64().unwrap() >= start_at_ms, "{ended:#}");
}

async fn a_drained_server_sees_its_runs_through_and_takes_the_next_when_it_is_resumed(ground: Ground) {
    let Some(world) = world(ground).await else { return };
    let (api, key) = (&world.api, operator(&world));
    let long = occupied(&world).await;
    let told = said(&world, &key, &["drain"]).await;
    assert!(told.starts_with("1 running, 0 waiting") && told.contains("all servers are drained"), "{told}");
    // The answer may be a second old.
    let begun = Instant::now();
    let ready = loop {
        let ready = api.get("/readyz").await.unwrap();
        if ready.status == 503 || begun.elapsed() > END {
            break ready;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((ready.status, &ready.body["code"]), (503, &json!("drained")), "{:#}", ready.body);
    let doctor = world.spec.command(&["doctor"]).output().unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("drained and takes no run"), "{doctor}");

    let next = api.submit(&body("short")).await.unwrap();
    cancel(api, &long).await;
    let waited = Instant::now();
    let told = said(&world, &key, &["drain", "--wait", "--timeout", "60"]).await;
    assert!(told.starts_with("0 running, 1 waiting"), "{told}");
    assert_eq!(api.wait_end(&long, END).await.unwrap()["status"], "cancelled", "it was seen through");
    // Longer than the worker waits before it looks again by itself.
    tokio::time::sleep(Duration::from_secs(3).saturating_sub(waited.elapsed())).await;
    let waiting = run(api, &next).await;
    assert_eq!((&waiting["status"], &waiting["queue_position"]), (&json!("queued"), &json!(1)));

    let told = said(&world, &key, &["resume"]).await;
    assert!(told.contains("claims") && !told.contains("drained"), "{told}");
    assert_eq!(api.wait_end(&next, END).await.unwrap()["status"], "succeeded", "{}", world.server.log());
    assert_eq!(api.get("/readyz").await.unwrap().status, 200);
}
