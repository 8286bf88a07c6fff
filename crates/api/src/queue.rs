//! `/v1/queue`: how many runs wait and run, servers that are drained, and each project's part. For keys of the default
//! project with the scope `admin`, since servers and their slots are everybody's.

use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::State;
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::principal::Principal;
use caisson_domain::queue::{CAP, ProjectShare, WEIGHT};
use caisson_store::{Actor, ChangeShare, QueueServer, QueueState};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::auth::{self, Administrator};
use crate::extract::{Fields, JsonObject, NamePath, NoParams, whole_number};
use crate::problem::{ApiError, Faults, Problem};
use crate::projects::ProjectView;
use crate::state::App;

/// The queue, over all projects and servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// Runs that wait, those whose start is put off among them.
    pub queued: i64,
    /// Those of them whose start is put off.
    pub delayed: i64,
    /// Runs that run.
    pub running: i64,
    /// Whether all servers are drained, those among them that come later.
    pub drained: bool,
    /// Since when, Unix ms.
    pub drained_at_ms: Option<i64>,
    /// The servers that live, have runs or are drained, at most 200.
    pub servers: Vec<QueueServerView>,
}

/// A server, as the queue sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueServerView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ServerId,
    /// Its last sign of life, Unix ms.
    pub seen_at_ms: i64,
    /// Whether that was within the last 30 s.
    pub alive: bool,
    /// Whether it claims nothing, because it is drained or all are.
    pub drained: bool,
    /// Since when it is drained by itself, Unix ms.
    pub drained_at_ms: Option<i64>,
    /// Runs that it has.
    pub running: i64,
}

/// Which server is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerChoice {
    /// The server's id; left out, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^srv_[0-9a-f]{32}$")]
    pub server: Option<String>,
}

/// A project's part of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShareView {
    /// How many runs of it start for one of a project of weight 1.
    pub weight: i64,
    /// Most runs of it that run at once; none: as the server's settings say.
    pub max_running: Option<i64>,
    /// Most runs of it that wait; none: as the server's settings say.
    pub max_queued: Option<i64>,
}

/// A project's part of the queue, to be set. What is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetShare {
    /// How many runs of it start for one of a project of weight 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64, minimum = 1, maximum = 1000, example = 3)]
    pub weight: Option<i64>,
    /// Most runs of it that run at once; null: as the server's settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 10_000)]
    pub max_running: Option<i64>,
    /// Most runs of it that wait; null: as the server's settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 10_000)]
    pub max_queued: Option<i64>,
}

impl From<ProjectShare> for ShareView {
    fn from(share: ProjectShare) -> Self {
        Self { weight: share.weight, max_running: share.max_running, max_queued: share.max_queued }
    }
}

impl From<QueueState> for QueueView {
    fn from(state: QueueState) -> Self {
        let drained: Vec<bool> = state.servers.iter().map(|server| state.is_drained(&server.id)).collect();
        let servers = state.servers.into_iter().zip(drained).map(|(server, drained)| {
            let QueueServer { id, seen_at_ms, alive, drained_at_ms, running } = server;
            QueueServerView { id, seen_at_ms, alive, drained, drained_at_ms, running }
        });
        Self {
            queued: state.queued,
            delayed: state.delayed,
            running: state.running,
            drained: state.drained_at_ms.is_some(),
            drained_at_ms: state.drained_at_ms,
            servers: servers.collect(),
        }
    }
}

/// Get the queue
///
/// How many runs wait and run, over all projects, and which servers claim none. Needs the scope `admin` of the default
/// project.
#[utoipa::path(
    get, path = "/v1/queue", tag = "queue", operation_id = "get_queue",
    responses((status = 200, description = "The queue", body = QueueView)),
)]
pub(crate) async fn get_queue(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
) -> Result<Json<QueueView>, ApiError> {
    for_operators(&app, &caller).await?;
    Ok(Json(app.store().queue_state().await?.into()))
}

