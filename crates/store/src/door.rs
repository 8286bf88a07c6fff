//! What the gateway asks on behalf of a sandbox: grants, work, inputs, and the events it vouches for.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::git::BranchName;
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::id::{Epoch, RunId, SandboxId};
use caisson_domain::limits::PENDING_INPUTS;
use caisson_domain::protocol::Input;
use caisson_domain::run::Run;

use crate::database::{Hold, Row, Tx, sql};
use crate::rows::{Columns, run_columns};
use crate::{Actor, NewAudit, SandboxState, Store, StoreError, audit, events, rows};

/// What a sandbox should do next.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "it is made once and taken apart at once, never kept")]
pub enum NextWork {
    /// Do this run.
    Run {
        /// The run.
        run: Run,
        /// Its epoch now, for diagnostics.
        epoch: Epoch,
        /// The conversation's id in the agent's own format.
        conversation: String,
        /// Whether an earlier attempt of the session may have begun the conversation.
        resume: bool,
        /// What is archived of the conversation, for where nothing of it is left.
        archive: Option<Archive>,
        /// Whether an earlier run of the session has pushed the run's branch.
        pushed: bool,
        /// Of a fork, the commit that its files come from.
        start: Option<String>,
        /// The branch that this commit was pushed to.
        start_branch: Option<BranchName>,
        /// The commit that unpublished work of the session starts from: what its last run pushed, or started from. Empty where there was no
        /// commit; none if no agent has worked in the session.
        since: Option<String>,
        /// The sandbox's image; none for an engine without images.
        image: Option<String>,
    },
    /// End.
    Exit,
    /// Ask again later.
    Nothing,
}

/// An archived conversation, as a sandbox is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The run at whose end it was archived.
    pub run: RunId,
    /// Its size, in bytes.
    pub size_bytes: i64,
    /// Whether no agent has worked in the session since.
    pub is_latest: bool,
}

const GRANT: &str =
    "select hash from sandbox_grant where sandbox_id = $1 and kind = $2 and revoked_at_ms is null";

const PLACED: &str =
    concat!("select ", run_columns!(), " from run where sandbox_id = $1 and status = 'running'");

const NEEDED: &str = "select exists (select 1 from run where sandbox_id = $1 and status = 'running')";

const STATE: &str = "select id, state from sandbox where id = $1";

/// The attempt under way does not count: the conversation exists only if another one may have begun it. Where it was, the shim
/// finds it in the session's home; elsewhere there is the archive.
const WORK: &str = concat!(
    "select ",
    run_columns!(),
    ", (select sandbox.image from sandbox where sandbox.id = run.sandbox_id) as sandbox_image, \
     (select conversation from session where session.id = run.session_id) as conversation, \
     (select fork_commit from session where session.id = run.session_id) as start, \
     (select fork_branch from session where session.id = run.session_id) as start_branch, \
     exists (select 1 from attempt where attempt.session_id = run.session_id \
       and attempt.agent_started_at_ms is not null \
       and (attempt.run_id <> run.id or attempt.number <> run.attempt)) as resume, \
     (select transcript.run_id from transcript where transcript.session_id = run.session_id) as archive_run, \
     (select transcript.size_bytes from transcript where transcript.session_id = run.session_id) as archive_bytes, \
     (select attempt.run_id from attempt where attempt.session_id = run.session_id \
       and attempt.agent_started_at_ms is not null \
       and (attempt.run_id <> run.id or attempt.number <> run.attempt) \
       order by attempt.agent_started_at_ms desc limit 1) as begun_run, \
     exists (select 1 from run as earlier where earlier.session_id = run.session_id and earlier.id <> run.id \
       and earlier.branch = run.branch and earlier.pushed_commit is not null) as pushed, \
     (select coalesce(earlier.pushed_commit, earlier.base_commit) from run as earlier \
       where earlier.session_id = run.session_id and earlier.id <> run.id \
       and (earlier.pushed_commit is not null or earlier.base_commit is not null) \
       order by earlier.finished_at_ms desc, earlier.id desc limit 1) as since \
     from run where sandbox_id = $1 and status = 'running' and outcome is null"
);

const INPUTS: &str = "select session_id, seq, run_id, body from input \
     where run_id = (select id from run where sandbox_id = $1 and status = 'running') and seq > $2 \
     order by seq limit $3";

/// The record of what the gateway denied, as its event tells it.
fn denial(run: &Run, event: &NewEvent) -> NewAudit {
    let data: serde_json::Value = serde_json::from_str(event.data.get()).unwrap_or_default();
    let text = |name: &str| data[name].as_str().map(str::to_owned);
    let mut subject = [text("what"), text("rule")].into_iter().flatten().collect::<Vec<_>>().join(": ");
    if let Some(count) = data["count"].as_u64() {
        subject = format!("{subject} ({count} more)");
    }
    NewAudit {
        subject,
        host: text("host").or_else(|| run.spec.repository.as_ref().map(audit::host_of)),
        ref_name: text("ref"),
        decision: Some("denied"),
        ..NewAudit::of_run(run, Actor::Server, "gateway.denied")
    }
}

