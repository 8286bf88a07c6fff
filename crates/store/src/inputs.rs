//! Inputs that people send to the agent of a live run, and how far each of them is.

use caisson_domain::attachment::{Attachment, PENDING_ATTACHMENTS_BYTES};
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ApiKeyId, ProjectId, RunId, SessionId};
use caisson_domain::input::{InputKind, InputState, RUN_INPUTS};
use caisson_domain::protocol::InputBody;
use caisson_domain::run::{Phase, Run, RunStatus};
use serde_json::json;

use crate::database::{Row, Tx, sql};
use crate::messages::NUMBER;
use crate::rows::{Columns, document, run_columns};
use crate::{
    Actor, AttachmentsFull, NewAttachment, NewAudit, Store, StoreError, Topic, attachments, audit, events,
    rows,
};

/// An input to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInput {
    /// When it reaches the agent.
    pub kind: InputKind,
    /// What it says; an interruption need not say anything.
    pub text: Option<String>,
    /// The key that sends it.
    pub by: ApiKeyId,
    /// What makes a repetition of the request harmless, within the run.
    pub idempotency_key: Option<String>,
    /// What comes with the text; without one, nothing may.
    pub attachments: Vec<NewAttachment>,
}

/// An input that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInput {
    /// Its number in the session, growing.
    pub seq: i64,
    /// The run.
    pub run: RunId,
    /// When it reaches the agent.
    pub kind: InputKind,
    /// What it says.
    pub text: Option<String>,
    /// What comes with it.
    pub attachments: Vec<Attachment>,
    /// How far it is.
    pub state: InputState,
    /// The key that sent it.
    pub created_by: Option<String>,
    /// Unix ms.
    pub created_at_ms: i64,
    /// When the shim last told how far it is, Unix ms.
    pub acknowledged_at_ms: Option<i64>,
}

/// What came of sending an input.
#[derive(Debug, Clone, PartialEq)]
pub enum SendInput {
    /// The project has no such run.
    Unknown,
    /// It has no agent that could take it: it waits, publishes, ends now or has ended.
    NotLive(Box<Run>),
    /// [`InputKind::most_pending`] or [`PENDING_ATTACHMENTS_BYTES`] are on their way; there is room when one of them has reached the agent.
    Full,
    /// It was sent [`RUN_INPUTS`], and takes no more.
    Spent,
    /// There is no room for what comes with it.
    AttachmentsFull(AttachmentsFull),
    /// The idempotency key was used with another input.
    KeyReused,
    /// It is on its way.
    Sent(RunInput),
    /// The same request was served before.
    Replayed(RunInput),
}

const RUN: &str = concat!(
    "select ",
    run_columns!(),
    ", case when outcome is not null or stop_requested_at_ms is not null then 1 else 0 end as ending \
     from run where project_id = $1 and id = $2"
);

macro_rules! input_columns {
    () => {
        "session_id, seq, run_id, kind, body, state, created_by, created_at_ms, acknowledged_at_ms"
    };
}

const SAME_KEY: &str =
    concat!("select ", input_columns!(), " from input where run_id = $1 and idempotency_key = $2");

const SENT: &str = "select count(*) as sent, \
     coalesce(cast(sum(case when state in ('accepted', 'held') then 1 else 0 end) as bigint), 0) as pending \
     from input where run_id = $1 and kind is not null";

const INSERT: &str = concat!(
    "insert into input (session_id, seq, project_id, run_id, created_at_ms, body, kind, created_by, idempotency_key) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning ",
    input_columns!()
);

const OF_RUN: &str = concat!(
    "select ",
    input_columns!(),
    " from input where run_id = $1 and kind is not null order by seq limit $2"
);

const STATE: &str = "select input.session_id, input.state, run.status from input join run on run.id = input.run_id \
     where input.session_id = $1 and input.seq = $2 and input.kind is not null";

const UNDELIVERED: &str = "update input set state = 'undelivered' \
     where run_id = $1 and kind is not null and state in ('accepted', 'held') returning seq";

const ACKNOWLEDGE: &str = "update input set state = $3, acknowledged_at_ms = $4 \
     where run_id = $1 and seq = $2 and kind is not null and state in ('accepted', 'held')";

