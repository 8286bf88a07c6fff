//! What the model API says when it refuses passes without the credential that it was sent.

use base64::Engine as _;
use caisson_domain::event::EventKind;
use caisson_domain::redact::MARKER;
use http::Method;

use super::model_host::{ModelHost, Script, piece};
use super::support::{MODEL_KEY, OK, Reply, Sandbox, Setup, World, run_spec};

async fn world(script: Script) -> (World, Sandbox, ModelHost) {
    let host = ModelHost::start(script).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    world.start(setup).await;
    (world, sandbox, host)
}

async fn ask(sandbox: &Sandbox) -> Reply {
    sandbox.agent(Method::POST, "/model/v1/messages", "{\"model\":\"claude-opus-5-5\"}").await
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn a_key_in_a_refusals_words_goes_before_they_are_cut() {
    for secret in [MODEL_KEY.to_owned(), base64(MODEL_KEY), hex::encode(MODEL_KEY)] {
        let begun = &secret[..8];
        // The key lies over the end of what is shown.
        let said = format!("{}{secret} {secret}", "p".repeat(490));
        let script = Script::json(401, &format!("{{\"error\":{{\"message\":\"{said}\"}}}}"));
        let (world, sandbox, _host) = world(script).await;
        let reply = ask(&sandbox).await;
        assert!(reply.text().contains("ppp"), "{}", reply.text());
        assert!(!reply.text().contains(begun), "{}", reply.text());
        let told = &world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await[0];
        assert!(told["words"].as_str().unwrap().contains("pp["), "{told}");
        assert!(!told.to_string().contains(begun), "{told}");
        world.stop().await;
        world.store.close().await.unwrap();
        assert!(!world.disk_has(begun), "{begun}");
    }
}

#[tokio::test]
async fn a_refusal_that_passes_does_so_without_the_key() {
    for status in [400, 403, 404, 413, 422] {
        let (first, second) = MODEL_KEY.split_at(7);
        let mut script = Script::json(status, &format!("{{\"you\":\"{}\"", base64(MODEL_KEY)));
        script.pieces.extend([piece(first), piece(&format!("{second}}} end"))]);
        let bearer: &'static str = Box::leak(format!("Bearer {MODEL_KEY}").into_boxed_str());
        script.headers.extend([("request-id", "req_1"), ("x-echo", bearer), ("x-key", MODEL_KEY)]);
        let (world, sandbox, _host) = world(script).await;
        let reply = ask(&sandbox).await;
        assert_eq!(reply.status, status);
        // The last letters of base64 have bits of what follows.
        let wanted = format!("{{\"you\":\"{MARKER}{}\"{MARKER}}} end", &base64(MODEL_KEY)[26..]);
        assert_eq!(reply.text(), wanted);
        assert_eq!(reply.headers["request-id"], "req_1");
        assert!(!reply.headers.contains_key("x-echo") && !reply.headers.contains_key("x-key"));
        world.stop().await;
    }
}

#[tokio::test]
async fn a_reply_is_the_models_own_and_only_its_headers_lose_the_key() {
    let mut script = Script::json(200, &format!("{{\"text\":\"{MODEL_KEY}\"}}"));
    script.headers.extend([("request-id", MODEL_KEY), ("x-other", "1")]);
    let (world, sandbox, _host) = world(script).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, reply.text()), (OK, format!("{{\"text\":\"{MODEL_KEY}\"}}")));
    assert!(!reply.headers.contains_key("request-id") && reply.headers["x-other"] == "1");
    world.stop().await;
}

#[tokio::test]
async fn a_refusal_that_cannot_be_looked_into_is_told_in_words_of_the_gateway() {
    let mut script = Script::json(400, "no gzip at all");
    script.headers.push(("content-encoding", "gzip"));
    let (world, sandbox, _host) = world(script).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (400, &"invalid_request_error".into()));
    assert!(reply.text().contains("in an encoding that was not asked for"), "{}", reply.text());
    assert!(!reply.headers.contains_key("content-encoding"));
    world.stop().await;
}
