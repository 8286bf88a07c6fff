//! Attachments of runs and inputs: read from a request, shown without their bytes, and given out as a download.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use caisson_domain::attachment::{
    ATTACHMENT_BODY_BYTES, ATTACHMENT_BYTES, ATTACHMENTS, ATTACHMENTS_BYTES, Attachment, AttachmentKind,
    IMAGE_SIDE_PX, Image, check_name,
};
use caisson_domain::id::RunId;
use caisson_store::{AttachmentPieces, AttachmentsFull, NewAttachment, StoreError};
use futures_util::stream::{self, Stream, StreamExt};
use http::HeaderMap;
use http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use crate::auth::Reader;
use crate::body::{Large, read_large};
use crate::extract::{Fields, NoParams, RunPath, is_json, path_param, unknown_run};
use crate::negotiate::{BYTES, choose};
use crate::problem::{ApiError, Faults, Problem};
use crate::runs::download;
use crate::state::App;

/// The longest text that [`ATTACHMENT_BYTES`] have in base64.
const BASE64_BYTES: usize = ATTACHMENT_BYTES.div_ceil(3) * 4;

/// The run and the number of its attachment that the path names.
pub(crate) struct AttachmentPath(pub(crate) RunId, pub(crate) i64);

/// A JSON object that may carry attachments, read whole up to [`ATTACHMENT_BODY_BYTES`]. What is longer than other bodies has a place
/// among few, which is held as long as this is.
pub(crate) struct AttachedObject {
    pub(crate) fields: Fields,
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl FromRequest<App> for AttachedObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::MediaType);
        }
        let (parts, body) = request.into_parts();
        let Large { bytes, place } = read_large(app, &parts, body, ATTACHMENT_BODY_BYTES).await?;
        Ok(Self { fields: Fields::parse(&bytes)?, place })
    }
}

impl FromRequestParts<App> for AttachmentPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let RunPath(run) = RunPath::from_request_parts(parts, app).await?;
        let number = path_param(parts, app, "number").await.and_then(|number| number.parse().ok());
        Ok(Self(run, number.ok_or_else(unknown_attachment)?))
    }
}

pub(crate) fn unknown_attachment() -> ApiError {
    ApiError::Unknown { code: "unknown_attachment", detail: "the run has no such attachment".to_owned() }
}

/// An image or a file for the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAttachment {
    /// A plain file name: 1 to 128 bytes of UTF-8 without slash, backslash, control or invisible characters.
    #[schema(example = "screenshot.png", min_length = 1, max_length = 128)]
    pub name: String,
    /// `image`: the agent is shown it; a PNG, JPEG, GIF or WebP image by its first bytes, of at most 8000 pixels a side. `file`: it is
    /// put into the sandbox, outside the workspace, and its path is told to the agent. Left out, it is an image if its bytes are
    /// one, whatever its name, and else a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<crate::schema::AttachmentKind>)]
    pub kind: Option<AttachmentKind>,
    /// Its bytes in base64 (RFC 4648, section 4, with padding): at most 8 MiB, and 12 MiB with all others of the request.
    #[schema(example = "aGVsbG8K", content_encoding = "base64")]
    pub content: String,
}

/// An attachment, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentView {
    /// Its number in the run, from 0, by which it can be fetched.
    pub number: i64,
    /// Its name.
    pub name: String,
    /// How it reaches the agent.
    #[schema(value_type = crate::schema::AttachmentKind)]
    pub kind: AttachmentKind,
    /// Of an image, what it is.
    pub media_type: Option<String>,
    /// Its size.
    pub size_bytes: i64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
}

impl From<Attachment> for AttachmentView {
    fn from(attachment: Attachment) -> Self {
        let Attachment { number, name, kind, media_type, size_bytes, sha256 } = attachment;
        Self { number, name, kind, media_type, size_bytes, sha256 }
    }
}

/// Those of a run or an input.
pub(crate) fn views(attachments: Vec<Attachment>) -> Vec<AttachmentView> {
    attachments.into_iter().map(AttachmentView::from).collect()
}

/// Get an attachment
///
/// What was sent with the run's task or with an input to it, byte for byte. Its number is in the run's, or the input's,
/// `attachments`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/attachments/{number}", tag = "runs", operation_id = "get_attachment",
    params(
        ("id" = String, Path, description = "The run's id"),
        ("number" = i64, Path, description = "The attachment's number", minimum = 0),
    ),
    responses(
        (status = 200, description = "The bytes", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "No such run or attachment", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get_attachment(
    State(app): State<App>,
    Reader(caller): Reader,
    AttachmentPath(id, number): AttachmentPath,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    choose(&headers, &[BYTES])?;
    app.store().run(&caller.project, &id).await?.ok_or_else(unknown_run)?;
    let mut pieces = app.store().attachment_pieces(&id, number).await?.ok_or_else(unknown_attachment)?;
    let head = download(&pieces.what().name, pieces.what().size_bytes);
    // What is wrong from the beginning is told instead of sent.
    let first = pieces.next().await?;
    Ok((head, Body::from_stream(sent(first, pieces))).into_response())
}

/// An attachment on its way: one piece of it is in memory, and the next one is read when the reader has taken that. One that turns out
/// not to be what was stored is broken off before its last piece.
fn sent(
    first: Option<Vec<u8>>,
    pieces: AttachmentPieces,
) -> impl Stream<Item = Result<Vec<u8>, StoreError>> + Send {
    let rest = stream::try_unfold(pieces, |mut pieces| async move {
        let piece = pieces.next().await.inspect_err(|error| {
            tracing::error!(error = %error, "a download of an attachment was broken off");
        })?;
        Ok(piece.map(|piece| (piece, pieces)))
    });
    stream::iter(first.map(Ok)).chain(rest)
}

/// Takes the field `attachments`.
pub(crate) fn take(fields: &mut Fields, faults: &mut Faults) -> Vec<CreateAttachment> {
    let items = match fields.take_value("attachments") {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(items)) => items,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            faults.add("attachments", "wrong_type", "it is not a list");
            return Vec::new();
        }
    };
    if items.len() > ATTACHMENTS {
        let message = format!("it has {} items; at most {ATTACHMENTS} are taken", items.len());
        faults.add("attachments", "too_many", message);
        return Vec::new();
    }
    let mut taken = Vec::with_capacity(items.len());
    for (place, item) in items.into_iter().enumerate() {
        let place = format!("attachments[{place}]");
        if let Value::Object(map) = item {
            taken.extend(take_one(Fields::within(&place, map), faults));
        } else {
            faults.add(&place, "wrong_type", "it is not an object");
        }
    }
    taken
}

