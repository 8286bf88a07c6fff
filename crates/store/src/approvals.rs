//! Approvals: what agents ask, and the answers, which come from here alone. The sandbox tells that it asks; who answers, and
//! when nobody has in time, is decided by the store.

use std::ops::ControlFlow;

use caisson_domain::approval::{
    APPROVAL_REFUSALS, APPROVALS_WAITING, Answer, ApprovalState, DefaultAnswer, RUN_APPROVALS,
};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ApiKeyId, ApprovalId, ProjectId, RunId};
use caisson_domain::json::{JSON_DEPTH, depth, is_read_by_all};
use caisson_domain::protocol::InputBody;
use caisson_domain::run::{Run, RunStatus};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use crate::database::{Row, Tx, sql};
use crate::door::known_run;
use crate::messages;
use crate::queue::owned;
use crate::rows::{Columns, document};
use crate::{Actor, HomeEpoch, NewAudit, Store, StoreError, Topic, audit, events};

/// What an agent asks, as its sandbox tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApproval {
    /// The agent's own name for it.
    pub request: String,
    /// The tool.
    pub tool: String,
    /// What the agent says of it.
    pub description: Option<String>,
    /// What it wants to give to the tool: JSON, or the beginning of it.
    pub input: String,
    /// Bytes cut off its end.
    pub cut_bytes: i64,
}

/// An approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// Its id.
    pub id: ApprovalId,
    /// The run.
    pub run: RunId,
    /// What the agent asks.
    pub asked: NewApproval,
    /// What it comes to if nobody answers.
    pub default: DefaultAnswer,
    /// Where it stands.
    pub state: ApprovalState,
    /// Unix ms.
    pub requested_at_ms: i64,
    /// When it has its default answer, Unix ms.
    pub expires_at_ms: i64,
    /// Unix ms.
    pub decided_at_ms: Option<i64>,
    /// The key that answered; none: nobody did.
    pub decided_by: Option<String>,
    /// The answer.
    pub answer: Option<Answered>,
}

/// An answer that was given, not read into a tree: a list may have many large ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The tool is used.
    Allow {
        /// What it is given in place of what the agent wanted, as JSON; none changes nothing.
        input: Option<String>,
    },
    /// It is not used.
    Deny {
        /// What the agent is told.
        message: String,
    },
}

/// A part of what an agent asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalPage {
    /// Oldest first.
    pub items: Vec<Approval>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// What came of answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerApproval {
    /// The project has no such run, or the run no such approval.
    Unknown,
    /// It was answered before, or is withdrawn.
    Over(Box<Approval>),
    /// The answer is on its way to the agent.
    Answered(Box<Approval>),
}

macro_rules! approval_columns {
    () => {
        "id, run_id, request, tool, description, input, cut_bytes, default_answer, state, requested_at_ms, expires_at_ms, \
         decided_at_ms, decided_by, answer"
    };
}

const ASKED: &str = "select count(*) as asked, \
     coalesce(cast(sum(case when state = 'waiting' then 1 else 0 end) as bigint), 0) as waiting \
     from approval where run_id = $1";

const INSERT: &str = "insert into approval (id, project_id, session_id, run_id, request, tool, description, input, cut_bytes, \
     default_answer, state, requested_at_ms, expires_at_ms) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'waiting', $11, $12) on conflict (id) do nothing";

const SAME: &str = "select 1 from approval where id = $1 and state = 'waiting' and tool = $2 and input = $3 and cut_bytes = $4";

const ANSWERS: &str =
    "select count(*) from input where run_id = $1 and kind is null and body like '{\"kind\":\"answer\"%'";

const WAITS: &str = "update run set waiting = 'approval' where id = $1 and status = 'running'";

const WAITS_NO_MORE: &str = "update run set waiting = null where id = $1 and waiting = 'approval' \
     and not exists (select 1 from approval where approval.run_id = run.id and approval.state = 'waiting')";

const WITHDRAW: &str =
    "update approval set state = 'withdrawn', decided_at_ms = $2 where id = $1 and state = 'waiting'";

const WITHDRAW_ALL: &str =
    "update approval set state = 'withdrawn', decided_at_ms = $2 where run_id = $1 and state = 'waiting'";

const ONE: &str = concat!("select ", approval_columns!(), " from approval where run_id = $1 and id = $2");

