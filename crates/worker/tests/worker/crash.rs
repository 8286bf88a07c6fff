//! `kill -9` at every step of a run, and a new start.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::run::{FailureKind, RunStatus};
use caisson_worker::Step;

use crate::server::{Steps, StopAt};
use crate::shim::Play;
use crate::world::{World, until};

/// Worlds side by side.
const WORLDS: usize = 8;

/// Kills a server at each of the steps in turn, then starts one that is left alone; the run must end as if nothing had
/// happened.
async fn survives(steps: &[Step]) {
    let world = World::new().await;
    let run = world.queue().await;
    for step in steps {
        let (hook, reached) = StopAt::hook(*step);
        let server = world.boot_with(hook).await;
        // After a kill the way to the end is shorter: a step may not come again.
        let hit = async { reached.await.is_ok() };
        let over = async {
            world.finished(&run).await;
            world.clean().await;
        };
        tokio::select! {
            hit = hit => assert!(hit),
            () = over => {}
        }
        server.kill();
    }
    let server = world.boot().await;
    let ended = world.finished(&run).await;
    assert_eq!(ended.status, RunStatus::Succeeded, "{steps:?}: {:?}", ended.failure);
    assert_eq!(world.shims.agents(&run), 1, "{steps:?}");
    world.clean().await;
    world.told_once(&run).await;
    let started = world.told(&run, EventKind::SandboxStarted).await;
    assert!(!started.is_empty(), "{steps:?}");
    let last = started.last().unwrap()["sandbox"].as_str().unwrap().to_owned();
    assert_eq!(ended.sandbox.unwrap().as_str(), last, "{steps:?}");
    server.kill();
}

#[tokio::test]
async fn an_undisturbed_run_takes_every_step_once_and_in_order() {
    let world = World::new().await;
    let steps = std::sync::Arc::new(Steps::default());
    let server = world.boot_with(steps.clone()).await;
    let run = world.queue().await;
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    world.clean().await;
    let wanted: Vec<Step> = Step::ALL.iter().copied().filter(|step| *step != Step::Withdrawn).collect();
    until("the last step is taken", || async { steps.seen().len() >= wanted.len() }).await;
    assert_eq!(steps.seen(), wanted);
    server.kill();
}

#[tokio::test]
async fn a_server_killed_at_any_step_loses_and_doubles_nothing() {
    for step in Step::ALL {
        survives(&[*step]).await;
    }
}

#[tokio::test]
async fn a_server_killed_twice_at_any_steps_loses_and_doubles_nothing() {
    // Side by side, because a world mostly waits for the disk.
    let mut worlds = tokio::task::JoinSet::new();
    for first in Step::ALL {
        for second in Step::ALL {
            if worlds.len() == WORLDS {
                worlds.join_next().await.unwrap().unwrap();
            }
            worlds.spawn(async move { survives(&[*first, *second]).await });
        }
    }
    while let Some(survived) = worlds.join_next().await {
        survived.unwrap();
    }
}

#[tokio::test]
async fn a_working_agent_is_taken_over_and_not_started_again() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    let sandbox = world.engine.ids();
    server.kill();
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    let server = world.boot().await;
    world.shims.release();
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 1));
    assert_eq!(ended.sandbox.as_ref(), sandbox.first());
    assert_eq!(world.shims.agents(&run), 1);
    world.clean().await;
    world.told_once(&run).await;
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_prepares_is_taken_over_too() {
    let world = World::new().await;
    world.shims.by_default(Play::Linger);
    let run = world.queue().await;
    let server = world.boot().await;
    until("the shim prepares", || async {
        world.run(&run).await.phase.is_some() && !world.engine.ids().is_empty()
    })
    .await;
    until("the start is told", || async { !world.told(&run, EventKind::SandboxStarted).await.is_empty() })
        .await;
    server.kill();
    let server = world.boot().await;
    world.shims.release();
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 1));
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_ended_while_no_server_was_there_is_judged_at_the_next_start() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let (lost, starved) = (world.queue().await, world.queue().await);
    let server = world.boot().await;
    world.agent_works(&lost).await;
    world.agent_works(&starved).await;
    server.kill();
    let sandbox = |run: caisson_domain::run::Run| run.sandbox.unwrap();
    world.engine.exit(&sandbox(world.run(&lost).await), 1, false);
    world.engine.exit(&sandbox(world.run(&starved).await), 137, true);
    let server = world.boot().await;
    let failure = world.failed(&lost).await;
    assert_eq!(failure.kind, FailureKind::SandboxLost);
    assert!(failure.evidence.unwrap().starts_with("exit code 1;"));
    assert_eq!(world.failed(&starved).await.kind, FailureKind::Oom);
    world.clean().await;
    for run in [&lost, &starved] {
        world.told_once(run).await;
        assert_eq!(world.told(run, EventKind::SandboxExited).await.len(), 1);
        assert_eq!(world.shims.agents(run), 1);
    }
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_a_crash_left_half_made_is_not_told_of_and_its_run_goes_back_at_once() {
    let mut world = World::new().await;
    // Only what was interrupted comes again without a wait.
    world.setup.config.timing.requeue_first = Duration::from_hours(1);
    world.setup.config.timing.requeue_most = Duration::from_hours(1);
    let run = world.queue().await;
    let (hook, reached) = StopAt::hook(Step::Placed);
    let server = world.boot_with(hook).await;
    reached.await.unwrap();
    server.kill();
    let placed = world.run(&run).await;
    let half_made = placed.sandbox.unwrap();
    world.engine.plant_half_made(&half_made, &placed.session);
    let server = world.boot().await;
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 2));
    let started = world.told(&run, EventKind::SandboxStarted).await;
    assert_eq!(started.len(), 1);
    assert_ne!(started[0]["sandbox"], half_made.as_str());
    assert!(world.told(&run, EventKind::SandboxExited).await.is_empty());
    world.clean().await;
    world.told_once(&run).await;
    server.kill();
}

#[tokio::test]
async fn an_exit_that_was_told_before_the_crash_is_not_told_again() {
    let world = World::new().await;
    world.shims.by_default(Play::DieLate { code: 3, oom: false });
    let run = world.queue().await;
    let (hook, reached) = StopAt::hook(Step::Judged);
    let server = world.boot_with(hook).await;
    reached.await.unwrap();
    server.kill();
    assert_eq!(world.told(&run, EventKind::SandboxExited).await.len(), 1);
    let server = world.boot().await;
    assert_eq!(world.failed(&run).await.kind, FailureKind::SandboxLost);
    world.told_once(&run).await;
    assert_eq!(world.told(&run, EventKind::SandboxExited).await[0]["exit_code"], 3);
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_vanished_with_a_working_agent_is_lost() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue().await;
    let server = world.boot().await;
    world.attended(&run).await;
    server.kill();
    let sandbox = world.engine.ids().remove(0);
    caisson_sandbox::Engine::destroy(&world.engine, &sandbox).await.unwrap();
    let server = world.boot().await;
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::SandboxLost);
    assert!(failure.evidence.unwrap().contains("does not know the sandbox"));
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_shutdown_leaves_sandboxes_to_the_next_start() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    server.shut_down();
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert_eq!(world.engine.ids().len(), 1);
    let server = world.boot().await;
    world.shims.release();
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    world.clean().await;
    assert_eq!(world.shims.agents(&run), 1);
    server.shut_down();
}
