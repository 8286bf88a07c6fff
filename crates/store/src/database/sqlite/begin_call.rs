//! A model call that nothing speaks against is begun by one statement. A transaction of several takes a turn of the connection's
//! thread for each, and the agent waits for all of them. Whatever this statement does not begin is left to the transaction,
//! which finds out why: a refusal, a run's first call, a database that a later version has migrated.
//!
//! It is a second copy of a rule, which is [`crate::budgets`]'s; tests hold the two equal.

use caisson_domain::budget::{DAY_MS, day_of};
use caisson_domain::id::{RunId, UsageId};

use crate::budgets::{pending_columns, room_columns};
use crate::database::sql::Connection;
use crate::database::{Database, Fault, fault, sql};
use crate::rows::Columns;
use crate::usage_bounds::{bounded_cost, bounded_tokens};
use crate::{NewModelCall, Store, StoreError};

/// What a new connection that writes is told: a row that is inserted into this view is a pending call, and counted as begun
/// by its run and its session. Both are the connection's own, so that no migration meets them.
pub(super) const PREPARE: &str = concat!(
    "create temp view begun_call as select id, run_id, model, input_tokens, output_tokens, \
     cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, cost_micro_usd, begun_at_ms, reserved_micro_usd, \
     1 as bounded from usage where state = 'pending'; \
     create temp trigger begin_call instead of insert on begun_call begin \
       insert into usage ",
    pending_columns!(),
    " select new.id, project_id, session_id, id, home_server_id, 'pending', new.model, new.input_tokens, \
         new.output_tokens, new.cache_read_tokens, new.cache_write_5m_tokens, new.cache_write_1h_tokens, \
         new.cost_micro_usd, 1, new.begun_at_ms, new.reserved_micro_usd from run where id = new.run_id; \
       update run set calls = calls + 1 where id = new.run_id; \
       update session set calls = calls + 1 where id = (select session_id from run where id = new.run_id); \
     end"
);

/// `$2` to `$5` are those of [`room_columns`]. As [`crate::budgets`] judges it: each budget that there is has room.
const BEGIN: &str = concat!(
    "insert into begun_call (id, run_id, model, input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, \
     cache_write_1h_tokens, cost_micro_usd, begun_at_ms, reserved_micro_usd, bounded) \
     select $6, room.id, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
     coalesce(run_budget, project_budget, day_budget) is not null from (select run.id, ",
    room_columns!(),
    " from run where run.id = $1 and run.status = 'running' and run.outcome is null and run.first_call_day is not null) \
     as room where (run_budget is null or run_spent + coalesce(run_reserved, 0) + $15 <= run_budget) \
     and (day_budget is null or coalesce(day_spent, 0) + coalesce(day_reserved, 0) + $15 <= day_budget) \
     and (project_budget is null or project_spent + coalesce(project_reserved, 0) + $15 <= project_budget) \
     and (select coalesce(max(version), 0) from _sqlx_migrations) <= $16 returning id, bounded"
);

impl Store {
    /// Begins a call if one statement can; its row, and whether any budget bounds it.
    ///
    /// # Errors
    /// As every write; a fault that the transaction would meet as well is left to it.
    /// # Cancel safety
    /// As [`Store::begin_model_call`].
    pub(crate) async fn begin_call_at_once(
        &self,
        run: &RunId,
        call: &NewModelCall,
    ) -> Result<Option<(UsageId, bool)>, StoreError> {
        let Database::Sqlite(database) = &self.shared.database else { return Ok(None) };
        if call.only_alone {
            return Ok(None);
        }
        // The only connection of this process that writes, so that its times follow its commits. While another process writes,
        // the commit may come up to `BUSY_MS` after the time, and after the end of the day, that it is counted for.
        let mut connection = Connection::Sqlite(database.writer.acquire().await?);
        let now_ms = self.now_ms();
        let (id, day) = (UsageId::new(now_ms, self.shared.random.bytes()), day_of(now_ms));
        let tokens = bounded_tokens(&call.estimate);
        let begun = sql::query(BEGIN)
            .bind(run.as_str())
            .bind("")
            .bind(day)
            .bind(day * DAY_MS)
            .bind((day + 1) * DAY_MS)
            .bind(id.as_str())
            .bind(call.model.as_str())
            .bind(tokens.input)
            .bind(tokens.output)
            .bind(tokens.cache_read)
            .bind(tokens.cache_write_5m)
            .bind(tokens.cache_write_1h)
            .bind(bounded_cost(call.estimate_cost_micro_usd))
            .bind(now_ms)
            .bind(bounded_cost(call.reserve_micro_usd))
            .bind(self.shared.database.newest_known())
            // To its end, which is the commit.
            .fetch_all(&mut connection)
            .await;
        match begun {
            Ok(rows) => {
                rows.first().map(|row| Ok((id, Columns::of("usage", row)?.flag("bounded")?))).transpose()
            }
            Err(error) => match fault(&error) {
                Fault::Broken(_) => {
                    tracing::warn!(run.id = %run, error = %error, "a model call of {run} was not begun at once, and takes longer");
                    Ok(None)
                }
                Fault::Away | Fault::Full => Err(error.into()),
            },
        }
    }
}

#[cfg(test)]
#[path = "begin_call_tests.rs"]
mod tests;
