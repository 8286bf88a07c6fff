//! `/v1/runs`: create, list, get, cancel, diff and artifacts.

mod artifacts;
mod checks;
mod create;
mod follow;
mod queueing;
mod request;
pub(crate) mod trusted;
mod validate;
mod view;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::principal::Principal;
use caisson_domain::run::RunStatus;
use caisson_store::{CancelRun, RunFilter};
use http::{HeaderMap, StatusCode, header};

use crate::attachments::AttachedObject;
use crate::auth::{Reader, Writer};
use crate::extract::{NoParams, Params, RunPath, unknown_run};
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Problem};
use crate::state::App;

pub(crate) use artifacts::*;
pub use checks::CheckView;
pub(crate) use create::{
    Accepted, Origin, REPLAYED, accept, check_placeable, create, idempotency_key, sound_servers,
};
pub use queueing::{HeldByView, QueueEstimateView};
pub use request::{CreateRun, CreateRunResources, RepositoryChoice};
pub use view::{
    ArtifactList, ArtifactView, CredentialUseView, FailureView, ResourcesView, RunLinks, RunPage, RunView,
    UsageView,
};
pub(crate) use view::{Detail, LISTED_TEXT_BYTES};

/// Create a run
///
/// Validates everything that can be validated now and reports all faults together. The run is queued: follow its
/// events. Repeating the request with the same `Idempotency-Key` within 24 hours finds the same run.
#[utoipa::path(
    post, path = "/v1/runs", tag = "runs", operation_id = "create_run",
    request_body = CreateRun,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters", pattern = "^[!-~]{1,255}$")),
    responses(
        (status = 202, description = "Accepted", body = RunView, headers(
            ("Location" = String, description = "The run's path"),
            ("Idempotent-Replayed" = String, description = "`true` if the run was accepted before"),
        )),
        (status = 400, description = "Not JSON, or a header that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The session was deleted meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The same request made a run, which was deleted with its session; or the project keeps as many bytes of attachments as it may", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 21 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full, or the project's part of it, or as many bodies of more than 4 MiB are being dealt with as may be; see Retry-After", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn create_run(
    State(app): State<App>,
    Writer(caller): Writer,
    headers: HeaderMap,
    _: NoParams,
    AttachedObject { fields, place: _held }: AttachedObject,
) -> Result<Response, ApiError> {
    let key = idempotency_key(&headers)?;
    let accepted = create(&app, caller, fields, key).await?;
    let run = RunView::new(accepted.run, Detail::Full);
    let location = [(header::LOCATION, run.links.this.clone())];
    let replayed = accepted.replayed.then_some([(REPLAYED, "true")]);
    Ok((StatusCode::ACCEPTED, location, replayed, Json(run)).into_response())
}

/// List runs
///
/// The project's runs, newest first. Long texts are cut; get the run for all of it.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs", operation_id = "list_runs",
    params(
        ("status" = Option<crate::schema::RunStatus>, Query, description = "Only runs that stand there"),
        ("workflow" = Option<String>, Query, description = "Only runs of that workflow"),
        ("session" = Option<String>, Query, description = "Only runs of that session", pattern = "^ses_[0-9a-f]{32}$"),
        ("repository" = Option<String>, Query, description = "Only runs on that repository, spelled as the run shows it"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = RunPage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_runs(
    State(app): State<App>,
    Reader(caller): Reader,
    mut params: Params,
) -> Result<Json<RunPage>, ApiError> {
    let filter = RunFilter {
        status: params.take::<RunStatus>("status"),
        workflow: params.take("workflow"),
        session: params.take("session"),
        repository: params.take("repository"),
    };
    let page = PageQuery::take(&mut params);
    params.finish()?;
    read_page(&app, &caller, &filter, page).await.map(Json)
}

/// Reads one page; each run is made small before the next is read.
async fn read_page(
    app: &App,
    caller: &Principal,
    filter: &RunFilter,
    page: PageQuery<caisson_domain::id::RunId>,
) -> Result<RunPage, ApiError> {
    let mut items: Vec<RunView> = Vec::new();
    // One more than wanted tells whether there is a next page.
    let part = (page.after.as_ref(), page.limit + 1);
    let add = |run| items.push(RunView::new(run, Detail::Listed));
    app.store().each_run(&caller.project, filter, part, add).await?;
    let more = items.len() > page.limit as usize;
    items.truncate(page.limit as usize);
    let next_cursor = items.last().filter(|_| more).map(|run| encode(run.id.as_str()));
    Ok(RunPage { items, next_cursor })
}

/// Get a run
#[utoipa::path(
    get, path = "/v1/runs/{id}", tag = "runs", operation_id = "get_run",
    params(("id" = String, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The run", body = RunView),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_run(
    State(app): State<App>,
    Reader(caller): Reader,
    RunPath(id): RunPath,
    _: NoParams,
) -> Result<Json<RunView>, ApiError> {
    let found = app.store().run_and_credentials_used(&caller.project, &id).await?;
    let (run, uses) = found.ok_or_else(unknown_run)?;
    let (place, held) = if run.status == RunStatus::Queued {
        let place = async { Ok(app.store().queue_place(&caller.project, &run.id).await?) };
        tokio::try_join!(place, queueing::held_by(app.store(), &run.session))?
    } else {
        (None, Vec::new())
    };
    let view = RunView::new(run, Detail::Full).with_credential_uses(uses).with_queue_place(place);
    Ok(Json(RunView { held_by: held, ..view }))
}

/// Cancel a run
///
/// A queued run is cancelled at once; a running one is told to stop and saves its work first. Asking again changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/runs/{id}/cancel", tag = "runs", operation_id = "cancel_run",
    params(("id" = String, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The run had ended before", body = RunView),
        (status = 202, description = "The run is cancelled, or told to stop", body = RunView),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn cancel_run(
    State(app): State<App>,
    Writer(caller): Writer,
    RunPath(id): RunPath,
    _: NoParams,
) -> Result<Response, ApiError> {
    let (status, run) = match app.store().request_cancel(&caller.project, &id, Some(&caller.key)).await? {
        CancelRun::Unknown => return Err(unknown_run()),
        CancelRun::Final(run) => (StatusCode::OK, run),
        CancelRun::Cancelled(run) | CancelRun::Requested(run) => (StatusCode::ACCEPTED, run),
    };
    Ok((status, Json(RunView::new(run, Detail::Full))).into_response())
}
