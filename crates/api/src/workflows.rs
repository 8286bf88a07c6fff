//! `/v1/workflows`: list and get; [`edit`] changes them.

pub(crate) mod edit;

use axum::Json;
use axum::extract::State;
use caisson_domain::check_result::CHECK_TURNS_DEFAULT;
use caisson_domain::parameters::Parameters;
use caisson_domain::repository_file::CheckName;
use caisson_domain::trust::TrustBlock;
use caisson_domain::workflow::{PermissionMode, Publish, WorkspaceAccess};
use caisson_store::{self as store, StoredWorkflow};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::auth::Reader;
use crate::extract::{NamePath, NoParams};
use crate::problem::{ApiError, Problem};
use crate::runs::ResourcesView;
use crate::state::App;

/// A workflow in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkflowSummary {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// How often it was changed, 1 for the first definition.
    pub version: i64,
    /// Unix ms.
    pub updated_at_ms: i64,
    /// Whether it is the project's own, and not the server's.
    pub is_own: bool,
}

/// The project's workflows, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkflowList {
    /// All of them.
    pub items: Vec<WorkflowSummary>,
}

/// The named definition that runs follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkflowView {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// How often it was changed, 1 for the first definition.
    pub version: i64,
    /// Unix ms.
    pub updated_at_ms: i64,
    /// Whether it is the project's own, and not the server's.
    pub is_own: bool,
    /// Added to the agent's system prompt.
    pub prompt: String,
    /// Tools the agent has; none means all.
    pub tools: Option<Vec<String>>,
    /// Tools it must not use.
    pub disallowed_tools: Vec<String>,
    /// Rules for calls that need no asking.
    pub allowed_tools: Vec<String>,
    /// Model id or alias.
    pub model: Option<String>,
    /// How the agent asks for permission.
    #[schema(value_type = crate::schema::PermissionMode)]
    pub permission_mode: PermissionMode,
    /// Most turns of the agent.
    pub max_turns: Option<u32>,
    /// Names of its MCP servers; how they are started may hold what readers should not see.
    pub mcp_servers: Vec<String>,
    /// What Caisson itself reads.
    pub caisson: CaissonView,
}

/// What Caisson itself reads of a workflow: the values of a run that gives none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CaissonView {
    /// The sandbox's image; none means the server's default.
    pub image: Option<String>,
    /// Time limit of a run, in seconds.
    pub timeout_s: u32,
    /// What the sandbox may use.
    pub resources: ResourcesView,
    /// Names that a run's `environment` may set.
    pub environment: Vec<String>,
    /// What happens to the work.
    #[schema(value_type = crate::schema::Publish)]
    pub publish: Publish,
    /// Conventional Commits type of the deterministic commit message.
    pub commit_type: String,
    /// Presets and rules of where tools may go, among what the operator allows; none means all of that.
    pub egress: Option<Vec<String>>,
    /// Whose files steer the agent.
    pub trust: TrustView,
    /// Patterns of paths that no push may touch, beside those that the server forbids.
    pub forbidden_paths: Vec<String>,
    /// What the agent may do with the workspace.
    #[schema(value_type = crate::schema::WorkspaceAccess)]
    pub workspace: WorkspaceAccess,
    /// What the structured output of a run must look like; none means that there is none.
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    /// What a run may give beside its prompt, by name: `type`, `description`, `default`, `enum`.
    #[schema(value_type = Object)]
    pub parameters: Parameters,
    /// Commands of the repository that are run when the agent has finished: `format`, `lint`, `test`.
    #[schema(value_type = Vec<String>)]
    pub checks: Vec<CheckName>,
    /// Turns that the agent has to mend what they find, 0 to 5.
    pub check_turns: u32,
    /// Whether a run fails when one of them does not pass in the end; left out if not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checks_must_pass: bool,
}

/// Whose files steer the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrustView {
    /// Branches that may, beside the repository's default branch: names, and prefixes that end in `/*`.
    pub branches: Vec<String>,
    /// Whether their instructions are given to the agent.
    pub instructions: bool,
    /// Whether their settings act: hooks, MCP servers, subagents, commands, skills.
    pub settings: bool,
    /// Whether runs may push to a branch whose files steer agents: one that a workflow of the project trusts, or the
    /// repository's default branch.
    pub publish: bool,
}

impl From<TrustBlock> for TrustView {
    fn from(trust: TrustBlock) -> Self {
        let TrustBlock { branches, instructions, settings, publish } = trust;
        Self { branches, instructions, settings, publish }
    }
}

impl From<store::WorkflowSummary> for WorkflowSummary {
    fn from(stored: store::WorkflowSummary) -> Self {
        Self {
            name: stored.name,
            description: stored.description,
            version: stored.version,
            updated_at_ms: stored.updated_at_ms,
            is_own: stored.is_own,
        }
    }
}

impl From<StoredWorkflow> for WorkflowView {
    fn from(stored: StoredWorkflow) -> Self {
        let workflow = stored.workflow;
        Self {
            name: workflow.name,
            description: workflow.description,
            version: stored.version,
            updated_at_ms: stored.updated_at_ms,
            is_own: stored.is_own,
            prompt: workflow.prompt,
            tools: workflow.tools,
            disallowed_tools: workflow.disallowed_tools,
            allowed_tools: workflow.allowed_tools,
            model: workflow.model,
            permission_mode: workflow.permission_mode,
            max_turns: workflow.max_turns,
            mcp_servers: workflow.mcp_servers.keys().cloned().collect(),
            caisson: CaissonView {
                image: workflow.caisson.image,
                timeout_s: workflow.caisson.timeout_s,
                resources: workflow.caisson.resources.resolve().into(),
                environment: workflow.caisson.environment,
                publish: workflow.caisson.publish,
                commit_type: workflow.caisson.commit_type,
                egress: workflow.caisson.egress,
                trust: workflow.caisson.trust.into(),
                forbidden_paths: workflow.caisson.forbidden_paths,
                workspace: workflow.caisson.workspace,
                output_schema: workflow.caisson.output_schema,
                parameters: workflow.caisson.parameters,
                checks: workflow.caisson.checks,
                check_turns: workflow.caisson.check_turns.unwrap_or(CHECK_TURNS_DEFAULT),
                checks_must_pass: workflow.caisson.checks_must_pass,
            },
        }
    }
}

/// List workflows
#[utoipa::path(
    get, path = "/v1/workflows", tag = "workflows", operation_id = "list_workflows",
    responses((status = 200, description = "The workflows by name", body = WorkflowList)),
)]
pub(crate) async fn list_workflows(
    State(app): State<App>,
    Reader(caller): Reader,
    _: NoParams,
) -> Result<Json<WorkflowList>, ApiError> {
    let found = app.store().list_workflows(&caller.project).await?;
    Ok(Json(WorkflowList { items: found.into_iter().map(WorkflowSummary::from).collect() }))
}

/// Get a workflow
#[utoipa::path(
    get, path = "/v1/workflows/{name}", tag = "workflows", operation_id = "get_workflow",
    params(("name" = String, Path, description = "The workflow's name")),
    responses(
        (status = 200, description = "The workflow", body = WorkflowView),
        (status = 404, description = "The project has no such workflow", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_workflow(
    State(app): State<App>,
    Reader(caller): Reader,
    NamePath(name): NamePath,
    _: NoParams,
) -> Result<Json<WorkflowView>, ApiError> {
    let found = app.store().workflow(&caller.project, &name).await?;
    found.map(|stored| Json(stored.into())).ok_or_else(|| ApiError::Unknown {
        code: "unknown_workflow",
        detail: "there is no such workflow".to_owned(),
    })
}
