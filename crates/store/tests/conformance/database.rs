//! The databases below the fixtures, and ways around the store: what is read and changed behind its back.

use std::path::{Path, PathBuf};

use caisson_store::{Clock, Look, PostgresLimits, PostgresPlace, Random, Store, StoreError};
use sqlx::postgres::{PgConnectOptions, PgListener, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{
    AssertSqlSafe, ColumnIndex, ConnectOptions as _, Connection as _, Decode, PgConnection, Postgres,
    Row as _, Sqlite, SqliteConnection, Type,
};

/// Where the server for tests is.
const URL: &str = "TEST_POSTGRES_URL";

/// A database of a test's own.
pub(crate) enum Database {
    /// A file in a directory of its own.
    Sqlite { directory: tempfile::TempDir, path: PathBuf },
    /// A schema, and a directory for what is no database.
    Postgres { directory: tempfile::TempDir, schema: Schema },
}

/// A statement: one text for every database, or one for each, `SQLite`'s first.
#[derive(Clone, Copy)]
pub(crate) struct Sql {
    sqlite: &'static str,
    postgres: &'static str,
}

impl From<&'static str> for Sql {
    fn from(sql: &'static str) -> Self {
        Self { sqlite: sql, postgres: sql }
    }
}

impl From<(&'static str, &'static str)> for Sql {
    fn from((sqlite, postgres): (&'static str, &'static str)) -> Self {
        Self { sqlite, postgres }
    }
}

/// A row read behind the store's back.
pub(crate) enum TestRow {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What can be read from every database.
pub(crate) trait Readable<'r>:
    Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}
impl<'r, T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>> Readable<'r> for T {}

impl TestRow {
    pub(crate) fn get<'r, T: Readable<'r>>(
        &'r self,
        at: impl ColumnIndex<SqliteRow> + ColumnIndex<PgRow>,
    ) -> T {
        match self {
            Self::Sqlite(row) => row.try_get(at),
            Self::Postgres(row) => row.try_get(at),
        }
        .expect("the column has the type")
    }
}

