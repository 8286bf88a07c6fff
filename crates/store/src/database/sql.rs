//! Statements as the rest of the crate writes them: one text for every database where one will do, values and columns of
//! three types, and no word of which database it is.
//!
//! It has the shape of sqlx's own queries. sqlx's `Any` driver is not used: it would take the types that all of its
//! databases share, hide errors' codes and still leave every statement written for one of them.

mod each;

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{
    AssertSqlSafe, Column as _, ColumnIndex, Postgres, Row as _, SqlSafeStr as _, SqlStr, Sqlite,
    SqliteConnection, SqlitePool, Transaction, TypeInfo as _,
};

use self::each::{all, optional};
use super::leased::{self, Leased, Pool};
use super::lists;

/// A statement's text.
#[derive(Debug, Clone)]
pub(crate) enum Statement {
    /// Every database understands it.
    Common(&'static str),
    /// They differ.
    Each {
        /// For `SQLite`.
        sqlite: &'static str,
        /// For `PostgreSQL`.
        postgres: &'static str,
    },
    /// Made of constants and placeholders, never of values.
    Built(Arc<str>),
}

impl From<&'static str> for Statement {
    fn from(text: &'static str) -> Self {
        Self::Common(text)
    }
}

impl Statement {
    fn for_sqlite(self) -> SqlStr {
        match self {
            Self::Common(text) | Self::Each { sqlite: text, .. } => text.into_sql_str(),
            Self::Built(text) => AssertSqlSafe(text).into_sql_str(),
        }
    }

    fn for_postgres(self) -> SqlStr {
        match self {
            Self::Common(text) | Self::Each { postgres: text, .. } => text.into_sql_str(),
            Self::Built(text) => AssertSqlSafe(text).into_sql_str(),
        }
    }
}

/// A bound value. An absent one has a type as well, which `PostgreSQL` wants to know.
#[derive(Debug)]
pub(crate) enum Value<'q> {
    Integer(Option<i64>),
    Text(Option<Cow<'q, str>>),
}

macro_rules! integers {
    ($($type:ty),+) => {
        $(
            impl From<$type> for Value<'_> {
                fn from(value: $type) -> Self {
                    Self::Integer(Some(i64::from(value)))
                }
            }
            impl From<Option<$type>> for Value<'_> {
                fn from(value: Option<$type>) -> Self {
                    Self::Integer(value.map(i64::from))
                }
            }
        )+
    };
}
integers!(i64, u32, u16);

impl<'q> From<&'q i64> for Value<'q> {
    fn from(value: &'q i64) -> Self {
        Self::Integer(Some(*value))
    }
}

impl<'q> From<&'q str> for Value<'q> {
    fn from(value: &'q str) -> Self {
        Self::Text(Some(Cow::Borrowed(value)))
    }
}

impl<'q> From<&'q String> for Value<'q> {
    fn from(value: &'q String) -> Self {
        Self::Text(Some(Cow::Borrowed(value)))
    }
}

impl From<String> for Value<'_> {
    fn from(value: String) -> Self {
        Self::Text(Some(Cow::Owned(value)))
    }
}

impl<'q> From<Option<&'q str>> for Value<'q> {
    fn from(value: Option<&'q str>) -> Self {
        Self::Text(value.map(Cow::Borrowed))
    }
}

impl From<Option<String>> for Value<'_> {
    fn from(value: Option<String>) -> Self {
        Self::Text(value.map(Cow::Owned))
    }
}

/// A connection of the store's own, in a transaction or not.
#[derive(Debug)]
pub(crate) enum Connection {
    Sqlite(PoolConnection<Sqlite>),
    SqliteTx(Transaction<'static, Sqlite>),
    Postgres(Leased),
}

impl Connection {
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::SqliteTx(tx) => tx.commit().await,
            Self::Postgres(leased) => leased.end(leased::COMMIT).await,
            Self::Sqlite(_) => Ok(()),
        }
    }

    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self {
            Self::SqliteTx(tx) => tx.rollback().await,
            Self::Postgres(leased) => leased.end(leased::ROLLBACK).await,
            Self::Sqlite(_) => Ok(()),
        }
    }
}

