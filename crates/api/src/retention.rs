//! `/v1/retention`: how long things of the caller's project are kept after the last run of a session has ended.

use axum::Json;
use axum::extract::State;
use caisson_domain::id::ProjectId;
use caisson_domain::retention::{Kept, ProjectRetention, RETENTION_DAYS};
use caisson_store::Actor;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::auth::{Administrator, Reader};
use crate::extract::{Fields, JsonObject, NoParams, whole_number};
use crate::problem::{ApiError, BoxError, Faults, Problem};
use crate::state::App;

/// How long things are kept, in days after the last run of their session has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetentionView {
    /// The project.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// What the project says; null: what the server's settings say; 0: for ever.
    pub own: SetRetention,
    /// What counts; null: for ever.
    pub effective: SetRetention,
}

/// Days that things are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetRetention {
    /// Events, but for those that tell of runs' beginnings, ends and pushes.
    #[schema(minimum = 0, maximum = 36_500, example = 90)]
    pub events_days: Option<i64>,
    /// Files kept for runs.
    #[schema(minimum = 0, maximum = 36_500, example = 90)]
    pub artifacts_days: Option<i64>,
    /// Workspaces and homes of sessions.
    #[schema(minimum = 0, maximum = 36_500, example = 14)]
    pub volumes_days: Option<i64>,
    /// Sessions with their runs, and everything of them. What was spent stays counted.
    #[schema(minimum = 0, maximum = 36_500, example = 0)]
    pub sessions_days: Option<i64>,
}

/// Get how long the project keeps things
///
/// Counted from the end of a session's last run; nothing of a session that lives is ever removed.
#[utoipa::path(
    get, path = "/v1/retention", tag = "retention", operation_id = "get_retention",
    responses((status = 200, description = "The days", body = RetentionView)),
)]
pub(crate) async fn get_retention(
    State(app): State<App>,
    Reader(caller): Reader,
    _: NoParams,
) -> Result<Json<RetentionView>, ApiError> {
    let own = app.store().retention(&caller.project).await?;
    view(&app, caller.project, own)
}

/// Set how long the project keeps things
///
/// What is left out stays as it is; null is what the server's settings say, 0 is for ever. What has expired by the new days
/// goes within minutes. Needs the scope `admin`.
#[utoipa::path(
    put, path = "/v1/retention", tag = "retention", operation_id = "set_retention",
    request_body = SetRetention,
    responses(
        (status = 200, description = "The days as they are now", body = RetentionView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn set_retention(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
    JsonObject(mut fields): JsonObject,
) -> Result<Json<RetentionView>, ApiError> {
    let mut faults = Faults::default();
    let mut changes = Vec::new();
    for (kept, name) in [
        (Kept::Events, "events_days"),
        (Kept::Artifacts, "artifacts_days"),
        (Kept::Volumes, "volumes_days"),
        (Kept::Sessions, "sessions_days"),
    ] {
        changes.extend(change((name, kept), &mut fields, &mut faults));
    }
    fields.finish(&mut faults);
    if !faults.is_empty() {
        return Err(ApiError::InvalidRetention(faults));
    }
    let own = app.store().set_retention(&caller.project, &changes, Actor::Key(caller.key)).await?;
    view(&app, caller.project, own)
}

/// Takes days: null or a number; nothing where the field is absent.
fn change(
    (name, kept): (&'static str, Kept),
    fields: &mut Fields,
    faults: &mut Faults,
) -> Option<(Kept, Option<i64>)> {
    let value = fields.take_value(name)?;
    if value == Value::Null {
        return Some((kept, None));
    }
    let days = whole_number(&value).filter(|days| RETENTION_DAYS.contains(days));
    if days.is_none() {
        let most = RETENTION_DAYS.end();
        faults.add(
            name,
            "out_of_range",
            format!("it is neither null nor a whole number from 0 to {most}, in days"),
        );
    }
    days.map(|days| (kept, Some(days)))
}

fn view(
    app: &App,
    project: ProjectId,
    own: Option<ProjectRetention>,
) -> Result<Json<RetentionView>, ApiError> {
    let missing = || ApiError::internal(BoxError::from("the project of an API key is missing"));
    let own = own.ok_or_else(missing)?;
    let effective = own.or(app.config().retention);
    let days = |kept| effective.days(kept);
    Ok(Json(RetentionView {
        project,
        own: SetRetention {
            events_days: own.events_days,
            artifacts_days: own.artifacts_days,
            volumes_days: own.volumes_days,
            sessions_days: own.sessions_days,
        },
        effective: SetRetention {
            events_days: days(Kept::Events),
            artifacts_days: days(Kept::Artifacts),
            volumes_days: days(Kept::Volumes),
            sessions_days: days(Kept::Sessions),
        },
    }))
}
