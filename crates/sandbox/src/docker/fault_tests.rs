//! The Docker engine against a fake one: every way in which an engine can fail to answer.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::fake::{FakeEngine, Reply, engine, in_state, refusal, reply, sandbox_id};
use super::wait::{OOM_LOOK, OOM_SETTLES, WAIT_ROUND_S};
use super::*;
use crate::{Mounts, ResourceLimits, STOP_GRACE_S_MAX, SandboxSpec, SpecError};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A specification with real directories, as far as the host is looked at before the engine.
fn spec(directory: &Path) -> SandboxSpec {
    let make = |name: &str| {
        std::fs::create_dir(directory.join(name)).unwrap();
        directory.join(name)
    };
    std::fs::write(directory.join("shim"), "x").unwrap();
    SandboxSpec {
        id: sandbox_id(),
        session: caisson_domain::id::SessionId::new(1, [7; 10]),
        server: ServerId::new(1, [9; 10]),
        image: Some("caisson-sandbox:1".into()),
        uid: 1000,
        gid: 1000,
        mounts: Mounts {
            shim: directory.join("shim"),
            agent_dir: make("agent"),
            door_dir: make("door"),
            journal_dir: make("journal"),
            workspace_dir: make("workspace"),
            home_dir: make("home"),
        },
        environment: Vec::new(),
        limits: ResourceLimits::default(),
    }
}

fn version() -> Reply {
    reply(200, &json!({ "Version": "x", "ApiVersion": "1.41" }))
}

fn info(seccomp: &str) -> Reply {
    let limits = json!({
        "MemoryLimit": true, "SwapLimit": true, "PidsLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true,
        "SecurityOptions": [seccomp], "NCPU": 2
    });
    reply(200, &limits)
}

fn running() -> Value {
    json!({ "Status": "running" })
}

fn exited(code: i64, oom: bool) -> Value {
    json!({ "Status": "exited", "ExitCode": code, "OOMKilled": oom, "FinishedAt": "2026-11-22T10:00:00Z" })
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unavailable_in_every_call() {
    let directory = directory();
    let (engine, id) = (engine(directory.path()), sandbox_id());
    let spec = spec(directory.path());
    let errors = [
        engine.create(&spec).await.unwrap_err(),
        engine.start(&id).await.unwrap_err(),
        engine.stop(&id, 1).await.unwrap_err(),
        engine.destroy(&id).await.unwrap_err(),
        engine.list_owned().await.unwrap_err(),
        engine.usage(&id).await.unwrap_err(),
        engine.check().await.unwrap_err(),
        engine.image_present("debian").await.unwrap_err(),
        engine.build_image(&ImageBuild::default_image("debian"), &mut |_| ()).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("engine.sock"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_unavailable() {
    for broken in [Reply::Cut, Reply::Half] {
        let directory = directory();
        let _fake = FakeEngine::start(directory.path(), move |_, _| broken.clone());
        let error = engine(directory.path()).list_owned().await.unwrap_err();
        assert!(matches!(error, EngineError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_never_answers_is_unavailable_after_the_time_limit() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |_, _| Reply::Hang);
    let (engine, id) = (engine(directory.path()), sandbox_id());
    let began = Instant::now();
    let error = engine.list_owned().await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), READ_TIMEOUT_S);
    let began = Instant::now();
    let error = engine.destroy(&id).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), CHANGE_TIMEOUT_S);
    let began = Instant::now();
    let error = engine.stop(&id, STOP_GRACE_S_MAX).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), CHANGE_TIMEOUT_S + u64::from(STOP_GRACE_S_MAX));
}

#[tokio::test]
async fn the_grace_of_a_stop_is_bounded() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |_, _| Reply::Body(204, String::new()));
    let (engine, id) = (engine(directory.path()), sandbox_id());
    engine.stop(&id, STOP_GRACE_S_MAX).await.unwrap();
    let error = engine.stop(&id, STOP_GRACE_S_MAX + 1).await.unwrap_err();
    assert!(matches!(error, EngineError::BadSpec(SpecError::Limit { limit: "grace_s", .. })), "{error}");
    assert_eq!(fake.requests(), [format!("POST /containers/caisson-{id}/stop?t={STOP_GRACE_S_MAX}")]);
}

#[tokio::test]
async fn an_answer_that_is_no_engine_s_is_a_bad_reply() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |_, _| Reply::Body(200, "<html>".into()));
    let error = engine(directory.path()).list_owned().await.unwrap_err();
    assert!(matches!(error, EngineError::BadReply { .. }), "{error}");
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_in_its_words() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.ends_with("/json") => in_state(&json!({ "Status": "created" })),
        _ => refusal(400, "OCI runtime create failed: no such file"),
    });
    let error = engine(directory.path()).start(&sandbox_id()).await.unwrap_err();
    assert!(matches!(error, EngineError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("OCI runtime create failed"), "{error}");
}

