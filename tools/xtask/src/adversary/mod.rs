//! `xtask adversary`: the real agent, told by the scripted model, tries every way out of a real sandbox that we can think of.
//! Each attempt has a control: the same attempt where nothing but the wall in question is missing gets through, so that the
//! attempt is known to be a real one.

mod control;
mod surroundings;
mod table;
mod verdict;
mod witness;
mod world;

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use testkit::engine::Engine;
use testkit::parts::Parts;

use surroundings::Surroundings;
use table::Attempt;
use verdict::Verdict;

/// The workspace, seen from this crate.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Flags of `adversary`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The engines whose sandboxes are attacked.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["docker", "local"])]
    engine: Vec<EngineName>,
    /// Only attempts whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
    /// The server's binary.
    #[arg(long, value_name = "FILE", default_value = ".caisson/bin/caisson")]
    caisson: std::path::PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EngineName {
    Docker,
    Local,
}

/// Tries everything, prints what came of it, and says whether nothing got through.
///
/// # Errors
/// A part is missing, this is not root, a control does not get through, or an attempt told nothing.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "the controls need root; run `sudo make adversary`");
    let caisson = Path::new(WORKSPACE).canonicalize()?.join(&options.caisson);
    ensure!(caisson.is_file(), "\"{}\" is not built; run `make adversary`", caisson.display());
    let parts = Parts::require(caisson.to_str().context("the workspace's path is not UTF-8")?)?;
    let (chosen, absent): (Vec<&Attempt>, Vec<&Attempt>) = table::ALL
        .iter()
        .filter(|found| found.name.contains(&options.only))
        .partition(|found| found.control.is_possible());
    for attempt in absent {
        say(&format!("not tried: {}, for what it aims at is not on this machine", attempt.name));
    }
    ensure!(!chosen.is_empty(), "no attempt has a name with \"{}\" in it", options.only);

    let surroundings = Surroundings::open(&parts)?;
    let mut inside = Vec::new();
    for name in &options.engine {
        let engine = match name {
            EngineName::Docker => Engine::Docker,
            EngineName::Local => Engine::Local,
        };
        let fitting: Vec<_> = chosen.iter().copied().filter(|attempt| attempt.fits(engine)).collect();
        say(&format!("{} attempts in a sandbox of the {} engine", fitting.len(), engine.name()));
        inside.push((engine, world::attack(&parts, engine, &fitting, &surroundings).await?));
    }
    say("the same attempts, each without its wall");
    let mut controls = Vec::new();
    for attempt in &chosen {
        controls.push(control::run(attempt, &surroundings)?);
    }
    conclude(&chosen, &inside, &controls)
}

/// Prints every attempt, and then the line that scripts look for.
fn conclude(
    attempts: &[&Attempt],
    inside: &[(Engine, HashMap<&str, Verdict>)],
    controls: &[Verdict],
) -> anyhow::Result<bool> {
    let (mut tried, mut through, mut idle) = (0, 0, Vec::new());
    for (number, attempt) in attempts.iter().enumerate() {
        let control = &controls[number];
        for (engine, verdicts) in inside {
            let Some(verdict) = verdicts.get(attempt.name) else { continue };
            tried += 1;
            through += usize::from(verdict.is_through());
            let mark = if verdict.is_through() { "THROUGH" } else { "refused" };
            say(&format!("{mark} {:6} {} ({}): {verdict}", engine.name(), attempt.name, attempt.wall));
            if !control.shows(attempt.control.shows, verdict) {
                idle.push(format!("{} ({}): {control}", attempt.name, engine.name()));
            }
        }
    }
    ensure!(
        idle.is_empty(),
        "the controls of these attempts are stopped as well, so that they prove nothing:\n  {}",
        idle.join("\n  ")
    );
    say(&format!("adversary: {tried} tried, {through} through"));
    Ok(through == 0)
}

/// Prints for whoever reads the report.
#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn say(text: &str) {
    println!("{text}");
}
