//! What an end-to-end test stands on: the engine that makes the sandboxes, and the database that the server keeps
//! everything in. Every story of a user is the same on all of them, so each is told on both engines and on both databases;
//! which of the two grounds it was that failed is in the test's name.

use anyhow::Context;

use crate::engine::Engine;
use crate::postgres::{self, Postgres};
use crate::process::ServerSpec;

/// Which database a test's server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// A file in the server's state directory.
    Sqlite,
    /// A schema of the test's own on the `PostgreSQL` server for tests.
    Postgres,
}

impl Database {
    /// Makes one for a server and names it in the server's settings. The answer keeps it; none if the server makes its own.
    ///
    /// # Errors
    /// There is no `PostgreSQL` server for tests, or it does not answer.
    pub async fn make(self, spec: &mut ServerSpec) -> anyhow::Result<Option<Postgres>> {
        match self {
            Self::Sqlite => Ok(None),
            Self::Postgres => {
                let made = Postgres::make().await?.context("there is no PostgreSQL server for tests")?;
                spec.set("DATABASE__URL", &made.url());
                Ok(Some(made))
            }
        }
    }

    /// Whether a test can have one; a word about it where it cannot.
    ///
    /// # Panics
    /// It cannot, and all parts are required.
    #[must_use]
    pub fn is_there(self) -> bool {
        match self {
            Self::Sqlite => true,
            Self::Postgres => postgres::is_there(),
        }
    }
}

/// An engine and a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ground {
    /// What makes the sandboxes.
    pub engine: Engine,
    /// What the server keeps everything in.
    pub database: Database,
}

impl From<Engine> for Ground {
    /// The database that a server has if nobody chooses one.
    fn from(engine: Engine) -> Self {
        Self { engine, database: Database::Sqlite }
    }
}

/// Makes a test of every named function, `async fn name(ground: Ground)`, in a module of that name.
#[doc(hidden)]
#[macro_export]
macro_rules! on_ground {
    ($module:ident $engine:ident $database:ident: $($name:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    let engine = $crate::engine::Engine::$engine;
                    let database = $crate::ground::Database::$database;
                    if database.is_there() {
                        super::$name($crate::ground::Ground { engine, database }).await;
                    }
                }
            )*
        }
    };
}

/// Makes two tests of every named story, `async fn name(ground: Ground)`: one on Docker with `PostgreSQL`, and one on the local
/// engine with SQLite. So each is told once on each engine and once on each database; neither knows of the other, and all four
/// together would take twice as long.
#[macro_export]
macro_rules! on_every_engine_and_database {
    ($($name:ident)*) => {
        $crate::on_ground! { on_docker_with_postgresql Docker Postgres: $($name)* }
        $crate::on_ground! { on_local_with_sqlite Local Sqlite: $($name)* }
    };
}

/// Makes a test of every named story on Docker with SQLite as well: what most servers are, for the main job and for whatever may
/// die in the middle of it. Beside [`on_every_engine_and_database`](crate::on_every_engine_and_database).
#[macro_export]
macro_rules! on_docker_with_sqlite {
    ($($name:ident)*) => {
        $crate::on_ground! { on_docker_with_sqlite Docker Sqlite: $($name)* }
    };
}

/// Makes a test of every named function, `async fn name(ground: Ground)`, for every database, with the local engine: for what has
/// no sandbox, or in which the engine makes no difference.
#[macro_export]
macro_rules! on_every_database {
    ($($name:ident)*) => {
        $crate::on_ground! { on_sqlite Local Sqlite: $($name)* }
        $crate::on_ground! { on_postgresql Local Postgres: $($name)* }
    };
}
