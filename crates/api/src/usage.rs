//! `/v1/usage`: what model calls add up to, for bills and charts.

use std::convert::Infallible;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use caisson_domain::budget::{DAY_MS, date_of};
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::principal::{Principal, Scope};
use caisson_domain::usage::{USAGE_REPORT_DAYS, USAGE_REPORT_DAYS_DEFAULT, UsageBy};
use caisson_store::{UsageFilter, UsageGroup};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::{self, Reader};
use crate::extract::Params;
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Problem};
use crate::runs::UsageView;
use crate::state::App;

/// Names all projects.
const ALL_PROJECTS: &str = "*";
/// Last time that can be named, Unix ms: the end of the year 9999.
const TIME_MS_MAX: i64 = 253_402_300_799_999;
/// Begins every cursor of this list.
const CURSOR: &str = "use_";

/// What the model calls of a time add up to. Those under way are counted when they are over; those of sessions that retention
/// has removed are counted no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageReportView {
    /// What they are added up by: `day`, `model`, `workflow`, `session`, `run` or `project`.
    #[schema(value_type = String, example = "day")]
    pub by: UsageBy,
    /// The project; none: all.
    #[schema(value_type = Option<String>)]
    pub project: Option<ProjectId>,
    /// Calls begun at this time or later are counted, Unix ms.
    pub from_ms: i64,
    /// Calls begun before this time are counted, Unix ms.
    pub to_ms: i64,
    /// All groups together, those of other pages among them.
    pub total: UsageView,
    /// The groups: days, sessions and runs newest first, names in their order.
    pub items: Vec<UsageGroupView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

/// What the calls of one day, model, workflow, session, run or project add up to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageGroupView {
    /// The day (UTC) such as `2026-01-31`, or the id or name.
    #[schema(example = "2026-01-31")]
    pub key: String,
    /// Their sum.
    pub usage: UsageView,
}

/// Where a page goes on.
struct Cursor {
    by: String,
    key: String,
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.strip_prefix(CURSOR).and_then(|rest| rest.split_once(':'));
        let (by, key) = parts.ok_or("it is no cursor of a report")?;
        Ok(Self { by: by.to_owned(), key: key.to_owned() })
    }
}

/// Whose usage is asked for.
enum Whose {
    Project(String),
    All,
}

impl FromStr for Whose {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == ALL_PROJECTS { Self::All } else { Self::Project(text.to_owned()) })
    }
}

