//! `/metrics`: what there is to watch, in the text format of Prometheus. For keys of the default project with the scope
//! `admin`, since it tells of all projects together; without a key where the operator says so (`metrics.public`).
//!
//! It names no project, run, repository or person: labels are of closed lists, and ids of servers.

mod process;
mod text;

use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::server::{ServerState, ServerStatus};
use caisson_store::{Store, StoreError};
use http::header;
use http::request::Parts;
use tokio::time::Instant;

use crate::auth::{self, Administrator};
use crate::config::MetricsFor;
use crate::problem::ApiError;
use crate::state::App;
use text::{Kind, Page};

/// The format, as Prometheus names it.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long a page is shown again: asking often costs nothing.
pub(crate) const METRICS_FOR: Duration = Duration::from_secs(1);

/// Who may read.
pub(crate) struct Watcher;

impl FromRequestParts<App> for Watcher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        if app.config().metrics_for == MetricsFor::Everyone {
            return Ok(Self);
        }
        let Administrator(caller) = Administrator::from_request_parts(parts, app).await?;
        auth::require_default_project(app, &caller, ApiError::OperatorsOnly).await?;
        Ok(Self)
    }
}

/// Get metrics
///
/// In the text format of Prometheus, version 0.0.4. Counters are this process's; what the database holds is the same on every
/// server. Needs the scope `admin` of the default project, unless the server's `metrics.public` is true.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain")),
)]
pub(crate) async fn metrics(State(app): State<App>, _: Watcher) -> Response {
    let mut shown = app.metrics().lock().await;
    let fresh = shown.as_ref().filter(|(at, _)| at.elapsed() < METRICS_FOR).map(|(_, page)| page.clone());
    let page = if let Some(page) = fresh {
        page
    } else {
        let page = gather(&app).await;
        *shown = Some((Instant::now(), page.clone()));
        page
    };
    ([(header::CONTENT_TYPE, FORMAT)], page).into_response()
}

async fn gather(app: &App) -> String {
    let mut page = Page::default();
    page.family("caisson_build_info", Kind::Gauge, "Always 1; the label is the version.");
    page.number("caisson_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let begun = Instant::now();
    let up = app.prove_writable().await.is_ok();
    page.family("caisson_database_up", Kind::Gauge, "1 if the database takes writes, else 0.");
    page.number("caisson_database_up", &[], f64::from(u8::from(up)));
    page.family("caisson_database_answer_seconds", Kind::Gauge, "How long the database took to prove that.");
    page.number("caisson_database_answer_seconds", &[], begun.elapsed().as_secs_f64());
    breaker(&mut page, app.store());
    let found = if up { Found::read(app.store()).await.ok() } else { None };
    queue(&mut page, found.as_ref());
    servers(&mut page, found.as_ref());
    process::tell(&mut page, &app.config().state_dir).await;
    page.counted(&app.store().meters().read());
    page.done()
}

/// What the database holds.
struct Found {
    queued: i64,
    delayed: i64,
    running: i64,
    oldest_waiting_ms: Option<i64>,
    now_ms: i64,
    servers: Vec<ServerStatus>,
    drained: Vec<bool>,
}

impl Found {
    async fn read(store: &Store) -> Result<Self, StoreError> {
        let state = store.queue_state().await?;
        let servers = store.list_servers(None, PAGE_ITEMS).await?;
        let all = state.drained_at_ms.is_some();
        let drained = servers.iter().map(|server| all || state.is_drained(&server.id)).collect();
        Ok(Self {
            queued: state.queued,
            delayed: state.delayed,
            running: state.running,
            oldest_waiting_ms: store.oldest_waiting_ms().await?,
            now_ms: store.now_ms(),
            servers,
            drained,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 of anything is far beyond what there is")]
fn float(count: i64) -> f64 {
    count as f64
}

/// What this process sees of a database that gives no connections.
fn breaker(page: &mut Page, store: &Store) {
    let state = store.breaker();
    page.family(
        "caisson_database_breaker_open",
        Kind::Gauge,
        "1 while calls are refused at once, since the database gave no connection for a while.",
    );
    page.number("caisson_database_breaker_open", &[], f64::from(u8::from(state.is_open)));
    let whole = |count: u64| float(i64::try_from(count).unwrap_or(i64::MAX));
    page.family("caisson_database_breaker_opened_total", Kind::Counter, "How often that began.");
    page.number("caisson_database_breaker_opened_total", &[], whole(state.opened));
    page.family("caisson_database_calls_refused_total", Kind::Counter, "Calls that were refused so.");
    page.number("caisson_database_calls_refused_total", &[], whole(state.refused));
}

fn queue(page: &mut Page, found: Option<&Found>) {
    page.family(
        "caisson_runs",
        Kind::Gauge,
        "Runs that wait (queued, delayed ones among them) and that run.",
    );
    if let Some(found) = found {
        page.number("caisson_runs", &[("status", "queued")], float(found.queued));
        page.number("caisson_runs", &[("status", "running")], float(found.running));
    }
    page.family("caisson_queue_delayed_runs", Kind::Gauge, "Queued runs whose start is put off.");
    if let Some(found) = found {
        page.number("caisson_queue_delayed_runs", &[], float(found.delayed));
    }
    page.family(
        "caisson_queue_oldest_seconds",
        Kind::Gauge,
        "Age of the oldest run that waits and whose time has come; 0 if none does.",
    );
    if let Some(found) = found {
        let age_ms = found.oldest_waiting_ms.map_or(0, |at_ms| (found.now_ms - at_ms).max(0));
        page.number("caisson_queue_oldest_seconds", &[], float(age_ms) / 1000.0);
    }
}

fn servers(page: &mut Page, found: Option<&Found>) {
    let all = || found.into_iter().flat_map(|found| &found.servers);
    page.family("caisson_servers", Kind::Gauge, "Servers that are not forgotten, by state.");
    for state in ServerState::ALL.iter().filter(|_| found.is_some()) {
        let count = all().filter(|server| server.state == *state).count();
        page.number(
            "caisson_servers",
            &[("state", state.as_str())],
            float(i64::try_from(count).unwrap_or(0)),
        );
    }
    page.family("caisson_server_slots", Kind::Gauge, "Runs that a server has in hand at most.");
    for server in all() {
        if let Some(slots) = server.slots {
            page.number("caisson_server_slots", &[("server", server.id.as_str())], float(slots));
        }
    }
    page.family("caisson_server_runs", Kind::Gauge, "Runs that a server has in hand.");
    for server in all() {
        page.number("caisson_server_runs", &[("server", server.id.as_str())], float(server.runs));
    }
    page.family("caisson_server_sandboxes", Kind::Gauge, "Sandboxes of a server that are not destroyed.");
    for server in all() {
        page.number("caisson_server_sandboxes", &[("server", server.id.as_str())], float(server.sandboxes));
    }
    page.family(
        "caisson_server_drained",
        Kind::Gauge,
        "1 if a server takes no more runs, because it is drained.",
    );
    for (server, drained) in found.into_iter().flat_map(|found| found.servers.iter().zip(&found.drained)) {
        page.number(
            "caisson_server_drained",
            &[("server", server.id.as_str())],
            f64::from(u8::from(*drained)),
        );
    }
    page.family(
        "caisson_server_problem",
        Kind::Gauge,
        "1 for each thing that keeps a live server from placing runs.",
    );
    for server in all().filter(|server| server.state == ServerState::Live) {
        for problem in &server.problems {
            let labels = [("server", server.id.as_str()), ("code", problem.code.as_str())];
            page.number("caisson_server_problem", &labels, 1.0);
        }
    }
}
