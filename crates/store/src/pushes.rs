//! Pushes to the branches of runs: pending before they are forwarded, recorded once it is known what became of them.

use caisson_domain::checks::{Check, stands};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::git::BranchName;
use caisson_domain::id::{RunId, ServerId, SessionId};
use caisson_domain::run::{Run, RunStatus};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::database::{Hold, Row, Tx, sql};
use crate::door::known_run;
use crate::rows::{Columns, document, run_columns};
use crate::{Actor, NewAudit, Store, StoreError, Topic, audit, events, meters, rows};

/// What a push asks of a git host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The full name of the ref.
    pub ref_name: String,
    /// The commit it has.
    pub old: String,
    /// The commit it should get.
    pub new: String,
}

/// A push as the gateway saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRecord {
    /// What was asked.
    pub push: Push,
    /// Whether the git host took it.
    pub ok: bool,
    /// What the git host said.
    pub message: Option<String>,
}

/// A push that a git host took, to a branch of a session's runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPush {
    /// The run that pushed it.
    pub run: RunId,
    /// What was asked.
    pub push: Push,
}

/// What came of beginning a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeginPush {
    /// The run is not running or the ref is not its own branch: nothing is written, and nothing may be forwarded.
    Refused,
    /// It is pending.
    Begun,
    /// It is pending, as it was before: nobody saw what became of it the last time.
    Repeated,
    /// It is pending, and a push of that commit was recorded as the last that the git host took.
    Recorded,
}

const PENDING: &str = "select id, pending_push from run where id = $1 and status = 'running'";

const PENDING_AT_HOME: &str = concat!(
    "select ",
    run_columns!(),
    ", pending_push from run where home_server_id = $1 and status = 'running' and pending_push is not null order by id"
);

const BEGIN: &str = "update run set pending_push = $2 where id = $1 and status = 'running'";

const BEGAN: &str = "select began_repository from run where id = $1";

const SET_BEGAN: &str = "update run set began_repository = $2 where id = $1 and status = 'running'";

const CLEAR: &str = "update run set pending_push = null where id = $1 and pending_push = $2";

const PUSHED: &str = "update run set pushed_commit = $2 where id = $1 and status = 'running'";

/// The kind is named so that its own small index is used.
pub(crate) const OF_SESSION: &str =
    "select run_id, data from event where session_id = $1 and kind = 'git.push' order by seq limit $2";

/// Pushes of a session that are read, those that were refused included.
const SESSION_PUSHES: usize = 10_000;

/// The details of an event of a push, as [`append`] writes them.
#[derive(Deserialize)]
struct Told {
    #[serde(rename = "ref")]
    ref_name: String,
    old: String,
    new: String,
    ok: bool,
}

impl Store {
    /// Writes down a push before its first byte is forwarded, so that none is ever unrecorded. A run has one pending
    /// push, the last that was begun.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have written it; a push that the git host never saw is found out when the host is asked.
    pub async fn begin_push(&self, run: &RunId, push: &Push) -> Result<BeginPush, StoreError> {
        let mut tx = self.begin().await?;
        let known = known_run(&mut tx, run).await?;
        let may_be_pushed = is_own(&known, push) || !stands(Check::OwnBranch);
        if known.status != RunStatus::Running || !may_be_pushed {
            tx.rollback().await?;
            return Ok(BeginPush::Refused);
        }
        let row = sql::query(PENDING).bind(run.as_str()).fetch_one(&mut *tx.db).await?;
        let before: Option<Push> = Columns::of("run", &row)?.json_optional("pending_push")?;
        let pending = document("run.pending_push", push)?;
        sql::query(BEGIN).bind(run.as_str()).bind(pending).execute(&mut *tx.db).await?;
        tx.commit().await?;
        Ok(if before.as_ref() == Some(push) {
            BeginPush::Repeated
        } else if known.pushed_commit.as_ref() == Some(&push.new) {
            BeginPush::Recorded
        } else {
            BeginPush::Begun
        })
    }

