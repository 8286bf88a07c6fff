//! On which servers the files of sessions lie: written down before the first of them can be made, until the last of them is
//! gone there.
//!
//! A session's row stays as long as any server has files of it, since only by it they are found. A server that is lost has
//! them as well; one that was forgotten does not count.

use caisson_domain::id::{ServerId, SessionId};
use caisson_domain::retention::Kept;
use caisson_domain::run::Run;

use crate::database::{Tx, sql};
use crate::{Store, StoreError};

/// A session that runs again has files to keep again, whatever was said of those that it had.
const KEEP: &str = "insert into session_files (session_id, server_id, kind, project_id) \
     values ($1, $2, 'artifacts', $3), ($1, $2, 'volumes', $3) on conflict (session_id, server_id, kind) \
     do update set removal_begun_at_ms = 0 where session_files.removal_begun_at_ms <> 0";

const HAS_VOLUME: &str =
    "update session set volume_deleted_at_ms = null where id = $1 and volume_deleted_at_ms is not null";

const FIRST: &str = "update session_files set removal_begun_at_ms = $4 \
     where session_id = $1 and server_id = $2 and kind = $3 and removal_begun_at_ms = 0";

const AGAIN: &str = "update session_files set removal_begun_at_ms = $4 \
     where session_id = $1 and server_id = $2 and kind = $3 and removal_begun_at_ms <> 0";

const GONE: &str = "delete from session_files \
     where session_id = $1 and server_id = $2 and kind = $3 and removal_begun_at_ms <> 0";

pub(crate) const LEFT: &str = "select count(*) from session_files join server on server.id = session_files.server_id \
     where session_files.session_id = $1 and server.forgotten_at_ms is null";

/// What the store knows of files that are about to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// There are none on that server.
    Nothing,
    /// Nobody has begun to remove them.
    First,
    /// Somebody has begun, and they may be there still.
    Again,
}

impl Store {
    /// Notes that the server has no more files of that kind of the session, after it has removed them; `false` if the session runs
    /// again meanwhile and keeps its files, or if that was noted before.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn session_files_gone(
        &self,
        session: &SessionId,
        server: &ServerId,
        kept: Kept,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let gone = sql::query(GONE)
            .bind(session.as_str())
            .bind(server.as_str())
            .bind(kept.as_str())
            .execute(&mut *tx.db)
            .await?
            .rows_affected()
            > 0;
        tx.commit().await?;
        Ok(gone)
    }
}

/// Notes that files of the run's session may be made on the server from now on.
pub(crate) async fn keep(tx: &mut Tx<'_>, run: &Run, server: &ServerId) -> Result<(), StoreError> {
    sql::query(KEEP)
        .bind(run.session.as_str())
        .bind(server.as_str())
        .bind(run.project.as_str())
        .execute(&mut *tx.db)
        .await?;
    sql::query(HAS_VOLUME).bind(run.session.as_str()).execute(&mut *tx.db).await?;
    Ok(())
}

/// Notes that the server begins to remove files of that kind.
pub(crate) async fn begin_removal(
    tx: &mut Tx<'_>,
    (session, server): (&SessionId, &ServerId),
    kept: Kept,
) -> Result<Removal, StoreError> {
    for (statement, removal) in [(FIRST, Removal::First), (AGAIN, Removal::Again)] {
        let begun = sql::query(statement)
            .bind(session.as_str())
            .bind(server.as_str())
            .bind(kept.as_str())
            .bind(tx.now_ms)
            .execute(&mut *tx.db)
            .await?;
        if begun.rows_affected() > 0 {
            return Ok(removal);
        }
    }
    Ok(Removal::Nothing)
}

/// Whether a server that is not forgotten has files of the session.
pub(crate) async fn are_left(tx: &mut Tx<'_>, session: &SessionId) -> Result<bool, StoreError> {
    let left: i64 = sql::query_scalar(LEFT).bind(session.as_str()).fetch_one(&mut *tx.db).await?;
    Ok(left > 0)
}
