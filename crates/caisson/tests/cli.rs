//! The command line as a person meets it: help, errors with remedies, and following a run.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::process::ServerSpec;
use testkit::repository::run_git;
use testkit::world::{World, WorldSpec};

testkit::on_every_engine_and_database! {
    a_run_is_followed_from_the_terminal
    the_doctor_is_content_with_the_flags_that_a_server_gets
    a_checked_out_branch_fails_before_the_model_is_called
    saved_work_of_a_cancelled_run_is_found_and_fetched
}

fn bare_spec(directory: &std::path::Path) -> ServerSpec {
    let parts = Parts {
        docker_host: "unix:///nonexistent/docker.sock".to_owned(),
        agents_dir: directory.join("agents"),
        // Starting a server needs one, running it does not.
        shim: env!("CARGO_BIN_EXE_caisson").into(),
        caisson: env!("CARGO_BIN_EXE_caisson").into(),
    };
    ServerSpec::new(&parts, &directory.join("state"), "http://127.0.0.1:9").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(spec: &ServerSpec, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    spec.command(arguments).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn the_help_lists_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(&bare_spec(directory.path()), &["--help"], &[]);
    insta::assert_snapshot!(text(&output.stdout));
}

#[test]
fn a_command_without_server_or_key_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    let output = run(&spec, &["ps"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("caisson key create"), "{}", text(&output.stderr));
    let output = run(&spec, &["ps"], &[("CAISSON_API_KEY", "csk_x"), ("CAISSON_URL", "http://127.0.0.1:9")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("caisson serve"), "{}", text(&output.stderr));
}

#[test]
fn wrong_use_ends_with_its_own_code_and_a_usage_line_that_asks_for_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    let variables = [("CAISSON_API_KEY", "csk_x"), ("CAISSON_URL", "http://127.0.0.1:9")];
    let cases: [&[&str]; 6] = [
        &["run"],
        &["run", "x", "--env", "FOO"],
        &["run", "x", "--repo", "/", "--no-repo"],
        &["artifacts", "-o", "file"],
        &["artifacts", "run", "name", "--json"],
        &["ps", "--url", "localhost:7070"],
    ];
    for arguments in cases {
        let output = run(&spec, arguments, &variables);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(!error.contains("--api-key <KEY>"), "{arguments:?}: {error}");
    }
}

#[test]
fn a_state_directory_is_the_owners_alone_also_where_an_agent_is_installed_first() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    let agents = spec.state_dir.join("agents");
    let inside = [("CAISSON_AGENTS_DIR", agents.to_str().unwrap())];
    let output = run(&spec, &["agent", "install", "--from", "/nonexistent.tgz"], &inside);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(agents.exists(), "it is made before the package is looked at");
    let mode = std::fs::metadata(&spec.state_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_server_that_is_not_caisson_is_told() {
    use std::io::{Read, Write};
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    for answer in [
        "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 3\r\n\r\n<p>",
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 3\r\n\r\n<p>",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let read = stream.read(&mut [0; 4096]).unwrap();
            assert!(read > 0, "a request came");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let output = run(&spec, &["ps"], &[("CAISSON_API_KEY", "csk_x"), ("CAISSON_URL", &url)]);
        serve.join().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("no Caisson server") && error.contains("CAISSON_URL"), "{error}");
    }
}

#[test]
fn a_bad_configuration_is_refused_with_every_fault() {
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    let output = run(&spec, &["serve"], &[("CAISSON_SLOTS", "0"), ("CAISSON_UID_BASE", "1")]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("slots") && error.contains("uid_base"), "{error}");
    let output = run(&spec, &["serve"], &[("CAISSON_SLOTZ", "1")]);
    assert!(text(&output.stderr).contains("slotz"), "{}", text(&output.stderr));
}

#[test]
fn the_doctor_finds_what_a_server_would_end_of_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (empty, rubbish) = (file("empty", ""), file("rubbish", "{"));
    let workflows = directory.path().join("workflows");
    std::fs::create_dir(&workflows).unwrap();
    file("workflows/bad.md", "no front matter");
    let cases = [
        ("MODEL__AUTH_TOKEN_FILE", empty.as_str(), "is empty"),
        ("MODEL__BASE_URL", "https://u:p@model.example/", "the model API's URL cannot be used"),
        ("WORKFLOWS_DIR", "/no/such/place", "/no/such/place"),
        ("WORKFLOWS_DIR", workflows.to_str().unwrap(), "bad.md"),
        ("PRICES_FILE", &rubbish, "rubbish"),
        ("DEFAULT_REPOSITORY", "nonsense", "default_repository"),
        ("DEFAULT_REPOSITORY", "https://git.example.com/x", "not among the allowed"),
        ("REPOSITORIES", "https://*", "https://*"),
        ("SHIM", "/no/such/shim", "/no/such/shim"),
        ("ALLOW_REPO", "/no/such/src", "allow_repo \"/no/such/src\""),
        ("MODEL__API_KEY_FILE", "/nope", "model.api_key_file: the secret file \"/nope\""),
        ("TLS__CERT_FILE", "/nope", "tls has only one"),
        ("SLOTS", "0", "slots is 0"),
    ];
    for (name, value, part) in cases {
        let mut spec = spec.clone();
        spec.variables.retain(|(known, _)| known != "CAISSON_MODEL__API_KEY");
        let variable = format!("CAISSON_{name}");
        let doctor = run(&spec, &["doctor"], &[(&variable, value)]);
        let said = text(&doctor.stdout);
        assert_eq!(doctor.status.code(), Some(1), "{name}: {said}");
        assert!(said.lines().any(|line| line.starts_with("FAIL") && line.contains(part)), "{name}: {said}");
        assert!(said.contains("checks failed"), "it goes on: {said}");
        let served = run(&spec, &["serve"], &[(&variable, value)]);
        assert_eq!(served.status.code(), Some(1), "{name}");
        assert!(text(&served.stderr).contains(part), "{name}: {}", text(&served.stderr));
    }
    assert!(!directory.path().join("state").exists(), "neither made the state directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = text(&run(&spec, &["doctor", "--listen", &address], &[]).stdout);
    assert!(said.contains(&format!("{address} cannot be listened on")), "{said}");
    assert!(said.contains("--allow-repo DIR"), "{said}");
    // What depends on a state directory that cannot be used is not looked at.
    let said = text(&run(&spec, &["doctor", "--state-dir", &format!("{empty}/state")], &[]).stdout);
    assert!(said.contains("FAIL  state") && said.contains("note  state"), "{said}");
    for silent in ["database     ", "API keys     ", "master key   ", "when it is needed", "key create"] {
        assert!(!said.contains(silent), "{silent}: {said}");
    }
}

#[test]
fn the_doctor_finds_that_sandboxes_would_see_the_server_s_own_state() {
    // Not in `/tmp`, which sandboxes have one of their own for.
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let spec = bare_spec(directory.path());
    let variables =
        [("CAISSON_ENGINE", "local"), ("CAISSON_LOCAL__READ_ONLY", directory.path().to_str().unwrap())];
    let state = spec.state_dir.display().to_string();
    let said = text(&run(&spec, &["doctor"], &variables).stdout);
    let fault = |line: &str| line.starts_with("FAIL  engine") && line.contains(&state);
    assert!(said.lines().any(fault), "{said}");
    assert!(!spec.state_dir.exists());
    let served = run(&spec, &["serve"], &variables);
    assert_eq!(served.status.code(), Some(1));
    assert!(text(&served.stderr).contains(&state), "{}", text(&served.stderr));
}

/// The weights of all sandboxes together, of either version: what a server writes first when it arranges control groups.
fn weights() -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let places = hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
    let files =
        places.flat_map(|place| ["cpu.shares", "cpu.weight"].map(|file| place.join("caisson").join(file)));
    files.filter(|file| file.exists()).collect()
}

