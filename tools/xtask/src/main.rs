//! Work around the workspace that is neither a build nor a test: measuring.

mod bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work around the workspace.
#[derive(Debug, Parser)]
#[command(name = "xtask", about)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Task {
    /// Measure the service against a shell script that does the same steps, and print the figures.
    Bench(bench::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    let Task::Bench(options) = Arguments::parse().task;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let met = runtime.block_on(bench::run(&options))?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
