//! The CI jobs of `examples/ci`, as their files have them: what they may do, and what comes of them on a real server with the
//! scripted model.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::engine::signal;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

testkit::on_every_engine_and_database! {
    the_job_of_github_actions_ends_as_its_run_does
    the_job_of_gitlab_ends_as_its_run_does
}

const END: Duration = Duration::from_mins(2);
const FAILS: &str = "no-such-branch";

fn job_file(name: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/ci").join(name);
    serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The one step of the one job.
fn github_step() -> Value {
    job_file("github-actions.yml")["jobs"]["run"]["steps"][0].clone()
}

fn script_of_gitlab() -> String {
    job_file("gitlab-ci.yml")["caisson"]["script"][0].as_str().unwrap().to_owned()
}

#[test]
fn what_strangers_wrote_is_no_part_of_a_script_and_sees_no_secret() {
    let github = job_file("github-actions.yml");
    assert_eq!(github["permissions"], json!({}));
    assert_eq!(github["on"].as_object().unwrap().keys().collect::<Vec<_>>(), ["pull_request"]);
    let job = &github["jobs"]["run"];
    let own = "github.event.pull_request.head.repo.full_name == github.repository";
    assert!(job["if"].as_str().unwrap().contains(own) && job["permissions"].is_null());
    let steps = job["steps"].as_array().unwrap();
    assert!(steps.len() == 1 && steps[0]["uses"].is_null(), "others' actions are pinned by hash");
    // `${{ … }}` is put into the text of a script before a shell reads it.
    assert!(!steps[0]["run"].as_str().unwrap().contains("${{"));
    let with_secrets =
        |(name, value): (&String, &Value)| value.as_str()?.contains("secrets.").then(|| name.clone());
    let secrets: Vec<_> = steps[0]["env"].as_object().unwrap().iter().filter_map(with_secrets).collect();
    assert_eq!(secrets, ["CAISSON_API_KEY"]);

    let gitlab = job_file("gitlab-ci.yml");
    assert_eq!(gitlab.as_object().unwrap().keys().collect::<Vec<_>>(), ["caisson"]);
    let rules = gitlab["caisson"]["rules"].as_array().unwrap();
    let own = "$CI_MERGE_REQUEST_SOURCE_PROJECT_ID == $CI_PROJECT_ID";
    assert!(rules.len() == 1 && rules[0]["if"].as_str().unwrap().contains(own), "{rules:?}");
    assert!(!script_of_gitlab().contains("eval") && !github.to_string().contains("eval"));
}

#[test]
fn another_label_ends_no_run_and_the_same_one_again_does() {
    let github = job_file("github-actions.yml");
    // A workflow's own is judged before the job's `if`, for every label.
    assert!(github["concurrency"].is_null());
    let job = &github["jobs"]["run"];
    assert!(job["if"].as_str().unwrap().contains("github.event.label.name == 'caisson'"));
    let group = job["concurrency"]["group"].as_str().unwrap();
    assert!(group.contains("github.event.pull_request.number"), "{group}");
    assert_eq!(job["concurrency"]["cancel-in-progress"], json!(true));
}

/// A shell with a job's script and variables, and nothing of the test's.
fn shell(program: &str, script: &str, directory: &Path, variables: &[(&str, &str)]) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the script of an example, as a runner starts it")]
    let mut command = Command::new(program);
    command.args(["-c", script]).current_dir(directory).env_clear().envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The only run, or the newest of `count`.
async fn newest(world: &World, count: usize) -> Value {
    let listed = world.api.get("/v1/runs").await.unwrap().body;
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), count, "{listed}");
    items[0].clone()
}