#[tokio::test]
async fn an_unfit_engine_makes_no_sandbox() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |request, _| match request {
        "GET /version" => version(),
        _ => info("name=seccomp,profile=unconfined"),
    });
    let error = engine(directory.path()).create(&spec(directory.path())).await.unwrap_err();
    assert!(matches!(error, EngineError::Unfit { .. }), "{error}");
    assert_eq!(fake.requests(), ["GET /version", "GET /info"]);
}

#[tokio::test]
async fn another_server_s_sandbox_is_not_made() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |_, _| Reply::Cut);
    let spec = SandboxSpec { server: ServerId::new(1, [0; 10]), ..spec(directory.path()) };
    let error = engine(directory.path()).create(&spec).await.unwrap_err();
    assert!(matches!(error, EngineError::BadSpec(SpecError::Server { .. })), "{error}");
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn a_sandbox_that_is_not_as_asked_is_removed() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |request, _| match request {
        "GET /version" => version(),
        "GET /info" => info("name=seccomp,profile=default"),
        r if r.starts_with("POST /containers/create") => reply(201, &json!({ "Id": "x", "Warnings": ["w"] })),
        r if r.starts_with("GET /containers/") => reply(200, &json!({ "Config": {}, "HostConfig": {} })),
        _ => Reply::Body(204, String::new()),
    });
    let (engine, id) = (engine(directory.path()), sandbox_id());
    let error = engine.create(&spec(directory.path())).await.unwrap_err();
    assert!(matches!(error, EngineError::NotAsAsked { field: "Name", .. }), "{error}");
    let last = fake.requests().pop().unwrap();
    assert_eq!(last, format!("DELETE /containers/caisson-{id}?v=true&force=true&link=false"));
}

#[tokio::test]
async fn what_an_engine_can_do_is_asked_once_until_it_goes_away() {
    let directory = directory();
    let answer = |request: &str, _: usize| match request {
        "GET /version" => version(),
        "GET /info" => info("name=seccomp,profile=default"),
        r if r.starts_with("GET /containers/json") => Reply::Cut,
        _ => refusal(404, "no such image"),
    };
    let fake = FakeEngine::start(directory.path(), answer);
    let (engine, spec) = (engine(directory.path()), spec(directory.path()));
    let asked = || fake.requests().iter().filter(|request| *request == "GET /info").count();
    for _ in 0..2 {
        let error = engine.create(&spec).await.unwrap_err();
        assert!(matches!(error, EngineError::ImageMissing { .. }), "{error}");
        assert_eq!(asked(), 1);
    }
    engine.list_owned().await.unwrap_err();
    engine.create(&spec).await.unwrap_err();
    assert_eq!(asked(), 2, "it may have come back as another one");
}

#[tokio::test]
async fn a_list_is_bounded_and_asks_for_this_server_s_label() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |_, _| reply(200, &json!([{ "Id": "unlabelled" }])));
    assert_eq!(engine(directory.path()).list_owned().await.unwrap(), []);
    let request = fake.requests().remove(0);
    assert!(request.contains(&format!("limit={LIST_CONTAINERS}")), "{request}");
    let server = ServerId::new(1, [9; 10]);
    assert!(request.contains("all=true") && request.contains(server.as_str()), "{request}");
}

#[tokio::test]
async fn a_sandbox_that_goes_while_the_list_is_read_is_left_out() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.starts_with("GET /containers/json") => {
            let labels = json!({ "caisson.sandbox": sandbox_id().as_str() });
            reply(200, &json!([{ "Id": "x", "State": "exited", "Labels": labels }]))
        }
        _ => refusal(404, "no such container"),
    });
    assert_eq!(engine(directory.path()).list_owned().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn destroy_waits_for_a_removal_that_is_under_way() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |request, before| match request {
        r if r.starts_with("DELETE") => refusal(409, "removal is already in progress"),
        _ if before < 5 => in_state(&json!({ "Status": "removing" })),
        _ => refusal(404, "gone"),
    });
    engine(directory.path()).destroy(&sandbox_id()).await.unwrap();
    assert_eq!(fake.requests().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_never_ends_is_unavailable() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.starts_with("DELETE") => refusal(409, "removal is already in progress"),
        _ => in_state(&json!({ "Status": "removing" })),
    });
    let began = Instant::now();
    let error = engine(directory.path()).destroy(&sandbox_id()).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), CHANGE_TIMEOUT_S);
}

