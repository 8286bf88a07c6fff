use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::Work;
use caisson_domain::redact::MARKER;
use caisson_domain::run::RunStatus;
use caisson_store::Finish;
use http::Method;

use super::support::{MODEL_KEY, Sandbox, Setup, World, fetch, run_spec};

async fn world() -> (World, Sandbox) {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    (world, sandbox)
}

#[tokio::test]
async fn a_transcript_is_kept_and_given_back_byte_for_byte() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let none = sandbox.control(Method::GET, &path, "").await;
    assert_eq!((none.status, none.code().as_str()), (404, "no_transcript"));
    for text in ["{\"a\":1}\n", "{\"a\":\"ä\\u0000\"}\n{}\n"] {
        assert_eq!(sandbox.control(Method::PUT, &path, text).await.status, 204);
        let kept = sandbox.control(Method::GET, &path, "").await;
        assert_eq!((kept.status, kept.text().as_str()), (200, text));
    }
    let reply = sandbox.control(Method::GET, "/next", "").await;
    let Work::Run(work) = serde_json::from_slice(&reply.body).unwrap() else { panic!("no run") };
    let archive = work.agent.archive.unwrap();
    assert!(work.agent.resume && archive.is_latest && archive.run == sandbox.run.id);
    world.stop().await;
}

#[tokio::test]
async fn a_transcript_is_that_of_the_run_in_the_sandbox_and_needs_the_control_grant() {
    let (world, sandbox) = world().await;
    let other = world.sandbox(run_spec(None)).await;
    assert_eq!(
        other.control(Method::PUT, &format!("/transcript/{}", other.run.id), "theirs").await.status,
        204
    );
    for (method, body) in [(Method::PUT, "mine"), (Method::GET, "")] {
        for run in [&other.run.id, &RunId::new(1, [7; 10])] {
            let refused = sandbox.control(method.clone(), &format!("/transcript/{run}"), body).await;
            assert_eq!((refused.status, refused.code().as_str()), (403, "transcript_refused"));
        }
        let own = format!("/transcript/{}", sandbox.run.id);
        let with_agents = fetch(sandbox.request(method.clone(), &own, &sandbox.agent).body(body)).await;
        assert_eq!((with_agents.status, with_agents.code().as_str()), (403, "grant_refused"));
        assert_eq!(sandbox.control(method, "/transcript/nobody", body).await.status, 400);
    }
    assert_eq!(world.store.read_transcript(&other.run.session).await.unwrap().as_deref(), Some("theirs"));
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(world.store.finish(&other.run.id, other.epoch, &finish).await.unwrap());
    let late = other.control(Method::PUT, &format!("/transcript/{}", other.run.id), "late").await;
    assert_eq!(late.status, 403, "its run has ended");
    world.stop().await;
}

#[tokio::test]
async fn a_transcript_of_the_bound_is_kept_and_a_longer_one_or_no_text_is_refused() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let put = async |body: Vec<u8>| sandbox.control(Method::PUT, &path, body).await.status;
    assert_eq!(put(vec![b'x'; TRANSCRIPT_BYTES]).await, 204);
    assert_eq!(put(vec![b'y'; TRANSCRIPT_BYTES + 1]).await, 413);
    assert_eq!(put(b"\xff\n".to_vec()).await, 400);
    assert_eq!(put(b"a\0\n".to_vec()).await, 400);
    let kept = sandbox.control(Method::GET, &path, "").await;
    assert_eq!(kept.body.len(), TRANSCRIPT_BYTES, "the one before stays");
    assert!(kept.body.iter().all(|byte| *byte == b'x'));
    world.stop().await;
}

#[tokio::test]
async fn a_secret_in_a_transcript_is_taken_out_and_told() {
    let (world, sandbox) = world().await;
    let path = format!("/transcript/{}", sandbox.run.id);
    let text = format!("{{\"said\":\"{MODEL_KEY}\"}}\n");
    assert_eq!(sandbox.control(Method::PUT, &path, text).await.status, 204);
    let kept = sandbox.control(Method::GET, &path, "").await.text();
    assert_eq!(kept, format!("{{\"said\":\"{MARKER}\"}}\n"));
    assert!(!world.disk_has(MODEL_KEY));
    let notes = world.events(&sandbox.run.id, EventKind::Note).await;
    assert!(notes.iter().any(|note| note["message"].to_string().contains("transcript")), "{notes:?}");
    world.stop().await;
}
