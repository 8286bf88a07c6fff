//! Sandboxes that wait for another run of their session: who has them, how many wait, and what ends them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use caisson_domain::event::EventKind;
use caisson_domain::id::{ProjectId, RunId, SandboxId};
use caisson_domain::run::{RunSpec, RunStatus};
use caisson_domain::usage::TokenCounts;
use caisson_sandbox::SandboxUsage;
use caisson_store::{Actor, BeginCall, CreateRun, DeleteSession, NewModelCall, NewRun, SandboxState, Store};
use caisson_worker::{KeepAlive, Step, StepHook};
use tokio::sync::Notify;

use crate::disk::{MIB, grow, workspace};
use crate::engine::QUIET;
use crate::server::Server;
use crate::shim::Play;
use crate::world::{World, until};

/// Longer than any test takes.
const LONG: Duration = Duration::from_mins(10);

async fn world(slots: usize, keep_alive: KeepAlive) -> World {
    let mut world = World::new().await;
    world.setup.config.slots = slots;
    world.setup.config.keep_alive = keep_alive;
    world.shims.by_default(Play::Keep);
    world
}

fn keep(time: Duration) -> KeepAlive {
    KeepAlive { time, sandboxes: 9, memory_bytes: u64::MAX }
}

impl World {
    /// Queues a further run of the session of `before`.
    pub(crate) async fn next(&self, before: &RunId, change: impl FnOnce(&mut RunSpec)) -> RunId {
        let before = self.run(before).await;
        let mut spec = before.spec;
        "go on".clone_into(&mut spec.prompt);
        change(&mut spec);
        let new = NewRun { project: ProjectId::default_project(), created_by: None, spec, idempotency: None };
        let made = self.store.create_run_in(before.session, new).await.unwrap();
        let CreateRun::Created(run) = made else { panic!("not made: {made:?}") };
        run.id
    }

    async fn done(&self, run: &RunId) {
        let ended = self.finished(run).await;
        assert_eq!(ended.status, RunStatus::Succeeded, "{:?}", ended.failure);
    }

    /// Checks what must be true of every run that has ended, also of one that is not its session's first.
    async fn ended_once(&self, run: &RunId) {
        let events = self.events(run).await;
        assert!(events.iter().map(|event| event.seq).is_sorted());
        assert_eq!(events.last().unwrap().kind, EventKind::RunFinished);
        assert_eq!(self.told(run, EventKind::RunFinished).await.len(), 1);
    }

    async fn has(&self, run: &RunId, kind: EventKind) -> bool {
        !self.told(run, kind).await.is_empty()
    }
}

