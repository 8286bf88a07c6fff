//! `/v1/agents`: what works in the sandboxes.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Reader;
use crate::extract::NoParams;
use crate::problem::ApiError;
use crate::state::App;

/// Name of the only agent.
const CLAUDE_CODE: &str = "claude-code";
/// What it can do here.
const CAPABILITIES: [&str; 7] =
    ["cancel", "events", "live_text", "max_turns", "mcp_http", "mcp_stdio", "model"];

/// A coding CLI that works in sandboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentView {
    /// Its name.
    #[schema(example = "claude-code")]
    pub name: String,
    /// Its version; none when it is not installed.
    pub version: Option<String>,
    /// What it can do here.
    pub capabilities: Vec<String>,
}

/// The agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentList {
    /// All of them.
    pub items: Vec<AgentView>,
}

/// List agents
#[utoipa::path(
    get, path = "/v1/agents", tag = "agents", operation_id = "list_agents",
    responses((status = 200, description = "The agents", body = AgentList)),
)]
pub(crate) async fn list_agents(
    State(app): State<App>,
    _: Reader,
    _: NoParams,
) -> Result<Json<AgentList>, ApiError> {
    let agent = AgentView {
        name: CLAUDE_CODE.to_owned(),
        version: app.config().agent.version.clone(),
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
    };
    Ok(Json(AgentList { items: vec![agent] }))
}
