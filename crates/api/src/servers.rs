//! `/v1/servers`: the servers that share the database, for whoever runs them.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use caisson_domain::id::ServerId;
use caisson_domain::server::{PlacementProblem, ServerPart, ServerStatus};
use caisson_store::{Actor, ForgetServer};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::{self, Administrator};
use crate::extract::{NoParams, Params, path_param};
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Problem};
use crate::state::App;

/// A server: one state directory and the engine beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ServerId,
    /// `live`; `away`, when it is silent and its runs wait for it; `lost`, when it has been silent for so long that they
    /// are written off.
    #[schema(example = "live")]
    pub state: String,
    /// Its last sign of life, by the database's clock: its worker's if it has one. Unix ms.
    pub seen_at_ms: i64,
    /// What it does, each part with its own signs of life.
    pub parts: Vec<ServerPartView>,
    /// Runs that its worker has in hand at most; null without a worker.
    pub slots: Option<i64>,
    /// Runs that it has in hand.
    pub runs: i64,
    /// Its sandboxes that are not destroyed.
    pub sandboxes: i64,
    /// What keeps it from placing runs; empty when nothing does.
    pub problems: Vec<ServerProblemView>,
}

/// A part of a server, which may be a process of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerPartView {
    /// `api`, `worker` or `gateway`.
    #[schema(example = "worker")]
    pub role: String,
    /// Its last sign of life, Unix ms.
    pub seen_at_ms: i64,
    /// Caisson's version.
    pub version: String,
}

/// Something that keeps a server from placing runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerProblemView {
    /// The class.
    #[schema(example = "engine_unavailable")]
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// A page of servers, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerPage {
    /// The servers.
    pub items: Vec<ServerView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

impl From<ServerStatus> for ServerView {
    fn from(server: ServerStatus) -> Self {
        Self {
            id: server.id,
            state: server.state.to_string(),
            seen_at_ms: server.seen_at_ms,
            parts: server.parts.into_iter().map(ServerPartView::from).collect(),
            slots: server.slots,
            runs: server.runs,
            sandboxes: server.sandboxes,
            problems: server.problems.into_iter().map(ServerProblemView::from).collect(),
        }
    }
}

impl From<ServerPart> for ServerPartView {
    fn from(part: ServerPart) -> Self {
        Self { role: part.role.to_string(), seen_at_ms: part.seen_at_ms, version: part.version }
    }
}

impl From<PlacementProblem> for ServerProblemView {
    fn from(problem: PlacementProblem) -> Self {
        Self { code: problem.code.to_string(), message: problem.message }
    }
}

/// List servers
///
/// All that ever used the database and are not forgotten, oldest first, with what each does and has in hand. Needs the scope `admin` of the
/// default project.
#[utoipa::path(
    get, path = "/v1/servers", tag = "servers", operation_id = "list_servers",
    params(
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = ServerPage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_servers(
    State(app): State<App>,
    Administrator(caller): Administrator,
    mut params: Params,
) -> Result<Json<ServerPage>, ApiError> {
    let page = PageQuery::<ServerId>::take(&mut params);
    params.finish()?;
    auth::require_default_project(&app, &caller, ApiError::ServersOfDefaultProject).await?;
    // One more than wanted tells whether there is a next page.
    let found = app.store().list_servers(page.after.as_ref(), page.limit + 1).await?;
    let more = found.len() > page.limit as usize;
    let items: Vec<ServerView> = found.into_iter().take(page.limit as usize).map(ServerView::from).collect();
    let next_cursor = items.last().filter(|_| more).map(|server| encode(server.id.as_str()));
    Ok(Json(ServerPage { items, next_cursor }))
}

/// The server that the path names.
pub(crate) struct ServerPath(ServerId);

impl FromRequestParts<App> for ServerPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "id").await;
        id.and_then(|id| id.parse().ok()).map(Self).ok_or_else(unknown_server)
    }
}

fn unknown_server() -> ApiError {
    let detail = "there is no such server; GET /v1/servers lists them".to_owned();
    ApiError::Unknown { code: "unknown_server", detail }
}

/// Forget a server
///
/// A lost server that has no runs is listed no more, until it is heard of again. Its sandboxes count as destroyed and its files as
/// gone, so that its sessions can expire. Its runs and records stay.
/// Needs the scope `admin` of the default project.
#[utoipa::path(
    delete, path = "/v1/servers/{id}", tag = "servers", operation_id = "forget_server",
    params(("id" = String, Path, description = "The server's id")),
    responses(
        (status = 204, description = "It is forgotten"),
        (status = 404, description = "There is no such server", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not lost, or has running runs", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn forget_server(
    State(app): State<App>,
    Administrator(caller): Administrator,
    ServerPath(id): ServerPath,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    auth::require_default_project(&app, &caller, ApiError::ServersOfDefaultProject).await?;
    match app.store().forget_server(&id, Actor::Key(caller.key)).await? {
        ForgetServer::Forgotten => Ok(StatusCode::NO_CONTENT),
        ForgetServer::Unknown => Err(unknown_server()),
        ForgetServer::InUse { runs } => {
            let detail = format!(
                "server {id} has {runs} running runs; they are written off by a server that has been heard of for as long as this \
                 one was silent"
            );
            Err(ApiError::Conflict { code: "server_in_use", detail })
        }
        ForgetServer::NotLost => {
            let detail = format!("server {id} was heard of lately; only a lost server can be forgotten");
            Err(ApiError::Conflict { code: "server_not_lost", detail })
        }
    }
}
