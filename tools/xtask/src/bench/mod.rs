//! `xtask bench`: the demo's job through the service against the same steps by a shell script, and what else
//! `docs/benchmarks.md` tells. Everything is measured in one run, since machines drift and only ratios last.

#[cfg(test)]
mod alike;
mod engines;
mod fair;
mod figures;
mod follow_up;
mod measure;
pub(crate) mod model;
mod report;
mod requests;
mod sampler;
pub(crate) mod scenarios;
pub(crate) mod script;
pub(crate) mod service;
pub(crate) mod stage;
pub(crate) mod stand_in;
mod timeline;
mod words;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use testkit::parts::Parts;

use crate::measuring::{
    WORKSPACE, bar, clock, conclude, cores, docker, document, machine, proc, reader, say, stats, table, tail,
    unless_interrupted, write_figures,
};
use stage::{Plan, Stage};

/// Fewest pairs from which a median is taken.
const PAIRS_MIN: u32 = 7;
/// Most pairs.
const PAIRS_MAX: u32 = 100;
/// Time limit of everything together.
const WHOLE: Duration = Duration::from_mins(30);

/// Flags of `bench`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Pairs of service and script that count; one more comes first and does not.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(i64::from(PAIRS_MIN)..=i64::from(PAIRS_MAX)))]
    pairs: u32,
    /// Measure follow-ups whose sandbox waits, and nothing else.
    #[arg(long, conflicts_with = "write")]
    follow_ups: bool,
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
    let stage = Stage::open(
        &parts,
        &workspace.join(".caisson"),
        &workspace.join("examples/cart"),
        shim,
        Plan::bench()?,
    )
    .await?;
    if options.follow_ups {
        let measured = unless_interrupted(WHOLE, follow_up::measure(&stage)).await;
        stage.close().await?;
        let follow_ups = measured?;
        let mut text = String::new();
        report::follow_ups(&follow_ups).write(&mut text);
        say(&text);
        return Ok(conclude("bench", &follow_ups.bars()));
    }
    let measured = unless_interrupted(WHOLE, measure::all(&stage, options.pairs)).await;
    let closed = stage.close().await;
    let figures = measured?;
    closed?;

    let text = report::render(&figures, &command(options));
    say(&text);
    if options.write {
        write_figures(&workspace, document::Part::Bench, &text)?;
    }
    Ok(conclude("bench", &figures.bars()))
}

/// The command that makes the same figures again.
fn command(options: &Options) -> String {
    if options.pairs == 9 {
        "make bench".to_owned()
    } else {
        format!("xtask bench --pairs {}", options.pairs)
    }
}
