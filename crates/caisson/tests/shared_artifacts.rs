//! Servers that share a directory of artifacts: each gives out what any of them keeps, also when that one is gone, and a server
//! that does not share it says who has it.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::api::Api;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::{ServerProcess, ServerSpec};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(3);
/// What is kept of a run that was stopped in the middle, besides its patch.
const SALVAGED: &str = "uncommitted.patch";

testkit::on_every_engine! {
    whatever_a_run_leaves_is_had_from_every_server_that_shares_the_directory_also_when_its_own_is_gone
}

/// A server that answers the API alone, with a state directory of its own.
fn front(world: &World, postgres: &Postgres, name: &str) -> ServerSpec {
    let mut spec = world.beside(name, &postgres.url()).unwrap();
    spec.only = vec!["api"];
    // A machine that answers the API alone has no shim.
    spec.set("SHIM", "/nonexistent/caisson-shim");
    spec
}

/// Starts it, with the directory of artifacts, if any.
async fn started(
    mut spec: ServerSpec,
    artifacts: Option<&Path>,
    key: &str,
) -> (ServerSpec, ServerProcess, Api) {
    spec.variables.retain(|(name, _)| name != "CAISSON_ARTIFACTS_DIR");
    if let Some(directory) = artifacts {
        spec.set("ARTIFACTS_DIR", &directory.display().to_string());
    }
    let server = spec.start().await.unwrap();
    let api = Api::new(&server.base, key).unwrap();
    (spec, server, api)
}

/// Everything that a run has left, by its path.
async fn left(api: &Api, id: &str) -> Vec<(String, Vec<u8>)> {
    let listed = api.get(&format!("/v1/runs/{id}/artifacts")).await.unwrap().body;
    let names =
        listed["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned());
    let mut found = Vec::new();
    for path in std::iter::once("diff".to_owned()).chain(names.map(|name| format!("artifacts/{name}"))) {
        let answer = api.get(&format!("/v1/runs/{id}/{path}")).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        found.push((path.clone(), api.bytes(&format!("/v1/runs/{id}/{path}")).await.unwrap()));
    }
    found
}

fn told(spec: &ServerSpec, arguments: &[&str]) -> String {
    let output = spec.command(arguments).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Has the run's session deleted by way of a server.
async fn delete_session_of(api: &Api, (spec, server): (&ServerSpec, &ServerProcess), id: &str) {
    let run = api.get(&format!("/v1/runs/{id}")).await.unwrap().body;
    let key = spec.create_key_with("admin").unwrap();
    let mut delete = spec.command(&["session", "delete", run["session_id"].as_str().unwrap()]);
    let deleted = delete.env("CAISSON_URL", &server.base).env("CAISSON_API_KEY", key).output().unwrap();
    assert!(deleted.status.success(), "{deleted:?}");
}

/// A run that is stopped in the middle of its work, and what it has left, as its own server tells.
async fn stopped_half_way(world: &World) -> (String, Vec<(String, Vec<u8>)>) {
    let (id, _) = world.half_done(&world.run_body(), END).await.unwrap();
    assert_eq!(world.api.post(&format!("/v1/runs/{id}/cancel"), &Value::Null).await.unwrap().status, 202);
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "cancelled", "{run:#}\n{}", world.server.log());
    let kept = left(&world.api, &id).await;
    assert!(kept.iter().any(|(path, bytes)| path.ends_with(SALVAGED) && !bytes.is_empty()), "{kept:?}");
    (id, kept)
}

async fn whatever_a_run_leaves_is_had_from_every_server_that_shares_the_directory_also_when_its_own_is_gone(
    engine: Engine,
) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let volume = tempfile::tempdir().unwrap();
    let shared = volume.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let mut spec = WorldSpec::on(engine);
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    spec.variables.push(("ARTIFACTS_DIR".to_owned(), shared.display().to_string()));
    let mut world = World::start(&parts, spec).await.unwrap();
    let (id, kept) = stopped_half_way(&world).await;
    let own = std::fs::read_to_string(world.state_dir().join("server_id")).unwrap().trim().to_owned();
    assert!(shared.join(&own).join(&id).is_dir() && !world.state_dir().join("artifacts").exists());

    // What another server writes is left alone by one that starts.
    let half = shared.join(&own).join(".incoming/half");
    std::fs::write(&half, "on its way").unwrap();
    let (one, front, api) = started(front(&world, &postgres, "front"), Some(&shared), &world.key).await;
    assert_eq!(left(&api, &id).await, kept);
    assert!(told(&one, &["doctor"]).contains("ok    artifacts "), "{}", told(&one, &["doctor"]));
    let checked = told(&one, &["db", "check"]);
    assert!(checked.contains(&format!("ok    files: {} kept files are there", kept.len() - 1)), "{checked}");
    world.server.kill().unwrap();
    assert_eq!(left(&api, &id).await, kept, "its own server is gone");
    assert!(half.exists());

    // One that does not share the directory says who has it, and what to do.
    let (apart, server, elsewhere) = started(self::front(&world, &postgres, "apart"), None, &world.key).await;
    for (path, _) in &kept {
        let refused = elsewhere.get(&format!("/v1/runs/{id}/{path}")).await.unwrap();
        assert_eq!((refused.status, &refused.body["code"]), (409, &json!("artifact_elsewhere")), "{path}");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains(&own) && detail.contains("artifacts_dir"), "{detail}");
    }
    let doctor = told(&apart, &["doctor"]);
    assert!(doctor.contains("warn  artifacts ") && doctor.contains("set artifacts_dir"), "{doctor}");
    drop(server);

    // A volume that is not mounted is not taken for an empty one, by whoever gives out or starts.
    let aside = volume.path().join("aside");
    std::fs::rename(&shared, &aside).unwrap();
    std::fs::create_dir(&shared).unwrap();
    assert_eq!(api.get(&format!("/v1/runs/{id}/diff")).await.unwrap().status, 500);
    let refused = world.spec.command(&["serve"]).output().unwrap();
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("mount it there"), "{refused}");
    assert_eq!(std::fs::read_dir(&shared).unwrap().count(), 0, "nothing was made there");
    std::fs::remove_dir(&shared).unwrap();
    std::fs::rename(&aside, &shared).unwrap();
    assert_eq!(left(&api, &id).await, kept);

    // Its own server removes what it keeps, whoever has the session deleted.
    world.server = world.spec.start().await.unwrap();
    world.wait_tidy().await.unwrap();
    delete_session_of(&api, (&one, &front), &id).await;
    let begun = Instant::now();
    while shared.join(&own).join(&id).exists() {
        assert!(begun.elapsed() < END, "{}", world.server.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(front);
}
