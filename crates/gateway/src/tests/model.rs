use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::event::EventKind;
use caisson_domain::provider::ProviderTool;
use caisson_domain::usage::PriceTable;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use http::Method;
use secrecy::SecretString;

use super::model_host::{END, ModelHost, Piece, START, Script, TEXT, piece};
use super::support::{MODEL_KEY, OK, Reply, Sandbox, Setup, World, fetch, run_spec};
use crate::ModelCredential;
use crate::bounds::{CHUNK_BYTES, MODEL_BODY_BYTES};

const ASK: &str =
    r#"{"model":"claude-opus-5-5","stream":true,"messages":[{"role":"system","content":"x"}] }"#;
const MESSAGES: &str = "/model/v1/messages?beta=true";

async fn world(script: Script) -> (World, Sandbox, ModelHost) {
    let host = ModelHost::start(script).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    world.start(setup).await;
    (world, sandbox, host)
}

fn whole() -> Script {
    Script::stream(vec![piece(START), piece(TEXT), piece(END)])
}

async fn call(world: &World, sandbox: &Sandbox) -> serde_json::Value {
    let calls = world.events(&sandbox.run.id, EventKind::ModelCall).await;
    assert_eq!(calls.len(), 1, "{calls:?}");
    calls.into_iter().next().unwrap()
}

async fn ask(sandbox: &Sandbox) -> Reply {
    sandbox.agent(Method::POST, MESSAGES, ASK).await
}

#[tokio::test]
async fn a_streamed_reply_passes_unchanged_and_is_counted_exactly() {
    let (world, sandbox, host) = world(whole()).await;
    let request = sandbox
        .request(Method::POST, MESSAGES, &sandbox.agent)
        .header("x-api-key", "from the sandbox")
        .header("anthropic-beta", "a,b")
        .header("accept-encoding", "gzip, br")
        .body(ASK);
    let reply = fetch(request).await;
    assert_eq!((reply.status, reply.text()), (OK, format!("{START}{TEXT}{END}")));
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["request-id"], "req_1");
    let host_name = host.url.host_str().map(str::to_owned);
    let used = ("credential.use".to_owned(), "model".to_owned(), Some("model".to_owned()), host_name);
    assert_eq!(world.audit().await.last(), Some(&used));
    let seen = &host.seen()[0];
    assert_eq!((seen.uri.as_str(), &seen.body[..]), ("/base/v1/messages?beta=true", ASK.as_bytes()));
    assert_eq!(seen.headers["x-api-key"], MODEL_KEY);
    assert_eq!(seen.headers["anthropic-beta"], "a,b");
    assert_eq!(seen.headers["accept-encoding"], "identity");
    assert!(!seen.headers.contains_key("authorization"));
    let call = call(&world, &sandbox).await;
    assert_eq!((&call["estimated"], &call["status"]), (&false.into(), &200.into()));
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.calls, usage.estimated_calls), (1, 0));
    assert_eq!((usage.tokens.input, usage.tokens.output, usage.tokens.cache_read), (100, 50, 40));
    assert!(usage.cost_micro_usd > 0);
    assert_eq!(usage.cost_micro_usd, PriceTable::shipped().cost_micro_usd("claude-opus-5-5", &usage.tokens));
    world.stop().await;
}

/// What Claude Code 2.1.330 sends, but for credential and compression.
const HEADERS: [(&str, &str); 12] = [
    ("anthropic-version", "2023-06-01"),
    ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14"),
    ("anthropic-dangerous-direct-browser-access", "true"),
    ("content-type", "application/json"),
    ("user-agent", "claude-cli/2.1.330 (external, sdk-cli)"),
    ("x-app", "cli"),
    ("x-claude-code-session-id", "5f0e7a3c-8f3c-4f0e-9d55-0a8ad57f2f11"),
    ("x-stainless-lang", "js"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-timeout", "600"),
    ("x-unheard-of", "\u{e4} of tomorrow"),
    ("accept", "application/json"),
];

#[tokio::test]
async fn a_call_through_the_door_is_the_same_at_both_ends_but_for_credential_and_compression() {
    let mut script = whole();
    script.headers.extend([("x-ratelimit-left", "7"), ("anthropic-organization-id", "o"), ("x-y", " z")]);
    let (world, sandbox, host) = world(script).await;
    let body = "{ \"model\" : \"claude-opus-5-5\",\n\t\"stream\":true , \"messages\":[{\"role\":\"system\"}],\"n\":1.0e2,\"\u{e4}\":\"\\u00e4\"}\r\n";
    let direct = reqwest::Client::builder().no_proxy().build().unwrap();
    let direct = direct.post(host.url.join("v1/messages?beta=true").unwrap()).header("x-api-key", MODEL_KEY);
    let door = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).header("accept-encoding", "gzip, br");
    let mut replies = Vec::new();
    for request in [direct, door] {
        let request =
            HEADERS.iter().fold(request, |request, (name, value)| request.header(*name, value.as_bytes()));
        let mut reply = fetch(request.body(body)).await;
        reply.headers.remove("date");
        replies.push((reply.status, reply.headers, reply.body));
    }
    assert_eq!(replies[0], replies[1]);
    let mut seen = host.seen();
    assert_eq!(seen[1].headers.remove("accept-encoding").unwrap(), "identity");
    for request in &mut seen {
        assert_eq!(request.headers["x-api-key"], MODEL_KEY);
        assert!(HEADERS.iter().all(|(name, value)| request.headers[*name] == value.as_bytes()));
    }
    assert_eq!(
        (&seen[0].uri, &seen[0].headers, &seen[0].body),
        (&seen[1].uri, &seen[1].headers, &seen[1].body)
    );
    assert_eq!(seen[1].body, body.as_bytes());
    world.stop().await;
}

