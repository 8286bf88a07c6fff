//! Copies a `SQLite` database into an empty `PostgreSQL` one: all of it, or nothing.
//!
//! The source is locked against writers for as long as the copy takes, and the target is filled in one transaction, so that
//! whatever breaks leaves both as they were. Rows are carried in batches of a bounded size. Before the commit everything is
//! read back, and each table's rows have to have the same number and the same hash as those that were read. What is sealed
//! is carried as it is: neither key nor secret is needed.

use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Postgres, Row as _, SqliteConnection,
    Transaction,
};

use super::tables::{self, Column, Kind, Table, quoted};
use crate::StoreError;
use crate::database::postgres::{PostgresPlace, open_to_fill};
use crate::database::sql::without_nul;
use crate::database::sqlite::SqliteDatabase;

/// Most rows carried at once.
pub const COPY_BATCH_ROWS: usize = 500;
/// A batch is sent once it holds that many bytes of text.
pub const COPY_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How long the source's lock is waited for, in milliseconds.
const LOCK_MS: u64 = 5_000;

/// Why a database was not copied. Source and target are as they were.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source is of an earlier version.
    #[error("the source lacks {0} migrations; run `caisson db migrate` first")]
    Behind(usize),
    /// The target holds something.
    #[error("the target is not empty: its table {table} has {rows} rows; name a new database")]
    NotEmpty {
        /// The first table that has rows.
        table: String,
        /// How many.
        rows: i64,
    },
    /// The two have other tables.
    #[error("source and target do not have the same tables: {0}")]
    OtherTables(String),
    /// What was read back is not what was written.
    #[error(
        "table {table} came out different: {read} rows were read and {found} found, or their content differs"
    )]
    Differs {
        /// The table.
        table: String,
        /// Rows in the source.
        read: u64,
        /// Rows in the target.
        found: u64,
    },
    /// One of the two failed.
    #[error("{side} failed")]
    Failed {
        /// Which: the source or the target.
        side: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// A table that was carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableCopied {
    /// Its name.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 over its rows in the order of its key, the same on both sides, as hexadecimal digits.
    pub sha256: String,
    /// Texts in which the character NUL, which `PostgreSQL` has no place for, became U+FFFD, as it does there always.
    pub without_nul: u64,
}

fn of_source(error: impl Into<StoreError>) -> CopyError {
    CopyError::Failed { side: "the source", source: error.into() }
}

fn of_target(error: impl Into<StoreError>) -> CopyError {
    CopyError::Failed { side: "the target", source: error.into() }
}

const HOLD_SOURCE: &str = "begin immediate";
const LET_GO: &str = "rollback";
const LAST_NUMBERS: &str = "select name, seq from sqlite_sequence order by name";

/// No time limits: a table may be large, and everything is one transaction. A commit waits for the disk, as always.
const UNHURRIED: &str = "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; \
     set local lock_timeout = '10s'; set local synchronous_commit = on";
const TARGET_TABLES: &str = "select cast(table_name as text) from information_schema.tables \
     where table_schema = current_schema() and table_type = 'BASE TABLE' and table_name <> '_sqlx_migrations' \
     order by table_name collate \"C\"";
/// Tables that have a row in every new database, which comes from the source.
const FROM_THE_START: [&str; 2] = ["project", "queue_state"];
/// The rows of `audit_before` are never written again but by this.
const OPEN_CLOSED: &str = "alter table audit_before disable trigger audit_before_kept";
const CLOSE_AGAIN: &str = "alter table audit_before enable trigger audit_before_kept";
const GO_ON_FROM: &str = "select setval(pg_get_serial_sequence($1, $2), $3)";

