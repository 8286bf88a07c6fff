//! Bounds of the way to MCP servers, each met, and its end with the run.

use std::time::Duration;

use bytes::Bytes;
use caisson_domain::event::EventKind;
use caisson_domain::run::RunStatus;
use caisson_store::Finish;
use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::mcp::{CALL, call, naming, setup, url_of, world_with};
use super::model_host::{ModelHost, Piece, Script, piece};
use super::outside::finish;
use super::support::{OK, PATIENCE, Sandbox, World, eventually, fetch};
use crate::bounds::Bounds;
use crate::mcp::McpBounds;

const SHORT: Duration = Duration::from_millis(50);

async fn world(scripts: Vec<Script>, bounds: McpBounds) -> (World, Sandbox, ModelHost) {
    world_with(scripts, |setup| setup.bounds.mcp = bounds).await
}

fn answer() -> Script {
    Script::json(200, "{}")
}

fn open() -> Script {
    Script::stream(vec![piece("data: {}\n\n"), Piece::Silence])
}

async fn get(sandbox: &Sandbox) -> reqwest::Response {
    let mut response = sandbox.request(Method::GET, "/mcp/notes", &sandbox.agent).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    response
}

async fn denied(world: &World, sandbox: &Sandbox) -> Vec<Value> {
    let told = world.events(&sandbox.run.id, EventKind::McpDenied).await;
    told.iter().map(|data| data["reason"].clone()).collect()
}

#[tokio::test]
async fn a_request_is_carried_up_to_its_bound() {
    // What is counted is the request with its head, so the largest that fits is found by what the server was sent.
    let (world, sandbox, host) =
        world(vec![answer()], McpBounds { request_bytes: 10_000, ..McpBounds::default() }).await;
    let head = {
        assert_eq!(call(&sandbox).await.status, OK);
        finish(&sandbox).await;
        let used = world.events(&sandbox.run.id, EventKind::McpUsed).await;
        usize::try_from(used[0]["items"][0]["sent_bytes"].as_u64().unwrap()).unwrap() - CALL.len()
    };
    let next = world.sandbox(sandbox.run.spec.clone()).await;
    let send = async |bytes: usize, sized: bool| {
        let body = if sized {
            reqwest::Body::from(vec![b' '; bytes])
        } else {
            let pieces =
                (0..bytes).step_by(1000).map(move |at| Bytes::from(vec![b' '; 1000.min(bytes - at)]));
            reqwest::Body::wrap_stream(stream::iter(pieces.map(Ok::<_, std::io::Error>)))
        };
        fetch(next.request(Method::POST, "/mcp/notes", &next.agent).body(body)).await
    };
    for sized in [true, false] {
        let before = host.seen().len();
        assert_eq!(send(10_000 - head, sized).await.status, OK, "{sized}");
        assert_eq!(host.seen().last().unwrap().body.len(), 10_000 - head);
        let reply = send(10_001 - head, sized).await;
        assert_eq!((reply.status, reply.code().as_str()), (413, "mcp_request_too_large"), "{sized}");
        assert_eq!(host.seen().len(), before + 1, "it did not arrive whole");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_request_that_is_read_for_its_tool_has_the_same_bounds() {
    let host = ModelHost::start_with(vec![answer()]).await;
    let world = World::new().await;
    let mut spec = naming(&url_of(&host));
    spec.workflow.disallowed_tools = vec!["mcp__notes__delete".to_owned()];
    let sandbox = world.sandbox(spec).await;
    let mut setup = setup(&[&format!("notes.example:{}", host.url.port().unwrap())], &["127.0.0.1/32"]);
    setup.bounds.mcp.request_bytes = 10_000;
    setup.bounds.body_idle = Duration::from_millis(200);
    world.start(setup).await;
    let send = async |body: reqwest::Body| {
        fetch(sandbox.request(Method::POST, "/mcp/notes", &sandbox.agent).body(body)).await
    };
    let long = send(vec![b' '; 10_001].into()).await;
    assert_eq!((long.status, long.code().as_str()), (413, "mcp_request_too_large"));
    let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from("{"))]).chain(stream::pending());
    let silent = send(reqwest::Body::wrap_stream(begun)).await;
    assert_eq!((silent.status, silent.code().as_str()), (400, "mcp_request_broken"));
    assert!(host.seen().is_empty(), "the server is not asked");
    world.stop().await;
}

#[tokio::test]
async fn a_reply_is_carried_up_to_its_bound() {
    let script = |bytes: usize| Script::json(200, &"x".repeat(bytes));
    // `content-type: application/json` is what comes back of the head.
    let head = "content-type".len() + "application/json".len() + 4;
    let bounds = McpBounds { reply_bytes: 5_000, ..McpBounds::default() };
    let (world, sandbox, _host) = world(vec![script(5_000 - head), script(5_001 - head)], bounds).await;
    assert_eq!(call(&sandbox).await.body.len(), 5_000 - head);
    let response =
        sandbox.request(Method::POST, "/mcp/notes", &sandbox.agent).body(CALL).send().await.unwrap();
    assert!(response.bytes().await.is_err(), "it is broken off");
    let told =
        eventually(async || Some(denied(&world, &sandbox).await).filter(|told| !told.is_empty())).await;
    assert_eq!(told, ["reply_too_large"]);
    world.stop().await;
}

