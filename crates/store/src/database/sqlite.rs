//! `SQLite`: one connection that writes and a few that read, the pragmas, what its error codes mean, and the one statement
//! that is its own ([`begin_call`]).

mod begin_call;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection as _, Executor as _, Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::lists::LISTERS;
use super::{ACQUIRE_MS, Fault, migration_error, missing_migrations};
use crate::StoreError;
use crate::database::sql::Reader;
use crate::disk::Disk;
use crate::opening::{Turn, make_private_file};

/// Connections that read at the same time.
const READERS: u32 = 4;
/// How long a transaction waits for a lock that another process holds, in milliseconds.
const BUSY_MS: u64 = 5_000;
/// Prepared statements kept on each connection: more than this crate has.
const STATEMENTS: usize = 256;
/// Size to which the write-ahead log is cut back after a checkpoint, in bytes.
const LOG_BYTES: &str = "67108864";
/// Takes the write lock at once: a transaction that reads first and writes later would fail instead of waiting.
pub(super) const BEGIN_WRITE: &str = "begin immediate";

const HAS_MIGRATIONS: &str =
    "select 1 from sqlite_master where type = 'table' and name = '_sqlx_migrations' limit 1";

const NEWEST: &str = "select coalesce(max(version), 0) from _sqlx_migrations";

pub(super) static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// One connection that writes, a few that read, and a few for reads that may take long.
#[derive(Debug, Clone)]
pub(crate) struct SqliteDatabase {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
    pub(crate) lists: SqlitePool,
    pub(crate) disk: Arc<Disk>,
}

impl SqliteDatabase {
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
        // Held until another one is open: the last to go folds the log into the file.
        let migrating = pool(1).connect_with(writing.clone()).await?;
        MIGRATOR.run(&migrating).await.map_err(migration_error)?;
        let writer = pool(1)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect_with(writing)
            .await?;
        migrating.close().await;
        drop(turn);
        let reader = pool(READERS).connect_with(shared.clone().read_only(true)).await?;
        let lists = pool(LISTERS).connect_lazy_with(shared.read_only(true));
        Ok(Self { writer, reader, lists, disk: Arc::new(Disk::of(path)) })
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
        let missing = missing_migrations(&Reader::Sqlite(reader.clone()), HAS_MIGRATIONS, &MIGRATOR).await?;
        let (writer, lists) = (reader.clone(), reader.clone());
        Ok((Self { writer, reader, lists, disk: Arc::new(Disk::of(path)) }, missing))
    }

    /// Begins a writing transaction, and reads the number of the newest migration.
    pub(super) async fn begin(&self) -> Result<(Transaction<'static, Sqlite>, i64), sqlx::Error> {
        let mut tx = self.writer.begin_with(BEGIN_WRITE).await?;
        // There is no other connection that writes.
        self.disk.quiet();
        let newest = sqlx::query_scalar(NEWEST).fetch_one(&mut *tx).await?;
        Ok((tx, newest))
    }

    pub(super) async fn close(&self) {
        // Readers first: the last connection to go folds the write-ahead log into the file.
        self.lists.close().await;
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// Makes what is the connection's own.
async fn prepare(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    connection.execute(begin_call::PREPARE).await.map(drop)
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

/// Sorts an error by its code: <https://www.sqlite.org/rescode.html>; the low byte is the class.
pub(super) fn fault(code: Option<&str>) -> Fault {
    let code = code.and_then(|code| code.parse::<i32>().ok()).unwrap_or(0);
    match code & 0xff {
        13 => Fault::Full,
        1 => Fault::Broken("the schema"),
        11 | 26 => Fault::Broken("the database file"),
        12 | 19 | 20 => Fault::Broken("a constraint"),
        _ => Fault::Away,
    }
}
