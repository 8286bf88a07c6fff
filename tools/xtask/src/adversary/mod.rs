//! `xtask adversary`: the real agent, told by the scripted model, tries every way out of a real sandbox that we can think of: past
//! its walls, through its door ([`door`]), to more of the machine than it may have ([`resources`]), by what it leaves behind
//! for others ([`traces`]), and by what it starts that speaks for it ([`voice`]).
//!
//! Each attempt names the walls that are to stop it, and the errors by which each refuses: any other error is unclear, and fails as
//! getting through does. Its controls are the same attempt in surroundings that are sealed but for those walls, where it gets
//! through, and with one of them standing alone, which refuses by its own errors; so the attempt is known to be a real one, and
//! each wall to stop it by itself. Another sandbox of the same server lives meanwhile, with a credential wherever it can hold one.

mod container;
mod control;
mod door;
mod filter;
mod framing;
mod gitlinks;
mod ground;
mod names;
mod races;
mod report;
mod resources;
mod surroundings;
mod table;
mod traces;
mod verdict;
mod voice;
mod walls;
mod witness;
mod world;

use std::path::Path;

use anyhow::{Context, ensure};
use clap::Args;
use testkit::engine::Engine;
use testkit::parts::Parts;

use container::{Container, meets_its_walls};
use control::Shown;
use report::{LEAST_ATTEMPTS, Report, Tried};
use surroundings::Surroundings;
use table::Attempt;
use world::{Server, Side};

use crate::engine_name::EngineName;

/// The workspace, seen from this crate.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Flags of `adversary`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The engines whose sandboxes are attacked.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["docker", "local"])]
    engine: Vec<EngineName>,
    /// Whose servers' sandboxes are attacked.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["root", "ordinary"])]
    server: Vec<Server>,
    /// Only attempts whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
    /// The server's binary.
    #[arg(long, value_name = "FILE", default_value = ".caisson/bin/caisson")]
    caisson: std::path::PathBuf,
}

/// Tries everything, prints what came of it, and says whether nothing got through and everything was told clearly.
///
/// # Errors
/// A part is missing, this is not root, or an attempt told nothing.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the controls need root; run `sudo make adversary`");
    let caisson = Path::new(WORKSPACE).canonicalize()?.join(&options.caisson);
    ensure!(caisson.is_file(), "\"{}\" is not built; run `make adversary`", caisson.display());
    // Attempts know a server outside by its program's name.
    ensure!(caisson.ends_with("caisson"), "\"{}\" is not called \"caisson\"", caisson.display());
    let parts = Parts::require(caisson.to_str().context("the workspace's path is not UTF-8")?)?;
    let chosen: Vec<_> = table::all().filter(|found| found.name.contains(&options.only)).collect();
    ensure!(
        !chosen.is_empty()
            || door::has(&options.only)
            || resources::has(&options.only)
            || traces::has(&options.only)
            || gitlinks::has(&options.only)
            || voice::has(&options.only)
            || races::has(&options.only),
        "no attempt has a name with \"{}\" in it",
        options.only
    );
    container::check(&chosen)?;

    let mut report = Report::default();
    let done = make(options, &parts, &chosen, &mut report).await;
    let least = if options.only.is_empty() { LEAST_ATTEMPTS } else { 1 };
    if let Err(error) = done {
        // What was made until then took its time.
        report.so_far().iter().for_each(|line| say(line));
        return Err(error);
    }
    report.lines(least).iter().for_each(|line| say(line));
    Ok(report.is_good(least))
}

/// Makes everything: first the controls, then each attempt on each side.
async fn make(
    options: &Options,
    parts: &Parts,
    chosen: &[&'static Attempt],
    report: &mut Report,
) -> anyhow::Result<()> {
    let surroundings = Surroundings::open(parts)?;
    let tried = controls(chosen, &surroundings, report)?;
    door::controls(parts, &options.only, &surroundings, report).await?;
    resources::controls(parts, &options.only, &surroundings, report).await?;
    traces::controls(parts, &options.only, &surroundings, report).await?;
    if races::has(&options.only) {
        races::controls(parts, report).await?;
    }
    let mut container = None;
    for engine in &options.engine {
        let engine = Engine::from(*engine);
        let fitting: Vec<_> = tried.iter().copied().filter(|attempt| attempt.fits(engine)).collect();
        for server in &options.server {
            let side = Side { engine, server: *server };
            attack(parts, side, &options.only, &surroundings, report).await?;
            if fitting.is_empty() {
                continue;
            }
            say(&format!("{} attempts in a sandbox of {}", fitting.len(), side.name()));
            let attacked = world::attack(parts, side, &fitting, &surroundings).await?;
            container = attacked.container.or(container);
            for attempt in &fitting {
                let verdict = attacked.verdicts[attempt.name].clone();
                report.tried.push(Tried::of(attempt, side, verdict));
            }
        }
    }
    if let Some(container) = container {
        controls_of_docker(&tried, &container, parts, &surroundings, report)?;
    }
    Ok(())
}

/// Makes the attempts on a side that are no row of the table.
async fn attack(
    parts: &Parts,
    side: Side,
    only: &str,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    if door::has(only) {
        door::attack(parts, side, only, surroundings, report).await?;
    }
    if resources::has(only) {
        resources::attack(parts, side, only, report).await?;
    }
    if traces::has(only) {
        traces::attack(parts, side, only, surroundings, report).await?;
    }
    if gitlinks::has(only) {
        gitlinks::attack(parts, side, only, surroundings, report).await?;
    }
    if voice::has(only) {
        voice::attack(parts, side, only, report).await?;
    }
    if races::has(only) {
        races::attack(parts, side, report).await?;
    }
    Ok(())
}

/// Makes each attempt without its walls and with each of them alone; those that this machine can make come back.
fn controls<'a>(
    chosen: &[&'a Attempt],
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<Vec<&'a Attempt>> {
    say(&format!("{} attempts without their walls, and with each wall alone", chosen.len()));
    let mut tried = Vec::new();
    for attempt in chosen {
        let shown = match attempt.needs.missing() {
            Some(why) => Shown::Absent(why),
            None => control::run(attempt, surroundings)?,
        };
        if matches!(shown, Shown::Absent(_)) {
            report.skip(attempt, shown);
            continue;
        }
        report.take(shown);
        tried.push(*attempt);
    }
    Ok(tried)
}

/// The same for the walls that are Docker's own.
fn controls_of_docker(
    tried: &[&Attempt],
    container: &Container,
    parts: &Parts,
    surroundings: &Surroundings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let meeting: Vec<_> = tried.iter().filter(|attempt| meets_its_walls(attempt)).collect();
    say(&format!("{} attempts in a container without each of Docker's own walls", meeting.len()));
    for attempt in meeting {
        report.take(container.control(attempt, parts, surroundings)?);
    }
    Ok(())
}

/// Prints for whoever reads the report.
#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn say(text: &str) {
    println!("{text}");
}
