//! Servers that are away: their runs are unowned, and lost only after a long silence.
//!
//! An expired lease gives a run to nobody. Its sandbox lives on beside its home server, which takes the run up again with a
//! new epoch; only when that server has been silent for [`Store::server_lost_after_ms`] may another take the run from it.

use std::sync::atomic::Ordering;

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{RunId, ServerId};
use caisson_domain::limits::{LEASE_MS, LOST_RUNS, SERVER_LOST_MS_MAX, SERVER_LOST_MS_MIN, SERVER_SILENT_MS};
use caisson_domain::protocol::NoteLevel;
use caisson_domain::run::{Failure, FailureKind, Run, RunStatus};
use serde_json::json;

use crate::database::{Row, Tx, sql};
use crate::rows::{Columns, run_columns};
use crate::{
    Actor, Claimed, Finish, HomeEpoch, NewAudit, SandboxState, Store, StoreError, audit, damage, events,
    queue, rows, sandboxes,
};

/// Whoever was away itself cannot tell the silence of others from its own, so it must have been there all the time.
const WITNESS: &str =
    "select 1 from server_role where server_id = $1 and seen_at_ms >= $2 and alive_since_ms <= $3";

pub(crate) const LOST: &str = concat!(
    "select ",
    run_columns!(),
    " from run where status = 'running' and lease_expires_at_ms <= $2 and home_server_id <> $1 and exists \
     (select 1 from server where server.id = run.home_server_id and server.seen_at_ms <= $3) order by id limit $4"
);

const FENCE: &str = "update run set lease_epoch = lease_epoch + 1 \
     where id = $1 and lease_epoch = $2 and status = 'running'";

const READOPT: &str = concat!(
    "update run set lease_epoch = lease_epoch + 1, lease_expires_at_ms = $4 \
     where id = $1 and lease_epoch >= $2 and attempt = $5 and home_server_id = $3 and status = 'running' returning ",
    run_columns!()
);

const UNOWNED: &str = "select id, lease_epoch, attempt from run where status = 'running' and home_server_id = $1 \
     and lease_expires_at_ms <= $2 order by id";

/// A running run whose lease is over, at its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unowned {
    /// The run.
    pub run: RunId,
    /// The epoch of the lease that is over.
    pub epoch: HomeEpoch,
    /// The attempt under way.
    pub attempt: i64,
}

impl Store {
    /// Says how long a server may be silent, in milliseconds, before [`Store::write_off_lost`] ends its runs and another
    /// server may take its sessions up; kept within [`SERVER_LOST_MS_MIN`] and [`SERVER_LOST_MS_MAX`].
    pub fn set_server_lost_after_ms(&self, ms: i64) {
        let ms = ms.clamp(SERVER_LOST_MS_MIN, SERVER_LOST_MS_MAX);
        self.shared.server_lost_after_ms.store(ms, Ordering::Relaxed);
    }

    /// How long a server may be silent before it counts as lost, in milliseconds.
    #[must_use]
    pub fn server_lost_after_ms(&self) -> i64 {
        self.shared.server_lost_after_ms.load(Ordering::Relaxed)
    }

    /// Takes a run of the caller's own up again whose lease is over, with a new epoch and lease; `None` if it is lost:
    /// it has ended or was written off. No event tells of it and the attempt stays the same. A run that cannot be read
    /// ends as failed instead.
    ///
    /// A later epoch of the same attempt is the caller's own as well: that of a call whose answer was lost. Nobody but its
    /// home raises it without ending the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: taking it up again raises the epoch again.
    pub async fn readopt(&self, lapsed: &Unowned, server: &ServerId) -> Result<Option<Claimed>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(READOPT)
            .bind(lapsed.run.as_str())
            .bind(lapsed.epoch.number)
            .bind(server.as_str())
            .bind(tx.now_ms + LEASE_MS)
            .bind(lapsed.attempt)
            .fetch_optional(&mut *tx.db)
            .await?;
        let Some(row) = row else {
            tx.rollback().await?;
            return Ok(None);
        };
        let claimed = match queue::claimed(&mut tx, &row).await {
            Ok(claimed) => Some(claimed),
            Err(StoreError::Corrupt { what, source }) => {
                damage::end_row(&mut tx, &row, (&what, &source)).await?;
                None
            }
            Err(error) => return Err(error),
        };
        tx.commit().await?;
        Ok(claimed)
    }

    /// The server's running runs whose leases are over, oldest first: those that a claim has taken whose answer was lost,
    /// beside those that the caller has in hand. As many as the server has slots.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn unowned_runs(&self, server: &ServerId) -> Result<Vec<Unowned>, StoreError> {
        let query = sql::query(UNOWNED).bind(server.as_str()).bind(self.now_ms());
        query.fetch_all(self.reader()).await?.iter().map(|row| unowned(row, server)).collect()
    }

    /// Takes the runs of servers that have been silent for [`Store::server_lost_after_ms`] from them, by compare-and-set on
    /// status and epoch, with an event, a record of the audit log and their sandboxes' grants revoked; returns them. One
    /// whose agent may have started ends as lost, any other goes back to the queue. At most [`LOST_RUNS`] at a time. `server` is the caller, which must have been heard of all that time itself: after
    /// an outage of the database nobody can tell who was away.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: all of them are taken or none.
    pub async fn write_off_lost(&self, server: &ServerId) -> Result<Vec<RunId>, StoreError> {
        if !self.may_have_lost(server).await? {
            return Ok(Vec::new());
        }
        let mut tx = self.begin().await?;
        let since_ms = tx.now_ms - self.server_lost_after_ms();
        let mut written_off = Vec::new();
        if is_witness(&mut tx, server, since_ms).await? {
            let rows = sql::query(LOST)
                .bind(server.as_str())
                .bind(tx.now_ms)
                .bind(since_ms)
                .bind(LOST_RUNS)
                .fetch_all(&mut *tx.db)
                .await?;
            for row in &rows {
                written_off.extend(write_off(&mut tx, row, self.server_lost_after_ms()).await?);
            }
        }
        tx.commit().await?;
        Ok(written_off)
    }

    /// A look without the write lock, since there is hardly ever anything.
    async fn may_have_lost(&self, server: &ServerId) -> Result<bool, StoreError> {
        let now_ms = self.now_ms();
        let rows = sql::query(LOST)
            .bind(server.as_str())
            .bind(now_ms)
            .bind(now_ms - self.server_lost_after_ms())
            .bind(1_i64)
            .fetch_all(self.reader())
            .await?;
        Ok(!rows.is_empty())
    }
}

