//! Where a session's next run has to go: to the server that has its workspace, as long as that is not lost.

use caisson_domain::id::{ServerId, SessionId};
use caisson_domain::limits::SERVER_SILENT_MS;
use caisson_domain::server::Server;

use crate::database::sql;
use crate::rows::Columns;
use crate::servers::server;
use crate::{Store, StoreError};

/// The same server that a claim holds a run for.
const HOME: &str = "select server.id, server.seen_at_ms, server.problems, \
     (server.drained_at_ms is not null or exists (select 1 from queue_state where queue_state.drained_at_ms is not null)) \
       as drained \
     from attempt join server on server.id = attempt.server_id \
     where attempt.session_id = $1 and attempt.agent_started_at_ms is not null \
     order by attempt.agent_started_at_ms desc limit 1";

/// Somebody else who takes runs and may take up what a server has lost that was silent since $3: a claim asks the same of its server.
const SOME_WITNESS: &str = "select 1 from server_role as claimer join server on server.id = claimer.server_id \
     where claimer.server_id <> $1 and claimer.seen_at_ms >= $2 and claimer.alive_since_ms <= $3 \
       and server.seen_at_ms >= $2 limit 1";

/// The server that has a session's workspace, and alone may start its next run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHome {
    /// The server.
    pub server: Server,
    /// Whether it claims nothing, because it is drained or all are.
    pub drained: bool,
    /// Whether it was not heard of within [`SERVER_SILENT_MS`].
    pub is_away: bool,
    /// Whether it was silent for [`Store::server_lost_after_ms`], but nobody who lives was heard of all that time.
    pub is_lost: bool,
}

impl Store {
    /// The server that alone may start the session's next run; none if no agent has worked in the session, or if that server has
    /// been silent for [`Store::server_lost_after_ms`] and another one was heard of all that time, which may.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn home_that_holds(&self, session: &SessionId) -> Result<Option<SessionHome>, StoreError> {
        let row = sql::query(HOME).bind(session.as_str()).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        let server = server(&row)?;
        let now_ms = self.now_ms();
        let silent_ms = now_ms - server.seen_at_ms;
        let is_lost = silent_ms >= self.server_lost_after_ms();
        if is_lost && self.has_witness(&server.id, now_ms).await? {
            return Ok(None);
        }
        let drained = Columns::of("server", &row)?.flag("drained")?;
        Ok(Some(SessionHome { server, drained, is_away: silent_ms > SERVER_SILENT_MS, is_lost }))
    }

    /// Whether another server was heard of for as long as this one must have been silent to be lost.
    async fn has_witness(&self, lost: &ServerId, now_ms: i64) -> Result<bool, StoreError> {
        let witness = sql::query(SOME_WITNESS)
            .bind(lost.as_str())
            .bind(now_ms - SERVER_SILENT_MS)
            .bind(now_ms - self.server_lost_after_ms())
            .fetch_optional(self.reader())
            .await?;
        Ok(witness.is_some())
    }
}
