//! `/v1/sessions`: list, get, fork and delete.

pub(crate) mod change;

use axum::Json;
use axum::extract::State;
use caisson_domain::fork::Older;
use caisson_domain::id::{ProjectId, RunId, SessionId};
use caisson_domain::run::RunStatus;
use caisson_store::{ForkOf, Session};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Reader;
use crate::extract::{NoParams, Params, SessionPath, unknown_session};
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Problem};
use crate::runs::UsageView;
use crate::state::App;

/// A conversation plus its workspace; its runs come one after another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: SessionId,
    /// The project it belongs to.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// The workflow its runs follow.
    pub workflow: String,
    /// The repository its workspace holds.
    pub repository: Option<String>,
    /// The branch its runs work on.
    pub branch: Option<String>,
    /// Of a fork, the session that it comes from, which may be gone.
    #[schema(value_type = Option<String>)]
    pub forked_from: Option<SessionId>,
    /// Of a fork, what it began with.
    pub fork: Option<ForkView>,
    /// Whether nothing is kept of it that another run could go on with: neither workspace nor conversation.
    pub expired: bool,
    /// How many runs it has.
    pub runs: i64,
    /// Its newest run.
    #[schema(value_type = Option<String>)]
    pub last_run: Option<RunId>,
    /// Where its newest run stands.
    #[schema(value_type = Option<crate::schema::RunStatus>)]
    pub last_status: Option<RunStatus>,
    /// Tokens and cost of all its runs.
    pub usage: UsageView,
    /// Unix ms.
    pub created_at_ms: i64,
    /// Time of its last event, Unix ms.
    pub updated_at_ms: i64,
    /// Where to go from here.
    pub links: SessionLinks,
}

/// What a fork began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkView {
    /// The commit that its files come from: the one that the other session had pushed last, or else had started from. None: its
    /// base's last, when its first run starts.
    pub commit: Option<String>,
    /// What of it is older than the other: the conversation, which does not know of all that is in the files, or the files, which
    /// do not have all that the conversation tells of. None: they are of one run.
    #[schema(value_type = Option<crate::schema::Older>)]
    pub older: Option<Older>,
}

/// Paths of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionLinks {
    /// The session.
    #[serde(rename = "self")]
    pub this: String,
    /// Its events.
    pub events: String,
    /// Its runs.
    pub runs: String,
}

/// A page of sessions, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionPage {
    /// The sessions.
    pub items: Vec<SessionView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        let this = format!("/v1/sessions/{}", session.id);
        let links = SessionLinks {
            events: format!("{this}/events"),
            runs: format!("/v1/runs?session={}", session.id),
            this,
        };
        Self {
            id: session.id,
            project: session.project,
            workflow: session.workflow,
            repository: session.repository.map(|repository| repository.to_string()),
            branch: session.branch.map(String::from),
            forked_from: session.forked_from,
            fork: session.fork.map(|ForkOf { commit, older }| ForkView { commit, older }),
            expired: session.expired,
            runs: session.runs,
            last_run: session.last_run,
            last_status: session.last_status,
            usage: session.usage.into(),
            created_at_ms: session.created_at_ms,
            updated_at_ms: session.updated_at_ms,
            links,
        }
    }
}

/// List sessions
///
/// The project's sessions, newest first.
#[utoipa::path(
    get, path = "/v1/sessions", tag = "sessions", operation_id = "list_sessions",
    params(
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = SessionPage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_sessions(
    State(app): State<App>,
    Reader(caller): Reader,
    mut params: Params,
) -> Result<Json<SessionPage>, ApiError> {
    let page = PageQuery::<SessionId>::take(&mut params);
    params.finish()?;
    // One more than wanted tells whether there is a next page.
    let found = app.store().list_sessions(&caller.project, page.after.as_ref(), page.limit + 1).await?;
    let more = found.len() > page.limit as usize;
    let items: Vec<SessionView> =
        found.into_iter().take(page.limit as usize).map(SessionView::from).collect();
    let next_cursor = items.last().filter(|_| more).map(|session| encode(session.id.as_str()));
    Ok(Json(SessionPage { items, next_cursor }))
}

/// Get a session
#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions", operation_id = "get_session",
    params(("id" = String, Path, description = "The session's id")),
    responses(
        (status = 200, description = "The session", body = SessionView),
        (status = 404, description = "The project has no such session", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_session(
    State(app): State<App>,
    Reader(caller): Reader,
    SessionPath(id): SessionPath,
    _: NoParams,
) -> Result<Json<SessionView>, ApiError> {
    let session = app.store().session(&caller.project, &id).await?.ok_or_else(unknown_session)?;
    Ok(Json(session.into()))
}
