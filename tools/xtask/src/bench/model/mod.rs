//! `xtask model-bench`: what the door adds to a call of the model API. The same calls go to the scripted model directly and
//! through the door of a real sandbox of a real server, by turns in one run, since machines drift and only differences last.

mod calls;
mod report;
mod scene;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use testkit::parts::Parts;

use super::{WORKSPACE, document, say, write_figures};
use calls::{Call, Way};
use report::Figures;
use scene::Scene;

/// Calls of each way whose first byte is waited for, one after another.
const PAIRS: usize = 400;
/// Pairs that come first and do not count.
const WARM_UP: usize = 40;
/// Streams at the same time.
const STREAMS: usize = 50;
/// Rounds of streams of each way.
const ROUNDS: usize = 6;
/// Time limit of everything together.
const WHOLE: Duration = Duration::from_mins(10);

/// Flags of `model-bench`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Write the figures into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// The server's binary.
    #[arg(long, value_name = "FILE", default_value = "target/release/caisson")]
    caisson: PathBuf,
}

/// Measures, prints, and says whether every bar is met.
///
/// # Errors
/// A part is missing, a call was not carried as it must be, or it takes too long. Nothing is left behind.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let workspace = Path::new(WORKSPACE).canonicalize()?;
    let caisson = workspace.join(&options.caisson);
    ensure!(caisson.is_file(), "\"{}\" is not built; run `make model-bench`", caisson.display());
    let parts = Parts::require(caisson.to_str().context("the workspace's path is not UTF-8")?)?;
    let measuring = async {
        let scene = Scene::open(&parts).await?;
        measure(&scene).await
    };
    let figures = tokio::time::timeout(WHOLE, measuring).await.context("the bench took too long")??;
    let text = report::render(&figures)?;
    say(&text);
    if options.write {
        write_figures(&workspace, document::Part::ModelBench, &text)?;
    }
    for line in figures.short() {
        say(&line);
    }
    let met = figures.short().is_empty();
    if met {
        say("model-bench ok");
    }
    Ok(met)
}

async fn measure(scene: &Scene) -> anyhow::Result<Figures> {
    let compared = scene.compare().await?;
    let mut first_bytes = [Vec::with_capacity(PAIRS), Vec::with_capacity(PAIRS)];
    for number in 0..WARM_UP + PAIRS {
        for way in Way::in_turn(number) {
            let call = scene.call(way, number, Call::Short).await?;
            if number >= WARM_UP {
                first_bytes[way.index()].push(call.first_byte.as_secs_f64() * 1000.0);
            }
        }
    }
    let mut rates = [Vec::new(), Vec::new()];
    let mut waits = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for way in Way::in_turn(round) {
            let streams = scene.streams(way, STREAMS, compared.reply_bytes).await?;
            // The first round opens connections, and does not count.
            if round > 0 {
                rates[way.index()].push(streams.megabytes()? / streams.took.as_secs_f64());
                waits[way.index()].extend(streams.first_bytes_ms);
            }
        }
    }
    scene.check_counted().await?;
    Ok(Figures { compared, first_bytes, rates, waits, streams: STREAMS })
}
