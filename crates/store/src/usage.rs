//! Accounting of model calls: a pending row before a request is forwarded, which holds its share of the budgets,
//! settled once.

use caisson_domain::budget::OverBudget;
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ProjectId, RunId, ServerId, SessionId, UsageId};
use caisson_domain::run::Failure;
use caisson_domain::usage::TokenCounts;
use serde_json::json;

use crate::budgets::{self, Need, Room, pending_columns};
use crate::database::{Hold, Row, Tx, sql};
use crate::rows::{Columns, document};
use crate::usage_bounds::{bounded_cost, bounded_tokens};
use crate::{Store, StoreError, Topic, events, meters, soft_budgets};

/// A model call that is about to be forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewModelCall {
    /// The model asked for.
    pub model: String,
    /// What holds if nobody settles the call.
    pub estimate: TokenCounts,
    /// Cost of the estimate.
    pub estimate_cost_micro_usd: i64,
    /// How much of every budget it holds until it is settled, in micro-USD.
    pub reserve_micro_usd: i64,
    /// Whether it may begin only while no other call holds any of the budgets that bound it.
    pub only_alone: bool,
}

/// What came of beginning a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeginCall {
    /// It is written down and may be forwarded.
    Begun {
        /// Its row.
        id: UsageId,
        /// Whether any budget bounds it.
        bounded: bool,
    },
    /// The run is not running, or its shim is done with it: nothing is written, and nothing may be forwarded.
    NotRunning,
    /// A budget has no room for it: nothing is written, and nothing may be forwarded.
    Refused(OverBudget),
}

impl BeginCall {
    /// The call's row, if it has begun.
    #[must_use]
    pub fn begun(self) -> Option<UsageId> {
        match self {
            Self::Begun { id, .. } => Some(id),
            Self::NotRunning | Self::Refused(_) => None,
        }
    }
}

/// What a call under way has come to, and what it needs to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallExtension {
    /// What holds from now on if nobody settles the call.
    pub estimate: TokenCounts,
    /// Cost of the estimate.
    pub estimate_cost_micro_usd: i64,
    /// What the reply has come to so far, in micro-USD, whatever is held beyond it.
    pub come_to_micro_usd: i64,
    /// How much of every budget it holds from now on, in micro-USD: more than before, or less.
    pub reserve_micro_usd: i64,
    /// Whether it may hold more only while no other call holds any of the budgets that bound it.
    pub only_alone: bool,
}

/// What came of extending a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendCall {
    /// It holds what it asked for.
    Extended,
    /// It was settled before, as the end of its run settles all that are open: it may not go on.
    Over,
    /// A budget has no room for it; it holds what it held.
    Refused(OverBudget),
}

/// A model call that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledCall {
    /// The model that answered.
    pub model: String,
    /// HTTP status; 0 if there was no reply.
    pub status: u16,
    /// Tokens.
    pub tokens: TokenCounts,
    /// Cost.
    pub cost_micro_usd: i64,
    /// Whether the numbers are an estimate: the reply was cut, or cost something that the price list does not say.
    pub estimated: bool,
    /// Time to the first byte of the reply, in milliseconds.
    pub first_byte_ms: Option<i64>,
    /// Time to the end, in milliseconds.
    pub duration_ms: i64,
}

/// Calls settled in one transaction at a server's start.
const ORPHAN_ITEMS: i64 = 100;

const INSERT: &str = concat!(
    "insert into usage ",
    pending_columns!(),
    " select $1, project_id, session_id, id, home_server_id, 'pending', $3, $4, $5, \
     $6, $7, $8, $9, 1, $10, $11 from run where id = $2"
);

const BEGUN_SESSION: &str = "update session set calls = calls + 1 where id = $1";

const HELD: &str = "select id, run_id, project_id, begun_at_ms, reserved_micro_usd from usage \
     where id = $1 and state = 'pending'";

const EXTEND: &str = "update usage set input_tokens = $2, output_tokens = $3, cache_read_tokens = $4, \
     cache_write_5m_tokens = $5, cache_write_1h_tokens = $6, cost_micro_usd = $7, reserved_micro_usd = $8, come_to_micro_usd = $9 \
     where id = $1 and state = 'pending'";

const NOTE_FAILURE: &str = "update run set model_failure = $2 where id = $1 and status = 'running'";

const ORPHANS: &str = "select id, model, input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, \
     cache_write_1h_tokens, cost_micro_usd from usage where server_id = $1 and state = 'pending' \
     order by id limit $2";

/// As many as a sandbox may have under way; those of an earlier process are settled when its server starts.
const OPEN: &str = "select id, model, input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, \
     cache_write_1h_tokens, cost_micro_usd from usage where run_id = $1 and state = 'pending' order by id";

