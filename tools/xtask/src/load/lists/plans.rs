//! How the filled database reads for what is asked again and again. The store knows the statements, and what each may read.

use std::path::Path;

use anyhow::{Context, bail};
use caisson_store::hot::{self, Example, Plan};
use caisson_store::{Clock, Look, PostgresLimits, PostgresPlace, Store};

use crate::load::databases::Database;

pub(super) async fn explain(
    database: &Database,
    state_dir: &Path,
    example: &Example,
) -> anyhow::Result<Vec<Plan>> {
    let store = match database.postgres() {
        None => match Store::look(&state_dir.join("caisson.db"), Clock::system()).await? {
            Look::Ready(store) => store,
            Look::Missing | Look::Behind { .. } => bail!("the server has another database than this build"),
        },
        Some(postgres) => {
            let place = PostgresPlace::from_url(&postgres.direct_url(), PostgresLimits::default())?;
            Store::connect(&place, Clock::system()).await?
        }
    };
    let plans = hot::explain(&store, example).await;
    store.close().await?;
    plans.context("the database does not tell how it reads")
}
