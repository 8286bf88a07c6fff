//! Two places that are one server, as after a state directory was copied: each would destroy the other's sandboxes.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::api::Api;
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::{ServerProcess, ServerSpec};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(5);

/// How long a server is cut off: another one may take its place by then, and its leases are over.
const CUT_OFF: Duration = Duration::from_secs(32);
/// How long one that is back may take to see that: it tells that it lives every 10 s.
const SEEN: Duration = Duration::from_secs(40);

/// A server with the id of the world's and a state directory of its own.
fn copy_of(world: &World, postgres: &Postgres) -> ServerSpec {
    let copy = world.beside("copy", &postgres.url()).unwrap();
    std::fs::create_dir(&copy.state_dir).unwrap();
    std::fs::copy(world.state_dir().join("server_id"), copy.state_dir.join("server_id")).unwrap();
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_server_is_refused_while_the_server_lives() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    let mut world = World::start(&parts, spec).await.unwrap();
    let (id, sandbox) = world.half_done(&world.run_body(), END).await.unwrap();
    let mut copy = copy_of(&world, &postgres);
    let workflows = world.directory.path().join("workflows");
    std::fs::create_dir(&workflows).unwrap();
    let definition = "---\nname: of-the-copy\ndescription: Nobody else has it.\n---\nDo something.\n";
    std::fs::write(workflows.join("of-the-copy.md"), definition).unwrap();
    copy.set("WORKFLOWS_DIR", &workflows.display().to_string());
    let refused = copy.command(&["serve"]).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("remove the file server_id in it"), "{told}");
    let written = "select count(*) from workflow where name = 'of-the-copy'";
    assert_eq!(postgres.value(written).unwrap(), "0", "whoever is refused writes nothing: {told}");
    assert_eq!(world.sandboxes().unwrap(), std::slice::from_ref(&sandbox));
    // From its own place a server is back at once, however it ended.
    world.server.kill().unwrap();
    let begun = Instant::now();
    world.server = world.spec.start().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(28), "it waited for itself: {:?}", begun.elapsed());
    assert_eq!(world.sandboxes().unwrap(), [sandbox], "nothing of its run was touched");
    assert_eq!(world.api.post(&format!("/v1/runs/{id}/cancel"), &Value::Null).await.unwrap().status, 202);
    let run = world.api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "cancelled", "{run:#}\n{}", world.server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_with_one_id_that_start_at_the_same_moment_one_ends() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    let mut world = World::start(&parts, spec).await.unwrap();
    let copy = copy_of(&world, &postgres);
    world.server.terminate().await.unwrap();
    postgres.value("delete from server_role returning 1").unwrap();
    let mut two = [world.spec.spawn().unwrap(), copy.spawn().unwrap()];
    let begun = Instant::now();
    let (at, status) = 'ended: loop {
        for (at, server) in two.iter_mut().enumerate() {
            if let Ok(status) = server.ended(Duration::from_millis(100)).await {
                break 'ended (at, status);
            }
        }
        assert!(begun.elapsed() < END, "both go on\n{}\n{}", two[0].log(), two[1].log());
    };
    let told = two[at].log();
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("remove the file server_id in it"), "{told}");
    two[1 - at].wait_ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_place_another_one_took_ends_and_leaves_its_sandboxes_alone() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url()));
    let mut world = World::start(&parts, spec).await.unwrap();
    let (id, sandbox) = world.half_done(&world.run_body(), END).await.unwrap();
    // As a copy does that began while this one was cut off for longer than it may be silent.
    postgres.value("update server_role set place = 'elsewhere' returning 1").unwrap();
    let ended = world.server.ended(Duration::from_mins(1)).await.unwrap();
    let log = world.server.log();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("remove the file server_id in it"), "{log}");
    assert_eq!(world.sandboxes().unwrap(), [sandbox], "nothing of its run was touched");
    postgres.value("update server_role set place = null returning 1").unwrap();
    world.server = world.spec.start().await.unwrap();
    assert_eq!(world.api.post(&format!("/v1/runs/{id}/cancel"), &Value::Null).await.unwrap().status, 202);
    assert_eq!(world.api.wait_end(&id, END).await.unwrap()["status"], "cancelled");
}

/// A copy, whose sandboxes go before it does.
struct Copy {
    spec: ServerSpec,
    server: Option<ServerProcess>,
    engine: Engine,
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.server.take();
        self.engine.remove_all(&self.spec.parts, &self.spec.state_dir).ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_from_an_outage_touches_nothing_of_the_copy_that_took_its_place() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let way = postgres.way().await.unwrap();
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url_by(&way)));
    let mut world = World::start(&parts, spec).await.unwrap();
    let (_, own) = world.half_done(&world.run_body(), END).await.unwrap();
    way.set_open(false);
    let cut_off = Instant::now();
    let mut spec = copy_of(&world, &postgres);
    spec.set("KEEP_ALIVE_S", "600");
    let copy = spec.spawn().unwrap();
    let mut copy = Copy { spec, server: Some(copy), engine: Engine::Local };
    let server = copy.server.as_mut().unwrap();
    tokio::time::sleep(CUT_OFF.saturating_sub(cut_off.elapsed())).await;
    server.wait_ready().await.unwrap();
    // A run of the copy's ends, and its sandbox waits for the next one: to whoever does not know better, no run needs it.
    let api = Api::new(&server.base, &world.key).unwrap();
    let id = api.submit(&world.run_body()).await.unwrap();
    let run = api.wait_end(&id, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", server.log());
    let waits = format!(
        "select state || ' ' || (select count(*) from sandbox_grant where sandbox_grant.sandbox_id = sandbox.id \
         and revoked_at_ms is null) from sandbox where id = (select sandbox_id from run where id = '{id}')"
    );
    let before = postgres.value(&waits).unwrap();
    assert!(before.starts_with("running "), "{before}");
    way.set_open(true);
    let ended = world.server.ended(SEEN).await.unwrap();
    let log = world.server.log();
    assert_eq!(ended.code(), Some(1), "{log}");
    // Whether it tries to write anything before its next sign of life is chance: the store's own tests show what comes of each.
    assert!(log.contains("remove the file server_id in it"), "{log}");
    assert_eq!(postgres.value(&waits).unwrap(), before, "{log}");
    assert_eq!(world.sandboxes().unwrap(), [own], "its own sandbox lives on");
    let next = api.submit(&json!({"session": run["session_id"], "prompt": "Go on."})).await.unwrap();
    let next = api.wait_end(&next, END).await.unwrap();
    assert_eq!(next["status"], "succeeded", "{next:#}");
    let sandboxes = "select count(*) from sandbox where session_id = (select session_id from run where id = ";
    assert_eq!(postgres.value(&format!("{sandboxes}'{id}')")).unwrap(), "1", "the one that waited");
}