/// Connections for reading.
#[derive(Debug, Clone)]
pub(crate) enum Reader {
    Sqlite(SqlitePool),
    /// Whose reads end after a time, and when nobody waits for them.
    SqliteLists(SqlitePool),
    Postgres(Pool),
}

impl Reader {
    /// One connection for several reads.
    pub(crate) async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) | Self::SqliteLists(pool) => Connection::Sqlite(pool.acquire().await?),
            Self::Postgres(pool) => Connection::Postgres(pool.acquire().await?),
        })
    }
}

/// Where a statement runs.
pub(crate) enum Executor<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut Leased),
    SqlitePool(&'c SqlitePool),
    SqliteLists(&'c SqlitePool),
    PostgresPool(&'c Pool),
}

impl<'c> From<&'c Reader> for Executor<'c> {
    fn from(reader: &'c Reader) -> Self {
        match reader {
            Reader::Sqlite(pool) => Self::SqlitePool(pool),
            Reader::SqliteLists(pool) => Self::SqliteLists(pool),
            Reader::Postgres(pool) => Self::PostgresPool(pool),
        }
    }
}

impl<'c> From<&'c mut Connection> for Executor<'c> {
    fn from(connection: &'c mut Connection) -> Self {
        match connection {
            Connection::Sqlite(connection) => Self::Sqlite(connection),
            Connection::SqliteTx(tx) => Self::Sqlite(tx),
            Connection::Postgres(leased) => Self::Postgres(leased),
        }
    }
}

impl<'c> From<&'c Pool> for Executor<'c> {
    fn from(pool: &'c Pool) -> Self {
        Self::PostgresPool(pool)
    }
}

impl<'c> From<&'c mut Leased> for Executor<'c> {
    fn from(leased: &'c mut Leased) -> Self {
        Self::Postgres(leased)
    }
}

/// What a statement that answers no rows did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    rows: u64,
}

impl Done {
    /// How many rows it changed.
    pub(crate) const fn rows_affected(self) -> u64 {
        self.rows
    }
}

/// A statement with its values.
pub(crate) struct Query<'q> {
    statement: Statement,
    values: Vec<Value<'q>>,
    each_time: bool,
}

/// Begins a statement; values are bound in the order of their placeholders, `$1` first.
pub(crate) fn query<'q>(statement: impl Into<Statement>) -> Query<'q> {
    Query { statement: statement.into(), values: Vec::new(), each_time: false }
}

/// Begins a statement that answers with one column.
pub(crate) fn query_scalar<'q, T>(statement: impl Into<Statement>) -> QueryScalar<'q, T> {
    QueryScalar { query: query(statement), answers: PhantomData }
}

/// Begins a statement that answers with a few columns, read by their places.
pub(crate) fn query_as<'q, T>(statement: impl Into<Statement>) -> QueryAs<'q, T> {
    QueryAs { query: query(statement), answers: PhantomData }
}

/// Asks `PostgreSQL`, and waits for the answer as long as one may take.
macro_rules! ask {
    ($leased:expr, $query:expr, $call:ident) => {{
        let (connection, until) = $leased.ask()?;
        let answered = tokio::time::timeout_at(until, $query.$call(connection)).await;
        $leased.answered(answered)
    }};
}

/// Calls the driver that `$executor` is of with the statement, bound and ready.
macro_rules! run {
    ($query:expr, $executor:expr, $call:ident, $answer:path) => {{
        let Query { statement, values, each_time } = $query;
        match $executor.into() {
            Executor::Sqlite(connection) => sqlite(statement, values).$call(connection).await.map($answer),
            Executor::SqlitePool(pool) => sqlite(statement, values).$call(pool).await.map($answer),
            Executor::SqliteLists(pool) => {
                let asked = async move {
                    let (mut connection, _asking) = lists::lease(pool).await?;
                    sqlite(statement, values).$call(&mut *connection).await
                };
                Box::pin(asked).await.map($answer)
            }
            // Apart, so that what SQLite never does takes no room in every function that asks something.
            Executor::Postgres(leased) => {
                let asked = async move { ask!(leased, postgres(statement, values, each_time), $call) };
                Box::pin(asked).await.map($answer)
            }
            Executor::PostgresPool(pool) => {
                let asked = async move {
                    let mut leased = pool.acquire().await?;
                    ask!(leased, postgres(statement, values, each_time), $call)
                };
                Box::pin(asked).await.map($answer)
            }
        }
    }};
}

