//! Whether the server lives, and whether it can take runs; for load balancers, so without a key.

use axum::Json;
use axum::extract::State;
use caisson_domain::server::{PlacementProblem, ProblemCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::{ApiError, Problem};
use crate::runs::{check_placeable, sound_servers};
use crate::state::App;

/// How the server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, whenever there is an answer of status 200.
    #[schema(example = "ok")]
    pub status: String,
}

impl Health {
    fn ok() -> Json<Self> {
        Json(Self { status: "ok".to_owned() })
    }
}

/// Whether the server lives
#[utoipa::path(
    get, path = "/healthz", tag = "health", operation_id = "healthz", security(()),
    responses((status = 200, description = "It answers", body = Health)),
)]
pub(crate) async fn healthz() -> Json<Health> {
    Health::ok()
}

/// Whether the server can take runs
///
/// The store takes writes, and a living server has no problem that keeps it from placing runs and is not drained. A drained
/// server still accepts runs: they wait.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz", security(()),
    responses(
        (status = 200, description = "It can", body = Health),
        (status = 503, description = "It cannot, with each problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn readyz(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    app.prove_writable().await?;
    check_placeable(app.store()).await?;
    let drained = app.store().drained().await?;
    let sound = sound_servers(app.store()).await?;
    if sound.iter().any(|server| !drained.has(&server.id)) {
        return Ok(Health::ok());
    }
    let problems = sound.into_iter().map(|server| PlacementProblem {
        code: ProblemCode::Drained,
        message: format!(
            "server {} is drained: it keeps the runs that it has and takes no other; `caisson resume` ends that",
            server.id
        ),
    });
    Err(ApiError::Unplaceable(problems.collect()))
}
