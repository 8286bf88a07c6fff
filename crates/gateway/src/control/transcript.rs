//! `PUT` and `GET /transcript/<run>`: the agent's own record of the session's conversation, kept so that the session can go on
//! where nothing of its home is left. Nobody here reads what is in it: it is text of a bounded length, without live secrets.

use std::sync::Arc;

use bytes::Bytes;
use caisson_domain::checks::{Check, stands};
use caisson_domain::id::RunId;
use caisson_domain::limits::TRANSCRIPT_BYTES;
use caisson_domain::protocol::paths;
use caisson_domain::redact::{Redactor, Stream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{heavy, read_body, redaction};
use crate::body::{self, Body, BodyFault};
use crate::problem::{Refusal, bare};
use crate::shared::Door;

/// Keeps the transcript, in place of the session's older one.
pub(super) async fn put(door: &Arc<Door>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let run = placed(door, request.uri().path()).await?;
    let (bytes, permit) = read_body(door, request, TRANSCRIPT_BYTES).await?;
    let redactor = door.shared.secrets.redactor();
    let (text, redacted) = heavy(bytes.len(), move || clean(&bytes, redactor)).await??;
    let stored = door.shared.store.put_transcript(&run, &text).await;
    drop(permit);
    if redacted {
        redaction::alarm(door, Some(&run), "the transcript").await;
    }
    let stored = stored.map_err(|error| Refusal::store(&error))?;
    if stored { Ok(bare(StatusCode::NO_CONTENT)) } else { Err(refused()) }
}

/// Answers the session's archived transcript.
pub(super) async fn get(door: &Arc<Door>, path: &str) -> Result<Response<Body>, Refusal> {
    let _placed = placed(door, path).await?;
    let found = door.shared.store.read_transcript(&door.session).await;
    let Some(text) = found.map_err(|error| Refusal::store(&error))? else {
        let message = "no transcript of the session is archived";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no_transcript", message));
    };
    let mut response = Response::new(body::full(text));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// The run that the path names, which must be the one that runs in the sandbox.
async fn placed(door: &Door, path: &str) -> Result<RunId, Refusal> {
    let name = path.strip_prefix(paths::TRANSCRIPT).and_then(|rest| rest.strip_prefix('/'));
    let run: RunId = name
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| Refusal::bad_request("the path does not name a run"))?;
    let placed = door.shared.store.door_run(&door.sandbox).await.map_err(|error| Refusal::store(&error))?;
    if placed.is_none_or(|placed| placed.id != run) && stands(Check::ArtifactRun) {
        return Err(refused());
    }
    Ok(run)
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
