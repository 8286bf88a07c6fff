//! `caisson completion`, as it is typed.

use clap::Args;
use clap_complete::Shell;

/// Flags of `completion`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}
