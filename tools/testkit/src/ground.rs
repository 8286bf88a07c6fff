//! What an end-to-end test stands on: the engine that makes the sandboxes, and the database that the server keeps
//! everything in. Every story of a user is the same on all of them.

use crate::engine::Engine;

/// Which database a test's server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// A file in the server's state directory.
    Sqlite,
    /// A schema of the test's own on the `PostgreSQL` server for tests.
    Postgres,
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

/// Makes a test of every named function, `async fn name(ground: Ground)`, with `PostgreSQL`: beside
/// [`on_every_engine`](crate::on_every_engine), whose tests have their database in a file. Engine and database do not know of
/// each other, so that the engine that starts sandboxes sooner is enough.
#[macro_export]
macro_rules! on_postgres {
    ($($name:ident)*) => {
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    let (engine, database) = ($crate::engine::Engine::Local, $crate::ground::Database::Postgres);
                    if $crate::postgres::is_there() {
                        super::$name($crate::ground::Ground { engine, database }).await;
                    }
                }
            )*
        }
    };
}

/// Makes a test of every named function, `async fn name(ground: Ground)`, for every database, with the local engine.
#[macro_export]
macro_rules! on_every_database {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    super::$name($crate::engine::Engine::Local.into()).await;
                }
            )*
        }

        $crate::on_postgres! { $($name)* }
    };
}
