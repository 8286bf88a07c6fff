//! Several servers on one database: which part a process is.

use caisson_domain::run::UnknownText;
use caisson_domain::server::Role;
use clap::{Args, Subcommand};

use super::ClientFlags;

/// Flag of `serve` for a process that is a part of a server.
#[derive(Debug, Clone, Args)]
pub(crate) struct OnlyFlag {
    /// Be only this part of a server: api, worker or gateway; may be given several times, or as a list. Needs `PostgreSQL`. Worker
    /// and gateway of a server share its machine and its state directory. Default: all three.
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = part)]
    pub only: Vec<Role>,
}

/// Flags of `servers`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Servers {
    #[command(subcommand)]
    pub command: Option<ServersCommand>,
    #[command(flatten)]
    pub client: ClientFlags,
}

/// What else can be done with servers.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ServersCommand {
    /// Have a lost server, which has no running runs, listed no more; its sessions can expire then.
    Forget {
        #[command(flatten)]
        client: ClientFlags,
        /// The server, by its id.
        id: String,
    },
}

fn part(text: &str) -> Result<Role, String> {
    text.parse().map_err(|error: UnknownText| error.to_string())
}
