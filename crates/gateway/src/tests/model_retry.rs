//! Calls that are tried again before their first byte, and what the agent is told when they are given up.

use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::run::FailureKind;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::model_host::{END, ModelHost, START, Script, TEXT, piece};
use super::support::{MODEL_KEY, OK, Reply, Sandbox, Setup, World, eventually, run_spec};
use crate::bounds::MODEL_TRIES;

const ASK: &str = r#"{"model":"claude-opus-5-5", "stream":true,"messages":[ ]}"#;
const MESSAGES: &str = "/model/v1/messages?beta=true";
const OVERLOADED: &str = r#"{"type":"error","error":{"type":"overloaded_error","message":"Too busy"}}"#;

async fn world(scripts: Vec<Script>, change: fn(&mut Setup)) -> (World, Sandbox, ModelHost) {
    let host = ModelHost::start_with(scripts).await;
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = host.url.clone();
    change(&mut setup);
    world.start(setup).await;
    (world, sandbox, host)
}

fn whole() -> Script {
    Script::stream(vec![piece(START), piece(TEXT), piece(END)])
}

fn with(mut script: Script, name: &'static str, value: &'static str) -> Script {
    script.headers.push((name, value));
    script
}

async fn ask(sandbox: &Sandbox) -> Reply {
    sandbox.agent(Method::POST, MESSAGES, ASK).await
}

async fn failure(world: &World, sandbox: &Sandbox) -> Option<(FailureKind, String)> {
    let progress = world.store.progress(&sandbox.run.id, sandbox.epoch).await.unwrap().unwrap();
    progress.model_failure.map(|failure| (failure.kind, failure.message))
}

#[tokio::test]
async fn what_passes_is_tried_again_with_the_same_bytes_and_the_agent_sees_none_of_it() {
    let scripts = vec![
        Script::json(529, OVERLOADED),
        with(Script::json(429, "{}"), "retry-after", "0"),
        Script::json(500, ""),
        whole(),
    ];
    let (world, sandbox, host) = world(scripts, |_| {}).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, reply.text()), (OK, format!("{START}{TEXT}{END}")));
    let seen = host.seen();
    assert_eq!(seen.len(), 4);
    for again in &seen[1..] {
        assert_eq!(
            (&again.uri, &again.headers, &again.body),
            (&seen[0].uri, &seen[0].headers, &seen[0].body)
        );
    }
    let calls = world.events(&sandbox.run.id, EventKind::ModelCall).await;
    let statuses: Vec<_> = calls.iter().map(|call| call["status"].as_i64().unwrap()).collect();
    assert_eq!(statuses, [529, 429, 500, 200], "every request that was served is counted");
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.calls, usage.estimated_calls, usage.tokens.output), (4, 0, 50));
    let told = world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await;
    assert_eq!(told.len(), 3);
    assert_eq!(told[0]["words"], "HTTP 529, overloaded_error: Too busy");
    assert!(told.iter().all(|event| event["retry_in_ms"].is_u64()), "{told:?}");
    assert_eq!(failure(&world, &sandbox).await, None);
    world.stop().await;
}

#[tokio::test]
async fn what_does_not_pass_is_given_up_with_an_answer_that_stops_the_agent() {
    for (status, kind) in [
        (429, FailureKind::ProviderLimit),
        (500, FailureKind::ProviderDown),
        (503, FailureKind::ProviderDown),
        (529, FailureKind::ProviderDown),
    ] {
        let (world, sandbox, host) = world(vec![Script::json(status, OVERLOADED)], |_| {}).await;
        let reply = ask(&sandbox).await;
        assert_eq!((reply.status, &reply.headers["retry-after"]), (429, &"3600".parse().unwrap()));
        let said = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(said.starts_with(kind.as_str()) && said.contains("Too busy"), "{said}");
        assert_eq!(host.seen().len(), MODEL_TRIES as usize);
        let (known, message) = failure(&world, &sandbox).await.unwrap();
        assert_eq!((known, message.contains("Too busy")), (kind, true), "{message}");
        let usage = world.run(&sandbox.run.id).await.usage;
        assert_eq!((usage.calls, usage.cost_micro_usd), (i64::from(MODEL_TRIES), 0));
        world.stop().await;
    }
}

#[tokio::test]
async fn a_wait_that_is_too_long_or_of_no_use_is_not_begun() {
    for (name, value) in [("retry-after", "3600"), ("x-should-retry", "false")] {
        let script = with(Script::json(429, "{}"), name, value);
        let (world, sandbox, host) = world(vec![script], |_| {}).await;
        assert_eq!(ask(&sandbox).await.status, 429);
        assert_eq!(host.seen().len(), 1, "{name}");
        assert_eq!(failure(&world, &sandbox).await.unwrap().0, FailureKind::ProviderLimit);
        world.stop().await;
    }
}

