//! The databases that a server is measured on.

use anyhow::{Context, ensure};
use testkit::postgres::Postgres;

/// Settings of a `PostgreSQL` server that figures depend on.
const TOLD: [&str; 10] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "autovacuum",
    "shared_buffers",
    "work_mem",
    "wal_level",
    "max_wal_size",
    "checkpoint_timeout",
    "jit",
];

/// Which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file in the server's state directory.
    Sqlite,
    /// A schema on the `PostgreSQL` server for tests.
    Postgres,
}

impl Kind {
    /// What people call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }

    /// Of a figure for each database, the one for this.
    pub(super) fn of<T>(self, sqlite: T, postgres: T) -> T {
        match self {
            Self::Sqlite => sqlite,
            Self::Postgres => postgres,
        }
    }
}

/// One that was made for a measurement.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) kind: Kind,
    postgres: Option<Postgres>,
}

impl Database {
    /// Both.
    ///
    /// # Errors
    /// There is no `PostgreSQL` server, or it does not wait for the disk.
    pub(super) async fn both() -> anyhow::Result<[Self; 2]> {
        let missing = "there is no PostgreSQL; run scripts/setup all, then scripts/postgres start, and source .caisson/env";
        let postgres = Postgres::make().await?.context(missing)?;
        for (setting, wanted) in [("fsync", "on"), ("synchronous_commit", "on")] {
            let found = postgres.value(&format!("show {setting}"))?;
            ensure!(found == wanted, "the PostgreSQL server has {setting} = {found}, and not {wanted}");
        }
        let sqlite = Self { kind: Kind::Sqlite, postgres: None };
        Ok([sqlite, Self { kind: Kind::Postgres, postgres: Some(postgres) }])
    }

    /// What the server's settings say of it.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        self.postgres.iter().map(|postgres| ("DATABASE__URL", postgres.direct_url())).collect()
    }

    /// The version and the settings of a `PostgreSQL` server, in a sentence; none for `SQLite`.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) fn told(&self) -> anyhow::Result<Option<String>> {
        let Some(postgres) = &self.postgres else { return Ok(None) };
        let version = postgres.value("show server_version")?;
        let mut settings = Vec::new();
        for name in TOLD {
            settings.push(format!("{name} {}", postgres.value(&format!("show {name}"))?));
        }
        let version = version.split(' ').next().unwrap_or_default();
        Ok(Some(format!("PostgreSQL {version} has {}.", settings.join(", "))))
    }

    /// The way past the server, if it is `PostgreSQL`.
    pub(super) const fn postgres(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }
}
