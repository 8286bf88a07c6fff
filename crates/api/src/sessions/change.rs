//! Forking and deleting a session.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::git::{BranchError, BranchName};
use caisson_store::{Actor, DeleteSession, ForkSession};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;

use super::SessionView;
use crate::auth::Writer;
use crate::extract::{Fields, JsonObject, NoParams, SessionPath, unknown_session};
use crate::problem::{ApiError, Faults, Problem};
use crate::state::App;

/// How long a session's sandbox may take to go before whoever deletes the session has to ask again: one that waited for another
/// run is told to end by that.
const SANDBOX_GOES: Duration = Duration::from_secs(5);
/// Between two looks whether it has gone.
const SANDBOX_LOOK: Duration = Duration::from_millis(50);

/// A fork to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFork {
    /// The branch that the fork's runs make and push; left out, `caisson/<workflow>/<short session id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Fork a session
///
/// Makes a session that knows what was said in this one. Its first run begins with the files of the branch that this session has
/// pushed, or of its base if it has pushed nothing, on a branch of its own; from then on neither sees the other. What lies in the
/// workspace alone is not in the fork.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/fork", tag = "sessions", operation_id = "fork_session",
    request_body = NewFork,
    params(("id" = String, Path, description = "The session's id")),
    responses(
        (status = 201, description = "The new session", body = SessionView, headers(
            ("Location" = String, description = "The new session's path"),
        )),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such session", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "A run of it is queued or running, or it has no archived conversation, or no repository", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The project has 100 forks without a run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn fork_session(
    State(app): State<App>,
    Writer(caller): Writer,
    SessionPath(id): SessionPath,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let branch = wanted_branch(fields)?;
    let by = Actor::Key(caller.key);
    let forked = app.store().fork_session(&caller.project, &id, branch.as_ref(), by).await?;
    let session = match forked {
        ForkSession::Forked { session } => session,
        ForkSession::Unknown => return Err(unknown_session()),
        ForkSession::Busy => return Err(busy("it can be forked")),
        ForkSession::NoConversation => {
            return Err(conflict(
                "no_conversation",
                "no run of the session has archived a conversation, or its days are over; begin a new session",
            ));
        }
        ForkSession::NoRepository => {
            return Err(conflict(
                "fork_without_repository",
                "the session has no repository from which a fork could take its files; begin a new session",
            ));
        }
        ForkSession::TooMany => return Err(ApiError::ForksFull),
        ForkSession::SameBranch => {
            let mut faults = Faults::default();
            faults.add("branch", "branch_taken", "the session's own runs work on it; name another branch");
            return Err(ApiError::InvalidFork(faults));
        }
    };
    tracing::info!(session.id = %session, "forked session {id} as {session}");
    let made = app.store().session(&caller.project, &session).await?.ok_or_else(unknown_session)?;
    let view = SessionView::from(made);
    let location = [(header::LOCATION, view.links.this.clone())];
    Ok((StatusCode::CREATED, location, Json(view)).into_response())
}

fn wanted_branch(mut fields: Fields) -> Result<Option<BranchName>, ApiError> {
    let mut faults = Faults::default();
    let named: Option<String> = fields.take("branch", &mut faults);
    fields.finish(&mut faults);
    let branch = named.map(|named| named.parse()).transpose().unwrap_or_else(|error: BranchError| {
        faults.add("branch", "branch_invalid", error.to_string());
        None
    });
    if faults.is_empty() { Ok(branch) } else { Err(ApiError::InvalidFork(faults)) }
}

/// Delete a session
///
/// With its runs, their events and artifacts, its workspace and its conversation; what was spent and the audit log stay. Its files
/// go within moments, where the server that has them is away as soon as it is back. Pushed branches are not touched.
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", tag = "sessions", operation_id = "delete_session",
    params(("id" = String, Path, description = "The session's id")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "The project has no such session", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "A run of it is queued or running, or its sandbox is still being taken away", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn delete_session(
    State(app): State<App>,
    Writer(caller): Writer,
    SessionPath(id): SessionPath,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    let by = Actor::Key(caller.key);
    let until = Instant::now() + SANDBOX_GOES;
    let deleted = loop {
        match app.store().delete_session_of(&caller.project, &id, by.clone()).await? {
            DeleteSession::SandboxLeft if Instant::now() < until => sleep(SANDBOX_LOOK).await,
            deleted @ (DeleteSession::Unknown
            | DeleteSession::Busy
            | DeleteSession::SandboxLeft
            | DeleteSession::Deleted) => break deleted,
        }
    };
    match deleted {
        DeleteSession::Unknown => Err(unknown_session()),
        DeleteSession::Busy => Err(busy("it can be deleted")),
        DeleteSession::SandboxLeft => {
            Err(conflict("session_busy", "its sandbox is still being taken away; try again in a moment"))
        }
        DeleteSession::Deleted => {
            tracing::info!(session.id = %id, "deleted session {id}");
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

fn busy(what: &str) -> ApiError {
    let detail =
        format!("a run of the session is queued or running; cancel it or wait for its end, then {what}");
    conflict("session_busy", detail)
}

fn conflict(code: &'static str, detail: impl Into<String>) -> ApiError {
    ApiError::Conflict { code, detail: detail.into() }
}
