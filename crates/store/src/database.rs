//! Opening and transactions, the same for every database. What differs is in the modules below, and in the few
//! [`sql::Statement::Each`].

pub(crate) mod breaker;
mod leased;
mod lists;
mod live_text;
mod migrating;
pub(crate) mod notify;
pub(crate) mod postgres;
pub(crate) mod sql;
pub(crate) mod sqlite;

use std::path::Path;
use std::sync::Arc;

use caisson_domain::id::{RunId, SandboxId, UsageId};
use caisson_domain::limits::SERVER_SILENT_MS;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgDatabaseError;

use crate::deltas::Deltas;
use crate::hints::Hints;
use crate::meters::{Counted, Family, Labels};
use crate::{Clock, Random, Store, StoreError, Topic};
use notify::Notifier;
use postgres::{PostgresDatabase, PostgresPlace};
use sql::{Connection, Reader};
use sqlite::SqliteDatabase;

pub(crate) use sql::Row;

/// How long a call waits for a connection, in milliseconds.
const ACQUIRE_MS: u64 = 10_000;

const MIGRATIONS: &str = "select version, checksum from _sqlx_migrations order by version limit 10000";

/// Whichever database is behind the store.
#[derive(Debug)]
pub(crate) enum Database {
    Sqlite(SqliteDatabase),
    Postgres(Box<PostgresDatabase>),
}

/// What a writing transaction keeps from every other until it ends, where the database can keep less than the whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hold<'h> {
    /// Everything: it runs as if it were alone. For whatever is not known to be one of those below.
    Everything,
    /// What belongs to the session of a run. Such a transaction may change nothing else but what is added to its project's
    /// spending, writes no audit record, and frees nothing that a claim looks at.
    SessionOfRun(&'h RunId),
    /// The same, for the session of a sandbox.
    SessionOfSandbox(&'h SandboxId),
    /// The same, for the session of a model call.
    SessionOfCall(&'h UsageId),
}

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sync {
    Waits,
    /// On a database whose own death loses no commit, that is on `SQLite`; elsewhere it waits all the same.
    DoesNotWait,
}

impl Database {
    pub(crate) async fn open_file(path: &Path) -> Result<(Self, Reader), StoreError> {
        let database = SqliteDatabase::open(path).await?;
        let reader = Reader::Sqlite(database.reader.clone());
        Ok((Self::Sqlite(database), reader))
    }

    pub(crate) async fn open_postgres(place: &PostgresPlace) -> Result<(Self, Reader), StoreError> {
        let database = PostgresDatabase::open(place).await?;
        let reader = Reader::Postgres(database.reader.clone());
        Ok((Self::Postgres(Box::new(database)), reader))
    }

    /// Opens a file for reading alone and counts the migrations that it lacks.
    pub(crate) async fn look_at_file(path: &Path) -> Result<(Self, Reader, usize), StoreError> {
        let (database, missing) = SqliteDatabase::open_read_only(path).await?;
        let reader = Reader::Sqlite(database.reader.clone());
        Ok((Self::Sqlite(database), reader, missing))
    }

    /// Connects for reading alone and counts the migrations that the database lacks.
    pub(crate) async fn look_at_postgres(place: &PostgresPlace) -> Result<(Self, Reader, usize), StoreError> {
        let (database, missing) = PostgresDatabase::open_read_only(place).await?;
        let reader = Reader::Postgres(database.reader.clone());
        Ok((Self::Postgres(Box::new(database)), reader, missing))
    }

    /// How many migrations a `PostgreSQL` database lacks that has none.
    pub(crate) fn all_of_postgres() -> usize {
        postgres::MIGRATOR.iter().count()
    }

    /// What tells other processes of hints and text deltas; none for a database that one process has, or few that do not
    /// hurry.
    pub(crate) fn notifier(&self, hints: &Arc<Hints>, deltas: &Arc<Deltas>) -> Option<Notifier> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(database) => {
                let heard = notify::Heard { hints: Arc::clone(hints), deltas: Arc::clone(deltas) };
                Some(database.notifier(Random::system().bytes(), heard))
            }
        }
    }

    /// Connections for reads that may take long.
    pub(crate) fn lists(&self) -> Reader {
        match self {
            Self::Sqlite(database) => Reader::SqliteLists(database.lists.clone()),
            Self::Postgres(database) => Reader::Postgres(database.lists.clone()),
        }
    }

    /// Reads the clock of a database that has one, so that it is followed before anything is written.
    pub(crate) async fn set_clock(&self, clock: &Clock) -> Result<(), StoreError> {
        if let Self::Postgres(database) = self {
            clock.follow(database.now_ms().await?);
        }
        Ok(())
    }

    /// The number of the newest migration that this version knows.
    pub(crate) fn newest_known(&self) -> i64 {
        let migrator = match self {
            Self::Sqlite(_) => &sqlite::MIGRATOR,
            Self::Postgres(_) => &postgres::MIGRATOR,
        };
        migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
    }

    async fn settled(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(database) => database.disk.settled().await.map_err(unkept),
            Self::Postgres(_) => Ok(()),
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(database) => database.close().await,
            Self::Postgres(database) => database.close().await,
        }
    }
}

