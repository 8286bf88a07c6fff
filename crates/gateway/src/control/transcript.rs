//! `PUT` and `GET /transcript/<run>`: the agent's own record of the session's conversation, kept so that the session can go on
//! where nothing of its home is left. Nobody here reads what is in it: it is text of a bounded length, without live secrets.

use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::checks::{Check, stands};
use caisson_domain::id::RunId;
use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::{TRANSCRIPT_BUSY, TRANSCRIPT_EARLY, paths};
use caisson_domain::redact::{Redactor, Stream};
use futures_util::stream::{self, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::{heavy, own, read_body, redaction};
use crate::body::{self, Body, BodyFault, Chunks};
use crate::bounds::{CHUNK_BYTES, TRANSCRIPT_PUTS};
use crate::git;
use crate::problem::{Refusal, bare};
use crate::shared::Door;

/// Keeps the transcript, in place of the session's older one.
pub(super) async fn put(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let run = placed(door, request.uri().path()).await?;
    if !run.agent_started {
        let message = "the run's agent has not started, so it has no conversation; send it afterwards";
        return Err(Refusal::new(StatusCode::CONFLICT, TRANSCRIPT_EARLY, message));
    }
    let _exchange = exchange(door)?;
    if !door.takes_transcript(&run.id) {
        let message = format!("{TRANSCRIPT_PUTS} transcripts of the run were taken, and no more are");
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "transcripts_full", message));
    }
    let (bytes, permit) = read_body(door, request.into_body(), TRANSCRIPT_BYTES).await?;
    let redactor = door.secrets.redactor();
    let (text, redacted) = heavy(bytes.len(), move || clean(&bytes, redactor)).await??;
    // Before it is written: whoever hangs up meanwhile has had it written all the same.
    door.count_transcript(&run.id, 1);
    let stored = door.shared.store.put_transcript(&run.id, &text).await;
    drop(permit);
    if redacted {
        redaction::alarm(door, Some(&run.id), "the transcript").await;
    }
    match stored {
        Ok(true) => Ok(bare(StatusCode::NO_CONTENT)),
        Ok(false) => Err(refused()),
        Err(error) => {
            door.count_transcript(&run.id, -1);
            Err(Refusal::store(&error))
        }
    }
}

/// Answers the session's archived transcript. It counts as under way until the sandbox has read it or is left.
pub(super) async fn get(door: &Arc<Door>, path: &str) -> Result<Response<Body>, Refusal> {
    let _placed = placed(door, path).await?;
    let exchange = exchange(door)?;
    let found = door.shared.store.read_transcript(&door.session).await;
    let Some(text) = found.map_err(|error| Refusal::store(&error))? else {
        let message = "no transcript of the session is archived";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no_transcript", message));
    };
    let shared = &door.shared;
    let chunks = git::carried(&shared.tracker, &shared.bounds, exchange, pieces(text.into()));
    let mut response = Response::new(body::from_stream(chunks));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// The right to have a transcript under way.
fn exchange(door: &Door) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(&door.transcripts).try_acquire_owned().map_err(|_| {
        let message = "a transcript of this sandbox is on its way already; read or send that one first";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, TRANSCRIPT_BUSY, message)
    })
}

pub(super) fn pieces(text: Bytes) -> Chunks {
    stream::unfold(text, |mut rest| async move {
        let piece = rest.split_to(rest.len().min(CHUNK_BYTES));
        (!piece.is_empty()).then_some((Ok(piece), rest))
    })
    .boxed()
}

/// The run that the path names, which must be the one that runs in the sandbox.
async fn placed(door: &Door, path: &str) -> Result<Named, Refusal> {
    let name = path.strip_prefix(paths::TRANSCRIPT).and_then(|rest| rest.strip_prefix('/'));
    let id: RunId = name
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| Refusal::bad_request("the path does not name a run"))?;
    let (placed, is_own) = own::placed(door, &id).await?;
    if !is_own && stands(Check::ArtifactRun) {
        own::tell_other(door, "transcript", placed.as_ref(), &id).await;
        return Err(refused());
    }
    Ok(Named { id, agent_started: placed.is_some_and(|placed| placed.agent_started) })
}

/// A run that a path names.
struct Named {
    id: RunId,
    /// Of the run in the sandbox.
    agent_started: bool,
}

fn refused() -> Refusal {
    let message = "a transcript is that of the run that is running in this sandbox and of no other";
    Refusal::new(StatusCode::FORBIDDEN, "transcript_refused", message)
}

/// The text without live secrets, and whether there was one.
fn clean(bytes: &Bytes, redactor: Arc<Redactor>) -> Result<(String, bool), Refusal> {
    let mut stream = Stream::new(redactor);
    let mut kept = stream.push(bytes).clone();
    kept.extend_from_slice(&stream.finish());
    if kept.len() > TRANSCRIPT_BYTES {
        return Err(Refusal::body(&BodyFault::TooLarge, TRANSCRIPT_BYTES as u64));
    }
    match String::from_utf8(kept) {
        // Not every database can hold one.
        Ok(text) if !text.contains('\0') => Ok((text, stream.found() > 0)),
        Ok(_) | Err(_) => {
            Err(Refusal::bad_request("the transcript is not text; send UTF-8 without the character NUL"))
        }
    }
}
