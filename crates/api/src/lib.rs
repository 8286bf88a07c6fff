//! The HTTP API: runs, sessions, events, workflows and agents under `/v1`, health checks and a page about it beside them.
//!
//! A request goes one way: a handler parses it, calls one service function on the store, and renders a view. Every
//! refusal is a problem document (RFC 9457) with a stable `code`. This crate is the only one that knows status codes.
//!
//! Events are read as JSON pages or as server-sent events on the same path. A reader holds no more memory than one
//! short read of events, is never waited for, and after any break goes on behind the last number it saw.

mod access;
mod agent_line;
mod agents;
mod approvals;
mod attachments;
mod audit;
mod auth;
mod automagik;
mod body;
mod budget;
pub mod config;
mod conversation;
mod credentials;
mod denials;
mod docs;
mod events;
mod extract;
mod gate;
mod health;
mod inputs;
mod keys;
mod listing;
mod mcp;
mod metrics;
mod middleware;
mod negotiate;
mod openapi;
mod problem;
mod projects;
mod queue;
mod quota;
mod ready;
mod retention;
mod runs;
mod schema;
mod serve;
mod servers;
mod sessions;
mod shares;
mod stall;
mod state;
mod usage;
mod workflows;

/// What the API answers with, for clients written in Rust.
pub mod view {
    pub use crate::agents::{AgentList, AgentView};
    pub use crate::approvals::{AnswerRequest, ApprovalList, ApprovalView};
    pub use crate::attachments::{AttachmentView, CreateAttachment};
    pub use crate::audit::{AuditPage, AuditView};
    pub use crate::budget::{BudgetPart, BudgetView, SetBudget};
    pub use crate::conversation::{MessagePage, MessageView, ToolCallView, ToolResultView};
    pub use crate::credentials::{CreateCredential, CredentialList, CredentialView, RotateCredential};
    pub use crate::events::{DeltaView, EndView, EventPage, EventView};
    pub use crate::health::Health;
    pub use crate::inputs::{CreateInput, InputList, InputView};
    pub use crate::keys::{CreateKey, KeyPage, KeyView, NewKeyView};
    pub use crate::problem::{Fault, Problem};
    pub use crate::projects::{CreateProject, NewProjectView, ProjectPage, ProjectView};
    pub use crate::queue::{QueueServerView, QueueView, ServerChoice, SetShare, ShareView};
    pub use crate::retention::{RetentionView, SetRetention};
    pub use crate::runs::{
        ArtifactList, ArtifactView, CheckView, CreateRun, CreateRunResources, CredentialUseView, FailureView,
        HeldByView, QueueEstimateView, RepositoryChoice, ResourcesView, RunLinks, RunPage, RunView,
        UsageView,
    };
    pub use crate::servers::{ServerPage, ServerPartView, ServerProblemView, ServerView};
    pub use crate::sessions::change::NewFork;
    pub use crate::sessions::{SessionLinks, SessionPage, SessionView};
    pub use crate::usage::{UsageGroupView, UsageReportView};
    pub use crate::workflows::{CaissonView, WorkflowList, WorkflowSummary, WorkflowView};
}

use axum::Router;
use caisson_store::Store;
use tokio_util::sync::CancellationToken;

pub use config::{AgentInfo, ApiConfig, ApiLimits, MetricsFor, ServeLimits, check_origin};
pub use openapi::openapi;
pub use serve::{serve, serve_tls};

/// Builds the API's router. `cancel` ends the event streams, so that a server that shuts down does not wait for them.
///
/// Serve it with [`serve`], which adds what a router cannot do: it cuts connections that stop reading.
pub fn router(config: ApiConfig, store: Store, cancel: CancellationToken) -> Router {
    let compatible = !config.without_automagik;
    let (routes, document) = openapi::routes(compatible).split_for_parts();
    let surroundings = middleware::Surroundings::new(&config);
    let state = state::App::new(config, store, cancel, &openapi::complete(document));
    let mut routes = routes.with_state(state);
    if compatible {
        routes = routes.clone().merge(automagik::second_path(routes));
    }
    middleware::wrap(routes.merge(docs::routes()), &surroundings)
}

/// Builds a router of `/healthz`, `/readyz` and `/metrics` alone, for a server that does not answer the API.
pub fn health_router(config: ApiConfig, store: Store, cancel: CancellationToken) -> Router {
    let (routes, document) = openapi::watched_routes().split_for_parts();
    let surroundings = middleware::Surroundings::new(&config);
    let state = state::App::new(config, store, cancel, &document);
    middleware::wrap(routes.with_state(state), &surroundings)
}