#[tokio::test]
async fn the_next_run_of_the_session_has_it_and_tells_so() {
    let world = world(1, keep(LONG)).await;
    let server = world.boot().await;
    let first = world.queue().await;
    // It waits behind the first one, and is claimed the moment that one has ended.
    let second = world.next(&first, |_| {}).await;
    world.done(&second).await;
    let sandbox = world.run(&first).await.sandbox;
    assert_eq!(world.run(&second).await.sandbox, sandbox);
    assert_eq!(world.engine.made().len(), 1);
    for run in [&first, &second] {
        assert_eq!(world.shims.agents(run), 1);
        world.ended_once(run).await;
        let kept = world.told(run, EventKind::SandboxKept).await;
        assert_eq!((kept.len(), &kept[0]["keep_alive_s"]), (1, &600.into()));
        assert_eq!(kept[0]["sandbox"].as_str(), sandbox.as_ref().map(SandboxId::as_str));
    }
    assert!(world.has(&first, EventKind::SandboxStarted).await);
    assert!(!world.has(&first, EventKind::SandboxReused).await);
    assert!(!world.has(&second, EventKind::SandboxStarted).await);
    let reused = world.told(&second, EventKind::SandboxReused).await.remove(0);
    assert_eq!(reused["sandbox"], world.told(&first, EventKind::SandboxKept).await[0]["sandbox"]);
    assert!(reused["waited_ms"].is_i64(), "{reused}");
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn it_goes_when_its_time_is_over_and_without_time_at_once() {
    for time in [Duration::from_millis(200), Duration::ZERO] {
        let world = world(1, keep(time)).await;
        let server = world.boot().await;
        let run = world.queue().await;
        world.done(&run).await;
        assert_eq!(world.has(&run, EventKind::SandboxKept).await, !time.is_zero());
        world.clean().await;
        world.ended_once(&run).await;
        server.kill();
    }
}

#[tokio::test]
async fn a_run_that_was_not_well_or_whose_shim_keeps_no_agent_leaves_none() {
    let world = world(1, keep(LONG)).await;
    let (plain, cancelled) = (world.queue_first().await, world.queue().await);
    // Before a server that could begin them by the default.
    world.shims.of(&plain, vec![Play::Complete]);
    world.shims.of(&cancelled, vec![Play::Work { obeys: true }]);
    let server = world.boot().await;
    world.done(&plain).await;
    world.agent_works(&cancelled).await;
    world.cancel(&cancelled).await;
    assert_eq!(world.finished(&cancelled).await.status, RunStatus::Cancelled);
    world.clean().await;
    for run in [&plain, &cancelled] {
        assert!(!world.has(run, EventKind::SandboxKept).await);
    }
    server.kill();
}

#[tokio::test]
async fn a_run_that_could_not_have_been_done_there_gets_another_one() {
    let world = world(1, keep(LONG)).await;
    let server = world.boot().await;
    let first = world.queue().await;
    world.done(&first).await;
    let second = world.next(&first, |spec| spec.model = Some("another".to_owned())).await;
    world.done(&second).await;
    assert_ne!(world.run(&first).await.sandbox, world.run(&second).await.sandbox);
    assert!(!world.has(&second, EventKind::SandboxReused).await);
    // Two at once on one workspace would have failed the engine.
    assert_eq!((world.engine.made().len(), world.engine.ids().len()), (2, 1));
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn one_that_dies_while_it_waits_is_cleared_up_and_the_next_run_gets_another_one() {
    let world = world(1, keep(LONG)).await;
    let server = world.boot().await;
    let first = world.queue().await;
    world.done(&first).await;
    let sandbox = world.run(&first).await.sandbox.unwrap();
    world.engine.exit(&sandbox, 1, false);
    world.clean().await;
    // And one that dies right after the run was placed in it.
    let second = world.next(&first, |_| {}).await;
    world.done(&second).await;
    let third = world.next(&first, |_| {}).await;
    world.shims.of(&third, vec![Play::DieEarly(1)]);
    world.done(&third).await;
    assert!(world.has(&third, EventKind::SandboxReused).await);
    assert!(world.has(&third, EventKind::RunRequeued).await);
    assert!(world.has(&third, EventKind::SandboxStarted).await);
    assert_eq!(world.shims.agents(&third), 1);
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn they_wait_within_the_slots_that_no_run_has_and_the_oldest_goes_first() {
    let world = world(2, keep(LONG)).await;
    let server = world.boot().await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        let run = world.queue().await;
        world.done(&run).await;
        runs.push(run);
    }
    until("the oldest is gone", || async { world.engine.ids().len() == 2 }).await;
    let left = world.engine.ids();
    for (run, waits) in runs.iter().zip([false, true, true]) {
        assert_eq!(left.contains(&world.run(run).await.sandbox.unwrap()), waits);
    }
    // A run needs no other place than that of its own session.
    let next = world.next(&runs[1], |_| {}).await;
    world.done(&next).await;
    assert!(world.has(&next, EventKind::SandboxReused).await);
    assert_eq!(world.engine.ids().len(), 2);
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn a_run_waits_for_no_sandbox_that_waits() {
    let world = world(1, keep(LONG)).await;
    let server = world.boot().await;
    let first = world.queue().await;
    world.done(&first).await;
    // It cannot be taken away, and nobody waits for that.
    world.engine.set_destroy_gate(false);
    let second = world.queue().await;
    world.done(&second).await;
    assert_eq!(world.engine.ids().len(), 2);
    world.engine.set_destroy_gate(true);
    until("the first one's is gone", || async { world.engine.ids().len() == 1 }).await;
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn so_many_wait_and_so_much_memory_is_theirs() {
    let memory =
        |runs: u64| runs * u64::from(caisson_domain::run::Resources::default().memory_mib) * 1024 * 1024;
    for keep_alive in [
        KeepAlive { sandboxes: 2, ..keep(LONG) },
        // The engine does not tell what they take: then it is what they may take.
        KeepAlive { memory_bytes: memory(2), ..keep(LONG) },
    ] {
        let world = world(9, keep_alive).await;
        world.engine.set_usage(None);
        let server = world.boot().await;
        let mut runs = Vec::new();
        for number in 1..=3_usize {
            let run = world.queue().await;
            world.done(&run).await;
            runs.push(run);
            let most = number.min(2);
            until("no more than two wait", || async { world.engine.ids().len() == most }).await;
        }
        let oldest = world.run(&runs[0]).await.sandbox.unwrap();
        assert!(!world.engine.ids().contains(&oldest));
        server.shut_down();
        world.clean().await;
    }
}

#[tokio::test]
async fn it_ends_with_its_session_with_a_drain_and_with_its_server() {
    let world = world(1, keep(LONG)).await;
    let server = world.boot().await;
    let first = world.queue().await;
    world.done(&first).await;
    let (project, session) = (ProjectId::default_project(), world.run(&first).await.session);
    let delete =
        || async { world.store.delete_session_of(&project, &session, Actor::Operator).await.unwrap() };
    assert_eq!(delete().await, DeleteSession::SandboxLeft);
    world.clean().await;
    assert_eq!(delete().await, DeleteSession::Deleted);

    let second = world.queue().await;
    world.done(&second).await;
    let sandbox = world.run(&second).await.sandbox.unwrap();
    assert_eq!(world.store.sandbox(&sandbox).await.unwrap().unwrap().state, SandboxState::Running);
    assert!(world.store.drain(Some(&world.setup.config.server), &Actor::Operator).await.unwrap());
    world.clean().await;
    assert!(world.store.resume(Some(&world.setup.config.server), &Actor::Operator).await.unwrap());

    // Killed, the server leaves it to the next one.
    let third = world.queue().await;
    world.done(&third).await;
    server.kill();
    assert_eq!(world.engine.ids().len(), 1);
    let server = world.boot().await;
    world.clean().await;
    let fourth = world.next(&third, |_| {}).await;
    world.done(&fourth).await;
    assert!(world.has(&fourth, EventKind::SandboxStarted).await);
    server.shut_down();
    world.clean().await;
}

/// A run whose sandbox waits and has been looked at so many times.
async fn looked_at(world: &World, times: usize) -> RunId {
    let before = world.engine.usages();
    let run = world.queue().await;
    world.done(&run).await;
    until("it is looked at", || async { world.engine.usages() >= before + times }).await;
    run
}

#[tokio::test]
async fn one_in_which_something_lives_or_works_that_may_not_is_ended() {
    let mut world = world(1, keep(LONG)).await;
    world.setup.config.timing.kept_look = Duration::from_millis(20);
    let server = world.boot().await;
    for usage in [
        SandboxUsage { pids: QUIET.pids + 1, ..QUIET },
        SandboxUsage { cpu_micros: QUIET.cpu_micros + 10_000_000, ..QUIET },
    ] {
        world.engine.set_usage(Some(QUIET));
        let run = looked_at(&world, 9).await;
        assert_eq!(world.engine.ids().len(), 1, "what is quiet waits");
        world.engine.set_usage(Some(usage));
        world.clean().await;
        world.ended_once(&run).await;
    }
    // Nor does one of which nobody knows what goes on in it.
    world.engine.set_usage(Some(QUIET));
    looked_at(&world, 2).await;
    world.engine.set_usage(None);
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_run_gets_no_sandbox_in_which_something_lives_that_may_not() {
    let world = world(1, keep(LONG)).await;
    let server = world.boot().await;
    for usage in [Some(SandboxUsage { pids: QUIET.pids + 1, ..QUIET }), None] {
        world.engine.set_usage(Some(QUIET));
        let first = looked_at(&world, 1).await;
        // The next look comes much later, unless somebody wants it.
        world.engine.set_usage(usage);
        let second = world.next(&first, |_| {}).await;
        world.done(&second).await;
        assert!(!world.has(&second, EventKind::SandboxReused).await, "{usage:?}");
        assert!(world.has(&second, EventKind::SandboxStarted).await);
    }
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn one_that_fills_its_disk_while_it_waits_is_ended() {
    let mut world = world(1, keep(LONG)).await;
    world.setup.config.workspace_mib = 64;
    let server = world.boot().await;
    let run = world.queue().await;
    world.done(&run).await;
    assert_eq!(world.engine.ids().len(), 1);
    let file = workspace(&world, &run).await.join("file");
    grow(&file, 65 * MIB);
    world.clean().await;
    assert!(file.exists(), "its workspace is kept");
    server.kill();
}

#[tokio::test]
async fn one_that_fills_the_servers_disk_while_it_waits_is_ended() {
    let mut world = World::on_a_small_disk(160).await;
    world.setup.config.keep_alive = keep(LONG);
    world.setup.config.min_free_disk_bytes = 64 * MIB;
    world.shims.by_default(Play::Keep);
    let server = world.boot().await;
    let run = world.queue().await;
    world.done(&run).await;
    let file = workspace(&world, &run).await.join("file");
    until("it is ended", || async {
        let waits = !world.engine.ids().is_empty();
        if waits {
            grow(&file, MIB);
        }
        !waits
    })
    .await;
    server.kill();
}

/// Calls the model as a run begins and once the shim is done with it.
struct Calls {
    store: Store,
    run: RunId,
    is_open: AtomicBool,
    late: Mutex<Option<BeginCall>>,
}

#[async_trait]
impl StepHook for Calls {
    async fn reached(&self, step: Step) {
        let call = NewModelCall {
            model: "m".to_owned(),
            estimate: TokenCounts::default(),
            estimate_cost_micro_usd: 1,
            reserve_micro_usd: 1,
            only_alone: false,
        };
        let begin = async || self.store.begin_model_call(&self.run, &call).await.unwrap();
        if step == Step::Claimed && begin().await.begun().is_some() {
            self.is_open.store(true, Ordering::SeqCst);
        } else if step == Step::Judged && self.is_open.load(Ordering::SeqCst) {
            *self.late.lock().unwrap() = Some(begin().await);
        }
    }
}

#[tokio::test]
async fn no_call_begins_once_the_shim_is_done_and_one_with_an_open_call_does_not_wait() {
    let world = world(1, keep(LONG)).await;
    let plain = world.queue().await;
    let calling = world.next(&plain, |_| {}).await;
    let hook = Arc::new(Calls {
        store: world.store.clone(),
        run: calling.clone(),
        is_open: AtomicBool::new(false),
        late: Mutex::default(),
    });
    let server: Server = world.boot_with(hook.clone()).await;
    world.done(&calling).await;
    assert!(world.has(&plain, EventKind::SandboxKept).await);
    assert_eq!(*hook.late.lock().unwrap(), Some(BeginCall::NotRunning));
    assert_eq!(world.run(&calling).await.usage.estimated_calls, 1);
    assert!(!world.has(&calling, EventKind::SandboxKept).await);
    world.clean().await;
    server.kill();
}

/// Stops at a step, once it is armed.
struct Later {
    step: Step,
    armed: AtomicBool,
    reached: Notify,
}

#[async_trait]
impl StepHook for Later {
    async fn reached(&self, step: Step) {
        if step == self.step && self.armed.load(Ordering::SeqCst) {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// Kills the server at a step of a run that has the sandbox of the one before.
async fn survives(step: Step) {
    let world = world(1, keep(LONG)).await;
    let hook = Arc::new(Later { step, armed: AtomicBool::new(false), reached: Notify::new() });
    let server: Server = world.boot_with(hook.clone()).await;
    let first = world.queue().await;
    world.done(&first).await;
    hook.armed.store(true, Ordering::SeqCst);
    let second = world.next(&first, |_| {}).await;
    tokio::select! {
        () = hook.reached.notified() => {}
        _ended = world.finished(&second) => {}
    }
    server.kill();
    let server = world.boot().await;
    world.done(&second).await;
    assert_eq!(world.shims.agents(&second), 1, "{step:?}");
    let third = world.next(&first, |_| {}).await;
    world.done(&third).await;
    for run in [&first, &second, &third] {
        world.ended_once(run).await;
    }
    server.shut_down();
    world.clean().await;
}

#[tokio::test]
async fn a_server_killed_at_any_step_of_a_run_that_has_it_loses_and_doubles_nothing() {
    for step in Step::ALL {
        survives(*step).await;
    }
}