#[test]
fn the_doctor_leaves_the_machine_s_control_groups_as_they_are() {
    const OTHER: &str = "77";
    /// How often somebody else may come between: a server that starts meanwhile writes to them.
    const TRIES: usize = 5;
    let directory = tempfile::tempdir().unwrap();
    let spec = bare_spec(directory.path());
    let before = weights();
    let was: Vec<_> = before.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let mut changed = Vec::new();
    for _ in 0..TRIES {
        if nix::unistd::geteuid().is_root() {
            for file in &before {
                std::fs::write(file, OTHER).unwrap();
            }
        }
        let read = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
        let set: Vec<_> = before.iter().map(read).collect();
        let said = text(&run(&spec, &["doctor", "--engine", "local"], &[]).stdout);
        assert!(said.contains("local: bubblewrap"), "{said}");
        changed = before.iter().filter(|file| !set.contains(&read(file))).collect();
        if changed.is_empty() {
            break;
        }
    }
    if nix::unistd::geteuid().is_root() {
        for (file, was) in before.iter().zip(was) {
            std::fs::write(file, was).unwrap();
        }
    }
    assert_eq!(changed, Vec::<&PathBuf>::new());
    assert_eq!(weights(), before, "nothing was made");
}

async fn the_doctor_is_content_with_the_flags_that_a_server_gets(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let mut world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let mut spec = world.spec.clone();
    spec.set("REPOSITORIES", "");
    let allowed = tempfile::tempdir().unwrap();
    let arguments = ["doctor", "--allow-repo", allowed.path().to_str().unwrap()];
    let beside = run(&spec, &arguments, &[]);
    assert_eq!(beside.status.code(), Some(0), "{}", text(&beside.stdout));
    assert!(text(&beside.stdout).contains("a server runs"), "{}", text(&beside.stdout));
    world.server.terminate().await.unwrap();
    let names = || {
        let entries = std::fs::read_dir(&spec.state_dir).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    };
    let before = names();
    let alone = run(&spec, &arguments, &[]);
    assert_eq!(alone.status.code(), Some(0), "{}", text(&alone.stdout));
    assert!(text(&alone.stdout).contains("0 URLs and 1 directory allowed"), "{}", text(&alone.stdout));
    assert_eq!(names(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_state_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = bare_spec(directory.path());
    let mut server = spec.spawn().unwrap();
    let api = testkit::api::Api::new(&server.base, "none").unwrap();
    let start = std::time::Instant::now();
    while api.get("/healthz").await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    spec.listen = "127.0.0.1:0".to_owned();
    let output = run(&spec, &["serve"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("another server uses"), "{}", text(&output.stderr));
    assert!(server.terminate().await.unwrap().success());
}

async fn a_run_is_followed_from_the_terminal(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let variables = [("CAISSON_URL", world.server.base.as_str()), ("CAISSON_API_KEY", world.key.as_str())];
    let url = world.repository_url();
    let followed = run(&world.spec, &["run", "Fix the bug.", "--repo", &url], &variables);
    let said = text(&followed.stdout);
    assert_eq!(followed.status.code(), Some(0), "{said}\n{}", text(&followed.stderr));
    for part in
        ["queued (bug-fixer)", "phase prepare", "> Bash", "> Edit", "commit ", "pushed ", "succeeded ("]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains('\u{1b}'), "colours are off when piped");

    let nowhere = run(&world.spec, &["run", "Fix the bug."], &variables);
    let said = text(&nowhere.stderr);
    assert_eq!(nowhere.status.code(), Some(1), "{said}");
    assert!(said.contains("no default repository") && said.contains("--no-repo"), "{said}");

    let listed = run(&world.spec, &["ps", "--json"], &variables);
    let newest: Value = serde_json::from_str(text(&listed.stdout).lines().next().unwrap()).unwrap();
    let id = newest["id"].as_str().unwrap();
    let shown = text(&run(&world.spec, &["show", &id[id.len() - 8..]], &variables).stdout);
    assert!(shown.contains("succeeded") && shown.contains("caisson/bug-fixer/"), "{shown}");
    let patch = text(&run(&world.spec, &["diff"], &variables).stdout);
    assert!(patch.contains("+++ b/shop/pricing.py"), "{patch}");
    let json = text(&run(&world.spec, &["diff", "--json"], &variables).stdout);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["patch"], patch, "{json}");
    let logs = run(&world.spec, &["logs", id, "--json"], &variables);
    let seqs: Vec<i64> = text(&logs.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_i64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=i64::try_from(seqs.len()).unwrap()).collect::<Vec<_>>());
    let missing = run(&world.spec, &["show", "ffffffff"], &variables);
    assert!(text(&missing.stderr).contains("caisson ps"), "{}", text(&missing.stderr));
}

