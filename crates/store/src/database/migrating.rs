//! Bringing a `PostgreSQL` database up to date, while nobody uses it who could not go on with it.

use std::time::Duration;

use caisson_domain::id::ServerId;
use caisson_domain::limits::SERVER_SILENT_MS;
use caisson_domain::server::Role;
use sqlx::PgConnection;
use sqlx::migrate::Migrate;
use tokio::time::timeout;

use super::postgres::{HAS_MIGRATIONS, MIGRATOR, refused};
use super::sql::{self, Reader};
use super::{migration_error, missing_migrations};
use crate::StoreError;
use crate::rows::Columns;

/// Between two looks whether other servers are alive, in milliseconds.
const LOOK_MS: u64 = 500;

/// Whoever holds a table for longer keeps the migration from it, and does not have everybody else wait behind it.
const LOCK_LIMIT: &str = "set lock_timeout = '10s'";

const HAS_SERVERS: &str = "select 1 where to_regclass('server_role') is not null";

/// By the database's clock, as they are written.
const ALIVE: &str = "select server_id, role, version, seen_at_ms from server_role where seen_at_ms >= \
     cast(extract(epoch from clock_timestamp()) * 1000 as bigint) - $1 order by server_id, role limit 1000";

/// A part of a server that was heard of lately.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alive {
    server: ServerId,
    role: Role,
    version: String,
    seen_at_ms: i64,
}

/// Who migrates, and how long that may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Migrating<'m> {
    /// The parts of servers that the caller is itself.
    pub(super) own: &'m [(ServerId, Role)],
    /// The migrations of another server included.
    pub(super) within: Duration,
}

/// Brings the database up to date. Servers that do so at once wait for one another; if anything is to be done, every part of
/// a server but the `own` ones must be silent, since what is there would use tables that it does not know.
///
/// # Errors
/// [`StoreError::Migration`] if another server lives, or the database is of a version that this one cannot use.
pub(super) async fn migrate(
    connection: &mut PgConnection,
    reader: &Reader,
    Migrating { own, within }: Migrating<'_>,
) -> Result<(), StoreError> {
    let migrating = async {
        // The migrator takes the same lock once more. It waits for others with no limit but that of the whole.
        Migrate::lock(&mut *connection).await.map_err(migration_error)?;
        if missing_migrations(reader, HAS_MIGRATIONS, &MIGRATOR).await? > 0 {
            until_alone(reader, own).await?;
        }
        sqlx::raw_sql(LOCK_LIMIT).execute(&mut *connection).await?;
        MIGRATOR.run(&mut *connection).await.map_err(migration_error)?;
        Migrate::unlock(&mut *connection).await.map_err(migration_error)
    };
    timeout(within, migrating).await.unwrap_or_else(|_| Err(StoreError::Unavailable(late(within))))
}

fn late(within: Duration) -> sqlx::Error {
    let seconds = within.as_secs_f64();
    let why = format!(
        "the migrations were not done within {seconds} s; `caisson db migrate --timeout SECONDS` gives them more"
    );
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, why))
}

/// Waits until all others have been silent for so long that they count as away, which ends: whoever is heard of again lives.
async fn until_alone(reader: &Reader, own: &[(ServerId, Role)]) -> Result<(), StoreError> {
    if sql::query(HAS_SERVERS).fetch_optional(reader).await?.is_none() {
        return Ok(());
    }
    let first = others(reader, own).await?;
    let mut now = first.clone();
    while let Some(one) = now.first() {
        if let Some(lives) = now.iter().find(|alive| !first.contains(alive)) {
            return Err(refused(format!(
                "server {} lives ({}, version {}), and the database has to be migrated, which it could not go on with; stop \
                 every server of this database, then start again",
                lives.server, lives.role, lives.version
            )));
        }
        tracing::debug!("waiting until server {} counts as away", one.server);
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        now = others(reader, own).await?;
    }
    Ok(())
}

async fn others(reader: &Reader, own: &[(ServerId, Role)]) -> Result<Vec<Alive>, StoreError> {
    let rows = sql::query(ALIVE).bind(SERVER_SILENT_MS).fetch_all(reader).await?;
    let mut alive = Vec::with_capacity(rows.len());
    for row in &rows {
        let columns = Columns::keyed("server_role", row, "server_id")?;
        let part = Alive {
            server: columns.parse("server_id")?,
            role: columns.parse("role")?,
            version: columns.get("version")?,
            seen_at_ms: columns.get("seen_at_ms")?,
        };
        if !own.contains(&(part.server.clone(), part.role)) {
            alive.push(part);
        }
    }
    Ok(alive)
}
