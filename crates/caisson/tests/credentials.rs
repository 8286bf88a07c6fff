//! Credentials of the store in the hands of a person: added, rotated while a run lives, wrapped anew, killed in between.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use caisson_domain::credential::CredentialSecret;
use caisson_domain::id::ProjectId;
use caisson_store::{Clock, MasterKeyFile};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::ground::Ground;
use testkit::hunt::{Canary, Hunt};
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;
use testkit::volumes::SessionFiles;
use testkit::world::{GIT_TOKEN, MODEL_KEY, NEXT_MODEL_KEY, World, WorldSpec};

const WAIT: Duration = Duration::from_mins(1);
const NEXT_GIT_TOKEN: &str = "ghp_canaryNext9Z8y7X6w5V4u3T2s";

mod support;

testkit::on_every_engine_and_database! {
    a_run_uses_the_stores_credentials_and_goes_on_with_those_they_are_rotated_to
}

testkit::on_every_database! {
    credentials_are_added_listed_rotated_and_removed_and_never_shown
    a_rotated_key_keeps_the_login_of_its_proxy
    a_lost_or_open_master_key_stops_the_server_with_what_to_do
    a_rekey_that_is_killed_at_any_instant_loses_nothing
}

/// A machine on which no server has run, and its database.
async fn machine(ground: Ground) -> (tempfile::TempDir, ServerSpec, Option<Postgres>) {
    let directory = tempfile::tempdir().unwrap();
    let parts = Parts {
        docker_host: "unix:///nonexistent/docker.sock".to_owned(),
        agents_dir: directory.path().join("agents"),
        shim: env!("CARGO_BIN_EXE_caisson").into(),
        caisson: env!("CARGO_BIN_EXE_caisson").into(),
    };
    let mut spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
    let postgres = ground.database.make(&mut spec).await.unwrap();
    (directory, spec, postgres)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `caisson credential` with a secret on standard input.
fn credential(spec: &ServerSpec, arguments: &[&str], secret: &str) -> Output {
    let mut command = spec.command(&[&["credential"], arguments].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that wants no secret may be gone by now.
    child.stdin.take().unwrap().write_all(secret.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn done(spec: &ServerSpec, arguments: &[&str], secret: &str) -> String {
    let output = credential(spec, arguments, secret);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// How many files there are below a directory, and where a secret stands in them. An image of a volume is sparse, and looked at
/// where it is mounted.
fn hunt(root: &Path, secrets: &[&str]) -> (usize, Vec<String>) {
    let canaries: Vec<_> = secrets.iter().map(|secret| Canary { name: "a secret", secret }).collect();
    let mut hunt = Hunt::new(&canaries).unwrap();
    let files = hunt.tree(root, &["volumes"]);
    (files, hunt.found.into_iter().collect())
}

/// Where a secret stands in a database that is no file.
fn found_in(postgres: Option<&Postgres>, secrets: &[&str]) -> Vec<String> {
    let canaries: Vec<_> = secrets.iter().map(|secret| Canary { name: "a secret", secret }).collect();
    let mut hunt = Hunt::new(&canaries).unwrap();
    if let Some(postgres) = postgres {
        let dump = postgres.dump().unwrap();
        assert!(dump.contains("COPY") && dump.contains(".credential "), "it holds the rows");
        hunt.look("the database", dump.as_bytes());
    }
    hunt.found.into_iter().collect()
}

async fn a_run_uses_the_stores_credentials_and_goes_on_with_those_they_are_rotated_to(ground: Ground) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    // The settings have no git credential, and a model key that the model refuses.
    let empty = tempfile::NamedTempFile::new().unwrap();
    let variables = vec![
        ("CONFIG".to_owned(), empty.path().display().to_string()),
        ("MODEL__API_KEY".to_owned(), "sk-not-this-one".to_owned()),
    ];
    let slow =
        WorldSpec { scenario: "cart-slow".to_owned(), delay_scale: 1.0, variables, ..WorldSpec::on(ground) };
    let world = World::start(&parts, slow).await.unwrap();
    // One comes by the command line, the other over the API; the server runs already.
    let prefix = format!("url_prefix={}", world.host.url(""));
    done(&world.spec, &["add", "git", "--kind", "git_token", "--set", &prefix], &format!("{GIT_TOKEN}\n"));
    let body = json!({"name": "model", "kind": "model_api_key", "secret": {"value": MODEL_KEY}});
    let added = world.api.post("/v1/credentials", &body).await.unwrap();
    assert_eq!(added.status, 403, "the key of a test may not do this: {}", added.body);
    let keeper = world.api_with("credentials").unwrap();
    let added = keeper.post("/v1/credentials", &body).await.unwrap();
    assert_eq!(added.status, 201, "{}", added.body);
    let place = format!("/v1/credentials/{}", added.body["id"].as_str().unwrap());

    let id = world.api.submit(&world.run_body()).await.unwrap();
    let sleeps =
        |event: &Value| event["kind"] == "agent.line" && event["data"].to_string().contains("time.sleep");
    world.api.wait_event(&id, WAIT, sleeps).await.unwrap();
    let before = world.model_calls().len();
    let rotated = keeper.put(&place, &json!({"secret": {"value": NEXT_MODEL_KEY}})).await.unwrap();
    assert_eq!((rotated.status, &rotated.body["version"]), (200, &json!(2)), "{}", rotated.body);
    done(&world.spec, &["rotate", "git"], NEXT_GIT_TOKEN);
    world.host.set_token(NEXT_GIT_TOKEN);
    // A running server follows a master key that another process replaces.
    assert!(done(&world.spec, &["rekey"], "").contains("wraps 2 credentials"));
    a_revoked_key_is_refused_at_once(&world).await;

    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    assert!(run["pushed_commit"].is_string(), "{run:#}");
    let sent: Vec<String> =
        world.model_calls().iter().map(|call| call.x_api_key.as_ref().unwrap().sha256.clone()).collect();
    let digest = |key: &str| hex::encode(Sha256::digest(key));
    assert!(before > 0 && sent.len() > before, "{before} of {} calls", sent.len());
    assert!(sent[..before].iter().all(|sent| *sent == digest(MODEL_KEY)));
    assert!(sent[before..].iter().all(|sent| *sent == digest(NEXT_MODEL_KEY)));
    let shown = world.host.shown_tokens();
    assert_eq!(
        (shown.first().unwrap().as_str(), shown.last().unwrap().as_str()),
        (GIT_TOKEN, NEXT_GIT_TOKEN)
    );

    // What is removed is sent no more: the next call goes with what the settings have.
    let id = world.api.submit(&world.run_body()).await.unwrap();
    world.api.wait_event(&id, WAIT, sleeps).await.unwrap();
    let listed = done(&world.spec, &["list", "--json"], "");
    done(&world.spec, &["remove", "model"], "");
    let refused = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(refused["failure"]["kind"], "provider_auth", "{refused:#}");
    let last = world.model_calls().last().unwrap().x_api_key.as_ref().unwrap().sha256.clone();
    assert_eq!(last, digest("sk-not-this-one"));

    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(listed.iter().all(|one| one["last_used_at_ms"].is_i64() && one["version"] == 2), "{listed:?}");
    let secrets = [MODEL_KEY, NEXT_MODEL_KEY, GIT_TOKEN, NEXT_GIT_TOKEN];
    let session = SessionFiles::open(world.state_dir(), run["session_id"].as_str().unwrap()).unwrap();
    let (own, sessions) = (hunt(world.state_dir(), &secrets), hunt(session.directory(), &secrets));
    assert!(own.0 + sessions.0 > 20 && own.1.is_empty() && sessions.1.is_empty(), "{own:?} {sessions:?}");
    assert_eq!(found_in(world.postgres.as_ref(), &secrets), Vec::<String>::new());
    std::fs::write(world.state_dir().join("planted"), format!("x{NEXT_MODEL_KEY}y")).unwrap();
    assert_eq!(hunt(world.state_dir(), &secrets).1.len(), 1, "the hunt can find");
    let said = format!("{listed:?}{}{}", rotated.body, world.server.log());
    assert!(secrets.iter().all(|secret| !said.contains(secret)));
}

/// By the very next answer, while a run goes on.
async fn a_revoked_key_is_refused_at_once(world: &World) {
    let reader = world.api_with("runs:read").unwrap();
    assert_eq!(reader.get("/v1/runs").await.unwrap().status, 200);
    let keys = text(&world.spec.command(&["key", "list"]).output().unwrap().stdout);
    let key = keys.lines().find(|line| line.contains("runs:read") && !line.contains("runs:write")).unwrap();
    let key = key.split_whitespace().find(|word| word.starts_with("key_")).unwrap();
    let revoked = world.spec.command(&["key", "revoke", key]).output().unwrap();
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    assert_eq!(reader.get("/v1/runs").await.unwrap().status, 401);
}

async fn credentials_are_added_listed_rotated_and_removed_and_never_shown(ground: Ground) {
    let (directory, spec, postgres) = machine(ground).await;
    let prefix = "url_prefix=https://git.example.com/team";
    let added = done(&spec, &["add", "team", "--kind", "git_token", "--set", prefix], "canary-1\n");
    let id = added.split_whitespace().find(|word| word.starts_with("crd_")).unwrap().to_owned();
    let key = directory.path().join("tokens.json");
    std::fs::write(
        &key,
        r#"{"claudeAiOauth":{"accessToken":"canary-2","refreshToken":"canary-3","expiresAt":5,"scopes":[]}}"#,
    )
    .unwrap();
    let token_url = "token_url=https://id.example.com/token";
    let from = key.to_str().unwrap();
    done(&spec, &["add", "oauth", "--kind", "model_oauth", "--set", token_url, "--from", from], "");
    let listed = done(&spec, &["list"], "");
    for part in ["team", "git_token", "https://git.example.com/team", "model_oauth", "never", &id] {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    done(&spec, &["rotate", "team"], "canary-4");
    assert!(done(&spec, &["list"], "").contains("just now"));
    assert!(done(&spec, &["rekey"], "").contains("wraps 2 credentials"));
    let refused: [(&[&str], &str); 8] = [
        (&["add", "team", "--kind", "git_token", "--set", prefix], "already"),
        (&["add", "x", "--kind", "git_token"], "url_prefix: it is required"),
        (&["add", "x", "--kind", "secret"], "model_api_key"),
        (&["add", "x", "--kind", "git_token", "--set", "value=canary"], "there is no field"),
        (&["add", "x", "--kind", "model_oauth", "--set", token_url], "no JSON object"),
        (
            &["add", "x", "--kind", "git_github_app", "--set", "app_id=1", "--set", "installation_id=2"],
            "private_key",
        ),
        (&["rotate", "nobody"], "caisson credential list"),
        (&["remove", "nobody"], "caisson credential list"),
    ];
    for (arguments, part) in refused {
        let output = credential(&spec, arguments, "canary-5");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(part) && !said.contains("canary-5"), "{arguments:?}: {said}");
    }
    let long = credential(&spec, &["rotate", "team"], &"x".repeat(70_000));
    assert!(text(&long.stderr).contains("longer than 65536 bytes"), "{}", text(&long.stderr));
    let state = directory.path().join("state");
    let canaries = ["canary-1", "canary-2", "canary-3", "canary-4", "canary-5"];
    assert_eq!(hunt(&state, &canaries).1, Vec::<String>::new());
    assert_eq!(found_in(postgres.as_ref(), &canaries), Vec::<String>::new());
    done(&spec, &["remove", &id], "");
    assert!(!done(&spec, &["list"], "").contains("git_token"));
}

async fn a_lost_or_open_master_key_stops_the_server_with_what_to_do(ground: Ground) {
    let (directory, spec, _postgres) = machine(ground).await;
    done(&spec, &["add", "model", "--kind", "model_api_key"], "canary-0");
    let key = directory.path().join("state/master.key");
    let saved = std::fs::read(&key).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let serve = || text(&spec.command(&["serve"]).output().unwrap().stderr);
    let said = serve();
    assert!(said.contains("chmod 600"), "{said}");
    std::fs::remove_file(&key).unwrap();
    let said = serve();
    assert!(
        said.contains("restore it from a backup") && said.contains("caisson credential remove"),
        "{said}"
    );
    let doctor = text(&spec.command(&["doctor"]).output().unwrap().stdout);
    assert!(doctor.contains("FAIL  master key"), "{doctor}");
    assert!(!key.exists());
    // Where somebody else keeps it, nothing is made.
    let mut elsewhere = spec.clone();
    elsewhere.set("MASTER_KEY_FILE", directory.path().join("kept.key").to_str().unwrap());
    let said = text(&elsewhere.command(&["serve"]).output().unwrap().stderr);
    assert!(said.contains("kept.key"), "{said}");
    std::fs::write(directory.path().join("kept.key"), saved).unwrap();
    std::fs::set_permissions(
        directory.path().join("kept.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o400),
    )
    .unwrap();
    let doctor = text(&elsewhere.command(&["doctor"]).output().unwrap().stdout);
    assert!(doctor.contains("ok    master key"), "{doctor}");
    assert!(doctor.contains("credential in the store"), "{doctor}");
    // Without the key, what was sealed with it can still be removed, and then a new one is made.
    done(&spec, &["remove", "model"], "");
    done(&spec, &["add", "model", "--kind", "model_api_key"], "canary-0");
    assert!(key.exists());
}

/// Value and proxy's login of the only credential, opened as the next process would.
async fn opened(spec: &ServerSpec, postgres: Option<&Postgres>) -> (String, Option<String>) {
    let store = support::open(spec, postgres, Clock::system()).await;
    store.unlock(MasterKeyFile::in_state_dir(&spec.state_dir)).await.unwrap();
    let project = ProjectId::default_project();
    let id = store.list_credentials(&project).await.unwrap()[0].id.clone();
    let found = store.open_credential(&project, &id).await.unwrap().unwrap();
    store.close().await.unwrap();
    let CredentialSecret::Value { value, proxy_login } = found.secret else { panic!("another kind") };
    (value.expose_secret().to_owned(), proxy_login.map(|login| login.expose_secret().to_owned()))
}

async fn a_rotated_key_keeps_the_login_of_its_proxy(ground: Ground) {
    let (directory, spec, postgres) = machine(ground).await;
    let file = directory.path().join("login");
    let flag = ["--proxy-login-file", file.to_str().unwrap()];
    let login = |text: &str| std::fs::write(&file, text).unwrap();
    login("canary:login-1\n");
    let proxy = ["--kind", "model_api_key", "--set", "outbound_proxy=http://proxy.example.com:3128"];
    done(&spec, &[&["add", "model"], &proxy[..], &flag].concat(), "canary-0");
    done(&spec, &["rotate", "model"], "canary-1");
    let kept = ("canary-1".to_owned(), Some("canary:login-1".to_owned()));
    assert_eq!(opened(&spec, postgres.as_ref()).await, kept);
    login("canary:login-2");
    done(&spec, &[&["rotate", "model"], &flag[..]].concat(), "canary-2");
    let given = ("canary-2".to_owned(), Some("canary:login-2".to_owned()));
    assert_eq!(opened(&spec, postgres.as_ref()).await, given);
}

async fn a_rekey_that_is_killed_at_any_instant_loses_nothing(ground: Ground) {
    const KILLS: u32 = 30;
    let (_directory, spec, postgres) = machine(ground).await;
    done(&spec, &["add", "model", "--kind", "model_api_key"], "canary-0");
    let begun = Instant::now();
    done(&spec, &["rekey"], "");
    let whole = begun.elapsed();
    let (mut killed, mut ended) = (0, 0);
    for kill in 0..KILLS {
        let mut command = spec.command(&["credential", "rekey"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * kill / KILLS);
        child.kill().ok();
        if child.wait().unwrap().success() {
            ended += 1;
        } else {
            killed += 1;
        }
        assert_eq!(opened(&spec, postgres.as_ref()).await.0, "canary-0", "after kill {kill}");
    }
    assert!(killed > 0, "{killed} killed, {ended} ended");
    done(&spec, &["rekey"], "");
    assert_eq!(opened(&spec, postgres.as_ref()).await.0, "canary-0");
    assert!(!spec.state_dir.join("master.key.next").exists());
}
