//! Caisson's binary: it alone reads arguments, environment, configuration files and signals.

mod agents;
mod artifacts;
mod asked;
mod audit_head;
mod checks;
mod cli;
mod client;
mod command;
mod debian;
#[cfg(test)]
mod documents_tests;
mod engines;
mod exposure;
mod images;
mod inputs;
mod log;
mod logins;
mod presets;
mod probe;
mod render;
mod roles;
mod screen;
mod serve;
mod server_id;
mod settings;
mod shared_paths;
mod shim;
mod tls;
mod told;
mod traced;
mod vault;
mod workflow_files;

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
    // Secrets are in its memory: no core file, and no other process of its user may look into it.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        return failed(&error.into());
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => failed(&error.into()),
    }
}

/// What the build for the controls of `make adversary` is for.
#[cfg(feature = "checks-off")]
fn leave_out_checks(mut environment: Environment) -> anyhow::Result<Environment> {
    const OFF: &str = "CAISSON_CHECKS_OFF";
    let off = environment.get(OFF).unwrap_or_default().to_owned();
    environment.variables.retain(|(name, _)| name != OFF);
    caisson_domain::checks::leave_out(&off)
        .map_err(|name| anyhow::anyhow!("there is no check \"{name}\""))?;
    command::complain(&format!("warning: this build leaves out checks and is for controls alone: {off}"));
    Ok(environment)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    command::complain(&format!("error: {error:#}"));
    ExitCode::from(FAILED)
}

async fn run(cli: Cli) -> ExitCode {
    let environment = read_environment();
    #[cfg(feature = "checks-off")]
    let environment = match leave_out_checks(environment) {
        Ok(environment) => environment,
        Err(error) => return failed(&error),
    };
    if let Err(error) = log::start(&environment, matches!(cli.command, Command::Serve(_))) {
        return failed(&error);
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::warn!("a TLS provider was installed already");
    }
    match Box::pin(command::run(cli.command, &environment)).await {
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