/// Drain servers
///
/// A drained server keeps the runs that it has and takes no other, also after a restart, until it is resumed. Runs are
/// accepted and wait. Needs the scope `admin` of the default project.
#[utoipa::path(
    post, path = "/v1/queue/drain", tag = "queue", operation_id = "drain",
    request_body = ServerChoice,
    responses(
        (status = 200, description = "The queue as it is now", body = QueueView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such server", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn drain(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Json<QueueView>, ApiError> {
    for_operators(&app, &caller).await?;
    let server = chosen(fields)?;
    let known = app.store().drain(server.as_ref(), &Actor::Key(caller.key)).await?;
    tracing::info!(server.id = server.as_ref().map(ServerId::as_str), "drained {}", whom(server.as_ref()));
    now(&app, known).await
}

/// Resume servers
///
/// Undoes a drain. Without a server, of all servers, also those that were drained by themselves; a single server stays
/// drained as long as all are. Needs the scope `admin` of the default project.
#[utoipa::path(
    post, path = "/v1/queue/resume", tag = "queue", operation_id = "resume",
    request_body = ServerChoice,
    responses(
        (status = 200, description = "The queue as it is now", body = QueueView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such server", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn resume(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Json<QueueView>, ApiError> {
    for_operators(&app, &caller).await?;
    let server = chosen(fields)?;
    let known = app.store().resume(server.as_ref(), &Actor::Key(caller.key)).await?;
    tracing::info!(server.id = server.as_ref().map(ServerId::as_str), "resumed {}", whom(server.as_ref()));
    now(&app, known).await
}

/// Set a project's part of the queue
///
/// Its weight among the projects, and its own caps. They hold from the next start and the next request on. Needs the scope
/// `admin` of the default project.
#[utoipa::path(
    put, path = "/v1/projects/{name}/queue", tag = "queue", operation_id = "set_project_queue",
    params(("name" = String, Path, description = "The project")),
    request_body = SetShare,
    responses(
        (status = 200, description = "The project as it is now", body = ProjectView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such project", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn set_project_queue(
    State(app): State<App>,
    Administrator(caller): Administrator,
    NamePath(name): NamePath,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Json<ProjectView>, ApiError> {
    for_operators(&app, &caller).await?;
    let change = wanted(fields)?;
    let unknown = || ApiError::Unknown {
        code: "unknown_project",
        detail: "there is no such project; GET /v1/projects lists them".to_owned(),
    };
    let id: ProjectId = name.parse().map_err(|_| unknown())?;
    let project = app.store().change_share(&id, &change, Actor::Key(caller.key)).await?;
    project.map(|project| Json(project.into())).ok_or_else(unknown)
}

async fn for_operators(app: &App, caller: &Principal) -> Result<(), ApiError> {
    auth::require_default_project(app, caller, ApiError::OperatorsOnly).await
}

fn chosen(mut fields: Fields) -> Result<Option<ServerId>, ApiError> {
    let mut faults = Faults::default();
    let text: Option<String> = fields.take("server", &mut faults);
    let server = text.and_then(|text| {
        text.parse::<ServerId>().map_err(|error| faults.add("server", "invalid_id", error.to_string())).ok()
    });
    fields.finish(&mut faults);
    if faults.is_empty() { Ok(server) } else { Err(ApiError::InvalidQueue(faults)) }
}

fn whom(server: Option<&ServerId>) -> String {
    server.map_or_else(|| "all servers".to_owned(), |server| format!("server {server}"))
}

async fn now(app: &App, known: bool) -> Result<Json<QueueView>, ApiError> {
    if !known {
        let detail = "there is no such server; GET /v1/queue lists them".to_owned();
        return Err(ApiError::Unknown { code: "unknown_server", detail });
    }
    Ok(Json(app.store().queue_state().await?.into()))
}

fn wanted(mut fields: Fields) -> Result<ChangeShare, ApiError> {
    let mut faults = Faults::default();
    let weight = take("weight", &WEIGHT, &mut fields, &mut faults);
    if weight == Some(Choice(None)) {
        faults.add("weight", "wrong_type", "it cannot be null; leave it out, or give a number");
    }
    let change = ChangeShare {
        weight: weight.and_then(|weight| weight.0),
        max_running: take("max_running", &CAP, &mut fields, &mut faults).map(|cap| cap.0),
        max_queued: take("max_queued", &CAP, &mut fields, &mut faults).map(|cap| cap.0),
    };
    fields.finish(&mut faults);
    if faults.is_empty() { Ok(change) } else { Err(ApiError::InvalidQueue(faults)) }
}

/// A number that was given, or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice(Option<i64>);

/// Takes a number that may be absent, and may be null.
fn take(
    name: &'static str,
    range: &RangeInclusive<i64>,
    fields: &mut Fields,
    faults: &mut Faults,
) -> Option<Choice> {
    let value = fields.take_value(name)?;
    if matches!(value, Value::Null) {
        return Some(Choice(None));
    }
    let number = whole_number(&value).filter(|number| range.contains(number));
    if number.is_none() {
        let message = format!("it is not a whole number from {} to {}", range.start(), range.end());
        faults.add(name, "out_of_range", message);
    }
    number.map(|number| Choice(Some(number)))
}
