//! Where runs, events and everything else that must last are kept.

use std::path::PathBuf;

use caisson_domain::id::ServerId;
use caisson_domain::server::Role;
use caisson_store::{
    Clock, Look, POSTGRES_CONNECTIONS_MIN, PostgresLimits, PostgresPlace, Store, StoreError,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Settings, read_secret};

/// Name of the database file in a state directory.
const FILE: &str = "caisson.db";
/// Most connections that a server may be told to keep.
const CONNECTIONS_MAX: u32 = 500;
/// Longest time limit, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 600_000;

/// The database: a file of the state directory, or `PostgreSQL`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Database {
    /// URL of a `PostgreSQL` database (15 or later), `postgres://USER@HOST/DATABASE?sslmode=verify-full`. Default: none, and
    /// then the database is `caisson.db` in the state directory. `CAISSON_DATABASE__URL`.
    pub url: Option<SecretString>,
    /// File with the URL, instead of it: for one that has a password. `CAISSON_DATABASE__URL_FILE`.
    pub url_file: Option<PathBuf>,
    /// Connections to `PostgreSQL` at the same time, 4 to 500. Default 16. `CAISSON_DATABASE__CONNECTIONS`.
    pub connections: u32,
    /// How long a call waits for a connection to `PostgreSQL`, in milliseconds, 100 to 600000. Default 10000.
    /// `CAISSON_DATABASE__ACQUIRE_TIMEOUT_MS`.
    pub acquire_timeout_ms: u64,
    /// How long `PostgreSQL` works on one statement, in milliseconds, 100 to 600000. Default 30000.
    /// `CAISSON_DATABASE__STATEMENT_TIMEOUT_MS`.
    pub statement_timeout_ms: u64,
    /// Whether a server that starts brings the database up to its version; if not, it refuses to start with an earlier one,
    /// and `caisson db migrate` does it. Default true. `CAISSON_DATABASE__MIGRATE`.
    pub migrate: bool,
}

impl Default for Database {
    fn default() -> Self {
        let PostgresLimits { connections, acquire_timeout_ms, statement_timeout_ms, .. } =
            PostgresLimits::default();
        Self {
            url: None,
            url_file: None,
            connections,
            acquire_timeout_ms,
            statement_timeout_ms,
            migrate: true,
        }
    }
}

impl Database {
    pub(super) fn check(&self, faults: &mut Vec<String>) {
        if self.url.is_some() && self.url_file.is_some() {
            faults.push("database has both of url and url_file; keep one".to_owned());
        }
        if let Some(url) = &self.url
            && let Err(fault) = PostgresPlace::from_url(url.expose_secret(), PostgresLimits::default())
        {
            faults.push(format!("database.url: {fault}"));
        }
        if !(POSTGRES_CONNECTIONS_MIN..=CONNECTIONS_MAX).contains(&self.connections) {
            faults.push(format!(
                "database.connections is {}; give {POSTGRES_CONNECTIONS_MIN} to {CONNECTIONS_MAX}",
                self.connections
            ));
        }
        for (key, value) in [
            ("acquire_timeout_ms", self.acquire_timeout_ms),
            ("statement_timeout_ms", self.statement_timeout_ms),
        ] {
            if !(100..=TIMEOUT_MS_MAX).contains(&value) {
                faults.push(format!("database.{key} is {value}; give 100 to {TIMEOUT_MS_MAX}"));
            }
        }
    }
}

/// Where the database is. Showing it shows no password.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A file.
    File(PathBuf),
    /// A server.
    Postgres(Box<PostgresPlace>),
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(out),
            Self::Postgres(place) => place.fmt(out),
        }
    }
}

impl Place {
    /// Whether several servers, and processes of one, can share it.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// The same place, for whoever holds the locks of these parts of the server: their signs of life are the caller's own, or
    /// those of the process before it.
    pub(crate) fn used_by(self, server: Option<&ServerId>, roles: &[Role]) -> Self {
        match (self, server) {
            (Self::Postgres(place), Some(server)) => Self::Postgres(Box::new(place.used_by(server, roles))),
            (place @ (Self::File(_) | Self::Postgres(_)), _) => place,
        }
    }

