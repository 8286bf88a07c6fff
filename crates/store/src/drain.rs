//! Draining: servers that keep the runs they have and claim no other, until somebody lets them.
//!
//! One server can be drained, or all of them, those that come later among them. It is written down, so a server that is
//! started anew stays drained.

use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::limits::{PAGE_ITEMS, SERVER_SILENT_MS};

use crate::database::{Tx, sql};
use crate::rows::Columns;
use crate::{Actor, NewAudit, Store, StoreError, Topic, audit};

/// What the audit log calls all servers together.
const ALL_SERVERS: &str = "all";

const IS_DRAINED: &str = "select 1 from queue_state where drained_at_ms is not null \
     union all select 1 from server where id = $1 and drained_at_ms is not null limit 1";

const KNOWN: &str = "select 1 from server where id = $1";

const DRAIN_ALL: &str = "update queue_state set drained_at_ms = $1 where drained_at_ms is null";

const DRAIN_ONE: &str = "update server set drained_at_ms = $2 where id = $1 and drained_at_ms is null";

const RESUME_ALL: &str = "update queue_state set drained_at_ms = null where drained_at_ms is not null";

const RESUME_EACH: &str = "update server set drained_at_ms = null where drained_at_ms is not null";

const RESUME_ONE: &str = "update server set drained_at_ms = null where id = $1 and drained_at_ms is not null";

pub(crate) const STATE: &str = "select drained_at_ms, \
     (select count(*) from run where status = 'queued') as queued, \
     (select count(*) from run where status = 'queued' and not_before_ms > $1) as delayed, \
     (select count(*) from run where status = 'running') as running, cast(slot as text) as id from queue_state";

const SERVERS: &str = "select id, seen_at_ms, drained_at_ms, \
     (select count(*) from run where run.home_server_id = server.id and run.status = 'running') as running \
     from server where seen_at_ms >= $1 or drained_at_ms is not null \
     or exists (select 1 from run where run.home_server_id = server.id and run.status = 'running') \
     order by id limit $2";

const DRAINED: &str = "select id from server where drained_at_ms is not null \
     union all select '' from queue_state where drained_at_ms is not null order by id limit $1";

/// Which servers are drained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    ids: Vec<String>,
}

impl Drained {
    /// Whether all servers are.
    #[must_use]
    pub fn all(&self) -> bool {
        self.ids.iter().any(String::is_empty)
    }

    /// Whether a server claims nothing, because it is drained or all are.
    #[must_use]
    pub fn has(&self, server: &ServerId) -> bool {
        self.ids.iter().any(|id| id.is_empty() || id == server.as_str())
    }
}

/// The queue as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// Runs that wait, those whose time has not come among them.
    pub queued: i64,
    /// Those of them whose time has not come.
    pub delayed: i64,
    /// Runs that run, on all servers.
    pub running: i64,
    /// Since when all servers are drained, Unix ms.
    pub drained_at_ms: Option<i64>,
    /// The servers that live, have runs or are drained, oldest id first; at most [`PAGE_ITEMS`].
    pub servers: Vec<QueueServer>,
}

/// A server as the queue sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueServer {
    /// Its id.
    pub id: ServerId,
    /// Its last sign of life, Unix ms.
    pub seen_at_ms: i64,
    /// Whether that was within the last [`SERVER_SILENT_MS`].
    pub alive: bool,
    /// Since when it is drained by itself, Unix ms.
    pub drained_at_ms: Option<i64>,
    /// Runs that it has.
    pub running: i64,
}

impl QueueState {
    /// Whether the server claims nothing, because it is drained or all are.
    #[must_use]
    pub fn is_drained(&self, server: &ServerId) -> bool {
        let itself = |known: &QueueServer| known.id == *server && known.drained_at_ms.is_some();
        self.drained_at_ms.is_some() || self.servers.iter().any(itself)
    }
}

