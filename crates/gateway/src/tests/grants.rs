use std::time::Duration;

use caisson_store::SandboxState;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::bounds::{INLINE_BYTES, MODEL_BODY_BYTES};

use super::support::{OK, PATIENCE, Sandbox, Setup, World, fetch, run_spec};

const MODELS: &str = "/model/anything";

async fn next(sandbox: &Sandbox, grant: &str) -> u16 {
    fetch(sandbox.request(Method::GET, "/next", grant)).await.status
}

async fn head(sandbox: &Sandbox, grant: &str) -> u16 {
    fetch(sandbox.request(Method::HEAD, MODELS, grant)).await.status
}

#[tokio::test]
async fn each_grant_opens_its_own_paths_of_its_own_sandbox_and_nothing_else() {
    let world = World::new().await;
    let one = world.sandbox(run_spec(None)).await;
    let two = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    assert_eq!((next(&one, &one.control).await, head(&one, &one.agent).await), (OK, OK));
    for wrong in ["", "csc_00", &one.agent, &two.control, &format!("{}x", one.control)] {
        assert_eq!(next(&one, wrong).await, 403, "{wrong}");
    }
    for wrong in ["", "csa_00", &one.control, &two.agent] {
        assert_eq!(head(&one, wrong).await, 403, "{wrong}");
    }
    let refused = fetch(one.request(Method::GET, "/next", "csc_00")).await;
    assert_eq!(refused.code(), "grant_refused");
    let refused = fetch(one.request(Method::POST, "/model/v1/messages", &one.control)).await;
    assert_eq!(refused.json()["error"]["type"], "permission_error");
    let refused =
        fetch(one.request(Method::GET, "/git/origin/info/refs?service=git-upload-pack", &one.control)).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "grant_refused"));
    world.stop().await;
}

#[tokio::test]
async fn a_revoked_grant_opens_nothing_from_that_moment() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    assert_eq!(head(&sandbox, &sandbox.agent).await, OK);
    assert!(world.store.set_sandbox_state(&sandbox.id, SandboxState::Stopping).await.unwrap());
    assert_eq!(head(&sandbox, &sandbox.agent).await, 403);
    let ending = fetch(sandbox.request(Method::GET, "/next", &sandbox.control)).await;
    assert_eq!(ending.text(), r#"{"kind":"exit"}"#);
    world.stop().await;
}

#[tokio::test]
async fn between_runs_the_agents_grant_opens_nothing() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let finish = caisson_store::Finish {
        status: caisson_domain::run::RunStatus::Succeeded,
        failure: None,
        result: None,
    };
    assert!(world.store.finish(&sandbox.run.id, sandbox.epoch, &finish).await.unwrap());
    let model = fetch(sandbox.request(Method::POST, "/model/v1/messages", &sandbox.agent)).await;
    assert_eq!(model.status, 403);
    assert!(model.text().contains("no run is running"), "{}", model.text());
    let git =
        fetch(sandbox.request(Method::GET, "/git/origin/info/refs?service=git-upload-pack", &sandbox.agent))
            .await;
    assert_eq!((git.status, git.code().as_str()), (403, "no_run"));
    assert_eq!(next(&sandbox, &sandbox.control).await, 204);
    world.stop().await;
}

#[tokio::test]
async fn while_the_store_is_away_control_paths_say_so() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    world.store.close().await.unwrap();
    let reply = fetch(sandbox.request(Method::GET, "/next", &sandbox.control)).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "store_unavailable"));
    world.stop().await;
}

#[tokio::test]
async fn a_model_call_without_the_grant_is_refused_whatever_its_body_is() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let (control, agent) = (sandbox.control.as_str(), sandbox.agent.as_str());
    let answer = async |grant: &str, announced: usize, sent: &str, patience| {
        let mut stream = UnixStream::connect(&sandbox.socket).await.unwrap();
        let head = format!(
            "POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {grant}\r\n\
             content-length: {announced}\r\n\r\n{sent}"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = [0; 12];
        let read = tokio::time::timeout(patience, stream.read_exact(&mut line)).await;
        read.is_ok().then(|| String::from_utf8_lossy(&line[9..]).into_owned())
    };
    // Bodies that are not one, that do not come, and that announce more than is taken.
    let bodies = [(1, "{"), (INLINE_BYTES, ""), (INLINE_BYTES + 1, ""), (MODEL_BODY_BYTES + 1, "")];
    for (announced, sent) in bodies {
        let refused = answer(control, announced, sent, PATIENCE).await;
        assert_eq!(refused.as_deref(), Some("403"), "{announced} bytes");
    }
    assert_eq!(answer(agent, 1, "{", PATIENCE).await.as_deref(), Some("400"));
    assert_eq!(answer(agent, MODEL_BODY_BYTES + 1, "", PATIENCE).await.as_deref(), Some("413"));
    for announced in [INLINE_BYTES, INLINE_BYTES + 1] {
        let waits = answer(agent, announced, "", Duration::from_millis(100)).await;
        assert_eq!(waits, None, "a body of {announced} bytes is waited for");
    }
    world.stop().await;
}