impl Store {
    /// Sends an input to the agent of a running run, unless the same one was sent before with its idempotency key.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have sent it; with an idempotency key, asking again finds it.
    pub async fn send_input(
        &self,
        project: &ProjectId,
        id: &RunId,
        new: &NewInput,
    ) -> Result<SendInput, StoreError> {
        let encoded = attachments::encoded(&new.attachments);
        let mut tx = self.begin().await?;
        let row =
            sql::query(RUN).bind(project.as_str()).bind(id.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(row) = row else { return Ok(SendInput::Unknown) };
        let run = rows::run(&row)?;
        if let Some(answer) = replayed(&mut tx, &run, new).await? {
            return Ok(answer);
        }
        if !is_live(&run) || Columns::of("run", &row)?.flag("ending")? {
            return Ok(SendInput::NotLive(Box::new(run)));
        }
        let sent = sql::query(SENT).bind(id.as_str()).fetch_one(&mut *tx.db).await?;
        if sent.get::<i64>("sent")? >= RUN_INPUTS {
            return Ok(SendInput::Spent);
        }
        if sent.get::<i64>("pending")? >= new.kind.most_pending() {
            return Ok(SendInput::Full);
        }
        if attachments::pending_with(&mut tx, id, &new.attachments).await? > PENDING_ATTACHMENTS_BYTES {
            return Ok(SendInput::Full);
        }
        if let Some(full) = attachments::full(&mut tx, project, Some(id), &new.attachments).await? {
            return Ok(SendInput::AttachmentsFull(full));
        }
        let input = insert(&mut tx, &run, (new, &encoded)).await?;
        let mut data = json!({ "input": input.seq, "kind": input.kind, "text": input.text });
        if !input.attachments.is_empty() {
            data["attachments"] = json!(input.attachments);
        }
        events::append(&mut tx, &run.session, &run.id, &[NewEvent::new(EventKind::InputAccepted, &data)])
            .await?;
        audit::write(&mut tx, &NewAudit::of_run(&run, Actor::Key(new.by.clone()), "run.input")).await?;
        tx.wake(Topic::Run(run.id.clone()));
        if let Some(sandbox) = &run.sandbox {
            tx.wake(Topic::Sandbox(sandbox.clone()));
        }
        tx.commit().await?;
        Ok(SendInput::Sent(input))
    }

    /// The inputs that people sent to a run of the project, oldest first, all of them; none if there is no such run. What was on
    /// its way when the run ended is told as undelivered.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn inputs(&self, project: &ProjectId, id: &RunId) -> Result<Option<Vec<RunInput>>, StoreError> {
        let Some(run) = self.run(project, id).await? else { return Ok(None) };
        let rows = sql::query(OF_RUN).bind(id.as_str()).bind(RUN_INPUTS).fetch_all(self.reader()).await?;
        rows.iter().map(|row| read(row, &run)).collect::<Result<_, _>>().map(Some)
    }

    /// How far an input is that people sent, by its number in the session; none if the session has no such input. Whoever asks
    /// has checked that the session is theirs.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn input_state(&self, session: &SessionId, seq: i64) -> Result<Option<InputState>, StoreError> {
        let row = sql::query(STATE).bind(session.as_str()).bind(seq).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::keyed("input", &row, "session_id")?;
        let status: RunStatus = columns.parse("status")?;
        Ok(Some(as_it_stands(columns.parse("state")?, status)))
    }
}

/// Whether its agent can be given something. The phase is the sandbox's own word: what it says falsely, it keeps from itself.
fn is_live(run: &Run) -> bool {
    run.status == RunStatus::Running && run.phase != Some(Phase::Publish)
}

async fn replayed(tx: &mut Tx<'_>, run: &Run, new: &NewInput) -> Result<Option<SendInput>, StoreError> {
    let Some(key) = &new.idempotency_key else { return Ok(None) };
    let row =
        sql::query(SAME_KEY).bind(run.id.as_str()).bind(key.as_str()).fetch_optional(&mut *tx.db).await?;
    let Some(row) = row else { return Ok(None) };
    let before = read(&row, run)?;
    let of_old = before.attachments.iter();
    let same = before.kind == new.kind
        && before.text == new.text
        && before.attachments.len() == new.attachments.len()
        && of_old.zip(&new.attachments).all(|(before, new)| before.is_same_as(&new.what));
    Ok(Some(if same { SendInput::Replayed(before) } else { SendInput::KeyReused }))
}

