//! `caisson project`, as it is typed.

use clap::Subcommand;

use super::{OutputFlag, Retain, ServerFlags, SetProject};

/// Projects: whose runs, sessions, keys, credentials, budgets and audit records are its own.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Project {
    /// Make a project, with the server's workflows; `caisson key create --project` makes its first key.
    Create {
        #[command(flatten)]
        server: ServerFlags,
        /// Its name: 1 to 63 lower-case letters, digits and hyphens.
        name: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Set a project's weight among the others, and its caps; `queue` in docs/projects.md.
    Set(SetProject),
    /// List projects by name.
    List {
        #[command(flatten)]
        server: ServerFlags,
        /// Print JSON, one document a line.
        #[arg(long)]
        json: bool,
    },
    /// Show how long a project keeps things after the last run of a session has ended, or say so.
    Retention(Retain),
}
