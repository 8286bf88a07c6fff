//! Reports of usage: what the model calls of a time add up to, by day, model, workflow, session, run or project.
//!
//! The numbers are those of calls that are over, as the gateway counted them from the model API's replies.

use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::usage::{UsageBy, UsageTotals};

use crate::database::{Row, sql};
use crate::rows::Columns;
use crate::{Store, StoreError};

/// Which calls a report counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Of this project; none: of all.
    pub project: Option<ProjectId>,
    /// Begun at this time or later, Unix ms.
    pub from_ms: i64,
    /// Begun before this time, Unix ms.
    pub to_ms: i64,
    /// Of this run.
    pub run: Option<RunId>,
    /// Of this session.
    pub session: Option<SessionId>,
    /// Answered by this model.
    pub model: Option<String>,
    /// Of runs of this workflow.
    pub workflow: Option<String>,
}

/// What some calls add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageGroup {
    /// What they have in common: an id or a name, or the number of whole days since 1970-01-01 (UTC).
    pub key: String,
    /// Their sum.
    pub usage: UsageTotals,
}

/// Columns of the sums, over the calls that fit; `$part` is what the groups differ in.
macro_rules! sums {
    ($project:literal, $part:literal, $rest:literal) => {
        concat!(
            "select cast(part as text) as id, count(*) as calls, \
             cast(coalesce(sum(estimated), 0) as bigint) as estimated_calls, \
             cast(coalesce(sum(input_tokens), 0) as bigint) as input_tokens, \
             cast(coalesce(sum(output_tokens), 0) as bigint) as output_tokens, \
             cast(coalesce(sum(cache_read_tokens), 0) as bigint) as cache_read_tokens, \
             cast(coalesce(sum(cache_write_5m_tokens), 0) as bigint) as cache_write_5m_tokens, \
             cast(coalesce(sum(cache_write_1h_tokens), 0) as bigint) as cache_write_1h_tokens, \
             cast(coalesce(sum(cost_micro_usd), 0) as bigint) as cost_micro_usd \
             from (select ",
            $part,
            " as part, estimated, input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, \
             cache_write_1h_tokens, cost_micro_usd from usage where ",
            $project,
            " and begun_at_ms >= $2 and begun_at_ms < $3 and state = 'settled' and ($4 is null or run_id = $4) \
             and ($5 is null or session_id = $5) and ($6 is null or model = $6) \
             and ($7 is null or (select workflow from run where run.id = usage.run_id) = $7)) as call ",
            $rest
        )
    };
}

/// The texts of one grouping: for one project, and for all.
macro_rules! grouped {
    (newest $part:literal) => {
        grouped!($part, "where ($8 is null or part < $8) group by part order by part desc limit $9")
    };
    (named $part:literal) => {
        grouped!($part, "where ($8 is null or part > $8) group by part order by part limit $9")
    };
    ($part:literal, $rest:literal) => {
        [
            sums!("project_id = $1", $part, $rest),
            sums!("$1 is null and project_id in (select id from project)", $part, $rest),
        ]
    };
}

pub(crate) const BY_DAY: [&str; 2] = grouped!(newest "begun_at_ms / 86400000");
pub(crate) const BY_MODEL: [&str; 2] = grouped!(named "model");
pub(crate) const BY_WORKFLOW: [&str; 2] =
    grouped!(named "(select workflow from run where run.id = usage.run_id)");
// An expression, so that no index on the column looks like a way to the order: it has the calls of all times and projects.
pub(crate) const BY_SESSION: [&str; 2] = grouped!(newest "session_id || ''");
pub(crate) const BY_RUN: [&str; 2] = grouped!(newest "run_id || ''");
pub(crate) const BY_PROJECT: [&str; 2] = grouped!(named "project_id");
/// All of them together; the one row has no part.
pub(crate) const TOTAL: [&str; 2] = [
    sums!("project_id = $1", "1", "group by part"),
    sums!("$1 is null and project_id in (select id from project)", "1", "group by part"),
];

fn text(texts: [&'static str; 2], filter: &UsageFilter) -> &'static str {
    let [of_one, of_all] = texts;
    if filter.project.is_some() { of_one } else { of_all }
}

impl Store {
    /// What the calls that fit add up to, in groups: days, sessions and runs newest first, names in their order, beginning
    /// behind the key `after`. At most one more than [`PAGE_ITEMS`] groups, whatever `limit` says. A day's key that is no
    /// number is before all.
    ///
    /// Calls under way are counted when they are over; those of sessions that retention has removed are not counted.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn usage_groups(
        &self,
        filter: &UsageFilter,
        by: UsageBy,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageGroup>, StoreError> {
        let texts = match by {
            UsageBy::Day => BY_DAY,
            UsageBy::Model => BY_MODEL,
            UsageBy::Workflow => BY_WORKFLOW,
            UsageBy::Session => BY_SESSION,
            UsageBy::Run => BY_RUN,
            UsageBy::Project => BY_PROJECT,
        };
        let query = bound(text(texts, filter), filter);
        let query = if by == UsageBy::Day {
            query.bind(after.map(|day| day.parse().unwrap_or(i64::MIN)))
        } else {
            query.bind(after)
        };
        let rows = query.bind(limit.min(PAGE_ITEMS + 1)).fetch_all(self.lists()).await?;
        rows.iter().map(group).collect()
    }

    /// What all calls that fit add up to, counted as by [`Store::usage_groups`].
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn usage_total(&self, filter: &UsageFilter) -> Result<UsageTotals, StoreError> {
        let row = bound(text(TOTAL, filter), filter).fetch_optional(self.lists()).await?;
        Ok(row.as_ref().map(group).transpose()?.map(|all| all.usage).unwrap_or_default())
    }
}

fn bound<'q>(text: &'static str, filter: &'q UsageFilter) -> sql::Query<'q> {
    sql::query(text)
        .planned_for_its_values()
        .bind(filter.project.as_ref().map(ProjectId::as_str))
        .bind(filter.from_ms)
        .bind(filter.to_ms)
        .bind(filter.run.as_ref().map(RunId::as_str))
        .bind(filter.session.as_ref().map(SessionId::as_str))
        .bind(filter.model.as_deref())
        .bind(filter.workflow.as_deref())
}

fn group(row: &Row) -> Result<UsageGroup, StoreError> {
    let columns = Columns::of("usage", row)?;
    Ok(UsageGroup { key: columns.get::<&str>("id")?.to_owned(), usage: columns.usage()? })
}
