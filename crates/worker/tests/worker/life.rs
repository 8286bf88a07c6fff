//! Whole lives of runs: placed, attended, ended by themselves, by somebody, by time, by the engine.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::protocol::{Ending, StopReason, environment};
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_sandbox::{ResourceLimits, SandboxUsage};
use caisson_store::{Clock, SandboxState, Topic};
use caisson_worker::{UidPlan, door_dir};

use crate::engine::{Call, Mishap, QUIET};
use crate::shim::Play;
use crate::world::{NEVER, World, until};

#[tokio::test]
async fn a_run_is_given_everything_its_sandbox_needs() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let run = world.queue_with(|spec| spec.image = Some("mine:1".to_owned())).await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    let spec = world.engine.made().remove(0);
    let placed = world.run(&run).await;
    let config = &world.setup.config;
    assert_eq!((&spec.session, &spec.server), (&placed.session, &config.server));
    assert_eq!((spec.image.as_deref(), spec.limits), (Some("mine:1"), ResourceLimits::default()));
    assert_eq!(spec.mounts.shim, config.shim);
    assert_eq!(Some(&spec.mounts.agent_dir), config.agent_dir.as_ref());
    assert_eq!(spec.mounts.door_dir, door_dir(&config.state_dir, &spec.id));
    for given in [&spec.mounts.workspace_dir, &spec.mounts.home_dir, &spec.mounts.journal_dir] {
        let found = given.symlink_metadata().unwrap();
        assert_eq!(
            (found.uid(), found.gid(), found.mode() & 0o777),
            (spec.uid, spec.gid, 0o700),
            "{given:?}"
        );
    }
    for (kind, (name, value)) in [GrantKind::Control, GrantKind::Agent].into_iter().zip(&spec.environment) {
        let names = [environment::CONTROL_GRANT, environment::AGENT_GRANT];
        assert_eq!(name, names[usize::from(kind == GrantKind::Agent)]);
        assert!(world.store.check_grant(&spec.id, kind, &TokenHash::of(value)).await.unwrap());
    }
    let row = world.store.sandbox(&spec.id).await.unwrap().unwrap();
    assert_eq!((row.engine.as_str(), row.image.as_str(), row.uid), ("fake", "mine:1", spec.uid));
    until("it is written down as running", || async {
        world.store.sandbox(&spec.id).await.unwrap().unwrap().state == SandboxState::Running
    })
    .await;
    let told = world.told(&run, EventKind::SandboxStarted).await.remove(0);
    assert_eq!((told["sandbox"].as_str(), told["image"].as_str()), (Some(spec.id.as_str()), Some("mine:1")));
    assert!(told["start_ms"].is_i64());
    assert_eq!((&told["engine"], &told["weaknesses"][0]), (&"fake".into(), &"a wall is thin".into()));
    world.shims.release();
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.result.as_deref()), (RunStatus::Succeeded, Some("done")));
    world.clean().await;
    world.told_once(&run).await;
    assert!(spec.mounts.workspace_dir.is_dir() && spec.mounts.home_dir.is_dir(), "the session's own stay");
    assert_eq!(world.store.sandbox(&spec.id).await.unwrap().unwrap().state, SandboxState::Destroyed);
    server.kill();
}

#[tokio::test]
async fn a_cancelled_run_stops_by_itself_or_is_killed() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    world.shims.by_default(Play::Work { obeys: true });
    let (obeying, deaf) = (world.queue().await, world.queue().await);
    world.shims.of(&deaf, vec![Play::Work { obeys: false }]);
    let server = world.boot().await;
    for run in [&obeying, &deaf] {
        world.agent_works(run).await;
        world.cancel(run).await;
    }
    let ended = world.finished(&obeying).await;
    assert_eq!((ended.status, ended.result.as_deref()), (RunStatus::Cancelled, Some("done")));
    assert_eq!(world.run(&deaf).await.status, RunStatus::Running, "it has its grace");
    handle.advance(100);
    let ended = world.finished(&deaf).await;
    assert_eq!((ended.status, ended.result), (RunStatus::Cancelled, None));
    world.clean().await;
    for run in [&obeying, &deaf] {
        world.told_once(run).await;
    }
    assert!(world.told(&obeying, EventKind::SandboxExited).await.is_empty(), "it was taken away");
    let told = world.told(&deaf, EventKind::SandboxExited).await.remove(0);
    assert_eq!(told["killed"], true, "{told}");
    assert!(told["message"].to_string().contains("its session's workspace is kept"), "{told}");
    server.kill();
}