#[tokio::test]
async fn a_run_has_so_many_exchanges_at_once() {
    let (world, sandbox, _host) = world(vec![open()], McpBounds { streams: 2, ..McpBounds::default() }).await;
    let (first, _second) = (get(&sandbox).await, get(&sandbox).await);
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "mcp_too_many_at_once"));
    drop(first);
    // Its place is free as soon as the gateway has seen it leave.
    eventually(async || {
        let response = sandbox.request(Method::GET, "/mcp/notes", &sandbox.agent).send().await.unwrap();
        (response.status() == OK).then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_restarted_server_goes_on_with_what_the_run_has_had() {
    let bounds = || McpBounds { requests: 2, ..McpBounds::default() };
    let (world, sandbox, host) = world(vec![answer()], bounds()).await;
    assert_eq!(call(&sandbox).await.status, OK);
    world.stop().await;
    let again = World { cancel: CancellationToken::new(), tracker: TaskTracker::new(), ..world };
    let mut setup = setup(&[&format!("notes.example:{}", host.url.port().unwrap())], &["127.0.0.1/32"]);
    setup.bounds.mcp = bounds();
    again.start(setup).await;
    assert_eq!(call(&sandbox).await.status, OK);
    let refused = call(&sandbox).await;
    assert!(refused.text().contains("mcp_too_many_requests"), "{}", refused.text());
    again.stop().await;
}

#[tokio::test]
async fn a_run_has_so_many_requests_and_bytes() {
    for (bounds, code) in [
        (McpBounds { requests: 1, ..McpBounds::default() }, "mcp_too_many_requests"),
        (McpBounds { sent_bytes: 10, ..McpBounds::default() }, "mcp_too_much_sent"),
        (McpBounds { received_bytes: 10, ..McpBounds::default() }, "mcp_too_much_received"),
    ] {
        let (world, sandbox, _host) = world(vec![answer()], bounds).await;
        // The one that meets the bound is broken off, and the next one is refused.
        drop(sandbox.request(Method::POST, "/mcp/notes", &sandbox.agent).body(CALL).send().await);
        let reply = call(&sandbox).await;
        assert_eq!((reply.status, reply.code().as_str()), (424, code));
        world.stop().await;
    }
}

#[tokio::test]
async fn silence_and_length_of_an_exchange_have_an_end() {
    let hangs = Script { hangs: true, ..answer() };
    let (world, sandbox, _host) =
        world(vec![hangs], McpBounds { first_byte: SHORT, ..McpBounds::default() }).await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (504, "mcp_idle"));
    world.stop().await;
    for bounds in [
        McpBounds { idle: SHORT, ..McpBounds::default() },
        McpBounds { total: SHORT, ..McpBounds::default() },
    ] {
        let (world, sandbox, _host) = self::world(vec![open()], bounds).await;
        let mut response = sandbox.request(Method::GET, "/mcp/notes", &sandbox.agent).send().await.unwrap();
        // A slow machine may have lost its time before the first piece.
        while let Ok(piece) = response.chunk().await {
            assert!(piece.is_some(), "it is broken off");
        }
        let told = eventually(async || {
            let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
            Some(told).filter(|told| !told.is_empty())
        });
        assert_eq!(told.await[0]["kind"], "mcp_idle");
        world.stop().await;
    }
}

#[tokio::test]
async fn what_is_told_of_refusals_has_an_end() {
    let (world, sandbox, _host) = world(vec![answer()], McpBounds { told: 2, ..McpBounds::default() }).await;
    for (method, path) in [(Method::POST, "/mcp/x"), (Method::POST, "/mcp/x/y"), (Method::PUT, "/mcp/notes")]
    {
        sandbox.agent(method, path, "").await;
    }
    assert_eq!(denied(&world, &sandbox).await, ["unknown", "path"]);
    world.stop().await;
}

#[tokio::test]
async fn the_outcome_of_a_run_cuts_its_way_and_tells_what_was_moved() {
    let (world, sandbox, _host) = world(vec![answer(), open()], McpBounds::default()).await;
    assert_eq!(call(&sandbox).await.status, OK);
    let mut response = get(&sandbox).await;
    finish(&sandbox).await;
    assert!(response.chunk().await.is_err());
    let used = world.events(&sandbox.run.id, EventKind::McpUsed).await;
    assert_eq!(used.len(), 1, "{used:?}");
    let item = &used[0]["items"][0];
    assert_eq!((item["server"].as_str(), item["requests"].as_u64()), (Some("notes"), Some(2)), "{item}");
    assert!(item["sent_bytes"].as_u64() > Some(46) && item["received_bytes"].as_u64() > Some(12), "{item}");
    assert_eq!(call(&sandbox).await.code(), "mcp_run_over");
    world.stop().await;
}

#[tokio::test]
async fn a_run_that_ends_without_a_word_loses_its_way_too() {
    let (world, sandbox, _host) = world_with(vec![open()], |setup| {
        setup.bounds = Bounds { egress_check: SHORT, ..setup.bounds.clone() }
    })
    .await;
    let mut response = get(&sandbox).await;
    let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
    assert!(world.store.finish(&sandbox.run.id, sandbox.epoch, &finish).await.unwrap());
    assert!(response.chunk().await.is_err());
    assert_eq!(call(&sandbox).await.code(), "no_run");
    world.stop().await;
}

#[tokio::test]
async fn a_stopping_server_ends_open_streams_at_once() {
    // A grace that no test waits for: it is not needed.
    let (world, sandbox, _host) = world_with(vec![open()], |setup| setup.bounds.grace = PATIENCE * 10).await;
    let mut response = get(&sandbox).await;
    let ((), broken) = tokio::join!(world.stop(), response.chunk());
    assert!(broken.is_err());
}
