//! `GET /attachments/<run>/<number>`: an image or a file that came with the run's task or with an input, byte for byte as it was
//! sent. Nothing is taken out of it: a secret in it is one that whoever sent it wanted the agent to have.

use std::sync::Arc;

use caisson_domain::checks::{Check, stands};
use caisson_domain::id::RunId;
use caisson_domain::protocol::{ATTACHMENT_BUSY, paths};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};

use super::own;
use super::transcript::pieces;
use crate::body::{self, Body};
use crate::git;
use crate::problem::Refusal;
use crate::shared::Door;

/// Answers an attachment of the run in the sandbox. It counts as under way until the sandbox has read it or is left.
pub(super) async fn get(door: &Arc<Door>, path: &str) -> Result<Response<Body>, Refusal> {
    let (run, number) = parse(path)?;
    let (placed, is_own) = own::placed(door, &run).await?;
    if !is_own && stands(Check::ArtifactRun) {
        own::tell_other(door, "attachment", placed.as_ref(), &run).await;
        let message = "attachments are those of the run that is running in this sandbox and of no other";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "attachment_refused", message));
    }
    let exchange = Arc::clone(&door.attachments).try_acquire_owned().map_err(|_| {
        let message = "an attachment is on its way to this sandbox already; read that one first";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, ATTACHMENT_BUSY, message)
    })?;
    let found = door.shared.store.read_attachment(&run, number).await;
    let Some((_, content)) = found.map_err(|error| Refusal::store(&error))? else {
        let message = "the run has no attachment of that number";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no_attachment", message));
    };
    let shared = &door.shared;
    let chunks = git::carried(&shared.tracker, &shared.bounds, exchange, pieces(content.into()));
    let mut response = Response::new(body::from_stream(chunks));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

/// The run and the number that the path names.
fn parse(path: &str) -> Result<(RunId, i64), Refusal> {
    let rest = path.strip_prefix(paths::ATTACHMENTS).and_then(|rest| rest.strip_prefix('/'));
    let named = rest.and_then(|rest| rest.split_once('/')).and_then(|(run, number)| {
        let number = number.parse().ok().filter(|number| *number >= 0)?;
        Some((run.parse().ok()?, number))
    });
    named.ok_or_else(|| Refusal::bad_request("the path does not name a run and an attachment's number"))
}
