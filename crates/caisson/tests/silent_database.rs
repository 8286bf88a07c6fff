//! A database whose machine loses its power while calls wait for it: nothing tells the server, and nothing ever comes.

use std::sync::Arc;
use std::time::Duration;

use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(3);
/// Longer than a lease: whoever still waits then has waited for nothing.
const GONE: Duration = Duration::from_secs(35);
/// Keeps the write lock for a few seconds, as another server's transaction does.
const WRITES: &str = "select pg_advisory_lock((cast(x'43414953' as bigint) << 32) | \
     cast(cast(cast('project' as regclass) as oid) as bigint)), pg_sleep(4)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_on_after_the_machine_of_its_database_vanished_without_a_word() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(postgres) = Postgres::make().await.unwrap().map(Arc::new) else { return };
    let way = postgres.way().await.unwrap();
    let mut spec =
        WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, ..WorldSpec::on(Engine::Local) };
    spec.variables.push(("DATABASE__URL".to_owned(), postgres.url_by(&way)));
    // Other bounds are the product's own.
    spec.variables.push(("DATABASE__STATEMENT_TIMEOUT_MS".to_owned(), "10000".to_owned()));
    spec.variables.push(("SLOTS".to_owned(), "2".to_owned()));
    let world = World::start(&parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    world.api.wait_event(&id, END, |event| event["kind"] == "model.call").await.unwrap();

    // What waits for the lock has sent its request, and the database has said that it has it.
    let other = Arc::clone(&postgres);
    let writing = std::thread::spawn(move || other.value(WRITES));
    tokio::time::sleep(Duration::from_secs(3)).await;
    way.set_open(false);
    writing.join().unwrap().unwrap();
    tokio::time::sleep(GONE).await;
    way.open_anew();

    let mut ended = Vec::new();
    let run = world.api.wait_end(&id, END).await;
    ended.push(run.unwrap_or_else(|error| panic!("{error}\n{}", world.server.log())));
    // And what comes later is claimed.
    let next = world.api.submit(&world.run_body()).await.unwrap();
    let run = world.api.wait_end(&next, END).await;
    ended.push(run.unwrap_or_else(|error| panic!("{error}\n{}", world.server.log())));
    for run in &ended {
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    }
    let log = world.server.log();
    assert!(log.contains("up again"), "its lease was over: {log}");
    assert!(log.contains("the connection for wake-ups"), "it noticed that it was deaf: {log}");
    let seen =
        "select (extract(epoch from clock_timestamp()) * 1000 - max(seen_at_ms)) < 30000 from server_role";
    assert_eq!(postgres.value(seen).unwrap(), "t", "it tells that it lives");
}