/// Copies the database file `from`, whose server must not run, into the empty database `to`, which is migrated first.
///
/// # Errors
/// [`CopyError`]; the source is never changed, and the target has its empty tables at most.
/// # Cancel safety
/// Safe: the target's transaction is never committed then.
pub async fn copy_to_postgres(from: &Path, to: &PostgresPlace) -> Result<Vec<TableCopied>, CopyError> {
    let options = SqliteConnectOptions::new()
        .filename(from)
        .create_if_missing(false)
        .busy_timeout(Duration::from_millis(LOCK_MS));
    let mut source = options.connect().await.map_err(of_source)?;
    // Nobody writes to it while it is copied: what came later would be lost.
    sqlx::query(HOLD_SOURCE).execute(&mut source).await.map_err(of_source)?;
    let (looked, missing) = SqliteDatabase::open_read_only(from).await.map_err(of_source)?;
    looked.reader.close().await;
    if missing > 0 {
        return Err(CopyError::Behind(missing));
    }
    let tables = tables::in_order(&mut source).await.map_err(of_source)?;
    let (mut target, lock) = open_to_fill(to).await.map_err(of_target)?;
    let copied = fill(&mut source, &mut target, &tables, lock).await?;
    sqlx::query(LET_GO).execute(&mut source).await.map_err(of_source)?;
    source.close().await.map_err(of_source)?;
    target.close().await.map_err(of_target)?;
    Ok(copied)
}

async fn fill(
    source: &mut SqliteConnection,
    target: &mut PgConnection,
    tables: &[Table],
    lock: i64,
) -> Result<Vec<TableCopied>, CopyError> {
    let mut tx = target.begin().await.map_err(of_target)?;
    sqlx::raw_sql(UNHURRIED).execute(&mut *tx).await.map_err(of_target)?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(lock).execute(&mut *tx).await.map_err(of_target)?;
    check_empty(&mut tx, tables).await?;
    sqlx::query(OPEN_CLOSED).execute(&mut *tx).await.map_err(of_target)?;
    let mut copied = Vec::new();
    for table in tables {
        copied.push(carry(source, &mut tx, table).await?);
    }
    sqlx::query(CLOSE_AGAIN).execute(&mut *tx).await.map_err(of_target)?;
    let last: Vec<(String, i64)> =
        sqlx::query_as(LAST_NUMBERS).fetch_all(&mut *source).await.map_err(of_source)?;
    for (name, number) in last.iter().filter(|(_, number)| *number > 0) {
        let Some(key) = tables.iter().find(|table| table.name == *name).and_then(|table| table.key.first())
        else {
            continue;
        };
        let on = sqlx::query(GO_ON_FROM).bind(quoted(name)).bind(key).bind(number);
        on.execute(&mut *tx).await.map_err(of_target)?;
    }
    for (table, copied) in tables.iter().zip(&copied) {
        compare(&mut tx, table, copied).await?;
    }
    tx.commit().await.map_err(of_target)?;
    Ok(copied)
}

/// Refuses a target that anything was ever done with, and takes out what its migrations put into it.
async fn check_empty(tx: &mut Transaction<'_, Postgres>, tables: &[Table]) -> Result<(), CopyError> {
    let found: Vec<String> =
        sqlx::query_scalar(TARGET_TABLES).fetch_all(&mut **tx).await.map_err(of_target)?;
    let mut wanted: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
    wanted.sort();
    if found != wanted {
        let other = |name: &&String| !(found.contains(name) && wanted.contains(name));
        let names: Vec<_> = found.iter().chain(&wanted).filter(other).map(String::as_str).collect();
        return Err(CopyError::OtherTables(names.join(", ")));
    }
    for table in tables {
        let count = format!("select count(*) from {}", quoted(&table.name));
        let rows: i64 =
            sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut **tx).await.map_err(of_target)?;
        if rows > i64::from(FROM_THE_START.contains(&table.name.as_str())) {
            return Err(CopyError::NotEmpty { table: table.name.clone(), rows });
        }
    }
    for table in FROM_THE_START {
        let clear = format!("delete from {table}");
        sqlx::query(AssertSqlSafe(clear)).execute(&mut **tx).await.map_err(of_target)?;
    }
    Ok(())
}

/// The values of some rows, column by column.
enum Values {
    Integers(Vec<Option<i64>>),
    Texts(Vec<Option<String>>),
}

/// Rows on their way.
struct Batch {
    columns: Vec<Values>,
    rows: usize,
    bytes: usize,
}

impl Batch {
    fn of(table: &Table) -> Self {
        let empty = |column: &Column| match column.kind {
            Kind::Integer => Values::Integers(Vec::new()),
            Kind::Text => Values::Texts(Vec::new()),
        };
        Self { columns: table.columns.iter().map(empty).collect(), rows: 0, bytes: 0 }
    }

