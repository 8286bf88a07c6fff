//! Keys that make a repetition of a request harmless. A key is remembered for its time, also when what it made is deleted.

use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::limits::IDEMPOTENCY_MS;

use crate::database::sql::Connection;
use crate::database::{Tx, sql};
use crate::rows::Columns;
use crate::{Idempotency, StoreError};

/// How long a request that comes again is taken for the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepeatWindow {
    /// However its run stands, in milliseconds.
    pub always_ms: i64,
    /// As long as its run is not over, in milliseconds; no less than `always_ms`.
    pub live_ms: i64,
}

/// [`IDEMPOTENCY_MS`], whatever the run comes to.
impl Default for RepeatWindow {
    fn default() -> Self {
        Self { always_ms: IDEMPOTENCY_MS, live_ms: IDEMPOTENCY_MS }
    }
}

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
    /// The same request made this run, and is the same only as long as that is not over, if so it says.
    Run { run: RunId, while_live: bool },
    /// The same request made this fork.
    Fork(SessionId),
    /// What the same request made was deleted.
    Deleted,
}

const REMEMBERED: &str = "select key, request_sha256, run_id, session_id, expires_at_ms from idempotency \
     where project_id = $1 and key = $2 and expires_at_ms > $3";

/// What was made with the same key before, if it is still remembered.
pub(crate) async fn find(
    db: &mut Connection,
    now_ms: i64,
    project: &ProjectId,
    (idempotency, window): (&Idempotency, RepeatWindow),
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
    let made_at_ms = columns.get::<i64>("expires_at_ms")? - window.live_ms;
    let while_live = now_ms >= made_at_ms + window.always_ms;
    if let Some(run) = columns.parse_optional("run_id")? {
        return Ok(Some(Remembered::Run { run, while_live }));
    }
    match columns.parse_optional("session_id")? {
        Some(fork) => Ok(Some(Remembered::Fork(fork))),
        // What is deleted was over before.
        None => Ok((!while_live).then_some(Remembered::Deleted)),
    }
}

/// Expired keys forgotten with each new one: more than one, so that they do not pile up.
const FORGET_ITEMS: i64 = 16;

const FORGET: &str = "delete from idempotency where (project_id, key) in \
     (select project_id, key from idempotency where expires_at_ms <= $1 order by expires_at_ms limit $2)";

const REMEMBER: &str = "insert into idempotency (project_id, key, request_sha256, run_id, session_id, expires_at_ms) \
     values ($1, $2, $3, $4, $5, $6) on conflict (project_id, key) do update set \
     request_sha256 = excluded.request_sha256, run_id = excluded.run_id, session_id = excluded.session_id, \
     expires_at_ms = excluded.expires_at_ms";

/// Remembers what a request made.
pub(crate) async fn remember(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    made: Made<'_>,
    (idempotency, window): (&Idempotency, RepeatWindow),
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
        .bind(tx.now_ms + window.live_ms)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}
