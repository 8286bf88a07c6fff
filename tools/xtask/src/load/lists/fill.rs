//! Copies of a run, written past the server.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::postgres::Postgres;

/// What fills an `SQLite` database.
const SCRIPT: &str = include_str!("fill.py");
/// The same for `PostgreSQL`: the copies with the numbers from `{first}` to `{last}` of the run `{run}`.
const STATEMENTS: &str = include_str!("fill.sql");
/// Copies of one transaction: whoever interrupts waits no longer than for these.
const CHUNK: u32 = 5_000;
/// Time limit of everything.
const FILLING: Duration = Duration::from_mins(5);

/// Fills the file of a server that is not running.
pub(super) async fn sqlite(state_dir: &Path, run: &str, count: u32) -> anyhow::Result<()> {
    let script = state_dir.join("fill.py");
    std::fs::write(&script, SCRIPT)?;
    #[expect(clippy::disallowed_methods, reason = "Python is started here, with an argument vector")]
    let mut command = tokio::process::Command::new("/usr/bin/python3");
    command.arg(&script).arg(state_dir.join("caisson.db")).args([run, &count.to_string()]).kill_on_drop(true);
    let done = tokio::time::timeout(FILLING, command.output()).await;
    let output = done.with_context(|| format!("filling took longer than {FILLING:?}"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the database was not filled: {said}");
    Ok(())
}

/// Fills a schema, and counts what is in it as the server's autovacuum does after a while.
pub(super) async fn postgres(postgres: &Postgres, run: &str, count: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    for first in (0..count).step_by(CHUNK as usize) {
        ensure!(began.elapsed() < FILLING, "filling took longer than {FILLING:?}");
        let last = (first + CHUNK).min(count) - 1;
        let numbers = STATEMENTS.replace("{first}", &first.to_string()).replace("{last}", &last.to_string());
        postgres.value(&numbers.replace("{run}", run))?;
        tokio::task::yield_now().await;
    }
    postgres.value("analyze").map(drop)
}