    /// The same place, where migrations may take so many milliseconds; a file's take as long as they do.
    pub(crate) fn migrated_within(self, ms: u64) -> Self {
        match self {
            Self::Postgres(place) => Self::Postgres(Box::new(place.migrated_within(ms))),
            place @ Self::File(_) => place,
        }
    }

    /// Opens or makes the database, and brings it up to date.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::connect`].
    pub(crate) async fn open(&self, clock: Clock) -> Result<Store, StoreError> {
        match self {
            Self::File(path) => Box::pin(Store::open(path, clock)).await,
            // Boxed, since every command's future holds it.
            Self::Postgres(place) => Box::pin(Store::connect(place, clock)).await,
        }
    }

    /// Looks at the database as it is and changes nothing.
    ///
    /// # Errors
    /// As [`Store::look`] and [`Store::look_at`].
    pub(crate) async fn look(&self, clock: Clock) -> Result<Look, StoreError> {
        match self {
            Self::File(path) => Box::pin(Store::look(path, clock)).await,
            Self::Postgres(place) => Box::pin(Store::look_at(place, clock)).await,
        }
    }

    /// Whether there is one.
    ///
    /// # Errors
    /// As [`Store::look_at`]; whether there is a file is known without opening it.
    pub(crate) async fn is_there(&self) -> Result<bool, StoreError> {
        if let Self::File(path) = self {
            return Ok(path.exists());
        }
        match self.look(Clock::system()).await? {
            Look::Missing => Ok(false),
            Look::Behind { .. } => Ok(true),
            Look::Ready(store) => {
                store.close().await.ok();
                Ok(true)
            }
        }
    }

    /// What it lacks that a migration would bring; none if a server can use it as it is. A file that is not there lacks nothing: it
    /// is one server's own, which makes it. What servers share is made by whoever may.
    ///
    /// # Errors
    /// As [`Store::look`] and [`Store::look_at`].
    pub(crate) async fn lack(&self) -> Result<Option<String>, StoreError> {
        match self.look(Clock::system()).await? {
            Look::Missing => Ok(self.is_shared().then(|| "has no tables".to_owned())),
            Look::Behind { migrations } => Ok(Some(format!("lacks {migrations} migrations"))),
            Look::Ready(store) => {
                store.close().await.ok();
                Ok(None)
            }
        }
    }

    /// Whether it is a file that lacks migrations, and that nobody is bringing up to date. What servers share knows them itself:
    /// opening it refuses to migrate while one lives.
    ///
    /// # Errors
    /// As [`Store::look_at_rest`].
    pub(crate) async fn is_file_behind(&self) -> Result<bool, StoreError> {
        let Self::File(path) = self else { return Ok(false) };
        match Box::pin(Store::look_at_rest(path, Clock::system())).await? {
            Look::Missing => Ok(false),
            Look::Behind { .. } => Ok(true),
            Look::Ready(store) => {
                store.close().await.ok();
                Ok(false)
            }
        }
    }

    /// What to say where there is none, and what to do.
    pub(crate) fn missing(&self) -> String {
        match self {
            Self::File(path) => format!(
                "there is no database in \"{}\" that this user can see; name the server's with --state-dir, or its configuration \
                 with --config",
                path.parent().unwrap_or(path).display()
            ),
            Self::Postgres(place) => format!(
                "there is no database in {place}: no server has used it; name the server's with CAISSON_DATABASE__URL, or its \
                 configuration with --config"
            ),
        }
    }
}

impl Settings {
    /// Where the database's file is, if the database is a file.
    #[must_use]
    pub(crate) fn database_file(&self) -> PathBuf {
        self.state_dir.join(FILE)
    }

    /// Bounds for connections to `PostgreSQL`.
    #[must_use]
    pub(crate) fn postgres_limits(&self) -> PostgresLimits {
        PostgresLimits {
            connections: self.database.connections,
            acquire_timeout_ms: self.database.acquire_timeout_ms,
            statement_timeout_ms: self.database.statement_timeout_ms,
            ..PostgresLimits::default()
        }
    }

