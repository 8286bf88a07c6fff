//! Caisson's binary: it alone reads arguments, environment, configuration files and signals.

mod agents;
mod audit_head;
mod cli;
mod client;
mod command;
mod debian;
mod engines;
mod exposure;
mod inputs;
mod log;
mod presets;
mod render;
mod serve;
mod server_id;
mod settings;
mod shim;
mod tls;
mod vault;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::settings::Environment;
use clap::FromArgMatches;

/// Exit code of a command that failed.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&cli::command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    // A process with one thread, and small: it lives as long as its sandbox.
    if matches!(cli.command, Command::Supervise { .. }) {
        return match caisson_sandbox::local::supervise() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.into()),
        };
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => failed(&error.into()),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    command::complain(&format!("error: {error:#}"));
    ExitCode::from(FAILED)
}

async fn run(cli: Cli) -> ExitCode {
    let environment = read_environment();
    log::start(&environment, matches!(cli.command, Command::Serve(_)));
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::warn!("a TLS provider was installed already");
    }
    match command::run(cli.command, &environment).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

fn read_environment() -> Environment {
    let variables = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Environment { variables, root: nix::unistd::geteuid().is_root() }
}
