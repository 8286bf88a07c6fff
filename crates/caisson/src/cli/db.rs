//! `caisson db`, as it is typed.

use std::path::PathBuf;

use caisson_store::{MIGRATE_MS_DEFAULT, MIGRATE_MS_MAX};
use clap::{Args, Subcommand};

use super::{OutputFlag, ServerFlags};

/// The database as a whole.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Db {
    /// Bring the database up to this version, one server or command at a time, and say what was done.
    ///
    /// `serve` does it by itself, unless `database.migrate` is false.
    Migrate {
        #[command(flatten)]
        server: ServerFlags,
        /// How long PostgreSQL may take over all of it, in seconds, 1 to 86400; what was done by then stays, migration by migration.
        #[arg(long, value_name = "SECONDS", default_value_t = MIGRATE_MS_DEFAULT / 1000,
            value_parser = clap::value_parser!(u64).range(1..=MIGRATE_MS_MAX / 1000))]
        timeout: u64,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Check version, integrity, references, event numbers, audit chains and kept files; change nothing.
    ///
    /// Ends with 1 if something is wrong, and says what.
    Check {
        #[command(flatten)]
        server: ServerFlags,
        /// Print JSON, one document a line.
        #[arg(long)]
        json: bool,
    },
    /// Write a copy of the SQLite database into a new file, also while a server runs.
    Backup {
        #[command(flatten)]
        server: ServerFlags,
        /// The new file.
        file: PathBuf,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Copy the SQLite database of the state directory into an empty PostgreSQL database, and compare every row.
    ///
    /// No server may run meanwhile. The SQLite file is left as it is. What is sealed stays sealed: keep the master key.
    Copy(CopyDb),
}

/// Flags of `db copy`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CopyDb {
    #[command(flatten)]
    pub server: ServerFlags,
    /// File with the URL of the new database, as `database.url_file` names one.
    #[arg(long, value_name = "FILE")]
    pub to_url_file: PathBuf,
    /// Print JSON, one document a table.
    #[arg(long)]
    pub json: bool,
}
