//! Rows that cannot be read: they end their own run and stop nobody else.

use caisson_domain::id::{RunId, ServerId};
use caisson_domain::run::RunStatus;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, SqliteConnection};

use crate::shim::Play;
use crate::world::{World, until};

/// A connection to the world's database behind the store's back.
pub(crate) async fn raw(world: &World) -> SqliteConnection {
    SqliteConnectOptions::new().filename(&world.setup.database).connect().await.unwrap()
}

/// Writes down that a server was heard of all the time, so that it is a witness of the silence of others.
pub(crate) async fn has_been_there(world: &World, server: &ServerId) {
    let role = "insert into server_role (server_id, role, seen_at_ms, alive_since_ms, version) values ($1, 'worker', $2, 0, '1')";
    let query = sqlx::query(role).bind(server.as_str()).bind(i64::MAX);
    query.execute(&mut raw(world).await).await.unwrap();
}

/// Makes the run's specification one that nobody can read.
async fn damage(world: &World, run: &RunId) {
    let damage = "update run set spec = '{}' where id = $1";
    sqlx::query(damage).bind(run.as_str()).execute(&mut raw(world).await).await.unwrap();
}

/// Waits until the damaged run has failed, and returns what its failure says.
async fn failed(world: &World, run: &RunId) -> String {
    let status = async || -> (String, Option<String>) {
        let read = "select status, failure from run where id = $1";
        sqlx::query_as(read).bind(run.as_str()).fetch_one(&mut raw(world).await).await.unwrap()
    };
    until("the damaged run fails", || async { status().await.0 == "failed" }).await;
    status().await.1.unwrap()
}

#[tokio::test]
async fn a_run_that_is_damaged_in_the_queue_ends_and_the_next_one_starts() {
    let world = World::new().await;
    let (damaged, sound) = (world.queue().await, world.queue().await);
    damage(&world, &damaged).await;
    let server = world.boot().await;
    assert_eq!(world.finished(&sound).await.status, RunStatus::Succeeded);
    let failure = failed(&world, &damaged).await;
    assert!(failure.contains("internal") && failure.contains("run.spec"), "{failure}");
    assert_eq!(world.shims.agents(&damaged), 0);
    world.clean().await;
    world.told_once(&damaged).await;
    server.kill();
}

#[tokio::test]
async fn a_run_that_is_damaged_while_no_server_is_there_ends_at_the_start_and_the_others_go_on() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let (damaged, sound) = (world.queue().await, world.queue().await);
    let server = world.boot().await;
    world.agent_works(&damaged).await;
    world.agent_works(&sound).await;
    server.kill();
    damage(&world, &damaged).await;
    let server = world.boot().await;
    assert!(failed(&world, &damaged).await.contains("run.spec"));
    until("its sandbox is gone", || async { world.engine.ids().len() == 1 }).await;
    let next = world.queue().await;
    world.agent_works(&next).await;
    world.shims.release();
    for run in [&sound, &next] {
        assert_eq!(world.finished(run).await.status, RunStatus::Succeeded);
    }
    world.clean().await;
    world.told_once(&damaged).await;
    server.kill();
}

#[tokio::test]
async fn a_run_that_is_damaged_while_it_works_ends_and_gives_its_slot_back() {
    let mut world = World::new().await;
    world.setup.config.slots = 1;
    world.shims.by_default(Play::Work { obeys: true });
    let (damaged, next) = (world.queue_first().await, world.queue().await);
    let server = world.boot().await;
    world.agent_works(&damaged).await;
    damage(&world, &damaged).await;
    world.shims.release();
    assert!(failed(&world, &damaged).await.contains("run.spec"));
    assert_eq!(world.finished(&next).await.status, RunStatus::Succeeded);
    world.clean().await;
    world.told_once(&damaged).await;
    server.kill();
}
