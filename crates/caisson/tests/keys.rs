//! API keys on the server's machine, and commands that find no database there or are the first to make one: on both databases.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::{Output, Stdio};

use testkit::ground::Ground;
use testkit::parts::Parts;
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;

testkit::on_every_database! {
    keys_are_made_listed_and_revoked
    what_a_full_disk_takes_of_a_commands_output_is_told
    a_reader_that_has_gone_away_is_no_fault
    a_key_for_a_project_that_does_not_exist_is_refused
    commands_on_what_is_not_there_make_nothing
    commands_that_find_a_new_database_at_once_wait_for_one_another
    a_server_that_may_not_migrate_makes_no_tables_in_a_database_that_others_may_use
}

/// What is in a schema, tables and all.
const THINGS: &str =
    "select count(*) from pg_class where relnamespace = cast(current_schema() as regnamespace)";

/// A machine on which no server has run.
struct Machine {
    spec: ServerSpec,
    /// The database, if it is not a file there.
    postgres: Option<Postgres>,
    directory: tempfile::TempDir,
}

impl Machine {
    async fn new(ground: Ground) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let parts = Parts {
            docker_host: "unix:///nonexistent/docker.sock".to_owned(),
            agents_dir: directory.path().join("agents"),
            // Starting a server needs one, running it does not.
            shim: env!("CARGO_BIN_EXE_caisson").into(),
            caisson: env!("CARGO_BIN_EXE_caisson").into(),
        };
        let state = directory.path().join("state");
        let mut spec = ServerSpec::new(&parts, &state, "http://127.0.0.1:9").unwrap();
        let postgres = ground.database.make(&mut spec).await.unwrap();
        Self { spec, postgres, directory }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.spec.command(arguments).output().unwrap()
    }

    /// Everything that is in the database, as it is kept.
    fn stored(&self) -> Vec<u8> {
        match &self.postgres {
            Some(postgres) => postgres.dump().unwrap().into_bytes(),
            None => std::fs::read(self.directory.path().join("state/caisson.db")).unwrap(),
        }
    }

    /// Whether nobody has made anything in the database.
    fn has_none(&self) -> bool {
        match &self.postgres {
            Some(postgres) => postgres.value(THINGS).unwrap() == "0",
            None => !self.directory.path().join("state/caisson.db").exists(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn keys_are_made_listed_and_revoked(ground: Ground) {
    let machine = Machine::new(ground).await;
    let created = machine.run(&["key", "create", "ci", "--scope", "runs:read"]);
    assert!(created.status.success(), "{}", text(&created.stderr));
    let secret = text(&created.stdout).trim().to_owned();
    assert!(secret.starts_with("csk_") && secret.len() > 60);
    let listed = text(&machine.run(&["key", "list"]).stdout);
    assert!(listed.contains("ci") && listed.contains("runs:read") && !listed.contains(&secret), "{listed}");
    let id = listed.split_whitespace().find(|word| word.starts_with("key_")).unwrap();
    assert!(machine.run(&["key", "revoke", id]).status.success());
    assert!(text(&machine.run(&["key", "list"]).stdout).contains("revoked"));
    let again = machine.run(&["key", "revoke", id]);
    assert_eq!(again.status.code(), Some(1));
    let bad = machine.run(&["key", "create", "x", "--scope", "root"]);
    assert!(text(&bad.stderr).contains("runs:read"), "{}", text(&bad.stderr));
    let stored = machine.stored();
    let holds = |part: &str| stored.windows(part.len()).any(|window| window == part.as_bytes());
    assert!(holds(id) && !holds(&secret));
}

async fn what_a_full_disk_takes_of_a_commands_output_is_told(ground: Ground) {
    let machine = Machine::new(ground).await;
    assert!(machine.run(&["key", "create", "first"]).status.success());
    for arguments in [
        &["key", "create", "ci"][..],
        &["key", "create", "ci", "--json"],
        &["key", "list"],
        &["audit", "export"],
        &["openapi"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = machine.spec.command(arguments);
        let output = command.stdout(full).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("No space left"), "{arguments:?}: {said}");
    }
}

/// As `| head` does.
async fn a_reader_that_has_gone_away_is_no_fault(ground: Ground) {
    let machine = Machine::new(ground).await;
    assert!(machine.run(&["key", "create", "first"]).status.success());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = machine.spec.command(&["audit", "export"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

async fn a_key_for_a_project_that_does_not_exist_is_refused(ground: Ground) {
    let machine = Machine::new(ground).await;
    let output = machine.run(&["key", "create", "x", "--project", "other"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there is no project"), "{}", text(&output.stderr));
}

async fn commands_on_what_is_not_there_make_nothing(ground: Ground) {
    let machine = Machine::new(ground).await;
    let remedy = if machine.postgres.is_some() { "CAISSON_DATABASE__URL" } else { "--state-dir" };
    let key = "key_00000000000000000000000000000001";
    for arguments in [
        &["key", "list"][..],
        &["key", "revoke", key],
        &["credential", "list"],
        &["project", "list"],
        &["credential", "remove", "x"],
        &["audit", "verify"],
        &["db", "check"],
        &["gc", "--dry-run"],
    ] {
        let output = machine.run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(
            error.contains("there is no database in") && error.contains(remedy),
            "{arguments:?}: {error}"
        );
    }
    assert!(machine.has_none());
    let made = machine.run(&["db", "migrate", "--json"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&made["made"], &made["migrations"]), (&serde_json::json!(true), &serde_json::Value::Null));
    assert!(!machine.has_none() && machine.run(&["key", "list"]).status.success());
}

async fn commands_that_find_a_new_database_at_once_wait_for_one_another(ground: Ground) {
    for _ in 0..3 {
        let machine = Machine::new(ground).await;
        let mut server = machine.spec.spawn().unwrap();
        let start = |name: usize| {
            let mut command = machine.spec.command(&["key", "create", &format!("k{name}")]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..8).map(start).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        let listed = text(&machine.run(&["key", "list"]).stdout);
        assert_eq!(listed.matches("valid").count(), 8, "{listed}");
        assert!(!server.log().contains("error"), "{}", server.log());
        server.kill().unwrap();
    }
}

/// A file is the server's own, and is made all the same.
async fn a_server_that_may_not_migrate_makes_no_tables_in_a_database_that_others_may_use(ground: Ground) {
    let mut machine = Machine::new(ground).await;
    machine.spec.set("DATABASE__MIGRATE", "false");
    let made = machine.run(&["key", "create", "x"]);
    let said = text(&made.stderr);
    if machine.postgres.is_none() {
        assert!(made.status.success() && !machine.has_none(), "{said}");
        return;
    }
    assert_eq!(made.status.code(), Some(1), "{said}");
    assert!(said.contains("has no tables") && said.contains("caisson db migrate"), "{said}");
    let served = machine.run(&["serve", "--engine=local"]);
    assert_eq!(served.status.code(), Some(1), "{}", text(&served.stderr));
    assert!(machine.has_none());
    assert!(machine.run(&["db", "migrate"]).status.success());
    assert!(machine.run(&["key", "create", "x"]).status.success());
}