#[tokio::test(start_paused = true)]
async fn a_wait_outlasts_an_engine_that_dies_and_comes_back() {
    let directory = directory();
    let (engine, id) = (engine(directory.path()), sandbox_id());
    let first = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.ends_with("/json") => in_state(&running()),
        _ => Reply::Hang,
    });
    let path = directory.path().to_owned();
    let replace = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(first.requests().len(), 2, "inspected, then waiting");
        drop(first);
        tokio::time::sleep(Duration::from_secs(WAIT_RECONNECT_S / 2)).await;
        FakeEngine::start(&path, |_, _| in_state(&exited(7, false)))
    };
    let (exit, _second) = tokio::join!(engine.wait(&id), replace);
    let exit = exit.unwrap();
    assert_eq!((exit.code, exit.oom_killed), (Some(7), false));
    assert_eq!(exit.finished_at_ms, Some(1_795_341_600_000));
}

/// A container whose end is told at the third request, and with the twelfth or never that it was killed for want of memory.
fn killed(directory: &Path, starved: bool) -> FakeEngine {
    FakeEngine::start(directory, move |request, before| match request {
        r if !r.ends_with("/json") => reply(200, &json!({ "StatusCode": 137 })),
        _ if before == 0 => in_state(&running()),
        _ => in_state(&exited(137, starved && before >= 11)),
    })
}

#[tokio::test(start_paused = true)]
async fn want_of_memory_that_the_engine_learns_of_after_the_end_is_waited_for_a_while() {
    let directory = directory();
    let fake = killed(directory.path(), true);
    let exit = engine(directory.path()).wait(&sandbox_id()).await.unwrap();
    assert!(exit.ended_by_oom(), "{exit:?}");
    assert_eq!(fake.requests().len(), 12, "not looked for any longer");
    drop(fake);

    let fake = killed(directory.path(), false);
    let began = Instant::now();
    let exit = engine(directory.path()).wait(&sandbox_id()).await.unwrap();
    assert_eq!((exit.code, exit.oom_killed), (Some(137), false));
    assert!((OOM_SETTLES..OOM_SETTLES + 2 * OOM_LOOK).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(fake.requests().len() > 12, "{:?}", fake.requests());
}

#[tokio::test(start_paused = true)]
async fn a_wait_gives_up_on_an_engine_that_stays_away() {
    let directory = directory();
    let began = Instant::now();
    let error = engine(directory.path()).wait(&sandbox_id()).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), WAIT_RECONNECT_S);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_engine_answers_too_early_is_asked_again_with_pauses() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |request, before| match request {
        r if r.ends_with("/json") && before < 20 => in_state(&running()),
        r if r.ends_with("/json") => in_state(&exited(0, false)),
        _ => reply(200, &json!({ "StatusCode": 0 })),
    });
    let began = Instant::now();
    let exit = engine(directory.path()).wait(&sandbox_id()).await.unwrap();
    assert_eq!(exit.code, Some(0));
    assert_eq!(fake.requests().len(), 21);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_engine_never_answers_is_renewed() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |request, before| match request {
        r if r.ends_with("/json") && before < 4 => in_state(&running()),
        r if r.ends_with("/json") => in_state(&exited(0, false)),
        _ => Reply::Hang,
    });
    let began = Instant::now();
    engine(directory.path()).wait(&sandbox_id()).await.unwrap();
    assert_eq!(fake.requests().len(), 5, "looked, waited, looked, waited, looked");
    assert_eq!(began.elapsed().as_secs(), 2 * WAIT_ROUND_S);
}

#[tokio::test(start_paused = true)]
async fn a_wait_on_a_sandbox_that_was_not_started_goes_on() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |_, before| match before {
        0..3 => in_state(&json!({ "Status": "created" })),
        _ => in_state(&exited(3, false)),
    });
    let exit = engine(directory.path()).wait(&sandbox_id()).await.unwrap();
    assert_eq!(exit.code, Some(3));
}

