//! What surrounds every route: request id, span, headers, and problem documents for whatever goes wrong.

use std::any::Any;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use crate::problem::{PROBLEM_JSON, Told};

/// Header that names a request, accepted from a caller and always sent back.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a caller, in bytes.
pub(crate) const REQUEST_ID_BYTES: usize = 64;

/// How long a response may be kept, put into its extensions; without it, it may not be kept at all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kept {
    /// As long as the server says that nothing changed.
    Checked,
    /// For good: other content has another path.
    Forever,
}

impl Kept {
    fn as_str(self) -> &'static str {
        match self {
            Self::Checked => "no-cache",
            Self::Forever => "public, max-age=31536000, immutable",
        }
    }
}

/// Puts the layers around the routes, and answers what no route takes.
pub(crate) fn wrap(routes: Router) -> Router {
    routes
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(CatchPanicLayer::custom(after_panic))
        .layer(from_fn(surround))
}

/// The message stays in the log: it may quote what it should not.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the panic over")]
fn after_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = message, "a handler panicked");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

async fn surround(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    // The route's pattern, not the path as sent: a query or a path may hold what no log should.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!("request", request.id = %id, http.method = %method, http.route = %route);
    async {
        let begun = Instant::now();
        let mut response = explain(next.run(request).await, &id);
        let kept = response.extensions_mut().remove::<Kept>().map_or("no-store", Kept::as_str);
        finish_headers(response.headers_mut(), &id, kept);
        let status = response.status().as_u16();
        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(http.status = status, duration_ms, "answered {method} {route} with {status}");
        response
    }
    .instrument(span)
    .await
}

/// A caller's id if it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |text: &&str| {
        (1..=REQUEST_ID_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(plain)
        .map_or_else(|| format!("req_{}", uuid::Uuid::new_v4().simple()), str::to_owned)
}

/// Gives every refusal its problem document.
fn explain(mut response: Response, id: &str) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let told = response.extensions_mut().remove::<Told>().unwrap_or_else(|| Told::bare(status));
    let body = serde_json::to_vec(&told.with_request_id(id)).unwrap_or_default();
    let mut explained = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
    for name in [header::ALLOW, header::RETRY_AFTER, header::WWW_AUTHENTICATE] {
        if let Some(value) = response.headers_mut().remove(&name) {
            explained.headers_mut().insert(name, value);
        }
    }
    explained
}

fn finish_headers(headers: &mut HeaderMap, id: &str, kept: &'static str) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(kept));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    async fn panicking() {
        panic!("the secret reason");
    }

    async fn answer(path: &str) -> (StatusCode, serde_json::Value) {
        let handlers = Router::new()
            .route("/panic", get(panicking))
            .route("/bare", get(|| async { (StatusCode::IM_A_TEAPOT, "a text of somebody else's") }));
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert(REQUEST_ID, HeaderValue::from_static("r1"));
        let response = wrap(handlers).oneshot(request).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_with_the_request_id_only() {
        let (status, problem) = answer("/panic").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        let expected = serde_json::json!({
            "type": "about:blank", "title": "Internal Server Error", "status": 500, "code": "internal",
            "request_id": "r1",
        });
        assert_eq!(problem, expected);
    }

    #[tokio::test]
    async fn a_refusal_without_an_explanation_is_a_problem_too() {
        let (status, problem) = answer("/bare").await;
        assert_eq!((status, &problem["code"]), (StatusCode::IM_A_TEAPOT, &"bad_request".into()));
        assert_eq!(answer("/nothing").await.1["code"], "unknown_route");
    }

    fn id_for(sent: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_str(sent).unwrap());
        request_id(&headers)
    }

    #[test]
    fn a_plain_request_id_is_kept_up_to_its_bound_and_any_other_replaced() {
        let longest = "a".repeat(REQUEST_ID_BYTES);
        for good in ["x", "build-7.2_a", &longest] {
            assert_eq!(id_for(good), good);
        }
        for bad in ["", "a b", "a\"b", "a/b", &format!("{longest}a")] {
            assert!(id_for(bad).starts_with("req_"), "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
