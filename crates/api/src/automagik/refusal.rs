//! Refusals as the clients read them: `{"detail": …}`, a text or one entry for each field.

use axum::response::{IntoResponse, Response};
use caisson_store::StoreError;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::problem::{ApiError, Fault, Faults, Problem, Told};

/// Why a request of the compatible API was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct RefusedBody {
    /// A sentence; for a body or parameter that cannot be used, a list with an entry for each fault.
    pub detail: Value,
    /// Stable, for programs.
    pub code: String,
    /// Names this request in the server's log.
    pub request_id: String,
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// As the native API would.
    Api(ApiError),
    /// With words of this API.
    Told { status: StatusCode, code: &'static str, detail: String },
    /// With a list of fields, each with the part of the request that it is in.
    Fields(Vec<Fault>),
}

impl Refusal {
    pub(super) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Told { status: StatusCode::NOT_FOUND, code, detail: detail.into() }
    }

    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Told { status: StatusCode::BAD_REQUEST, code, detail: detail.into() }
    }

    pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Told { status: StatusCode::CONFLICT, code, detail: detail.into() }
    }

    /// Faults of a body.
    pub(super) fn body(faults: Faults) -> Self {
        Self::Fields(faults.into_items())
    }

    /// What the native API says of a run, with the names that its fields have here.
    pub(super) fn of_run(error: ApiError) -> Self {
        let ApiError::Invalid(faults) = error else { return Self::Api(error) };
        let renamed = faults
            .into_items()
            .into_iter()
            .map(|fault| Fault { field: fault.field.map(|field| renamed(&field).to_owned()), ..fault });
        Self::Fields(renamed.collect())
    }
}

fn renamed(field: &str) -> &str {
    match field {
        "prompt" => "message",
        "repository" => "repository_url",
        "base" => "git_branch",
        "session" => "session_id",
        "timeout_s" => "timeout",
        other => other,
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Api(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, told) = match self {
            Self::Api(error) => return error.into_response(),
            Self::Told { status, code, detail } => {
                (status, Told::new(status, code, Some(detail), Vec::new()))
            }
            Self::Fields(faults) => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                (status, Told::new(status, "invalid_request", None, faults))
            }
        };
        let mut response = status.into_response();
        response.extensions_mut().insert(told);
        response
    }
}

/// A problem in the words of this API. What it says of keys is what upstream's own checks look for.
pub(crate) fn refused(problem: Problem, headers: &HeaderMap) -> RefusedBody {
    let detail = match problem.status {
        401 => {
            let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
            if challenge.is_some_and(|challenge| challenge.contains("error=")) {
                json!("Invalid API Key")
            } else {
                json!(
                    "API key is missing: x-api-key is missing in headers or query parameters, and so is \
                     Authorization: Bearer"
                )
            }
        }
        422 if !problem.errors.is_empty() => problem.errors.iter().map(entry).collect(),
        _ => json!(problem.detail.unwrap_or(problem.title)),
    };
    RefusedBody { detail, code: problem.code, request_id: problem.request_id }
}

fn entry(fault: &Fault) -> Value {
    let field = fault.field.as_deref().unwrap_or_default();
    let (place, path) = match field.split_once('.') {
        Some((place @ ("query" | "path"), path)) => (place, path),
        _ => ("body", field),
    };
    let location: Vec<&str> =
        std::iter::once(place).chain(path.split('.').filter(|part| !part.is_empty())).collect();
    json!({ "type": fault.code, "loc": location, "msg": fault.message })
}
