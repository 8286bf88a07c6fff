//! `PostgreSQL`: where it is, its pools, the locks of a writing transaction, and what its error codes mean.
//!
//! **Isolation.** Every transaction runs under READ COMMITTED and begins by taking the store's write lock, an advisory
//! lock that the commit gives back; each later statement sees whatever was committed before that. So what is true of
//! `SQLite`'s one writer is true here, over all servers: nothing that a transaction has read changes until it ends.
//!
//! What comes often and concerns one session alone ([`Hold`]) takes that lock shared and locks its session's row, so that
//! sessions do not wait for one another. Locks are taken in one order, write lock, session, project, so there is nothing
//! to deadlock with, and READ COMMITTED knows no serialization failures: nothing is ever tried again here.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use caisson_domain::id::ServerId;
use caisson_domain::server::Role;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tokio::time::timeout;

use super::breaker::Breaker;
use super::leased::{Leased, Pool, answer, late};
use super::lists::{LIST_MS, LISTING_PART};
use super::migrating::{Migrating, migrate};
use super::notify::{Heard, Hearing, Notifier};
use super::sql::{self, Reader};
use super::{Fault, Hold, missing_migrations};
use crate::presence::Place;
use crate::{Random, StoreError};

/// The oldest version that is known to work, as `server_version_num` has it.
const OLDEST_VERSION: i64 = 150_000;
/// How long a transaction waits for the write lock, in milliseconds.
const LOCK_MS: u64 = 5_000;
/// How long the server lets a transaction of ours be silent between two statements, in milliseconds: a machine that went away in
/// the middle of one keeps the others waiting no longer than that, once what it asked for last is done.
const SILENT_MS: u64 = 10_000;
/// What the server does about connections on which nothing comes back any more, on each of ours: what it sends must be
/// acknowledged within 30 s, or it waits no longer to send the rest; and a quiet one is asked after 30 s whether it is there,
/// three times, 10 s apart. Ignored on a socket. <https://www.postgresql.org/docs/15/runtime-config-connection.html>
const VANISHED: [(&str, u64); 5] = [
    ("idle_in_transaction_session_timeout", SILENT_MS),
    ("tcp_user_timeout", 30_000),
    ("tcp_keepalives_idle", 30),
    ("tcp_keepalives_interval", 10),
    ("tcp_keepalives_count", 3),
];
/// Prepared statements kept on each connection: more than this crate has.
const STATEMENTS: usize = 256;
/// Fewest connections: one that writes, one that reads, one that lists, and two for wake-ups.
pub const POSTGRES_CONNECTIONS_MIN: u32 = 5;
/// How long migrations may take unless somebody says otherwise, in milliseconds.
pub const MIGRATE_MS_DEFAULT: u64 = 600_000;
/// The longest that somebody may say, in milliseconds.
pub const MIGRATE_MS_MAX: u64 = 86_400_000;
/// Connections for wake-ups: one sends, one listens.
const NOTIFYING: u32 = 2;
/// Begins the number of the write lock, so that it is not another program's in the same database.
const LOCK_DOMAIN: i64 = 0x4341_4953 << 32;

const BEGIN: &str = "begin isolation level read committed read write";

/// What each transaction begins with besides the lock: the clock; the newest migration, so that a server of an earlier
/// version that comes back after another one has migrated writes nothing; and when another place than this one said last that
/// it is this server, so that of two nobody writes but the one that is it. What is read of tables is as it was before the lock was
/// waited for: whoever takes the place meanwhile does nothing but that, and whatever that one does next waits behind this.
macro_rules! begun {
    ($server:literal, $place:literal) => {
        concat!(
            "select cast(extract(epoch from clock_timestamp()) * 1000 as bigint), \
             (select coalesce(max(version), 0) from _sqlx_migrations), \
             (select max(seen_at_ms) from server_role where server_id = ",
            $server,
            " and place <> ",
            $place,
            ") from "
        )
    };
}

