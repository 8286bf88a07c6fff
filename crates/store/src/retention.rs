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
use crate::files::{self, Removal};
use crate::removal::{self, nameable};
use crate::rows::Columns;
use crate::{Actor, NewAudit, Store, StoreError, attachments, audit, transcripts};

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

const POLICIES: &str = concat!(
    "select id, keep_events_days, keep_artifacts_days, keep_volumes_days, keep_sessions_days from project where ",
    nameable!(),
    " order by id limit $1"
);

const SET_POLICY: &str = "update project set keep_events_days = $2, keep_artifacts_days = $3, keep_volumes_days = $4, \
     keep_sessions_days = $5 where id = $1";

/// A session's end: none while anything of it lives. A fork that never had a run has ended when it was made.
macro_rules! ended {
    () => {
        ended!("session")
    };
    ($from:literal) => {
        concat!(
            "select session.id, session.project_id, \
             coalesce((select max(run.finished_at_ms) from run where run.session_id = session.id), session.created_at_ms) \
             as ended_at_ms from ",
            $from,
            " where session.project_id <> ",
            crate::removal::gone!(),
            " and not exists (select 1 from run where run.session_id = session.id \
             and run.status in ('queued', 'running')) and not exists (select 1 from sandbox \
             where sandbox.session_id = session.id and sandbox.state <> 'destroyed') "
        )
    };
}

pub(crate) const ONE: &str = concat!(ended!(), "and session.id = $1");

/// An event is the last thing that a run's end writes, so a session that was changed later has ended later.
pub(crate) const WITH_EVENTS: &str = concat!(
    ended!(),
    "and session.project_id = $1 and session.updated_at_ms <= $2 and (events_deleted_seq < last_seq \
       or exists (select 1 from transcript where transcript.session_id = session.id)) and $4 <> '' \
     order by updated_at_ms, session.id limit $3"
);

/// Those that have files of a kind on a server. What could not be removed is tried again after the others, and what was
/// tried longest ago first.
macro_rules! with_files {
    ($kind:literal) => {
        concat!(
            ended!("session_files join session on session.id = session_files.session_id"),
            "and session_files.server_id = $4 and session_files.project_id = $1 and session_files.kind = '",
            $kind,
            "' and session.updated_at_ms <= $2 \
             order by session_files.removal_begun_at_ms, session_files.session_id limit $3"
        )
    };
}

pub(crate) const WITH_VOLUME: &str = with_files!("volumes");
pub(crate) const WITH_ARTIFACTS: &str = with_files!("artifacts");

pub(crate) const WHOLE: &str = concat!(
    ended!(),
    "and session.project_id = $1 and session.updated_at_ms <= $2 and events_deleted_seq = last_seq and $4 <> '' \
     and not exists (select 1 from session_files join server on server.id = session_files.server_id \
       where session_files.session_id = session.id and server.forgotten_at_ms is null) \
     order by updated_at_ms, session.id limit $3"
);

const EVENT_MARK: &str = "select events_deleted_seq, last_seq from session where id = $1";
const DELETE_EVENTS: &str = "delete from event where session_id = $1 and seq > $2 and seq <= $3 \
     and kind not in ('run.queued', 'run.started', 'run.finished', 'git.push')";
const MARK_EVENTS: &str = "update session set events_deleted_seq = $2 where id = $1";

pub(crate) const RUNS: &str = "select id from run where session_id = $1 order by id";
pub(crate) const DELETE_ARTIFACTS: &str =
    "delete from artifact where run_id in (select id from run where session_id = $1)";
const MARK_VOLUME: &str =
    "update session set volume_deleted_at_ms = $2 where id = $1 and volume_deleted_at_ms is null";