#[tokio::test]
async fn a_call_that_used_the_apis_own_tools_is_an_estimate_since_tokens_do_not_price_them() {
    let end = END.replace(
        "{\"output_tokens\":50}",
        "{\"output_tokens\":50,\"server_tool_use\":{\"web_search_requests\":2}}",
    );
    let (world, sandbox, _host) = world(Script::stream(vec![piece(START), piece(TEXT), piece(&end)])).await;
    assert_eq!(ask(&sandbox).await.text(), format!("{START}{TEXT}{end}"));
    assert_eq!(call(&world, &sandbox).await["estimated"], true);
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.estimated_calls, usage.tokens.output), (1, 50));
    world.stop().await;
}

#[tokio::test]
async fn whoever_saw_the_end_of_a_reply_finds_it_counted() {
    let silent_end = vec![piece(START), piece(END), Piece::Silence];
    let host = ModelHost::start(Script::stream(silent_end)).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    setup.bounds.grace = std::time::Duration::from_millis(50);
    world.start(setup).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let mut reply = request.send().await.unwrap().bytes_stream();
    let mut text = String::new();
    while !text.contains("message_stop\"}") {
        text.push_str(std::str::from_utf8(&reply.next().await.unwrap().unwrap()).unwrap());
    }
    assert_eq!(call(&world, &sandbox).await["estimated"], false);
    drop(reply);
    world.stop().await;
}

#[tokio::test]
async fn a_bearer_credential_takes_the_place_of_the_grant() {
    let host = ModelHost::start(whole()).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    setup.model.credential = Some(ModelCredential::Bearer(SecretString::from("real".to_owned())));
    world.start(setup).await;
    assert_eq!(ask(&sandbox).await.status, OK);
    assert_eq!(host.seen()[0].headers["authorization"], "Bearer real");
    world.stop().await;
}

#[tokio::test]
async fn a_reply_that_is_not_streamed_is_counted_exactly() {
    let reply =
        r#"{"type":"message","model":"claude-opus-5-5","usage":{"input_tokens":7,"output_tokens":9}}"#;
    let (world, sandbox, _host) = world(Script::json(200, reply)).await;
    assert_eq!(ask(&sandbox).await.text(), reply);
    let call = call(&world, &sandbox).await;
    assert_eq!(call["estimated"], false);
    assert_eq!(world.run(&sandbox.run.id).await.usage.tokens.output, 9);
    world.stop().await;
}

#[tokio::test]
async fn a_compressed_reply_passes_unchanged_and_is_counted() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(format!("{START}{TEXT}{END}").as_bytes()).unwrap();
    let packed = Bytes::from(encoder.finish().unwrap());
    let pieces = packed.chunks(10).map(|part| Piece::Bytes(Bytes::copy_from_slice(part))).collect();
    let mut script = Script::stream(pieces);
    script.headers.push(("content-encoding", "gzip"));
    let (world, sandbox, _host) = world(script).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.headers["content-encoding"].to_str().unwrap(), reply.body), ("gzip", packed));
    assert_eq!(call(&world, &sandbox).await["estimated"], false);
    assert_eq!(world.run(&sandbox.run.id).await.usage.tokens.output, 50);
    world.stop().await;
}