impl<'q> Query<'q> {
    pub(crate) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Has `PostgreSQL` plan the statement for its values each time, which takes less than a millisecond. A statement that
    /// it keeps, it soon plans for all values at once, and then reads a whole table where few rows fit.
    pub(crate) fn planned_for_its_values(self) -> Self {
        Self { each_time: true, ..self }
    }

    pub(crate) async fn execute<'c>(self, on: impl Into<Executor<'c>>) -> Result<Done, sqlx::Error> {
        run!(self, on, execute, Done::from)
    }

    pub(crate) async fn fetch_one<'c>(self, on: impl Into<Executor<'c>>) -> Result<Row, sqlx::Error> {
        run!(self, on, fetch_one, Row::from)
    }

    pub(crate) async fn fetch_optional<'c>(
        self,
        on: impl Into<Executor<'c>>,
    ) -> Result<Option<Row>, sqlx::Error> {
        run!(self, on, fetch_optional, optional)
    }

    pub(crate) async fn fetch_all<'c>(self, on: impl Into<Executor<'c>>) -> Result<Vec<Row>, sqlx::Error> {
        run!(self, on, fetch_all, all)
    }
}

fn sqlite(
    statement: Statement,
    values: Vec<Value<'_>>,
) -> sqlx::query::Query<'static, Sqlite, sqlx::sqlite::SqliteArguments> {
    let query = sqlx::query(statement.for_sqlite());
    values.into_iter().fold(query, |query, value| match value {
        Value::Integer(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
    })
}

fn postgres(
    statement: Statement,
    values: Vec<Value<'_>>,
    each_time: bool,
) -> sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments> {
    let query = sqlx::query(statement.for_postgres()).persistent(!each_time);
    values.into_iter().fold(query, |query, value| match value {
        Value::Integer(value) => query.bind(value),
        Value::Text(value) => query.bind(value.map(without_nul)),
    })
}

/// A text that `PostgreSQL` takes: it refuses the character NUL, which an agent may well write.
pub(crate) fn without_nul(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { text }
}

/// [`Query`] whose rows have one column.
pub(crate) struct QueryScalar<'q, T> {
    query: Query<'q>,
    answers: PhantomData<fn() -> T>,
}

impl<'q, T: for<'r> Read<'r>> QueryScalar<'q, T> {
    pub(crate) fn bind(self, value: impl Into<Value<'q>>) -> Self {
        Self { query: self.query.bind(value), ..self }
    }

    pub(crate) async fn fetch_one<'c>(self, on: impl Into<Executor<'c>>) -> Result<T, sqlx::Error> {
        self.query.fetch_one(on).await?.get(0)
    }

    pub(crate) async fn fetch_optional<'c>(
        self,
        on: impl Into<Executor<'c>>,
    ) -> Result<Option<T>, sqlx::Error> {
        self.query.fetch_optional(on).await?.map(|row| row.get(0)).transpose()
    }
}

/// [`Query`] whose rows are tuples.
pub(crate) struct QueryAs<'q, T> {
    query: Query<'q>,
    answers: PhantomData<fn() -> T>,
}

impl<'q, T: Tuple> QueryAs<'q, T> {
    pub(crate) fn bind(self, value: impl Into<Value<'q>>) -> Self {
        Self { query: self.query.bind(value), ..self }
    }

    pub(crate) async fn fetch_optional<'c>(
        self,
        on: impl Into<Executor<'c>>,
    ) -> Result<Option<T>, sqlx::Error> {
        self.query.fetch_optional(on).await?.as_ref().map(T::read).transpose()
    }

    pub(crate) async fn fetch_all<'c>(self, on: impl Into<Executor<'c>>) -> Result<Vec<T>, sqlx::Error> {
        self.query.fetch_all(on).await?.iter().map(T::read).collect()
    }
}