async fn saved_work_of_a_cancelled_run_is_found_and_fetched(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let slow = WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, ..WorldSpec::on(ground) };
    let world = World::start(&parts, slow).await.unwrap();
    let variables = [("CAISSON_URL", world.server.base.as_str()), ("CAISSON_API_KEY", world.key.as_str())];
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let mut follower = world.spec.command(&["logs", "-f", &id]);
    follower.envs(variables).stdout(Stdio::null()).stderr(Stdio::piped());
    let follower = follower.spawn().unwrap();
    let edited = |event: &Value| {
        event["data"]["type"] == "user" && event["data"].to_string().contains("quantity >= BULK_QUANTITY")
    };
    world.api.wait_event(&id, Duration::from_mins(1), edited).await.unwrap();
    assert!(run(&world.spec, &["cancel", &id], &variables).status.success());
    let output = follower.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    let fetch = format!("caisson artifacts {id} NAME -o FILE");
    assert!(said.contains("uncommitted.patch (") && said.contains(&fetch), "{said}");

    let shown = text(&run(&world.spec, &["show", &id], &variables).stdout);
    assert!(shown.contains("uncommitted.patch ("), "{shown}");
    let diff = run(&world.spec, &["diff", &id], &variables);
    let said = text(&diff.stderr);
    assert_eq!(diff.status.code(), Some(1), "{said}");
    assert!(said.contains("uncommitted.patch (") && said.contains(&fetch), "{said}");
    let listed = text(&run(&world.spec, &["artifacts", "--json"], &variables).stdout);
    let listed: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!(listed["name"], "uncommitted.patch");

    let file = world.directory.path().join("saved.patch");
    let file = file.to_str().unwrap();
    let fetched = run(&world.spec, &["artifacts", &id, "uncommitted.patch", "-o", file], &variables);
    assert!(fetched.status.success(), "{}", text(&fetched.stderr));
    let saved = std::fs::read(file).unwrap();
    assert!(text(&saved).contains("+    if quantity >= BULK_QUANTITY:"), "{}", text(&saved));
    let piped = run(&world.spec, &["artifacts", &id, "uncommitted.patch"], &variables);
    assert_eq!(piped.stdout, saved);
    for missing in ["no-such", "..", "../../x"] {
        let refused = run(&world.spec, &["artifacts", &id, missing, "-o", file], &variables);
        assert_eq!(refused.status.code(), Some(1), "{missing}");
        assert_eq!(std::fs::read(file).unwrap(), saved, "{missing}: the file stays as it was");
    }
    faults_of_an_artifact_are_told(&world, &id, file, &variables);
    world.wait_tidy().await.unwrap();
}

