//! Sessions that go: hidden at once, and removed step by step.
//!
//! A session may have millions of rows, and whoever removed them in one transaction would keep everybody waiting. So a session that
//! goes is given first, with its runs, to a project that nobody can name. Whatever asks for sessions or runs, or changes them, names
//! the caller's project: from that moment on there is no such session, and no run can be added to it. What it has of rows goes
//! afterwards, so many in each transaction, and its own row last: what a crash leaves is found by that project, by whoever looks next.

use caisson_domain::id::SessionId;

use crate::database::{Row, Tx, sql};
use crate::retention::DELETE_SESSION;
use crate::rows::Columns;
use crate::{Store, StoreError, attachments};

/// Most rows removed in one transaction, besides those of a session's last.
pub const REMOVAL_ROWS: i64 = 1_000;
/// Most parts of attachments removed in one transaction, each of which has up to a MiB.
pub const REMOVAL_PARTS: i64 = 64;
/// Transactions that remove rows before whoever asked is answered; what is left then is for [`Store::remove_some`].
pub const REMOVALS_AT_ONCE: u32 = 10;

/// The project of sessions that go. No project can be called so, by the rules for names.
macro_rules! gone {
    () => {
        "'_removed'"
    };
}

/// What holds for every project that somebody can name.
macro_rules! nameable {
    () => {
        "id <> '_removed'"
    };
}
pub(crate) use {gone, nameable};

/// It is there from the first removal on.
const MAKE_PLACE: &str =
    concat!("insert into project (id, created_at_ms) values (", gone!(), ", $1) on conflict (id) do nothing");

const HIDE: [&str; 2] = [
    concat!("update run set project_id = ", gone!(), " where session_id = $1"),
    concat!("update session set project_id = ", gone!(), " where id = $1"),
];

pub(crate) const NEXT: &str = concat!(
    "select id, events_deleted_seq, last_seq from session where project_id = ",
    gone!(),
    " and id > $1 order by id limit 1"
);

/// From where on statements of [`DELETE_SESSION`] remove what there may be much of, or what other rows refer to.
const FIRST_LARGE: &str = "delete from input ";

/// Rows of which a session may have many, but its events.
pub(crate) const SOME: [&str; 3] = [
    "delete from usage where id in (select id from usage where session_id = $1 limit $2)",
    "delete from approval where id in (select id from approval where session_id = $1 limit $2)",
    "delete from input where session_id = $1 and seq in (select seq from input where session_id = $1 limit $2)",
];

/// Numbers are gone through only once.
const SOME_EVENTS: &str = "delete from event where session_id = $1 and seq > $2 and seq <= $3";

const MARK_EVENTS: &str = "update session set events_deleted_seq = $2 where id = $1";

impl Store {
    /// Removes some more of the sessions that were deleted or have expired, [`REMOVAL_ROWS`] rows at most and then the last of a
    /// session; `false` if there is no such session any more. One that cannot be removed keeps no other one from it.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] only when nothing else is left.
    /// # Cancel safety
    /// Safe: what was removed is gone, and the rest is found again.
    pub async fn remove_some(&self) -> Result<bool, StoreError> {
        let (mut after, mut failed) = (String::new(), None);
        loop {
            let next = sql::query(NEXT).bind(after.as_str()).fetch_optional(self.reader()).await?;
            let Some(next) = next else { return failed.map_or(Ok(false), Err) };
            match self.remove_some_of(&after).await {
                Err(StoreError::Corrupt { what, source }) => {
                    after = next.get("id")?;
                    tracing::error!(session.id = %after, "cannot remove the rest of session {after}: {what}: {source}");
                    failed = Some(StoreError::Corrupt { what, source });
                }
                removed => return removed,
            }
        }
    }

    async fn remove_some_of(&self, after: &str) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(row) = sql::query(NEXT).bind(after).fetch_optional(&mut *tx.db).await? else {
            tx.rollback().await?;
            return Ok(false);
        };
        step(&mut tx, &row).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes what there is of hidden sessions, if it is not much. What fails or is left is found again.
    pub(crate) async fn remove_at_once(&self) {
        for _ in 0..REMOVALS_AT_ONCE {
            match self.remove_some().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!("rows of a removed session are left for later: {error}");
                    return;
                }
            }
        }
    }
}

/// Takes a session out of its project, with its runs, and removes what there is little of. The caller has looked that nothing of
/// it lives.
pub(crate) async fn hide(tx: &mut Tx<'_>, session: &SessionId) -> Result<(), StoreError> {
    sql::query(MAKE_PLACE).bind(tx.now_ms).execute(&mut *tx.db).await?;
    let small = DELETE_SESSION.into_iter().take_while(|statement| !statement.starts_with(FIRST_LARGE));
    for statement in HIDE.into_iter().chain(small) {
        sql::query(statement).bind(session.as_str()).execute(&mut *tx.db).await?;
    }
    Ok(())
}

/// One step, which is the last if little enough is left.
async fn step(tx: &mut Tx<'_>, row: &Row) -> Result<(), StoreError> {
    let columns = Columns::of("session", row)?;
    let session: &str = columns.get("id")?;
    let (from, last): (i64, i64) = (columns.get("events_deleted_seq")?, columns.get("last_seq")?);
    let parts = sql::query(attachments::DELETE_SOME_PARTS).bind(session).bind(REMOVAL_PARTS);
    if parts.execute(&mut *tx.db).await?.rows_affected() >= REMOVAL_PARTS.unsigned_abs() {
        return Ok(());
    }
    let mut left = REMOVAL_ROWS;
    for statement in SOME {
        let some = sql::query(statement).bind(session).bind(left);
        let gone = some.execute(&mut *tx.db).await?.rows_affected();
        left = left.saturating_sub_unsigned(gone);
        if left <= 0 {
            return Ok(());
        }
    }
    let to = last.min(from.saturating_add(left));
    if from < to {
        let some = sql::query(SOME_EVENTS).bind(session).bind(from).bind(to);
        some.execute(&mut *tx.db).await?;
        sql::query(MARK_EVENTS).bind(session).bind(to).execute(&mut *tx.db).await?;
    }
    if to < last {
        return Ok(());
    }
    for statement in DELETE_SESSION {
        sql::query(statement).bind(session).execute(&mut *tx.db).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_may_be_much_of_is_removed_in_steps_alone() {
        let (small, large): (Vec<_>, Vec<_>) = {
            let first = DELETE_SESSION.iter().position(|text| text.starts_with(FIRST_LARGE)).unwrap();
            (DELETE_SESSION[..first].to_vec(), DELETE_SESSION[first..].to_vec())
        };
        for table in ["input", "approval", "event", "usage", "attachment_part"] {
            let delete = format!("delete from {table} ");
            assert!(!small.iter().any(|text| text.starts_with(&delete)), "{table} goes in one transaction");
            assert!(large.iter().any(|text| text.starts_with(&delete)), "{table}");
            let in_steps = SOME
                .iter()
                .chain(&[SOME_EVENTS, attachments::DELETE_SOME_PARTS])
                .any(|text| text.starts_with(&delete));
            assert!(in_steps, "{table} is not removed in steps");
        }
    }

    #[test]
    fn no_project_can_have_the_name_of_the_one_for_sessions_that_go() {
        assert!(gone!().trim_matches('\'').parse::<caisson_domain::id::ProjectId>().is_err());
        assert!(nameable!().contains(gone!()));
    }
}