#[tokio::test]
async fn counting_tokens_and_listing_models_cost_nothing() {
    let (world, sandbox, host) = world(Script::json(200, "{}")).await;
    assert_eq!(sandbox.agent(Method::POST, "/model/v1/messages/count_tokens", ASK).await.status, OK);
    assert_eq!(sandbox.agent(Method::GET, "/model/v1/models", "").await.text(), "{}");
    assert_eq!(host.seen()[1].uri, "/base/v1/models");
    assert!(world.events(&sandbox.run.id, EventKind::ModelCall).await.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn other_paths_of_the_model_api_are_not_there() {
    let (world, sandbox, host) = world(whole()).await;
    for (method, path) in [
        (Method::POST, "/model/v1/files"),
        (Method::GET, "/model/v1/messages"),
        (Method::POST, "/model/v1/messages/batches"),
    ] {
        let reply = sandbox.agent(method, path, "{}").await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["type"]),
            (404, &"not_found_error".into()),
            "{path}"
        );
    }
    let head = sandbox.agent(Method::HEAD, "/model/api/hello", "").await;
    assert_eq!((head.status, head.body.len()), (OK, 0));
    assert!(host.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_request_is_taken_up_to_its_bound() {
    let (world, sandbox, host) = world(whole()).await;
    let object = |bytes: usize| format!("{{{}}}", " ".repeat(bytes - 2));
    let fits = sandbox.agent(Method::POST, MESSAGES, object(MODEL_BODY_BYTES)).await;
    assert_eq!(fits.status, OK);
    assert_eq!(host.seen()[0].body.len(), MODEL_BODY_BYTES);
    let large = sandbox.agent(Method::POST, MESSAGES, object(MODEL_BODY_BYTES + 1)).await;
    assert_eq!((large.status, &large.json()["error"]["type"]), (413, &"request_too_large".into()));
    assert_eq!(host.seen().len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn what_the_provider_would_do_outside_is_refused_unless_it_is_allowed() {
    let host = ModelHost::start(whole()).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    setup.model.provider_tools = vec![ProviderTool::WebSearch];
    world.start(setup).await;
    let fetch = r#"{"tools":[{"type":"web_fetch_20250910"}],"messages":[]}"#;
    let image = r#"{"messages":[{"content":[{"type":"image","source":{"type":"url","url":"https://x.example/?d"}}]}]}"#;
    for (body, named) in [(fetch, "web_fetch"), (image, "url_sources"), ("[]", "one JSON object")] {
        for path in [MESSAGES, "/model/v1/messages/count_tokens"] {
            let reply = sandbox.agent(Method::POST, path, body).await;
            assert_eq!(reply.status, 400, "{path} {body}");
            assert!(
                reply.text().contains(named) && reply.text().contains("invalid_request_error"),
                "{}",
                reply.text()
            );
        }
    }
    assert!(host.seen().is_empty());
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!((denied.len(), &denied[0]["tool"]), (4, &"web_fetch".into()));
    let search = r#"{"model":"m","tools":[{"type":"web_search_20250305"}]}"#;
    assert_eq!(sandbox.agent(Method::POST, MESSAGES, search).await.status, OK);
    assert_eq!(host.seen()[0].body, search.as_bytes());
    world.stop().await;
}

#[tokio::test]
async fn a_large_reply_arrives_whole_though_little_of_it_is_held() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let large = "x".repeat(40 * CHUNK_BYTES + 7);
    let pieces = vec![piece(START), piece(&large), Piece::Gate(Arc::clone(&gate)), piece(END)];
    let (world, sandbox, _host) = world(Script::stream(pieces)).await;
    let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
    let mut reply = request.send().await.unwrap().bytes_stream();
    let mut bytes = 0;
    while bytes < START.len() + large.len() {
        bytes += reply.next().await.unwrap().unwrap().len();
    }
    gate.notify_one();
    while let Some(chunk) = reply.next().await {
        bytes += chunk.unwrap().len();
    }
    assert_eq!(bytes, START.len() + large.len() + END.len());
    world.stop().await;
}

#[tokio::test]
async fn the_real_key_is_nowhere_but_in_what_is_sent_upstream() {
    let (world, sandbox, host) = world(whole()).await;
    let good = ask(&sandbox).await;
    let bad = sandbox.agent(Method::POST, "/model/v1/other", ASK).await;
    for reply in [&good, &bad] {
        assert!(!format!("{:?} {}", reply.headers, reply.text()).contains(MODEL_KEY));
    }
    world.stop().await;
    world.store.close().await.unwrap();
    assert_eq!(host.seen()[0].headers["x-api-key"], MODEL_KEY);
    assert!(!world.disk_has(MODEL_KEY));
    assert!(!world.disk_has(&sandbox.agent));
    // The search finds what is there.
    assert!(world.disk_has(sandbox.id.as_str()));
}
