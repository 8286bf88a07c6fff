//! `caisson agent`: installed versions of Claude Code.

use comfy_table::{Table, presets};

use super::{DONE, print, settings};
use crate::agents::{Agents, Request};
use crate::cli::Agent;
use crate::settings::Environment;

/// Installs or lists.
///
/// # Errors
/// The package cannot be had or is not the expected one.
pub(crate) fn run(command: Agent, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Agent::Install { server, version, from, integrity } => {
            let settings = settings(&server, environment)?;
            let agents = Agents::new(settings.agents_dir());
            let manifest = agents.install(&Request { version, from, integrity }, &settings.agent_version)?;
            print(&format!(
                "Claude Code {} is installed in {}",
                manifest.version,
                agents.directory(&manifest.version).display()
            ));
        }
        Agent::List { server } => {
            let settings = settings(&server, environment)?;
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["VERSION", "USED", "INTEGRITY"]);
            for manifest in Agents::new(settings.agents_dir()).list() {
                let used = if manifest.version == settings.agent_version { "yes" } else { "" };
                table.add_row([&manifest.version, used, &manifest.integrity]);
            }
            print(&table.trim_fmt());
        }
    }
    Ok(DONE)
}
