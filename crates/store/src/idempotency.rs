//! Keys that make a repetition of a request harmless. A key is remembered for its time, also when what it made is deleted.

use caisson_domain::id::{ProjectId, RunId, SessionId};

use crate::database::sql::Connection;
use crate::database::{Tx, sql};
use crate::rows::Columns;
use crate::{Idempotency, StoreError};

/// What a request made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made<'m> {
    Run(&'m RunId),
    Fork(&'m SessionId),
}

/// What is remembered of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// It was sent with another request.
    Other,
    /// The same request made this run.
    Run(RunId),
    /// The same request made this fork.
    Fork(SessionId),
    /// What the same request made was deleted.
    Deleted,
}

const REMEMBERED: &str = "select key, request_sha256, run_id, session_id from idempotency \
     where project_id = $1 and key = $2 and expires_at_ms > $3";

/// What was made with the same key before, if it is still remembered.
pub(crate) async fn find(
    db: &mut Connection,
    now_ms: i64,
    project: &ProjectId,
    idempotency: &Idempotency,
) -> Result<Option<Remembered>, StoreError> {
    let row = sql::query(REMEMBERED)
        .bind(project.as_str())
        .bind(idempotency.key.as_str())
        .bind(now_ms)
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let columns = Columns::keyed("idempotency", &row, "key")?;
    if columns.get::<&str>("request_sha256")? != idempotency.request_sha256 {
        return Ok(Some(Remembered::Other));
    }
    if let Some(run) = columns.parse_optional("run_id")? {
        return Ok(Some(Remembered::Run(run)));
    }
    let fork = columns.parse_optional("session_id")?;
    Ok(Some(fork.map_or(Remembered::Deleted, Remembered::Fork)))
}

/// Expired keys forgotten with each new one: more than one, so that they do not pile up.
const FORGET_ITEMS: i64 = 16;

const FORGET: &str = "delete from idempotency where (project_id, key) in \
     (select project_id, key from idempotency where expires_at_ms <= $1 order by expires_at_ms limit $2)";

const REMEMBER: &str = "insert into idempotency (project_id, key, request_sha256, run_id, session_id, expires_at_ms) \
     values ($1, $2, $3, $4, $5, $6) on conflict (project_id, key) do update set \
     request_sha256 = excluded.request_sha256, run_id = excluded.run_id, session_id = excluded.session_id, \
     expires_at_ms = excluded.expires_at_ms";

/// Remembers what a request made, for so long.
pub(crate) async fn remember(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    made: Made<'_>,
    idempotency: &Idempotency,
    remembered_ms: i64,
) -> Result<(), StoreError> {
    let (run, fork) = match made {
        Made::Run(run) => (Some(run.as_str()), None),
        Made::Fork(fork) => (None, Some(fork.as_str())),
    };
    sql::query(FORGET).bind(tx.now_ms).bind(FORGET_ITEMS).execute(&mut *tx.db).await?;
    sql::query(REMEMBER)
        .bind(project.as_str())
        .bind(idempotency.key.as_str())
        .bind(idempotency.request_sha256.as_str())
        .bind(run)
        .bind(fork)
        .bind(tx.now_ms + remembered_ms)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}