/// The hint of the cancellation stays in the process that wrote it, and the door that watches is the worker's server's.
#[tokio::test]
async fn a_worker_that_sees_a_stop_wakes_the_sandbox_again() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    world.shims.by_default(Play::Work { obeys: false });
    let run = world.queue().await;
    let server = world.boot().await;
    world.attended(&run).await;
    let sandbox = world.run(&run).await.sandbox.unwrap();
    let mut door = server.store().watch(Topic::Sandbox(sandbox));
    // What it was told while it started is over.
    while door.hinted(Duration::from_millis(50)).await {}
    world.cancel(&run).await;
    assert!(door.hinted(NEVER).await, "nobody told the door of the stop");
    handle.advance(100);
    assert_eq!(world.finished(&run).await.status, RunStatus::Cancelled);
    server.kill();
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_it_is_placed_is_not_placed_again() {
    let world = World::new().await;
    world.engine.set_create_gate(false);
    world.engine.next(Call::Create, Mishap::Refused);
    let run = world.queue().await;
    let server = world.boot().await;
    until("it is being placed", || async { world.engine.creations().0 == 1 }).await;
    world.cancel(&run).await;
    world.engine.set_create_gate(true);
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Cancelled, 1));
    assert!(world.engine.made().is_empty());
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_run_is_stopped_at_its_time_limit_and_killed_after_the_grace() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    world.shims.by_default(Play::Work { obeys: true });
    let (obeying, deaf) = (world.queue().await, world.queue().await);
    world.shims.of(&deaf, vec![Play::Work { obeys: false }]);
    let server = world.boot().await;
    world.agent_works(&obeying).await;
    world.agent_works(&deaf).await;
    handle.advance(599_999);
    let lists = world.engine.lists();
    until("some time passes", || async { world.engine.lists() > lists + 1 }).await;
    assert!(world.told(&obeying, EventKind::RunStopRequested).await.is_empty(), "not a moment too early");
    handle.advance(1);
    assert_eq!(world.failed(&obeying).await.kind, FailureKind::Timeout);
    until("the other one is told too", || async {
        !world.told(&deaf, EventKind::RunStopRequested).await.is_empty()
    })
    .await;
    assert_eq!(world.run(&deaf).await.status, RunStatus::Running, "it has its grace");
    handle.advance(100);
    let failure = world.failed(&deaf).await;
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(failure.message.contains("600 s") && !failure.retry_can_help);
    world.clean().await;
    for run in [&obeying, &deaf] {
        world.told_once(run).await;
        assert_eq!(world.told(run, EventKind::RunStopRequested).await.len(), 1);
    }
    server.kill();
}

