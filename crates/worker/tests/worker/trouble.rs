//! Engines that fail, vanish, lie or panic; servers that cannot place runs; workers that lose theirs.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::run::{FailureKind, RunStatus};
use caisson_domain::server::{PlacementProblem, ProblemCode};
use caisson_store::{Clock, SandboxState, Store};
use caisson_worker::{Parts, Step, Worker, WorkerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Call, Mishap};
use crate::server::{FakeProbe, HoldAt};
use crate::shim::Play;
use crate::world::{World, sandbox_id, session_id, until};

/// Waits until a few reconcile passes have come and gone.
async fn passes(world: &World) {
    let before = world.engine.lists();
    until("some passes are made", || async { world.engine.lists() > before + 2 }).await;
}

fn problem(code: ProblemCode) -> PlacementProblem {
    PlacementProblem { code, message: "what to do".to_owned() }
}

async fn problems(world: &World) -> Vec<ProblemCode> {
    let servers = world.store.live_servers().await.unwrap();
    servers.into_iter().flat_map(|server| server.problems).map(|problem| problem.code).collect()
}

#[tokio::test]
async fn an_image_that_a_run_names_and_the_engine_lacks_fails_the_run_at_once() {
    let world = World::new().await;
    world.engine.next(Call::Create, Mishap::ImageMissing);
    let run = world.queue_with(|spec| spec.image = Some("mine:1".to_owned())).await;
    let server = world.boot().await;
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::SandboxStart);
    assert!(
        failure.message.contains("\"mine:1\"") && failure.message.contains("pull it"),
        "{}",
        failure.message
    );
    assert_eq!(world.run(&run).await.attempt, 1);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn the_servers_own_image_is_waited_for() {
    let mut world = World::new().await;
    let probe = FakeProbe::answering(Some(Vec::new()));
    world.setup.probe = Some(probe.clone());
    world.engine.set_create_gate(false);
    world.engine.next(Call::Create, Mishap::ImageMissing);
    let run = world.queue().await;
    let server = world.boot().await;
    until("it is being placed", || async { world.engine.creations().0 == 1 }).await;
    probe.answer(vec![problem(ProblemCode::ImageMissing)]);
    world.engine.set_create_gate(true);
    until("it is back in the queue", || async { world.run(&run).await.status == RunStatus::Queued }).await;
    until("the problem is known", || async { problems(&world).await == [ProblemCode::ImageMissing] }).await;
    passes(&world).await;
    assert_eq!(world.run(&run).await.attempt, 1, "nothing is claimed meanwhile");
    probe.answer(Vec::new());
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 2));
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn an_engine_that_refuses_because_it_is_broken_is_waited_for() {
    for call in [Call::Create, Call::Start] {
        let mut world = World::new().await;
        let probe = FakeProbe::answering(Some(Vec::new()));
        world.setup.probe = Some(probe.clone());
        // Only a suspicion makes anybody look.
        world.setup.config.timing.health_check = Duration::from_hours(1);
        world.engine.set_create_gate(false);
        world.engine.next(call, Mishap::Refused);
        let run = world.queue().await;
        let server = world.boot().await;
        until("it is being placed", || async { world.engine.creations().0 == 1 }).await;
        probe.answer(vec![problem(ProblemCode::EngineUnavailable)]);
        world.engine.set_create_gate(true);
        until("the problem is known", || async {
            problems(&world).await == [ProblemCode::EngineUnavailable]
        })
        .await;
        until("it is back in the queue", || async { world.run(&run).await.status == RunStatus::Queued })
            .await;
        passes(&world).await;
        assert_eq!(world.run(&run).await.attempt, 1, "nothing is claimed meanwhile");
        server.kill();
        probe.answer(Vec::new());
        let server = world.boot().await;
        let ended = world.finished(&run).await;
        assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 2));
        world.clean().await;
        server.kill();
    }
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_specified_fails_the_run_at_once() {
    let world = World::new().await;
    world.engine.next(Call::Create, Mishap::BadSpec);
    let run = world.queue().await;
    let server = world.boot().await;
    let failure = world.failed(&run).await;
    assert_eq!((failure.kind, failure.retry_can_help), (FailureKind::SandboxStart, false));
    assert!(failure.message.contains("does not name an image"), "the cause is named: {}", failure.message);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn an_engine_that_refuses_is_asked_five_times_and_one_that_is_away_as_often_as_it_takes() {
    let world = World::new().await;
    for _ in 0..5 {
        world.engine.next(Call::Create, Mishap::Refused);
    }
    let run = world.queue().await;
    let server = world.boot().await;
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::SandboxStart);
    assert!(failure.message.ends_with("not today"), "{}", failure.message);
    assert_eq!(world.run(&run).await.attempt, 5);
    for call in [Call::Create, Call::Start, Call::Create, Call::Start, Call::Create, Call::Start] {
        world.engine.next(call, Mishap::Unavailable);
    }
    let run = world.queue().await;
    let ended = world.finished(&run).await;
    assert_eq!((ended.status, ended.attempt), (RunStatus::Succeeded, 7));
    world.clean().await;
    world.told_once(&run).await;
    server.kill();
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_leaves_nothing_behind() {
    let world = World::new().await;
    world.engine.next(Call::Create, Mishap::Unheard);
    let run = world.queue().await;
    let server = world.boot().await;
    assert_eq!(world.finished(&run).await.attempt, 2);
    assert_eq!(world.engine.made().len(), 2);
    assert_eq!(world.shims.agents(&run), 1);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_starts_no_second_agent() {
    let world = World::new().await;
    world.engine.next(Call::Start, Mishap::Unheard);
    // Even if the engine cannot be reached to destroy the sandbox that may be running.
    world.engine.next(Call::Destroy, Mishap::Unavailable);
    let run = world.queue().await;
    world.shims.of(&run, vec![Play::Linger]);
    let server = world.boot().await;
    until("the next attempt is made", || async { world.run(&run).await.attempt == 2 }).await;
    world.shims.release();
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    assert_eq!(world.shims.agents(&run), 1);
    assert_eq!(world.engine.most_living(), 1, "the first sandbox went before the second came");
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_may_live_on_has_lost_its_grants_before_its_run_is_back_in_the_queue() {
    let mut world = World::new().await;
    // Nobody sees to either before the test is over.
    world.setup.config.timing.reconcile = Duration::from_hours(1);
    world.setup.config.timing.requeue_first = Duration::from_hours(1);
    world.setup.config.timing.requeue_most = Duration::from_hours(1);
    world.engine.next(Call::Start, Mishap::Unheard);
    world.engine.next(Call::Destroy, Mishap::Unavailable);
    world.shims.by_default(Play::Linger);
    let run = world.queue().await;
    let hold = HoldAt::step(Step::Judged);
    let server = world.boot_with(hold.clone()).await;
    hold.held().await;
    until("its shim has its work", || async { !world.told(&run, EventKind::RunPhase).await.is_empty() })
        .await;
    hold.go();
    until("it is back in the queue", || async { !world.told(&run, EventKind::RunRequeued).await.is_empty() })
        .await;
    let spec = world.engine.made().remove(0);
    assert!(world.engine.is_running(&spec.id), "it could not be destroyed");
    for (kind, (_, grant)) in [GrantKind::Control, GrantKind::Agent].into_iter().zip(&spec.environment) {
        assert!(!world.store.check_grant(&spec.id, kind, &TokenHash::of(grant)).await.unwrap(), "{kind}");
    }
    world.shims.release();
    until("its shim was refused and gave up", || async { world.shims.refused() == 1 }).await;
    assert_eq!(world.shims.agents(&run), 0);
    server.kill();
}

#[tokio::test]
async fn a_run_whose_agent_started_after_all_does_not_go_back_to_the_queue() {
    let world = World::new().await;
    world.engine.next(Call::Start, Mishap::Unheard);
    world.shims.by_default(Play::Linger);
    let run = world.queue().await;
    let hold = HoldAt::step(Step::Judged);
    let server = world.boot_with(hold.clone()).await;
    hold.held().await;
    // The verdict was to give it back, and only now the agent starts.
    world.shims.release();
    world.agent_works(&run).await;
    hold.go();
    assert_eq!(world.failed(&run).await.kind, FailureKind::SandboxLost);
    assert_eq!((world.run(&run).await.attempt, world.shims.agents(&run)), (1, 1));
    world.clean().await;
    world.told_once(&run).await;
    server.kill();
}

#[tokio::test]
async fn while_the_engine_is_away_at_the_start_nothing_is_claimed_and_nothing_finished() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let living = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&living).await;
    server.kill();
    let waiting = world.queue().await;
    world.engine.set_down(true);
    let server = world.boot().await;
    passes(&world).await;
    assert_eq!(world.run(&living).await.status, RunStatus::Running);
    assert_eq!(world.run(&waiting).await.status, RunStatus::Queued);
    world.engine.set_down(false);
    world.agent_works(&waiting).await;
    world.shims.release();
    for run in [&living, &waiting] {
        assert_eq!(world.finished(run).await.status, RunStatus::Succeeded);
        assert_eq!(world.shims.agents(run), 1);
    }
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_run_outlives_an_engine_that_goes_away_and_is_killed_when_it_is_back() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: false });
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    world.engine.next(Call::Stop, Mishap::Unavailable);
    world.engine.set_down(true);
    world.cancel(&run).await;
    passes(&world).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    world.engine.set_down(false);
    assert_eq!(world.finished(&run).await.status, RunStatus::Cancelled);
    world.clean().await;
    server.kill();
}

