//! Events of a run or a session: JSON pages, or a live stream, on the same path.

mod source;
mod sse;
mod view;

use std::ops::RangeInclusive;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use caisson_domain::limits;
use caisson_domain::principal::Principal;
use caisson_store::Store;
use http::{HeaderMap, HeaderName};

use crate::auth::Reader;
use crate::extract::{Params, RunPath, SessionPath, unknown_run, unknown_session};
use crate::negotiate::{EVENT_STREAM, JSON, choose};
use crate::problem::{ApiError, Problem};
use crate::state::App;
use source::Source;
pub(crate) use source::{READ_BYTES, READ_EVENTS, SCANNED_EVENTS};

pub use view::{DeltaView, EndView, EventPage, EventView};

/// Header in which a reader that comes back says what it saw last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Events in a page when the caller names no number.
const PAGE_EVENTS_DEFAULT: u32 = 100;
/// Bytes of details after which a page ends, whatever was asked for; the event that reaches it is still in it.
pub(crate) const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// What an event number may be.
const SEQ: RangeInclusive<i64> = 0..=i64::MAX;

/// Read a run's events
///
/// With `Accept: text/event-stream`: all events behind `Last-Event-ID` (or `after`), then live ones, each with its
/// number as `id`, its kind as `event` and the event in one line as `data`. Pieces of live text come as `event: delta`
/// without an id. Behind the run's last event comes `event: end`, and the stream ends. A stream that ends without it
/// was cut: come again with `Last-Event-ID`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/events", tag = "events", operation_id = "read_run_events",
    params(
        ("id" = String, Path, description = "The run's id"),
        ("after" = Option<i64>, Query, description = "Only events behind this number, 0 if left out", minimum = 0),
        ("limit" = Option<i64>, Query, description = "Most items of a page, 100 if left out; long events make a page shorter", minimum = 1, maximum = 1000),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`, for streams; of both, it counts", pattern = "^([0-9]{1,18})?$"),
    ),
    responses(
        (status = 200, description = "A page, or a stream", content(
            (EventPage = "application/json"),
            (String = "text/event-stream"),
        )),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many streams are open (`streams_full`), or too many with this key (`streams_of_key_full`)", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn read_run_events(
    State(app): State<App>,
    Reader(caller): Reader,
    RunPath(id): RunPath,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let wanted = Wanted::take(&headers, params)?;
    let run = app.store().run(&caller.project, &id).await?.ok_or_else(unknown_run)?;
    let source = Source::Run { project: run.project, run: run.id, session: run.session };
    answer(&app, &caller, source, wanted).await
}

/// Read a session's events
///
/// As the events of a run, for all runs of the session. A session has no end, so its stream has none either.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/events", tag = "events", operation_id = "read_session_events",
    params(
        ("id" = String, Path, description = "The session's id"),
        ("after" = Option<i64>, Query, description = "Only events behind this number, 0 if left out", minimum = 0),
        ("limit" = Option<i64>, Query, description = "Most items of a page, 100 if left out; long events make a page shorter", minimum = 1, maximum = 1000),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`, for streams; of both, it counts", pattern = "^([0-9]{1,18})?$"),
    ),
    responses(
        (status = 200, description = "A page, or a stream", content(
            (EventPage = "application/json"),
            (String = "text/event-stream"),
        )),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such session", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many streams are open (`streams_full`), or too many with this key (`streams_of_key_full`)", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn read_session_events(
    State(app): State<App>,
    Reader(caller): Reader,
    SessionPath(id): SessionPath,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let wanted = Wanted::take(&headers, params)?;
    let session = app.store().session(&caller.project, &id).await?.ok_or_else(unknown_session)?;
    answer(&app, &caller, Source::Session(session.id), wanted).await
}

/// What the caller wants of the events.
struct Wanted {
    form: &'static str,
    after: i64,
    limit: u32,
}

impl Wanted {
    fn take(headers: &HeaderMap, mut params: Params) -> Result<Self, ApiError> {
        let form = choose(headers, &[JSON, EVENT_STREAM])?;
        let after = params.take_in("after", SEQ).unwrap_or(0);
        let most = i64::from(limits::EVENT_PAGE_ITEMS);
        let limit = params.take_in("limit", 1..=most).and_then(|limit| u32::try_from(limit).ok());
        params.finish()?;
        let after = last_event_id(headers)?.unwrap_or(after);
        Ok(Self { form, after, limit: limit.unwrap_or(PAGE_EVENTS_DEFAULT) })
    }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.parse().ok()).filter(|seq| SEQ.contains(seq)) {
        Some(seq) => Ok(Some(seq)),
        // Browsers send the header empty when they saw no id yet.
        None if value.is_empty() => Ok(None),
        None => Err(ApiError::Header {
            code: "last_event_id_invalid",
            message: "the Last-Event-ID header is not the id of an event: a whole number".to_owned(),
        }),
    }
}

async fn answer(app: &App, caller: &Principal, source: Source, wanted: Wanted) -> Result<Response, ApiError> {
    if wanted.form == EVENT_STREAM {
        return sse::stream(app, caller.key.clone(), source, wanted.after);
    }
    let page = page(app.store(), &source, wanted.after, wanted.limit).await?;
    Ok(Json(page).into_response())
}

/// Reads a page in short steps until it has `limit` events or [`PAGE_BYTES`].
async fn page(store: &Store, source: &Source, after: i64, limit: u32) -> Result<EventPage, ApiError> {
    let limit = limit as usize;
    let mut page = EventPage { items: Vec::new(), next_after: after, more: false };
    let mut bytes = 0;
    loop {
        // One more than wanted tells whether there are more.
        let missing = u32::try_from(limit + 1 - page.items.len()).unwrap_or(u32::MAX);
        let events = source.read(store, page.next_after, missing).await?;
        if events.is_empty() {
            return Ok(page);
        }
        for event in events {
            if page.items.len() == limit || bytes >= PAGE_BYTES {
                page.more = true;
                return Ok(page);
            }
            bytes += event.data.get().len();
            page.next_after = event.seq;
            page.items.push(event.into());
        }
    }
}
