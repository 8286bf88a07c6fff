//! `xtask bench`: the demo's job through the service against the same steps by a shell script, and what else
//! `docs/benchmarks.md` tells. Everything is measured in one run, since machines drift and only ratios last.

#[cfg(test)]
mod alike;
mod clock;
mod docker;
mod document;
mod engines;
mod fair;
mod figures;
mod measure;
pub(crate) mod model;
mod proc;
mod reader;
mod report;
mod requests;
mod sampler;
mod scenarios;
mod script;
mod service;
mod stage;
mod stand_in;
mod stats;
mod timeline;
mod words;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use testkit::parts::Parts;
use tokio::signal::unix::{SignalKind, signal};

use figures::{Bar, Figures};
use stage::Stage;

/// Fewest pairs from which a median is taken.
const PAIRS_MIN: u32 = 7;
/// Most pairs.
const PAIRS_MAX: u32 = 100;
/// Time limit of everything together.
const WHOLE: Duration = Duration::from_mins(30);
/// The workspace, seen from this crate.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// The document with the figures.
const DOCUMENT: &str = "docs/benchmarks.md";

/// Flags of `bench`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Pairs of service and script that count; one more comes first and does not.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(i64::from(PAIRS_MIN)..=i64::from(PAIRS_MAX)))]
    pairs: u32,
    /// Write the figures into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// The server's binary.
    #[arg(long, value_name = "FILE", default_value = "target/release/caisson")]
    caisson: PathBuf,
    /// The shim.
    #[arg(long, value_name = "FILE", default_value = "target/x86_64-unknown-linux-gnu/shim/caisson-shim")]
    shim: PathBuf,
}

/// Measures, prints, and says whether every bar is met.
///
/// # Errors
/// A part is missing, or a measurement did not come out as it must. Nothing is left behind.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let workspace = Path::new(WORKSPACE).canonicalize()?;
    let [caisson, shim] = [&options.caisson, &options.shim].map(|path| workspace.join(path));
    for binary in [&caisson, &shim] {
        ensure!(binary.is_file(), "\"{}\" is not built; run `make bench`", binary.display());
    }
    let parts = Parts::require(caisson.to_str().context("the workspace's path is not UTF-8")?)?;
    let stage =
        Stage::open(&parts, &workspace.join(".caisson"), &workspace.join("examples/cart"), shim).await?;
    let measured = unless_interrupted(measure::all(&stage, options.pairs)).await;
    let closed = stage.close().await;
    let figures = measured?;
    closed?;

    let text = report::render(&figures, &command(options));
    say(&text);
    if options.write {
        let path = workspace.join(DOCUMENT);
        let document =
            std::fs::read_to_string(&path).with_context(|| format!("{DOCUMENT} cannot be read"))?;
        std::fs::write(&path, document::replace(&document, &text)?)?;
        say(&format!("wrote {DOCUMENT}"));
    }
    Ok(conclude(&figures))
}

/// The last lines: what a script looks for.
fn conclude(figures: &Figures) -> bool {
    let short: Vec<_> = figures.bars().iter().filter(|bar| !bar.is_met()).map(Bar::short).collect();
    if short.is_empty() {
        say("bench ok");
    }
    for line in &short {
        say(line);
    }
    short.is_empty()
}

/// Gives up when somebody asks for it or the time is over, so that whatever was started is taken away all the same.
async fn unless_interrupted(
    measuring: impl Future<Output = anyhow::Result<Figures>>,
) -> anyhow::Result<Figures> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        measured = measuring => measured,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("told to end"),
        () = tokio::time::sleep(WHOLE) => bail!("the bench took longer than {WHOLE:?}"),
    }
}

/// The command that makes the same figures again.
fn command(options: &Options) -> String {
    if options.pairs == 9 {
        "make bench".to_owned()
    } else {
        format!("xtask bench --pairs {}", options.pairs)
    }
}

/// Cores of the machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Prints for whoever reads the bench.
#[expect(clippy::print_stdout, reason = "the figures are what the command is for")]
fn say(text: &str) {
    println!("{text}");
}
