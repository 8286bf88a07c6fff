//! The Automagik-compatible API: `/api/v1`, as the published clients of that system expect it.
//!
//! A thin adapter over what the native API does: it reads other words, calls the same functions and renders other words.
//! Nothing can be done here that could not be done there, and whatever a client asks for that is not done is said in the
//! answer (`undone`). Everything is served a second time below [`SECOND_PATH`], for the one generation of clients that has another
//! word for an ended run and takes times without a zone. What differs from the original on purpose: `docs/automagik.md`.

mod agents;
mod body;
mod kill;
mod list;
mod live;
mod messages;
mod names;
mod progress;
mod query;
mod refusal;
mod run;
mod sessions;
mod start;
mod status;
mod time;
mod undone;
mod users;
mod workflows;

use std::borrow::Cow;
use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::response::Response;
use axum::routing::any;
use caisson_domain::run::RunStatus;
use http::request::Parts;
use http::{HeaderMap, Uri};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Peer;
use crate::gate::Entry;
use crate::middleware::Meter;
use crate::state::App;
use query::Query;
use refusal::Refusal;

pub(crate) use refusal::refused;

/// The tag of these routes in the document.
pub(crate) const TAG: &str = "automagik";
/// Where all of it is served a second time.
pub(crate) const SECOND_PATH: &str = "/automagik-v2";
/// Where it begins.
const FIRST_PATH: &str = "/api/v1/";
/// The parameter of a query that may hold the key.
const KEY_PARAMETER: &str = "x-api-key";

/// All routes with their documentation.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(start::start_run))
        .routes(routes!(start::start_workflow))
        .routes(routes!(list::list_runs))
        .routes(routes!(status::run_status))
        .routes(routes!(status::enhanced_status))
        .routes(routes!(kill::kill_run))
        .routes(routes!(kill::clean_up))
        .routes(routes!(live::add_message))
        .routes(routes!(live::inject_message))
        .routes(routes!(live::message_queue))
        .routes(routes!(workflows::list_workflows))
        .routes(routes!(workflows::list_managed))
        .routes(routes!(workflows::workflow_health))
        .routes(routes!(agents::list_agents))
        .routes(routes!(agents::list_agents_early))
        .routes(routes!(agents::get_agent))
        .routes(routes!(agents::run_agent))
        .routes(routes!(agents::run_agent_async))
        .routes(routes!(agents::agent_run_status))
        .routes(routes!(sessions::list_sessions))
        .routes(routes!(sessions::get_session, sessions::delete_session))
        .routes(routes!(messages::list_messages, messages::create_message))
        .routes(routes!(messages::get_message, messages::change_message, messages::delete_message))
        .routes(routes!(users::list_users, users::create_user))
        .routes(routes!(users::get_user, users::update_user, users::delete_user))
        .routes(routes!(workflows::document))
        .routes(routes!(workflows::root))
        .routes(routes!(workflows::health))
}

/// Whether a path is of this API, so that refusals have its form.
pub(crate) fn covers(path: &str) -> bool {
    let path = path.strip_prefix(SECOND_PATH).unwrap_or(path);
    path.starts_with(FIRST_PATH)
}

/// The key that a query holds, on the paths of this API alone.
pub(crate) fn key_in_query(uri: &Uri) -> Option<Cow<'_, str>> {
    if !uri.path().starts_with(FIRST_PATH) {
        return None;
    }
    let mut pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find(|(name, _)| name.eq_ignore_ascii_case(KEY_PARAMETER)).map(|(_, value)| value)
}

/// Serves `api` below [`SECOND_PATH`] as well.
pub(crate) fn second_path(api: Router) -> Router {
    let api = TowerToHyperService::new(api);
    let again = move |request: Request| {
        let api = api.clone();
        async move {
            match below(request) {
                Some(request) => api.call(request).await.unwrap_or_else(|never: Infallible| match never {}),
                None => Response::builder().status(404).body(Body::empty()).unwrap_or_default(),
            }
        }
    };
    let again = any(again);
    Router::new().route("/automagik-v2/", again.clone()).route("/automagik-v2/{*rest}", again)
}

