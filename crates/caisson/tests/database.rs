//! The database as a whole, by the command line: migrated, checked, backed up, copied to `PostgreSQL`.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;

/// A database of an earlier version, as the store's own tests have it.
const EARLIER: &str = include_str!("../../store/tests/upgrade/v6.sql");

/// A state directory on which no server runs; commands need none.
struct State {
    spec: ServerSpec,
    directory: tempfile::TempDir,
}

impl State {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let parts = Parts {
            docker_host: "unix:///nonexistent/docker.sock".to_owned(),
            agents_dir: directory.path().join("agents"),
            shim: env!("CARGO_BIN_EXE_caisson").into(),
            caisson: env!("CARGO_BIN_EXE_caisson").into(),
        };
        let spec = ServerSpec::new(&parts, &directory.path().join("state"), "http://127.0.0.1:9").unwrap();
        Self { spec, directory }
    }

    /// One with a key, and so with an audit record and a signed head.
    fn used() -> (Self, String) {
        let state = Self::new();
        let made = state.run(&["key", "create", "ci"]);
        assert!(made.status.success(), "{}", told(&made));
        (state, String::from_utf8(made.stdout).unwrap().trim().to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("state").join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.spec.command(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", told(&output));
        told(&output)
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", told(&output));
        told(&output)
    }

    /// What a server holds as long as it lives.
    fn held(&self) -> File {
        let lock = File::create(self.path("lock")).unwrap();
        lock.lock().unwrap();
        lock
    }
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn migrating_says_what_it_did_and_leaves_a_server_alone() {
    let state = State::new();
    let first = state.done(&["db", "migrate"]);
    assert!(first.contains("was made, at version"), "{first}");
    let again = state.done(&["db", "migrate"]);
    assert!(again.contains("already; nothing was changed"), "{again}");
    let lock = state.held();
    let refused = state.refused(&["db", "migrate"]);
    assert!(refused.contains("another server uses") && refused.contains("not migrated"), "{refused}");
    drop(lock);
}

#[test]
fn a_check_says_what_is_sound_and_ends_with_one_if_something_is_not() {
    let (state, _) = State::used();
    let sound = state.done(&["db", "check"]);
    for part in [
        "ok    version",
        "ok    integrity",
        "ok    references",
        "ok    events",
        "ok    files",
        "signed up to",
    ] {
        assert!(sound.contains(part), "{part} in {sound}");
    }
    let json = state.done(&["db", "check", "--json"]);
    assert_eq!(json.lines().count(), 6, "{json}");
    assert!(json.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{json}");
    let head = fs::read(state.path("audit_head")).unwrap();
    fs::remove_file(state.path("audit_head")).unwrap();
    let cut = state.refused(&["db", "check"]);
    assert!(cut.contains("FAIL  head"), "{cut}");
    fs::write(state.path("audit_head"), head).unwrap();
    damage(&state.path("caisson.db"));
    let damaged = state.refused(&["db", "check"]);
    assert!(damaged.contains("FAIL  integrity") || damaged.contains("corrupt"), "{damaged}");
    let none = State::new();
    let missing = none.refused(&["db", "check"]);
    assert!(missing.contains("there is no database in"), "{missing}");
}

/// Exchanges whole pages, as a disk does that loses them; the first ones stay, so that it is still a database.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let page = 4096;
    for byte in bytes.iter_mut().skip(20 * page).step_by(7) {
        *byte ^= 0x55;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_backup_put_in_the_place_of_a_lost_database_serves_again() {
    let (state, _) = State::used();
    let copy = state.directory.path().join("backup.db");
    // As docs/operations.md says: the small files first, so that the head is never ahead of the database.
    let files = ["server_id", "audit_key", "audit_head"];
    for file in files {
        fs::copy(state.path(file), state.directory.path().join(file)).unwrap();
    }
    let lock = state.held();
    let said = state.done(&["db", "backup", copy.to_str().unwrap()]);
    assert!(said.contains("holds the whole database") && said.contains("master.key"), "{said}");
    drop(lock);
    let again = state.refused(&["db", "backup", copy.to_str().unwrap()]);
    assert!(again.contains("is there already"), "{again}");
    let listed = state.done(&["key", "list"]);
    fs::remove_dir_all(state.path("")).unwrap();
    fs::create_dir(state.path("")).unwrap();
    for file in files {
        fs::copy(state.directory.path().join(file), state.path(file)).unwrap();
    }
    fs::copy(&copy, state.path("caisson.db")).unwrap();
    state.done(&["db", "check"]);
    assert_eq!(state.done(&["key", "list"]), listed);
    state.done(&["key", "create", "more"]);
    state.done(&["db", "check"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_postgresql_opens_with_the_same_keys_and_the_audit_log_goes_on() {
    let (mut state, key) = State::used();
    let Some(postgres) = Postgres::make().await.unwrap() else { return };
    let url = state.directory.path().join("url");
    fs::write(&url, postgres.url()).unwrap();
    let url = url.to_str().unwrap().to_owned();
    let arguments = ["db", "copy", "--to-url-file", url.as_str()];
    let lock = state.held();
    let held = state.refused(&arguments);
    assert!(held.contains("another server uses") && held.contains("stop it"), "{held}");
    drop(lock);
    let listed = state.done(&["key", "list"]);
    let copied = state.done(&arguments);
    assert!(copied.contains("ok    api_key") && copied.contains("database.url_file"), "{copied}");
    let again = state.refused(&arguments);
    assert!(again.contains("not empty") && again.contains("nothing was copied"), "{again}");
    state.spec.set("DATABASE__URL_FILE", &url);
    assert_eq!(state.done(&["key", "list"]), listed);
    state.done(&["key", "create", "more"]);
    let checked = state.done(&["db", "check"]);
    assert!(checked.contains("2 records, signed up to record 2"), "{checked}");
    let backup = state.refused(&["db", "backup", "x.db"]);
    assert!(backup.contains("pg_dump"), "{backup}");
    assert!(key.starts_with("csk_"));
    let none = State::new();
    let missing = none.refused(&["db", "copy", "--to-url-file", &url]);
    assert!(missing.contains("to copy"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_migrates_a_database_that_a_server_of_an_earlier_version_may_use() {
    let state = State::new();
    fs::create_dir(state.path("")).unwrap();
    let options = SqliteConnectOptions::new().filename(state.path("caisson.db")).create_if_missing(true);
    let mut database = options.connect().await.unwrap();
    sqlx::raw_sql(EARLIER).execute(&mut database).await.unwrap();
    let server: String = sqlx::query_scalar("select id from server").fetch_one(&mut database).await.unwrap();
    fs::write(state.path("server_id"), server).unwrap();
    let lock = state.held();
    let newest = async |database: &mut sqlx::SqliteConnection| -> i64 {
        sqlx::query_scalar("select max(version) from _sqlx_migrations").fetch_one(database).await.unwrap()
    };
    let before = newest(&mut database).await;
    let lists = [["key", "list"], ["credential", "list"], ["project", "list"]];
    for arguments in lists.iter().map(|list| &list[..]).chain([
        &["key", "create", "x"][..],
        &["key", "revoke", "key_00000000000000000000000000000001"],
        &["project", "create", "x"],
        &["gc"],
    ]) {
        let said = state.refused(arguments);
        assert!(
            said.contains("earlier version") && said.contains("caisson db migrate"),
            "{arguments:?}: {said}"
        );
    }
    assert_eq!(newest(&mut database).await, before);
    drop(lock);
    // Lists migrate nothing, also where no server is.
    for arguments in lists {
        assert!(state.refused(&arguments).contains("caisson db migrate"), "{arguments:?}");
    }
    assert_eq!(newest(&mut database).await, before);
    state.done(&["key", "create", "x"]);
    assert!(newest(&mut database).await > before);
    let _lock = state.held();
    for arguments in lists {
        state.done(&arguments);
    }
    state.done(&["key", "create", "y"]);
}