#[tokio::test]
async fn tries_end_with_their_time() {
    let (world, sandbox, host) = world(vec![Script::json(500, "")], |setup| {
        setup.bounds.retry_first = Duration::from_secs(1);
        // Waits are spread from three to five quarters.
        setup.bounds.retry_total = Duration::from_millis(2_200);
    })
    .await;
    assert_eq!(ask(&sandbox).await.status, 429);
    assert_eq!(host.seen().len(), 2, "the third try would begin after 2.25 s at the earliest");
    world.stop().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_kept_has_one_try() {
    let (world, sandbox, host) = world(vec![Script::json(500, ""), whole()], |setup| {
        setup.bounds.retry_copies_bytes = ASK.len() - 1;
    })
    .await;
    assert_eq!(ask(&sandbox).await.status, 429);
    assert_eq!(host.seen().len(), 1);
    world.stop().await;
    let (world, sandbox, _host) = self::world(vec![Script::json(500, ""), whole()], |setup| {
        setup.bounds.retry_copies_bytes = ASK.len();
    })
    .await;
    assert_eq!(ask(&sandbox).await.status, OK);
    assert_eq!(ask(&sandbox).await.status, OK, "what was kept is given back");
    world.stop().await;
}

#[tokio::test]
async fn an_answer_takes_an_earlier_failure_back() {
    let (world, sandbox, _host) = world(vec![Script::json(529, ""), whole()], |setup| {
        setup.bounds.model_tries = 1;
    })
    .await;
    assert_eq!(ask(&sandbox).await.status, 429);
    assert_eq!(failure(&world, &sandbox).await.unwrap().0, FailureKind::ProviderDown);
    assert_eq!(ask(&sandbox).await.status, OK);
    assert_eq!(failure(&world, &sandbox).await, None);
    world.stop().await;
}

#[tokio::test]
async fn a_refused_credential_ends_the_agent_at_once_and_is_the_runs_failure() {
    let body = format!(r#"{{"error":{{"type":"authentication_error","message":"bad key {MODEL_KEY}"}}}}"#);
    let (world, sandbox, host) = world(vec![Script::json(401, &body)], |_| {}).await;
    let reply = ask(&sandbox).await;
    assert_eq!((reply.status, host.seen().len()), (403, 1));
    let (kind, message) = failure(&world, &sandbox).await.unwrap();
    assert_eq!(kind, FailureKind::ProviderAuth);
    assert!(message.contains("authentication_error: bad key [redacted]"), "{message}");
    assert!(!reply.text().contains(MODEL_KEY) && !world.disk_has(MODEL_KEY));
    world.stop().await;
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_reply_is_tried_again_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let mut setup = Setup::new();
    setup.model.base_url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    world.start(setup).await;
    let upstream = async {
        let mut buffer = [0; 4096];
        let (mut first, _) = listener.accept().await.unwrap();
        assert!(first.read(&mut buffer).await.unwrap() > 0);
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(second.read(&mut buffer).await.unwrap() > 0);
        let body = r#"{"model":"claude-opus-5-5","usage":{"input_tokens":1,"output_tokens":2}}"#;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        second.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        second
    };
    let (reply, _open) = tokio::join!(ask(&sandbox), upstream);
    assert_eq!(reply.status, OK);
    let usage = world.run(&sandbox.run.id).await.usage;
    assert_eq!((usage.calls, usage.estimated_calls), (2, 1), "the broken one may have cost something");
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_tried_again_for_an_agent_that_left_or_a_server_that_stops() {
    for stops in [false, true] {
        let (world, sandbox, host) = world(vec![Script::json(500, "")], |setup| {
            setup.bounds.retry_first = Duration::from_mins(1);
        })
        .await;
        let told = async {
            eventually(|| async {
                world.events(&sandbox.run.id, EventKind::GatewayUpstreamFailed).await.pop()
            })
            .await;
            if stops {
                world.cancel.cancel();
                std::future::pending::<()>().await;
            }
        };
        let request = sandbox.request(Method::POST, MESSAGES, &sandbox.agent).body(ASK);
        tokio::select! {
            reply = request.send() => assert!(stops && reply.is_err(), "{reply:?}"),
            () = told => assert!(!stops),
        }
        world.stop().await;
        assert_eq!(host.seen().len(), 1);
        assert_eq!(failure(&world, &sandbox).await, None, "nobody gave the call up");
    }
}