#[tokio::test]
async fn a_time_limit_that_passed_while_no_server_was_there_leaves_the_sandbox_its_grace() {
    let (clock, handle) = Clock::fixed_at(1_700_000_000_000);
    let world = World::with_clock(clock).await;
    world.shims.by_default(Play::Work { obeys: false });
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    server.kill();
    handle.advance(10_000_000);
    let server = world.boot().await;
    until("it is told to stop", || async { !world.told(&run, EventKind::RunStopRequested).await.is_empty() })
        .await;
    // The work was done meanwhile, and its outcome had only to be sent.
    world.shims.release();
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_dies_with_its_agent_ends_the_run() {
    let world = World::new().await;
    let (lost, starved) = (world.queue().await, world.queue().await);
    world.shims.of(&lost, vec![Play::DieLate { code: 3, oom: false }]);
    world.shims.of(&starved, vec![Play::DieLate { code: 137, oom: true }]);
    let server = world.boot().await;
    let failure = world.failed(&lost).await;
    assert_eq!(failure.kind, FailureKind::SandboxLost);
    assert!(failure.evidence.unwrap().starts_with("exit code 3;"));
    assert_eq!(world.failed(&starved).await.kind, FailureKind::Oom);
    world.clean().await;
    for (run, code, oom) in [(&lost, 3, false), (&starved, 137, true)] {
        world.told_once(run).await;
        let told = world.told(run, EventKind::SandboxExited).await.remove(0);
        assert_eq!((told["exit_code"].as_i64(), told["oom"].as_bool()), (Some(code), Some(oom)));
        assert_eq!(world.shims.agents(run), 1, "it is not started again");
    }
    server.kill();
}

#[tokio::test]
async fn the_last_words_of_a_sandbox_count_although_it_is_gone() {
    let mut world = World::new().await;
    world.setup.config.timing.settle = std::time::Duration::from_hours(1);
    world.shims.by_default(Play::LastWords);
    let run = world.queue().await;
    let server = world.boot().await;
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_dies_before_its_agent_is_replaced_five_times() {
    let world = World::new().await;
    let (lucky, unlucky) = (world.queue().await, world.queue().await);
    world.shims.of(&lucky, vec![Play::DieEarly(1)]);
    world.shims.of(&unlucky, vec![Play::DieEarly(1); 5]);
    let server = world.boot().await;
    let ended = world.finished(&lucky).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 2));
    let failure = world.failed(&unlucky).await;
    assert_eq!(failure.kind, FailureKind::SandboxStart);
    assert!(failure.message.contains("exit code 1"), "{}", failure.message);
    world.clean().await;
    for (run, requeued, agents) in [(&lucky, 1, 1), (&unlucky, 4, 0)] {
        world.told_once(run).await;
        assert_eq!(world.told(run, EventKind::RunRequeued).await.len(), requeued);
        assert_eq!(world.told(run, EventKind::SandboxExited).await.len(), requeued + 1 - agents);
        assert_eq!(world.shims.agents(run), agents);
    }
    server.kill();
}

#[tokio::test]
async fn what_a_sandbox_was_refused_is_told_with_the_failure_of_its_run_alone() {
    let world = World::new().await;
    let server = world.boot().await;
    let reported = Failure::new(FailureKind::AgentError, "the agent was killed by signal 6");
    for (pids_refused, told) in [(Some(3), true), (Some(0), false), (None, false)] {
        world.engine.set_usage(Some(SandboxUsage { pids_refused, ..QUIET }));
        world.shims.by_default(Play::Say(Ending::Failed(reported.clone())));
        let run = world.queue().await;
        let failure = world.failed(&run).await;
        assert_eq!(failure.kind, FailureKind::AgentError);
        assert_eq!(failure.message.contains("was refused one more 3 times"), told, "{failure:?}");
    }
    // An engine that does not answer keeps no run from its end.
    world.engine.set_usage(None);
    let run = world.queue().await;
    assert_eq!(world.failed(&run).await.message, reported.message);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn what_a_shim_says_is_checked_before_it_becomes_the_runs_end() {
    let world = World::new().await;
    let reported = Failure::new(FailureKind::RepoAuth, "the git host refused the credential");
    let cases = [
        (Ending::Failed(reported), FailureKind::RepoAuth),
        (Ending::Stopped(StopReason::Cancel), FailureKind::AgentError),
        (Ending::Stopped(StopReason::Timeout), FailureKind::AgentError),
    ];
    let server = world.boot().await;
    for (ending, kind) in cases {
        world.shims.by_default(Play::Say(ending));
        let run = world.queue().await;
        assert_eq!(world.failed(&run).await.kind, kind);
        world.told_once(&run).await;
    }
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_session_beyond_the_last_uid_gets_no_sandbox() {
    let mut world = World::new().await;
    world.setup.config.uids = UidPlan::PerSession { base: caisson_sandbox::ID_MAX };
    let (first, second) = (world.queue().await, world.queue().await);
    world.cancel(&first).await;
    let server = world.boot().await;
    let failure = world.failed(&second).await;
    assert_eq!(failure.kind, FailureKind::SandboxStart);
    assert!(failure.message.contains("no user id is left"), "{}", failure.message);
    world.clean().await;
    server.kill();
}
