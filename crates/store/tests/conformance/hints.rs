//! Which changes wake whom, and deltas through the store.

use caisson_domain::event::{Delta, DeltaKind};
use caisson_domain::protocol::StopReason;
use caisson_domain::run::{Phase, RunStatus};
use caisson_domain::usage::TokenCounts;
use caisson_store::{
    Finish, JournalEffect, NewArtifact, NewModelCall, SandboxState, SettledCall, Topic, Watch,
};

use crate::fixture::{Fixture, Placed, completed, entry, note, project, woken};

conformance! {
    making_a_run_wakes_the_queue_once,
    cancelling_a_waiting_run_wakes_its_readers,
    claiming_wakes_the_run_and_its_session,
    each_change_of_a_placed_run_wakes_those_it_concerns,
    a_change_that_is_refused_wakes_nobody,
    sandboxes_wake_their_server,
    deltas_reach_the_listeners_of_their_session,
}

/// The watches of a placed run: queue, run, session, sandbox, server.
fn watches(fixture: &Fixture, placed: &Placed) -> Vec<(&'static str, Watch)> {
    vec![
        ("queue", fixture.store.watch(Topic::Queue)),
        ("run", fixture.store.watch(Topic::Run(placed.run.id.clone()))),
        ("session", fixture.store.watch(Topic::Session(placed.run.session.clone()))),
        ("sandbox", fixture.store.watch(Topic::Sandbox(placed.sandbox.clone()))),
        ("server", fixture.store.watch(Topic::Server(fixture.server.clone()))),
    ]
}

fn woken_names(watches: &mut [(&'static str, Watch)]) -> Vec<&'static str> {
    watches.iter_mut().filter_map(|(name, watch)| woken(watch).then_some(*name)).collect()
}

async fn making_a_run_wakes_the_queue_once(fixture: Fixture) {
    let mut queue = fixture.store.watch(Topic::Queue);
    fixture.queued().await;
    assert!(woken(&mut queue));
    assert!(!woken(&mut queue), "one hint wakes once");
}

async fn cancelling_a_waiting_run_wakes_its_readers(fixture: Fixture) {
    let run = fixture.queued().await;
    let mut by_run = fixture.store.watch(Topic::Run(run.id.clone()));
    let mut by_session = fixture.store.watch(Topic::Session(run.session.clone()));
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    assert!(woken(&mut by_run) && woken(&mut by_session));
}

async fn claiming_wakes_the_run_and_its_session(fixture: Fixture) {
    let run = fixture.queued().await;
    let mut by_run = fixture.store.watch(Topic::Run(run.id.clone()));
    let mut by_session = fixture.store.watch(Topic::Session(run.session.clone()));
    fixture.claim().await;
    assert!(woken(&mut by_run) && woken(&mut by_session));
}

async fn each_change_of_a_placed_run_wakes_those_it_concerns(fixture: Fixture) {
    let placed = fixture.placed().await;
    let mut watches = watches(&fixture, &placed);
    let (store, id, epoch) = (&fixture.store, &placed.run.id, placed.epoch);
    store.place(id, epoch, &placed.sandbox).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["run", "sandbox"]);
    fixture.journal(&placed, JournalEffect::None).await;
    assert_eq!(woken_names(&mut watches), ["session"], "a line of the agent changes no progress");
    fixture.journal(&placed, JournalEffect::Phase(Phase::Agent)).await;
    assert_eq!(woken_names(&mut watches), ["run", "session"]);
    store.append_run_event(id, epoch, note("x")).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["session"]);
    store.append_gateway_event(id, note("x")).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["session"]);
    let call = NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: 0,
        reserve_micro_usd: 0,
        only_alone: false,
    };
    let call = store.begin_model_call(id, &call).await.unwrap().begun().unwrap();
    assert!(woken_names(&mut watches).is_empty());
    let settled = SettledCall {
        model: "m".to_owned(),
        status: 200,
        tokens: TokenCounts::default(),
        cost_micro_usd: 0,
        estimated: false,
        first_byte_ms: None,
        duration_ms: 1,
    };
    store.settle_model_call(&call, &settled).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["run", "session"]);
    let artifact =
        NewArtifact { name: "a".to_owned(), size_bytes: 1, sha256: String::new(), path: "a".to_owned() };
    store.put_artifact(id, &artifact).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["session"]);
    store.request_stop(id, epoch, StopReason::Timeout).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["run", "session", "sandbox"]);
    store.request_cancel(&project(), id, None).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["run", "session", "sandbox"]);
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    store.finish(id, epoch, &finish).await.unwrap();
    assert_eq!(woken_names(&mut watches), ["queue", "run", "session", "sandbox"]);
}

async fn a_change_that_is_refused_wakes_nobody(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.store.adopt(&fixture.server).await.unwrap();
    let mut watches = watches(&fixture, &placed);
    let (store, id, epoch) = (&fixture.store, &placed.run.id, placed.epoch);
    store.place(id, epoch, &placed.sandbox).await.unwrap();
    store.request_stop(id, epoch, StopReason::Timeout).await.unwrap();
    store.requeue(id, epoch, "lost", 0).await.unwrap();
    store.append_run_event(id, epoch, note("lost")).await.unwrap();
    let outcome = JournalEffect::Finished(completed("lost"));
    store.append_journal(&placed.sandbox, 7, 9, vec![entry(&placed.run, outcome)]).await.unwrap();
    assert!(woken_names(&mut watches).is_empty());
}

async fn sandboxes_wake_their_server(fixture: Fixture) {
    let run = fixture.queued().await;
    let mut server = fixture.store.watch(Topic::Server(fixture.server.clone()));
    let (sandbox, _, _) = fixture.sandbox(&run.session, 1).await;
    assert!(woken(&mut server));
    let mut by_sandbox = fixture.store.watch(Topic::Sandbox(sandbox.clone()));
    fixture.store.set_sandbox_state(&sandbox, SandboxState::Stopping).await.unwrap();
    assert!(woken(&mut server) && woken(&mut by_sandbox));
    fixture.store.set_sandbox_state(&sandbox, SandboxState::Running).await.unwrap();
    assert!(!woken(&mut server) && !woken(&mut by_sandbox));
}

async fn deltas_reach_the_listeners_of_their_session(fixture: Fixture) {
    let run = fixture.queued().await;
    let (kind, message_id) = (DeltaKind::Text, "msg_1".to_owned());
    let delta = Delta { run: run.id.clone(), kind, message_id, block: 0, text: "Hel".to_owned() };
    fixture.store.publish_delta(&run.session, delta.clone());
    let mut listener = fixture.store.clone().subscribe_deltas(&run.session);
    fixture.store.publish_delta(&run.session, delta.clone());
    assert_eq!(listener.try_recv().unwrap(), delta, "clones of a store share their channels");
    assert!(listener.try_recv().is_err(), "what came before the subscription is lost");
}