/// The clock is read only when the lock is held: a materialised query is finished before another one reads it.
const LOCK: &str =
    concat!("with held as materialized (select pg_advisory_xact_lock($1)) ", begun!("$2", "$3"), "held");

/// Rows are locked last of all in a query, so that the session is when the write lock is held, and counted by the next.
macro_rules! lock_session {
    ($session:literal) => {
        concat!(
            "with held as materialized (select pg_advisory_xact_lock_shared($1)), \
             owner as materialized (select 1 from session, held where session.id = (",
            $session,
            ") for no key update of session), \
             counted as materialized (select count(*) from owner) ",
            begun!("$3", "$4"),
            "counted, held"
        )
    };
}

const LOCK_OF_RUN: &str = lock_session!("select session_id from run where run.id = $2");
const LOCK_OF_SANDBOX: &str = lock_session!("select session_id from sandbox where sandbox.id = $2");
const LOCK_OF_CALL: &str = lock_session!("select session_id from usage where usage.id = $2");

const SERVER: &str = "select cast(current_setting('server_version_num') as bigint), \
     current_setting('server_encoding'), current_setting('synchronous_commit'), current_setting('fsync')";

/// The lock has the number of a table of ours, so that several stores in one database do not share it.
const LOCK_NUMBER: &str = "select cast(cast(cast('project' as regclass) as oid) as bigint)";

/// The database's clock, Unix ms.
const CLOCK: &str = "select cast(extract(epoch from clock_timestamp()) * 1000 as bigint)";

pub(super) const HAS_MIGRATIONS: &str = "select 1 where to_regclass('_sqlx_migrations') is not null";

pub(super) static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");

/// What a writing transaction has read when it begins: see [`PostgresDatabase::begin`].
type Begun = (i64, i64, Option<i64>);

/// Bounds for the connections to a `PostgreSQL` server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostgresLimits {
    /// How many connections this process keeps at most; at least [`POSTGRES_CONNECTIONS_MIN`]. Half of them write; of the
    /// others a third is for lists and reports.
    pub connections: u32,
    /// How long a call waits for a connection, in milliseconds.
    pub acquire_timeout_ms: u64,
    /// How long the server works on one statement, in milliseconds. An answer is waited for 5 s longer: then the server
    /// counts as gone, whatever it does.
    pub statement_timeout_ms: u64,
    /// How long the connection that hears the wake-ups of others may be quiet, in milliseconds, before it is asked whether
    /// it is still there.
    pub quiet_ms: u64,
    /// How long bringing the database up to date may take, in milliseconds, within [`MIGRATE_MS_MAX`]: waiting for another server that
    /// does so, and for the silence of servers of before, included. What was done by then stays, migration by migration.
    pub migrate_timeout_ms: u64,
}

impl Default for PostgresLimits {
    fn default() -> Self {
        Self {
            connections: 16,
            acquire_timeout_ms: 10_000,
            statement_timeout_ms: 30_000,
            quiet_ms: 30_000,
            migrate_timeout_ms: MIGRATE_MS_DEFAULT,
        }
    }
}

/// Where a `PostgreSQL` database is. Neither `Debug` nor `Display` shows its password.
#[derive(Clone)]
pub struct PostgresPlace {
    options: PgConnectOptions,
    limits: PostgresLimits,
    own: Vec<(ServerId, Role)>,
}

/// Why a URL names no `PostgreSQL` database. It never holds the URL, which may have a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnusableUrl {
    /// It is not one.
    #[error("it is not a URL of the form postgres://user:password@host:port/database")]
    Malformed,
    /// It has a parameter that means nothing.
    #[error(
        "it has the parameter \"{0}\"; known are application_name, dbname, host, hostaddr, options, password, port, \
         sslcert, sslkey, sslmode, sslrootcert and user"
    )]
    Parameter(String),
}

