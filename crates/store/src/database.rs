//! Opening, pools, transactions, and the few matters in which databases differ: pragmas, how a writing transaction
//! begins, and what their error codes mean.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqliteConnection, SqlitePool, Transaction};

use crate::disk::Disk;
use crate::opening::{Turn, make_private_file};
use crate::{Store, StoreError, Topic};

/// Connections that read at the same time.
const READERS: u32 = 4;
/// How long a call waits for a connection, in milliseconds.
const ACQUIRE_MS: u64 = 10_000;
/// How long a transaction waits for a lock that another process holds, in milliseconds.
const BUSY_MS: u64 = 5_000;
/// Prepared statements kept on each connection: more than this crate has.
const STATEMENTS: usize = 256;
/// Size to which the write-ahead log is cut back after a checkpoint, in bytes.
const LOG_BYTES: &str = "67108864";
/// Takes the write lock at once: a transaction that reads first and writes later would fail instead of waiting.
const BEGIN_WRITE: &str = "begin immediate";

const HAS_MIGRATIONS: &str =
    "select 1 from sqlite_master where type = 'table' and name = '_sqlx_migrations' limit 1";

const MIGRATIONS: &str = "select version, checksum from _sqlx_migrations order by version limit 10000";

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// One connection that writes and a few that read.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
    pub(crate) disk: Arc<Disk>,
}

impl Database {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let unavailable = |error: std::io::Error| StoreError::Unavailable(error.into());
        let turn = Turn::take(path).await.map_err(unavailable)?;
        make_private_file(path).map_err(unavailable)?;
        let shared = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .busy_timeout(Duration::from_millis(BUSY_MS))
            .statement_cache_capacity(STATEMENTS);
        // NORMAL: SQLite itself waits for the disk only when it folds the log into the file. What was acknowledged must
        // survive a power cut, so that a commit waits for it here, outside of the lock and with others: see [`Disk`].
        let writing = shared
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .pragma("journal_size_limit", LOG_BYTES);
        let writer = pool(1).connect_with(writing).await?;
        MIGRATOR.run(&writer).await.map_err(migration_error)?;
        drop(turn);
        let reader = pool(READERS).connect_with(shared.read_only(true)).await?;
        Ok(Self { writer, reader, disk: Arc::new(Disk::of(path)) })
    }

    /// Opens a file that is there for reading alone, and counts the migrations that it lacks. While no write-ahead log is
    /// there nobody writes, and then `SQLite` is told so: else it would make the log's files for itself.
    pub(crate) async fn open_read_only(path: &Path) -> Result<(Self, usize), StoreError> {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .immutable(!Path::new(&log).exists())
            .busy_timeout(Duration::from_millis(BUSY_MS));
        let reader = pool(1).connect_with(options).await?;
        let missing = missing_migrations(&reader).await?;
        Ok((Self { writer: reader.clone(), reader, disk: Arc::new(Disk::of(path)) }, missing))
    }

    pub(crate) async fn close(&self) {
        // Readers first: the last connection to go folds the write-ahead log into the file.
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// How many migrations a database lacks.
///
/// # Errors
/// [`StoreError::Migration`] if it has one that this version does not know, or another one.
async fn missing_migrations(reader: &SqlitePool) -> Result<usize, StoreError> {
    if sqlx::query(HAS_MIGRATIONS).fetch_optional(reader).await?.is_none() {
        return Ok(MIGRATOR.iter().count());
    }
    let applied: Vec<(i64, Vec<u8>)> = sqlx::query_as(MIGRATIONS).fetch_all(reader).await?;
    for (version, checksum) in &applied {
        match MIGRATOR.iter().find(|known| known.version == *version) {
            Some(known) if known.checksum.as_ref() == checksum => {}
            Some(_) => return Err(StoreError::Migration(MigrateError::VersionMismatch(*version))),
            None => return Err(StoreError::Migration(MigrateError::VersionMissing(*version))),
        }
    }
    Ok(MIGRATOR.iter().count().saturating_sub(applied.len()))
}

fn pool(connections: u32) -> PoolOptions<Sqlite> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_millis(ACQUIRE_MS))
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        // SQLite rolls back by itself when the disk is full; sqlx 0.9.0 then still counts the transaction as open and
        // refuses every later one on that connection. Such a connection is thrown away here.
        .before_acquire(|connection: &mut SqliteConnection, _| {
            Box::pin(async move { Ok(!connection.is_in_transaction()) })
        })
}

