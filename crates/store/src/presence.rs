//! Which servers there are, what each does, and how each is.

use caisson_domain::id::ServerId;
use caisson_domain::limits::{PAGE_ITEMS, SERVER_SILENT_MS};
use caisson_domain::server::{Role, ServerPart, ServerState, ServerStatus};

use crate::database::{Row, Tx, sql};
use crate::rows::Columns;
use crate::{Store, StoreError};

/// A server without a worker takes no runs, and never counts as one that might.
const KNOWN: &str = "insert into server (id, seen_at_ms, problems) values ($1, 0, '[]') on conflict (id) do update \
     set forgotten_at_ms = null where server.forgotten_at_ms is not null";

const BEAT: &str = "insert into server_role (server_id, role, seen_at_ms, alive_since_ms, version, slots, place) \
     values ($1, $2, $3, $3, $4, $5, $7) on conflict (server_id, role) do update set seen_at_ms = excluded.seen_at_ms, \
     version = excluded.version, slots = excluded.slots, place = excluded.place, alive_since_ms = case \
       when excluded.seen_at_ms - server_role.seen_at_ms > $6 then excluded.seen_at_ms \
       else server_role.alive_since_ms end";

const LIST: &str = "select id, seen_at_ms, problems, \
     (select count(*) from run where run.home_server_id = server.id and run.status = 'running') as runs, \
     (select count(*) from sandbox where sandbox.server_id = server.id and sandbox.state <> 'destroyed') as sandboxes \
     from server where id > $1 and forgotten_at_ms is null order by id limit $2";

/// No server has more parts than there are roles.
const PARTS: &str = "select server_id, role, seen_at_ms, version, slots from server_role \
     where server_id = $1 order by role";

const PART_SEEN: &str = "select 1 from server_role where server_id = $1 and role = $2 and seen_at_ms >= $3";

/// A part that says nothing of its place is of an earlier version, which is let be.
const HEARD_ELSEWHERE: &str = "select max(seen_at_ms) from server_role where server_id = $1 and place is not null \
     and place <> $2 and seen_at_ms >= $3";

/// What a process does for a server, told with each sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The server that it is, or is a part of.
    pub server: ServerId,
    /// What it does.
    pub roles: Vec<Role>,
    /// Caisson's version.
    pub version: String,
    /// Runs that it has in hand at most, if it works.
    pub slots: Option<i64>,
}

/// From where a process tells that it is a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The server.
    pub(crate) server: ServerId,
    /// What no other machine and no other state directory has.
    pub(crate) name: String,
}

/// What came of a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// It is noted.
    Noted,
    /// Nothing is: another place is this server, and was heard of a moment ago. The caller must not go on.
    Elsewhere,
}