const OF_RUN: &str = concat!(
    "select ",
    approval_columns!(),
    " from approval where run_id = $1 and ($2 is null or (requested_at_ms, id) > \
     (select before.requested_at_ms, before.id from approval as before where before.run_id = $1 and before.id = $2)) \
     order by requested_at_ms, id limit $3"
);

const DUE: &str = concat!(
    "select ",
    approval_columns!(),
    " from approval where run_id = $1 and state = 'waiting' and expires_at_ms <= $2 order by requested_at_ms, id limit $3"
);

const DECIDE: &str = concat!(
    "update approval set state = $2, decided_at_ms = $3, decided_by = $4, answer = $5 where id = $1 and state = 'waiting' returning ",
    approval_columns!()
);

fn bound(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Store {
    /// What the agent of a run of the project asked, oldest first, behind the approval `after`, until there are so many bytes of it and of
    /// its answers: the one that reaches them is the last. None if there is no such run.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn approvals(
        &self,
        project: &ProjectId,
        (run, after): (&RunId, Option<&ApprovalId>),
        bytes: usize,
    ) -> Result<Option<ApprovalPage>, StoreError> {
        if self.run(project, run).await?.is_none() {
            return Ok(None);
        }
        let (mut page, mut read) = (ApprovalPage { items: Vec::new(), more: false }, 0);
        sql::query(OF_RUN)
            .bind(run.as_str())
            .bind(after.map(ApprovalId::as_str))
            .bind(bound(RUN_APPROVALS))
            .read_each(self.lists(), |row| {
                if read >= bytes {
                    page.more = true;
                    return Ok::<_, StoreError>(ControlFlow::Break(()));
                }
                let approval = self::read(&row)?;
                read += approval.bytes();
                page.items.push(approval);
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        Ok(Some(page))
    }

    /// Answers an approval that waits; the first answer counts. `by` is the key that answers.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have answered; asking again is told so.
    pub async fn answer_approval(
        &self,
        project: &ProjectId,
        (run, approval): (&RunId, &ApprovalId),
        answer: &Answer,
        by: &ApiKeyId,
    ) -> Result<AnswerApproval, StoreError> {
        if self.run(project, run).await?.is_none() {
            return Ok(AnswerApproval::Unknown);
        }
        let mut tx = self.begin().await?;
        let row =
            sql::query(ONE).bind(run.as_str()).bind(approval.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(found) = row.as_ref().map(read).transpose()? else { return Ok(AnswerApproval::Unknown) };
        let run = known_run(&mut tx, run).await?;
        if found.state != ApprovalState::Waiting || run.status != RunStatus::Running {
            return Ok(AnswerApproval::Over(Box::new(found)));
        }
        let actor = Actor::Key(by.clone());
        let (state, record) = match answer {
            Answer::Allow { .. } => (ApprovalState::Allowed, NewAudit::of_run(&run, actor, "approval.allow")),
            Answer::Deny { .. } => (ApprovalState::Denied, NewAudit::of_run(&run, actor, "approval.deny")),
        };
        let decided = decide(&mut tx, &run, &found, (state, answer, Some(by))).await?;
        audit::write(&mut tx, &NewAudit { subject: found.id.to_string(), ..record }).await?;
        tx.commit().await?;
        Ok(AnswerApproval::Answered(Box::new(decided)))
    }

    /// Gives the default answer to what the run's agent has asked for too long; `false` if the caller has lost the run.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn expire_approvals(&self, run: &RunId, epoch: HomeEpoch) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let Some(run) = owned(&mut tx, run, epoch).await? else { return Ok(false) };
        let rows = sql::query(DUE)
            .bind(run.id.as_str())
            .bind(tx.now_ms)
            .bind(bound(APPROVALS_WAITING))
            .fetch_all(&mut *tx.db)
            .await?;
        for row in &rows {
            let due = read(row)?;
            let waited_s = (due.expires_at_ms - due.requested_at_ms) / 1000;
            let answer = Answer::expired(due.default, waited_s);
            decide(&mut tx, &run, &due, (ApprovalState::Expired, &answer, None)).await?;
            let record = NewAudit::of_run(&run, Actor::Server, "approval.expire");
            audit::write(&mut tx, &NewAudit { subject: due.id.to_string(), ..record }).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

async fn decide(
    tx: &mut Tx<'_>,
    run: &Run,
    approval: &Approval,
    (state, answer, by): (ApprovalState, &Answer, Option<&ApiKeyId>),
) -> Result<Approval, StoreError> {
    let row = sql::query(DECIDE)
        .bind(approval.id.as_str())
        .bind(state.as_str())
        .bind(tx.now_ms)
        .bind(by.map(ApiKeyId::as_str))
        .bind(document("approval.answer", answer)?)
        .fetch_one(&mut *tx.db)
        .await?;
    let body = InputBody::Answer { request: approval.asked.request.clone(), answer: answer.clone() };
    messages::insert(tx, run, document("input.body", &body)?).await?;
    sql::query(WAITS_NO_MORE).bind(run.id.as_str()).execute(&mut *tx.db).await?;
    let (decision, message, changed) = match answer {
        Answer::Allow { input } => ("allow", None, input.is_some()),
        Answer::Deny { message } => ("deny", Some(message), false),
    };
    let data = json!({
        "approval": approval.id, "tool": approval.asked.tool, "state": state, "decision": decision,
        "message": message, "changed": changed,
    });
    events::append(tx, &run.session, &run.id, &[NewEvent::new(EventKind::ApprovalAnswered, &data)]).await?;
    tx.wake(Topic::Run(run.id.clone()));
    if let Some(sandbox) = &run.sandbox {
        tx.wake(Topic::Sandbox(sandbox.clone()));
    }
    read(&row)
}

/// Keeps what an agent asks, if its workflow has it ask. Asked again while it waits, it is the same. What there is no room
/// for, and what comes under a name that was used for something else, is denied at once: the shim waits for an answer.
pub(crate) async fn requested(tx: &mut Tx<'_>, run: &RunId, new: &NewApproval) -> Result<(), StoreError> {
    let run = known_run(tx, run).await?;
    let Some(block) = &run.spec.workflow.caisson.approvals else { return Ok(()) };
    let new = &without_nul(new);
    let row = sql::query(ASKED).bind(run.id.as_str()).fetch_one(&mut *tx.db).await?;
    if row.get::<i64>("asked")? >= bound(RUN_APPROVALS)
        || row.get::<i64>("waiting")? >= bound(APPROVALS_WAITING)
    {
        if !waits_already(tx, &run, new).await? {
            refuse(tx, &run, &new.request).await?;
        }
        return Ok(());
    }
    let inserted = sql::query(INSERT)
        .bind(ApprovalId::of(&run.id, &new.request).as_str())
        .bind(run.project.as_str())
        .bind(run.session.as_str())
        .bind(run.id.as_str())
        .bind(new.request.as_str())
        .bind(new.tool.as_str())
        .bind(new.description.as_deref())
        .bind(new.input.as_str())
        .bind(new.cut_bytes)
        .bind(block.default.as_str())
        .bind(tx.now_ms)
        .bind(tx.now_ms + i64::from(block.expires_s) * 1000)
        .execute(&mut *tx.db)
        .await?;
    if inserted.rows_affected() == 1 {
        sql::query(WAITS).bind(run.id.as_str()).execute(&mut *tx.db).await?;
    } else if !waits_already(tx, &run, new).await? {
        refuse(tx, &run, &new.request).await?;
    }
    Ok(())
}

/// The same with another character in place of the one that a text of PostgreSQL cannot hold: whoever asks chooses all of it.
fn without_nul(new: &NewApproval) -> NewApproval {
    let held = |text: &str| text.replace('\0', "\u{fffd}");
    NewApproval {
        request: held(&new.request),
        tool: held(&new.tool),
        description: new.description.as_deref().map(held),
        input: held(&new.input),
        cut_bytes: new.cut_bytes,
    }
}

/// Whether just this waits for an answer.
async fn waits_already(tx: &mut Tx<'_>, run: &Run, new: &NewApproval) -> Result<bool, StoreError> {
    let found = sql::query(SAME)
        .bind(ApprovalId::of(&run.id, &new.request).as_str())
        .bind(new.tool.as_str())
        .bind(new.input.as_str())
        .bind(new.cut_bytes)
        .fetch_optional(&mut *tx.db)
        .await?;
    Ok(found.is_some())
}

/// Denies what was not kept, once for each name and [`APPROVAL_REFUSALS`] times at most beside the answers that were given: a sandbox
/// that makes up more than an agent may ask gets no more.
async fn refuse(tx: &mut Tx<'_>, run: &Run, request: &str) -> Result<(), StoreError> {
    let answers: i64 = sql::query_scalar(ANSWERS).bind(run.id.as_str()).fetch_one(&mut *tx.db).await?;
    if answers >= bound(RUN_APPROVALS + APPROVAL_REFUSALS) {
        return Ok(());
    }
    let message =
        "It could not be asked: too much is asked already, or its name was used before. Go on without it.";
    let answer = Answer::Deny { message: message.to_owned() };
    let body = InputBody::Answer { request: request.to_owned(), answer };
    messages::insert_once(tx, run, document("input.body", &body)?).await?;
    if let Some(sandbox) = &run.sandbox {
        tx.wake(Topic::Sandbox(sandbox.clone()));
    }
    Ok(())
}

/// The agent no longer waits for it.
pub(crate) async fn withdrawn(tx: &mut Tx<'_>, run: &RunId, request: &str) -> Result<(), StoreError> {
    let id = ApprovalId::of(run, request);
    sql::query(WITHDRAW).bind(id.as_str()).bind(tx.now_ms).execute(&mut *tx.db).await?;
    sql::query(WAITS_NO_MORE).bind(run.as_str()).execute(&mut *tx.db).await?;
    Ok(())
}

/// No agent of the run waits for anything any more.
pub(crate) async fn withdraw_all(tx: &mut Tx<'_>, run: &str) -> Result<(), StoreError> {
    sql::query(WITHDRAW_ALL).bind(run).bind(tx.now_ms).execute(&mut *tx.db).await?;
    Ok(())
}

/// An answer as it is kept; what the tool is given is not looked into.
#[derive(Deserialize)]
struct Kept<'a> {
    decision: DefaultAnswer,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    message: Option<String>,
}

fn answered(text: &str) -> Result<Answered, serde_json::Error> {
    let Kept { decision, input, message } = serde_json::from_str(text)?;
    Ok(match decision {
        DefaultAnswer::Allow => Answered::Allow { input: input.map(|input| input.get().to_owned()) },
        DefaultAnswer::Deny => Answered::Deny { message: message.unwrap_or_default() },
    })
}

fn read(row: &Row) -> Result<Approval, StoreError> {
    let columns = Columns::of("approval", row)?;
    let answer = columns.get::<Option<&str>>("answer")?.map(answered).transpose();
    Ok(Approval {
        id: columns.parse("id")?,
        run: columns.parse("run_id")?,
        asked: NewApproval {
            request: columns.get("request")?,
            tool: columns.get("tool")?,
            description: columns.get("description")?,
            input: columns.get("input")?,
            cut_bytes: columns.get("cut_bytes")?,
        },
        default: columns.parse("default_answer")?,
        state: columns.parse("state")?,
        requested_at_ms: columns.get("requested_at_ms")?,
        expires_at_ms: columns.get("expires_at_ms")?,
        decided_at_ms: columns.get("decided_at_ms")?,
        decided_by: columns.get("decided_by")?,
        answer: answer.map_err(|error| columns.corrupt("answer", error))?,
    })
}

impl Approval {
    /// What the agent wants to give to the tool, as JSON; if it was cut, lies deeper than [`JSON_DEPTH`] or is not
    /// [read by all](is_read_by_all), its text.
    ///
    /// # Panics
    /// Never: a text is JSON.
    #[must_use]
    pub fn input(&self) -> Box<RawValue> {
        let NewApproval { input, cut_bytes, .. } = &self.asked;
        let is_whole = *cut_bytes == 0 && depth(input.as_bytes()) <= JSON_DEPTH && is_read_by_all(input);
        let whole = is_whole.then(|| RawValue::from_string(input.clone()).ok()).flatten();
        whole.unwrap_or_else(|| to_raw_value(input).expect("a text can be written as JSON"))
    }

    /// What it counts in a list.
    fn bytes(&self) -> usize {
        let answer = match &self.answer {
            Some(Answered::Allow { input }) => input.as_ref().map_or(0, String::len),
            Some(Answered::Deny { message }) => message.len(),
            None => 0,
        };
        self.asked.input.len() + self.asked.description.as_ref().map_or(0, String::len) + answer
    }
}
