//! MCP servers, and a store, that fail: what the agent is answered, and what is told.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::credential::CredentialKind;
use caisson_domain::event::EventKind;
use caisson_store::{Clock, MasterKeyFile, Store};
use futures_util::FutureExt;
use http::Method;
use tokio_util::sync::CancellationToken;

use super::mcp::{CALL, call, naming, setup, url_of, world_with};
use super::model_host::{ModelHost, Piece, Script, piece};
use super::outside::Outside;
use super::support::{OK, Sandbox, World, eventually, value};

const SHORT: Duration = Duration::from_millis(10);

fn answer() -> Script {
    Script::json(200, "{}")
}

/// The kinds of failures of servers that were told.
async fn failures(world: &World, sandbox: &Sandbox) -> Vec<String> {
    let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    told.iter().map(|data| data["kind"].as_str().unwrap().to_owned()).collect()
}

async fn allowed(world: &World) -> usize {
    world.audit().await.iter().filter(|(action, ..)| action == "mcp.allow").count()
}

#[tokio::test]
async fn a_server_that_speaks_no_http_is_broken() {
    let world = World::new().await;
    let outside = Outside::start(&world, "127.0.0.1:0", "220 mail.example ready\r\n").await;
    let target = format!("notes.example:{}", outside.address.port());
    let sandbox = world.sandbox(naming(&format!("http://{target}/"))).await;
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "mcp_broken"), "{}", reply.text());
    assert_eq!(failures(&world, &sandbox).await, ["mcp_broken"]);
    world.stop().await;
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_cut_and_told() {
    let script = Script::stream(vec![piece("data: {}\n\n"), Piece::Cut]);
    let (world, sandbox, _host) = world_with(vec![script], |_| {}).await;
    let response =
        sandbox.request(Method::POST, "/mcp/notes", &sandbox.agent).body(CALL).send().await.unwrap();
    assert_eq!(response.status(), OK);
    assert!(response.bytes().await.is_err(), "it does not end as if it were whole");
    let told = eventually(async || Some(failures(&world, &sandbox).await).filter(|told| !told.is_empty()));
    assert_eq!(told.await, ["mcp_broken"]);
    world.stop().await;
}

#[tokio::test]
async fn a_resolver_is_waited_for_a_bounded_time() {
    let (world, sandbox, host) = world_with(vec![answer()], |setup| {
        setup.bounds.egress_resolve = SHORT;
        setup.resolve = Arc::new(|_| std::future::pending().boxed());
    })
    .await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (504, "mcp_resolve_timeout"), "{}", reply.text());
    assert_eq!(failures(&world, &sandbox).await, ["mcp_resolve_timeout"]);
    assert!(host.seen().is_empty());
    world.stop().await;
}

async fn add(world: &World, host: &ModelHost) {
    let url = url_of(host);
    let settings = [("url", url.as_str()), ("header", "X-Notes")];
    world.add_credential("notes", CredentialKind::McpHeader, &settings, value("mcp-canary-1")).await;
}

#[tokio::test]
async fn a_credential_that_cannot_be_opened_is_told_and_nobody_is_asked_without_it() {
    let (world, sandbox, host) = world_with(vec![answer()], |_| {}).await;
    add(&world, &host).await;
    assert_eq!(call(&sandbox).await.status, OK);
    world.stop().await;
    world.store.close().await.unwrap();
    // A process that has another master key, as one beside a restored database.
    let key = world.root.path().join("master.key");
    std::fs::write(&key, "ab".repeat(32)).unwrap();
    let store = Store::open(&world.root.path().join("caisson.db"), Clock::system()).await.unwrap();
    assert!(store.unlock(MasterKeyFile::named(key)).await.is_err());
    let world = World { store, cancel: CancellationToken::new(), ..world };
    let target = format!("notes.example:{}", host.url.port().unwrap());
    world.start(setup(&[&target], &["127.0.0.1/32"])).await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (424, "mcp_credential"), "{}", reply.text());
    assert!(reply.text().contains("log says why"), "{}", reply.text());
    assert_eq!(host.seen().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn nobody_is_asked_unrecorded_however_often_the_record_cannot_be_written() {
    let (world, sandbox, host) = world_with(vec![answer()], |setup| setup.bounds.store_hold = SHORT).await;
    let locked = world.locked().await;
    // The second one finds the record of the first one under way.
    let (one, other) = tokio::join!(call(&sandbox), call(&sandbox));
    for reply in [one, other, call(&sandbox).await] {
        assert_eq!((reply.status, reply.code().as_str()), (503, "store_unavailable"), "{}", reply.text());
    }
    assert!(host.seen().is_empty());
    drop(locked);
    for _ in 0..2 {
        assert_eq!(call(&sandbox).await.status, OK);
    }
    assert_eq!(allowed(&world).await, 1);
    world.stop().await;
}

#[tokio::test]
async fn a_credential_whose_use_cannot_be_written_is_not_sent() {
    let (world, sandbox, host) = world_with(vec![answer()], |setup| setup.bounds.store_hold = SHORT).await;
    assert_eq!(call(&sandbox).await.status, OK);
    add(&world, &host).await;
    let locked = world.locked().await;
    let reply = call(&sandbox).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "store_unavailable"), "{}", reply.text());
    assert_eq!(host.seen().len(), 1);
    drop(locked);
    assert_eq!(call(&sandbox).await.status, OK);
    assert_eq!(host.seen()[1].headers["x-notes"], "mcp-canary-1");
    world.stop().await;
}
