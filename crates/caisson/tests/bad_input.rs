//! Bad input and missing parts: each has its own clear answer, and nothing is left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::api::Api;
use testkit::engine::Engine;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::process::{ServerProcess, ServerSpec};
use testkit::repository::{clone_branch, run_git, run_python_tests};
use testkit::world::{World, WorldSpec};

const WAIT: Duration = Duration::from_mins(1);
/// A time limit that leaves the agent time to do half of its work, in seconds.
const TIME_LIMIT_S: i64 = 30;

testkit::on_every_engine_and_database! {
    a_request_that_cannot_be_run_is_refused_with_its_own_code
    a_run_that_cannot_succeed_says_why_and_leaves_nothing
    wrong_credentials_fail_fast_and_by_name
    a_run_that_outlives_its_time_limit_is_stopped_and_its_work_is_kept
    a_cancelled_run_ends_as_cancelled_and_saves_its_work
}

fn parts() -> Option<Parts> {
    Parts::find(env!("CARGO_BIN_EXE_caisson"))
}

async fn a_request_that_cannot_be_run_is_refused_with_its_own_code(ground: Ground) {
    let Some(parts) = parts() else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let with = |field: &str, value: Value| {
        let mut body = world.run_body();
        body[field] = value;
        body
    };
    let cases = [
        (with("workflow", json!("no-such")), 422, "unknown_workflow"),
        (with("surprise", json!(1)), 422, "surprise"),
        (with("prompt", json!("")), 422, "prompt"),
        (with("prompt", json!("x".repeat(2 * 1024 * 1024))), 422, "prompt"),
        (with("prompt", json!("x".repeat(22 * 1024 * 1024))), 413, "too_large"),
        (with("branch", json!("a b")), 422, "space"),
        (with("branch", json!("a..b")), 422, ".."),
        (with("branch", json!("-x")), 422, "dash"),
        (with("branch", json!("a\u{7}b")), 422, "control"),
        (with("base", json!("a b")), 422, "space"),
        (with("repository", json!("https://git.example.com/x")), 422, "repository_not_allowed"),
        (with("repository", json!("/etc")), 422, "repository_not_allowed"),
        (with("repository", json!("git@git.example.com:x.git")), 422, "https"),
        (with("image", json!("Not An Image")), 422, "image"),
        (with("timeout_s", json!(1)), 422, "timeout_s"),
        (with("environment", json!({"LD_PRELOAD": "x"})), 422, "LD_PRELOAD"),
    ];
    for (body, status, part) in cases {
        let answer = world.api.post("/v1/runs", &body).await.unwrap();
        let text = answer.body.to_string();
        assert_eq!(answer.status, status, "{part}: {text}");
        assert!(text.contains(part) && answer.body["code"].is_string(), "{part}: {text}");
    }
    let runs = world.api.get("/v1/runs").await.unwrap();
    assert_eq!(runs.body["items"], json!([]));
}

/// Ends a run and gives its failure kind.
async fn failure(world: &World, body: &Value) -> (String, Value) {
    let id = world.api.submit(body).await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "failed", "{run:#}\n{}", world.server.log());
    assert!(run["failure"]["message"].as_str().is_some_and(|text| text.len() > 10), "{run:#}");
    (run["failure"]["kind"].as_str().unwrap().to_owned(), run)
}

