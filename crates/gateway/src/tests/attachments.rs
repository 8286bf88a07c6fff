use caisson_domain::attachment::ATTACHMENT_BYTES;
use caisson_domain::id::RunId;
use caisson_domain::input::InputKind;
use caisson_domain::protocol::{ATTACHMENT_BUSY, InputBody, Inputs};
use caisson_store::{NewAttachment, NewInput, SendInput};
use http::Method;

use super::support::{MODEL_KEY, OK, Sandbox, Setup, World, eventually, fetch, run_spec};

fn attached(name: &str, content: &[u8]) -> NewAttachment {
    NewAttachment::new(name, None, content.to_vec())
}

/// A sandbox whose run was given attachments by an input.
async fn given(world: &World, attachments: Vec<NewAttachment>) -> Sandbox {
    let sandbox = world.sandbox(run_spec(None)).await;
    let input = NewInput {
        kind: InputKind::Steer,
        text: Some("Look at this.".to_owned()),
        by: caisson_domain::id::ApiKeyId::new(1, [1; 10]),
        idempotency_key: None,
        attachments,
    };
    let sent = world.store.send_input(&sandbox.run.project, &sandbox.run.id, &input).await.unwrap();
    assert!(matches!(sent, SendInput::Sent(_)), "{sent:?}");
    sandbox
}

#[tokio::test]
async fn an_attachment_is_given_byte_for_byte_to_the_sandbox_of_its_run_and_needs_the_control_grant() {
    let world = World::new().await;
    // Whoever sends a secret wants the agent to have it.
    let content = [&[0, 0xff, b'\n'][..], MODEL_KEY.as_bytes(), &vec![0x80; 70_000]].concat();
    let sandbox = given(&world, vec![attached("a.bin", &content), attached("b", b"")]).await;
    let other = given(&world, vec![attached("theirs", b"x")]).await;
    world.start(Setup::new()).await;
    let path = |run: &RunId, number: &str| format!("/attachments/{run}/{number}");
    let own = &sandbox.run.id;
    let reply = sandbox.control(Method::GET, &path(own, "0"), "").await;
    assert_eq!((reply.status, reply.body.as_ref()), (OK, content.as_slice()));
    let reply = sandbox.control(Method::GET, &path(own, "1"), "").await;
    assert_eq!((reply.status, reply.body.len()), (OK, 0));
    for (run, number, wanted) in [
        (own, "2", (404, "no_attachment")),
        (own, "-1", (400, "bad_request")),
        (own, "x", (400, "bad_request")),
        (&other.run.id, "0", (403, "attachment_refused")),
        (&RunId::new(1, [7; 10]), "0", (403, "attachment_refused")),
    ] {
        let refused = sandbox.control(Method::GET, &path(run, number), "").await;
        assert_eq!((refused.status, refused.code().as_str()), wanted, "{run} {number}");
    }
    let with_agents = fetch(sandbox.request(Method::GET, &path(own, "0"), &sandbox.agent)).await;
    assert_eq!((with_agents.status, with_agents.code().as_str()), (403, "grant_refused"));
    assert_eq!(sandbox.control(Method::PUT, &path(own, "0"), "y").await.status, 405);
    let listed: Inputs =
        serde_json::from_slice(&sandbox.control(Method::GET, "/inputs?after=0", "").await.body).unwrap();
    let InputBody::Attached { kind, text, attachments } = &listed.items[0].body else { panic!("{listed:?}") };
    assert_eq!((*kind, text.as_str()), (InputKind::Steer, "Look at this."));
    let names: Vec<_> = attachments.iter().map(|it| (it.number, it.name.as_str(), it.size_bytes)).collect();
    assert_eq!(names, [(0, "a.bin", 70_003 + i64::try_from(MODEL_KEY.len()).unwrap()), (1, "b", 0)]);
    world.stop().await;
}

#[tokio::test]
async fn one_attachment_is_on_its_way_at_a_time() {
    let world = World::new().await;
    // More than a socket's buffers hold.
    let sandbox = given(&world, vec![attached("large", &vec![b'x'; ATTACHMENT_BYTES])]).await;
    world.start(Setup::new()).await;
    let path = format!("/attachments/{}/0", sandbox.run.id);
    let ask = async || sandbox.request(Method::GET, &path, &sandbox.control).send().await.unwrap();
    let unread = ask().await;
    assert_eq!(unread.status(), OK);
    let busy = sandbox.control(Method::GET, &path, "").await;
    assert_eq!((busy.status, busy.code().as_str()), (429, ATTACHMENT_BUSY));
    drop(unread);
    let read = eventually(|| async { Some(ask().await).filter(|reply| reply.status() == OK) }).await;
    assert_eq!(read.bytes().await.unwrap().len(), ATTACHMENT_BYTES);
    world.stop().await;
}
