//! Servers that are gone for good: listed no more.

use caisson_domain::id::{ProjectId, ServerId};

use crate::database::sql;
use crate::rows::Columns;
use crate::{Actor, NewAudit, SandboxState, Store, StoreError, audit, sandboxes};

/// What came of forgetting a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgetServer {
    /// It is listed no more, until it is heard of again.
    Forgotten,
    /// There is no such server, or it was forgotten before.
    Unknown,
    /// It was heard of too lately.
    NotLost,
    /// It has runs that run: whoever has witnessed its silence writes them off.
    InUse {
        /// Its running runs.
        runs: i64,
    },
}

const LOOK: &str = "select id, \
     (select coalesce(max(seen_at_ms), 0) from server_role where server_role.server_id = server.id) as part_seen_at_ms, seen_at_ms, \
     (select count(*) from run where run.home_server_id = server.id and run.status = 'running') as runs from server where id = $1 and forgotten_at_ms is null";

/// As many as the server had slots and places for those that end.
const SANDBOXES: &str = "select id from sandbox where server_id = $1 and state <> 'destroyed' order by id";

const FORGET: &str = "update server set forgotten_at_ms = $2, drained_at_ms = null where id = $1";

impl Store {
    /// Has a lost server listed no more: it has been silent for [`Store::server_lost_after_ms`], and has no runs. Its row stays,
    /// since runs, calls and records name it, and it is listed again with its next sign of life. The audit log tells of it.
    ///
    /// Its sandboxes count as destroyed from now on, and its files as gone, so that its sessions can expire. If it comes back all
    /// the same, it finds those sandboxes by its engine's list and destroys them.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn forget_server(&self, server: &ServerId, by: Actor) -> Result<ForgetServer, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(LOOK).bind(server.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(row) = row else { return Ok(ForgetServer::Unknown) };
        let columns = Columns::of("server", &row)?;
        let runs: i64 = columns.get("runs")?;
        let seen_at_ms: i64 = columns.get::<i64>("seen_at_ms")?.max(columns.get("part_seen_at_ms")?);
        if tx.now_ms - seen_at_ms < self.server_lost_after_ms() {
            return Ok(ForgetServer::NotLost);
        }
        if runs > 0 {
            return Ok(ForgetServer::InUse { runs });
        }
        for row in sql::query(SANDBOXES).bind(server.as_str()).fetch_all(&mut *tx.db).await? {
            let sandbox = Columns::of("sandbox", &row)?.parse("id")?;
            sandboxes::advance(&mut tx, &sandbox, SandboxState::Destroyed).await?;
        }
        sql::query(FORGET).bind(server.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
        let record = NewAudit::new(&ProjectId::default_project(), by, "server.forget", server.as_str());
        audit::write(&mut tx, &record).await?;
        tx.commit().await?;
        Ok(ForgetServer::Forgotten)
    }
}
