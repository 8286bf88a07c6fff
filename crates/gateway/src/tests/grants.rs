use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use caisson_store::SandboxState;
use caisson_store::meters::{DENIALS, Value};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::bounds::{INLINE_BYTES, MODEL_BODY_BYTES};

use super::outside::Tool;
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

/// What and by which rule of each denial that was told of the sandbox's run.
async fn told(world: &World, sandbox: &Sandbox) -> Vec<(String, String)> {
    let events = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    let text = |event: &serde_json::Value, name: &str| event[name].as_str().unwrap().to_owned();
    events.iter().map(|event| (text(event, "what"), text(event, "rule"))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(what, rule)| ((*what).to_owned(), (*rule).to_owned())).collect()
}

#[tokio::test]
async fn a_grant_that_opens_nothing_is_told_audited_and_counted_and_is_itself_in_no_record() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let other = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let forms = [&other.control, &other.agent, &sandbox.control, &sandbox.agent];
    let [their_control, their_agent, control, agent] = forms.map(String::as_str);
    assert_eq!([next(&sandbox, their_control).await, next(&sandbox, agent).await], [403, 403]);
    let nobody = sandbox.client().get("http://gateway/next");
    assert_eq!(fetch(nobody).await.status, 403);
    assert_eq!([head(&sandbox, their_agent).await, head(&sandbox, control).await], [403, 403]);
    for (method, path) in [(Method::GET, "/git/origin/info/refs"), (Method::POST, "/mcp/notes")] {
        assert_eq!(fetch(sandbox.request(method, path, their_agent)).await.status, 403, "{path}");
    }
    let field = format!("proxy-authorization: Bearer {their_agent}\r\nconnection: close\r\n");
    let mut tool = Tool::new(&sandbox).await;
    let answer = tool.say(&format!("CONNECT there.example:443 HTTP/1.1\r\n{field}\r\n")).await;
    assert!(answer.contains("grant_refused"), "{answer}");
    let expected = [
        ("control", "unknown_grant"),
        ("control", "grant_of_another_kind"),
        ("control", "no_grant"),
        ("model call", "unknown_grant"),
        ("model call", "grant_of_another_kind"),
        ("git", "unknown_grant"),
        ("mcp", "unknown_grant"),
        ("outside", "unknown_grant"),
    ];
    assert_eq!(told(&world, &sandbox).await, pairs(&expected));
    assert!(told(&world, &other).await.is_empty(), "whose grant it is has done nothing");
    let records = world.audit().await.into_iter().filter(|record| record.0 == "gateway.denied");
    let subjects: Vec<_> = records.map(|record| record.1).collect();
    assert_eq!(subjects, expected.map(|(what, rule)| format!("{what}: {rule}")));
    let counted = world.store.meters().read().into_iter().find(|series| *series.family == DENIALS);
    assert_eq!(counted.unwrap().value, Value::Sum(8));
    for grant in forms {
        assert!(!world.disk_has(grant), "a grant was written down");
    }
    world.stop().await;
}

#[tokio::test]
async fn whoever_comes_late_or_looks_whether_somebody_is_there_is_not_told_of() {
    let world = World::new().await;
    let sandbox = world.sandbox(run_spec(None)).await;
    let ended = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let look = sandbox.client().head(format!("http://gateway{MODELS}"));
    assert_eq!(fetch(look).await.status, 403);
    // Its run is still running while its grants are revoked.
    assert!(world.store.set_sandbox_state(&sandbox.id, SandboxState::Stopping).await.unwrap());
    assert_eq!([head(&sandbox, &sandbox.agent).await, head(&sandbox, &ended.agent).await], [403, 403]);
    let finish = caisson_store::Finish {
        status: caisson_domain::run::RunStatus::Succeeded,
        failure: None,
        result: None,
    };
    assert!(world.store.finish(&ended.run.id, ended.epoch, &finish).await.unwrap());
    assert_eq!([head(&ended, &ended.agent).await, head(&ended, "csa_00").await], [403, 403]);
    assert!(told(&world, &sandbox).await.is_empty() && told(&world, &ended).await.is_empty());
    assert!(world.store.meters().read().iter().all(|series| *series.family != DENIALS));
    world.stop().await;
}

#[tokio::test]
async fn files_of_another_run_that_are_asked_for_are_told_of_and_those_of_an_earlier_one_are_not() {
    let world = World::new().await;
    let earlier = world.sandbox(run_spec(None)).await;
    let finish = caisson_store::Finish {
        status: caisson_domain::run::RunStatus::Succeeded,
        failure: None,
        result: None,
    };
    assert!(world.store.finish(&earlier.run.id, earlier.epoch, &finish).await.unwrap());
    let sandbox = world.sandbox_in(&earlier.run.session, run_spec(None)).await;
    let other = world.sandbox(run_spec(None)).await;
    world.start(Setup::new()).await;
    let ask = async |run: &RunId| {
        for (method, path) in [
            (Method::PUT, format!("/artifacts/{run}/x")),
            (Method::GET, format!("/attachments/{run}/0")),
            (Method::GET, format!("/transcript/{run}")),
        ] {
            let refused = sandbox.control(method, &path, "").await;
            assert!(
                refused.status == 403 && refused.code().ends_with("_refused"),
                "{path}: {}",
                refused.text()
            );
        }
    };
    ask(&earlier.run.id).await;
    assert!(told(&world, &sandbox).await.is_empty(), "a request of the session's run before came late");
    let expected =
        pairs(&[("artifact", "other_run"), ("attachment", "other_run"), ("transcript", "other_run")]);
    ask(&other.run.id).await;
    assert_eq!(told(&world, &sandbox).await, expected);
    ask(&RunId::new(1, [7; 10])).await;
    assert_eq!(told(&world, &sandbox).await[3..], expected);
    assert!(told(&world, &other).await.is_empty());
    world.stop().await;
}