impl Store {
    /// Whether `presented` is the sandbox's living grant of that kind.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check_grant(
        &self,
        sandbox: &SandboxId,
        kind: GrantKind,
        presented: &TokenHash,
    ) -> Result<bool, StoreError> {
        let stored: Option<String> = sql::query_scalar(GRANT)
            .bind(sandbox.as_str())
            .bind(kind.as_str())
            .fetch_optional(self.reader())
            .await?;
        Ok(stored.is_some_and(|stored| TokenHash::from_stored(stored).matches(presented)))
    }

    /// The running run that is placed in the sandbox. Without one the agent grant opens nothing.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn door_run(&self, sandbox: &SandboxId) -> Result<Option<Run>, StoreError> {
        let row = sql::query(PLACED).bind(sandbox.as_str()).fetch_optional(self.reader()).await?;
        row.as_ref().map(rows::run).transpose()
    }

    /// What the sandbox should do next. The same run comes again until its outcome is journaled: the shim does each
    /// attempt once. A sandbox that is ending or not known is told to end.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn next_work(&self, sandbox: &SandboxId) -> Result<NextWork, StoreError> {
        // Two reads and no transaction: a sandbox only ever goes forward, so it is told to end by the next call.
        let row = sql::query(STATE).bind(sandbox.as_str()).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(NextWork::Exit) };
        if Columns::of("sandbox", &row)?.parse::<SandboxState>("state")? >= SandboxState::Stopping {
            return Ok(NextWork::Exit);
        }
        let row = sql::query(WORK).bind(sandbox.as_str()).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(NextWork::Nothing) };
        let columns = Columns::of("run", &row)?;
        let archive = archive(&columns)?;
        let begun = columns.flag("resume")?;
        Ok(NextWork::Run {
            run: rows::run(&row)?,
            epoch: rows::epoch(&row)?,
            conversation: columns.get("conversation")?,
            resume: begun || archive.is_some(),
            archive,
            pushed: columns.flag("pushed")?,
            start: columns.get("start")?,
            start_branch: columns.parse_optional("start_branch")?,
            since: if begun {
                columns.get::<Option<String>>("since")?.or_else(|| Some(String::new()))
            } else {
                None
            },
            image: columns.get::<Option<String>>("sandbox_image")?.filter(|image| !image.is_empty()),
        })
    }

    /// Messages for the running run in the sandbox, numbered beyond `after`, in order; at most [`PENDING_INPUTS`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn inputs_after(&self, sandbox: &SandboxId, after: i64) -> Result<Vec<Input>, StoreError> {
        let rows = sql::query(INPUTS)
            .bind(sandbox.as_str())
            .bind(after)
            .bind(PENDING_INPUTS)
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(input).collect()
    }

    /// Appends an event that the gateway vouches for, and a record of the audit log if it tells of something denied;
    /// `false` if the run has ended, whose last event tells of its end.
    ///
    /// # Errors
    /// As every write; [`StoreError::Corrupt`] if there is no such run.
    /// # Cancel safety
    /// A dropped call may have appended it; repeating it may append it twice.
    pub async fn append_gateway_event(&self, run: &RunId, event: NewEvent) -> Result<bool, StoreError> {
        let denied = event.kind == EventKind::GatewayDenied;
        // A record of the audit log is not the session's alone.
        let hold = if denied { Hold::Everything } else { Hold::SessionOfRun(run) };
        let mut tx = self.begin_in(hold).await?;
        let run = known_run(&mut tx, run).await?;
        if run.status.is_final() {
            tx.rollback().await?;
            return Ok(false);
        }
        if denied {
            audit::write(&mut tx, &denial(&run, &event)).await?;
        }
        events::append(&mut tx, &run.session, &run.id, &[event]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Whether a running run is placed in the sandbox, also if that run cannot be read.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn is_sandbox_needed(&self, sandbox: &SandboxId) -> Result<bool, StoreError> {
        let needed: i64 = sql::query_scalar(NEEDED).bind(sandbox.as_str()).fetch_one(self.reader()).await?;
        Ok(needed != 0)
    }
}

const KNOWN: &str = concat!("select ", run_columns!(), " from run where id = $1");

/// A run that the caller has seen before, whatever its status.
pub(crate) async fn known_run(tx: &mut Tx<'_>, run: &RunId) -> Result<Run, StoreError> {
    let row = sql::query(KNOWN).bind(run.as_str()).fetch_optional(&mut *tx.db).await?;
    rows::run(&row.ok_or_else(|| StoreError::missing("run", run.as_str()))?)
}

fn archive(columns: &Columns<'_>) -> Result<Option<Archive>, StoreError> {
    let Some(run) = columns.parse_optional::<RunId>("archive_run")? else { return Ok(None) };
    let begun = columns.parse_optional::<RunId>("begun_run")?;
    let is_latest = begun.is_none_or(|begun| begun == run);
    Ok(Some(Archive { run, size_bytes: columns.get("archive_bytes")?, is_latest }))
}

fn input(row: &Row) -> Result<Input, StoreError> {
    let columns = Columns::keyed("input", row, "session_id")?;
    Ok(Input { seq: columns.get("seq")?, run: columns.parse("run_id")?, body: columns.json("body")? })
}