/// A row of whichever database.
#[derive(Debug)]
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl From<SqliteRow> for Row {
    fn from(row: SqliteRow) -> Self {
        Self::Sqlite(row)
    }
}

impl From<PgRow> for Row {
    fn from(row: PgRow) -> Self {
        Self::Postgres(row)
    }
}

impl Row {
    /// The value in a column, by its name or its place.
    pub(crate) fn get<'r, T: Read<'r>>(&'r self, at: impl At) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => T::from_sqlite(row, at),
            Self::Postgres(row) => T::from_postgres(row, at),
        }
    }
}

/// What names a column in every database.
pub(crate) trait At: ColumnIndex<SqliteRow> + ColumnIndex<PgRow> + Copy {}
impl<I: ColumnIndex<SqliteRow> + ColumnIndex<PgRow> + Copy> At for I {}

/// What a column is read as.
pub(crate) trait Read<'r>: Sized {
    fn from_sqlite(row: &'r SqliteRow, at: impl At) -> Result<Self, sqlx::Error>;
    fn from_postgres(row: &'r PgRow, at: impl At) -> Result<Self, sqlx::Error>;
}

macro_rules! read_alike {
    ($($type:ty),+) => {
        $(
            impl<'r> Read<'r> for $type {
                fn from_sqlite(row: &'r SqliteRow, at: impl At) -> Result<Self, sqlx::Error> {
                    row.try_get(at)
                }
                fn from_postgres(row: &'r PgRow, at: impl At) -> Result<Self, sqlx::Error> {
                    row.try_get(at)
                }
            }
        )+
    };
}
read_alike!(String, Option<String>, &'r str, Option<&'r str>, Vec<u8>);

impl<'r> Read<'r> for i64 {
    fn from_sqlite(row: &'r SqliteRow, at: impl At) -> Result<Self, sqlx::Error> {
        row.try_get(at)
    }

    fn from_postgres(row: &'r PgRow, at: impl At) -> Result<Self, sqlx::Error> {
        let read: Option<Self> = Read::from_postgres(row, at)?;
        // The driver's own error for an absent value names the column.
        read.map_or_else(|| row.try_get(at), Ok)
    }
}

impl<'r> Read<'r> for Option<i64> {
    fn from_sqlite(row: &'r SqliteRow, at: impl At) -> Result<Self, sqlx::Error> {
        row.try_get(at)
    }

    /// Literals are smaller numbers there, and what is true or false is no number.
    fn from_postgres(row: &'r PgRow, at: impl At) -> Result<Self, sqlx::Error> {
        match row.try_column(at)?.type_info().name() {
            "BOOL" => Ok(row.try_get::<Option<bool>, _>(at)?.map(i64::from)),
            "INT4" => Ok(row.try_get::<Option<i32>, _>(at)?.map(i64::from)),
            _ => row.try_get(at),
        }
    }
}

/// A few columns, read by their places.
pub(crate) trait Tuple: Sized {
    fn read(row: &Row) -> Result<Self, sqlx::Error>;
}

macro_rules! tuples {
    ($(($($name:ident $at:literal),+)),+) => {
        $(
            impl<$($name: for<'r> Read<'r>),+> Tuple for ($($name,)+) {
                fn read(row: &Row) -> Result<Self, sqlx::Error> {
                    Ok(($(row.get::<$name>($at)?,)+))
                }
            }
        )+
    };
}
tuples!((A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3, E 4), (A 0, B 1, C 2, D 3, E 4, F 5));

impl From<sqlx::sqlite::SqliteQueryResult> for Done {
    fn from(result: sqlx::sqlite::SqliteQueryResult) -> Self {
        Self { rows: result.rows_affected() }
    }
}

impl From<sqlx::postgres::PgQueryResult> for Done {
    fn from(result: sqlx::postgres::PgQueryResult) -> Self {
        Self { rows: result.rows_affected() }
    }
}
