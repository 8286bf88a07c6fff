//! Every bound on what a worker does at once, hit.

use std::time::Duration;

use caisson_domain::id::RunId;
use caisson_domain::queue::PRIORITY;
use caisson_domain::run::RunStatus;
use caisson_worker::{STARTS, TEARDOWNS};

use crate::shim::Play;
use crate::world::{World, until};

/// Runs that are claimed in the order in which they are told: of what is queued within a millisecond, chance says who is first.
async fn queue(world: &World, runs: usize) -> Vec<RunId> {
    let mut queued = Vec::new();
    for priority in PRIORITY.rev().take(runs) {
        queued.push(world.queue_with(|spec| spec.priority = priority).await);
    }
    assert_eq!(queued.len(), runs, "there are as many priorities");
    queued
}

async fn running(world: &World, runs: &[RunId]) -> usize {
    let mut running = 0;
    for run in runs {
        running += usize::from(world.run(run).await.status == RunStatus::Running);
    }
    running
}

#[tokio::test]
async fn no_more_runs_are_in_hand_than_there_are_slots() {
    let mut world = World::new().await;
    world.setup.config.slots = 3;
    world.shims.by_default(Play::Work { obeys: true });
    let runs = queue(&world, 5).await;
    let server = world.boot().await;
    until("all slots are used", || async { running(&world, &runs).await == 3 }).await;
    world.agent_works(&runs[2]).await;
    let lists = world.engine.lists();
    until("some time passes", || async { world.engine.lists() > lists + 2 }).await;
    assert_eq!(running(&world, &runs).await, 3);
    world.cancel(&runs[0]).await;
    world.agent_works(&runs[3]).await;
    assert_eq!(running(&world, &runs).await, 3);
    world.shims.release();
    for run in &runs {
        assert!(world.finished(run).await.status.is_final());
    }
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn adopted_runs_use_slots_too_and_are_kept_even_if_there_are_fewer_now() {
    let mut world = World::new().await;
    world.setup.config.slots = 3;
    world.shims.by_default(Play::Work { obeys: true });
    let runs = queue(&world, 4).await;
    let server = world.boot().await;
    for run in &runs[..3] {
        world.agent_works(run).await;
    }
    server.kill();
    world.setup.config.slots = 2;
    let server = world.boot().await;
    world.cancel(&runs[2]).await;
    world.finished(&runs[2]).await;
    let lists = world.engine.lists();
    until("some time passes", || async { world.engine.lists() > lists + 2 }).await;
    assert_eq!(world.run(&runs[3]).await.status, RunStatus::Queued, "the two slots are in use");
    world.cancel(&runs[0]).await;
    world.agent_works(&runs[3]).await;
    world.shims.release();
    assert_eq!(world.finished(&runs[1]).await.status, RunStatus::Succeeded);
    assert_eq!(world.finished(&runs[3]).await.status, RunStatus::Succeeded);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn only_two_sandboxes_are_started_at_one_time() {
    let mut world = World::new().await;
    world.setup.config.slots = 6;
    world.engine.set_create_gate(false);
    let runs = queue(&world, 6).await;
    let server = world.boot().await;
    until("all are claimed", || async { running(&world, &runs).await == 6 }).await;
    until("two are being created", || async { world.engine.creations().0 == STARTS }).await;
    world.engine.set_create_gate(true);
    for run in &runs {
        assert_eq!(world.finished(run).await.status, RunStatus::Succeeded);
    }
    assert_eq!(world.engine.creations(), (0, STARTS));
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_finished_run_frees_its_slot_and_only_so_many_sandboxes_wait_for_their_end() {
    let mut world = World::new().await;
    world.setup.config.slots = 2;
    world.setup.config.timing.exit_grace = Duration::from_hours(1);
    world.shims.by_default(Play::Deaf);
    let runs = queue(&world, TEARDOWNS + 4).await;
    let server = world.boot().await;
    let ended = |runs: Vec<RunId>| {
        let world = &world;
        async move {
            let mut ended = 0;
            for run in runs {
                ended += usize::from(world.run(&run).await.status.is_final());
            }
            ended
        }
    };
    // Two more have ended, whose sandboxes keep their slots.
    let most = TEARDOWNS + 2;
    until("all places are taken", || async { ended(runs.clone()).await == most }).await;
    let lists = world.engine.lists();
    until("some time passes", || async { world.engine.lists() > lists + 2 }).await;
    assert_eq!(ended(runs.clone()).await, most);
    assert_eq!((world.engine.ids().len(), world.engine.most_living()), (most, most));
    for sandbox in world.engine.ids() {
        world.engine.exit(&sandbox, 0, false);
    }
    until("the rest ends too", || async { ended(runs.clone()).await == runs.len() }).await;
    server.kill();
    let server = world.boot().await;
    world.clean().await;
    server.kill();
}