/// A full disk, and bytes that are not those that were kept.
fn faults_of_an_artifact_are_told(world: &World, run_id: &str, file: &str, variables: &[(&str, &str)]) {
    let saved = std::fs::read(file).unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = world.spec.command(&["artifacts", run_id, "uncommitted.patch"]);
    let output = command.envs(variables.iter().copied()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
    let output = run(&world.spec, &["artifacts", run_id, "uncommitted.patch", "-o", "/dev/full"], variables);
    assert_eq!(output.status.code(), Some(1));

    let mut kept = world.state_dir().join("artifacts").join(run_id).read_dir().unwrap().flatten();
    let kept = kept.find(|entry| std::fs::read(entry.path()).is_ok_and(|bytes| bytes == saved)).unwrap();
    let mut bytes = saved.clone();
    bytes[0] ^= 1;
    std::fs::write(kept.path(), bytes).unwrap();
    for arguments in [&["-o", file][..], &[]] {
        let arguments = [&["artifacts", run_id, "uncommitted.patch"], arguments].concat();
        let output = run(&world.spec, &arguments, variables);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("damaged"), "{}", text(&output.stderr));
    }
    assert_eq!(std::fs::read(file).unwrap(), saved, "the file stays as it was");
    let beside = Path::new(file).parent().unwrap().read_dir().unwrap().flatten();
    assert!(!beside.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp")));
}

async fn a_checked_out_branch_fails_before_the_model_is_called(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let mut world = World::start(&parts, WorldSpec::on(ground)).await.unwrap();
    let allowed = tempfile::tempdir().unwrap();
    let workspace = allowed.path().join("work");
    std::fs::create_dir(&workspace).unwrap();
    run_git(&workspace, &["init", "-q", "-b", "main"]).unwrap();
    run_git(&workspace, &["commit", "-q", "--allow-empty", "-m", "feat: begin"]).unwrap();
    world.server.terminate().await.unwrap();
    world.spec.set("ALLOW_REPO", allowed.path().to_str().unwrap());
    world.server = world.spec.start().await.unwrap();
    let variables = [("CAISSON_URL", world.server.base.as_str()), ("CAISSON_API_KEY", world.key.as_str())];
    let repository = workspace.to_str().unwrap();
    let output = run(&world.spec, &["run", "Fix it.", "--repo", repository, "--branch", "main"], &variables);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("push_rejected") && said.contains("is checked out"), "{said}");
    assert_eq!(world.model_calls().len(), 0, "{said}");
    world.wait_tidy().await.unwrap();
}