/// The parameters of a URL that the driver knows. It logs others together with their values.
const PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

impl PostgresPlace {
    /// Reads a URL such as `postgres://caisson:secret@db.example.com/caisson?sslmode=verify-full`.
    ///
    /// # Errors
    /// [`UnusableUrl`].
    pub fn from_url(url: &str, limits: PostgresLimits) -> Result<Self, UnusableUrl> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(UnusableUrl::Malformed);
        }
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
        let parameters = parameters.split_once('#').map_or(parameters, |(parameters, _)| parameters);
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
            if !PARAMETERS.contains(&name) && !name.starts_with("options[") && !name.starts_with("options%5B")
            {
                return Err(UnusableUrl::Parameter(name.chars().take(64).collect()));
            }
        }
        let options: PgConnectOptions = url.parse().map_err(|_| UnusableUrl::Malformed)?;
        let options = options.statement_cache_capacity(STATEMENTS).disable_statement_logging();
        Ok(Self { options, limits, own: Vec::new() })
    }

    /// Says which parts of which server the caller is, and that nobody else is them: their signs of life keep nobody from
    /// migrating the database.
    #[must_use]
    pub fn used_by(self, server: &ServerId, roles: &[Role]) -> Self {
        Self { own: roles.iter().map(|role| (server.clone(), *role)).collect(), ..self }
    }

    /// Gives migrations another time, in milliseconds; kept within [`MIGRATE_MS_MAX`].
    #[must_use]
    pub fn migrated_within(mut self, ms: u64) -> Self {
        self.limits.migrate_timeout_ms = ms.min(MIGRATE_MS_MAX);
        self
    }

    /// What whoever is between this machine and the server could do, if anything.
    #[must_use]
    pub fn weakness(&self) -> Option<String> {
        let host = self.options.get_host();
        let local = self.options.get_socket().is_some()
            || host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let checked = matches!(self.options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        (!local && !checked).then(|| {
            format!(
                "the connection to {self} does not check who answers: whoever is on the way can read and change \
                 everything; add sslmode=verify-full to the database's URL"
            )
        })
    }
}

impl PostgresPlace {
    fn migrating(&self) -> Migrating<'_> {
        Migrating { own: &self.own, within: Duration::from_millis(self.limits.migrate_timeout_ms) }
    }
}

impl fmt::Display for PostgresPlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.options.get_socket().map_or_else(
            || format!("{}:{}", self.options.get_host(), self.options.get_port()),
            |socket| socket.display().to_string(),
        );
        let user = self.options.get_username();
        write!(out, "PostgreSQL at {host}, database {}", self.options.get_database().unwrap_or(user))
    }
}

impl fmt::Debug for PostgresPlace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PostgresPlace({self})")
    }
}

/// Connections that write, connections that read, those of them for reads that may take long, and the number of the write
/// lock.
#[derive(Debug, Clone)]
pub(crate) struct PostgresDatabase {
    pub(crate) writer: Pool,
    pub(crate) reader: Pool,
    pub(crate) lists: Pool,
    /// The connection that sends wake-ups.
    sending: Pool,
    hearing: Hearing,
    lock: i64,
}

impl PostgresDatabase {
    pub(crate) async fn open(place: &PostgresPlace) -> Result<Self, StoreError> {
        let (mut connection, options) = connect(place).await?;
        let rest = place.limits.connections.max(POSTGRES_CONNECTIONS_MIN) - NOTIFYING;
        let writers = rest / 2;
        let listers = ((rest - writers) / LISTING_PART).max(1);
        let breaker = breaker();
        let reader = Pool::new(reading(options.clone()), &place.limits, rest - writers - listers, &breaker);
        migrate(&mut connection, &Reader::Postgres(reader.clone()), place.migrating()).await?;
        let lock = lock_number(place, &mut connection).await?;
        within(place, connection.close()).await?;
        Ok(Self {
            writer: Pool::new(options.clone(), &place.limits, writers, &breaker),
            reader,
            lists: listing(options.clone(), (&place.limits, listers), &breaker),
            sending: Pool::new(reading(options.clone()), &place.limits, 1, &breaker),
            hearing: Hearing::new(reading(options), &place.limits),
            lock,
        })
    }