    /// Where the database is.
    ///
    /// # Errors
    /// The file with its URL cannot be read or holds none.
    pub(crate) fn database_place(&self) -> anyhow::Result<Place> {
        let database = &self.database;
        let read =
            database.url_file.as_deref().map(|file| read_secret("database.url_file", file)).transpose()?;
        let Some(url) = read.as_ref().or(database.url.as_ref()) else {
            return Ok(Place::File(self.database_file()));
        };
        let place = PostgresPlace::from_url(url.expose_secret(), self.postgres_limits());
        let key = if read.is_some() { "database.url_file" } else { "database.url" };
        Ok(Place::Postgres(Box::new(place.map_err(|fault| anyhow::anyhow!("{key}: {fault}"))?)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::{Environment, Overrides};

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = Environment { variables: variables.collect(), root: false };
        Settings::load(None, &environment, Overrides::default())
    }

    #[test]
    fn without_a_url_the_database_is_a_file_of_the_state_directory() {
        let settings = read(&[("CAISSON_STATE_DIR", "/srv/caisson")]).unwrap();
        let Place::File(path) = settings.database_place().unwrap() else { panic!("a file") };
        assert_eq!(path, Path::new("/srv/caisson/caisson.db"));
    }

    #[test]
    fn a_url_with_a_password_is_shown_nowhere() {
        const URL: &str = "postgres://caisson:hunter2@db.example.com:5433/runs?sslmode=verify-full";
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("url");
        std::fs::write(&file, format!("{URL}\n")).unwrap();
        for variables in [
            [("CAISSON_DATABASE__URL", URL), ("CAISSON_DATABASE__CONNECTIONS", "9")],
            [("CAISSON_DATABASE__URL_FILE", file.to_str().unwrap()), ("CAISSON_DATABASE__CONNECTIONS", "9")],
        ] {
            let settings = read(&variables).unwrap();
            let place = settings.database_place().unwrap();
            assert_eq!(place.to_string(), "PostgreSQL at db.example.com:5433, database runs");
            for shown in [format!("{settings:?}"), format!("{place:?}"), place.to_string()] {
                assert!(!shown.contains("hunter2"), "{shown}");
            }
        }
        for bad in [
            "mysql://caisson:hunter2@db/runs",
            "postgres://caisson:hunter2@db:port/runs",
            "postgres://caisson@db/runs?pasword=hunter2",
        ] {
            let error = format!("{:#}", read(&[("CAISSON_DATABASE__URL", bad)]).unwrap_err());
            assert!(error.contains("database.url") && !error.contains("hunter2"), "{error}");
            std::fs::write(&file, bad).unwrap();
            let settings = read(&[("CAISSON_DATABASE__URL_FILE", file.to_str().unwrap())]).unwrap();
            let error = format!("{:#}", settings.database_place().unwrap_err());
            assert!(error.contains("database.url_file") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_way_on_which_others_may_be_is_told_of() {
        let weakness = |url: &str| {
            let Place::Postgres(place) =
                read(&[("CAISSON_DATABASE__URL", url)]).unwrap().database_place().unwrap()
            else {
                panic!("a server")
            };
            place.weakness()
        };
        for safe in [
            "postgres://c@127.0.0.1/c",
            "postgres://c@localhost/c",
            "postgres:///c?host=/run/postgresql",
            "postgres://c@db.example.com/c?sslmode=verify-full",
            "postgres://c@db.example.com/c?sslmode=verify-ca",
        ] {
            assert_eq!(weakness(safe), None, "{safe}");
        }
        for open in ["postgres://c@db.example.com/c", "postgres://c:hunter2@10.0.0.1/c?sslmode=require"] {
            let told = weakness(open).unwrap();
            assert!(told.contains("sslmode=verify-full") && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn bounds_and_double_answers_are_told() {
        let error = read(&[
            ("CAISSON_DATABASE__URL", "postgres://db/runs"),
            ("CAISSON_DATABASE__URL_FILE", "/run/secrets/url"),
            ("CAISSON_DATABASE__CONNECTIONS", "3"),
            ("CAISSON_DATABASE__ACQUIRE_TIMEOUT_MS", "99"),
            ("CAISSON_DATABASE__STATEMENT_TIMEOUT_MS", "600001"),
        ]);
        let error = format!("{:#}", error.unwrap_err());
        for told in
            ["both of url and url_file", "connections is 3", "acquire_timeout_ms", "statement_timeout_ms"]
        {
            assert!(error.contains(told), "{told} in {error}");
        }
    }
}