/// Ends the job in the middle of its run, as a runner does, and waits for both ends.
async fn cancelled(world: &World, job: Child, count: usize) -> (Output, Value) {
    let begun = async {
        loop {
            let listed = world.api.get("/v1/runs").await.unwrap().body;
            if listed["items"].as_array().unwrap().len() == count {
                return listed["items"][0]["id"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let id = tokio::time::timeout(END, begun).await.unwrap();
    world.inside_a_tool(&id, END).await.unwrap();
    signal(job.id(), "TERM").unwrap();
    let output = tokio::task::spawn_blocking(|| job.wait_with_output().unwrap()).await.unwrap();
    (output, world.api.wait_end(&id, END).await.unwrap())
}

async fn the_job_of_github_actions_ends_as_its_run_does(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let step = github_step();
    let summary = world.directory.path().join("summary.md");
    let given = |branch: &str, title: &str, once: &str| {
        let values = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("CAISSON_URL", &world.server.base),
            ("CAISSON_API_KEY", &world.key),
            ("REPOSITORY", &world.repository_url()),
            ("BRANCH", branch),
            ("TITLE", title),
            ("ONCE", once),
            ("POLL_S", "0.2"),
            ("GITHUB_STEP_SUMMARY", summary.to_str().unwrap()),
        ];
        values.map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let names = step["env"].as_object().unwrap().keys().map(String::as_str);
    let all = given("", "", "");
    assert!(
        names.clone().all(|name| all.iter().any(|(given, _)| given == name)),
        "the test gives every variable"
    );
    let job = |branch: &str, title: &str, once: &str| {
        std::fs::write(&summary, "").unwrap();
        let variables = given(branch, title, once);
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        shell("bash", step["run"].as_str().unwrap(), world.directory.path(), &variables)
    };

    // A title is text, whatever stands in it.
    let title = "\"; touch /tmp/x; $(false) `false` ::add-mask::x";
    let done = job("main", title, "one").output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", told(&done));
    let run = newest(&world, 1).await;
    assert!(run["status"] == "succeeded" && run["prompt"].as_str().unwrap().ends_with(title), "{run}");
    let shown = std::fs::read_to_string(&summary).unwrap();
    for part in ["\"status\": \"succeeded\"", "\"cost_usd\": 0.", "+++ b/shop/pricing.py"] {
        assert!(shown.contains(part) && told(&done).contains(part), "{part} in {shown}");
    }
    assert!(shown.lines().all(|line| line.starts_with("    ")) && told(&done).contains("::stop-commands::"));

    let again = job("main", title, "one").output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", told(&again));
    newest(&world, 1).await;

    let failed = job(FAILS, "x", "two").output().unwrap();
    assert_eq!(failed.status.code(), Some(1), "{}", told(&failed));
    assert!(
        told(&failed).contains("the run ended as failed") && told(&failed).contains(FAILS),
        "{}",
        told(&failed)
    );

    let child = job("main", "[[scn:half-done]]", "three").spawn().unwrap();
    let (output, run) = cancelled(&world, child, 3).await;
    assert_eq!((output.status.code(), &run["status"]), (Some(130), &json!("cancelled")), "{}", told(&output));

    let refused = job("main", "x", "four").env("CAISSON_API_KEY", "csk_wrong").output().unwrap();
    assert!(
        refused.status.code() == Some(1) && told(&refused).contains("\"status\":401"),
        "{}",
        told(&refused)
    );
    assert!(!told(&done).contains(&world.key) && !told(&refused).contains("csk_wrong"));
    world.wait_tidy().await.unwrap();
}

async fn the_job_of_gitlab_ends_as_its_run_does(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let directory = world.directory.path();
    let bin = Path::new(&world.spec.parts.caisson).parent().unwrap();
    let search = format!("{}:/usr/bin:/bin", bin.display());
    let url = world.repository_url();
    let job = |branch: &str, title: &str, once: &str| {
        let variables = [
            ("PATH", search.as_str()),
            ("CAISSON_URL", &world.server.base),
            ("CAISSON_API_KEY", &world.key),
            ("CI_PROJECT_URL", url.strip_suffix(".git").unwrap()),
            ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", branch),
            ("CI_MERGE_REQUEST_TITLE", title),
            ("CI_PROJECT_ID", "7"),
            ("CI_JOB_ID", once),
        ];
        // Images have any shell there is.
        shell("sh", &script_of_gitlab(), directory, &variables)
    };
    let title = "\"; touch /tmp/x; $(false) `false` %s --detach";
    let done = job("main", title, "1").output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", told(&done));
    let run = newest(&world, 1).await;
    assert!(run["status"] == "succeeded" && run["prompt"].as_str().unwrap().contains(title), "{run}");
    assert_eq!((&run["timeout_s"], &run["budget_micro_usd"]), (&json!(3600), &json!(2_000_000)));
    let patch = std::fs::read_to_string(directory.join("caisson.patch")).unwrap();
    assert!(
        patch.contains("+++ b/shop/pricing.py") && told(&done).contains("succeeded ("),
        "{}",
        told(&done)
    );

    let again = job("main", title, "1").output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", told(&again));
    newest(&world, 1).await;

    let failed = job(FAILS, "x", "2").output().unwrap();
    assert_eq!(failed.status.code(), Some(3), "{}", told(&failed));
    assert!(!directory.join("caisson.patch").exists(), "there is no patch of that run");

    let (output, run) = cancelled(&world, job("main", "[[scn:half-done]]", "3").spawn().unwrap(), 3).await;
    assert_eq!((output.status.code(), &run["status"]), (Some(130), &json!("cancelled")), "{}", told(&output));

    let refused = job("main", "x", "4").env("CAISSON_API_KEY", "csk_wrong").output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(!told(&done).contains(&world.key));
    world.wait_tidy().await.unwrap();
}