const HAS_OPEN: &str = "select exists (select 1 from usage where run_id = $1 and state = 'pending')";

impl Store {
    /// Writes down a call before it is forwarded, so that none is ever unmetered, counts it as begun, and reserves what it
    /// needs of the budgets of its run, its project and the day, all in one transaction: calls at once cannot overshoot
    /// together. It outlives the death of any process at once, and a power cut with the next commit that waits for the disk:
    /// the agent waits for this one.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// A dropped call may have written the row; it is settled as an estimate when its run ends or its server starts.
    pub async fn begin_model_call(&self, run: &RunId, call: &NewModelCall) -> Result<BeginCall, StoreError> {
        match self.begin_call_at_once(run, call).await? {
            Some((id, bounded)) => Ok(BeginCall::Begun { id, bounded }),
            None => self.begin_call_in_steps(run, call).await,
        }
    }

    pub(crate) async fn begin_call_in_steps(
        &self,
        run: &RunId,
        call: &NewModelCall,
    ) -> Result<BeginCall, StoreError> {
        let mut tx = self.begin_unsynced(Hold::SessionOfRun(run)).await?;
        let reserve = bounded_cost(call.reserve_micro_usd);
        let need =
            Need { run, call: "", begun_at_ms: tx.now_ms, micro_usd: reserve, only_alone: call.only_alone };
        let (session, bounded) = match budgets::begin(&mut tx, need).await? {
            None => return Ok(BeginCall::NotRunning),
            Some((_, Room::Over(over))) => {
                tx.rollback().await?;
                return Ok(BeginCall::Refused(over));
            }
            Some((session, Room::Unbounded)) => (session, false),
            Some((session, Room::Fits)) => (session, true),
        };
        let id = UsageId::new(tx.now_ms, tx.random());
        let tokens = bounded_tokens(&call.estimate);
        sql::query(INSERT)
            .bind(id.as_str())
            .bind(run.as_str())
            .bind(call.model.as_str())
            .bind(tokens.input)
            .bind(tokens.output)
            .bind(tokens.cache_read)
            .bind(tokens.cache_write_5m)
            .bind(tokens.cache_write_1h)
            .bind(bounded_cost(call.estimate_cost_micro_usd))
            .bind(tx.now_ms)
            .bind(reserve)
            .execute(&mut *tx.db)
            .await?;
        sql::query(BEGUN_SESSION).bind(session).execute(&mut *tx.db).await?;
        tx.commit().await?;
        Ok(BeginCall::Begun { id, bounded })
    }

