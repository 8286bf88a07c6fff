//! API keys, the audit log and TLS as an operator meets them: the real binary, a real server, a tampered database.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use caisson_domain::id::ProjectId;
use caisson_store::{Actor, Clock, NewAudit};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;

mod support;

testkit::on_every_database! {
    a_tampered_audit_log_is_named_at_its_first_broken_link
    what_is_done_with_credentials_on_the_machine_is_in_the_servers_signed_chain
    the_log_is_exported_and_the_server_signs_what_comes_over_the_api
    a_key_revoked_on_the_machine_opens_nothing_on_the_running_server_within_a_second
    projects_are_made_on_the_machine_and_keep_keys_and_credentials_apart
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/tests/api/tls");

fn spec(directory: &Path) -> ServerSpec {
    let parts = Parts {
        docker_host: "unix:///nonexistent/docker.sock".to_owned(),
        agents_dir: directory.join("agents"),
        // Starting a server needs one, running it does not.
        shim: env!("CARGO_BIN_EXE_caisson").into(),
        caisson: env!("CARGO_BIN_EXE_caisson").into(),
    };
    ServerSpec::new(&parts, &directory.join("state"), "http://127.0.0.1:9").unwrap()
}

/// A machine on which no server has run, and its database.
async fn machine(ground: Ground) -> (tempfile::TempDir, ServerSpec, Option<Postgres>) {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = spec(directory.path());
    let postgres = ground.database.make(&mut spec).await.unwrap();
    (directory, spec, postgres)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(spec: &ServerSpec, arguments: &[&str]) -> Output {
    spec.command(arguments).output().unwrap()
}

/// What a command said that succeeded.
fn said(spec: &ServerSpec, arguments: &[&str]) -> String {
    let output = run(spec, arguments);
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn key(spec: &ServerSpec, name: &str, scope: &str) -> String {
    said(spec, &["key", "create", name, "--scope", scope]).trim().to_owned()
}

async fn answering(api: &testkit::api::Api) {
    let start = Instant::now();
    while api.get("/healthz").await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "the server does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A server's machine whose audit log somebody with all rights on the database has changed.
struct Tampered {
    spec: ServerSpec,
    /// Its database, if it is not a file of the state directory.
    _postgres: Option<Postgres>,
}

/// A copy of the state directory and of the database, in which somebody with all rights on the database ran `sql`.
async fn tampered(directory: &Path, spec: &ServerSpec, postgres: Option<&Postgres>, sql: &str) -> Tampered {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let state_dir = directory.join(format!("tampered-{number}"));
    std::fs::create_dir(&state_dir).unwrap();
    for entry in std::fs::read_dir(&spec.state_dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), state_dir.join(entry.file_name())).unwrap();
        }
    }
    let mut spec = ServerSpec { state_dir, ..spec.clone() };
    let Some(postgres) = postgres else {
        tamper_with_file(&spec.state_dir.join("caisson.db"), sql).await;
        return Tampered { spec, _postgres: None };
    };
    let copy = postgres.copy().await.unwrap();
    copy.value(&format!("set session_replication_role = replica; {sql}")).unwrap();
    spec.set("DATABASE__URL", &copy.url());
    Tampered { spec, _postgres: Some(copy) }
}

async fn tamper_with_file(file: &Path, sql: &str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = options.foreign_keys(false).connect().await.unwrap();
    for trigger in ["audit_kept", "audit_left", "audit_appended"] {
        let drop = format!("drop trigger {trigger}");
        sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
    }
    for statement in sql.split(';') {
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

async fn a_tampered_audit_log_is_named_at_its_first_broken_link(ground: Ground) {
    let (directory, mut spec, postgres) = machine(ground).await;
    let empty = run(&spec, &["audit", "verify"]);
    assert!(text(&empty.stderr).contains("there is no database"), "{}", text(&empty.stderr));
    for name in ["a", "b", "c", "d"] {
        key(&spec, name, "audit");
    }
    let whole = said(&spec, &["audit", "verify"]);
    assert!(whole.starts_with("ok    srv_") && whole.contains("4 records, signed up to record 4"), "{whole}");
    let mode = std::fs::metadata(spec.state_dir.join("audit_key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A head that was kept elsewhere earlier.
    let early = directory.path().join("early-head");
    std::fs::copy(spec.state_dir.join("audit_head"), &early).unwrap();
    key(&spec, "e", "audit");
    said(&spec, &["audit", "verify", "--head", early.to_str().unwrap()]);

    for (sql, first) in [
        ("update audit set actor = 'nobody' where seq = 3", "record 3 does not have its hash"),
        ("delete from audit where seq = 2", "record 2 is missing"),
        (
            "update audit set seq = 9 where seq = 3; update audit set seq = 3 where seq = 4; \
             update audit set seq = 4 where seq = 9",
            "record 3 does not have its hash",
        ),
        ("delete from audit where seq >= 4", "record 4 is missing: the signed head is record 5"),
        ("delete from audit", "record 1 is missing: the signed head is record 5"),
    ] {
        let bad = tampered(directory.path(), &spec, postgres.as_ref(), sql).await;
        let output = run(&bad.spec, &["audit", "verify"]);
        let told = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{sql}: {told}");
        assert!(told.starts_with("FAIL  srv_") && told.contains(first), "{sql}: {told}");
        let json = text(&run(&bad.spec, &["audit", "verify", "--json"]).stdout);
        let json: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert!(json["fault"].as_str().unwrap().contains(first), "{json}");
    }
    // The tail is cut, the head with it, and the log goes on: the head that was kept elsewhere knows.
    let cut = tampered(directory.path(), &spec, postgres.as_ref(), "delete from audit where seq >= 4").await;
    std::fs::remove_file(cut.spec.state_dir.join("audit_head")).unwrap();
    let output = run(&cut.spec, &["audit", "verify"]);
    assert!(
        text(&output.stdout).contains("is missing") && output.status.code() == Some(1),
        "{}",
        text(&output.stdout)
    );
    key(&cut.spec, "x", "audit");
    said(&cut.spec, &["audit", "verify"]);
    let output = run(&cut.spec, &["audit", "verify", "--head", early.to_str().unwrap()]);
    assert!(
        text(&output.stdout).contains("record 4 is not the one that was signed"),
        "{}",
        text(&output.stdout)
    );

    let doctor = text(&run(&cut.spec, &["doctor"]).stdout);
    assert!(doctor.contains("ok    audit log     signed up to record"), "{doctor}");

    // A server on a cut log says so and keeps the evidence.
    let cut = tampered(directory.path(), &spec, postgres.as_ref(), "delete from audit where seq >= 4").await;
    let doctor = text(&run(&cut.spec, &["doctor"]).stdout);
    assert!(doctor.contains("FAIL  audit log     the log does not have record 5"), "{doctor}");
    let head = std::fs::read(cut.spec.state_dir.join("audit_head")).unwrap();
    let mut server = cut.spec.spawn().unwrap();
    answering(&testkit::api::Api::new(&server.base, "none").unwrap()).await;
    assert!(server.terminate().await.unwrap().success());
    assert!(server.log().contains("does not have record 5 as it was signed"), "{}", server.log());
    assert_eq!(std::fs::read(cut.spec.state_dir.join("audit_head")).unwrap(), head);

    spec.set("AUDIT_HEAD", directory.path().join("elsewhere").to_str().unwrap());
    let missing = run(&spec, &["audit", "verify"]);
    assert!(text(&missing.stdout).contains("elsewhere\" is missing"), "{}", text(&missing.stdout));
    key(&spec, "f", "audit");
    assert!(said(&spec, &["audit", "verify"]).contains("signed up to record 6"));
}

async fn what_is_done_with_credentials_on_the_machine_is_in_the_servers_signed_chain(ground: Ground) {
    let (directory, spec, postgres) = machine(ground).await;
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "ghp_0123456789abcdef\n").unwrap();
    let from = ["--from", secret.to_str().unwrap()];
    let kind = ["--kind", "git_token", "--set", "url_prefix=https://git.example.com/"];
    for (number, arguments) in [
        [&["credential", "add", "git"], &from[..], &kind[..]].concat(),
        [&["credential", "rotate", "git"], &from[..]].concat(),
        vec!["credential", "rekey"],
        vec!["credential", "remove", "git"],
    ]
    .into_iter()
    .enumerate()
    {
        said(&spec, &arguments);
        let told = said(&spec, &["audit", "verify"]);
        let wanted = format!("{0} records, signed up to record {0}\n", number + 1);
        assert!(told.starts_with("ok    srv_") && told.ends_with(&wanted), "{arguments:?}: {told}");
    }
    assert!(!run(&spec, &["credential", "remove", "git"]).status.success());
    let bad = tampered(directory.path(), &spec, postgres.as_ref(), "delete from audit where seq >= 3").await;
    let output = run(&bad.spec, &["audit", "verify"]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("record 3 is missing: the signed head is record 4"), "{told}");
    // As commands of earlier versions recorded it: a chain of its own, which no head signs.
    let store = support::open(&spec, postgres.as_ref(), Clock::system()).await;
    store
        .append_audit(&NewAudit::new(&ProjectId::default_project(), Actor::Operator, "credential.add", "x"))
        .await
        .unwrap();
    store.close().await.unwrap();
    let told = said(&spec, &["audit", "verify"]);
    assert!(told.contains("warn  local: 1 records") && !told.contains("ok    local"), "{told}");
}

async fn the_log_is_exported_and_the_server_signs_what_comes_over_the_api(ground: Ground) {
    let (_directory, spec, _postgres) = machine(ground).await;
    let admin = key(&spec, "admin", "admin");
    let mut server = spec.spawn().unwrap();
    let api = testkit::api::Api::new(&server.base, &admin).unwrap();
    answering(&api).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let made = http
        .post(format!("{}/v1/keys", server.base))
        .bearer_auth(&admin)
        .json(&json!({"name": "made over the API \u{9b}31m\u{202e}"}))
        .send()
        .await
        .unwrap();
    // Control characters are refused, marks of direction are not: the terminal is kept from them.
    assert_eq!(made.status().as_u16(), 422);
    let name = "over the API \u{202e}evil";
    let made = http.post(format!("{}/v1/keys", server.base)).bearer_auth(&admin).json(&json!({"name": name}));
    assert_eq!(made.send().await.unwrap().status().as_u16(), 201);
    let start = Instant::now();
    loop {
        let verified = said(&spec, &["audit", "verify"]);
        if verified.contains("2 records, signed up to record 2") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{verified}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let listed = said(&spec, &["key", "list"]);
    assert!(listed.contains("over the API evil"), "{listed}");
    let exported = said(&spec, &["audit", "export"]);
    let records: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2);
    assert_eq!(
        (records[1]["action"].as_str(), records[1]["actor_name"].as_str()),
        (Some("key.create"), Some("admin"))
    );
    assert_eq!(records[1]["prev_hash"], records[0]["hash"]);
    assert_eq!(said(&spec, &["audit", "export", "--after", "1"]).lines().count(), 1);
    assert!(server.terminate().await.unwrap().success());
}

async fn a_key_revoked_on_the_machine_opens_nothing_on_the_running_server_within_a_second(ground: Ground) {
    let (_directory, spec, _postgres) = machine(ground).await;
    let secret = said(&spec, &["key", "create", "ci", "--expires", "30d"]).trim().to_owned();
    let mut server = spec.spawn().unwrap();
    answering(&testkit::api::Api::new(&server.base, &secret).unwrap()).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let status = async || {
        let request = http.get(format!("{}/v1/runs", server.base)).bearer_auth(&secret);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status().await, 200);
    let listed = said(&spec, &["key", "list"]);
    let id = listed.split_whitespace().find(|word| word.starts_with("key_")).unwrap().to_owned();
    assert!(listed.contains('Z') && listed.contains("valid"), "{listed}");
    said(&spec, &["key", "revoke", &id]);
    let begun = Instant::now();
    assert_eq!(status().await, 401);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let bad = run(&spec, &["key", "create", "x", "--expires", "soon"]);
    assert!(bad.status.code() == Some(2) && text(&bad.stderr).contains("30d"), "{}", text(&bad.stderr));
    assert!(server.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_speaks_tls_and_the_command_line_knows_its_authority() {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = spec(directory.path());
    let secret = key(&spec, "ci", "runs:read");
    let place = |name: &str| directory.path().join(name);
    for (from, to) in [("one.pem", "cert.pem"), ("one.key", "key.pem")] {
        std::fs::copy(PathBuf::from(FIXTURES).join(from), place(to)).unwrap();
    }
    spec.set("TLS__CERT_FILE", place("cert.pem").to_str().unwrap());
    let half = run(&spec, &["serve"]);
    assert!(text(&half.stderr).contains("both or neither"), "{}", text(&half.stderr));
    spec.set("TLS__KEY_FILE", place("key.pem").to_str().unwrap());
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut server = spec.spawn().unwrap();
    let authority =
        reqwest::Certificate::from_pem(&std::fs::read(format!("{FIXTURES}/ca.pem")).unwrap()).unwrap();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).build().unwrap();
    let url = format!("https://{}", spec.listen);
    let start = Instant::now();
    while http.get(format!("{url}/healthz")).send().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(server.log().contains("listening on https://"), "{}", server.log());
    let ps = |spec: &ServerSpec, url: &str, ca: Option<&str>| {
        let mut command = spec.command(&["ps", "--json"]);
        command.env("CAISSON_URL", url).env("CAISSON_API_KEY", &secret);
        if let Some(ca) = ca {
            command.env("CAISSON_CA_FILE", ca);
        }
        command.output().unwrap()
    };
    let authority = format!("{FIXTURES}/ca.pem");
    let known = ps(&spec, &url, Some(&authority));
    assert!(known.status.success(), "{}", text(&known.stderr));
    let fails = |spec: &ServerSpec, url: &str, part: &str| {
        let output = ps(spec, url, None);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(part), "{url}: {told}");
        assert!(!told.contains("start one with"), "{url}: {told}");
    };
    // An authority that nobody named is not trusted.
    fails(&spec, &url, "--ca-file or CAISSON_CA_FILE");
    fails(&spec, &url.replace("https", "http"), "set CAISSON_URL to https://");
    assert!(server.terminate().await.unwrap().success());

    let gone = text(&ps(&spec, &url, Some(&authority)).stderr);
    assert!(gone.contains("no server answers") && gone.contains("start one with"), "{gone}");
    spec.variables.retain(|(name, _)| !name.starts_with("CAISSON_TLS__"));
    let mut plain = spec.spawn().unwrap();
    answering(&testkit::api::Api::new(&plain.base, &secret).unwrap()).await;
    fails(&spec, &url, "set CAISSON_URL to http://");
    assert!(plain.terminate().await.unwrap().success());
}

#[test]
fn the_doctor_tells_of_what_is_open_wider_than_most_mean_it_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = spec(directory.path());
    key(&spec, "for ever", "runs:read");
    said(&spec, &["key", "create", "short", "--expires", "1d"]);
    said(&spec, &["project", "create", "team-a"]);
    said(&spec, &["key", "create", "theirs", "--project", "team-a"]);
    let secret = directory.path().join("model-key");
    std::fs::write(&secret, "k").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    spec.variables.retain(|(name, _)| name != "CAISSON_MODEL__API_KEY");
    spec.set("MODEL__API_KEY_FILE", secret.to_str().unwrap());
    let told = text(&run(&spec, &["doctor", "--listen", "0.0.0.0:0"]).stdout);
    let line =
        |start: &str, part: &str| told.lines().any(|line| line.starts_with(start) && line.contains(part));
    assert!(line("warn  exposed", "0.0.0.0:0 without TLS"), "{told}");
    assert!(line("warn  exposed", "model-key\" has mode 0644"), "{told}");
    assert!(
        line("note  API keys", "\"for ever\", \"theirs\" of team-a never expire") && !line("note", "short"),
        "{told}"
    );
    assert!(line("ok    TLS", "plain HTTP") && line("ok    API keys", "3 valid"), "{told}");
    let told = text(&run(&spec, &["doctor", "--listen", "127.0.0.1:0"]).stdout);
    assert!(!told.contains("without TLS"), "{told}");
    spec.set("TLS__CERT_FILE", secret.to_str().unwrap());
    spec.set("TLS__KEY_FILE", secret.to_str().unwrap());
    let told = text(&run(&spec, &["doctor"]).stdout);
    assert!(told.lines().any(|line| line.starts_with("FAIL  TLS")), "{told}");
}

async fn projects_are_made_on_the_machine_and_keep_keys_and_credentials_apart(ground: Ground) {
    let (directory, spec, _postgres) = machine(ground).await;
    let refused = |arguments: &[&str], why: &str| {
        let output = run(&spec, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    };
    assert_eq!(said(&spec, &["project", "create", "team-a"]), "project team-a is made\n");
    refused(&["project", "create", "team-a"], "there is a project \"team-a\" already");
    refused(&["project", "create", "Team A"], "is not a project name");
    refused(&["key", "create", "x", "--project", "team-b"], "`caisson project create` makes one");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "sk-ant-a-secret-of-team-a").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let add = [
        "credential",
        "add",
        "model",
        "--kind",
        "model_api_key",
        "--from",
        secret.to_str().unwrap(),
        "--project",
    ];
    refused(&[&add[..], &["team-b"]].concat(), "there is no project \"team-b\"");
    said(&spec, &[&add[..], &["team-a"]].concat());
    said(&spec, &["key", "create", "boss", "--scope", "admin", "--project", "team-a"]);
    let listed = said(&spec, &["project", "list", "--json"]);
    let names: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        names.iter().map(|one| one["id"].as_str().unwrap()).collect::<Vec<_>>(),
        ["default", "team-a"]
    );
    for list in ["key", "credential"] {
        let (own, other) =
            (said(&spec, &[list, "list", "--project", "team-a"]), said(&spec, &[list, "list"]));
        assert_eq!((own.lines().count(), other.lines().count()), (2, 1), "{own}{other}");
    }
    let audit: Vec<Value> =
        said(&spec, &["audit", "export"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        audit.iter().map(|one| (one["project"].as_str().unwrap(), one["action"].as_str().unwrap())).collect();
    assert!(told.contains(&("default", "project.create")), "{told:?}");
    assert!(
        told.contains(&("team-a", "key.create")) && told.contains(&("team-a", "credential.add")),
        "{told:?}"
    );
    said(&spec, &["audit", "verify"]);
}