async fn a_run_that_cannot_succeed_says_why_and_leaves_nothing(ground: Ground) {
    let Some(parts) = parts() else { return };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let mut spec = world.spec.clone();
    let repositories = format!("{}* http://{closed}/*", world.host.url(""));
    spec.set("REPOSITORIES", &repositories);
    let mut world = world;
    world.server.terminate().await.unwrap();
    world.spec = spec;
    world.server = world.spec.start().await.unwrap();

    let mut body = world.run_body();
    body["repository"] = json!(format!("http://{closed}/x.git"));
    assert_eq!(failure(&world, &body).await.0, "repo_unreachable");
    body["repository"] = json!(world.host.url("no-such.git"));
    assert_eq!(failure(&world, &body).await.0, "repo_unreachable");
    body = world.run_body();
    body["base"] = json!("no-such-branch");
    let (kind, run) = failure(&world, &body).await;
    assert_eq!(kind, "repo_unreachable");
    assert!(run["failure"]["message"].to_string().contains("no-such-branch"), "{run:#}");
    body = world.run_body();
    body["image"] = json!("caisson-no-such-image:1");
    match ground.engine {
        Engine::Docker => {
            let (kind, run) = failure(&world, &body).await;
            assert_eq!(kind, "sandbox_start");
            assert!(run["failure"]["message"].to_string().contains("caisson-no-such-image:1"), "{run:#}");
        }
        Engine::Local => {
            let answer = world.api.post("/v1/runs", &body).await.unwrap();
            assert_eq!(answer.status, 422, "{}", answer.body);
            assert!(answer.body.to_string().contains("image_unsupported"), "{}", answer.body);
        }
    }
    world.wait_tidy().await.unwrap();
}

async fn wrong_credentials_fail_fast_and_by_name(ground: Ground) {
    let Some(parts) = parts() else { return };
    let wrong = WorldSpec {
        variables: vec![("MODEL__API_KEY".to_owned(), "sk-wrong".to_owned())],
        ..WorldSpec::on(ground)
    };
    let world = World::start(&parts, wrong).await.unwrap();
    assert_eq!(failure(&world, &world.run_body()).await.0, "provider_auth");
    assert_eq!(world.model_calls().len(), 1, "it is not tried again");

    std::fs::write(world.directory.path().join("git-token"), "wrong-token").unwrap();
    let mut world = world;
    world.server.terminate().await.unwrap();
    world.server = world.spec.start().await.unwrap();
    let (kind, run) = failure(&world, &world.run_body()).await;
    assert_eq!(kind, "repo_auth", "{run:#}");
}