/// Why a server writes nothing that another place is by now. It may pass: that place may fall silent.
fn displaced() -> sqlx::Error {
    let text =
        "another machine or another state directory has taken this server's place while it was cut off";
    sqlx::Error::Io(std::io::Error::other(text))
}

fn unkept(error: std::io::Error) -> StoreError {
    StoreError::Unavailable(error.into())
}

/// How many migrations a database lacks.
///
/// # Errors
/// [`StoreError::Migration`] if it has one that this version does not know, or another one.
async fn missing_migrations(
    reader: &Reader,
    has_migrations: &'static str,
    migrator: &Migrator,
) -> Result<usize, StoreError> {
    if sql::query(has_migrations).fetch_optional(reader).await?.is_none() {
        return Ok(migrator.iter().count());
    }
    let applied: Vec<(i64, Vec<u8>)> = sql::query_as(MIGRATIONS).fetch_all(reader).await?;
    for (version, checksum) in &applied {
        match migrator.iter().find(|known| known.version == *version) {
            Some(known) if known.checksum.as_ref() == checksum => {}
            Some(_) => return Err(StoreError::Migration(MigrateError::VersionMismatch(*version))),
            None => return Err(StoreError::Migration(MigrateError::VersionMissing(*version))),
        }
    }
    Ok(migrator.iter().count().saturating_sub(applied.len()))
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

/// Sorts an error of sqlx.
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
    let code = database.code();
    if database.try_downcast_ref::<PgDatabaseError>().is_some() {
        postgres::fault(code.as_deref())
    } else {
        sqlite::fault(code.as_deref())
    }
}

/// A writing transaction: what it did becomes visible, and is told of, all at once.
pub(crate) struct Tx<'s> {
    pub(crate) db: Box<Connection>,
    /// The time of everything that this transaction writes.
    pub(crate) now_ms: i64,
    store: &'s Store,
    wakes: Vec<Topic>,
    counted: Vec<Counted>,
    sync: Sync,
}

