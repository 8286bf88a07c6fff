//! From rows to the nouns of the domain. Whatever does not fit is told with table, column and id.

use std::str::FromStr;

use caisson_domain::event::Event;
use caisson_domain::id::Epoch;
use caisson_domain::run::Run;
use caisson_domain::usage::{TokenCounts, UsageTotals};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::database::Row;
use crate::database::sql::Read;
use crate::{BoxError, StoreError};

/// The columns that make a [`Run`].
macro_rules! run_columns {
    () => {
        "id, project_id, session_id, status, phase, waiting, lease_epoch, lease_expires_at_ms, attempt, \
         agent_started, cancel_requested_at_ms, home_server_id, sandbox_id, base_commit, pushed_commit, calls, \
         estimated_calls, input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, \
         cache_write_1h_tokens, cost_micro_usd, created_at_ms, started_at_ms, finished_at_ms, failure, result, output, \
         checks, repository_image, spec"
    };
}
pub(crate) use run_columns;

/// One row, read column by column.
pub(crate) struct Columns<'r> {
    row: &'r Row,
    table: &'static str,
    id: String,
}

impl<'r> Columns<'r> {
    /// A row of a table whose key is `id`.
    pub(crate) fn of(table: &'static str, row: &'r Row) -> Result<Self, StoreError> {
        Self::keyed(table, row, "id")
    }

    /// A row of a table with another text key.
    pub(crate) fn keyed(table: &'static str, row: &'r Row, key: &str) -> Result<Self, StoreError> {
        let id = row.get(key).map_err(|error| StoreError::corrupt(format!("{table}.{key}"), error))?;
        Ok(Self { row, table, id })
    }

    pub(crate) fn get<T: Read<'r>>(&self, column: &str) -> Result<T, StoreError> {
        self.row.get(column).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn parse<T>(&self, column: &str) -> Result<T, StoreError>
    where
        T: FromStr<Err: Into<BoxError>>,
    {
        self.get::<&str>(column)?.parse().map_err(|error: T::Err| self.corrupt(column, error))
    }

    pub(crate) fn parse_optional<T>(&self, column: &str) -> Result<Option<T>, StoreError>
    where
        T: FromStr<Err: Into<BoxError>>,
    {
        let text = self.get::<Option<&str>>(column)?;
        text.map(str::parse).transpose().map_err(|error: T::Err| self.corrupt(column, error))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        serde_json::from_str(self.get(column)?).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn json_optional<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text = self.get::<Option<&str>>(column)?;
        text.map(serde_json::from_str).transpose().map_err(|error| self.corrupt(column, error))
    }

    /// A number of a smaller type than the column's.
    pub(crate) fn number<T: TryFrom<i64, Error: Into<BoxError>>>(
        &self,
        column: &str,
    ) -> Result<T, StoreError> {
        T::try_from(self.get(column)?).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn flag(&self, column: &str) -> Result<bool, StoreError> {
        Ok(self.get::<i64>(column)? != 0)
    }

    pub(crate) fn tokens(&self) -> Result<TokenCounts, StoreError> {
        Ok(TokenCounts {
            input: self.get("input_tokens")?,
            output: self.get("output_tokens")?,
            cache_read: self.get("cache_read_tokens")?,
            cache_write_5m: self.get("cache_write_5m_tokens")?,
            cache_write_1h: self.get("cache_write_1h_tokens")?,
        })
    }

    pub(crate) fn usage(&self) -> Result<UsageTotals, StoreError> {
        Ok(UsageTotals {
            calls: self.get("calls")?,
            estimated_calls: self.get("estimated_calls")?,
            tokens: self.tokens()?,
            cost_micro_usd: self.get("cost_micro_usd")?,
        })
    }

    pub(crate) fn corrupt(&self, column: &str, error: impl Into<BoxError>) -> StoreError {
        StoreError::corrupt(format!("{}.{column} of {}", self.table, self.id), error)
    }
}

/// The run of a row that has [`run_columns`].
pub(crate) fn run(row: &Row) -> Result<Run, StoreError> {
    let columns = Columns::of("run", row)?;
    Ok(Run {
        id: columns.parse("id")?,
        project: columns.parse("project_id")?,
        session: columns.parse("session_id")?,
        spec: columns.json("spec")?,
        status: columns.parse("status")?,
        phase: columns.parse_optional("phase")?,
        waiting: columns.parse_optional("waiting")?,
        failure: columns.json_optional("failure")?,
        result: columns.get("result")?,
        output: columns.json_optional("output")?,
        checks: columns.json_optional("checks")?.unwrap_or_default(),
        repository_image: columns.get("repository_image")?,
        attempt: columns.get("attempt")?,
        agent_started: columns.flag("agent_started")?,
        cancel_requested_at_ms: columns.get("cancel_requested_at_ms")?,
        home: columns.parse_optional("home_server_id")?,
        sandbox: columns.parse_optional("sandbox_id")?,
        base_commit: columns.get("base_commit")?,
        pushed_commit: columns.get("pushed_commit")?,
        usage: columns.usage()?,
        created_at_ms: columns.get("created_at_ms")?,
        started_at_ms: columns.get("started_at_ms")?,
        finished_at_ms: columns.get("finished_at_ms")?,
    })
}

/// The lease epoch of a row that has [`run_columns`].
pub(crate) fn epoch(row: &Row) -> Result<Epoch, StoreError> {
    Columns::of("run", row)?.get("lease_epoch").map(Epoch)
}

/// The event of a row with all of its columns.
pub(crate) fn event(row: &Row) -> Result<Event, StoreError> {
    let mut columns = Columns::keyed("event", row, "session_id")?;
    let seq: i64 = columns.get("seq")?;
    columns.id = format!("{} number {seq}", columns.id);
    let data: String = columns.get("data")?;
    Ok(Event {
        seq,
        session: columns.parse("session_id")?,
        run: columns.parse("run_id")?,
        at_ms: columns.get("at_ms")?,
        kind: columns.parse("kind")?,
        data: RawValue::from_string(data).map_err(|error| columns.corrupt("data", error))?,
    })
}

/// A document as it is stored.
pub(crate) fn document<T: serde::Serialize>(what: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt(what, error))
}
