//! An earlier version's server, with a run in a living sandbox, is replaced by this version's: `make upgrade` runs it, since
//! the program of an earlier commit has to be built for it. Databases alone are taken over in the store's own tests.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use testkit::engine::Engine;
use testkit::ground::{Database, Ground};
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_python_tests};
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(3);
/// How long the old server is away before the new one comes.
const AWAY: Duration = Duration::from_secs(3);

/// Which program is the earlier one, and its shim.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment where the machine's parts are"
)]
fn earlier(name: &str) -> String {
    std::env::var(name).expect("`make upgrade` sets it")
}

/// On every engine and every database: a sandbox is found again by what the earlier version wrote on either.
macro_rules! on {
    ($($name:ident: $engine:ident, $database:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
            #[ignore = "make upgrade builds the earlier program and runs it"]
            async fn $name() {
                take_over(Ground { engine: Engine::$engine, database: Database::$database }).await;
            }
        )*
    };
}

on! {
    a_run_in_a_living_sandbox_of_an_earlier_version_is_seen_to_its_end: Local, Sqlite;
    the_same_on_postgresql: Local, Postgres;
    the_same_in_docker: Docker, Sqlite;
    the_same_in_docker_on_postgresql: Docker, Postgres;
}

async fn take_over(ground: Ground) {
    let new = Parts::find(env!("CARGO_BIN_EXE_caisson")).unwrap();
    let mut old = new.clone();
    old.caisson = earlier("UPGRADE_CAISSON").into();
    old.shim = earlier("UPGRADE_SHIM").into();
    let spec = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, ..WorldSpec::on(ground) };
    let mut world = World::start(&old, spec).await.unwrap();
    let before = world.api.submit(&world.run_body()).await.unwrap();
    assert_eq!(world.api.wait_end(&before, END).await.unwrap()["status"], "succeeded");
    world.wait_tidy().await.unwrap();
    let living = world.api.submit(&world.run_body()).await.unwrap();
    world.api.wait_event(&living, END, |event| event["kind"] == "model.call").await.unwrap();
    let sandboxes = world.sandboxes().unwrap();
    world.server.terminate().await.unwrap();
    tokio::time::sleep(AWAY).await;
    assert!(!sandboxes.is_empty() && world.sandboxes().unwrap() == sandboxes, "it lives on: {sandboxes:?}");

    world.spec.parts = new;
    if world.postgres.is_none() {
        let backup = world.directory.path().join("before.db");
        let said = world.spec.command(&["db", "backup", backup.to_str().unwrap()]).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    world.server = world.spec.start().await.unwrap();

    let run = world.api.wait_end(&living, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    let after = clone_branch(&world.bare, run["branch"].as_str().unwrap()).unwrap();
    assert!(run_python_tests(&after.path().join("checkout")).unwrap().status.success());
    let events = world.api.events(&living).await.unwrap();
    let numbers: Vec<_> = events.iter().filter_map(|event| event["seq"].as_i64()).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
    for kind in ["run.started", "agent.started", "git.push", "run.finished"] {
        assert_eq!(events.iter().filter(|event| event["kind"] == kind).count(), 1, "{kind}");
    }
    assert_eq!(world.api.get(&format!("/v1/runs/{before}")).await.unwrap().body["status"], "succeeded");
    let next = world.api.submit(&world.run_body()).await.unwrap();
    assert_eq!(world.api.wait_end(&next, END).await.unwrap()["status"], "succeeded");
    let checked = world.spec.command(&["db", "check"]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    world.wait_tidy().await.unwrap();
}