/// Everything that refers to a session or to its runs, in an order in which nothing refers to what is gone. Keys of requests are
/// remembered for their time: the same request again must not be done a second time.
pub(crate) const DELETE_SESSION: [&str; 19] = [
    "delete from session_files where session_id = $1",
    transcripts::FORGET_PARTS,
    transcripts::FORGET,
    "delete from automagik_run where session_id = $1",
    "delete from credential_use where run_id in (select id from run where session_id = $1)",
    "update idempotency set run_id = null where run_id in (select id from run where session_id = $1)",
    "update idempotency set session_id = null where session_id = $1",
    "delete from artifact where run_id in (select id from run where session_id = $1)",
    "delete from input where session_id = $1",
    attachments::DELETE_PARTS,
    attachments::DELETE,
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

    /// Sessions of which something has expired and is still there, oldest first in each project; at most [`EXPIRED_PAGE`], of which
    /// each project gets its share. What lies in files is listed for the server that has them, and a session only when no server
    /// has any.
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
        let mut lists = Vec::new();
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
            let list = rows.iter().filter_map(|row| ended(row).transpose()).collect::<Result<Vec<_>, _>>()?;
            lists.push(list);
        }
        Ok(shared_out(lists))
    }

    /// Removes the next of a session's events, [`RETENTION_EVENTS`] at most, and says how many and whether there may be more; with
    /// the last of them the transcript goes.
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
        // It tells the same as they.
        let forgotten = to == last && transcripts::forget(&mut tx, session).await?;
        if to == last && (from < last || forgotten) {
            write(&mut tx, &expired, by, "retention.events").await?;
        }
        tx.commit().await?;
        Ok((deleted, to < last))
    }

    /// Forgets the artifacts of the session's runs and answers the runs, whose files on `server` the caller removes afterwards, and
    /// says so by [`Store::session_files_gone`]; none if they have not expired, or if it has none.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable; until the files are said to be gone, the session is listed again.
    pub async fn delete_artifacts(
        &self,
        session: &SessionId,
        server: &ServerId,
        default: &Retention,
        by: &Actor,
    ) -> Result<Option<Vec<RunId>>, StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Artifacts, session, default).await? else { return Ok(None) };
        let removal = files::begin_removal(&mut tx, (session, server), Kept::Artifacts).await?;
        if removal == Removal::Nothing {
            return Ok(None);
        }
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

    /// Notes that the session's workspace and home on `server` are to go, which the caller removes afterwards, and says so by
    /// [`Store::session_files_gone`]; `false` if they have not expired, or if there are none.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable; until they are said to be gone, the session is listed again.
    pub async fn delete_volume(
        &self,
        session: &SessionId,
        server: &ServerId,
        default: &Retention,
        by: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Volumes, session, default).await? else { return Ok(false) };
        let removal = files::begin_removal(&mut tx, (session, server), Kept::Volumes).await?;
        match removal {
            Removal::Nothing => return Ok(false),
            Removal::First => {
                sql::query(MARK_VOLUME).bind(session.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
                write(&mut tx, &expired, by, "retention.volume").await?;
            }
            Removal::Again => {}
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Removes the session with its runs and everything of them, as [`Store::delete_session_of`] does; `false` if it has not expired, or if a server has files of it
    /// still. What was spent stays in the project's days and total, and the audit log keeps its records.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: hidden or not; the rest is found again.
    pub async fn delete_session(
        &self,
        session: &SessionId,
        default: &Retention,
        by: &Actor,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(expired) = still(&mut tx, Kept::Sessions, session, default).await? else { return Ok(false) };
        if files::are_left(&mut tx, session).await? {
            return Ok(false);
        }
        removal::hide(&mut tx, session).await?;
        write(&mut tx, &expired, by, "retention.session").await?;
        tx.commit().await?;
        self.remove_at_once().await;
        Ok(true)
    }
}

/// The first of each list, then the second of each, up to [`EXPIRED_PAGE`].
fn shared_out(lists: Vec<Vec<Expired>>) -> Vec<Expired> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut found = Vec::new();
    loop {
        let before = found.len();
        found.extend(lists.iter_mut().filter_map(Iterator::next));
        if found.len() == before || found.len() >= EXPIRED_PAGE as usize {
            found.truncate(EXPIRED_PAGE as usize);
            return found;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clock;

    /// Every table that refers, by however many others, to a session.
    const REFERRING: &str = "with recursive referring (name) as (select 'session' union \
         select tables.name from referring, sqlite_master as tables, pragma_foreign_key_list(tables.name) as keys \
         where tables.type = 'table' and keys.\"table\" = referring.name) select name from referring order by name";

    #[tokio::test]
    async fn every_table_that_refers_to_a_session_or_a_run_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("caisson.db"), Clock::fixed_at(0).0).await.unwrap();
        let rows = sql::query(REFERRING).fetch_all(store.reader()).await.unwrap();
        let names: Vec<String> = rows.iter().map(|row| row.get("name").unwrap()).collect();
        assert!(names.len() > 10 && names.contains(&"sandbox_grant".to_owned()), "{names:?}");
        for name in names {
            let (delete, keep) = (format!("delete from {name} where "), format!("update {name} set "));
            assert!(
                DELETE_SESSION.iter().any(|text| text.starts_with(&delete) || text.starts_with(&keep)),
                "retention leaves out {name}"
            );
        }
    }

    #[test]
    fn a_page_is_shared_out_among_projects_and_no_longer_than_its_bound() {
        let list = |project: &str, length: u32| {
            let one = |number: u32| Expired {
                session: SessionId::new(i64::from(number), [1; 10]),
                project: project.parse().unwrap(),
                ended_at_ms: 0,
            };
            (0..length).map(one).collect::<Vec<_>>()
        };
        let found = shared_out(vec![list("a", EXPIRED_PAGE), list("b", 1), vec![], list("c", EXPIRED_PAGE)]);
        assert_eq!(found.len(), EXPIRED_PAGE as usize);
        let of = |name: &str| found.iter().filter(|expired| expired.project.as_str() == name).count();
        assert_eq!([of("a"), of("b"), of("c")], [100, 1, 99]);
        assert_eq!(shared_out(vec![list("a", 3)]).len(), 3);
        assert_eq!(shared_out(Vec::new()), []);
    }
}