impl Store {
    /// Begins a writing transaction and reads the clock, once and under the lock, so that times follow commits. A database that a
    /// later version has migrated meanwhile is written no more: its tables may be others than the statements here mean. Nor is
    /// anything written while another place is this server: whoever was cut off for so long that another one could take its place
    /// writes nothing about what is that one's now, not even before it tells again that it lives.
    pub(crate) async fn begin(&self) -> Result<Tx<'_>, StoreError> {
        self.begin_with(Hold::Everything, Sync::Waits).await
    }

    /// Begins the transaction in which it is looked at whether another place is this server, whichever is.
    pub(crate) async fn begin_anywhere(&self) -> Result<Tx<'_>, StoreError> {
        self.begin_looking(Hold::Everything, Sync::Waits).await.map(|(tx, _displaced)| tx)
    }

    /// Begins a transaction that other sessions' need not wait for.
    pub(crate) async fn begin_in(&self, hold: Hold<'_>) -> Result<Tx<'_>, StoreError> {
        self.begin_with(hold, Sync::Waits).await
    }

    /// Begins a transaction whose commit outlives the death of any process, but a power cut only once a later one has waited
    /// for the disk: for what nobody is told of, and somebody waits for.
    pub(crate) async fn begin_unsynced(&self, hold: Hold<'_>) -> Result<Tx<'_>, StoreError> {
        self.begin_with(hold, Sync::DoesNotWait).await
    }

    /// Waits until everything that was committed is on the disk, for whoever is about to show it.
    pub(crate) async fn settled(&self) -> Result<(), StoreError> {
        self.shared.database.settled().await
    }

    async fn begin_with(&self, hold: Hold<'_>, sync: Sync) -> Result<Tx<'_>, StoreError> {
        match self.begin_looking(hold, sync).await? {
            (tx, false) => Ok(tx),
            (_, true) => Err(StoreError::Unavailable(displaced())),
        }
    }

    async fn begin_looking(&self, hold: Hold<'_>, sync: Sync) -> Result<(Tx<'_>, bool), StoreError> {
        let (db, now_ms, newest, elsewhere) = match &self.shared.database {
            Database::Sqlite(database) => {
                let (tx, newest) = Box::pin(database.begin()).await?;
                (Connection::SqliteTx(tx), self.now_ms(), newest, None)
            }
            Database::Postgres(database) => {
                let place = self.shared.place.get();
                let (tx, (database_ms, newest, elsewhere)) = Box::pin(database.begin(hold, place)).await?;
                (Connection::Postgres(tx), self.shared.clock.follow(database_ms), newest, elsewhere)
            }
        };
        if newest > self.shared.database.newest_known() {
            return Err(StoreError::Migration(MigrateError::VersionMissing(newest)));
        }
        let displaced = elsewhere.is_some_and(|seen_at_ms| seen_at_ms >= now_ms - SERVER_SILENT_MS);
        let tx = Tx { db: Box::new(db), now_ms, store: self, wakes: Vec::new(), counted: Vec::new(), sync };
        Ok((tx, displaced))
    }

    /// For small reads: what an index finds at once.
    pub(crate) fn reader(&self) -> &Reader {
        &self.shared.reader
    }

    /// For lists, reports and whatever else may take long; nobody who uses [`Store::reader`] waits for it.
    pub(crate) fn lists(&self) -> &Reader {
        &self.shared.lists
    }
}

impl Tx<'_> {
    /// Wakes whoever watches `topic`, once the transaction is committed.
    pub(crate) fn wake(&mut self, topic: Topic) {
        if !self.wakes.contains(&topic) {
            self.wakes.push(topic);
        }
    }

    /// Adds to what this process counts, once the transaction is committed; what is below zero counts as nothing.
    pub(crate) fn count(&mut self, family: &'static Family, labels: Labels, amount: i64) {
        self.counted.push(Counted::new(family, labels, amount));
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match (&self.store.shared.database, self.sync) {
            (Database::Sqlite(database), Sync::Waits) => {
                let commit = database.disk.announce();
                self.db.commit().await?;
                database.disk.keep(commit).await.map_err(unkept)?;
            }
            // The server of PostgreSQL waits within the commit.
            (Database::Sqlite(_), Sync::DoesNotWait) | (Database::Postgres(_), _) => self.db.commit().await?,
        }
        self.store.shared.meters.add_all(self.counted);
        self.store.shared.hints.wake(&self.wakes);
        if let Some(notifier) = &self.store.shared.notifier {
            notifier.wake(self.wakes);
        }
        Ok(())
    }

    /// Locks the rows that a query for `PostgreSQL` answers with, until the transaction ends; nothing on a database whose
    /// transactions are alone anyway.
    pub(crate) async fn lock_rows(&mut self, sql: &'static str, id: &str) -> Result<(), StoreError> {
        if let Connection::Postgres(tx) = &mut *self.db {
            sql::query(sql).bind(id).execute(tx).await?;
        }
        Ok(())
    }

    /// Gives up what was done. Dropping does the same a little later. Whoever answers with what was there already, as for a
    /// request that comes twice, acknowledges it: so that is waited for as well.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        self.db.rollback().await?;
        match self.sync {
            Sync::Waits => self.store.settled().await,
            Sync::DoesNotWait => Ok(()),
        }
    }

    /// Marks a place that [`Tx::undo`] goes back to. `PostgreSQL` gives a transaction up with the first statement that fails;
    /// on `SQLite` only the statement fails, and this does nothing.
    pub(crate) async fn mark(&mut self) -> Result<(), StoreError> {
        self.postgres_only("savepoint mark").await
    }

    /// Goes back to the last [`Tx::mark`], after something failed that is not to end the transaction.
    pub(crate) async fn undo(&mut self) -> Result<(), StoreError> {
        self.postgres_only("rollback to savepoint mark").await
    }

    async fn postgres_only(&mut self, sql: &'static str) -> Result<(), StoreError> {
        if let Connection::Postgres(tx) = &mut *self.db {
            tx.execute(sql).await?;
        }
        Ok(())
    }

    /// The chain that audit records of this transaction go to.
    pub(crate) fn audit_chain(&self) -> &str {
        self.store.shared.audit_chain.get().map_or(crate::audit::LOCAL_CHAIN, String::as_str)
    }

    /// How often a run has used a credential, and when last (Unix ms), beyond what is written.
    pub(crate) fn unwritten_uses(&self, credential: &str, run: &RunId) -> (i64, i64) {
        self.store.shared.credential_uses.of(credential, run)
    }

    /// The store's random bytes.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        self.store.shared.random.bytes()
    }
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
