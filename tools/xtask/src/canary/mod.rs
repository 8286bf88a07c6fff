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

/// Uses every secret, hunts, and says whether nothing was found.
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
    let mut found = Vec::new();
    for engine in &options.engine {
        let engine = Engine::from(*engine);
        let Hunt { places, bytes, found: here, .. } =
            &hunt(&parts, engine).await.with_context(|| format!("on {}", engine.name()))?;
        say(&format!("{}: looked at {places} places, {} MiB", engine.name(), bytes >> 20));
        hunted += places;
        found.extend(here.iter().map(|found| format!("FOUND on {}: {found}", engine.name())));
    }
    for line in &found {
        say(line);
    }
    say(&format!("canary: {hunted} hunted, {} found", found.len()));
    Ok(found.is_empty())
}

async fn hunt(parts: &Parts, engine: Engine) -> anyhow::Result<Hunt> {
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
    if !stage.crash(&mut hunt).await.context("the crash of the server")? {
        say(&format!("{}: not hunted: core files, which this machine puts elsewhere", engine.name()));
    }
    Ok(hunt)
}

/// Prints for whoever reads the report.
#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn say(text: &str) {
    println!("{text}");
}
