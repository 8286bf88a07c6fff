//! Runs whose lease is over while their worker lives.

use std::time::Duration;

use caisson_domain::limits::LEASE_MS;
use caisson_domain::run::RunStatus;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::Clock;

use crate::server::FakeProbe;
use crate::shim::Play;
use crate::world::{World, until};

#[tokio::test]
async fn a_run_whose_lease_is_over_again_and_again_is_taken_up_and_done_once() {
    let mut world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    // No heartbeat comes in time; but a busy machine makes a sandbox within a lease, which begins with the question.
    world.setup.config.timing.lease = Duration::from_millis(400);
    world.setup.config.timing.lease_heartbeat = Duration::from_secs(10);
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    let lists = world.engine.lists();
    // Each time the engine is asked for the sandbox.
    until("it was taken up a few times", || async { world.engine.lists() > lists + 40 }).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    world.shims.release();
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 1));
    assert_eq!((world.shims.agents(&run), world.engine.made().len()), (1, 1));
    world.clean().await;
    world.told_once(&run).await;
    server.kill();
}

#[tokio::test]
async fn a_run_that_was_claimed_for_nobody_is_found_and_done() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let mut world = World::with_clock(clock).await;
    let problem = PlacementProblem { code: ProblemCode::ImageMissing, message: "what to do".to_owned() };
    let probe = FakeProbe::answering(Some(vec![problem]));
    world.setup.probe = Some(probe.clone());
    let server = world.boot().await;
    until("it has settled in", || async { world.engine.lists() > 2 }).await;
    let run = world.queue().await;
    // As a claim whose answer was lost: the run is the server's, and its process knows nothing of it.
    assert!(world.store.claim(&world.setup.config.server).await.unwrap().is_some());
    let lists = world.engine.lists();
    until("a few passes are made", || async { world.engine.lists() > lists + 2 }).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running, "the lease lasts");
    handle.advance(LEASE_MS);
    until("it is back in the queue", || async { world.run(&run).await.status == RunStatus::Queued }).await;
    handle.advance(1_000);
    probe.answer(Vec::new());
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 2));
    assert_eq!(world.shims.agents(&run), 1);
    world.clean().await;
    server.kill();
}
