//! `caisson audit`, as it is typed.

use std::path::PathBuf;

use clap::Subcommand;

use super::ServerFlags;

/// The audit log.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Audit {
    /// Check every record and the signed head; name the first that was changed, removed or exchanged.
    ///
    /// Ends with 1 if the log is not whole.
    Verify {
        #[command(flatten)]
        server: ServerFlags,
        /// A head that was kept elsewhere. Default: the one of the settings (`audit_head`).
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
        /// The key that the head must be signed with. Default: the one of the state directory.
        #[arg(long, value_name = "HEX")]
        public_key: Option<String>,
        /// Print JSON, one document a line.
        #[arg(long)]
        json: bool,
    },
    /// Print every record as JSON, one a line, oldest first.
    Export {
        #[command(flatten)]
        server: ServerFlags,
        /// Only records behind the one with this number.
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: i64,
    },
}