/// A connection past the store.
enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Whether the database's own checks of keys and triggers are on.
#[derive(Clone, Copy)]
pub(crate) enum Checks {
    On,
    Off,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("caisson.db");
        Self::Sqlite { directory, path }
    }

    /// A new schema; none where no server is named, which fails if tests are required.
    pub(crate) async fn postgres() -> Option<Self> {
        let schema = Schema::make().await?;
        Some(Self::Postgres { directory: tempfile::tempdir().expect("a temporary directory"), schema })
    }

    /// Opens a store on it.
    pub(crate) async fn open(&self, clock: Clock, random: Random) -> Result<Store, StoreError> {
        match self {
            Self::Sqlite { path, .. } => Store::open_with(path, clock, random).await,
            Self::Postgres { schema, .. } => Store::connect_with(&schema.place(), clock, random).await,
        }
    }

    /// What differs between the databases, `SQLite`'s first.
    pub(crate) const fn of<T: Copy>(&self, sqlite: T, postgres: T) -> T {
        match self {
            Self::Sqlite { .. } => sqlite,
            Self::Postgres { .. } => postgres,
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        match self {
            Self::Sqlite { directory, .. } | Self::Postgres { directory, .. } => directory.path(),
        }
    }

    pub(crate) async fn try_execute(&self, sql: Sql, checks: Checks) -> Result<u64, sqlx::Error> {
        let mut connection = self.raw(checks).await;
        let done = connection.execute(sql).await;
        connection.close().await;
        done
    }

    pub(crate) async fn rows(&self, sql: Sql) -> Vec<TestRow> {
        let mut connection = self.raw(Checks::Off).await;
        let rows = match &mut connection {
            Raw::Sqlite(connection) => sqlx::query(sql.sqlite).fetch_all(connection).await.map(sqlite_rows),
            Raw::Postgres(connection) => {
                sqlx::query(sql.postgres).fetch_all(connection).await.map(postgres_rows)
            }
        };
        let rows = rows.expect("the query is valid");
        connection.close().await;
        rows
    }

    /// Everything that is stored, as bytes: the files, or every row of every table.
    pub(crate) async fn contents(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Sqlite { directory, .. } => {
                let files = std::fs::read_dir(directory.path()).unwrap();
                files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
            }
            Self::Postgres { schema, .. } => schema.contents().await,
        }
    }

    /// Fills a new file, or a new schema, with what was dumped of one; a dumped schema is called `recorded`.
    pub(crate) async fn restore(&self, dump: &str) {
        match self {
            Self::Sqlite { path, .. } => {
                let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
                let mut connection = options.connect().await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(dump.to_owned())).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres { schema, .. } => {
                let mut connection = schema.connection(Checks::On).await;
                let dump = AssertSqlSafe(dump.replace("recorded.", &format!("{}.", schema.name)));
                sqlx::raw_sql(dump).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Brings it to an earlier version than this one.
    pub(crate) async fn migrate_to(&self, version: i64) {
        match self.raw(Checks::On).await {
            Raw::Sqlite(mut connection) => {
                sqlx::migrate!("migrations/sqlite").run_to(version, &mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Raw::Postgres(mut connection) => {
                sqlx::migrate!("migrations/postgres").run_to(version, &mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Looks whether it is of this version.
    pub(crate) async fn look(&self) -> Result<Look, StoreError> {
        let clock = Clock::fixed_at(1).0;
        match self {
            Self::Sqlite { path, .. } => Store::look(path, clock).await,
            Self::Postgres { schema, .. } => Store::look_at(&schema.place(), clock).await,
        }
    }

    /// Locks a session's row as a transaction of another server does.
    pub(crate) async fn hold_session(&self, session: &str) -> Held {
        let Self::Postgres { schema, .. } = self else { panic!("only rows of PostgreSQL are locked") };
        let mut connection = schema.connection(Checks::On).await;
        sqlx::query("begin").execute(&mut connection).await.unwrap();
        let lock = "select 1 from session where id = $1 for update";
        sqlx::query(lock).bind(session).fetch_one(&mut connection).await.unwrap();
        Held(connection)
    }

    /// The socket of the server.
    pub(crate) fn socket(&self) -> PathBuf {
        let Self::Postgres { schema, .. } = self else { panic!("a file has no socket") };
        let directory = schema.url.split_once("?host=").expect("the server for tests has a socket").1;
        Path::new(directory).join(".s.PGSQL.5432")
    }

    /// The database by a local port that leads to the server's socket.
    pub(crate) fn place_by(&self, port: u16, limits: PostgresLimits) -> PostgresPlace {
        let Self::Postgres { schema, .. } = self else { panic!("a file has no port") };
        let name = &schema.name;
        let url = format!(
            "postgres://caisson@127.0.0.1:{port}/postgres?sslmode=disable&options[search_path]={name}&application_name={name}"
        );
        PostgresPlace::from_url(&url, limits).expect("a URL")
    }

    /// The database, with bounds of the test's own.
    pub(crate) fn place(&self, limits: PostgresLimits) -> PostgresPlace {
        let Self::Postgres { schema, .. } = self else { panic!("a file has no place") };
        place_with(&schema.url, &schema.name, limits)
    }

    /// Hears the live text that servers tell one another, as whoever may log in to the database can.
    pub(crate) async fn hear_text(&self) -> PgListener {
        const CHANNEL: &str = "select 'caisson_' || to_hex((cast(1128352083 as bigint) << 32) | \
             cast(cast(cast('project' as regclass) as oid) as bigint)) || '_text'";
        let Self::Postgres { schema, .. } = self else { panic!("in a file nobody tells anybody") };
        let mut connection = schema.connection(Checks::On).await;
        let (channel,): (String,) = sqlx::query_as(CHANNEL).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let mut listener = PgListener::connect(&schema.url).await.unwrap();
        listener.listen(&channel).await.unwrap();
        listener
    }

    /// Reads from a table in a transaction that does not end.
    pub(crate) async fn hold_table(&self, table: &str) -> Held {
        let Self::Postgres { schema, .. } = self else { panic!("only tables of PostgreSQL are locked") };
        let mut connection = schema.connection(Checks::On).await;
        sqlx::query("begin").execute(&mut connection).await.unwrap();
        let read = AssertSqlSafe(format!("select 1 from {table} limit 1"));
        sqlx::query(read).fetch_optional(&mut connection).await.unwrap();
        Held(connection)
    }

    /// Keeps the write lock as a transaction of another server does.
    pub(crate) async fn hold_writing(&self) -> Held {
        let Self::Postgres { schema, .. } = self else { panic!("a file has another lock") };
        let mut connection = schema.connection(Checks::On).await;
        let lock = "select cast(pg_advisory_lock((cast(x'43414953' as bigint) << 32) | \
             cast(cast(cast('project' as regclass) as oid) as bigint)) as text)";
        sqlx::query(lock).fetch_one(&mut connection).await.unwrap();
        Held(connection)
    }

    /// Writes to the file as another process does, and has not finished.
    pub(crate) async fn hold_file(&self) -> SqliteConnection {
        let Self::Sqlite { path, .. } = self else { panic!("only a file is held") };
        let mut connection = sqlite_connection(path).await;
        sqlx::query("begin immediate").execute(&mut connection).await.unwrap();
        connection
    }

    /// Ends every connection to the database but the one that says so.
    pub(crate) async fn cut_connections(&self) {
        let Self::Postgres { schema, .. } = self else { panic!("a file has no connections") };
        let mut connection = schema.connection(Checks::On).await;
        // Those of this process: other tests use the same database.
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where application_name = $1 and pid <> pg_backend_pid()";
        let ended: i64 = sqlx::query_scalar(cut).bind(&schema.name).fetch_one(&mut connection).await.unwrap();
        assert!(ended > 1, "there were some");
        connection.close().await.unwrap();
    }

    async fn raw(&self, checks: Checks) -> Raw {
        match self {
            Self::Sqlite { path, .. } => Raw::Sqlite(sqlite_connection(path).await),
            Self::Postgres { schema, .. } => Raw::Postgres(schema.connection(checks).await),
        }
    }

    /// A copy of the audit log in which somebody with all rights ran `sql`, to be looked at.
    pub(crate) async fn tampered(&self, name: &str, sql: &str) -> Store {
        let statements = sql.split(';').map(str::trim).filter(|statement| !statement.is_empty());
        let looked = match self {
            Self::Sqlite { directory, path } => {
                let copy = directory.path().join(format!("{name}.db"));
                let mut whole = sqlite_connection(path).await;
                let vacuum = format!("vacuum into '{}'", copy.display());
                sqlx::query(AssertSqlSafe(vacuum)).execute(&mut whole).await.unwrap();
                let mut connection = sqlite_connection(&copy).await;
                for trigger in ["audit_kept", "audit_left", "audit_appended"] {
                    let drop = format!("drop trigger {trigger}");
                    sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
                }
                for statement in statements {
                    let sql = AssertSqlSafe(statement.to_owned());
                    let done = sqlx::query(sql).execute(&mut connection).await.unwrap();
                    assert!(done.rows_affected() > 0, "{statement}");
                }
                connection.close().await.unwrap();
                Store::look(&copy, Clock::fixed_at(1).0).await
            }
            Self::Postgres { schema, .. } => {
                let copy = schema.copy(name).await;
                let mut connection = schema.connection_to(&copy, Checks::Off).await;
                for statement in statements {
                    let sql = AssertSqlSafe(statement.to_owned());
                    let done = sqlx::query(sql).execute(&mut connection).await.unwrap();
                    assert!(done.rows_affected() > 0, "{statement}");
                }
                Store::look_at(&place(&schema.url, &copy), Clock::fixed_at(1).0).await
            }
        };
        match looked.unwrap() {
            Look::Ready(store) => store,
            Look::Missing | Look::Behind { .. } => panic!("the copy is not ready"),
        }
    }
}

/// A locked row.
pub(crate) struct Held(PgConnection);

impl Held {
    pub(crate) async fn release(self) {
        self.0.close().await.unwrap();
    }
}

impl Raw {
    async fn execute(&mut self, sql: Sql) -> Result<u64, sqlx::Error> {
        match self {
            Self::Sqlite(connection) => {
                sqlx::query(sql.sqlite).execute(connection).await.map(|done| done.rows_affected())
            }
            Self::Postgres(connection) => {
                sqlx::query(sql.postgres).execute(connection).await.map(|done| done.rows_affected())
            }
        }
    }

    async fn close(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(connection) => connection.close().await,
        }
        .expect("the connection closes");
    }
}

fn sqlite_rows(rows: Vec<SqliteRow>) -> Vec<TestRow> {
    rows.into_iter().map(TestRow::Sqlite).collect()
}

fn postgres_rows(rows: Vec<PgRow>) -> Vec<TestRow> {
    rows.into_iter().map(TestRow::Postgres).collect()
}

async fn sqlite_connection(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).foreign_keys(false);
    options.connect().await.expect("the database opens beside the store")
}

/// A schema of a test's own, which goes when it is dropped, with its copies.
pub(crate) struct Schema {
    url: String,
    name: String,
}

impl Schema {
    #[expect(
        clippy::disallowed_methods,
        clippy::print_stderr,
        reason = "where the server is, only tests ask"
    )]
    async fn make() -> Option<Self> {
        let Ok(url) = std::env::var(URL) else {
            assert!(
                std::env::var("TEST_REQUIRE").is_err(),
                "{URL} is not set; scripts/setup starts a server"
            );
            eprintln!("skipped: {URL} is not set, so there is no PostgreSQL to test with");
            return None;
        };
        let name = format!("test_{}", hex::encode(Random::system().bytes::<8>()));
        let schema = Self { url, name };
        schema.admin(&format!("create schema {}", schema.name)).await;
        Some(schema)
    }

    pub(crate) fn place(&self) -> PostgresPlace {
        place(&self.url, &self.name)
    }

    async fn admin(&self, sql: &str) {
        let options: PgConnectOptions = self.url.parse().expect("a URL");
        let mut connection = options.connect().await.expect("the server for tests answers");
        sqlx::query(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await
            .expect("the statement is valid");
        connection.close().await.expect("the connection closes");
    }

    async fn connection(&self, checks: Checks) -> PgConnection {
        self.connection_to(&self.name, checks).await
    }

    async fn connection_to(&self, name: &str, checks: Checks) -> PgConnection {
        let options: PgConnectOptions = self.url.parse().expect("a URL");
        let role = match checks {
            Checks::On => "origin",
            Checks::Off => "replica",
        };
        let options = options.options([("search_path", name), ("session_replication_role", role)]);
        options.connect().await.expect("the server for tests answers")
    }

    async fn contents(&self) -> Vec<Vec<u8>> {
        let mut connection = self.connection(Checks::On).await;
        let tables: Vec<(String,)> =
            sqlx::query_as("select tablename::text from pg_tables where schemaname = current_schema()")
                .fetch_all(&mut connection)
                .await
                .unwrap();
        let mut contents = Vec::new();
        for (table,) in tables {
            let all = format!("select cast({table} as text) from {table}");
            let rows: Vec<(String,)> =
                sqlx::query_as(AssertSqlSafe(all)).fetch_all(&mut connection).await.unwrap();
            contents.extend(rows.into_iter().map(|(row,)| row.into_bytes()));
        }
        contents
    }

    /// A schema with the same audit log.
    async fn copy(&self, name: &str) -> String {
        let copy = format!("{}_{name}", self.name);
        self.admin(&format!("create schema {copy}")).await;
        let store = Store::connect(&place(&self.url, &copy), Clock::fixed_at(1).0).await.unwrap();
        store.close().await.unwrap();
        let mut connection = self.connection_to(&copy, Checks::Off).await;
        let insert = format!("insert into audit select * from {}.audit", self.name);
        sqlx::query(AssertSqlSafe(insert)).execute(&mut connection).await.unwrap();
        copy
    }
}

fn place(url: &str, schema: &str) -> PostgresPlace {
    place_with(url, schema, PostgresLimits { connections: 8, ..PostgresLimits::default() })
}

fn place_with(url: &str, schema: &str, limits: PostgresLimits) -> PostgresPlace {
    let joint = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{joint}options[search_path]={schema}&application_name={schema}");
    PostgresPlace::from_url(&url, limits).expect("a URL")
}

impl Drop for Schema {
    #[expect(clippy::print_stderr, reason = "a test has no log")]
    fn drop(&mut self) {
        let (url, name) = (self.url.clone(), self.name.clone());
        // The test's own runtime cannot wait here.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(drop_schemas(&url, &name)).map_err(std::io::Error::other)
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("the schema {} is left behind: {error}", self.name);
        }
    }
}

async fn drop_schemas(url: &str, name: &str) -> Result<(), sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    let mut connection = options.options([("lock_timeout", "5000")]).connect().await?;
    // The test's runtime does nothing any more, so what is under way there would never end.
    let cut = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where starts_with(application_name, $1)";
    sqlx::query(cut).bind(name).fetch_all(&mut connection).await?;
    let names: Vec<(String,)> = sqlx::query_as(
        "select nspname::text from pg_namespace where nspname = $1 or starts_with(nspname, $1 || '_')",
    )
    .bind(name)
    .fetch_all(&mut connection)
    .await?;
    for (name,) in names {
        sqlx::query(AssertSqlSafe(format!("drop schema {name} cascade"))).execute(&mut connection).await?;
    }
    connection.close().await
}
