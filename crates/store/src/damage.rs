//! Runs that cannot be read: they are ended without being read, so that one damaged row stops nobody else.

use caisson_domain::id::{RunId, SandboxId};
use caisson_domain::run::{Failure, FailureKind, RunStatus};

use crate::database::{Row, Tx, sql};
use crate::events::{self, Ended};
use crate::rows::{Columns, document};
use crate::{BoxError, HomeEpoch, Store, StoreError, Topic, queue, usage};

impl Store {
    /// Ends a run as failed without reading anything of it but numbers: for a run that [`Store::finish`] cannot read.
    /// `false` if the caller has lost it.
    ///
    /// An event tells of it, unless the damage is such that the run has no session.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: ended or not.
    pub async fn end_unread(
        &self,
        run: &RunId,
        epoch: HomeEpoch,
        failure: &Failure,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let ended = end(&mut tx, run.as_str(), (epoch.number, epoch.home()), failure).await?;
        tx.commit().await?;
        Ok(ended)
    }
}

/// Ends the running run of a row that has `id`, `lease_epoch` and `home_server_id`, because something about it cannot be read.
pub(crate) async fn end_row(
    tx: &mut Tx<'_>,
    row: &Row,
    (what, source): (&str, &BoxError),
) -> Result<(), StoreError> {
    let columns = Columns::of("run", row)?;
    let id: String = columns.get("id")?;
    tracing::error!(run.id = %id, "ending run {id}, which cannot be read: {what}: {source}");
    let message = format!(
        "what the database holds about the run cannot be read ({what}), so the run was ended; send the request again"
    );
    let failure = Failure::new(FailureKind::Internal, message).with_evidence(source.to_string());
    let home: Option<String> = columns.get("home_server_id")?;
    let fence = (columns.get("lease_epoch")?, home.as_deref().unwrap_or_default());
    end(tx, &id, fence, &failure).await.map(drop)
}

const RUNNING: &str =
    "select 1 from run where id = $1 and lease_epoch = $2 and home_server_id = $3 and status = 'running'";

const END: &str = "update run set status = 'failed', failure = $2, result = null, output = null, checks = null, finished_at_ms = $3, phase = null, \
     waiting = null, lease_expires_at_ms = null, pending_push = null where id = $1 and status = 'running' \
     returning id, session_id, sandbox_id, attempt, pushed_commit, calls, estimated_calls, input_tokens, output_tokens, \
     cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd";

async fn end(
    tx: &mut Tx<'_>,
    run: &str,
    (epoch, home): (i64, &str),
    failure: &Failure,
) -> Result<bool, StoreError> {
    let running = sql::query(RUNNING).bind(run).bind(epoch).bind(home).fetch_optional(&mut *tx.db).await?;
    if running.is_none() {
        return Ok(false);
    }
    tx.mark().await?;
    let settled = usage::settle_open(tx, run).await;
    tolerant(tx, settled).await?;
    let row = sql::query(END)
        .bind(run)
        .bind(document("run.failure", failure)?)
        .bind(tx.now_ms)
        .fetch_one(&mut *tx.db)
        .await?;
    let columns = Columns::of("run", &row)?;
    queue::release(tx, run, columns.get("attempt")?).await?;
    if let Ok(Some(sandbox)) = columns.parse_optional::<SandboxId>("sandbox_id") {
        tx.wake(Topic::Sandbox(sandbox));
    }
    tx.mark().await?;
    let told = tell(tx, &columns, failure).await;
    tolerant(tx, told).await?;
    Ok(true)
}

async fn tell(tx: &mut Tx<'_>, columns: &Columns<'_>, failure: &Failure) -> Result<(), StoreError> {
    let id: RunId = columns.parse("id")?;
    let ended = Ended {
        status: RunStatus::Failed,
        failure: Some(failure),
        result: None,
        output: None,
        checks: &[],
        pushed_commit: columns.get("pushed_commit")?,
        usage: &columns.usage()?,
    };
    events::append_end(tx, &columns.parse("session_id")?, &id, &ended).await
}

/// What cannot be read or told is left out: the end itself is what counts.
async fn tolerant(tx: &mut Tx<'_>, done: Result<(), StoreError>) -> Result<(), StoreError> {
    match done {
        Ok(()) => Ok(()),
        Err(StoreError::Corrupt { .. }) => tx.undo().await,
        Err(error) => Err(error),
    }
}
