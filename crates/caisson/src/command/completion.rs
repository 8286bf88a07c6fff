//! `caisson completion`: what a shell needs to complete commands and flags.

use clap::CommandFactory;

use super::{DONE, write_out};
use crate::cli::{Cli, Completion};

/// Prints the script.
pub(crate) fn run(flags: &Completion) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut visible(), "caisson", &mut script);
    write_out(&String::from_utf8_lossy(&script));
    DONE
}

/// The command line without what nobody types.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|inner| !inner.is_hide_set()).cloned();
    let mut visible = clap::Command::new("caisson").version(env!("CARGO_PKG_VERSION"));
    for inner in shown {
        visible = visible.subcommand(inner);
    }
    visible
}
