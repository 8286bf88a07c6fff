//! Where a session's next run has to go: to the server that has its workspace, as long as that is not lost.

use caisson_domain::id::SessionId;
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

/// The server that has a session's workspace, and alone may start its next run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHome {
    /// The server.
    pub server: Server,
    /// Whether it claims nothing, because it is drained or all are.
    pub drained: bool,
    /// Whether it was not heard of within [`SERVER_SILENT_MS`].
    pub is_away: bool,
}

impl Store {
    /// The server that alone may start the session's next run; none if no agent has worked in the session, or if that server has
    /// been silent for [`Store::server_lost_after_ms`], so that any other may.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn home_that_holds(&self, session: &SessionId) -> Result<Option<SessionHome>, StoreError> {
        let row = sql::query(HOME).bind(session.as_str()).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        let server = server(&row)?;
        let silent_ms = self.now_ms() - server.seen_at_ms;
        if silent_ms >= self.server_lost_after_ms() {
            return Ok(None);
        }
        let drained = Columns::of("server", &row)?.flag("drained")?;
        Ok(Some(SessionHome { server, drained, is_away: silent_ms > SERVER_SILENT_MS }))
    }
}