fn unowned(row: &Row, server: &ServerId) -> Result<Unowned, StoreError> {
    let columns = Columns::of("run", row)?;
    let epoch = HomeEpoch::new(columns.get("lease_epoch")?, server);
    Ok(Unowned { run: columns.parse("id")?, epoch, attempt: columns.get("attempt")? })
}

async fn is_witness(tx: &mut Tx<'_>, server: &ServerId, since_ms: i64) -> Result<bool, StoreError> {
    let found = sql::query(WITNESS)
        .bind(server.as_str())
        .bind(tx.now_ms - SERVER_SILENT_MS)
        .bind(since_ms)
        .fetch_optional(&mut *tx.db)
        .await?;
    Ok(found.is_some())
}

async fn write_off(tx: &mut Tx<'_>, row: &Row, lost_after_ms: i64) -> Result<Option<RunId>, StoreError> {
    let run = match rows::run(row) {
        Ok(run) => run,
        Err(StoreError::Corrupt { what, source }) => {
            damage::end_row(tx, row, (&what, &source)).await?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let fenced = sql::query(FENCE)
        .bind(run.id.as_str())
        .bind(rows::epoch(row)?.0)
        .execute(&mut *tx.db)
        .await?
        .rows_affected();
    if fenced != 1 {
        return Ok(None);
    }
    tell(tx, &run, lost_after_ms).await?;
    if !run.agent_started {
        let reason = format!("server {} is lost, and the agent had not started there", home(&run));
        queue::give_back(tx, &run, &reason, 0).await?;
        return Ok(Some(run.id));
    }
    if let Some(sandbox) = &run.sandbox {
        sandboxes::advance(tx, sandbox, SandboxState::Stopping).await?;
    }
    let failure = Failure::new(
        FailureKind::SandboxLost,
        format!(
            "the server with the run's sandbox has been silent for more than {} s, so the run was written off; send the \
             request again if what it pushed is not enough",
            lost_after_ms / 1000
        ),
    )
    .with_evidence(format!("home server {}", home(&run)));
    let finish = Finish { status: RunStatus::Failed, failure: Some(failure), result: None };
    queue::end(tx, &run, &finish).await?;
    Ok(Some(run.id))
}

/// Before the end, which is a run's last event.
async fn tell(tx: &mut Tx<'_>, run: &Run, lost_after_ms: i64) -> Result<(), StoreError> {
    let home = home(run);
    let message = format!(
        "server {home} has not been heard of for more than {} s; when it comes back it destroys the sandbox and keeps the \
         session's workspace, where work that was not pushed still is",
        lost_after_ms / 1000
    );
    let mut data = json!({ "level": NoteLevel::Warn, "message": message, "server": home });
    if let Some(sandbox) = &run.sandbox {
        data["sandbox"] = sandbox.as_str().into();
    }
    events::append(tx, &run.session, &run.id, &[NewEvent::new(EventKind::Note, &data)]).await?;
    let record = NewAudit { host: Some(home), ..NewAudit::of_run(run, Actor::Server, "run.write_off") };
    audit::write(tx, &record).await
}

fn home(run: &Run) -> String {
    run.home.as_ref().map_or_else(String::new, ToString::to_string)
}