    /// Whether the run was last seen to begin a repository: to push its branch to one that had none, as [`Store::set_began_repository`]
    /// was told.
    ///
    /// # Errors
    /// As every read; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn began_repository(&self, run: &RunId) -> Result<bool, StoreError> {
        let began: Option<i64> =
            sql::query_scalar(BEGAN).bind(run.as_str()).fetch_optional(self.reader()).await?;
        Ok(began.ok_or_else(|| StoreError::missing("run", run.as_str()))? != 0)
    }

    /// Writes down, before the push that makes the run's branch is forwarded, whether its git host has said that the repository has
    /// no branch.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn set_began_repository(&self, run: &RunId, began: bool) -> Result<(), StoreError> {
        let mut tx = self.begin_in(Hold::SessionOfRun(run)).await?;
        sql::query(SET_BEGAN).bind(run.as_str()).bind(i64::from(began)).execute(&mut *tx.db).await?;
        tx.commit().await
    }

    /// Records a push, which is pending no longer. One that the git host took, to the run's own branch, while the run
    /// is running, becomes the run's pushed commit. A push whose end is seen only after the run's end is not recorded:
    /// the run's last event has told what was pushed. Nor is one recorded again that is pending no longer and is the
    /// run's pushed commit: somebody found it in the git host's list of refs before its answer was read.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have recorded it; repeating it may append the event of a refusal twice.
    pub async fn record_push(&self, run: &RunId, record: &PushRecord) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let known = known_run(&mut tx, run).await?;
        if known.status.is_final() {
            return tx.rollback().await;
        }
        let pending = clear(&mut tx, run, &record.push).await?;
        if !pending && record.ok && known.pushed_commit.as_ref() == Some(&record.push.new) {
            return tx.rollback().await;
        }
        append(&mut tx, &known, record).await?;
        tx.commit().await
    }

    /// Records a push like [`Store::record_push`], if it is still pending; `false` if it is not, which means that
    /// somebody has recorded it or that another push was begun since. Then nothing changes.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn settle_push(&self, run: &RunId, record: &PushRecord) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let known = known_run(&mut tx, run).await?;
        if !clear(&mut tx, run, &record.push).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        append(&mut tx, &known, record).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Forgets a pending push of which there is nothing to record, because it never reached the git host.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn forget_push(&self, run: &RunId, push: &Push) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        clear(&mut tx, run, push).await?;
        tx.commit().await
    }

    /// The run's pending push, while the run is running.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn pending_push(&self, run: &RunId) -> Result<Option<Push>, StoreError> {
        let row = sql::query(PENDING).bind(run.as_str()).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        Columns::of("run", &row)?.json_optional("pending_push")
    }

    /// The pushes to `ref_name` that the session's runs made and git hosts took, oldest first. Empty also for a session
    /// that has pushed more often than anybody needs: then nobody can say which was the last.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn session_pushes(
        &self,
        session: &SessionId,
        ref_name: &str,
    ) -> Result<Vec<SessionPush>, StoreError> {
        let rows = sql::query(OF_SESSION)
            .bind(session.as_str())
            .bind(i64::try_from(SESSION_PUSHES + 1).unwrap_or(i64::MAX))
            .fetch_all(self.reader())
            .await?;
        if rows.len() > SESSION_PUSHES {
            return Ok(Vec::new());
        }
        let mut pushes = Vec::new();
        for row in &rows {
            let columns = Columns::keyed("event", row, "run_id")?;
            let Told { ref_name: told, old, new, ok } = columns.json("data")?;
            if ok && told == ref_name {
                pushes.push(SessionPush {
                    run: columns.parse("run_id")?,
                    push: Push { ref_name: told, old, new },
                });
            }
        }
        Ok(pushes)
    }

    /// The pending pushes of the running runs whose home is `server`: for a server that has just started, those of
    /// which nobody saw the end. Oldest run first; at most as many as the server has slots. Those that cannot be read are
    /// left out: they keep no server from starting.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn pending_pushes(&self, server: &ServerId) -> Result<Vec<(Run, Push)>, StoreError> {
        let rows = sql::query(PENDING_AT_HOME).bind(server.as_str()).fetch_all(self.reader()).await?;
        Ok(rows.iter().filter_map(|row| pending(row).ok()).collect())
    }
}

fn pending(row: &Row) -> Result<(Run, Push), StoreError> {
    Ok((rows::run(row)?, Columns::of("run", row)?.json("pending_push")?))
}

/// Whether the push is to the run's own branch.
fn is_own(run: &Run, push: &Push) -> bool {
    run.spec.branch.as_ref().map(BranchName::full_ref).as_ref() == Some(&push.ref_name)
}

/// Ends the push's being pending; `false` if it was not.
async fn clear(tx: &mut Tx<'_>, run: &RunId, push: &Push) -> Result<bool, StoreError> {
    let pending = document("run.pending_push", push)?;
    let cleared = sql::query(CLEAR).bind(run.as_str()).bind(pending).execute(&mut *tx.db).await?;
    let cleared = cleared.rows_affected() == 1;
    if cleared {
        // The run's end waits for it.
        tx.wake(Topic::Run(run.clone()));
    }
    Ok(cleared)
}

async fn append(tx: &mut Tx<'_>, run: &Run, record: &PushRecord) -> Result<(), StoreError> {
    let push = &record.push;
    if record.ok && is_own(run, push) {
        sql::query(PUSHED).bind(run.id.as_str()).bind(push.new.as_str()).execute(&mut *tx.db).await?;
        tx.wake(Topic::Run(run.id.clone()));
    }
    let data = json!({
        "ref": push.ref_name,
        "old": push.old,
        "new": push.new,
        "ok": record.ok,
        "message": record.message,
    });
    events::append(tx, &run.session, &run.id, &[NewEvent::new(EventKind::GitPush, &data)]).await?;
    let audited = NewAudit {
        host: run.spec.repository.as_ref().map(audit::host_of),
        ref_name: Some(push.ref_name.clone()),
        decision: Some(if record.ok { "allowed" } else { "failed" }),
        ..NewAudit::of_run(run, Actor::Server, "git.push")
    };
    let outcome = if record.ok { "taken" } else { "refused" };
    tx.count(&meters::PUSHES, vec![("outcome", outcome.to_owned())], 1);
    audit::write(tx, &NewAudit { subject: push.new.clone(), ..audited }).await
}
