//! `caisson agent`: installed versions of Claude Code.

use comfy_table::{Table, presets};
use serde_json::json;

use super::{DONE, print, print_json, settings, tell};
use crate::agents::{Agents, Request};
use crate::cli::Agent;
use crate::serve::make_directory;
use crate::settings::Environment;

/// Installs or lists.
///
/// # Errors
/// The package cannot be had or is not the expected one.
pub(crate) fn run(command: Agent, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Agent::Install { server, version, from, integrity, output } => {
            let settings = settings(&server, environment)?;
            // Everything in it is the server's alone, also where this is the first command.
            make_directory(&settings.state_dir)?;
            let agents = Agents::new(settings.agents_dir());
            let manifest = agents.install(&Request { version, from, integrity }, &settings.agent_version)?;
            let directory = agents.directory(&manifest.version);
            let words = format!("Claude Code {} is installed in {}", manifest.version, directory.display());
            let document = json!({"version": manifest.version, "directory": directory});
            tell(output, &document, &words)?;
        }
        Agent::List { server, output } => {
            let settings = settings(&server, environment)?;
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["VERSION", "USED", "INTEGRITY"]);
            for manifest in Agents::new(settings.agents_dir()).list() {
                if output.json {
                    let used = manifest.version == settings.agent_version;
                    print_json(&json!({
                        "version": manifest.version, "used": used, "integrity": manifest.integrity,
                    }))?;
                    continue;
                }
                let used = if manifest.version == settings.agent_version { "yes" } else { "" };
                table.add_row([&manifest.version, used, &manifest.integrity]);
            }
            if !output.json {
                print(&table.trim_fmt());
            }
        }
    }
    Ok(DONE)
}
