//! Forks: sessions that begin with the conversation and the files of another one.
//!
//! A fork's files are those of one commit, which is pinned when it is made: the one that the other session has pushed last, or else
//! the one that it started from. The branch that it was pushed to is kept beside it, for where a git host gives commits by their
//! branches alone. Base and anchor stay those of the other session, so that what steers the agent is what steered it there.

use caisson_domain::fork::Older;
use caisson_domain::git::BranchName;
use caisson_domain::id::{ProjectId, SessionId};
use caisson_domain::limits::FORKS_WITHOUT_RUN;
use caisson_domain::run::RunSpec;

use crate::database::{Tx, sql};
use crate::going_on::{GO_ON, IS_BUSY, count, end_sandboxes};
use crate::idempotency::{self, Made, Remembered, RepeatWindow};
use crate::rows::{Columns, document};
use crate::{Actor, Idempotency, NewAudit, Store, StoreError, audit};

/// A fork to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewFork {
    /// The branch that its runs work on; none: `caisson/<workflow>/<short session id>`.
    pub branch: Option<BranchName>,
    /// What makes a repetition of the request harmless.
    pub idempotency: Option<Idempotency>,
}

/// What came of forking a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkSession {
    /// The project has no such session.
    Unknown,
    /// A run of it is queued or running.
    Busy,
    /// No run of it has archived a conversation, or it is not kept any more.
    NoConversation,
    /// It has no repository that the fork could take its files from.
    NoRepository,
    /// Its runs work on that branch.
    SameBranch,
    /// The project has [`FORKS_WITHOUT_RUN`] forks that never had a run.
    TooMany,
    /// The idempotency key was used with another request.
    KeyReused,
    /// The same request was served before, and the session that it made was deleted.
    Deleted,
    /// The same request was served before: this is the session that it made.
    Replayed {
        /// The session.
        session: SessionId,
    },
    /// There is a new session.
    Forked {
        /// The new one.
        session: SessionId,
    },
}

const HAS_TRANSCRIPT: &str = "select count(*) from transcript where session_id = $1";

/// What the other session has of an origin of its own.
const ORIGIN: &str = "select id, fork_commit, fork_branch, fork_older from session where id = $1";

/// The branch is kept of a commit that was pushed alone.
const PUSHED_BEFORE: &str = "select fork_commit from session where id = $1 and fork_branch is not null";

const PUSHED_LAST: &str = "select id, finished_at_ms, pushed_commit from run \
     where session_id = $1 and branch = $2 and pushed_commit is not null order by finished_at_ms desc, id desc limit 1";

const STARTED_FROM: &str = "select base_commit from run \
     where session_id = $1 and branch = $2 and base_commit is not null order by finished_at_ms desc, id desc limit 1";

/// The run at whose end the conversation was archived, if it is one of the session's own.
const SAID_LAST: &str = "select run.id, run.finished_at_ms from transcript join run on run.id = transcript.run_id \
     and run.session_id = transcript.session_id where transcript.session_id = $1";

/// Those of a project that never had a run. There are never many, since that is what is asked for.
pub(crate) const UNUSED_FORKS: &str =
    "select count(*) from session where project_id = $1 and forked_from is not null and last_seq = 0";

const FORK: &str = "insert into session (id, project_id, workflow, repository, branch, conversation, created_at_ms, \
       updated_at_ms, forked_from, fork_spec, fork_commit, fork_branch, fork_older) \
     select $2, project_id, workflow, repository, $3, conversation, $4, $4, id, $5, $6, $7, $8 from session where id = $1";

/// The text is shared, not copied.
const SHARE_TRANSCRIPT: &str = "insert into transcript (session_id, project_id, run_id, size_bytes, sha256, created_at_ms) \
     select $2, project_id, run_id, size_bytes, sha256, created_at_ms from transcript where session_id = $1";

/// Where a fork begins.
#[derive(Debug, Default, PartialEq, Eq)]
struct Beginning {
    commit: Option<String>,
    /// The branch that the commit was pushed to.
    branch: Option<String>,
    older: Option<Older>,
}

