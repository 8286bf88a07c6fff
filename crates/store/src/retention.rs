//! Retention: what has been kept long enough, and its removal.
//!
//! Something of a session has **expired** when its days are over since the session's last run ended, no run of it is queued
//! or running, and none of its sandboxes is left. That is looked at again in the transaction that removes it, so that a
//! session which comes to life meanwhile loses nothing. What a run came to stays in its row, and what it cost in its
//! usage; the audit log is never touched, and tells of each removal.

use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::retention::{Kept, ProjectRetention, Retention};

use crate::database::{Row, Tx, sql};
use crate::rows::Columns;
use crate::{Actor, NewAudit, Store, StoreError, audit};

/// Most expired sessions listed at once.
pub const EXPIRED_PAGE: u32 = 200;
/// Events whose numbers are gone through in one transaction.
pub const RETENTION_EVENTS: i64 = 1_000;

/// A session of which something has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// The session.
    pub session: SessionId,
    /// Its tenant.
    pub project: ProjectId,
    /// When its last run ended, Unix ms.
    pub ended_at_ms: i64,
}

const POLICY: &str = "select id, keep_events_days, keep_artifacts_days, keep_volumes_days, keep_sessions_days \
     from project where id = $1";

const POLICIES: &str = "select id, keep_events_days, keep_artifacts_days, keep_volumes_days, keep_sessions_days \
     from project order by id limit $1";

const SET_POLICY: &str = "update project set keep_events_days = $2, keep_artifacts_days = $3, keep_volumes_days = $4, \
     keep_sessions_days = $5 where id = $1";

/// A session's end: none while anything of it lives, or if it never had a run.
macro_rules! ended {
    () => {
        "select session.id, session.project_id, \
         (select max(run.finished_at_ms) from run where run.session_id = session.id) as ended_at_ms \
         from session where not exists (select 1 from run where run.session_id = session.id \
         and run.status in ('queued', 'running')) and not exists (select 1 from sandbox \
         where sandbox.session_id = session.id and sandbox.state <> 'destroyed') "
    };
}

const ONE: &str = concat!(ended!(), "and session.id = $1");

const OF_RUN: &str = concat!(ended!(), "and session.id = (select session_id from run where run.id = $1)");

/// An event is the last thing that a run's end writes, so a session that was changed later has ended later.
const WITH_EVENTS: &str = concat!(
    ended!(),
    "and session.project_id = $1 and session.updated_at_ms <= $2 and events_deleted_seq < last_seq \
     and $4 <> '' \
     order by updated_at_ms, session.id limit $3"
);

const WITH_VOLUME: &str = concat!(
    ended!(),
    "and session.project_id = $1 and session.updated_at_ms <= $2 and volume_deleted_at_ms is null and exists \
     (select 1 from sandbox where sandbox.session_id = session.id and sandbox.server_id = $4) \
     order by updated_at_ms, session.id limit $3"
);

/// Files are kept by the server whose gateway wrote them, which is the one that had the sandbox.
const WITH_ARTIFACTS: &str = concat!(
    ended!(),
    "and session.project_id = $1 and session.updated_at_ms <= $2 and exists \
     (select 1 from artifact join run on run.id = artifact.run_id where run.session_id = session.id) and exists \
     (select 1 from sandbox where sandbox.session_id = session.id and sandbox.server_id = $4) \
     order by updated_at_ms, session.id limit $3"
);

const WHOLE: &str = concat!(
    ended!(),
    "and session.project_id = $1 and session.updated_at_ms <= $2 and events_deleted_seq = last_seq \
     and not exists (select 1 from artifact join run on run.id = artifact.run_id where run.session_id = session.id) \
     and $4 <> '' and (volume_deleted_at_ms is not null \
          or not exists (select 1 from sandbox where sandbox.session_id = session.id)) \
     order by updated_at_ms, session.id limit $3"
);

const EVENT_MARK: &str = "select events_deleted_seq, last_seq from session where id = $1";
const DELETE_EVENTS: &str = "delete from event where session_id = $1 and seq > $2 and seq <= $3 \
     and kind not in ('run.queued', 'run.started', 'run.finished', 'git.push')";
const MARK_EVENTS: &str = "update session set events_deleted_seq = $2 where id = $1";

const RUNS: &str = "select id from run where session_id = $1 order by id";
const DELETE_ARTIFACTS: &str =
    "delete from artifact where run_id in (select id from run where session_id = $1)";
const MARK_VOLUME: &str =
    "update session set volume_deleted_at_ms = $2 where id = $1 and volume_deleted_at_ms is null";