async fn insert(
    tx: &mut Tx<'_>,
    run: &Run,
    (new, encoded): (&NewInput, &[attachments::Encoded]),
) -> Result<RunInput, StoreError> {
    let text = new.text.clone();
    let attached = if new.attachments.is_empty() {
        Vec::new()
    } else {
        let first = attachments::next(tx, &run.id).await?;
        attachments::numbered(&new.attachments, first)
    };
    let body = match new.kind {
        kind if !attached.is_empty() => {
            let (text, attachments) = (text.unwrap_or_default(), attached.clone());
            InputBody::Attached { kind, text, attachments }
        }
        InputKind::Steer => InputBody::Steer { text: text.unwrap_or_default() },
        InputKind::Queue => InputBody::Queue { text: text.unwrap_or_default() },
        InputKind::Interrupt => InputBody::Interrupt { text },
    };
    let seq: i64 = sql::query_scalar(NUMBER).bind(run.session.as_str()).fetch_one(&mut *tx.db).await?;
    let row = sql::query(INSERT)
        .bind(run.session.as_str())
        .bind(seq)
        .bind(run.project.as_str())
        .bind(run.id.as_str())
        .bind(tx.now_ms)
        .bind(document("input.body", &body)?)
        .bind(new.kind.as_str())
        .bind(new.by.as_str())
        .bind(new.idempotency_key.as_deref())
        .fetch_one(&mut *tx.db)
        .await?;
    attachments::insert(tx, run, Some(seq), (&attached, encoded)).await?;
    read(&row, run)
}

fn read(row: &Row, run: &Run) -> Result<RunInput, StoreError> {
    let columns = Columns::keyed("input", row, "session_id")?;
    let (text, attachments) = said(columns.json("body")?);
    Ok(RunInput {
        seq: columns.get("seq")?,
        run: columns.parse("run_id")?,
        kind: columns.parse("kind")?,
        text,
        attachments,
        state: as_it_stands(columns.parse("state")?, run.status),
        created_by: columns.get("created_by")?,
        created_at_ms: columns.get("created_at_ms")?,
        acknowledged_at_ms: columns.get("acknowledged_at_ms")?,
    })
}

/// What was on its way when the run ended does not reach the agent any more.
fn as_it_stands(state: InputState, status: RunStatus) -> InputState {
    let over = status.is_final() && !state.is_final();
    if over { InputState::Undelivered } else { state }
}

fn said(body: InputBody) -> (Option<String>, Vec<Attachment>) {
    match body {
        InputBody::Steer { text } | InputBody::Queue { text } => (Some(text), Vec::new()),
        InputBody::Interrupt { text } => (text, Vec::new()),
        InputBody::Attached { text, attachments, .. } => (Some(text), attachments),
        InputBody::Stop { .. } | InputBody::Answer { .. } => (None, Vec::new()),
    }
}

/// Notes what the shim told of an input. What is delivered stays so, whatever comes after.
pub(crate) async fn acknowledge(
    tx: &mut Tx<'_>,
    run: &RunId,
    seq: i64,
    state: InputState,
) -> Result<(), StoreError> {
    sql::query(ACKNOWLEDGE)
        .bind(run.as_str())
        .bind(seq)
        .bind(state.as_str())
        .bind(tx.now_ms)
        .execute(&mut *tx.db)
        .await?;
    Ok(())
}

/// Notes that what was on its way when the run ended does not reach the agent any more, with an event for each.
pub(crate) async fn end(tx: &mut Tx<'_>, session: &SessionId, run: &RunId) -> Result<(), StoreError> {
    let rows = sql::query(UNDELIVERED).bind(run.as_str()).fetch_all(&mut *tx.db).await?;
    let mut numbers = rows.iter().map(|row| row.get::<i64>("seq")).collect::<Result<Vec<_>, _>>()?;
    numbers.sort_unstable();
    let told = |seq| NewEvent::new(EventKind::InputUndelivered, &json!({ "input": seq }));
    let told: Vec<NewEvent> = numbers.into_iter().map(told).collect();
    events::append(tx, session, run, &told).await
}