    /// Takes a row in, and says in how many texts a NUL had to go.
    fn push(&mut self, row: &SqliteRow, hash: &mut RowsHash) -> Result<u64, sqlx::Error> {
        let mut replaced = 0;
        for (place, values) in self.columns.iter_mut().enumerate() {
            match values {
                Values::Integers(values) => {
                    let value: Option<i64> = row.try_get(place)?;
                    hash.integer(value);
                    values.push(value);
                }
                Values::Texts(values) => {
                    let text: Option<String> = row.try_get(place)?;
                    let nul = text.as_ref().is_some_and(|text| text.contains('\0'));
                    replaced += u64::from(nul);
                    let text =
                        text.map(|text| if nul { without_nul(text.into()).into_owned() } else { text });
                    hash.text(text.as_deref());
                    self.bytes += text.as_ref().map_or(0, String::len);
                    values.push(text);
                }
            }
        }
        self.rows += 1;
        Ok(replaced)
    }

    const fn is_full(&self) -> bool {
        self.rows >= COPY_BATCH_ROWS || self.bytes >= COPY_BATCH_BYTES
    }

    async fn send(self, insert: &str, tx: &mut Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut query = sqlx::query(AssertSqlSafe(insert.to_owned()));
        for values in self.columns {
            query = match values {
                Values::Integers(values) => query.bind(values),
                Values::Texts(values) => query.bind(values),
            };
        }
        query.execute(&mut **tx).await.map(drop)
    }
}

fn insert(table: &Table) -> String {
    let arrays: Vec<_> = table
        .columns
        .iter()
        .enumerate()
        .map(|(place, column)| match column.kind {
            Kind::Integer => format!("cast(${} as bigint[])", place + 1),
            Kind::Text => format!("cast(${} as text[])", place + 1),
        })
        .collect();
    let (name, columns, arrays) = (quoted(&table.name), table.column_list(), arrays.join(", "));
    format!("insert into {name} ({columns}) select * from unnest({arrays})")
}

async fn carry(
    source: &mut SqliteConnection,
    tx: &mut Transaction<'_, Postgres>,
    table: &Table,
) -> Result<TableCopied, CopyError> {
    let insert = insert(table);
    let mut hash = RowsHash::default();
    let (mut rows, mut replaced) = (0, 0);
    let mut batch = Batch::of(table);
    let mut reading = sqlx::query(AssertSqlSafe(table.select())).fetch(&mut *source);
    while let Some(row) = reading.try_next().await.map_err(of_source)? {
        replaced += batch.push(&row, &mut hash).map_err(of_source)?;
        rows += 1;
        if batch.is_full() {
            std::mem::replace(&mut batch, Batch::of(table)).send(&insert, tx).await.map_err(of_target)?;
        }
    }
    batch.send(&insert, tx).await.map_err(of_target)?;
    Ok(TableCopied { table: table.name.clone(), rows, sha256: hash.finish(), without_nul: replaced })
}

async fn compare(
    tx: &mut Transaction<'_, Postgres>,
    table: &Table,
    copied: &TableCopied,
) -> Result<(), CopyError> {
    let mut hash = RowsHash::default();
    let mut found = 0;
    let mut reading = sqlx::query(AssertSqlSafe(table.select())).fetch(&mut **tx);
    while let Some(row) = reading.try_next().await.map_err(of_target)? {
        for (place, column) in table.columns.iter().enumerate() {
            match column.kind {
                Kind::Integer => hash.integer(row.try_get(place).map_err(of_target)?),
                Kind::Text => hash.text(row.try_get(place).map_err(of_target)?),
            }
        }
        found += 1;
    }
    if found == copied.rows && hash.finish() == copied.sha256 {
        return Ok(());
    }
    Err(CopyError::Differs { table: table.name.clone(), read: copied.rows, found })
}

/// A hash over rows: each value with its kind and length, so that no two lists of values read alike.
#[derive(Default)]
struct RowsHash(Sha256);

impl RowsHash {
    fn integer(&mut self, value: Option<i64>) {
        match value {
            None => self.0.update([0]),
            Some(value) => {
                self.0.update([1]);
                self.0.update(value.to_be_bytes());
            }
        }
    }

    fn text(&mut self, value: Option<&str>) {
        match value {
            None => self.0.update([0]),
            Some(text) => {
                self.0.update([2]);
                self.0.update((text.len() as u64).to_be_bytes());
                self.0.update(text.as_bytes());
            }
        }
    }

    fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}
