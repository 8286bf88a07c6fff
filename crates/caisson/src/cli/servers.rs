//! Several servers on one database: which part a process is.

use caisson_domain::run::UnknownText;
use caisson_domain::server::Role;
use clap::Args;

/// Flag of `serve` for a process that is a part of a server.
#[derive(Debug, Clone, Args)]
pub(crate) struct OnlyFlag {
    /// Be only this part of a server: api, worker or gateway; may be given several times, or as a list. Needs `PostgreSQL`. Worker
    /// and gateway of a server share its machine and its state directory. Default: all three.
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = part)]
    pub only: Vec<Role>,
}

fn part(text: &str) -> Result<Role, String> {
    text.parse().map_err(|error: UnknownText| error.to_string())
}