/// Add up usage
///
/// Tokens and cost of the model calls that began in a time, as the gateway counted them from the model API's own replies, in
/// groups. A key sees its own project; one of the default project with the scope `admin` sees any, and all together.
///
/// Whoever reads several pages names `from_ms` and `to_ms`, as the first page tells them: else the time moves between two pages.
#[utoipa::path(
    get, path = "/v1/usage", tag = "usage", operation_id = "report_usage",
    params(
        ("by" = Option<String>, Query, description = "What is added up by: `day` (if left out), `model`, `workflow`, `session`, `run` or `project`", pattern = "^(day|model|workflow|session|run|project)$"),
        ("from_ms" = Option<i64>, Query, description = "Count calls begun at this time or later, Unix ms; 30 days before `to_ms` if left out", minimum = 0, maximum = 253_402_300_799_999_i64),
        ("to_ms" = Option<i64>, Query, description = "Count calls begun before this time, Unix ms; now if left out. At most 366 days behind `from_ms`", minimum = 0, maximum = 253_402_300_799_999_i64),
        ("project" = Option<String>, Query, description = "The project, or `*` for all; the key's own if left out"),
        ("run" = Option<String>, Query, description = "Only calls of that run", pattern = "^run_[0-9a-f]{32}$"),
        ("session" = Option<String>, Query, description = "Only calls of that session", pattern = "^ses_[0-9a-f]{32}$"),
        ("workflow" = Option<String>, Query, description = "Only calls of runs of that workflow"),
        ("model" = Option<String>, Query, description = "Only calls that this model answered"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before, with the same `by`"),
        ("limit" = Option<i64>, Query, description = "Groups of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = UsageReportView),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn report_usage(
    State(app): State<App>,
    Reader(caller): Reader,
    mut params: Params,
) -> Result<Json<UsageReportView>, ApiError> {
    let by = params.take("by").unwrap_or(UsageBy::Day);
    let whose = params.take::<Whose>("project");
    let (from_ms, to_ms) = time(&mut params, app.store().now_ms());
    let mut filter = UsageFilter {
        project: None,
        from_ms,
        to_ms,
        run: params.take::<RunId>("run"),
        session: params.take::<SessionId>("session"),
        model: params.take("model"),
        workflow: params.take("workflow"),
    };
    let page = PageQuery::<Cursor>::take(&mut params);
    if page.after.as_ref().is_some_and(|cursor| cursor.by != by.as_str()) {
        params.fault("cursor", "it is the next_cursor of a report by something else");
    }
    params.finish()?;
    filter.project = project(&app, &caller, whose).await?;
    let after = page.after.as_ref().map(|cursor| cursor.key.as_str());
    // One more than wanted tells whether there is a next page.
    let found = app.store().usage_groups(&filter, by, after, page.limit + 1).await?;
    let more = found.len() > page.limit as usize;
    let found = &found[..found.len().min(page.limit as usize)];
    let next = found.last().filter(|_| more).map(|last| encode(&format!("{CURSOR}{by}:{}", last.key)));
    let total = app.store().usage_total(&filter).await?.into();
    let items = found.iter().map(|group| view(by, group)).collect();
    let UsageFilter { project, from_ms, to_ms, .. } = filter;
    Ok(Json(UsageReportView { by, project, from_ms, to_ms, total, items, next_cursor: next }))
}

/// Takes the time that is reported of.
fn time(params: &mut Params, now_ms: i64) -> (i64, i64) {
    let from_ms = params.take_in("from_ms", 0..=TIME_MS_MAX);
    // A call that begins within this millisecond is counted.
    let to_ms = params.take_in("to_ms", 0..=TIME_MS_MAX).unwrap_or(now_ms + 1);
    let from_ms = from_ms.unwrap_or_else(|| (to_ms - USAGE_REPORT_DAYS_DEFAULT * DAY_MS).max(0));
    if from_ms > to_ms {
        params.fault("from_ms", "it is behind to_ms");
    } else if to_ms - from_ms > USAGE_REPORT_DAYS * DAY_MS {
        params.fault(
            "from_ms",
            format!("it is more than {USAGE_REPORT_DAYS} days before to_ms; ask for a shorter time"),
        );
    }
    (from_ms, to_ms)
}

/// The project that is reported of, if the caller may see it; none: all.
async fn project(app: &App, caller: &Principal, whose: Option<Whose>) -> Result<Option<ProjectId>, ApiError> {
    let name = match whose {
        None => return Ok(Some(caller.project.clone())),
        Some(Whose::Project(name)) if name == caller.project.as_str() => {
            return Ok(Some(caller.project.clone()));
        }
        Some(Whose::Project(name)) => Some(name),
        Some(Whose::All) => None,
    };
    auth::require_default_project(app, caller, ApiError::UsageOfOthers).await?;
    auth::require(app, caller, Scope::Admin).await?;
    let Some(name) = name else { return Ok(None) };
    let unknown = || ApiError::Unknown {
        code: "unknown_project",
        detail: "there is no such project; GET /v1/projects lists them".to_owned(),
    };
    let id: ProjectId = name.parse().map_err(|_| unknown())?;
    app.store().project(&id).await?.map(|project| Some(project.id)).ok_or_else(unknown)
}

fn view(by: UsageBy, group: &UsageGroup) -> UsageGroupView {
    let key = match group.key.parse() {
        Ok(day) if by == UsageBy::Day => {
            let (year, month, day) = date_of(day);
            format!("{year:04}-{month:02}-{day:02}")
        }
        Ok(_) | Err(_) => group.key.clone(),
    };
    UsageGroupView { key, usage: group.usage.into() }
}