/// A run, by when it ended.
type Ended = (i64, String);

impl Store {
    /// Makes a session that goes on where `session` is, with its conversation and, from the commit that it has pushed last, its
    /// files; its own runs work on the branch that is named, or on `caisson/<workflow>/<short session id>`.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have made it; with an idempotency key, asking again finds it.
    pub async fn fork_session(
        &self,
        project: &ProjectId,
        session: &SessionId,
        new: &NewFork,
        by: Actor,
    ) -> Result<ForkSession, StoreError> {
        let mut tx = self.begin().await?;
        if let Some(answer) = replay(&mut tx, project, new).await? {
            tx.rollback().await?;
            return Ok(answer);
        }
        let row = sql::query(GO_ON)
            .bind(project.as_str())
            .bind(session.as_str())
            .fetch_optional(&mut *tx.db)
            .await?;
        let Some(row) = row else { return Ok(ForkSession::Unknown) };
        let mut spec: RunSpec = Columns::of("session", &row)?.json("spec")?;
        if count(&mut tx, IS_BUSY, session).await? > 0 {
            return Ok(ForkSession::Busy);
        }
        if count(&mut tx, HAS_TRANSCRIPT, session).await? == 0 {
            return Ok(ForkSession::NoConversation);
        }
        let (Some(_), Some(old)) = (&spec.repository, spec.branch.take()) else {
            return Ok(ForkSession::NoRepository);
        };
        let fork = SessionId::new(tx.now_ms, tx.random());
        let branch = match &new.branch {
            Some(branch) => branch.clone(),
            None => BranchName::try_from(format!("caisson/{}/{}", spec.workflow.name, fork.short()))
                .map_err(|error| StoreError::corrupt("session.branch", error))?,
        };
        if branch == old {
            return Ok(ForkSession::SameBranch);
        }
        let unused: i64 =
            sql::query_scalar(UNUSED_FORKS).bind(project.as_str()).fetch_one(&mut *tx.db).await?;
        if unused >= FORKS_WITHOUT_RUN {
            return Ok(ForkSession::TooMany);
        }
        let beginning = beginning(&mut tx, session, &old).await?;
        spec.prompt.clear();
        spec.branch = Some(branch);
        end_sandboxes(&mut tx, session).await?;
        insert(&mut tx, (session, &fork), &beginning, &spec).await?;
        if let Some(idempotency) = &new.idempotency {
            let remembered = (idempotency, RepeatWindow::default());
            idempotency::remember(&mut tx, project, Made::Fork(&fork), remembered).await?;
        }
        let record = NewAudit {
            session: Some(session.clone()),
            host: spec.repository.as_ref().map(audit::host_of),
            ref_name: spec.branch.as_ref().map(BranchName::full_ref),
            ..NewAudit::new(project, by, "session.fork", fork.as_str())
        };
        audit::write(&mut tx, &record).await?;
        tx.commit().await?;
        Ok(ForkSession::Forked { session: fork })
    }

    /// The commit that the session began with, if it is a fork and a run of the session that it comes from, or of one before that,
    /// had pushed it: whether that one still exists or not.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn pushed_fork_commit(&self, session: &SessionId) -> Result<Option<String>, StoreError> {
        let query = sql::query_scalar(PUSHED_BEFORE).bind(session.as_str());
        let commit: Option<Option<String>> = query.fetch_optional(self.reader()).await?;
        Ok(commit.flatten())
    }
}

async fn replay(
    tx: &mut Tx<'_>,
    project: &ProjectId,
    new: &NewFork,
) -> Result<Option<ForkSession>, StoreError> {
    let Some(idempotency) = &new.idempotency else { return Ok(None) };
    let asked = (idempotency, RepeatWindow::default());
    let remembered = idempotency::find(&mut tx.db, tx.now_ms, project, asked).await?;
    Ok(remembered.map(|remembered| match remembered {
        Remembered::Other | Remembered::Run { .. } => ForkSession::KeyReused,
        Remembered::Deleted => ForkSession::Deleted,
        Remembered::Fork(session) => ForkSession::Replayed { session },
    }))
}