/// Everything that refers to a session or to its runs, in an order in which nothing refers to what is gone.
const DELETE_SESSION: [&str; 13] = [
    "delete from automagik_run where session_id = $1",
    "delete from credential_use where run_id in (select id from run where session_id = $1)",
    "delete from idempotency where run_id in (select id from run where session_id = $1)",
    "delete from artifact where run_id in (select id from run where session_id = $1)",
    "delete from input where session_id = $1",
    "delete from approval where session_id = $1",
    "delete from event where session_id = $1",
    "delete from usage where session_id = $1",
    "delete from attempt where session_id = $1",
    "delete from run where session_id = $1",
    "delete from sandbox_grant where sandbox_id in (select id from sandbox where session_id = $1)",
    "delete from sandbox where session_id = $1",
    "delete from session where id = $1",
];

impl Store {
    /// What the project says of retention; none if there is no such project.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn retention(&self, project: &ProjectId) -> Result<Option<ProjectRetention>, StoreError> {
        let row = sql::query(POLICY).bind(project.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(policy).transpose()
    }

    /// Sets what the project says of some things, and leaves the others; none if there is no such project.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: set or not.
    pub async fn set_retention(
        &self,
        project: &ProjectId,
        changes: &[(Kept, Option<i64>)],
        by: Actor,
    ) -> Result<Option<ProjectRetention>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sql::query(POLICY).bind(project.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(row) = row else { return Ok(None) };
        let old = policy(&row)?;
        let mut new = old;
        for (kept, days) in changes {
            *new.part(*kept) = *days;
        }
        if new == old {
            tx.rollback().await?;
            return Ok(Some(old));
        }
        sql::query(SET_POLICY)
            .bind(project.as_str())
            .bind(new.events_days)
            .bind(new.artifacts_days)
            .bind(new.volumes_days)
            .bind(new.sessions_days)
            .execute(&mut *tx.db)
            .await?;
        audit::write(&mut tx, &NewAudit::new(project, by, "retention.set", &told(new))).await?;
        tx.commit().await?;
        Ok(Some(new))
    }

