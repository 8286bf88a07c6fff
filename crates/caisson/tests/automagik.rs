//! The published Automagik clients against the server that ships: a real process, sandbox, agent and git host. They start,
//! follow, list and kill, and what they send again starts nothing twice.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::repository::{clone_branch, run_git, run_python_tests};
use testkit::world::{World, WorldSpec};

/// How long a client may take for all that it does.
const CLIENT: Duration = Duration::from_mins(4);

testkit::on_every_engine_and_database! {
    a_client_of_the_early_generation_runs_follows_and_lists
    a_client_of_the_first_generation_runs_follows_lists_and_kills
    a_client_of_the_second_generation_runs_follows_lists_and_kills
    clients_that_lose_their_answers_send_again_and_start_one_run_each
}

/// Where the clients are; none where they cannot be had, which a set-up says in so many words.
fn installed() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "what a test stands on comes by the environment")]
    let (named, required) = (std::env::var_os("TEST_AUTOMAGIK_CLIENTS"), std::env::var_os("TEST_REQUIRE"));
    match named {
        Some(named) if named != "none" => Some(PathBuf::from(named)),
        None if required.is_some() => panic!(
            "the published clients are missing: set TEST_AUTOMAGIK_CLIENTS to what scripts/automagik-clients prints, or to none"
        ),
        Some(_) | None => {
            #[expect(clippy::print_stderr, reason = "a skipped test says so")]
            {
                eprintln!("SKIPPED: the published clients are not installed");
            }
            None
        }
    }
}

/// A started world, and what a client said of each of its steps.
struct Driven {
    world: World,
    told: String,
}

/// Has a client do its part against a server of its own.
async fn drive(ground: Ground, part: &str, version: &str) -> Option<Driven> {
    let parts = Parts::find(env!("CARGO_BIN_EXE_caisson"))?;
    let clients = installed()?;
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/automagik-clients").join("live.py");
    #[expect(clippy::disallowed_methods, reason = "the clients are programs of others")]
    let mut command = Command::new(clients.join("bin/python"));
    command
        .args(["-W", "ignore"])
        .arg(script.canonicalize().unwrap())
        .args([part, &world.server.base, &world.repository_url()])
        .current_dir(world.directory.path())
        .env_clear()
        .envs([("AMK_KEY", world.key.as_str()), ("HOME", "/nonexistent"), ("PYTHONDONTWRITEBYTECODE", "1")])
        .env("PYTHONPATH", clients.join(version))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() && begun.elapsed() < CLIENT {
            std::thread::sleep(Duration::from_millis(50));
        }
        child.kill().ok();
        child.wait_with_output().unwrap()
    });
    let output = ended.await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let faults = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}\n{faults}\n{}", world.server.log());
    Some(Driven { world, told })
}

impl Driven {
    /// The server's own word on its runs, oldest first.
    async fn runs(&self) -> Vec<Value> {
        let mut runs =
            self.world.api.get("/v1/runs").await.unwrap().body["items"].as_array().unwrap().clone();
        runs.sort_by_key(|run| run["created_at_ms"].as_i64());
        runs
    }

    /// Asserts that the run's branch has one commit more, and that the suite is green there.
    fn assert_fixed(&self, run: &Value) {
        assert_eq!(run["status"], "succeeded", "{run:#}\n{}", self.world.server.log());
        let branch = run["branch"].as_str().unwrap();
        let commits = run_git(&self.world.bare, &["rev-list", &format!("main..{branch}")]).unwrap();
        assert_eq!(commits, run["pushed_commit"].as_str().unwrap());
        let checkout = clone_branch(&self.world.bare, branch).unwrap();
        assert!(run_python_tests(&checkout.path().join("checkout")).unwrap().status.success());
    }

    /// Asserts that the run was ended in the middle, with what it had done kept, and that nothing of it lives.
    async fn assert_killed(&self, run: &Value) {
        assert_eq!(run["status"], "cancelled", "{run:#}");
        assert_eq!(run["pushed_commit"], Value::Null);
        let path = format!("/v1/runs/{}/artifacts", run["id"].as_str().unwrap());
        let kept = self.world.api.get(&path).await.unwrap().body.to_string();
        assert!(kept.contains(".patch"), "what it had done is kept: {kept}");
        self.world.wait_tidy().await.unwrap();
    }
}

async fn a_client_of_the_early_generation_runs_follows_and_lists(ground: Ground) {
    let Some(driven) = drive(ground, "early", "0.3.10").await else { return };
    assert_eq!(driven.told, "health\nworkflows\nrun\nfollow\ncompleted\ncommit\nsessions\nhistory\n");
    let runs = driven.runs().await;
    assert_eq!(runs.len(), 1, "{runs:#?}");
    driven.assert_fixed(&runs[0]);
}

async fn a_client_of_the_first_generation_runs_follows_lists_and_kills(ground: Ground) {
    let Some(driven) = drive(ground, "first", "0.9.1").await else { return };
    assert_eq!(driven.told, "workflows\nrun\nfollow\ncompleted\ncommit\nrunning\nkill\nlist\nby status\n");
    let runs = driven.runs().await;
    assert_eq!(runs.len(), 2, "{runs:#?}");
    driven.assert_fixed(&runs[0]);
    driven.assert_killed(&runs[1]).await;
}

async fn a_client_of_the_second_generation_runs_follows_lists_and_kills(ground: Ground) {
    let Some(driven) = drive(ground, "second", "0.9.1").await else { return };
    assert_eq!(driven.told, "run and follow\nprogress\nrunning\nkill\nlist\n");
    let runs = driven.runs().await;
    assert_eq!(runs.len(), 2, "{runs:#?}");
    driven.assert_fixed(&runs[0]);
    driven.assert_killed(&runs[1]).await;
}

async fn clients_that_lose_their_answers_send_again_and_start_one_run_each(ground: Ground) {
    let Some(driven) = drive(ground, "lost", "0.9.1").await else { return };
    let runs = driven.runs().await;
    assert_eq!(runs.len(), 2, "six requests came: {runs:#?}\n{}", driven.told);
    for run in &runs {
        driven.assert_fixed(run);
        assert_eq!(run["attempt"], 1, "{run:#}");
    }
    let pushes = run_git(&driven.world.bare, &["for-each-ref", "--format=%(refname)", "refs/heads/caisson"]);
    assert_eq!(pushes.unwrap().lines().count(), 2);
}
