//! Model calls that are under way when a run ends.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::{RunId, UsageId};
use caisson_domain::run::RunStatus;
use caisson_domain::usage::TokenCounts;
use caisson_store::{NewModelCall, SettledCall};
use serde_json::json;

use crate::shim::Play;
use crate::world::{World, until};

const ESTIMATE_MICRO_USD: i64 = 900;
const COST_MICRO_USD: i64 = 70;

/// A run whose agent works, with a model call under way.
async fn calling(world: &World) -> (RunId, UsageId) {
    let run = world.queue().await;
    world.agent_works(&run).await;
    let call = NewModelCall {
        model: "m".to_owned(),
        estimate: TokenCounts::default(),
        estimate_cost_micro_usd: ESTIMATE_MICRO_USD,
        reserve_micro_usd: ESTIMATE_MICRO_USD,
        only_alone: false,
    };
    let call = world.store.begin_model_call(&run, &call).await.unwrap();
    (run, call.begun().unwrap())
}

async fn settle(world: &World, call: &UsageId) -> bool {
    let settled = SettledCall {
        model: "m".to_owned(),
        status: 200,
        tokens: TokenCounts::default(),
        cost_micro_usd: COST_MICRO_USD,
        estimated: false,
        first_byte_ms: None,
        duration_ms: 1,
    };
    world.store.settle_model_call(call, &settled).await.unwrap()
}

/// Waits until the shim is done with the run, which is all that its end waits for but for open calls.
async fn shim_is_done(world: &World, run: &RunId) {
    until("the shim is done", || async { world.told(run, EventKind::Note).await.len() == 1 }).await;
    let lists = world.engine.lists();
    until("some time passes", || async { world.engine.lists() > lists + 2 }).await;
}

/// The run's end is its last event and tells all that it cost.
async fn assert_told(world: &World, run: &RunId, cost_micro_usd: i64, estimated_calls: i64) {
    let ended = world.finished(run).await;
    assert_eq!(ended.status, RunStatus::Cancelled);
    assert_eq!((ended.usage.cost_micro_usd, ended.usage.estimated_calls), (cost_micro_usd, estimated_calls));
    world.told_once(run).await;
    let told = world.told(run, EventKind::RunFinished).await.remove(0);
    assert_eq!(told["usage"], json!(ended.usage));
}

#[tokio::test]
async fn a_run_that_is_cancelled_in_mid_call_ends_when_the_call_is_settled() {
    let mut world = World::new().await;
    world.setup.config.timing.open_calls = Duration::from_hours(1);
    world.shims.by_default(Play::Work { obeys: true });
    let server = world.boot().await;
    let (run, call) = calling(&world).await;
    world.cancel(&run).await;
    shim_is_done(&world, &run).await;
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(settle(&world, &call).await);
    assert_told(&world, &run, COST_MICRO_USD, 0).await;
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_call_that_is_not_settled_in_time_counts_as_estimated() {
    let world = World::new().await;
    world.shims.by_default(Play::Work { obeys: true });
    let server = world.boot().await;
    let (run, call) = calling(&world).await;
    world.cancel(&run).await;
    assert_told(&world, &run, ESTIMATE_MICRO_USD, 1).await;
    assert!(!settle(&world, &call).await, "it is too late");
    assert_told(&world, &run, ESTIMATE_MICRO_USD, 1).await;
    world.clean().await;
    server.kill();
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_open_calls() {
    let mut world = World::new().await;
    world.setup.config.timing.open_calls = Duration::from_hours(1);
    world.shims.by_default(Play::Work { obeys: true });
    let server = world.boot().await;
    let (run, call) = calling(&world).await;
    world.cancel(&run).await;
    shim_is_done(&world, &run).await;
    server.shut_down();
    assert_eq!(world.run(&run).await.status, RunStatus::Running);
    assert!(settle(&world, &call).await);
    let server = world.boot().await;
    assert_told(&world, &run, COST_MICRO_USD, 0).await;
    world.clean().await;
    server.kill();
}
