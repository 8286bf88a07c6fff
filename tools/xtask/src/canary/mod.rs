//! `xtask canary`: a secret of each kind is used by runs of the real agent, and then looked for everywhere else, in every form
//! that a leak could have.
//!
//! Three runs on each engine: one with the credentials of the configuration, one with the store's that stand for others (an
//! OAuth login that is refreshed, a GitHub App), one with the store's plain ones. Whoever they are for says that they came.

mod crash;
mod secrets;
mod stage;
mod upstreams;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use testkit::engine::Engine;
use testkit::hunt::Hunt;
use testkit::parts::Parts;

use stage::Stage;

use crate::engine_name::EngineName;

/// Flags of `canary`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The engines whose runs use the secrets.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["docker", "local"])]
    engine: Vec<EngineName>,
    /// The server's binary.
    #[arg(long, value_name = "FILE", default_value = ".caisson/bin/caisson")]
    caisson: PathBuf,
}

/// Uses every secret, hunts, and says whether everything was hunted and nothing found.
///
/// # Errors
/// A part is missing, this is not root, a run does not succeed, or a secret was not used.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "memory is read by root; run `sudo make canary`");
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize()?;
    let caisson = workspace.join(&options.caisson);
    ensure!(caisson.is_file(), "\"{}\" is not built; run `make canary`", caisson.display());
    let parts = Parts::require(caisson.to_str().context("the workspace's path is not UTF-8")?)?;
    let mut hunted = 0;
    let (mut found, mut not_hunted) = (Vec::new(), Vec::new());
    for engine in &options.engine {
        let engine = Engine::from(*engine);
        let (hunt, left_out) = hunt(&parts, engine).await.with_context(|| format!("on {}", engine.name()))?;
        let Hunt { places, bytes, found: here, .. } = &hunt;
        say(&format!("{}: looked at {places} places, {} MiB", engine.name(), bytes >> 20));
        hunted += places;
        found.extend(here.iter().map(|found| format!("FOUND on {}: {found}", engine.name())));
        not_hunted.extend(left_out.map(|what| format!("not hunted on {}: {what}", engine.name())));
    }
    for line in found.iter().chain(&not_hunted) {
        say(line);
    }
    say(&last_line(hunted, found.len(), not_hunted.len()));
    Ok(found.is_empty() && not_hunted.is_empty())
}

/// The line that scripts look for, or of a run that is not good another one; pure.
fn last_line(hunted: usize, found: usize, not_hunted: usize) -> String {
    if found == 0 && not_hunted == 0 {
        return format!("canary: {hunted} hunted, {found} found");
    }
    let left_out = if not_hunted > 0 { format!("{not_hunted} not hunted, ") } else { String::new() };
    format!("canary: failed: {left_out}{found} found in {hunted} hunted")
}

/// Hunts on an engine, and says what could not be hunted on this machine.
async fn hunt(parts: &Parts, engine: Engine) -> anyhow::Result<(Hunt, Option<&'static str>)> {
    let mut stage = Stage::open(parts, engine).await.context("the stage")?;
    let canaries = stage.canaries();
    let plain: Vec<_> = canaries.iter().map(secrets::Secret::canary).collect();
    let planted = tempfile::tempdir()?;
    Hunt::prove(&plain, planted.path())?;
    let mut hunt = Hunt::new(&plain)?;
    say(&format!(
        "{}: {} secrets in {} forms, each of which would be found",
        engine.name(),
        plain.len(),
        hunt.needles()
    ));
    stage
        .run_with_the_configurations(&mut hunt)
        .await
        .context("the run with the configuration's credentials")?;
    stage
        .run_with_what_stands_for_others(&mut hunt)
        .await
        .context("the run with credentials that stand for others")?;
    stage.run_with_the_stores(&mut hunt).await.context("the run with the store's credentials")?;
    stage.hunt_afterwards(&mut hunt).await.context("the hunt after all runs")?;
    let cores_are_seen = stage.crash(&mut hunt).await.context("the crash of the server")?;
    let thrown_away = "cores, which this machine has of no process; /proc/sys/kernel/core_pattern says what becomes of them";
    Ok((hunt, (!cores_are_seen).then_some(thrown_away)))
}

/// Prints for whoever reads the report.
#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_hunt_that_is_not_good_says_what_failed_and_is_not_that_of_a_good_one() {
        assert_eq!(last_line(40, 0, 0), "canary: 40 hunted, 0 found");
        assert_eq!(last_line(40, 2, 0), "canary: failed: 2 found in 40 hunted");
        assert_eq!(last_line(40, 0, 1), "canary: failed: 1 not hunted, 0 found in 40 hunted");
        assert_eq!(last_line(40, 2, 1), "canary: failed: 1 not hunted, 2 found in 40 hunted");
    }
}
