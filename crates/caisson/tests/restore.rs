//! Backup while a server runs, loss of everything, and restore, by the commands that docs/operations.md gives.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::world::{World, WorldSpec};

const END: Duration = Duration::from_mins(2);
const DOCUMENT: &str = include_str!("../../../docs/operations.md");
const STATE: &str = "/var/lib/caisson";
const BACKUPS: &str = "/var/backups/caisson";

/// The shell blocks of the chapter about backups, in their order: SQLite's backup, `pg_dump`, SQLite's restore, `pg_restore`.
fn blocks() -> [String; 4] {
    let chapter = DOCUMENT.split("\n## Back up and restore\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<_> =
        chapter.split("```sh\n").skip(1).map(|text| text.split("```").next().unwrap()).collect();
    blocks.into_iter().map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

/// Runs a block of the document with this test's places in the place of the document's. What keeps it from going on behind a
/// command that failed is its own.
#[expect(
    clippy::disallowed_methods,
    reason = "a test runs what the document says in a shell, as a reader does"
)]
fn follow(world: &World, script: &str, backups: &Path, url: &str) -> Output {
    let state = world.spec.state_dir.display().to_string();
    let script = script.replace(STATE, &state).replace(BACKUPS, &backups.display().to_string());
    let program = world.spec.parts.caisson.parent().unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-uc", &script]).env("DATABASE_URL", url);
    for (name, value) in &world.spec.variables {
        shell.env(name, value);
    }
    shell.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", program.display()));
    shell.output().unwrap()
}

fn done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The block as it is run on that day.
fn on(day: &str, script: &str) -> String {
    const TODAY: &str = "$(date +%F)";
    assert!(script.contains(TODAY), "{script}");
    script.replace(TODAY, day)
}

/// Everything below a directory, with its bytes.
fn all_of(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(all_of(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}

/// One run before the backup, everything lost, one run after it.
async fn lose_and_restore(mut world: World, [backup, restore]: [String; 2], url: &str, lose: impl FnOnce()) {
    let before = world.api.submit(&world.run_body()).await.unwrap();
    assert_eq!(world.api.wait_end(&before, END).await.unwrap()["status"], "succeeded");
    world.wait_tidy().await.unwrap();
    let events = world.api.events(&before).await.unwrap();
    let backups = world.directory.path().join("backups");
    let key = std::fs::read(world.state_dir().join("master.key")).unwrap();
    done(&follow(&world, &on("2026-09-29", &backup), &backups, url));
    let first = all_of(&backups);
    // More comes, so that whatever is taken again is another.
    let more = world.api.submit(&world.run_body()).await.unwrap();
    assert_eq!(world.api.wait_end(&more, END).await.unwrap()["status"], "succeeded");
    world.wait_tidy().await.unwrap();
    let again = follow(&world, &on("2026-09-29", &backup), &backups, url);
    assert!(!again.status.success(), "the same day twice");
    assert!(all_of(&backups) == first, "nothing is overwritten");
    done(&follow(&world, &on("2026-09-30", &backup), &backups, url));
    assert_eq!(mode(&backups), 0o700);
    for day in ["2026-09-29", "2026-09-30"].map(|day| backups.join(day)) {
        assert_eq!(mode(&day), 0o700);
        let databases = ["caisson.db", "caisson.dump"].map(|name| day.join(name));
        let database = databases.iter().find(|path| path.exists()).unwrap();
        assert_eq!(mode(database), 0o600, "{}", database.display());
    }
    // What comes after the backup is lost.
    world.server.terminate().await.unwrap();
    world.engine.remove_all(&world.spec.parts, &world.spec.state_dir).unwrap();
    std::fs::remove_dir_all(world.state_dir()).unwrap();
    std::fs::create_dir(world.state_dir()).unwrap();
    lose();
    // Whoever restores keeps the modes: the server refuses a key that others can read.
    let (state, key_file) = (world.state_dir().to_owned(), world.state_dir().join("master.key"));
    std::fs::write(&key_file, key).unwrap();
    for (path, mode) in [(&state, 0o700), (&key_file, 0o600)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    done(&follow(&world, &restore, &backups, url));
    world.server = world.spec.start().await.unwrap();
    assert_eq!(world.api.events(&before).await.unwrap(), events, "with the same key");
    assert!(!world.api.events(&more).await.unwrap().is_empty(), "the newest backup");
    let after = world.api.submit(&world.run_body()).await.unwrap();
    let run = world.api.wait_end(&after, END).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}\n{}", world.server.log());
    for command in [["db", "check"], ["audit", "verify"]] {
        let output = world.spec.command(&command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command:?}: {said}");
    }
    world.wait_tidy().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_sqlite_server_is_restored_by_the_documented_commands() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let world = World::start(&parts, WorldSpec::on(Engine::Local)).await.unwrap();
    let [backup, _, restore, _] = blocks();
    lose_and_restore(world, [backup, restore], "", || {}).await;
}

/// A database of the test's own, which goes with it.
struct Database {
    server: String,
    name: String,
}

impl Database {
    #[expect(clippy::disallowed_methods, reason = "where the server for tests is, its environment says")]
    fn make() -> Option<Self> {
        let Ok(server) = std::env::var("TEST_POSTGRES_URL") else {
            assert!(
                std::env::var("TEST_REQUIRE").is_err(),
                "TEST_POSTGRES_URL is not set; run scripts/setup"
            );
            return None;
        };
        let database = Self { server, name: format!("restore_{}", std::process::id()) };
        database.create();
        Some(database)
    }

    fn url(&self) -> String {
        self.server.replacen("/postgres?", &format!("/{}?", self.name), 1)
    }

    #[expect(clippy::disallowed_methods, reason = "psql is started here, with an argument vector")]
    fn admin(&self, sql: &str) {
        let output =
            Command::new("psql").args(["-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.server]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn create(&self) {
        self.admin(&format!("create database {} encoding 'UTF8' template template0", self.name));
    }

    fn lose(&self) {
        self.admin(&format!("drop database if exists {} with (force)", self.name));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.lose();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_postgresql_server_is_restored_by_the_documented_commands() {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let Some(database) = Database::make() else { return };
    let mut spec = WorldSpec::on(Engine::Local);
    spec.variables.push(("DATABASE__URL".to_owned(), database.url()));
    let world = World::start(&parts, spec).await.unwrap();
    let [sqlite, dump, restore, load] = blocks();
    let instead = |text: &str, other: &str| {
        let lines = text
            .lines()
            .map(|line| if line.contains("caisson.db") || line.contains("db backup") { other } else { line });
        lines.collect::<Vec<_>>().join("\n")
    };
    let (backup, restore) = (instead(&sqlite, &dump), instead(&restore, &load));
    lose_and_restore(world, [backup, restore], &database.url(), || {
        database.lose();
        database.create();
    })
    .await;
}
