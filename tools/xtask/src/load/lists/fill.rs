//! Copies of a run and their events, written past the server.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::postgres::Postgres;

/// What fills an `SQLite` database.
const SCRIPT: &str = include_str!("fill.py");
/// The same for `PostgreSQL`: the copies with the numbers from `{first}` to `{last}` of the run `{run}`.
const STATEMENTS: &str = include_str!("fill.sql");
/// The same of the events of some copies.
const EVENTS: &str = include_str!("events.sql");
/// The same of API keys.
const KEYS: &str = include_str!("keys.sql");
/// Copies of one transaction: whoever interrupts waits no longer than for these, or for as many events of one.
const CHUNK: u32 = 5_000;
/// Events of one copy that one transaction writes.
const EVENTS_CHUNK: u32 = 250_000;
/// Time limit of everything.
const FILLING: Duration = Duration::from_mins(8);

/// What a database is filled with.
#[derive(Debug)]
pub(super) struct Copies {
    /// The run that is copied, and when it was made, Unix ms.
    pub(super) run: String,
    pub(super) created_ms: i64,
    /// How many copies there are, a second apart, and how many events of each.
    pub(super) count: u32,
    pub(super) events: u32,
    /// Events of the newest copy instead. They are written last.
    pub(super) long: u32,
}

impl Copies {
    /// The id of a copy; the newest one has the number 0.
    pub(super) fn id(&self, number: u32) -> String {
        format!("run_{:012x}70008000{number:012x}", self.at_ms(number))
    }

    /// When a copy was made, Unix ms.
    pub(super) fn at_ms(&self, number: u32) -> i64 {
        self.created_ms - (i64::from(number) + 1) * 1000
    }
}

/// Fills the file of a server that is not running.
pub(super) async fn sqlite(state_dir: &Path, copies: &Copies) -> anyhow::Result<()> {
    let script = state_dir.join("fill.py");
    std::fs::write(&script, SCRIPT)?;
    #[expect(clippy::disallowed_methods, reason = "Python is started here, with an argument vector")]
    let mut command = tokio::process::Command::new("/usr/bin/python3");
    let Copies { run, count, events, long, .. } = copies;
    command.arg(&script).arg(state_dir.join("caisson.db")).arg(run).kill_on_drop(true);
    command.args([count, events, long].map(u32::to_string));
    let done = tokio::time::timeout(FILLING, command.output()).await;
    let output = done.with_context(|| format!("filling took longer than {FILLING:?}"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the database was not filled: {said}");
    Ok(())
}

/// Fills a schema, counts what is in it as the server's autovacuum does after a while, and has it on the disk.
pub(super) async fn postgres(postgres: &Postgres, copies: &Copies) -> anyhow::Result<()> {
    let began = Instant::now();
    for statements in statements(copies) {
        ensure!(began.elapsed() < FILLING, "filling took longer than {FILLING:?}");
        postgres.value(&statements)?;
        tokio::task::yield_now().await;
    }
    for last in ["analyze", "checkpoint"] {
        postgres.value(last)?;
    }
    Ok(())
}

/// One transaction after another.
fn statements(copies: &Copies) -> impl Iterator<Item = String> {
    let Copies { run, count, events, long, .. } = copies;
    let put = |text: &str, values: &[(&str, String)]| {
        values.iter().fold(text.to_owned(), |text, (mark, value)| text.replace(mark, value))
    };
    let runs = (0..*count).step_by(CHUNK as usize).map(move |first| {
        let last = (first + CHUNK).min(*count) - 1;
        let numbers = [("{first}", first), ("{last}", last), ("{events}", *events), ("{long}", *long)];
        put(STATEMENTS, &numbers.map(|(mark, number)| (mark, number.to_string()))).replace("{run}", run)
    });
    let of = move |[oldest, newest]: [u32; 2], first: u32, last: u32| {
        let ids = [("{oldest}", copies.id(oldest)), ("{newest}", copies.id(newest))];
        let numbers = [("{first}", first.to_string()), ("{last}", last.to_string())];
        put(EVENTS, &[ids, numbers].concat())
    };
    let short = (1..*count).rev().step_by(CHUNK as usize);
    let short = short.map(move |oldest| of([oldest, oldest.saturating_sub(CHUNK - 1).max(1)], 1, *events));
    let long = (1..=*long)
        .step_by(EVENTS_CHUNK as usize)
        .map(move |first| of([0, 0], first, (first + EVENTS_CHUNK - 1).min(*long)));
    runs.chain([KEYS.to_owned()]).chain(short).chain(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_has_its_events_and_the_newest_ones_come_last() {
        let run = "run_x".to_owned();
        let copies = Copies { run, created_ms: 20_000_000, count: 10_001, events: 40, long: 300_000 };
        let all: Vec<String> = statements(&copies).collect();
        assert_eq!(all.len(), 3 + 1 + 2 + 2);
        for (at, range) in [(0, "0 as bigint), 4999)"), (2, "10000 as bigint), 10000)")] {
            assert!(all[at].contains(range), "{range} in {}", all[at]);
        }
        let between = |oldest: u32, newest: u32| {
            format!("run.id between '{}' and '{}'", copies.id(oldest), copies.id(newest))
        };
        for (at, runs, numbers) in [
            (4, between(10_000, 5_001), "(1, 40)"),
            (5, between(5_000, 1), "(1, 40)"),
            (6, between(0, 0), "(1, 250000)"),
            (7, between(0, 0), "(250001, 300000)"),
        ] {
            assert!(all[at].contains(&runs) && all[at].contains(numbers), "{runs}, {numbers} in {}", all[at]);
        }
        assert!(copies.id(1) < copies.id(0), "ids order by time");
        for mark in ["{run}", "{first}", "{last}", "{events}", "{long}", "{oldest}", "{newest}"] {
            assert!(all.iter().all(|text| !text.contains(mark)), "{mark} is left");
        }
    }
}
