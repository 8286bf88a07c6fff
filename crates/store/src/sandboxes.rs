//! Sandboxes: which session each belongs to and how far it has come.

use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::id::{ProjectId, SandboxId, ServerId, SessionId};

use crate::database::{Row, Tx, sql};
use crate::rows::Columns;
use crate::{Store, StoreError, Topic};

/// A sandbox to be made, with the hashes of its two grants.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// Its id.
    pub id: SandboxId,
    /// The session it is for.
    pub session: SessionId,
    /// The server whose engine makes it.
    pub server: ServerId,
    /// The engine's name.
    pub engine: String,
    /// The image.
    pub image: String,
    /// The uid its processes have.
    pub uid: u32,
    /// Hash of the control grant.
    pub control: TokenHash,
    /// Hash of the agent grant.
    pub agent: TokenHash,
}

/// How far a sandbox has come. It only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SandboxState {
    /// The engine is about to make it.
    Creating,
    /// It runs.
    Running,
    /// It is being ended: its agent grant opens nothing any more.
    Stopping,
    /// It is gone: neither grant opens anything.
    Destroyed,
}

/// A text that is no sandbox state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a sandbox state; use one of: creating, running, stopping, destroyed")]
pub struct UnknownSandboxState(String);

impl SandboxState {
    /// Every state, in order.
    pub const ALL: &'static [Self] = &[Self::Creating, Self::Running, Self::Stopping, Self::Destroyed];

    /// The state as it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Destroyed => "destroyed",
        }
    }
}

impl std::fmt::Display for SandboxState {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

impl std::str::FromStr for SandboxState {
    type Err = UnknownSandboxState;

    fn from_str(text: &str) -> Result<Self, UnknownSandboxState> {
        let found = Self::ALL.iter().find(|state| state.as_str() == text);
        found.copied().ok_or_else(|| UnknownSandboxState(text.chars().take(64).collect()))
    }
}

/// A sandbox as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// Its id.
    pub id: SandboxId,
    /// The tenant whose session it is.
    pub project: ProjectId,
    /// The session it is for.
    pub session: SessionId,
    /// The server whose engine made it.
    pub server: ServerId,
    /// The engine's name.
    pub engine: String,
    /// The image.
    pub image: String,
    /// The uid its processes have.
    pub uid: u32,
    /// How far it has come.
    pub state: SandboxState,
    /// Unix ms.
    pub created_at_ms: i64,
}

const INSERT: &str = "insert into sandbox \
     (id, project_id, session_id, server_id, engine, image, uid, state, created_at_ms, changed_at_ms) \
     select $1, project_id, id, $3, $4, $5, $6, 'creating', $7, $7 from session where id = $2 returning project_id";

const INSERT_GRANT: &str =
    "insert into sandbox_grant (sandbox_id, kind, project_id, hash) values ($1, $2, $3, $4)";

const ALIVE: &str = "select id, project_id, session_id, server_id, engine, image, uid, state, created_at_ms from sandbox \
     where server_id = $1 and state <> 'destroyed' order by id";

const ONE: &str = "select id, project_id, session_id, server_id, engine, image, uid, state, created_at_ms from sandbox \
     where id = $1";

const MOVE: &str = "update sandbox set state = $3, changed_at_ms = $4 where id = $1 and state = $2";

const REVOKE: &str = "update sandbox_grant set revoked_at_ms = $3 \
     where sandbox_id = $1 and kind = $2 and revoked_at_ms is null";