    /// Lets a call under way hold another share of the budgets, and notes what it has come to, so that a server that dies
    /// leaves an estimate which is not far behind. To hold less is never refused.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn extend_model_call(
        &self,
        id: &UsageId,
        extension: &CallExtension,
    ) -> Result<ExtendCall, StoreError> {
        let mut tx = self.begin_unsynced(Hold::SessionOfCall(id)).await?;
        let row = sql::query(HELD).bind(id.as_str()).fetch_optional(&mut *tx.db).await?;
        let Some(row) = row else { return Ok(ExtendCall::Over) };
        let columns = Columns::of("usage", &row)?;
        let (run, project): (RunId, ProjectId) = (columns.parse("run_id")?, columns.parse("project_id")?);
        let (held, begun_at_ms): (i64, i64) =
            (columns.get("reserved_micro_usd")?, columns.get("begun_at_ms")?);
        let reserve = bounded_cost(extension.reserve_micro_usd);
        if reserve > held {
            let need = Need {
                run: &run,
                call: id.as_str(),
                begun_at_ms,
                micro_usd: reserve,
                only_alone: extension.only_alone,
            };
            if let Some(Room::Over(over)) = budgets::room(&mut tx, need).await? {
                return Ok(ExtendCall::Refused(over));
            }
        }
        let tokens = bounded_tokens(&extension.estimate);
        sql::query(EXTEND)
            .bind(id.as_str())
            .bind(tokens.input)
            .bind(tokens.output)
            .bind(tokens.cache_read)
            .bind(tokens.cache_write_5m)
            .bind(tokens.cache_write_1h)
            .bind(bounded_cost(extension.estimate_cost_micro_usd))
            .bind(reserve)
            .bind(bounded_cost(extension.come_to_micro_usd))
            .execute(&mut *tx.db)
            .await?;
        soft_budgets::look(&mut tx, &run, begun_at_ms).await?;
        if reserve < held {
            tx.wake(Topic::Budget(project));
        }
        tx.commit().await?;
        Ok(ExtendCall::Extended)
    }

    /// Notes why the gateway gave up the run's model calls for good: it is what a run whose agent then fails has failed
    /// of. A call that is answered after that takes it back. `false` if the run is not running.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn note_model_failure(&self, run: &RunId, failure: &Failure) -> Result<bool, StoreError> {
        let mut tx = self.begin_unsynced(Hold::SessionOfRun(run)).await?;
        let noted = sql::query(NOTE_FAILURE)
            .bind(run.as_str())
            .bind(document("run.model_failure", failure)?)
            .execute(&mut *tx.db)
            .await?
            .rows_affected()
            == 1;
        tx.commit().await?;
        Ok(noted)
    }

    /// Whether calls of the run are under way. Whoever waits for their end listens to [`Topic::Run`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn has_open_calls(&self, run: &RunId) -> Result<bool, StoreError> {
        let open: i64 = sql::query_scalar(HAS_OPEN).bind(run.as_str()).fetch_one(self.reader()).await?;
        Ok(open != 0)
    }

    /// Settles a call: its numbers are added to run and session, and an event tells of it. `false` if it was settled
    /// before, as the end of its run settles all that are open, or is not known; then nothing changes.
    ///
    /// Counts below zero or beyond [`crate::CALL_TOKENS_MAX`] and [`crate::CALL_COST_MICRO_USD_MAX`] are moved to the nearest bound.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn settle_model_call(&self, id: &UsageId, settled: &SettledCall) -> Result<bool, StoreError> {
        let mut tx = self.begin_in(Hold::SessionOfCall(id)).await?;
        let call = Settlement {
            model: &settled.model,
            status: Some(settled.status),
            tokens: bounded_tokens(&settled.tokens),
            cost_micro_usd: bounded_cost(settled.cost_micro_usd),
            estimated: settled.estimated,
            first_byte_ms: settled.first_byte_ms,
            duration_ms: Some(settled.duration_ms),
        };
        let settled = settle(&mut tx, id, &call).await?;
        if let Some((run, begun_at_ms)) = &settled {
            soft_budgets::look(&mut tx, run, *begun_at_ms).await?;
        }
        tx.commit().await?;
        Ok(settled.is_some())
    }

    /// Settles every pending call of the server's runs with its stored estimate and returns how many there were: for a
    /// server that has just started.
    ///
    /// # Errors
    /// As every write.
    /// # Cancel safety
    /// Safe: repeatable.
    pub async fn settle_orphaned_calls(&self, server: &ServerId) -> Result<u64, StoreError> {
        let mut settled = 0;
        loop {
            let mut tx = self.begin().await?;
            let orphans =
                sql::query(ORPHANS).bind(server.as_str()).bind(ORPHAN_ITEMS).fetch_all(&mut *tx.db).await?;
            if orphans.is_empty() {
                return Ok(settled);
            }
            for row in &orphans {
                if let Some((run, begun_at_ms)) = settle_orphan(&mut tx, row).await? {
                    soft_budgets::look(&mut tx, &run, begun_at_ms).await?;
                    settled += 1;
                }
            }
            tx.commit().await?;
        }
    }
}

/// What is written about a call that is over.
struct Settlement<'c> {
    model: &'c str,
    /// None if the server died before it could know.
    status: Option<u16>,
    tokens: TokenCounts,
    cost_micro_usd: i64,
    estimated: bool,
    first_byte_ms: Option<i64>,
    duration_ms: Option<i64>,
}