/// What a stopped run had done and not pushed is kept, and comes back to life in a fresh clone.
async fn assert_work_saved(world: &World, run: &Value) {
    assert_eq!(run["pushed_commit"], Value::Null);
    assert_eq!(run_git(&world.bare, &["branch", "--list", "caisson/*"]).unwrap(), "");
    let kept = format!("/v1/runs/{}/artifacts", run["id"].as_str().unwrap());
    let listed = world.api.get(&kept).await.unwrap().body;
    let items = listed["items"].as_array().unwrap();
    let mut names: Vec<_> = items.iter().map(|item| item["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["diff.patch", "uncommitted.patch", "work.bundle"], "{listed:#}");

    let fresh = clone_branch(&world.bare, "main").unwrap();
    let checkout = fresh.path().join("checkout");
    for name in ["work.bundle", "uncommitted.patch", "diff.patch"] {
        let bytes = world.api.bytes(&format!("{kept}/{name}")).await.unwrap();
        std::fs::write(fresh.path().join(name), bytes).unwrap();
    }
    run_git(&checkout, &["apply", "--check", "../diff.patch"]).unwrap();
    assert!(!run_python_tests(&checkout).unwrap().status.success());
    run_git(&checkout, &["pull", "-q", "--ff-only", "../work.bundle", "HEAD"]).unwrap();
    assert!(run_python_tests(&checkout).unwrap().status.success());
    let commits = run_git(&checkout, &["log", "--format=%s", "origin/main..HEAD"]).unwrap();
    assert_eq!(commits, "fix(cart): count the tenth piece");
    run_git(&checkout, &["apply", "../uncommitted.patch"]).unwrap();
    let changed = run_git(&checkout, &["status", "--porcelain"]).unwrap();
    assert_eq!(changed, " M shop/cart.py\n?? later.txt");
}

async fn a_run_that_outlives_its_time_limit_is_stopped_and_its_work_is_kept(ground: Ground) {
    let Some(parts) = parts() else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let mut body = world.run_body();
    body["timeout_s"] = json!(TIME_LIMIT_S);
    let (id, _) = world.half_done(&body, WAIT).await.unwrap();
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!((&run["status"], &run["failure"]["kind"]), (&json!("failed"), &json!("timeout")), "{run:#}");
    let took_ms = run["finished_at_ms"].as_i64().unwrap() - run["started_at_ms"].as_i64().unwrap();
    let least_ms = TIME_LIMIT_S * 1_000;
    assert!((least_ms..least_ms + 25_000).contains(&took_ms), "{took_ms} ms");
    assert_work_saved(&world, &run).await;
    world.wait_tidy().await.unwrap();
}

async fn a_cancelled_run_ends_as_cancelled_and_saves_its_work(ground: Ground) {
    let Some(parts) = parts() else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let (id, _) = world.half_done(&world.run_body(), WAIT).await.unwrap();
    let cancelled = world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    assert_eq!(cancelled.status, 202, "{}", cancelled.body);
    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "cancelled", "{run:#}");
    let again = world.api.post(&format!("/v1/runs/{id}/cancel"), &json!({})).await.unwrap();
    assert_eq!(again.status, 200, "{}", again.body);
    assert_work_saved(&world, &run).await;
    world.wait_tidy().await.unwrap();
}

/// What makes a server unable to place runs.
type Change = fn(&mut ServerSpec);

/// A server that starts but cannot place runs.
async fn unready(
    parts: &Parts,
    change: impl FnOnce(&mut ServerSpec),
) -> (tempfile::TempDir, ServerSpec, ServerProcess, Api) {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = ServerSpec::new(parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    change(&mut spec);
    let key = spec.create_key().unwrap();
    let server = spec.spawn().unwrap();
    let api = Api::new(&server.base, &key).unwrap();
    let start = std::time::Instant::now();
    loop {
        match api.get("/readyz").await {
            Ok(answer) if answer.status == 503 && answer.body["code"] != "no_server" => break,
            Ok(_) | Err(_) => {}
        }
        assert!(start.elapsed() < WAIT, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (directory, spec, server, api)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_part_says_which_and_accepts_nothing() {
    let Some(parts) = parts() else { return };
    let no_engine = Parts { docker_host: "unix:///nonexistent/docker.sock".to_owned(), ..parts.clone() };
    let no_agent = Parts { agents_dir: "/nonexistent/agents".into(), ..parts.clone() };
    let body = json!({"workflow": "bug-fixer", "prompt": "x", "repository": null});
    let cases: [(&str, &Parts, Change); 5] = [
        ("engine_unavailable", &no_engine, |spec| spec.set("ENGINE", "docker")),
        ("engine_unavailable", &parts, |spec| {
            spec.set("ENGINE", "local");
            spec.set("LOCAL__BUBBLEWRAP", "/nonexistent/bwrap");
        }),
        ("agent_missing", &no_agent, |_| {}),
        ("image_missing", &parts, |spec| spec.set("DEFAULT_IMAGE", "caisson-no-such-image:1")),
        ("disk_low", &parts, |spec| spec.set("MIN_FREE_DISK_MIB", "1000000000")),
    ];
    for (code, parts, change) in cases {
        let (_directory, spec, server, api) = unready(parts, change).await;
        let start = std::time::Instant::now();
        let answer = loop {
            let answer = api.post("/v1/runs", &body).await.unwrap();
            // The first moments after the start have no verdict yet.
            if answer.body["code"] == code || start.elapsed() > Duration::from_secs(10) {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(
            (answer.status, answer.body["code"].as_str()),
            (503, Some(code)),
            "{}\n{}",
            answer.body,
            server.log()
        );
        assert!(answer.body["detail"].as_str().is_some_and(|text| text.len() > 20), "{}", answer.body);
        let doctor = spec.command(&["doctor"]).output().unwrap();
        assert_eq!(doctor.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&doctor.stdout).contains("FAIL"), "{code}");
    }
}