    /// Connects for reading alone, and counts the migrations that the database lacks.
    pub(crate) async fn open_read_only(place: &PostgresPlace) -> Result<(Self, usize), StoreError> {
        let (connection, options) = connect(place).await?;
        within(place, connection.close()).await?;
        let hearing = Hearing::new(reading(options.clone()), &place.limits);
        let reader = Pool::new(reading(options), &place.limits, 1, &breaker());
        let missing =
            missing_migrations(&Reader::Postgres(reader.clone()), HAS_MIGRATIONS, &MIGRATOR).await?;
        let (writer, sending, lists) = (reader.clone(), reader.clone(), reader.clone());
        Ok((Self { writer, reader, lists, sending, hearing, lock: LOCK_DOMAIN }, missing))
    }

    /// Begins a writing transaction, and reads once it has the write lock: the database's clock (Unix ms), the number of its
    /// newest migration, and when another place than `place` was heard of last as its server (Unix ms).
    pub(super) async fn begin(
        &self,
        hold: Hold<'_>,
        place: Option<&Place>,
    ) -> Result<(Leased, Begun), sqlx::Error> {
        let mut tx = self.writer.acquire().await?;
        tx.begin(BEGIN).await?;
        let locking = match hold {
            Hold::Everything => sql::query_as(LOCK).bind(self.lock),
            Hold::SessionOfRun(run) => sql::query_as(LOCK_OF_RUN).bind(self.lock).bind(run.as_str()),
            Hold::SessionOfSandbox(sandbox) => {
                sql::query_as(LOCK_OF_SANDBOX).bind(self.lock).bind(sandbox.as_str())
            }
            Hold::SessionOfCall(call) => sql::query_as(LOCK_OF_CALL).bind(self.lock).bind(call.as_str()),
        };
        // Of a server that is in no place nothing is compared, and nothing is found.
        let locking = locking
            .bind(place.map(|place| place.server.as_str()))
            .bind(place.map(|place| place.name.as_str()));
        let begun = locking.fetch_optional(&mut tx).await?.ok_or(sqlx::Error::RowNotFound)?;
        Ok((tx, begun))
    }

    /// The database's clock, Unix ms.
    pub(super) async fn now_ms(&self) -> Result<i64, sqlx::Error> {
        sql::query_scalar(CLOCK).fetch_one(&self.reader).await
    }

    /// Sends and receives wake-ups on connections of its own.
    pub(crate) fn notifier(&self, random: [u8; 8], heard: Heard) -> Notifier {
        let channel = format!("caisson_{:x}", self.lock);
        Notifier::start((self.sending.clone(), self.hearing.clone()), channel, hex::encode(random), heard)
    }