    /// Sessions of which something has expired and is still there, oldest first in each project; at most [`EXPIRED_PAGE`]. What
    /// lies in files is listed for the server that had the session's sandboxes, and a session only when its files are gone.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn expired(
        &self,
        kept: Kept,
        server: &ServerId,
        default: &Retention,
    ) -> Result<Vec<Expired>, StoreError> {
        let statement = match kept {
            Kept::Events => WITH_EVENTS,
            Kept::Artifacts => WITH_ARTIFACTS,
            Kept::Volumes => WITH_VOLUME,
            Kept::Sessions => WHOLE,
        };
        let now_ms = self.now_ms();
        let mut found = Vec::new();
        for row in sql::query(POLICIES).bind(PAGE_ITEMS).fetch_all(self.reader()).await? {
            let Some(cutoff_ms) = policy(&row)?.or(*default).cutoff_ms(kept, now_ms) else { continue };
            let project: String = row.get("id")?;
            let rows = sql::query(statement)
                .bind(project)
                .bind(cutoff_ms)
                .bind(EXPIRED_PAGE)
                .bind(server.as_str())
                .fetch_all(self.reader())
                .await?;
            for row in &rows {
                found.extend(ended(row)?);
            }
        }
        found.truncate(EXPIRED_PAGE as usize);
        Ok(found)
    }

    /// The session, if something of it has expired.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn expired_of(
        &self,
        kept: Kept,
        session: &SessionId,
        default: &Retention,
    ) -> Result<Option<Expired>, StoreError> {
        let row = sql::query(ONE).bind(session.as_str()).fetch_optional(self.reader()).await?;
        self.if_expired(kept, row, default).await
    }

    /// The run's session, if something of it has expired.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn expired_of_run(
        &self,
        kept: Kept,
        run: &RunId,
        default: &Retention,
    ) -> Result<Option<Expired>, StoreError> {
        let row = sql::query(OF_RUN).bind(run.as_str()).fetch_optional(self.reader()).await?;
        self.if_expired(kept, row, default).await
    }

    async fn if_expired(
        &self,
        kept: Kept,
        row: Option<Row>,
        default: &Retention,
    ) -> Result<Option<Expired>, StoreError> {
        let Some(found) = row.as_ref().map(ended).transpose()?.flatten() else { return Ok(None) };
        let own = self.retention(&found.project).await?.unwrap_or_default();
        let cutoff_ms = own.or(*default).cutoff_ms(kept, self.now_ms());
        Ok(cutoff_ms.is_some_and(|cutoff_ms| found.ended_at_ms <= cutoff_ms).then_some(found))
    }

    /// Removes the next of a session's events, [`RETENTION_EVENTS`] at most, and says how many and whether there may be more.
    /// `run.queued`, `run.started`, `run.finished` and `git.push` stay.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: what was removed is marked as such.
    pub async fn delete_events(
        &self,
        session: &SessionId,
        default: &Retention,
        by: &Actor,
    ) -> Result<(u64, bool), StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Events, session, default).await? else {
            return Ok((0, false));
        };
        let mark: Option<(i64, i64)> =
            sql::query_as(EVENT_MARK).bind(session.as_str()).fetch_optional(&mut *tx.db).await?;
        let (from, last) = mark.ok_or_else(|| StoreError::missing("session", session.as_str()))?;
        let to = last.min(from.saturating_add(RETENTION_EVENTS));
        let deleted = sql::query(DELETE_EVENTS)
            .bind(session.as_str())
            .bind(from)
            .bind(to)
            .execute(&mut *tx.db)
            .await?
            .rows_affected();
        sql::query(MARK_EVENTS).bind(session.as_str()).bind(to).execute(&mut *tx.db).await?;
        if to == last && from < last {
            write(&mut tx, &expired, by, "retention.events").await?;
        }
        tx.commit().await?;
        Ok((deleted, to < last))
    }

    /// Forgets the artifacts of the session's runs and answers the runs, whose files the caller removes afterwards; none if
    /// they have not expired.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable; files of which no row tells are found again by their place.
    pub async fn delete_artifacts(
        &self,
        session: &SessionId,
        default: &Retention,
        by: &Actor,
    ) -> Result<Option<Vec<RunId>>, StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Artifacts, session, default).await? else { return Ok(None) };
        let rows = sql::query(RUNS).bind(session.as_str()).fetch_all(&mut *tx.db).await?;
        let runs = rows.iter().map(|row| Columns::of("run", row)?.parse("id")).collect::<Result<_, _>>()?;
        let deleted =
            sql::query(DELETE_ARTIFACTS).bind(session.as_str()).execute(&mut *tx.db).await?.rows_affected();
        if deleted > 0 {
            write(&mut tx, &expired, by, "retention.artifacts").await?;
        }
        tx.commit().await?;
        Ok(Some(runs))
    }

    /// Notes that the session's workspace and home are to go, which the caller removes afterwards; `false` if they have not
    /// expired.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn delete_volume(
        &self,
        session: &SessionId,
        default: &Retention,
        by: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Volumes, session, default).await? else { return Ok(false) };
        let marked =
            sql::query(MARK_VOLUME).bind(session.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
        if marked.rows_affected() > 0 {
            write(&mut tx, &expired, by, "retention.volume").await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Removes the session with its runs and everything of them; `false` if it has not expired. What was spent stays in the
    /// project's days and total, and the audit log keeps its records.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: removed or not.
    pub async fn delete_session(
        &self,
        session: &SessionId,
        default: &Retention,
        by: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Sessions, session, default).await? else { return Ok(false) };
        for statement in DELETE_SESSION {
            sql::query(statement).bind(session.as_str()).execute(&mut *tx.db).await?;
        }
        write(&mut tx, &expired, by, "retention.session").await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// Looks again whether something of the session has expired, now that nobody can change that.
async fn still(
    tx: &mut Tx<'_>,
    kept: Kept,
    session: &SessionId,
    default: &Retention,
) -> Result<Option<Expired>, StoreError> {
    let row = sql::query(ONE).bind(session.as_str()).fetch_optional(&mut *tx.db).await?;
    let Some(found) = row.as_ref().map(ended).transpose()?.flatten() else { return Ok(None) };
    let row = sql::query(POLICY).bind(found.project.as_str()).fetch_one(&mut *tx.db).await?;
    let cutoff_ms = policy(&row)?.or(*default).cutoff_ms(kept, tx.now_ms);
    Ok(cutoff_ms.is_some_and(|cutoff_ms| found.ended_at_ms <= cutoff_ms).then_some(found))
}

async fn write(tx: &mut Tx<'_>, expired: &Expired, by: &Actor, action: &str) -> Result<(), StoreError> {
    let session = &expired.session;
    let new = NewAudit {
        session: Some(session.clone()),
        ..NewAudit::new(&expired.project, by.clone(), action, session.as_str())
    };
    audit::write(tx, &new).await
}

fn policy(row: &Row) -> Result<ProjectRetention, StoreError> {
    let columns = Columns::of("project", row)?;
    Ok(ProjectRetention {
        events_days: columns.get("keep_events_days")?,
        artifacts_days: columns.get("keep_artifacts_days")?,
        volumes_days: columns.get("keep_volumes_days")?,
        sessions_days: columns.get("keep_sessions_days")?,
    })
}

fn ended(row: &Row) -> Result<Option<Expired>, StoreError> {
    let columns = Columns::of("session", row)?;
    let Some(ended_at_ms) = columns.get::<Option<i64>>("ended_at_ms")? else { return Ok(None) };
    Ok(Some(Expired { session: columns.parse("id")?, project: columns.parse("project_id")?, ended_at_ms }))
}

/// A policy as the audit log tells of it.
fn told(mut policy: ProjectRetention) -> String {
    let part = |kept: &Kept| {
        let days = match *policy.part(*kept) {
            None => "as the settings say".to_owned(),
            Some(0) => "for ever".to_owned(),
            Some(days) => format!("{days} days"),
        };
        format!("{kept} {days}")
    };
    Kept::ALL.iter().map(part).collect::<Vec<_>>().join(", ")
}
