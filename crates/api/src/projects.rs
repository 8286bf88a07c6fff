//! `/v1/projects`: the tenants. Callers with the scope `admin` of the default project make and list them; those of any other
//! project see their own.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::id::ProjectId;
use caisson_domain::limits::PROJECTS;
use caisson_domain::principal::Scope;
use caisson_store::{Actor, CreateProject as Made, NewApiKey, Project};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::{self, Administrator};
use crate::extract::{Fields, JsonObject, NoParams, Params};
use crate::keys::NewKeyView;
use crate::listing::{PageQuery, encode};
use crate::problem::{ApiError, Faults, Problem};
use crate::queue::ShareView;
use crate::state::App;

/// Name of the first key of a project that is made over the API.
const FIRST_KEY: &str = "first";

/// A project: whose runs, sessions, keys, credentials, budgets and audit records are its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// Its name.
    #[schema(value_type = String)]
    pub id: ProjectId,
    /// Unix ms; 0 of the one that exists from the start.
    pub created_at_ms: i64,
    /// Its part of the queue.
    pub queue: ShareView,
}

/// A project that was just made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewProjectView {
    /// The project.
    #[serde(flatten)]
    pub project: ProjectView,
    /// Its first key, with the scope `admin`.
    pub key: NewKeyView,
}

/// A page of projects, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectPage {
    /// The projects.
    pub items: Vec<ProjectView>,
    /// Asks for the next page, as `cursor`; none on the last page.
    pub next_cursor: Option<String>,
}

/// A project to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// Its name: 1 to 63 lower-case letters, digits and hyphens, beginning with a letter or digit.
    #[schema(example = "team-a", min_length = 1, max_length = 63, pattern = r"^[a-z0-9][a-z0-9-]*$")]
    pub id: String,
}

impl From<Project> for ProjectView {
    fn from(project: Project) -> Self {
        Self { id: project.id, created_at_ms: project.created_at_ms, queue: project.share.into() }
    }
}

/// Make a project
///
/// With the server's workflows and a first key, which has the scope `admin` of it; the secret is in this answer alone. Needs
/// the scope `admin` of the default project, whose keys see nothing else of the new one.
#[utoipa::path(
    post, path = "/v1/projects", tag = "projects", operation_id = "create_project",
    request_body = CreateProject,
    responses(
        (status = 201, description = "The project with its first key", body = NewProjectView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "There is one of that name, or there are as many as there may be", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn create_project(
    State(app): State<App>,
    Administrator(caller): Administrator,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Response, ApiError> {
    auth::require_default_project(&app, &caller, ApiError::DefaultProjectOnly).await?;
    let id = wanted(fields)?;
    let first = NewApiKey {
        project: id.clone(),
        name: FIRST_KEY.to_owned(),
        scopes: vec![Scope::Admin],
        expires_at_ms: None,
        by: Actor::Key(caller.key),
    };
    let (made, first) = app.store().create_project_with_key(&first).await?;
    let project = match made {
        Made::Created(project) => project,
        Made::Exists => {
            let detail = format!("there is a project \"{id}\" already; choose another name");
            return Err(ApiError::Conflict { code: "project_exists", detail });
        }
        Made::Full => {
            let detail = format!("there are {PROJECTS} projects already, and more there may not be");
            return Err(ApiError::Conflict { code: "projects_full", detail });
        }
    };
    let (key, secret) = first.ok_or(ApiError::KeysFull)?;
    tracing::info!(project.id = %id, key.id = %key.id, "made the project {id}");
    let key = NewKeyView { key: key.into(), secret: secret.expose().to_owned() };
    let view = NewProjectView { project: project.into(), key };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

fn wanted(mut fields: Fields) -> Result<ProjectId, ApiError> {
    let mut faults = Faults::default();
    let text: Option<String> = fields.require("id", &mut faults);
    let id = text.and_then(|text| {
        text.parse::<ProjectId>().map_err(|error| faults.add("id", "invalid_name", error.to_string())).ok()
    });
    fields.finish(&mut faults);
    id.filter(|_| faults.is_empty()).ok_or(ApiError::InvalidProject(faults))
}

/// List projects
///
/// By name. A key of the default project lists all of them, any other its own. Needs the scope `admin`.
#[utoipa::path(
    get, path = "/v1/projects", tag = "projects", operation_id = "list_projects",
    params(
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
        ("limit" = Option<i64>, Query, description = "Items of the page, 50 if left out", minimum = 1, maximum = 200),
    ),
    responses(
        (status = 200, description = "A page", body = ProjectPage),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_projects(
    State(app): State<App>,
    Administrator(caller): Administrator,
    mut params: Params,
) -> Result<Json<ProjectPage>, ApiError> {
    let page = PageQuery::<ProjectId>::take(&mut params);
    params.finish()?;
    let found = if auth::is_of_the_default_project(&caller) {
        // One more than wanted tells whether there is a next page.
        app.store().list_projects(page.after.as_ref(), page.limit + 1).await?
    } else {
        let own = app.store().project(&caller.project).await?;
        own.into_iter()
            .filter(|own| page.after.as_ref().is_none_or(|after| own.id.as_str() > after.as_str()))
            .collect()
    };
    let more = found.len() > page.limit as usize;
    let items: Vec<ProjectView> =
        found.into_iter().take(page.limit as usize).map(ProjectView::from).collect();
    let next_cursor = items.last().filter(|_| more).map(|project| encode(project.id.as_str()));
    Ok(Json(ProjectPage { items, next_cursor }))
}