impl Settlement<'_> {
    /// Whether the model answered it to the end.
    fn was_answered(&self) -> bool {
        !self.estimated && self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// Settles the run's open calls with their estimates, so that its end tells the whole of its usage.
pub(crate) async fn settle_open(tx: &mut Tx<'_>, run: &str) -> Result<(), StoreError> {
    for row in sql::query(OPEN).bind(run).fetch_all(&mut *tx.db).await? {
        settle_orphan(tx, &row).await?;
    }
    Ok(())
}

async fn settle_orphan(tx: &mut Tx<'_>, row: &Row) -> Result<Option<(RunId, i64)>, StoreError> {
    let columns = Columns::of("usage", row)?;
    let call = Settlement {
        model: columns.get("model")?,
        status: None,
        tokens: columns.tokens()?,
        cost_micro_usd: columns.get("cost_micro_usd")?,
        estimated: true,
        first_byte_ms: None,
        duration_ms: None,
    };
    settle(tx, &columns.parse("id")?, &call).await
}

const SETTLE: &str = "update usage set state = 'settled', model = $2, status = $3, input_tokens = $4, \
     output_tokens = $5, cache_read_tokens = $6, cache_write_5m_tokens = $7, cache_write_1h_tokens = $8, \
     cost_micro_usd = $9, estimated = $10, first_byte_ms = $11, duration_ms = $12, settled_at_ms = $13 \
     where id = $1 and state = 'pending' returning id, run_id, session_id, project_id, begun_at_ms";

/// Settles a call that is pending; whose it was and when it began.
async fn settle(
    tx: &mut Tx<'_>,
    id: &UsageId,
    call: &Settlement<'_>,
) -> Result<Option<(RunId, i64)>, StoreError> {
    let row = sql::query(SETTLE)
        .bind(id.as_str())
        .bind(call.model)
        .bind(call.status)
        .bind(call.tokens.input)
        .bind(call.tokens.output)
        .bind(call.tokens.cache_read)
        .bind(call.tokens.cache_write_5m)
        .bind(call.tokens.cache_write_1h)
        .bind(call.cost_micro_usd)
        .bind(i64::from(call.estimated))
        .bind(call.first_byte_ms)
        .bind(call.duration_ms)
        .bind(tx.now_ms)
        .fetch_optional(&mut *tx.db)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let columns = Columns::of("usage", &row)?;
    let run: RunId = columns.parse("run_id")?;
    let session: SessionId = columns.parse("session_id")?;
    let project: ProjectId = columns.parse("project_id")?;
    add(tx, &run, &session, call).await?;
    let begun_at_ms = columns.get("begun_at_ms")?;
    budgets::spend(tx, &project, begun_at_ms, call.cost_micro_usd).await?;
    events::append(tx, &session, &run, &[event(call)]).await?;
    count(tx, call);
    tx.wake(Topic::Run(run.clone()));
    Ok(Some((run, begun_at_ms)))
}

fn count(tx: &mut Tx<'_>, call: &Settlement<'_>) {
    let outcome = match call.was_answered() {
        true => "answered",
        false if call.estimated => "estimated",
        false => "refused",
    };
    tx.count(&meters::MODEL_CALLS, vec![("outcome", outcome.to_owned())], 1);
    for (kind, tokens) in [
        ("input", call.tokens.input),
        ("output", call.tokens.output),
        ("cache_read", call.tokens.cache_read),
        ("cache_write_5m", call.tokens.cache_write_5m),
        ("cache_write_1h", call.tokens.cache_write_1h),
    ] {
        tx.count(&meters::MODEL_TOKENS, vec![("kind", kind.to_owned())], tokens);
    }
    tx.count(&meters::MODEL_COST, Vec::new(), call.cost_micro_usd);
    if let Some(ms) = call.first_byte_ms {
        tx.count(&meters::MODEL_FIRST_BYTE, Vec::new(), ms);
    }
}

fn event(call: &Settlement<'_>) -> NewEvent {
    let data = json!({
        "model": call.model,
        "status": call.status.unwrap_or(0),
        "tokens": call.tokens,
        "cost_micro_usd": call.cost_micro_usd,
        "estimated": call.estimated,
        "first_byte_ms": call.first_byte_ms,
        "duration_ms": call.duration_ms,
    });
    NewEvent::new(EventKind::ModelCall, &data)
}

macro_rules! add_to {
    ($table:literal, $more:literal) => {
        concat!(
            "update ",
            $table,
            " set estimated_calls = estimated_calls + $2, input_tokens = input_tokens + $3, \
             output_tokens = output_tokens + $4, cache_read_tokens = cache_read_tokens + $5, \
             cache_write_5m_tokens = cache_write_5m_tokens + $6, cache_write_1h_tokens = cache_write_1h_tokens + $7, \
             cost_micro_usd = cost_micro_usd + $8",
            $more,
            " where id = $1"
        )
    };
}

/// A call that is answered takes back what an earlier one was given up for.
const ADD_TO_RUN: &str = add_to!(
    "run",
    ", provider_status = coalesce($9, provider_status), \
     model_failure = case when $10 = 1 then null else model_failure end"
);

const ADD_TO_SESSION: &str = add_to!("session", "");

/// Adds a call to its run and to its session.
async fn add(
    tx: &mut Tx<'_>,
    run: &RunId,
    session: &SessionId,
    call: &Settlement<'_>,
) -> Result<(), StoreError> {
    let totals = |sql: &'static str, to| {
        sql::query(sql)
            .bind(to)
            .bind(i64::from(call.estimated))
            .bind(call.tokens.input)
            .bind(call.tokens.output)
            .bind(call.tokens.cache_read)
            .bind(call.tokens.cache_write_5m)
            .bind(call.tokens.cache_write_1h)
            .bind(call.cost_micro_usd)
    };
    let run = totals(ADD_TO_RUN, run.as_str()).bind(call.status).bind(i64::from(call.was_answered()));
    run.execute(&mut *tx.db).await?;
    totals(ADD_TO_SESSION, session.as_str()).execute(&mut *tx.db).await?;
    Ok(())
}