fn take_one(mut fields: Fields, faults: &mut Faults) -> Option<CreateAttachment> {
    let name = fields.require::<String>("name", faults);
    let content = fields.require::<String>("content", faults);
    let path = fields.path("kind");
    let kind = fields.take::<String>("kind", faults).and_then(|kind| {
        let parsed = kind.parse::<AttachmentKind>();
        parsed.map_err(|error| faults.add(&path, "invalid_value", error.to_string())).ok()
    });
    fields.finish(faults);
    Some(CreateAttachment { name: name?, kind, content: content? })
}

/// Checks attachments and decodes them; what is wrong is a fault, and they may be used only if there is none.
pub(crate) fn check(attachments: Vec<CreateAttachment>, faults: &mut Faults) -> Vec<NewAttachment> {
    let mut checked = Vec::with_capacity(attachments.len());
    let mut together = 0_usize;
    for (place, attachment) in attachments.into_iter().enumerate() {
        let place = format!("attachments[{place}]");
        if let Err(error) = check_name(&attachment.name) {
            faults.add(&format!("{place}.name"), "name_invalid", error.to_string());
        }
        let field = format!("{place}.content");
        let Some(content) = decode(&field, &attachment.content, faults) else { continue };
        together += content.len();
        match media_type(attachment.kind, &content) {
            Ok(media_type) => checked.push(NewAttachment::new(&attachment.name, media_type, content)),
            Err((code, message)) => faults.add(&field, code, message),
        }
    }
    if together > ATTACHMENTS_BYTES {
        let message = format!("they have {together} bytes together; at most {ATTACHMENTS_BYTES} are taken");
        faults.add("attachments", "attachments_too_large", message);
    }
    checked
}

fn decode(field: &str, base64: &str, faults: &mut Faults) -> Option<Vec<u8>> {
    let too_large = |faults: &mut Faults, bytes: String| {
        let message = format!("it has {bytes} bytes; at most {ATTACHMENT_BYTES} are taken");
        faults.add(field, "attachment_too_large", message);
        None
    };
    if base64.len() > BASE64_BYTES {
        return too_large(faults, format!("about {}", base64.len() / 4 * 3));
    }
    match STANDARD.decode(base64) {
        Ok(content) if content.len() > ATTACHMENT_BYTES => too_large(faults, content.len().to_string()),
        Ok(content) => Some(content),
        Err(error) => {
            let message = format!("it is no base64 with padding (RFC 4648, section 4): {error}");
            faults.add(field, "not_base64", message);
            None
        }
    }
}

/// What the agent is shown it as; none if it is a file. Which it is, its bytes say, unless the request does.
fn media_type(
    kind: Option<AttachmentKind>,
    content: &[u8],
) -> Result<Option<&'static str>, (&'static str, String)> {
    let as_file = "give it the kind \"file\" to have it put into the sandbox as a file";
    let image = match (kind, Image::read(content)) {
        (Some(AttachmentKind::File), _) | (None, None) => return Ok(None),
        (Some(AttachmentKind::Image), None) => {
            let message =
                format!("its bytes are no PNG, JPEG, GIF or WebP image; send such a one, or {as_file}");
            return Err(("not_an_image", message));
        }
        (Some(AttachmentKind::Image) | None, Some(image)) => image,
    };
    match image.size_px {
        Some((width, height)) if width.max(height) <= IMAGE_SIDE_PX => Ok(Some(image.media_type)),
        Some((width, height)) => {
            let message = format!(
                "the image has {width} by {height} pixels, and at most {IMAGE_SIDE_PX} a side are taken; make it smaller, or {as_file}"
            );
            Err(("image_too_large", message))
        }
        None => {
            let message = format!(
                "it begins as {}, but its size cannot be read: it is damaged; mend it, or {as_file}",
                image.media_type
            );
            Err(("image_damaged", message))
        }
    }
}

/// The refusal when there is no room for more.
pub(crate) fn no_room(full: AttachmentsFull) -> ApiError {
    match full {
        AttachmentsFull::Run => ApiError::Conflict {
            code: "run_attachments_full",
            detail: format!(
                "the attachments of the run and its inputs would have more than {} bytes together; send less, or begin another run",
                caisson_domain::attachment::RUN_ATTACHMENTS_BYTES
            ),
        },
        AttachmentsFull::Project => ApiError::Conflict {
            code: "project_attachments_full",
            detail: format!(
                "the attachments that the project keeps would have more than {} bytes together; delete sessions that have some, or \
                 have them kept for fewer days",
                caisson_domain::attachment::PROJECT_ATTACHMENTS_BYTES
            ),
        },
    }
}

#[cfg(test)]
#[path = "attachments_tests.rs"]
mod tests;