impl Store {
    /// Has a server, or with `None` all of them, claim nothing more; `false` if there is no such server. What runs goes on.
    /// The audit log tells of it once.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn drain(&self, server: Option<&ServerId>, by: &Actor) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let changed = match server {
            Some(server) if !is_known(&mut tx, server).await? => return Ok(false),
            Some(server) => sql::query(DRAIN_ONE).bind(server.as_str()).bind(tx.now_ms),
            None => sql::query(DRAIN_ALL).bind(tx.now_ms),
        }
        .execute(&mut *tx.db)
        .await?
        .rows_affected();
        record(tx, (server, changed), by, "server.drain").await
    }

    /// Lets a server claim again, or with `None` all of them, also those that were drained by themselves; `false` if there
    /// is no such server. One server does not claim as long as all are drained.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn resume(&self, server: Option<&ServerId>, by: &Actor) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let changed = match server {
            Some(server) if !is_known(&mut tx, server).await? => return Ok(false),
            Some(server) => sql::query(RESUME_ONE).bind(server.as_str()).execute(&mut *tx.db).await?,
            None => {
                let each = sql::query(RESUME_EACH).execute(&mut *tx.db).await?.rows_affected();
                let all = sql::query(RESUME_ALL).execute(&mut *tx.db).await?.rows_affected();
                return record(tx, (None, each + all), by, "server.resume").await;
            }
        }
        .rows_affected();
        record(tx, (server, changed), by, "server.resume").await
    }

    /// Which servers claim nothing.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn drained(&self) -> Result<Drained, StoreError> {
        let rows = sql::query(DRAINED).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        let ids = rows.iter().map(|row| Columns::of("server", row)?.get("id"));
        Ok(Drained { ids: ids.collect::<Result<_, StoreError>>()? })
    }

    /// How many runs wait and run, and which servers claim none.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn queue_state(&self) -> Result<QueueState, StoreError> {
        let now_ms = self.now_ms();
        let since_ms = now_ms - SERVER_SILENT_MS;
        let state = sql::query(STATE).bind(now_ms).fetch_one(self.reader()).await?;
        let rows = sql::query(SERVERS).bind(since_ms).bind(PAGE_ITEMS).fetch_all(self.reader()).await?;
        let columns = Columns::of("queue_state", &state)?;
        let servers = rows.iter().map(|row| {
            let columns = Columns::of("server", row)?;
            let seen_at_ms = columns.get("seen_at_ms")?;
            Ok(QueueServer {
                id: columns.parse("id")?,
                seen_at_ms,
                alive: seen_at_ms >= since_ms,
                drained_at_ms: columns.get("drained_at_ms")?,
                running: columns.get("running")?,
            })
        });
        Ok(QueueState {
            queued: columns.get("queued")?,
            delayed: columns.get("delayed")?,
            running: columns.get("running")?,
            drained_at_ms: columns.get("drained_at_ms")?,
            servers: servers.collect::<Result<_, StoreError>>()?,
        })
    }
}

/// Whether a server claims nothing.
pub(crate) async fn is_drained(tx: &mut Tx<'_>, server: &ServerId) -> Result<bool, StoreError> {
    Ok(sql::query(IS_DRAINED).bind(server.as_str()).fetch_optional(&mut *tx.db).await?.is_some())
}

async fn is_known(tx: &mut Tx<'_>, server: &ServerId) -> Result<bool, StoreError> {
    Ok(sql::query(KNOWN).bind(server.as_str()).fetch_optional(&mut *tx.db).await?.is_some())
}

/// Tells of a change, in the default project's audit log, since servers belong to no tenant; of none if nothing changed.
async fn record(
    mut tx: Tx<'_>,
    (server, changed): (Option<&ServerId>, u64),
    by: &Actor,
    action: &str,
) -> Result<bool, StoreError> {
    if changed == 0 {
        tx.rollback().await?;
        return Ok(true);
    }
    let subject = server.map_or(ALL_SERVERS, ServerId::as_str);
    let record = NewAudit::new(&ProjectId::default_project(), by.clone(), action, subject);
    audit::write(&mut tx, &record).await?;
    tx.wake(Topic::Queue);
    tx.commit().await?;
    Ok(true)
}
