//! The load driver itself, in its short form: a few sessions and small numbers, without bars on times.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::docker::containers_of;
use testkit::engine::signal;
use testkit::parts::Parts;

/// How long a batch's sandboxes may take to be there.
const SANDBOXES: Duration = Duration::from_mins(1);
/// How long an interrupted driver may take to take everything away.
const AWAY: Duration = Duration::from_mins(1);

/// The server's binary beside this test's; a build of the workspace puts it there.
fn caisson() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("caisson");
    assert!(path.is_file(), "\"{}\" is not built; run cargo build -p caisson", path.display());
    path
}

fn driver(parts: &Parts, arguments: &[&str]) -> Child {
    #[expect(clippy::disallowed_methods, reason = "the driver is started here, with an argument vector")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["load", "--short", "--caisson"]).arg(&parts.caisson).arg("--shim").arg(&parts.shim);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn the_short_form_does_every_part_and_loses_nothing() {
    let Some(parts) = Parts::find(caisson().to_str().unwrap()) else { return };
    let output = driver(&parts, &[]).wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.lines().last(), Some("load ok"), "{said}");
    for table in [
        "**Sessions at the same time**",
        "**A server without runs**",
        "**Events of 500 bytes, 100 in a batch, of 3 sessions, SQLite**",
        "**Events of 500 bytes, 100 in a batch, of 3 sessions, PostgreSQL**",
        "**Lists over 2000 runs, SQLite, ms**",
        "**Lists over 2000 runs, PostgreSQL, ms**",
        "**Pages of 100 of 30000 events, of which one run has 10010, SQLite, ms**",
        "**Pages of 100 of 30000 events, of which one run has 10010, PostgreSQL, ms**",
        "\nPostgreSQL 1",
        "\n### Events of a run, behind one of them\n\nSQLite:\n\n```text\nSEARCH event USING INDEX event_of_run",
        "\nPostgreSQL, planned for these values, ",
        "| sessions_failed      |      0 |  at most 0 | met |",
        "| sessions_with_gaps   |      0 |  at most 0 | met |",
        "| agents_at_one_moment |      2 | at least 2 | met |",
        "| events_lost          |      0 |  at most 0 | met |",
    ] {
        assert!(said.contains(table), "{table} in {said}");
    }
    assert!(!place(said.lines().next().unwrap()).exists(), "something is left");
}

#[test]
fn an_interrupted_driver_takes_everything_away() {
    let Some(parts) = Parts::find(caisson().to_str().unwrap()) else { return };
    let mut driver = driver(&parts, &["--only", "sessions"]);
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let place = place(&lines.next().unwrap().unwrap());
    let state_dir = place.join("state-2-real");
    let began = Instant::now();
    let server = loop {
        let server = std::fs::read_to_string(state_dir.join("server_id")).unwrap_or_default();
        if !server.is_empty() && !containers_of(&parts, server.trim()).unwrap().is_empty() {
            break server;
        }
        assert!(began.elapsed() < SANDBOXES, "no sandbox came");
        std::thread::sleep(Duration::from_millis(50));
    };
    signal(driver.id(), "INT").unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = driver.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < AWAY, "the driver did not end");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status.code(), Some(2));
    assert_eq!(containers_of(&parts, server.trim()).unwrap(), Vec::<String>::new());
    assert!(!place.exists(), "something is left in {}", place.display());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.to_str().unwrap()), "something is still mounted: {mounts}");
}

/// The directory that the driver says it works in.
fn place(line: &str) -> PathBuf {
    let place = line.strip_prefix("working in ").unwrap_or_else(|| panic!("{line}"));
    PathBuf::from(place)
}
