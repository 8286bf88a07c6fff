//! `xtask load`: the service under load. Many sessions at once with the real agent in real containers, more of them with a
//! stand-in for it, a server that is asked as fast as it can answer, events as fast as they are stored, lists over many runs,
//! and pages of many events. Everything is measured in one run.

mod databases;
mod events;
mod figures;
mod http;
mod lists;
mod plans;
mod report;
mod requests;
mod scenario;
mod sessions;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use testkit::parts::Parts;

use crate::bench::stage::{Plan, Stage};
use crate::measuring::document;
use crate::measuring::machine::Machine;
use crate::measuring::{WORKSPACE, conclude, say, unless_interrupted, write_figures};
use databases::Database;
use figures::Figures;

/// Time limit of everything together.
const WHOLE: Duration = Duration::from_mins(40);
/// The same of the short form.
const WHOLE_SHORT: Duration = Duration::from_mins(5);
/// Time limit of one job of the script.
const SCRIPT_JOB: Duration = Duration::from_mins(5);

/// Flags of `load`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// One part alone.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Small numbers, and bars on what must be right but none on times and sizes.
    #[arg(long)]
    short: bool,
    /// Write the figures into docs/benchmarks.md, and the plans into docs/plans.md.
    #[arg(long, conflicts_with_all = ["only", "short"])]
    write: bool,
    /// The server's binary.
    #[arg(long, value_name = "FILE", default_value = "target/shipped/caisson")]
    caisson: PathBuf,
    /// The shim.
    #[arg(long, value_name = "FILE", default_value = "target/x86_64-unknown-linux-gnu/shim/caisson-shim")]
    shim: PathBuf,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Sessions with the real agent, and the script that does the same.
    Sessions,
    /// More sessions, with a stand-in for the agent.
    StandIns,
    /// A server without runs.
    Requests,
    /// Events through the doors of sandboxes.
    Events,
    /// Lists over many runs, pages of many events, and plans.
    Lists,
}

/// How much of everything.
#[derive(Debug, Clone)]
struct Sizes {
    /// Sessions at the same time with the real agent, one batch after another; the script does the last one as well.
    real: Vec<u32>,
    /// Those that work at the same moment.
    gathered: u32,
    /// Sessions at the same time with the stand-in.
    stand_ins: u32,
    /// Words of each of a session's turns.
    words: usize,
    requests: requests::Sizes,
    events: events::Sizes,
    lists: lists::Sizes,
}

impl Sizes {
    fn whole() -> Self {
        Self {
            real: vec![1, 10, 50],
            gathered: 50,
            stand_ins: 200,
            words: 200,
            requests: requests::Sizes::whole(),
            events: events::Sizes::whole(),
            lists: lists::Sizes::whole(),
        }
    }

    fn short() -> Self {
        Self {
            real: vec![2],
            gathered: 2,
            stand_ins: 4,
            words: 25,
            requests: requests::Sizes::short(),
            events: events::Sizes::short(),
            lists: lists::Sizes::short(),
        }
    }
}

/// Measures, prints, and says whether every bar is met.
///
/// # Errors
/// A part is missing, or something could not be measured. Nothing is left behind.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let workspace = Path::new(WORKSPACE).canonicalize()?;
    let [caisson, shim] = [&options.caisson, &options.shim].map(|path| workspace.join(path));
    for binary in [&caisson, &shim] {
        ensure!(binary.is_file(), "\"{}\" is not built; run `make load`", binary.display());
    }
    let parts = Parts::require(caisson.to_str().context("the workspace's path is not UTF-8")?)?;
    let (sizes, limit) = if options.short { (Sizes::short(), WHOLE_SHORT) } else { (Sizes::whole(), WHOLE) };
    let apart = sizes.real.iter().copied().max().unwrap_or(0);
    let plan = Plan { prefix: "load-", scenarios: scenario::all(sizes.words)?, job_limit: SCRIPT_JOB, apart };
    let project = workspace.join("examples/cart");
    let stage = Stage::open(&parts, &workspace.join(".caisson"), &project, shim, plan).await?;
    say(&format!("working in {}", stage.root().display()));
    let machine = match Machine::look(&stage.parts, &stage.agent_version).await {
        Ok(machine) => machine,
        Err(error) => {
            stage.close().await?;
            return Err(error);
        }
    };
    let mut figures = Figures {
        machine,
        short: options.short,
        batches: Vec::new(),
        script: None,
        requests: None,
        postgres: None,
        events: Vec::new(),
        lists: Vec::new(),
    };
    let measured =
        unless_interrupted(limit, Box::pin(measure(&stage, options.only, &sizes, &mut figures))).await;
    let closed = stage.close().await;
    // What was measured before something failed took long enough to be told.
    let [text, plans] = [report::render(&figures, "make load"), plans::render(&figures, "make load")];
    say(&text);
    if !plans.is_empty() {
        say(&plans);
    }
    measured?;
    closed?;
    if options.write {
        write_figures(&workspace, document::Part::Load, &text)?;
        write_figures(&workspace, document::Part::Plans, &plans)?;
    }
    Ok(conclude("load", &figures.bars()))
}

async fn measure(
    stage: &Stage,
    only: Option<Part>,
    sizes: &Sizes,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let wanted = |part: Part| only.is_none_or(|only| only == part);
    if wanted(Part::Requests) {
        figures.requests = Some(requests::measure(stage, &sizes.requests).await?);
    }
    if wanted(Part::Sessions) {
        for count in &sizes.real {
            figures.batches.push(sessions::real(stage, *count).await?);
        }
        let last = figures.batches.last().context("there is no batch")?;
        figures.script = Some(sessions::script::measure(stage, last).await?);
        figures.batches.push(sessions::gathered(stage, sizes.gathered).await?);
    }
    if wanted(Part::StandIns) {
        figures.batches.push(sessions::stand_ins(stage, sizes.stand_ins, sizes.words).await?);
    }
    if wanted(Part::Events) {
        for database in Database::both().await? {
            figures.tell(&database)?;
            figures.events.push(events::measure(stage, &database, &sizes.events).await?);
        }
    }
    if wanted(Part::Lists) {
        for database in Database::both().await? {
            figures.tell(&database)?;
            figures.lists.push(lists::measure(stage, &database, &sizes.lists).await?);
        }
    }
    Ok(())
}