/// What a fork of the session begins with. Where no run of the session's own has pushed or said anything, it is what the session,
/// a fork itself, began with.
async fn beginning(
    tx: &mut Tx<'_>,
    session: &SessionId,
    branch: &BranchName,
) -> Result<Beginning, StoreError> {
    let row = sql::query(ORIGIN).bind(session.as_str()).fetch_one(&mut *tx.db).await?;
    let columns = Columns::of("session", &row)?;
    let origin = Beginning {
        commit: columns.get("fork_commit")?,
        branch: columns.get("fork_branch")?,
        older: columns.parse_optional("fork_older")?,
    };
    let row = sql::query(SAID_LAST).bind(session.as_str()).fetch_optional(&mut *tx.db).await?;
    let said = row.as_ref().map(|row| ended(&Columns::of("run", row)?)).transpose()?;
    let query = sql::query(PUSHED_LAST).bind(session.as_str()).bind(branch.as_str());
    if let Some(row) = query.fetch_optional(&mut *tx.db).await? {
        let columns = Columns::of("run", &row)?;
        let older = older(said.as_ref(), Some(&ended(&columns)?));
        return Ok(Beginning {
            commit: columns.get("pushed_commit")?,
            branch: Some(branch.as_str().to_owned()),
            older,
        });
    }
    let older = if said.is_some() { older(said.as_ref(), None) } else { origin.older };
    if origin.commit.is_some() {
        return Ok(Beginning { older, ..origin });
    }
    let commit: Option<String> = sql::query_scalar(STARTED_FROM)
        .bind(session.as_str())
        .bind(branch.as_str())
        .fetch_optional(&mut *tx.db)
        .await?;
    Ok(Beginning { commit, branch: None, older })
}

/// Which of the two is older: what was said up to the end of one run of the session, or what was pushed by another. What was said
/// in no run of its own was said before all of them, and files that were not pushed are those of before.
fn older(said: Option<&Ended>, pushed: Option<&Ended>) -> Option<Older> {
    match said.cmp(&pushed) {
        std::cmp::Ordering::Less => Some(Older::Conversation),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Older::Files),
    }
}

fn ended(columns: &Columns<'_>) -> Result<Ended, StoreError> {
    Ok((columns.get::<Option<i64>>("finished_at_ms")?.unwrap_or_default(), columns.get("id")?))
}

async fn insert(
    tx: &mut Tx<'_>,
    (session, fork): (&SessionId, &SessionId),
    beginning: &Beginning,
    spec: &RunSpec,
) -> Result<(), StoreError> {
    sql::query(FORK)
        .bind(session.as_str())
        .bind(fork.as_str())
        .bind(spec.branch.as_ref().map(BranchName::as_str))
        .bind(tx.now_ms)
        .bind(document("session.fork_spec", spec)?)
        .bind(beginning.commit.as_deref())
        .bind(beginning.branch.as_deref())
        .bind(beginning.older.map(Older::as_str))
        .execute(&mut *tx.db)
        .await?;
    sql::query(SHARE_TRANSCRIPT).bind(session.as_str()).bind(fork.as_str()).execute(&mut *tx.db).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_or_pushed_by_the_earlier_run_is_older() {
        let run = |at_ms, id: &str| Some((at_ms, id.to_owned()));
        for (said, pushed, wanted, why) in [
            (run(1, "a"), run(2, "b"), Some(Older::Conversation), "said before"),
            (run(2, "b"), run(1, "a"), Some(Older::Files), "pushed before"),
            (run(2, "a"), run(2, "a"), None, "of one run"),
            (run(2, "a"), run(2, "b"), Some(Older::Conversation), "within one millisecond"),
            (None, run(1, "a"), Some(Older::Conversation), "as it came from elsewhere"),
            (run(1, "a"), None, Some(Older::Files), "nothing was pushed"),
            (None, None, None, "neither"),
        ] {
            assert_eq!(older(said.as_ref(), pushed.as_ref()), wanted, "{why}");
        }
    }
}