fn migration_error(error: MigrateError) -> StoreError {
    // A full disk or a lock says nothing about the migration: the caller may try again.
    if let MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) = &error
        && matches!(fault(source), Fault::Broken(_))
    {
        return StoreError::Migration(error);
    }
    if let MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) = error {
        return source.into();
    }
    StoreError::Migration(error)
}

/// What a database error means to the caller.
pub(crate) enum Fault {
    /// It may pass.
    Away,
    /// The disk is full.
    Full,
    /// It will not pass; with what is broken.
    Broken(&'static str),
}

/// Sorts an error of sqlx. The codes: <https://www.sqlite.org/rescode.html>; the low byte is the class.
pub(crate) fn fault(error: &sqlx::Error) -> Fault {
    let Some(database) = error.as_database_error() else {
        let broken = matches!(
            error,
            sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::Encode(_)
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::RowNotFound
        );
        return if broken { Fault::Broken("a row") } else { Fault::Away };
    };
    let code = database.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0);
    match code & 0xff {
        13 => Fault::Full,
        1 => Fault::Broken("the schema"),
        11 | 26 => Fault::Broken("the database file"),
        12 | 19 | 20 => Fault::Broken("a constraint"),
        _ => Fault::Away,
    }
}

/// A writing transaction: what it did becomes visible, and is told of, all at once.
pub(crate) struct Tx<'s> {
    pub(crate) db: Transaction<'static, Sqlite>,
    /// The time of everything that this transaction writes.
    pub(crate) now_ms: i64,
    store: &'s Store,
    wakes: Vec<Topic>,
    /// Whether the commit waits for the disk.
    kept: bool,
}

impl Store {
    /// Begins a writing transaction and reads the clock, once and under the lock, so that times follow commits.
    pub(crate) async fn begin(&self) -> Result<Tx<'_>, StoreError> {
        let db = self.shared.database.writer.begin_with(BEGIN_WRITE).await?;
        Ok(Tx { db, now_ms: self.now_ms(), store: self, wakes: Vec::new(), kept: true })
    }

    /// Begins a transaction whose commit outlives the death of any process, but a power cut only once a later one has waited
    /// for the disk: for what nobody is told of, and somebody waits for.
    pub(crate) async fn begin_unsynced(&self) -> Result<Tx<'_>, StoreError> {
        Ok(Tx { kept: false, ..self.begin().await? })
    }

    /// Waits until everything that was committed is on the disk, for whoever is about to show it.
    pub(crate) async fn settled(&self) -> Result<(), StoreError> {
        self.shared.database.disk.settled().await.map_err(|error| StoreError::Unavailable(error.into()))
    }

    pub(crate) fn reader(&self) -> &SqlitePool {
        &self.shared.database.reader
    }
}

impl Tx<'_> {
    /// Wakes whoever watches `topic`, once the transaction is committed.
    pub(crate) fn wake(&mut self, topic: Topic) {
        if !self.wakes.contains(&topic) {
            self.wakes.push(topic);
        }
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        self.db.commit().await?;
        if self.kept {
            let kept = self.store.shared.database.disk.keep().await;
            kept.map_err(|error| StoreError::Unavailable(error.into()))?;
        }
        self.store.shared.hints.wake(&self.wakes);
        Ok(())
    }

    /// Gives up what was done. Dropping does the same a little later.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        Ok(self.db.rollback().await?)
    }

    /// The chain that audit records of this transaction go to.
    pub(crate) fn audit_chain(&self) -> &str {
        self.store.shared.audit_chain.get().map_or(crate::audit::LOCAL_CHAIN, String::as_str)
    }

    /// The store's random bytes.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        self.store.shared.random.bytes()
    }
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