/// How often an engine refuses that will not stop a sandbox.
const REFUSALS: usize = 100_000;

#[tokio::test]
async fn a_sandbox_that_cannot_be_stopped_is_destroyed() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: false });
    // More often than anybody would ask.
    for _ in 0..REFUSALS {
        world.engine.next(Call::Stop, Mishap::Refused);
    }
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    world.cancel(&run).await;
    assert_eq!(world.finished(&run).await.status, RunStatus::Cancelled);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_panic_ends_the_run_and_frees_its_slot() {
    let mut world = World::new().await;
    world.setup.config.slots = 1;
    world.engine.next(Call::Create, Mishap::Panic);
    let (unlucky, lucky) = (world.queue_first().await, world.queue().await);
    let server = world.boot().await;
    assert_eq!(world.failed(&unlucky).await.kind, FailureKind::Internal);
    assert_eq!(world.finished(&lucky).await.status, RunStatus::Succeeded);
    world.clean().await;
    world.told_once(&unlucky).await;
    server.kill();
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_tried_again_and_then_fails_the_run() {
    let world = World::new().await;
    let run = world.queue().await;
    let sessions = world.setup.config.state_dir.join("sessions");
    std::fs::create_dir_all(&sessions).unwrap();
    std::fs::write(sessions.join(world.run(&run).await.session.as_str()), "in the way").unwrap();
    let server = world.boot().await;
    let failure = world.failed(&run).await;
    assert_eq!(failure.kind, FailureKind::SandboxStart);
    assert!(failure.message.starts_with("cannot make "), "{}", failure.message);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn orphans_are_removed_at_the_start_and_later_and_live_runs_are_left_alone() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    world.engine.plant(&sandbox_id(1), &session_id(1));
    let run = world.queue().await;
    let server = world.boot().await;
    world.agent_works(&run).await;
    let living = world.engine.ids();
    assert!(!living.contains(&sandbox_id(1)));
    world.engine.plant(&sandbox_id(2), &session_id(2));
    let state_dir = &world.setup.config.state_dir;
    std::fs::create_dir(state_dir.join("doors").join(sandbox_id(3).as_str())).unwrap();
    until("the new orphan is gone", || async { world.engine.ids() == living }).await;
    until("its directories are gone", || async { world.leftovers().len() == 2 }).await;
    passes(&world).await;
    assert_eq!(world.engine.ids(), living);
    world.shims.release();
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_sandbox_that_could_not_be_destroyed_is_destroyed_later() {
    let world = World::new().await;
    for _ in 0..3 {
        world.engine.next(Call::Destroy, Mishap::Unavailable);
    }
    let run = world.queue().await;
    let server = world.boot().await;
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_lost_run_is_left_alone_with_its_sandbox() {
    let mut world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    // It learns of the loss from its heartbeat, and only then has a slot for another one.
    world.setup.config.timing.run_poll = Duration::from_hours(1);
    world.setup.config.slots = 1;
    let run = world.queue().await;
    let server = world.boot().await;
    world.attended(&run).await;
    let adopted = world.store.adopt(&world.setup.config.server).await.unwrap().remove(0);
    world.cancel(&run).await;
    passes(&world).await;
    passes(&world).await;
    let sandbox = adopted.run.sandbox.unwrap();
    assert!(world.engine.is_running(&sandbox), "its new owner needs it");
    assert_eq!(world.store.sandbox(&sandbox).await.unwrap().unwrap().state, SandboxState::Running);
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(world.store.heartbeat(&run, adopted.epoch).await.unwrap().is_some(), "nobody took it from us");
    let other = world.queue().await;
    world.agent_works(&other).await;
    server.kill();
    world.setup.config.timing.run_poll = Duration::from_millis(5);
    let server = world.boot().await;
    assert_eq!(world.finished(&run).await.status, RunStatus::Cancelled);
    world.shims.release();
    assert_eq!(world.finished(&other).await.status, RunStatus::Succeeded);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_missing_agent_is_told_before_the_start_is_over_and_stops_claiming() {
    let world = World::new().await;
    let agent = world.setup.config.agent_dir.clone().unwrap().join("claude");
    let mode = |bits| std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(bits)).unwrap();
    mode(0o644);
    let run = world.queue().await;
    let server = world.boot().await;
    assert_eq!(problems(&world).await, [ProblemCode::AgentMissing]);
    passes(&world).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Queued);
    mode(0o755);
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    assert!(problems(&world).await.is_empty());
    server.kill();
}

#[tokio::test]
async fn an_agent_that_the_probe_misses_too_is_told_of_once_and_in_its_words() {
    let mut world = World::new().await;
    world.setup.config.agent_dir = Some("/nonexistent".into());
    let told = PlacementProblem { code: ProblemCode::AgentMissing, message: "install it".to_owned() };
    world.setup.probe = Some(FakeProbe::answering(Some(vec![told])));
    let server = world.boot().await;
    assert_eq!(problems(&world).await, [ProblemCode::AgentMissing]);
    server.kill();
}

#[tokio::test]
async fn a_nearly_full_disk_and_a_silent_engine_stop_claiming() {
    let mut world = World::new().await;
    world.setup.config.min_free_disk_bytes = u64::MAX;
    world.setup.probe = Some(FakeProbe::answering(None));
    let run = world.queue().await;
    let server = world.boot().await;
    assert_eq!(problems(&world).await, [ProblemCode::EngineUnavailable, ProblemCode::DiskLow]);
    passes(&world).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Queued);
    server.kill();
}

#[tokio::test]
async fn a_worker_that_cannot_start_says_what_must_change() {
    let world = World::new().await;
    let store = Store::open(&world.root.path().join("other.db"), Clock::system()).await.unwrap();
    let start = |change: fn(&mut caisson_worker::WorkerConfig)| {
        let mut config = world.setup.config.clone();
        change(&mut config);
        let parts = Parts {
            store: store.clone(),
            engine: std::sync::Arc::new(world.engine.clone()),
            probe: None,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            hook: None,
        };
        async move { Worker::start(config, parts).await.map(|worker| worker.problems()) }
    };
    assert!(matches!(start(|config| config.slots = 0).await, Err(WorkerError::Config(_))));
    let missing = start(|config| config.agent_dir = None).await.unwrap();
    assert_eq!(missing[0].code, ProblemCode::AgentMissing);
    let under_a_file =
        start(|config| config.state_dir = config.agent_dir.clone().unwrap().join("claude/x")).await;
    assert!(matches!(under_a_file, Err(WorkerError::Directories(_))));
    store.close().await.unwrap();
    assert!(matches!(start(|_| {}).await, Err(WorkerError::Store(_))));
}

#[tokio::test]
async fn a_reconcile_pass_forgets_no_sandbox_that_is_in_the_way_of_its_run() {
    let world = World::new().await;
    world.engine.next(Call::Destroy, Mishap::Unavailable);
    let run = world.queue().await;
    world.shims.of(&run, vec![Play::DieEarly(1)]);
    let hold = HoldAt::step(Step::Withdrawn);
    let server = world.boot_with(hold.clone()).await;
    hold.held().await;
    passes(&world).await;
    hold.go();
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    assert_eq!(world.engine.most_living(), 1);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_run_waits_until_the_sessions_last_sandbox_is_gone() {
    let mut world = World::new().await;
    // The reconcile pass gets hold of the stuck sandbox long before the run is claimed again, and is slow to destroy it.
    world.setup.config.timing.requeue_first = Duration::from_secs(1);
    world.setup.config.timing.requeue_most = Duration::from_secs(1);
    world.setup.config.timing.reconcile = Duration::from_millis(20);
    world.setup.config.timing.predecessor = Duration::from_millis(20);
    world.engine.next(Call::Destroy, Mishap::Unavailable);
    world.engine.set_destroy_gate(false);
    let run = world.queue().await;
    world.shims.of(&run, vec![Play::DieEarly(1)]);
    let server = world.boot().await;
    until("it is given back once more", || async {
        world.told(&run, EventKind::RunRequeued).await.len() >= 2
    })
    .await;
    assert_eq!(world.engine.made().len(), 1, "no second sandbox on the same workspace");
    let reason = world.told(&run, EventKind::RunRequeued).await.remove(1);
    assert!(reason["reason"].as_str().unwrap().contains("previous sandbox"), "{reason}");
    world.engine.set_destroy_gate(true);
    assert_eq!(world.finished(&run).await.status, RunStatus::Succeeded);
    world.clean().await;
    server.kill();
}