    pub(super) async fn close(&self) {
        self.sending.close().await;
        self.lists.close().await;
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// A connection whose statements have no time limits, for what is done once, and how others are made.
async fn connect(place: &PostgresPlace) -> Result<(PgConnection, PgConnectOptions), StoreError> {
    let options = place.options.clone().options(VANISHED);
    let connecting = options.connect();
    let limit = Duration::from_millis(place.limits.acquire_timeout_ms);
    let mut connection = timeout(limit, connecting).await.unwrap_or_else(|_| Err(late()))?;
    let options = server_options(&mut connection, place, options).await?;
    Ok((connection, options))
}

/// What is done once is given up as well if no answer comes.
async fn within<T>(
    place: &PostgresPlace,
    asking: impl Future<Output = Result<T, sqlx::Error>> + Send,
) -> Result<T, sqlx::Error> {
    timeout(answer(&place.limits), asking).await.unwrap_or_else(|_| Err(late()))
}

async fn lock_number(place: &PostgresPlace, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let number: i64 = within(place, sqlx::query_scalar(LOCK_NUMBER).fetch_one(connection)).await?;
    Ok(LOCK_DOMAIN | number)
}

/// Connects to a database that is to be filled, brings it up to date, and answers the connection, whose statements have no time
/// limits, with the number of the store's write lock.
pub(crate) async fn open_to_fill(place: &PostgresPlace) -> Result<(PgConnection, i64), StoreError> {
    let (mut connection, options) = connect(place).await?;
    let reader = Pool::new(reading(options), &place.limits, 1, &breaker());
    migrate(&mut connection, &Reader::Postgres(reader.clone()), place.migrating()).await?;
    reader.close().await;
    let lock = lock_number(place, &mut connection).await?;
    Ok((connection, lock))
}

/// Refuses a server that cannot serve, and says how connections to this one are made.
async fn server_options(
    connection: &mut PgConnection,
    place: &PostgresPlace,
    options: PgConnectOptions,
) -> Result<PgConnectOptions, StoreError> {
    let (version, encoding, commit, fsync): (i64, String, String, String) =
        within(place, sqlx::query_as(SERVER).fetch_one(connection)).await?;
    if version < OLDEST_VERSION {
        return Err(refused(format!(
            "the server is PostgreSQL {}; Caisson needs 15 or later",
            version / 10_000
        )));
    }
    if encoding != "UTF8" {
        return Err(refused(format!("the database's encoding is {encoding}; Caisson needs UTF8")));
    }
    if fsync != "on" {
        tracing::warn!(
            "the PostgreSQL server runs with fsync = {fsync}: a power cut may damage the database"
        );
    }
    let limits = [
        ("statement_timeout", place.limits.statement_timeout_ms),
        ("lock_timeout", LOCK_MS.min(place.limits.statement_timeout_ms)),
    ];
    let options = options.options(limits);
    // What was acknowledged must be on the disk, whatever the role's own default is; a stricter one stays.
    Ok(if commit == "off" { options.options([("synchronous_commit", "on")]) } else { options })
}

fn reading(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("default_transaction_read_only", "on")])
}

/// Connections on which the server works on a statement for [`LIST_MS`] at most. One that is given up goes back when its
/// statement is done, so by then at the latest.
fn listing(
    options: PgConnectOptions,
    (limits, connections): (&PostgresLimits, u32),
    breaker: &Arc<Breaker>,
) -> Pool {
    let statement_timeout_ms = limits.statement_timeout_ms.min(LIST_MS);
    let options = reading(options).options([("statement_timeout", statement_timeout_ms.to_string())]);
    Pool::new(options, &PostgresLimits { statement_timeout_ms, ..*limits }, connections, breaker)
}

fn breaker() -> Arc<Breaker> {
    Arc::new(Breaker::new(Random::system()))
}

/// The database cannot be used, and trying again does not help.
pub(super) fn refused(why: String) -> StoreError {
    StoreError::Migration(MigrateError::Execute(sqlx::Error::Configuration(why.into())))
}

/// Sorts an error by its code: <https://www.postgresql.org/docs/15/errcodes-appendix.html>; two characters are the class.
pub(super) fn fault(code: Option<&str>) -> Fault {
    let code = code.unwrap_or_default();
    match (code, code.get(..2).unwrap_or_default()) {
        ("53100", _) => Fault::Full,
        ("XX001" | "XX002", _) => Fault::Broken("the database file"),
        (_, "42" | "3F" | "0A") => Fault::Broken("the schema"),
        (_, "22" | "23" | "54" | "P0") => Fault::Broken("a constraint"),
        // A lost connection, a server that starts, stops or takes no writes now, too many connections, a lock or a
        // statement that took too long.
        _ => Fault::Away,
    }
}
