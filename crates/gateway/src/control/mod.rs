//! The shim's paths: next, journal, inputs, deltas, artifacts, transcript, attachments.

mod artifacts;
mod asking;
mod attachments;
mod deltas;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod journal;
mod own;
mod record;
mod redaction;
mod transcript;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::protocol::{self, Inputs, Work, paths};
use caisson_store::{NextWork, StoreError, Topic};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

pub(crate) use self::artifacts::prepare as prepare_artifacts;
pub(crate) use self::deltas::Window as DeltaWindow;
pub(crate) use self::redaction::LiveText;
use crate::body::{self, Body, BodyFault};
use crate::bounds::{BODY_POOL_BYTES, INLINE_BYTES};
use crate::grants;
use crate::problem::{Refusal, bare, json_response};
use crate::shared::Door;
use crate::work::{self, Delivery, Files};

enum Route {
    Next,
    Journal,
    JournalAck,
    Inputs,
    Deltas,
    Artifact,
    PutTranscript,
    Transcript,
    Attachment,
}

pub(crate) async fn answer(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let route = route(request.method(), request.uri().path())?;
    grants::control(door, request.headers()).await?;
    check_version(request.headers())?;
    match route {
        Route::Next => next(door).await,
        Route::Journal => journal::append(door, request).await,
        Route::JournalAck => journal::acknowledged(door).await,
        Route::Inputs => inputs(door, request.uri()).await,
        Route::Deltas => deltas::publish(door, request).await,
        Route::Artifact => artifacts::put(door, request).await,
        Route::PutTranscript => transcript::put(door, request).await,
        Route::Transcript => transcript::get(door, request.uri().path()).await,
        Route::Attachment => attachments::get(door, request.uri().path()).await,
    }
}

fn route(method: &Method, path: &str) -> Result<Route, Refusal> {
    let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let (below_artifacts, below_transcript) = (below(paths::ARTIFACTS), below(paths::TRANSCRIPT));
    let below_attachments = below(paths::ATTACHMENTS);
    match (path, method) {
        (paths::NEXT, &Method::GET) => Ok(Route::Next),
        (paths::JOURNAL, &Method::POST) => Ok(Route::Journal),
        (paths::JOURNAL, &Method::GET) => Ok(Route::JournalAck),
        (paths::INPUTS, &Method::GET) => Ok(Route::Inputs),
        (paths::DELTAS, &Method::POST) => Ok(Route::Deltas),
        (_, &Method::PUT) if below_artifacts => Ok(Route::Artifact),
        (_, &Method::PUT) if below_transcript => Ok(Route::PutTranscript),
        (_, &Method::GET) if below_transcript => Ok(Route::Transcript),
        (_, &Method::GET) if below_attachments => Ok(Route::Attachment),
        (paths::NEXT | paths::JOURNAL | paths::INPUTS | paths::DELTAS, _) => Err(Refusal::method()),
        _ if below_artifacts || below_transcript || below_attachments => Err(Refusal::method()),
        _ => Err(Refusal::not_found()),
    }
}

/// A shim that speaks a newer protocol than this server is told so; one that says nothing speaks the first.
fn check_version(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(value) = headers.get(protocol::VERSION_HEADER) else { return Ok(()) };
    match value.to_str().ok().and_then(|text| text.parse::<u32>().ok()) {
        Some(version) if (1..=protocol::VERSION).contains(&version) => Ok(()),
        Some(version) => {
            let ours = protocol::VERSION;
            let message =
                format!("the shim speaks protocol {version} and this server {ours}; update the server");
            Err(Refusal::new(StatusCode::BAD_REQUEST, "protocol_unknown", message))
        }
        None => Err(Refusal::bad_request("the protocol's version is not a number")),
    }
}

/// `GET /next`.
async fn next(door: &Door) -> Result<Response<Body>, Refusal> {
    let store = &door.shared.store;
    let found = poll(door, || async {
        Ok(match store.next_work(&door.sandbox).await? {
            NextWork::Nothing => None,
            work @ (NextWork::Run { .. } | NextWork::Exit) => Some(work),
        })
    });
    let work = match found.await? {
        None | Some(NextWork::Nothing) => return Ok(bare(StatusCode::NO_CONTENT)),
        Some(NextWork::Exit) => Work::Exit,
        Some(NextWork::Run {
            run,
            epoch,
            conversation,
            resume,
            archive,
            pushed,
            start,
            start_branch,
            since,
            image,
        }) => {
            let id = run.id.clone();
            let keep = door.shared.keeps;
            let delivery = Delivery {
                run,
                epoch,
                conversation,
                resume,
                archive,
                files: Files { pushed, start, start_branch, since },
                image,
                keep,
            };
            let work = work::run_work(delivery, &door.shared.identity, store.now_ms());
            Work::Run(Box::new(work.map_err(|error| {
                tracing::error!(run.id = %id, error = %error, "the work of {id} cannot be handed out");
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault inside the server")
            })?))
        }
    };
    Ok(json_response(StatusCode::OK, &work))
}

