use std::sync::Arc;
use std::time::Duration;

use caisson_domain::event::EventKind;
use futures_util::StreamExt;
use http::Method;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::model_host::{END, ModelHost, Piece, START, Script, TEXT, piece};
use super::support::{MODEL_KEY, OK, PATIENCE, Reply, Sandbox, Setup, World, eventually, run_spec};
use crate::bounds::{MODEL_CALLS, MODEL_TRIES, OUTPUT_ESTIMATE_TOKENS};

const ASK: &str = r#"{"model":"claude-opus-5-5","stream":true}"#;
const MESSAGES: &str = "/model/v1/messages";

async fn world(script: Script, shorten: fn(&mut Setup)) -> (World, Sandbox, ModelHost) {
    let host = ModelHost::start(script).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    shorten(&mut setup);
    world.start(setup).await;
    (world, sandbox, host)
}

async fn ask(sandbox: &Sandbox) -> Reply {
    sandbox.agent(Method::POST, MESSAGES, ASK).await
}

/// The one settled call, when it is there.
async fn settled(world: &World, sandbox: &Sandbox) -> serde_json::Value {
    eventually(|| async { world.events(&sandbox.run.id, EventKind::ModelCall).await.pop() }).await
}

async fn failures(world: &World, sandbox: &Sandbox) -> Vec<serde_json::Value> {
    world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await
}

#[tokio::test]
async fn a_refused_credential_is_told_as_a_permission_error() {
    let (world, sandbox, host) = world(Script::json(401, "{\"error\":\"bad key\"}"), |_| {}).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (403, &"permission_error".into()));
    assert!(reply.text().contains("replace it in the server's configuration"), "{}", reply.text());
    assert_eq!(host.seen()[0].headers["x-api-key"], MODEL_KEY);
    let call = settled(&world, &sandbox).await;
    assert_eq!((&call["status"], &call["estimated"]), (&401.into(), &false.into()));
    assert_eq!(world.run(&sandbox.run.id).await.usage.cost_micro_usd, 0);
    let failures = failures(&world, &sandbox).await;
    assert_eq!((&failures[0]["kind"], &failures[0]["status"]), (&"auth".into(), &401.into()));
    world.stop().await;
}

#[tokio::test]
async fn refusals_that_cannot_pass_are_passed_on_unchanged() {
    for status in [400, 403, 404] {
        let script = Script::json(status, "{\"type\":\"error\"}");
        let (world, sandbox, host) = world(script, |_| {}).await;
        let reply = ask(&sandbox).await;
        assert_eq!((reply.status, reply.text().as_str()), (status, "{\"type\":\"error\"}"));
        let call = settled(&world, &sandbox).await;
        assert_eq!((&call["status"], &call["estimated"]), (&status.into(), &false.into()));
        assert_eq!(failures(&world, &sandbox).await.len(), usize::from(status == 403));
        assert_eq!(host.seen().len(), 1);
        world.stop().await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_key() {
    let mut script = Script::json(307, "");
    script.headers.push(("location", "http://127.0.0.1:1/steal"));
    let (world, sandbox, _host) = world(script, |_| {}).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &"rate_limit_error".into()));
    assert!(reply.text().contains("provider_down") && reply.text().contains("redirects"), "{}", reply.text());
    assert!(!reply.headers.contains_key("location"));
    world.stop().await;
}

#[tokio::test]
async fn an_unreachable_model_api_is_said_to_be_and_costs_nothing() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &"rate_limit_error".into()));
    let call = settled(&world, &sandbox).await;
    assert_eq!((&call["status"], &call["estimated"]), (&0.into(), &false.into()));
    let failures = failures(&world, &sandbox).await;
    assert_eq!((failures.len(), &failures[0]["kind"]), (MODEL_TRIES as usize, &"connect".into()));
    world.stop().await;
}

#[tokio::test]
async fn without_a_credential_nothing_is_forwarded() {
    let (world, sandbox, host) = world(Script::json(200, "{}"), |setup| setup.model.credential = None).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (403, &"permission_error".into()));
    assert!(reply.text().contains("set one in its configuration"));
    assert!(host.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_cut_reply_is_cut_for_the_agent_too_and_counted_as_an_estimate() {
    let script = Script::stream(vec![piece(START), piece(TEXT), Piece::Cut]);
    let (world, sandbox, _host) = world(script, |_| {}).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), OK);
    assert!(response.bytes().await.is_err());
    let call = settled(&world, &sandbox).await;
    assert_eq!((&call["status"], &call["estimated"]), (&200.into(), &true.into()));
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.tokens.input, usage.tokens.cache_read), (100, 40));
    assert_eq!((usage.tokens.output, usage.estimated_calls), (OUTPUT_ESTIMATE_TOKENS, 1));
    world.stop().await;
}

