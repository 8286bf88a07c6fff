//! Work around the workspace that is neither a build nor a test: measuring, and attacking.

mod adversary;
mod bench;
mod canary;
mod engine_name;
mod load;
mod measuring;

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
    /// Try every way out of a sandbox, each with a control without its wall.
    Adversary(adversary::Options),
    /// Have runs use a secret of each kind, and look for it everywhere else.
    Canary(canary::Options),
    /// Put the service under load, and measure how it bears it.
    Load(load::Options),
    /// Measure what the model door adds to a call of the model API, and print the figures.
    ModelBench(bench::model::Options),
}

/// What a shell sees when the task could not be done at all; a bar that is missed is told by 1.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn run(task: &Task) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match task {
        Task::Bench(options) => runtime.block_on(bench::run(options)),
        Task::Adversary(options) => runtime.block_on(adversary::run(options)),
        Task::Canary(options) => runtime.block_on(canary::run(options)),
        Task::Load(options) => runtime.block_on(load::run(options)),
        Task::ModelBench(options) => runtime.block_on(bench::model::run(options)),
    }
}

#[expect(clippy::print_stderr, reason = "why a task failed is for whoever started it")]
fn complain(error: &anyhow::Error) {
    eprintln!("xtask: {error:#}");
}