impl Store {
    /// Notes a sign of life of each part that this process is, and registers the server if it is not known; with it goes what
    /// this process has noted of uses of keys and credentials. That a worker is alive and takes runs is told by
    /// [`Store::heartbeat_server`].
    ///
    /// Of two places that are the same server, told by [`Store::set_place`], the one that is heard of first is it until it
    /// has been silent for [`SERVER_SILENT_MS`]: also of two that begin at the same moment.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn beat(&self, presence: &Presence) -> Result<Beat, StoreError> {
        let mut tx = self.begin_anywhere().await?;
        if self.is_shared() && self.has_another_place(&mut tx, &presence.server).await? {
            tx.rollback().await?;
            return Ok(Beat::Elsewhere);
        }
        sql::query(KNOWN).bind(presence.server.as_str()).execute(&mut *tx.db).await?;
        for role in &presence.roles {
            sql::query(BEAT)
                .bind(presence.server.as_str())
                .bind(role.as_str())
                .bind(tx.now_ms)
                .bind(presence.version.as_str())
                .bind(presence.slots.filter(|_| *role == Role::Worker))
                .bind(SERVER_SILENT_MS)
                .bind(self.shared.place.get().map(|place| place.name.as_str()))
                .execute(&mut *tx.db)
                .await?;
        }
        tx.commit().await?;
        self.write_key_uses().await?;
        self.write_credential_uses(false).await?;
        Ok(Beat::Noted)
    }

    /// In a statement of its own under the write lock, which sees what was committed while the lock was waited for: so that of two
    /// there is a first one.
    async fn has_another_place(&self, tx: &mut Tx<'_>, server: &ServerId) -> Result<bool, StoreError> {
        let Some(place) = self.shared.place.get() else { return Ok(false) };
        let heard: Option<i64> = sql::query_scalar(HEARD_ELSEWHERE)
            .bind(server.as_str())
            .bind(place.name.as_str())
            .bind(tx.now_ms - SERVER_SILENT_MS)
            .fetch_one(&mut *tx.db)
            .await?;
        Ok(heard.is_some())
    }

    /// Says of which server this process is, and from which place [`Store::beat`] tells: something that no other machine and no
    /// other state directory has. Called once at the start; a store that was told nothing says nothing.
    ///
    /// From then on every write is refused as [`StoreError::Unavailable`] while another place is that server.
    pub fn set_place(&self, server: &ServerId, name: String) {
        self.shared.place.set(Place { server: server.clone(), name }).ok();
    }

    /// When a part of the server was heard of last, within [`SERVER_SILENT_MS`], from another place than [`Store::set_place`]
    /// names, Unix ms. If that goes on, there are two servers of one id: each takes the other's sandboxes for its own that are
    /// lost.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn heard_elsewhere(&self, server: &ServerId) -> Result<Option<i64>, StoreError> {
        let Some(place) = self.shared.place.get() else { return Ok(None) };
        Ok(sql::query_scalar(HEARD_ELSEWHERE)
            .bind(server.as_str())
            .bind(place.name.as_str())
            .bind(self.now_ms() - SERVER_SILENT_MS)
            .fetch_one(self.reader())
            .await?)
    }

    /// Whether a part of a server was heard of within [`SERVER_SILENT_MS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn is_part_live(&self, server: &ServerId, role: Role) -> Result<bool, StoreError> {
        let row = sql::query(PART_SEEN)
            .bind(server.as_str())
            .bind(role.as_str())
            .bind(self.now_ms() - SERVER_SILENT_MS)
            .fetch_optional(self.reader())
            .await?;
        Ok(row.is_some())
    }

    /// Servers that are not forgotten, by id, which is by age, beginning behind `after`; at most `limit`, and no more than one beyond
    /// [`PAGE_ITEMS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list_servers(
        &self,
        after: Option<&ServerId>,
        limit: u32,
    ) -> Result<Vec<ServerStatus>, StoreError> {
        let rows = sql::query(LIST)
            .bind(after.map_or("", ServerId::as_str))
            .bind(limit.min(PAGE_ITEMS + 1))
            .fetch_all(self.reader())
            .await?;
        let mut servers = Vec::with_capacity(rows.len());
        for row in &rows {
            servers.push(self.status(row).await?);
        }
        Ok(servers)
    }

    async fn status(&self, row: &Row) -> Result<ServerStatus, StoreError> {
        let columns = Columns::of("server", row)?;
        let id: ServerId = columns.parse("id")?;
        let rows = sql::query(PARTS).bind(id.as_str()).fetch_all(self.reader()).await?;
        let parts = rows.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let slots = parts.iter().find_map(|(_, slots)| *slots);
        let parts: Vec<ServerPart> = parts.into_iter().map(|(part, _)| part).collect();
        // Zero: it never had a worker.
        let worker_seen_at_ms: i64 = columns.get("seen_at_ms")?;
        let seen_at_ms = if worker_seen_at_ms > 0 {
            worker_seen_at_ms
        } else {
            parts.iter().map(|part| part.seen_at_ms).max().unwrap_or(0)
        };
        Ok(ServerStatus {
            state: state(self.now_ms() - seen_at_ms, self.server_lost_after_ms()),
            seen_at_ms,
            parts,
            slots,
            runs: columns.get("runs")?,
            sandboxes: columns.get("sandboxes")?,
            problems: columns.json("problems")?,
            id,
        })
    }
}

fn state(silent_ms: i64, lost_after_ms: i64) -> ServerState {
    match silent_ms {
        ..=SERVER_SILENT_MS => ServerState::Live,
        _ if silent_ms < lost_after_ms => ServerState::Away,
        _ => ServerState::Lost,
    }
}

fn part(row: &Row) -> Result<(ServerPart, Option<i64>), StoreError> {
    let columns = Columns::keyed("server_role", row, "server_id")?;
    let part = ServerPart {
        role: columns.parse("role")?,
        seen_at_ms: columns.get("seen_at_ms")?,
        version: columns.get("version")?,
    };
    Ok((part, columns.get("slots")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_away_after_a_short_silence_and_lost_after_a_long_one() {
        for (silent_ms, wanted) in [
            (-5, ServerState::Live),
            (SERVER_SILENT_MS, ServerState::Live),
            (SERVER_SILENT_MS + 1, ServerState::Away),
            (599_999, ServerState::Away),
            (600_000, ServerState::Lost),
        ] {
            assert_eq!(state(silent_ms, 600_000), wanted, "{silent_ms}");
        }
    }
}