#[tokio::test]
async fn a_silent_reply_is_cut_after_its_bound() {
    let script = Script::stream(vec![piece(START), Piece::Silence]);
    let (world, sandbox, _host) = world(script, |setup| setup.bounds.idle = Duration::from_millis(50)).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    assert!(request.send().await.unwrap().bytes().await.is_err());
    assert_eq!(settled(&world, &sandbox).await["estimated"], true);
    world.stop().await;
}

#[tokio::test]
async fn a_model_api_that_never_answers_is_given_up_and_counted() {
    let mut script = Script::json(200, "");
    script.hangs = true;
    let (world, sandbox, _host) =
        world(script, |setup| setup.bounds.first_byte = Duration::from_millis(50)).await;
    let reply = ask(&sandbox).await;
    assert_eq!(reply.status, 429);
    let call = settled(&world, &sandbox).await;
    assert_eq!((&call["status"], &call["estimated"]), (&0.into(), &true.into()));
    assert_eq!(world.run(&sandbox.run.id).await.usage.tokens.output, OUTPUT_ESTIMATE_TOKENS);
    assert_eq!(failures(&world, &sandbox).await[0]["kind"], "timeout");
    world.stop().await;
}

#[tokio::test]
async fn a_reply_is_read_on_for_its_usage_after_the_agent_left() {
    let gate = Arc::new(Notify::new());
    let pieces = vec![piece(START), Piece::Gate(Arc::clone(&gate)), piece(TEXT), piece(END)];
    let (world, sandbox, _host) = world(Script::stream(pieces), |_| {}).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let mut reply = request.send().await.unwrap().bytes_stream();
    reply.next().await.unwrap().unwrap();
    drop(reply);
    gate.notify_one();
    let call = settled(&world, &sandbox).await;
    assert_eq!(call["estimated"], false);
    assert_eq!(world.run(&sandbox.run.id).await.usage.tokens.output, 50);
    world.stop().await;
}

#[tokio::test]
async fn reading_on_has_a_bound_in_time_and_one_in_bytes() {
    let silent = || Script::stream(vec![piece(START), Piece::Silence]);
    let shorten: fn(&mut Setup) = |setup| setup.bounds.drain = Duration::from_millis(50);
    let (slow, sandbox, _host) = world(silent(), shorten).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    drop(request.send().await.unwrap());
    assert_eq!(settled(&slow, &sandbox).await["estimated"], true);
    slow.stop().await;

    let gate = Arc::new(Notify::new());
    let mut pieces = vec![piece(START), Piece::Gate(Arc::clone(&gate))];
    // More than sockets and buffers take before the connection's end is seen.
    pieces.extend(vec![piece(&"x".repeat(10_000)); 1000]);
    pieces.push(piece(END));
    let shorten: fn(&mut Setup) = |setup| setup.bounds.drain_bytes = 100_000;
    let (long, sandbox, _host) = world(Script::stream(pieces), shorten).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    drop(request.send().await.unwrap());
    gate.notify_one();
    assert_eq!(settled(&long, &sandbox).await["estimated"], true);
    long.stop().await;
}

#[tokio::test]
async fn an_agent_that_leaves_before_the_reply_is_still_counted() {
    let mut script = Script::json(200, "");
    script.hangs = true;
    let (world, sandbox, host) = world(script, |setup| setup.bounds.drain = Duration::from_millis(50)).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let asked = async {
        eventually(|| async { (!host.seen().is_empty()).then_some(()) }).await;
    };
    tokio::select! {
        _ = request.send() => panic!("it never answers"),
        () = asked => {}
    }
    let call = settled(&world, &sandbox).await;
    assert_eq!((&call["status"], &call["estimated"]), (&0.into(), &true.into()));
    world.stop().await;
}

