//! Refusals: what the door answers when it does not do what was asked.

use std::borrow::Cow;

use caisson_domain::protocol::DoorProblem;
use caisson_domain::redact::ProjectSecrets;
use caisson_store::StoreError;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::body::{self, Body, BodyFault};
use crate::bounds::GIVE_UP_S;

/// The server stops, and the request is not answered at all: whoever holds it sends it again to the next server, while an
/// error would reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server stops, and the request is left to the next one")]
pub(crate) struct Unanswered;

/// A refusal with a stable code and a sentence that says what to do.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// Without secrets, wherever its words may come from.
    pub(crate) fn without(mut self, secrets: &ProjectSecrets) -> Self {
        if let Cow::Owned(clean) = secrets.redactor().text(&self.message) {
            self.message = clean;
        }
        self
    }

    /// The presented grant opens nothing here.
    pub(crate) fn grant() -> Self {
        let message = "the grant is missing, revoked, of another sandbox or of another kind; only the grants of this \
                       sandbox open its door, for as long as it lives";
        Self::new(StatusCode::FORBIDDEN, "grant_refused", message)
    }

    /// The agent's paths are open only while a run is running in the sandbox.
    pub(crate) fn no_run() -> Self {
        let message = "no run is running in this sandbox; between runs the agent's grant opens nothing";
        Self::new(StatusCode::FORBIDDEN, "no_run", message)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "the door has no such path")
    }

    pub(crate) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not take this method")
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// The store failed; 503 means: try again.
    pub(crate) fn store(error: &StoreError) -> Self {
        match error {
            // A server whose database a later version has migrated ends in a moment; that version's goes on.
            StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Migration(_) => {
                tracing::warn!(error = %error, "the store is unavailable to the gateway");
                let message = "the server's database does not answer; try again";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message)
            }
            StoreError::Corrupt { .. } => {
                tracing::error!(error = %error, "the store failed under the gateway");
                let message = "a fault inside the server; its log says which";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
        }
    }

    /// The request's body could not be taken; `bytes` is its bound.
    pub(crate) fn body(fault: &BodyFault, bytes: u64) -> Self {
        match fault {
            BodyFault::TooLarge => {
                let message = format!("the body is larger than {bytes} bytes; send less");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            BodyFault::TimedOut => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "the body stopped coming; send it again",
            ),
            BodyFault::Broken(_) => Self::bad_request("the body broke off; send it again"),
        }
    }

    /// As a [`DoorProblem`].
    pub(crate) fn into_response(self) -> Response<Body> {
        let status = self.status;
        let problem = DoorProblem { code: self.code.to_owned(), message: self.message };
        json_response(status, &problem)
    }

    /// For a request below `/git`: the same body, and where git itself asks as plain text, since that alone
    /// does git show to a person, behind `remote: `.
    pub(crate) fn into_git_response(self, for_git: bool) -> Response<Body> {
        let mut response = self.into_response();
        if for_git {
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, plain);
        }
        response
    }

    /// In the model API's own shape, so that the agent shows the sentence.
    pub(crate) fn into_model_response(self) -> Response<Body> {
        let kind = match self.status {
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::SERVICE_UNAVAILABLE => return overloaded(&self.message),
            StatusCode::TOO_MANY_REQUESTS => return given_up(&self.message),
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        model_error(self.status, kind, &self.message)
    }
}

/// 529: the agent gives up after three tries in two seconds, where it would try a 500 for three minutes.
fn overloaded(message: &str) -> Response<Body> {
    let status = StatusCode::from_u16(529).expect("529 is between 100 and 999");
    model_error(status, "overloaded_error", message)
}

/// 429 with a long wait: the agent ends at once, where it would try most other statuses again.
fn given_up(message: &str) -> Response<Body> {
    let mut response = model_error(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(GIVE_UP_S));
    response
}

fn model_error(status: StatusCode, kind: &str, message: &str) -> Response<Body> {
    json_response(status, &json!({"type": "error", "error": {"type": kind, "message": message}}))
}

/// A JSON answer.
pub(crate) fn json_response<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let bytes = match serde_json::to_vec(value) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(error = %error, "an answer could not be written as JSON");
            return bare(StatusCode::INTERNAL_SERVER_ERROR);
        }
    };
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
pub(crate) fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(response: Response<Body>) -> (u16, String) {
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_reader_gets_a_refusal_in_its_own_shape() {
        let (status, door) = text(Refusal::grant().into_response()).await;
        let problem: DoorProblem = serde_json::from_str(&door).unwrap();
        assert_eq!((status, problem.code.as_str()), (403, "grant_refused"));
        for (for_git, kind) in [(true, "text/plain; charset=utf-8"), (false, "application/json")] {
            let response = Refusal::no_run().into_git_response(for_git);
            assert_eq!(response.headers()[CONTENT_TYPE], kind);
            assert!(serde_json::from_str::<DoorProblem>(&text(response).await.1).is_ok());
        }
        let (status, model) = text(Refusal::grant().into_model_response()).await;
        assert!(model.contains("permission_error") && status == 403, "{model}");
        let away = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "x");
        let (status, model) = text(away.into_model_response()).await;
        assert!(model.contains("overloaded_error") && status == 529, "{model}");
    }

    #[tokio::test]
    async fn a_corrupt_row_is_our_fault_and_not_worth_a_retry() {
        let source: caisson_store::BoxError = "x".into();
        let refusal = Refusal::store(&StoreError::Corrupt { what: "run.spec".to_owned(), source });
        assert_eq!((refusal.status.as_u16(), refusal.code), (500, "internal"));
    }
}
