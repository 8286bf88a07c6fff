//! The store of a server, opened beside it as another process of the machine does.

use caisson_store::{Clock, PostgresLimits, PostgresPlace, Store};
use testkit::postgres::Postgres;
use testkit::process::ServerSpec;

/// The store that a server with these settings has.
pub(crate) async fn open(spec: &ServerSpec, postgres: Option<&Postgres>, clock: Clock) -> Store {
    let Some(postgres) = postgres else {
        return Store::open(&spec.state_dir.join("caisson.db"), clock).await.unwrap();
    };
    let place = PostgresPlace::from_url(&postgres.url(), PostgresLimits::default()).unwrap();
    Store::connect(&place, clock).await.unwrap()
}