/// The request as the first path has it, marked as one of the second; none for a path that this API does not have.
fn below(request: Request) -> Option<Request> {
    let (parts, body) = request.into_parts();
    let whole = parts.uri.path_and_query()?.as_str().strip_prefix(SECOND_PATH)?;
    if !whole.starts_with(FIRST_PATH) && !matches!(whole.split('?').next(), Some("/" | "/health")) {
        return None;
    }
    let mut again = Request::new(body);
    *again.method_mut() = parts.method;
    *again.uri_mut() = whole.parse().ok()?;
    *again.headers_mut() = parts.headers;
    let mut known = parts.extensions;
    let to = again.extensions_mut();
    // What the connection and the outermost layer know of the caller; the rest belongs to the path that was asked for.
    if let Some(peer) = known.remove::<Peer>() {
        to.insert(peer);
    }
    if let Some(entry) = known.remove::<Entry>() {
        to.insert(entry);
    }
    if let Some(meter) = known.remove::<Meter>() {
        to.insert(meter);
    }
    to.insert(Dialect::Second);
    Some(again)
}

/// Which words a client knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Dialect {
    /// `killed`, and times with their zone.
    #[default]
    First,
    /// `cancelled`, and times without: they are UTC.
    Second,
}

impl Dialect {
    /// The word for where a run stands.
    const fn status(self, status: RunStatus) -> &'static str {
        match (status, self) {
            (RunStatus::Queued, _) => "pending",
            (RunStatus::Running, _) => "running",
            (RunStatus::Succeeded, _) => "completed",
            (RunStatus::Failed, _) => "failed",
            (RunStatus::Cancelled, Self::First) => "killed",
            (RunStatus::Cancelled, Self::Second) => "cancelled",
        }
    }

    /// A time as the client reads it.
    fn time(self, at_ms: i64) -> String {
        match self {
            Self::First => time::zoned(at_ms),
            Self::Second => time::naive(at_ms),
        }
    }
}

/// Which of the two path prefixes was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Surface {
    /// `/api/v1/agent/claude-code`, of the early clients.
    Agent,
    /// `/api/v1/workflows/claude-code`.
    Workflows,
}

/// What is asked for, but for the body and who asks.
struct Call {
    dialect: Dialect,
    /// [`Surface::Workflows`] on paths without one.
    surface: Surface,
    /// The part of the path called `id`, whatever it is; empty on paths without one.
    id: String,
    query: Query,
    headers: HeaderMap,
}

impl FromRequestParts<App> for Call {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let unknown = || Refusal::not_found("unknown_route", "Not Found");
        // Only a path that is not UTF-8 has none.
        let params = RawPathParams::from_request_parts(parts, app).await.map_err(|_| unknown())?;
        let part =
            |name: &str| params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
        let surface = match part("surface").as_deref() {
            None | Some("workflows") => Surface::Workflows,
            Some("agent") => Surface::Agent,
            Some(_) => return Err(unknown()),
        };
        Ok(Self {
            dialect: parts.extensions.get::<Dialect>().copied().unwrap_or_default(),
            surface,
            id: part("id").unwrap_or_default(),
            query: Query::of(parts.uri.query().unwrap_or_default()),
            headers: parts.headers.clone(),
        })
    }
}

/// Looks through a run's events as for its status.
#[cfg(test)]
pub(crate) async fn look_through(
    app: &App,
    run: &caisson_domain::id::RunId,
) -> Result<(), crate::problem::ApiError> {
    progress::Progress::read(app, run, Dialect::default()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uri: &str) -> Option<String> {
        key_in_query(&uri.parse().unwrap()).map(Cow::into_owned)
    }

    #[test]
    fn a_key_in_the_query_counts_on_the_paths_of_this_api_alone() {
        assert_eq!(key("/api/v1/users?page=1&x-api-key=k%31").as_deref(), Some("k1"));
        assert_eq!(key("/api/v1/users?X-API-Key=k1").as_deref(), Some("k1"));
        for other in
            ["/v1/runs?x-api-key=k1", "/healthz?x-api-key=k1", "/api/v1/users", "/api/v1/users?key=k1"]
        {
            assert_eq!(key(other), None, "{other}");
        }
    }

    #[test]
    fn only_paths_of_this_api_have_its_refusals() {
        for path in ["/api/v1/users", "/automagik-v2/api/v1/users"] {
            assert!(covers(path), "{path}");
        }
        for path in ["/", "/v1/runs", "/automagik-v2/v1/runs", "/api/v2/users"] {
            assert!(!covers(path), "{path}");
        }
    }
}