#[tokio::test]
async fn an_ended_sandbox_is_not_started_again() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |_, _| in_state(&exited(0, false)));
    let error = engine(directory.path()).start(&sandbox_id()).await.unwrap_err();
    assert!(matches!(error, EngineError::Ended { .. }), "{error}");
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_build_that_fails_tells_what_it_said_last() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.starts_with("POST /build") => {
            let lines: Vec<String> =
                (0..40).map(|n| json!({ "stream": format!("line {n}\n") }).to_string()).collect();
            let error = json!({ "errorDetail": { "message": "returned a non-zero code: 100" } });
            Reply::Body(200, format!("{}\n{error}\n", lines.join("\n")))
        }
        _ => reply(200, &json!({ "Id": "x" })),
    });
    let mut seen = Vec::new();
    let build = ImageBuild::default_image("debian");
    let error = engine(directory.path())
        .build_image(&build, &mut |line| seen.push(line.to_owned()))
        .await
        .unwrap_err();
    let EngineError::BuildFailed { image, message } = error else { panic!("{error}") };
    assert_eq!((image.as_str(), seen.len()), (DEFAULT_IMAGE, 40));
    assert!(message.starts_with("returned a non-zero code: 100; it said last:\nline 28\n"), "{message}");
    assert!(message.ends_with("line 39"), "{message}");
}

#[tokio::test]
async fn a_build_whose_base_is_nowhere_names_the_base() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.starts_with("POST /build") => {
            Reply::Body(200, json!({ "errorDetail": { "message": "manifest unknown" } }).to_string())
        }
        _ => refusal(404, "no such image"),
    });
    let build = ImageBuild::default_image("debian:nowhere");
    let error = engine(directory.path()).build_image(&build, &mut |_| ()).await.unwrap_err();
    assert!(matches!(&error, EngineError::BaseMissing { base, .. } if base == "debian:nowhere"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("manifest unknown") && text.contains("make-base.sh"), "{text}");
}

#[tokio::test]
async fn a_build_that_ends_without_an_image_has_failed() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.starts_with("POST /build") => Reply::Body(200, json!({ "stream": "Step 1/2" }).to_string()),
        _ => reply(200, &json!({ "Id": "an old image of the same name" })),
    });
    let mut seen = Vec::new();
    let build = ImageBuild::default_image("debian");
    let error = engine(directory.path())
        .build_image(&build, &mut |line| seen.push(line.to_owned()))
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::BuildFailed { .. }), "{error}");
    assert_eq!(seen, ["Step 1/2"], "the begun line as well");
}

#[tokio::test(start_paused = true)]
async fn a_build_that_falls_silent_is_unavailable() {
    let directory = directory();
    let _fake = FakeEngine::start(directory.path(), |request, _| match request {
        r if r.starts_with("POST /build") => Reply::Hang,
        _ => reply(200, &json!({ "Id": "x" })),
    });
    let began = Instant::now();
    let build = ImageBuild::default_image("debian");
    let error = engine(directory.path()).build_image(&build, &mut |_| ()).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), BUILD_SILENCE_S);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_goes_on_for_ever_is_unavailable() {
    let directory = directory();
    let pause = Duration::from_secs(BUILD_SILENCE_S - 1);
    let _fake = FakeEngine::start(directory.path(), move |request, _| match request {
        r if r.starts_with("POST /build") => Reply::Trickle(pause, "{\"stream\":\"still at it\\n\"}\n"),
        _ => reply(200, &json!({ "Id": "x" })),
    });
    let began = Instant::now();
    let mut lines = 0;
    let build = ImageBuild::default_image("debian");
    let error = engine(directory.path()).build_image(&build, &mut |_| lines += 1).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), BUILD_TIMEOUT_S);
    assert_eq!(lines, BUILD_TIMEOUT_S / (BUILD_SILENCE_S - 1));
}

#[tokio::test]
async fn names_that_are_no_images_never_reach_the_engine() {
    let directory = directory();
    let fake = FakeEngine::start(directory.path(), |_, _| Reply::Cut);
    let engine = engine(directory.path());
    let mut build = ImageBuild::default_image("../base");
    assert!(matches!(engine.build_image(&build, &mut |_| ()).await, Err(EngineError::BadSpec(_))));
    build = ImageBuild { tag: "a b".into(), ..ImageBuild::default_image("debian") };
    assert!(matches!(engine.build_image(&build, &mut |_| ()).await, Err(EngineError::BadSpec(_))));
    assert!(matches!(engine.image_present("a?b").await, Err(EngineError::BadSpec(_))));
    assert!(fake.requests().is_empty());
}

#[test]
fn a_new_dockerfile_is_a_new_version_of_the_image() {
    use sha2::Digest;
    use std::fmt::Write;
    let digest = sha2::Sha256::digest(DOCKERFILE.as_bytes());
    let text = digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    let known = ("caisson-sandbox:1", "76e45f0d1b73ec7bc02bb48903aa6aaf5be496e4bd6dca1f36a60007ad0f3c80");
    assert_eq!(
        (DEFAULT_IMAGE, text.as_str()),
        known,
        "the Dockerfile changed: count DEFAULT_IMAGE up, then this test"
    );
}
