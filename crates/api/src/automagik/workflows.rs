//! Workflows, health, and what clients ask for first.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use caisson_domain::principal::Principal;
use caisson_store::WorkflowSummary;
use http::header;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::refusal::Refusal;
use super::{Call, Dialect, names};
use crate::auth::{self, Reader};
use crate::negotiate::JSON;
use crate::problem::ApiError;
use crate::runs::check_placeable;
use crate::state::App;

/// A workflow, or an alias of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedWorkflow {
    /// What to ask for.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Its path in the native API; no path of the server.
    pub path: String,
    /// Always true.
    pub valid: bool,
    /// For user interfaces.
    pub icon: String,
    /// For user interfaces.
    pub main_colour: String,
    /// For user interfaces.
    pub display_name: String,
    /// For user interfaces.
    pub category: String,
    /// For user interfaces.
    pub capabilities: Vec<String>,
    /// For user interfaces.
    pub emoji: String,
    /// Most turns of its runs.
    pub max_turns: Option<u32>,
    /// The same.
    pub suggested_turns: Option<u32>,
}

impl NamedWorkflow {
    fn new(name: &str, workflow: &WorkflowSummary) -> Self {
        let alias = if name == workflow.name { String::new() } else { format!(" ({})", workflow.name) };
        Self {
            name: name.to_owned(),
            description: format!("{}{alias}", workflow.description),
            path: format!("/v1/workflows/{}", workflow.name),
            valid: true,
            icon: "Bot".to_owned(),
            main_colour: "#3B82F6".to_owned(),
            display_name: name.to_owned(),
            category: "general".to_owned(),
            capabilities: Vec::new(),
            emoji: "🤖".to_owned(),
            max_turns: workflow.max_turns,
            suggested_turns: workflow.max_turns,
        }
    }
}

/// How the server is, to its clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct WorkflowHealth {
    /// `healthy` or `error`.
    pub status: String,
    /// Now.
    pub timestamp: String,
    /// Of this server.
    pub version: String,
    /// Where it runs.
    pub environment: String,
    /// Whether runs can be placed.
    pub agent_available: bool,
    /// What can be asked for: name to whether it can.
    pub workflows: BTreeMap<String, bool>,
    /// Whether sandboxes can be made.
    pub container_manager: bool,
    /// Always true.
    pub feature_enabled: bool,
    /// Always empty: `/metrics` tells more.
    #[schema(value_type = Object)]
    pub system: Value,
    /// Always null: paths of the server are nobody's business.
    pub claude_cli_path: Option<String>,
    /// What keeps runs from being placed.
    pub error: Option<String>,
}

/// That a server is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Greeting {
    /// `online` of the root, `healthy` of `/health`.
    pub status: String,
    /// Now.
    pub timestamp: String,
    /// The program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it runs.
    pub environment: String,
    /// The documentation.
    pub docs: String,
}

/// List workflows
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/workflows", tag = "automagik", operation_id = "automagik_list_workflows",
    params(("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$")),
    responses((status = 200, description = "Workflows, then aliases", body = Vec<NamedWorkflow>)),
)]
pub(crate) async fn list_workflows(
    State(app): State<App>,
    Reader(caller): Reader,
    _: Call,
) -> Result<Json<Vec<NamedWorkflow>>, Refusal> {
    named(&app, &caller).await.map(Json)
}

/// List workflows, by another name
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/manage", tag = "automagik", operation_id = "automagik_list_managed",
    params(("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$")),
    responses((status = 200, description = "Workflows, then aliases", body = Vec<NamedWorkflow>)),
)]
pub(crate) async fn list_managed(
    State(app): State<App>,
    Reader(caller): Reader,
    _: Call,
) -> Result<Json<Vec<NamedWorkflow>>, Refusal> {
    named(&app, &caller).await.map(Json)
}

async fn named(app: &App, caller: &Principal) -> Result<Vec<NamedWorkflow>, Refusal> {
    let stored = app.store().list_workflows(&caller.project).await?;
    let known: Vec<&str> = stored.iter().map(|stored| stored.name.as_str()).collect();
    let all = names::all(&known);
    let of = |workflow: &str| stored.iter().find(|stored| stored.name == workflow);
    Ok(all.iter().filter_map(|(name, workflow)| Some(NamedWorkflow::new(name, of(workflow)?))).collect())
}

/// Get how the server is
///
/// Always 200; a server that cannot take runs says so in `status` and `error`.
#[utoipa::path(
    get, path = "/api/v1/{surface}/claude-code/health", tag = "automagik", operation_id = "automagik_health",
    params(("surface" = String, Path, description = "`workflows` or `agent`", pattern = "^(workflows|agent)$")),
    responses((status = 200, description = "How it is", body = WorkflowHealth)),
)]
pub(crate) async fn workflow_health(
    State(app): State<App>,
    Reader(caller): Reader,
    Call { dialect, .. }: Call,
) -> Result<Json<WorkflowHealth>, Refusal> {
    let ready = ready(&app).await;
    let ready = ready.map_err(|error| if auth::is_operator(&caller) { error } else { error.in_general() });
    let workflows =
        named(&app, &caller).await?.into_iter().map(|named| (named.name, ready.is_ok())).collect();
    Ok(Json(WorkflowHealth {
        status: if ready.is_ok() { "healthy" } else { "error" }.to_owned(),
        timestamp: dialect.time(app.store().now_ms()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        environment: "caisson".to_owned(),
        agent_available: ready.is_ok() && app.config().agent.version.is_some(),
        workflows,
        container_manager: ready.is_ok(),
        feature_enabled: true,
        system: json!({}),
        claude_cli_path: None,
        error: ready.err().map(|error| error.to_string()),
    }))
}

async fn ready(app: &App) -> Result<(), ApiError> {
    app.prove_writable().await?;
    check_placeable(app.store()).await
}

/// This document, where clients look for it
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "automagik", operation_id = "automagik_openapi", security(()),
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Object)),
)]
pub(crate) async fn document(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, JSON)], app.document())
}

/// Say that a server is there
#[utoipa::path(
    get, path = "/", tag = "automagik", operation_id = "automagik_root", security(()),
    responses((status = 200, description = "It is", body = Greeting)),
)]
pub(crate) async fn root(State(app): State<App>, Call { dialect, .. }: Call) -> Json<Greeting> {
    greeting(&app, dialect, "online")
}

/// Say that a server lives
#[utoipa::path(
    get, path = "/health", tag = "automagik", operation_id = "automagik_server_health", security(()),
    responses((status = 200, description = "It does", body = Greeting)),
)]
pub(crate) async fn health(State(app): State<App>, Call { dialect, .. }: Call) -> Json<Greeting> {
    greeting(&app, dialect, "healthy")
}

fn greeting(app: &App, dialect: Dialect, status: &str) -> Json<Greeting> {
    Json(Greeting {
        status: status.to_owned(),
        timestamp: dialect.time(app.store().now_ms()),
        name: "Caisson".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        environment: "caisson".to_owned(),
        docs: "/docs".to_owned(),
    })
}