impl Store {
    /// Writes down a sandbox before the engine makes it, so that no container is ever unknown.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if session or server are not known, or the id is taken.
    /// # Cancel safety
    /// A dropped call may have written it; reconciling destroys what nobody uses.
    pub async fn create_sandbox(&self, new: &NewSandbox) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let project: Option<String> = sql::query_scalar(INSERT)
            .bind(new.id.as_str())
            .bind(new.session.as_str())
            .bind(new.server.as_str())
            .bind(new.engine.as_str())
            .bind(new.image.as_str())
            .bind(new.uid)
            .bind(tx.now_ms)
            .fetch_optional(&mut *tx.db)
            .await?;
        let project = project.ok_or_else(|| StoreError::missing("session", new.session.as_str()))?;
        for (kind, hash) in [(GrantKind::Control, &new.control), (GrantKind::Agent, &new.agent)] {
            sql::query(INSERT_GRANT)
                .bind(new.id.as_str())
                .bind(kind.as_str())
                .bind(project.as_str())
                .bind(hash.as_str())
                .execute(&mut *tx.db)
                .await?;
        }
        tx.wake(Topic::Server(new.server.clone()));
        tx.commit().await
    }

    /// The server's sandboxes that are not destroyed, oldest first: all of them, since whatever is left out here would
    /// look like an orphan.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn sandboxes_of(&self, server: &ServerId) -> Result<Vec<SandboxRow>, StoreError> {
        let rows = sql::query(ALIVE).bind(server.as_str()).fetch_all(self.reader()).await?;
        rows.iter().map(sandbox).collect()
    }

    /// Moves a sandbox forward to `state` and revokes the grants that end there; `false` if it is there or further
    /// already, or is not known.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn set_sandbox_state(&self, id: &SandboxId, state: SandboxState) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(moved) = advance(&mut tx, id, state).await? else { return Ok(false) };
        tx.commit().await?;
        Ok(moved)
    }

    /// The sandbox, whatever its state.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxRow>, StoreError> {
        let row = sql::query(ONE).bind(id.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(sandbox).transpose()
    }
}

impl SandboxState {
    /// The grants that open nothing any more from this state on.
    const fn revokes(self) -> &'static [GrantKind] {
        match self {
            Self::Creating | Self::Running => &[],
            Self::Stopping => &[GrantKind::Agent],
            Self::Destroyed => &[GrantKind::Agent, GrantKind::Control],
        }
    }
}

/// Moves a sandbox forward and revokes the grants that end there; none if it is there or further already, or not known.
pub(crate) async fn advance(
    tx: &mut Tx<'_>,
    id: &SandboxId,
    state: SandboxState,
) -> Result<Option<bool>, StoreError> {
    let row = sql::query(ONE).bind(id.as_str()).fetch_optional(&mut *tx.db).await?;
    let Some(row) = row else { return Ok(None) };
    let old = sandbox(&row)?;
    if old.state >= state {
        return Ok(None);
    }
    let moved = sql::query(MOVE)
        .bind(id.as_str())
        .bind(old.state.as_str())
        .bind(state.as_str())
        .bind(tx.now_ms)
        .execute(&mut *tx.db)
        .await?
        .rows_affected()
        == 1;
    for kind in state.revokes() {
        revoke(tx, id, *kind).await?;
    }
    tx.wake(Topic::Sandbox(id.clone()));
    tx.wake(Topic::Server(old.server));
    Ok(Some(moved))
}

async fn revoke(tx: &mut Tx<'_>, id: &SandboxId, kind: GrantKind) -> Result<(), StoreError> {
    sql::query(REVOKE).bind(id.as_str()).bind(kind.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
    Ok(())
}

fn sandbox(row: &Row) -> Result<SandboxRow, StoreError> {
    let columns = Columns::of("sandbox", row)?;
    Ok(SandboxRow {
        id: columns.parse("id")?,
        project: columns.parse("project_id")?,
        session: columns.parse("session_id")?,
        server: columns.parse("server_id")?,
        engine: columns.get("engine")?,
        image: columns.get("image")?,
        uid: columns.number("uid")?,
        state: columns.parse("state")?,
        created_at_ms: columns.get("created_at_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_parses_back_and_no_other_text_does() {
        for state in SandboxState::ALL {
            assert_eq!(state.to_string().parse::<SandboxState>().unwrap(), *state);
        }
        let error = "paused".parse::<SandboxState>().unwrap_err().to_string();
        assert!(error.contains("\"paused\"") && error.contains("creating, running"), "{error}");
    }
}