#[tokio::test]
async fn what_is_no_reply_of_the_api_is_an_estimate() {
    let mut script = Script::stream(vec![piece("<html>sign in</html>")]);
    script.headers[0] = ("content-type", "text/html");
    let (world, sandbox, _host) = world(script, |_| {}).await;
    assert_eq!(ask(&sandbox).await.text(), "<html>sign in</html>");
    assert_eq!(settled(&world, &sandbox).await["estimated"], true);
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_forwarded_unmetered_while_the_database_is_away() {
    let (world, sandbox, host) =
        world(Script::json(200, "{}"), |setup| setup.bounds.store_hold = Duration::from_millis(200)).await;
    world.store.close().await.unwrap();
    let began = tokio::time::Instant::now();
    let reply = ask(&sandbox).await;
    assert!(began.elapsed() > Duration::from_millis(100), "it was held");
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (529, &"overloaded_error".into()));
    assert!(host.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_call_under_way_when_the_server_stops_is_settled_before_it_ends() {
    let script = Script::stream(vec![piece(START), Piece::Silence]);
    let (world, sandbox, _host) = world(script, |setup| setup.bounds.grace = Duration::from_millis(50)).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let mut reply = request.send().await.unwrap().bytes_stream();
    reply.next().await.unwrap().unwrap();
    world.stop().await;
    let calls = world.events(&sandbox.run.id, EventKind::ModelCall).await;
    assert_eq!((calls.len(), &calls[0]["estimated"]), (1, &true.into()));
    // Not an end: a cut.
    let mut last = reply.next().await;
    while let Some(Ok(_)) = last {
        last = reply.next().await;
    }
    assert!(last.is_some());
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_reply_is_counted_as_an_estimate() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = url;
    setup.bounds.model_tries = 1;
    world.start(setup).await;
    let breaks = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 64];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
    };
    let (reply, ()) = tokio::join!(ask(&sandbox), breaks);
    assert_eq!(reply.status, 429);
    let call = settled(&world, &sandbox).await;
    assert_eq!((&call["status"], &call["estimated"]), (&0.into(), &true.into()));
    let told = eventually(|| async { failures(&world, &sandbox).await.pop() }).await;
    assert_eq!(told["kind"], "broken");
    world.stop().await;
}

#[tokio::test]
async fn the_end_of_a_reply_is_not_withheld_for_ever_while_the_database_is_away() {
    let gate = Arc::new(Notify::new());
    let script = Script::stream(vec![piece(START), Piece::Gate(Arc::clone(&gate)), piece(END)]);
    let (world, sandbox, _host) = world(script, |setup| {
        setup.bounds.end_hold = Duration::from_millis(50);
        setup.bounds.settle_hold = Duration::from_millis(50);
    })
    .await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let reply = request.send().await.unwrap();
    world.store.close().await.unwrap();
    gate.notify_one();
    assert_eq!(reply.text().await.unwrap(), format!("{START}{END}"));
    world.stop().await;
}

#[tokio::test]
async fn the_outbound_proxy_is_used_and_the_environments_is_not() {
    let (world, sandbox, host) = world(Script::json(200, "{}"), |setup| {
        let proxy = std::mem::replace(&mut setup.model.base_url, "http://model.invalid/".parse().unwrap());
        setup.model.outbound_proxy = Some(proxy);
    })
    .await;
    assert_eq!(ask(&sandbox).await.status, OK);
    assert_eq!(host.seen()[0].uri, "http://model.invalid/v1/messages");
    world.stop().await;
}

#[tokio::test]
async fn calls_of_one_sandbox_are_bounded() {
    let mut script = Script::json(200, "");
    script.hangs = true;
    let (world, sandbox, host) = world(script, |setup| {
        setup.bounds.store_hold = Duration::from_millis(100);
        setup.bounds.grace = Duration::from_millis(50);
    })
    .await;
    let client = sandbox.client();
    let url = format!("http://gateway{MESSAGES}");
    let mut waiting = JoinSet::new();
    for _ in 0..MODEL_CALLS {
        waiting.spawn(client.post(&url).bearer_auth(&sandbox.agent).body(ASK).send());
    }
    eventually(|| async { (host.seen().len() == MODEL_CALLS).then_some(()) }).await;
    let reply = tokio::time::timeout(PATIENCE, ask(&sandbox)).await.unwrap();
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (529, &"overloaded_error".into()));
    assert_eq!(host.seen().len(), MODEL_CALLS);
    drop(waiting);
    world.stop().await;
}
