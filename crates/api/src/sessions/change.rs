//! Forking and deleting a session.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::git::{BranchError, BranchName};
use caisson_domain::id::{ProjectId, SessionId};
use caisson_store::{self as store, Actor, DeleteSession, ForkSession, Idempotency, Store};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;

use super::SessionView;
use crate::auth::{Administrator, Writer};
use crate::extract::{Fields, JsonObject, NoParams, SessionPath, unknown_session};
use crate::inputs::Repeatable;
use crate::problem::{ApiError, Faults, Problem};
use crate::runs::{REPLAYED, trusted};
use crate::state::App;

const SANDBOX_LEFT: &str = "its sandbox is still being taken away; try again in a moment, or, if its server is away (`caisson servers`), \
     when that is back or counts as lost";
/// How long a session's sandbox may take to go before whoever deletes the session has to ask again: one that waited for another
/// run is told to end by that.
const SANDBOX_GOES: Duration = Duration::from_secs(5);
/// Between two looks whether it has gone, each of which is a transaction that others wait for.
const SANDBOX_LOOK: Duration = Duration::from_millis(250);

/// A fork to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFork {
    /// The branch that the fork's runs make and push; left out, `caisson/<workflow>/<short session id>`. Not one
    /// that a workflow trusts to steer agents, unless the session's own says `trust.publish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Fork a session
///
/// Makes a session that knows what was said in this one. Its first run begins with the files of the commit that this session has
/// pushed last, or has started from if it has pushed nothing, on a branch of its own; from then on neither sees the other. What lies
/// in the workspace alone is not in the fork; `fork.older` tells if its files and its conversation are not of the same run.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/fork", tag = "sessions", operation_id = "fork_session",
    request_body = NewFork,
    params(
        ("id" = String, Path, description = "The session's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; the same request again finds the same fork, for a day", pattern = "^[!-~]{1,255}$"),
    ),
    responses(
        (status = 201, description = "The new session", body = SessionView, headers(
            ("Location" = String, description = "The new session's path"),
            ("Idempotent-Replayed" = String, description = "`true` if the same request was served before"),
        )),
        (status = 400, description = "Not JSON, or a header that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such session", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "A run of it is queued or running, or it has no archived conversation, or no repository; or the same request made a fork that was deleted", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The project has 100 forks without a run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn fork_session(
    State(app): State<App>,
    Writer(caller): Writer,
    SessionPath(id): SessionPath,
    Repeatable(key): Repeatable,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    let branch = wanted_branch(fields)?;
    if let Some(branch) = &branch {
        check_branch(app.store(), &caller.project, &id, branch).await?;
    }
    let idempotency = key.map(|key| Idempotency { key, request_sha256: digest(&id, branch.as_ref()) });
    let new = store::NewFork { branch, idempotency };
    let forked = app.store().fork_session(&caller.project, &id, &new, Actor::Key(caller.key)).await?;
    let (session, replayed) = made(forked)?;
    if !replayed {
        tracing::info!(session.id = %session, "forked session {id} as {session}");
    }
    let fork = app.store().session(&caller.project, &session).await?.ok_or_else(gone)?;
    let view = SessionView::from(fork);
    let location = [(header::LOCATION, view.links.this.clone())];
    let replayed = replayed.then_some([(REPLAYED, "true")]);
    Ok((StatusCode::CREATED, location, replayed, Json(view)).into_response())
}

/// What tells one fork from another, and from a run.
fn digest(session: &SessionId, branch: Option<&BranchName>) -> String {
    let branch = branch.map_or("", BranchName::as_str);
    hex::encode(Sha256::digest(format!("fork {session} {branch}")))
}

/// The fork, and whether it was made before.
fn made(forked: ForkSession) -> Result<(SessionId, bool), ApiError> {
    Err(match forked {
        ForkSession::Forked { session } => return Ok((session, false)),
        ForkSession::Replayed { session } => return Ok((session, true)),
        ForkSession::Unknown => unknown_session(),
        ForkSession::Busy => busy("it can be forked"),
        ForkSession::NoConversation => conflict(
            "no_conversation",
            "no run of the session has archived a conversation, or its days are over; begin a new session",
        ),
        ForkSession::NoRepository => conflict(
            "fork_without_repository",
            "the session has no repository from which a fork could take its files; begin a new session",
        ),
        ForkSession::TooMany => ApiError::ForksFull,
        ForkSession::KeyReused => ApiError::KeyReused,
        ForkSession::Deleted => gone(),
        ForkSession::SameBranch => {
            let mut faults = Faults::default();
            faults.add("branch", "branch_taken", "the session's own runs work on it; name another branch");
            ApiError::InvalidFork(faults)
        }
    })
}

/// The fork that the request made is not there any more.
fn gone() -> ApiError {
    conflict(
        "session_deleted",
        "the same request made a fork, which was deleted since; use a new Idempotency-Key for a new fork",
    )
}

/// Refuses a branch that no run of the session's workflow, as it is now, may push to. A session that is not there is told of later.
async fn check_branch(
    store: &Store,
    project: &ProjectId,
    session: &SessionId,
    branch: &BranchName,
) -> Result<(), ApiError> {
    let Some(found) = store.go_on(project, session).await? else { return Ok(()) };
    let pinned = found.spec.workflow;
    let now = store.workflow(project, &pinned.name).await?.map_or(pinned, |stored| stored.workflow);
    let mut faults = Faults::default();
    trusted::check_branch(store, project, (&now, branch), &mut faults).await?;
    if faults.is_empty() { Ok(()) } else { Err(ApiError::InvalidFork(faults)) }
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
/// go within moments, where the server that has them is away as soon as it is back. Pushed branches are not touched. Needs the scope
/// `admin`, since it takes away what tells of the work of others.
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
    Administrator(caller): Administrator,
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
        DeleteSession::SandboxLeft => Err(conflict("session_busy", SANDBOX_LEFT)),
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
