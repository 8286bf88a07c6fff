//! What surrounds every route: request id, span, headers, and problem documents for whatever goes wrong.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use caisson_domain::checks::{Check, stands};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;

use crate::automagik;
use crate::config::ApiConfig;
use crate::negotiate::JSON;
use crate::problem::{PROBLEM_JSON, Told};
use crate::quota::Quota;

/// Header that names a request, accepted from a caller and always sent back.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a caller, in bytes.
pub(crate) const REQUEST_ID_BYTES: usize = 64;

/// Headers of the quota, by the names of draft-ietf-httpapi-ratelimit-headers-03, which most clients read.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATE_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATE_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
/// What browsers are told of every answer: it is data, and belongs in no page of anybody.
const GUARDS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
/// What browsers are told of a server with TLS: to come no other way for a year.
const TLS_ALONE: HeaderValue = HeaderValue::from_static("max-age=31536000");
/// Headers that pages of allowed origins may send.
const CORS_SENT: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::ACCEPT,
    crate::auth::API_KEY,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("last-event-id"),
];
/// Headers that they may read.
const CORS_READ: [HeaderName; 7] = [
    REQUEST_ID,
    header::RETRY_AFTER,
    header::LOCATION,
    HeaderName::from_static("idempotent-replayed"),
    RATE_LIMIT,
    RATE_REMAINING,
    RATE_RESET,
];
/// How long a browser remembers what it may send.
const CORS_KEPT: Duration = Duration::from_mins(10);
/// Headers of a refusal that its problem document takes over.
const TAKEN_OVER: [HeaderName; 7] = [
    header::ALLOW,
    header::CONNECTION,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::VARY,
];

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

/// What the settings say about every answer.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Origins whose pages may read the answers.
    origins: Vec<HeaderValue>,
    tls: bool,
}

impl Surroundings {
    pub(crate) fn new(config: &ApiConfig) -> Self {
        let origins = config.cors_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        Self { origins: origins.collect(), tls: config.tls }
    }

    /// Without origins a browser lets no other page read anything, so nothing need be said.
    fn cors(&self) -> Option<CorsLayer> {
        (!self.origins.is_empty()).then(|| {
            CorsLayer::new()
                .allow_origin(AllowOrigin::list(self.origins.clone()))
                .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
                .allow_headers(CORS_SENT)
                .expose_headers(CORS_READ)
                .max_age(CORS_KEPT)
        })
    }
}

/// What is left of the caller's quota, noted by whoever finds out who calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Arc<OnceLock<Quota>>);

impl Meter {
    pub(crate) fn note(&self, quota: Quota) {
        // One request, one caller: whoever asks again has the same answer.
        self.0.get_or_init(|| quota);
    }

    fn write(&self, headers: &mut HeaderMap) {
        let Some(quota) = self.0.get() else { return };
        headers.insert(RATE_LIMIT, quota.limit.into());
        headers.insert(RATE_REMAINING, quota.remaining.into());
        headers.insert(RATE_RESET, quota.reset_s.into());
    }
}

/// Puts the layers around the routes, and answers what no route takes.
pub(crate) fn wrap(routes: Router, surroundings: &Surroundings) -> Router {
    let routes =
        routes.fallback(|| async { StatusCode::NOT_FOUND }).layer(CatchPanicLayer::custom(after_panic));
    let routes = match surroundings.cors() {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    let tls = surroundings.tls;
    routes.layer(from_fn(move |request, next| surround(request, next, tls)))
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

async fn surround(mut request: Request, next: Next, tls: bool) -> Response {
    let id = request_id(request.headers());
    // The route's pattern, not the path as sent: a query or a path may hold what no log should.
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let compatible = automagik::covers(request.uri().path());
    let meter = Meter::default();
    request.extensions_mut().insert(meter.clone());
    let span = tracing::info_span!("request", request.id = %id, http.method = %method, http.route = %route);
    async {
        let begun = Instant::now();
        let mut response = explain(next.run(request).await, &id, compatible);
        let kept = response.extensions_mut().remove::<Kept>().map_or("no-store", Kept::as_str);
        finish_headers(response.headers_mut(), &id, kept);
        meter.write(response.headers_mut());
        if tls {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, TLS_ALONE);
        }
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

/// Gives every refusal its problem document, or what the compatible API has instead.
fn explain(mut response: Response, id: &str, compatible: bool) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let told = response.extensions_mut().remove::<Told>().unwrap_or_else(|| Told::bare(status));
    let problem = told.with_request_id(id);
    let (kind, body) = if compatible {
        (JSON, serde_json::to_vec(&automagik::refused(problem, response.headers())))
    } else {
        (PROBLEM_JSON, serde_json::to_vec(&problem))
    };
    let mut explained = (status, [(header::CONTENT_TYPE, kind)], body.unwrap_or_default()).into_response();
    for name in TAKEN_OVER {
        if let Some(value) = response.headers_mut().remove(&name) {
            explained.headers_mut().insert(name, value);
        }
    }
    explained
}

fn finish_headers(headers: &mut HeaderMap, id: &str, kept: &'static str) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(kept));
    for (name, value) in GUARDS.into_iter().filter(|_| stands(Check::AnswersAreData)) {
        // The documentation says more of itself.
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
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
        let response =
            wrap(handlers, &Surroundings::new(&ApiConfig::default())).oneshot(request).await.unwrap();
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
