//! What `bench` and `load` both measure with: clocks, the kernel's view of a process, a run's live stream, statistics,
//! tables, and the document that the figures go to.

pub(crate) mod bar;
pub(crate) mod clock;
pub(crate) mod docker;
pub(crate) mod document;
pub(crate) mod machine;
pub(crate) mod proc;
pub(crate) mod reader;
pub(crate) mod stats;
pub(crate) mod table;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use bar::Bar;

/// The workspace, seen from this crate.
pub(crate) const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The last lines of a task, which a script looks for: `TASK ok`, or one for each bar that was missed. Says whether all are
/// met.
pub(crate) fn conclude(task: &str, bars: &[Bar]) -> bool {
    let short: Vec<_> = bars.iter().filter(|bar| !bar.is_met()).collect();
    if short.is_empty() {
        say(&format!("{task} ok"));
    }
    for bar in &short {
        say(&format!("{task} short: {}", bar.short()));
    }
    short.is_empty()
}

/// Gives up when somebody asks for it or the time is over, so that whatever was started is taken away all the same.
///
/// # Errors
/// That of `work`, or why it was given up.
pub(crate) async fn unless_interrupted<T>(
    limit: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("told to end"),
        () = tokio::time::sleep(limit) => bail!("it took longer than {limit:?}"),
    }
}

/// Puts figures into their part of its document.
///
/// # Errors
/// The document cannot be read or written, or does not have the part's marks.
pub(crate) fn write_figures(workspace: &Path, part: document::Part, text: &str) -> anyhow::Result<()> {
    let (path, file) = (workspace.join(part.file()), part.file());
    let document = std::fs::read_to_string(&path).with_context(|| format!("{file} cannot be read"))?;
    std::fs::write(&path, document::replace(&document, part, text)?)?;
    say(&format!("wrote {file}"));
    Ok(())
}

/// The end of a log, for whoever has to find out why something failed.
#[must_use]
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Cores of the machine.
#[must_use]
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Prints for whoever reads the figures.
#[expect(clippy::print_stdout, reason = "the figures are what the command is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
