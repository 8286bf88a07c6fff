//! `/v1/workflows`: put, remove, validate. A workflow comes as the text of its file, so that what a repository holds, what `caisson`
//! reads and what the API takes are one.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use caisson_domain::workflow::Workflow;
use caisson_store::{Actor, PutWorkflow, RemoveWorkflow, StoredWorkflow};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::WorkflowView;
use crate::auth::WorkflowKeeper;
use crate::extract::{Fields, JsonObject, NamePath, NoParams};
use crate::problem::{ApiError, Faults, Problem};
use crate::state::App;

/// A workflow as its file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkflowText {
    /// The file: front matter between two lines of three dashes, then the prompt; at most 100 KiB.
    #[schema(example = "---\nname: greeter\ndescription: Says hello.\n---\nSay hello.\n")]
    pub(crate) text: String,
}

/// Put a workflow
///
/// It belongs to the project, and goes over a workflow of the server that has the same name. Runs that are there already keep the
/// version that they were created with.
#[utoipa::path(
    put, path = "/v1/workflows/{name}", tag = "workflows", operation_id = "put_workflow",
    params(("name" = String, Path, description = "The workflow's name, the same as in its text")),
    request_body = WorkflowText,
    responses(
        (status = 200, description = "The workflow, changed", body = WorkflowView),
        (status = 201, description = "The workflow, new", body = WorkflowView),
        (status = 400, description = "A body that is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The project has as many workflows as it may", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A workflow that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn put_workflow(
    State(app): State<App>,
    WorkflowKeeper(caller): WorkflowKeeper,
    NamePath(name): NamePath,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<impl IntoResponse, ApiError> {
    let workflow = read(fields, Some(&name))?;
    let by = Actor::Key(caller.key.clone());
    match app.store().put_own_workflow(&caller.project, &workflow, by).await? {
        PutWorkflow::Put(stored, is_new) => {
            tracing::info!(workflow.name = %name, key.id = %caller.key, "put workflow {name}");
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            Ok((status, Json(WorkflowView::from(*stored))))
        }
        PutWorkflow::Full => Err(ApiError::Conflict {
            code: "workflows_full",
            detail: format!(
                "the project has {} workflows; remove those that nobody needs",
                caisson_domain::limits::WORKFLOWS
            ),
        }),
    }
}

/// Remove a workflow
///
/// A workflow of the server that has the same name is in effect again. Runs keep the version that they were created with.
#[utoipa::path(
    delete, path = "/v1/workflows/{name}", tag = "workflows", operation_id = "remove_workflow",
    params(("name" = String, Path, description = "The workflow's name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "The project has no such workflow", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is the server's", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn remove_workflow(
    State(app): State<App>,
    WorkflowKeeper(caller): WorkflowKeeper,
    NamePath(name): NamePath,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    let by = Actor::Key(caller.key.clone());
    match app.store().remove_own_workflow(&caller.project, &name, by).await? {
        RemoveWorkflow::Removed | RemoveWorkflow::Restored => {
            tracing::info!(workflow.name = %name, key.id = %caller.key, "removed workflow {name}");
            Ok(StatusCode::NO_CONTENT)
        }
        RemoveWorkflow::OfServer => Err(ApiError::Conflict {
            code: "workflow_of_server",
            detail: "the workflow is the server's, and its settings say which it has; put one of your own over it instead"
                .to_owned(),
        }),
        RemoveWorkflow::Unknown => {
            Err(ApiError::Unknown { code: "unknown_workflow", detail: "there is no such workflow".to_owned() })
        }
    }
}

/// Validate a workflow
///
/// Answers what the workflow would be, and stores nothing.
#[utoipa::path(
    post, path = "/v1/workflows/validate", tag = "workflows", operation_id = "validate_workflow",
    request_body = WorkflowText,
    responses(
        (status = 200, description = "The workflow as it would be, with version 0", body = WorkflowView),
        (status = 400, description = "A body that is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A workflow that cannot be used", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn validate_workflow(
    _: WorkflowKeeper,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Json<WorkflowView>, ApiError> {
    let workflow = read(fields, None)?;
    Ok(Json(StoredWorkflow { workflow, version: 0, updated_at_ms: 0, is_own: true }.into()))
}

/// The workflow in a body, under the name that the path gives it.
fn read(mut fields: Fields, name: Option<&str>) -> Result<Workflow, ApiError> {
    let mut faults = Faults::default();
    let text: Option<String> = fields.require("text", &mut faults);
    fields.finish(&mut faults);
    let parsed = text.as_deref().and_then(|text| {
        let parsed = Workflow::parse(text);
        parsed.map_err(|error| faults.add("text", "workflow_invalid", error.to_string())).ok()
    });
    if let Some((name, workflow)) = name.zip(parsed.as_ref())
        && workflow.name != name
    {
        let message = format!(
            "its front matter calls it \"{}\", and the path \"{}\"; give both the same name",
            workflow.name,
            caisson_domain::run::cut(name, 64).escape_debug()
        );
        faults.add("text", "name_differs", message);
    }
    parsed.filter(|_| faults.is_empty()).ok_or(ApiError::InvalidWorkflow(faults))
}
