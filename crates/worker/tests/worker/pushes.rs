//! Pushes of which nobody has seen the end when a run ends.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::run::{FailureKind, Run, RunSpec, RunStatus};
use caisson_store::{BeginPush, Push, PushRecord};
use caisson_worker::Timing;

use crate::shim::Play;
use crate::world::{World, until};

fn on_branch(spec: &mut RunSpec) {
    spec.repository = Some("/srv/git/x".parse().unwrap());
    spec.branch = Some("fix/1".parse().unwrap());
}

fn push() -> Push {
    Push { ref_name: "refs/heads/fix/1".to_owned(), old: "0".repeat(40), new: "c0ffee".to_owned() }
}

/// A run whose agent works, with a push under way.
async fn pushing(world: &World) -> RunId {
    let run = world.queue_with(on_branch).await;
    world.attended(&run).await;
    assert_eq!(world.store.begin_push(&run, &push()).await.unwrap(), BeginPush::Begun);
    run
}

/// What the gateway does when the git host has said that it took the push.
async fn settle(world: &World, run: &RunId) -> bool {
    let record = PushRecord { push: push(), ok: true, message: None };
    world.store.settle_push(run, &record).await.unwrap()
}

/// Waits until nothing but the push keeps the run from ending.
async fn only_the_push_is_left(world: &World) {
    let lists = world.engine.lists();
    until("some time passes", || async { world.engine.lists() > lists + 2 }).await;
}

/// The push is recorded before the run's end, which is the run's last event.
async fn assert_recorded(world: &World, run: &RunId) -> Run {
    let ended = world.finished(run).await;
    assert_eq!(ended.pushed_commit, Some(push().new));
    assert_eq!(world.told(run, EventKind::GitPush).await.len(), 1);
    world.told_once(run).await;
    ended
}

async fn patient() -> World {
    let mut world = World::new().await;
    world.setup.config.timing.pending_push = Duration::from_hours(1);
    world.shims.by_default(Play::Work { obeys: true });
    world
}

#[tokio::test]
async fn a_run_whose_sandbox_is_gone_ends_when_its_push_is_settled() {
    let world = patient().await;
    let server = world.boot().await;
    for (oom, kind) in [(false, FailureKind::SandboxLost), (true, FailureKind::Oom)] {
        let run = pushing(&world).await;
        let sandbox = world.run(&run).await.sandbox.unwrap();
        world.engine.exit(&sandbox, 137, oom);
        until("its end is seen", || async { world.told(&run, EventKind::SandboxExited).await.len() == 1 })
            .await;
        only_the_push_is_left(&world).await;
        assert_eq!(world.run(&run).await.status, RunStatus::Running);
        assert!(settle(&world, &run).await);
        let ended = assert_recorded(&world, &run).await;
        assert_eq!(ended.failure.unwrap().kind, kind);
    }
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_killed_run_ends_when_its_push_is_settled() {
    let world = patient().await;
    world.shims.by_default(Play::Work { obeys: false });
    let server = world.boot().await;
    let run = pushing(&world).await;
    let sandbox = world.run(&run).await.sandbox.unwrap();
    world.cancel(&run).await;
    until("it is killed", || async { !world.engine.is_running(&sandbox) }).await;
    only_the_push_is_left(&world).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(settle(&world, &run).await);
    assert_eq!(assert_recorded(&world, &run).await.status, RunStatus::Cancelled);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn an_adopted_run_whose_sandbox_is_gone_ends_when_its_push_is_settled() {
    let world = patient().await;
    let server = world.boot().await;
    let run = pushing(&world).await;
    let sandbox = world.run(&run).await.sandbox.unwrap();
    server.kill();
    world.engine.forget(&sandbox);
    let server = world.boot().await;
    only_the_push_is_left(&world).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(settle(&world, &run).await);
    assert_eq!(assert_recorded(&world, &run).await.status, RunStatus::Failed);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn an_outcome_is_judged_by_the_push_that_is_settled_after_it() {
    let world = patient().await;
    let server = world.boot().await;
    let run = world.queue_with(on_branch).await;
    world.shims.of(&run, vec![Play::Push(push().new)]);
    world.agent_works(&run).await;
    assert_eq!(world.store.begin_push(&run, &push()).await.unwrap(), BeginPush::Begun);
    world.shims.release();
    until("the shim is done", || async { world.told(&run, EventKind::Note).await.len() == 1 }).await;
    only_the_push_is_left(&world).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(settle(&world, &run).await);
    let ended = assert_recorded(&world, &run).await;
    assert_eq!((ended.status, ended.failure), (RunStatus::Succeeded, None));
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_push_that_is_not_settled_in_time_keeps_no_run_from_ending() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let server = world.boot().await;
    let run = pushing(&world).await;
    world.cancel(&run).await;
    assert_eq!(world.finished(&run).await.status, RunStatus::Cancelled);
    assert!(!settle(&world, &run).await, "it is too late");
    world.told_once(&run).await;
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_pending_push() {
    let world = patient().await;
    let server = world.boot().await;
    let run = pushing(&world).await;
    world.cancel(&run).await;
    until("the shim is done", || async { world.told(&run, EventKind::Note).await.len() == 1 }).await;
    only_the_push_is_left(&world).await;
    server.shut_down();
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(settle(&world, &run).await);
    let server = world.boot().await;
    assert_eq!(assert_recorded(&world, &run).await.status, RunStatus::Cancelled);
    world.clean().await;
    server.kill();
}

#[test]
fn the_gateway_has_the_time_for_a_push_whose_sandbox_is_gone() {
    // It goes on with such a push for 30 s, and looks at one of an earlier process every 10 s.
    assert!(Timing::default().pending_push > Duration::from_secs(30 + 10));
}
