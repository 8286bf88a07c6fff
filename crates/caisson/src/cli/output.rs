//! How a command tells what it did.

use clap::Args;

/// Flag of commands on the server's machine that print something; those that call the API have it with their other flags.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputFlag {
    /// Print JSON, one document a line.
    #[arg(long)]
    pub json: bool,
}