/// `GET /inputs`.
async fn inputs(door: &Door, uri: &Uri) -> Result<Response<Body>, Refusal> {
    let after: i64 = number(uri, "after")?.unwrap_or(0);
    let found = poll(door, || async {
        let items = door.shared.store.inputs_after(&door.sandbox, after).await?;
        Ok((!items.is_empty()).then_some(items))
    });
    let items = found.await?.unwrap_or_default();
    Ok(json_response(StatusCode::OK, &Inputs { items }))
}

/// Asks again at every hint until there is something to say, the long poll's time is over or the door closes. Hints are
/// lost, so it asks without one as well, every [`LOOK`](crate::bounds::LOOK).
async fn poll<T, F, O>(door: &Door, mut ask: O) -> Result<Option<T>, Refusal>
where
    F: Future<Output = Result<Option<T>, StoreError>> + Send,
    O: FnMut() -> F,
{
    let mut watch = door.shared.store.watch(Topic::Sandbox(door.sandbox.clone()));
    let end = Instant::now() + door.shared.bounds.long_poll;
    loop {
        let found = ask().await.map_err(|error| Refusal::store(&error))?;
        let left = end.saturating_duration_since(Instant::now());
        if found.is_some() || left.is_zero() {
            return Ok(found);
        }
        tokio::select! {
            () = door.closed.cancelled() => return Ok(None),
            () = watch.changed(left.min(door.shared.bounds.look)) => {}
        }
    }
}

/// A number in the query; `None` if it is not named.
fn number<T: std::str::FromStr>(uri: &Uri, name: &str) -> Result<Option<T>, Refusal> {
    let query = uri.query().unwrap_or_default();
    let Some((_, value)) = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name) else {
        return Ok(None);
    };
    let parsed = value.parse().map_err(|_| Refusal::bad_request(format!("{name} is not a number")))?;
    Ok(Some(parsed))
}

/// Reads a request's body into memory, within the sandbox's share of it.
pub(crate) async fn read_body(
    door: &Door,
    body: Incoming,
    bound: usize,
) -> Result<(Bytes, tokio::sync::OwnedSemaphorePermit), Refusal> {
    let too_large = || Refusal::body(&BodyFault::TooLarge, bound as u64);
    let hint = http_body::Body::size_hint(&body).upper();
    let announced = match hint {
        Some(bytes) => usize::try_from(bytes).map_err(|_| too_large())?,
        None => bound,
    };
    if announced > bound {
        return Err(too_large());
    }
    let share = u32::try_from(announced.min(BODY_POOL_BYTES)).unwrap_or(u32::MAX);
    let bounds = &door.shared.bounds;
    let permit = timeout(bounds.store_hold, Arc::clone(&door.bodies).acquire_many_owned(share)).await;
    let Ok(Ok(permit)) = permit else {
        let message = "too many large requests of this sandbox are under way; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    match body::collect(body, bound, bounds.body_idle).await {
        Ok(bytes) => Ok((bytes, permit)),
        Err(fault) => Err(Refusal::body(&fault, bound as u64)),
    }
}

/// Runs `read` over a text of `bytes` bytes: here if it is short, else where it keeps nobody waiting.
pub(crate) async fn heavy<T, F>(bytes: usize, read: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if bytes <= INLINE_BYTES {
        return Ok(read());
    }
    tokio::task::spawn_blocking(read).await.map_err(|error| {
        tracing::error!(error = %error, "reading a body failed");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault inside the server")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_paths_of_the_protocol_are_there() {
        let of =
            |method: Method, path: &str| route(&method, path).err().map(|refusal| refusal.status.as_u16());
        assert_eq!(of(Method::GET, "/next"), None);
        assert_eq!(of(Method::PUT, "/artifacts/a/b"), None);
        assert_eq!(of(Method::POST, "/next"), Some(405));
        assert_eq!(of(Method::GET, "/artifacts/a/b"), Some(405));
        assert_eq!(of(Method::PUT, "/transcript/a"), None);
        assert_eq!(of(Method::DELETE, "/transcript/a"), Some(405));
        for missing in ["/", "/next/", "/nextt", "/artifacts", "/transcript", "/v1/runs", "//next"] {
            assert_eq!(of(Method::GET, missing), Some(404), "{missing}");
        }
    }

    #[test]
    fn a_newer_protocol_is_refused_and_a_missing_version_is_the_first() {
        let of = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(protocol::VERSION_HEADER, value.parse().unwrap());
            }
            check_version(&headers).err().map(|refusal| refusal.code)
        };
        assert_eq!(of(None), None);
        assert_eq!(of(Some("1")), None);
        assert_eq!(of(Some(&(protocol::VERSION + 1).to_string())), Some("protocol_unknown"));
        assert_eq!(of(Some("0")), Some("protocol_unknown"));
        assert_eq!(of(Some("one")), Some("bad_request"));
    }

    #[test]
    fn a_number_in_the_query_is_found_or_refused() {
        let of = |text: &str| number::<u64>(&text.parse().unwrap(), "offset");
        assert_eq!(of("/journal?offset=12").unwrap(), Some(12));
        assert_eq!(of("/journal").unwrap(), None);
        assert!(of("/journal?offset=-1").is_err());
        assert!(of("/journal?offset=x").is_err());
    }
}
