//! The published clients themselves, driven over real connections. `scripts/automagik-clients` installs them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use caisson_api::ServeLimits;
use caisson_domain::run::RunStatus;
use caisson_store::{Claimed, Finish, Store, Topic};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::api;
use crate::support::{Api, PATIENCE};

const LINES: [&str; 3] = [
    r#"{"type":"assistant","message":{"content":[{"type":"text","text":"I look."},{"type":"tool_use","id":"t1","name":"Read","input":{"file_path":"x"}}]}}"#,
    r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t1","content":"the file"}]}}"#,
    r#"{"type":"assistant","message":{"content":[{"type":"text","text":"All done."}]}}"#,
];

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
            tracing::warn!("skipped: the published clients are not installed");
            None
        }
    }
}

/// Plays the worker of every run: says something and ends it, or, where the task says so, waits until it is told to stop.
async fn work(api: &Api) {
    let mut queue = api.store.watch(Topic::Queue);
    let mut runs = JoinSet::new();
    loop {
        while let Some(claimed) = api.store.claim(&api.server).await.unwrap() {
            // Runs that are asked for one after another have an order.
            api.clock.advance(1);
            for line in LINES {
                api.say(&claimed, line).await;
            }
            runs.spawn(finish(api.store.clone(), claimed));
        }
        queue.changed(PATIENCE).await;
    }
}

async fn finish(store: Store, claimed: Claimed) {
    let run = &claimed.run;
    let long = run.spec.prompt.contains("until it is killed");
    let mut watch = store.watch(Topic::Run(run.id.clone()));
    while long && store.run(&run.project, &run.id).await.unwrap().unwrap().cancel_requested_at_ms.is_none() {
        watch.changed(PATIENCE).await;
    }
    let status = if long { RunStatus::Cancelled } else { RunStatus::Succeeded };
    let finish = Finish { status, failure: None, result: Some("All done.".to_owned()) };
    assert!(store.finish(&run.id, claimed.epoch, &finish).await.unwrap());
}

/// Has a client do its part against a server of its own; what it said of each step.
async fn drive(part: &str, version: &str) -> Option<String> {
    let clients = installed()?;
    let mut api = api().await;
    let address = api.listen(ServeLimits::default()).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/automagik-clients/drive.py");
    #[expect(clippy::disallowed_methods, reason = "the clients are programs of others")]
    let mut command = Command::new(clients.join("bin/python"));
    command
        .arg("-W")
        .arg("ignore")
        .arg(script)
        .args([part, &format!("http://{address}")])
        .current_dir(api.dir.path())
        .env_clear()
        .envs([("AMK_KEY", api.key.as_str()), ("HOME", "/nonexistent"), ("PYTHONDONTWRITEBYTECODE", "1")])
        .env("PYTHONPATH", clients.join(version))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().unwrap();
    let output = tokio::select! {
        output = tokio::time::timeout(PATIENCE * 2, child.wait_with_output()) => output.unwrap().unwrap(),
        () = work(&api) => unreachable!("it works for ever"),
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generic_client_runs_follows_and_lists() {
    let Some(told) = drive("early", "0.3.10").await else { return };
    insta::assert_snapshot!("client_early", told);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_workflow_client_runs_follows_lists_and_kills() {
    let Some(told) = drive("first", "0.9.1").await else { return };
    insta::assert_snapshot!("client_first", told);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_workflow_client_runs_follows_continues_lists_and_kills() {
    let Some(told) = drive("second", "0.9.1").await else { return };
    insta::assert_snapshot!("client_second", told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lost_its_answers_starts_one_run() {
    let Some(told) = drive("lost", "0.9.1").await else { return };
    insta::assert_snapshot!("client_lost", told);
}
