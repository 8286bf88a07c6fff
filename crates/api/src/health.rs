//! Whether the server lives, and whether it can take runs; for load balancers, so without a key.

use axum::Json;
use axum::extract::State;
use caisson_store::StoreError;
use http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth;
use crate::problem::{ApiError, Problem};
use crate::ready::Ready;
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
/// server still accepts runs: they wait. A yes may be up to a second old, and a no a tenth of that. A key of the default project with
/// the scope `admin` is told each server's problems in its own words; anybody else the kinds of them, with what to do.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz", security(()),
    responses(
        (status = 200, description = "It can", body = Health),
        (status = 503, description = "It cannot, with each problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn readyz(State(app): State<App>, parts: Parts) -> Result<Json<Health>, ApiError> {
    match app.ready().await {
        Ok(Ready::Yes) => Ok(Health::ok()),
        Ok(Ready::No(problems)) => {
            let whole = ApiError::Unplaceable(problems);
            Err(if auth::comes_from_operator(&parts, &app).await { whole } else { whole.in_general() })
        }
        Err(ApiError::Store(StoreError::Unavailable(_))) if app.store().breaker().is_open => {
            Err(ApiError::DatabaseAway)
        }
        Err(error) => Err(error),
    }
}
