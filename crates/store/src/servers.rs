//! Servers and their signs of life.

use caisson_domain::id::ServerId;
use caisson_domain::limits::{PAGE_ITEMS, SERVER_SILENT_MS};
use caisson_domain::server::{PlacementProblem, Server};

use crate::database::{Row, sql};
use crate::rows::{Columns, document};
use crate::{Store, StoreError};

const UPSERT: &str = "insert into server (id, seen_at_ms, problems) values ($1, $2, $3) \
     on conflict (id) do update set seen_at_ms = excluded.seen_at_ms, problems = excluded.problems, \
     forgotten_at_ms = null";

const LIVE: &str = "select id, seen_at_ms, problems from server where seen_at_ms >= $1 order by id limit $2";

const TAKERS: &str = "select id, seen_at_ms, problems, (drained_at_ms is not null or exists (select 1 from queue_state \
     where queue_state.drained_at_ms is not null)) as drained from server where seen_at_ms >= $1 order by id limit $2";

const IN_USE: &str = "select id from server where \
     exists (select 1 from run where run.home_server_id = server.id and run.status = 'running') \
     or exists (select 1 from sandbox where sandbox.server_id = server.id and sandbox.state <> 'destroyed') \
     order by id limit $1";

impl Store {
    /// Makes a server known and counts it as alive now, with no placement problems.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn register_server(&self, id: &ServerId) -> Result<(), StoreError> {
        self.upsert_server(id, &[]).await
    }

    /// Notes a sign of life and what keeps the server from placing runs; registers it if it is not known.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn heartbeat_server(
        &self,
        id: &ServerId,
        problems: &[PlacementProblem],
    ) -> Result<(), StoreError> {
        self.upsert_server(id, problems).await
    }

    /// The servers seen within the last [`SERVER_SILENT_MS`], oldest id first; at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn live_servers(&self) -> Result<Vec<Server>, StoreError> {
        let since_ms = self.now_ms() - SERVER_SILENT_MS;
        let rows = sql::query(LIVE).bind(since_ms).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        rows.iter().map(server).collect()
    }

    /// The servers that may start runs, as [`Store::live_servers`], each with whether it is drained, by itself or with all others.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn live_servers_and_drains(&self) -> Result<Vec<(Server, bool)>, StoreError> {
        let since_ms = self.now_ms() - SERVER_SILENT_MS;
        let rows = sql::query(TAKERS).bind(since_ms).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        rows.iter().map(|row| Ok((server(row)?, Columns::of("server", row)?.flag("drained")?))).collect()
    }

    /// The servers that have running runs or living sandboxes, whether they are alive or not: nobody else ends those.
    /// Oldest id first; at most [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn servers_in_use(&self) -> Result<Vec<ServerId>, StoreError> {
        let rows = sql::query(IN_USE).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        rows.iter().map(|row| Columns::of("server", row)?.parse("id")).collect()
    }

    async fn upsert_server(&self, id: &ServerId, problems: &[PlacementProblem]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sql::query(UPSERT)
            .bind(id.as_str())
            .bind(tx.now_ms)
            .bind(document("server.problems", &problems)?)
            .execute(&mut *tx.db)
            .await?;
        tx.commit().await
    }
}

pub(crate) fn server(row: &Row) -> Result<Server, StoreError> {
    let columns = Columns::of("server", row)?;
    Ok(Server {
        id: columns.parse("id")?,
        seen_at_ms: columns.get("seen_at_ms")?,
        problems: columns.json("problems")?,
    })
}
