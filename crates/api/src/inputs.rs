//! `/v1/runs/{id}/inputs`: what people send to the agent of a live run.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use caisson_domain::id::{ApiKeyId, RunId};
use caisson_domain::input::{INPUT_TEXT_BYTES, InputKind, InputState, RUN_INPUTS};
use caisson_domain::run::{Run, RunStatus};
use caisson_store::{NewInput, RunInput, SendInput};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::attachments::{self, AttachedObject, AttachmentView, CreateAttachment};
use crate::auth::{Reader, Writer};
use crate::extract::{Fields, NoParams, RunPath, unknown_run};
use crate::problem::{ApiError, Faults, Problem};
use crate::runs::{REPLAYED, idempotency_key};
use crate::state::App;

/// An input to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInput {
    /// `steer`: within the agent's turn. `queue`: when the turn has ended, before the run publishes. `interrupt`: at once; what the
    /// agent does is ended.
    #[schema(value_type = crate::schema::InputKind)]
    pub kind: InputKind,
    /// What the agent is told, 1 byte to 64 KiB of UTF-8, not blank. An interruption may go without: then the turn ends, and the
    /// run goes on to publish what there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^[^\x00]*[^\x00\s][^\x00]*$")]
    pub text: Option<String>,
    /// What comes with the text, without which there is nothing: as of a run, and 48 MiB together with the run's own and those of all
    /// its inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<CreateAttachment>>, max_items = 10)]
    pub attachments: Vec<CreateAttachment>,
}

/// An input that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InputView {
    /// Its number in the run's session, growing; the events of it name it as `input`.
    pub seq: i64,
    /// The run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// When it reaches the agent.
    #[schema(value_type = crate::schema::InputKind)]
    pub kind: InputKind,
    /// What the agent is told.
    pub text: Option<String>,
    /// What comes with it, without its bytes; left out if nothing does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<AttachmentView>>)]
    pub attachments: Vec<AttachmentView>,
    /// How far it is.
    #[schema(value_type = crate::schema::InputState)]
    pub state: InputState,
    /// The key that sent it.
    pub created_by: Option<String>,
    /// Unix ms.
    pub created_at_ms: i64,
    /// When its sandbox last told how far it is, Unix ms.
    pub acknowledged_at_ms: Option<i64>,
}

/// The inputs of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InputList {
    /// Oldest first; all of them, at most 100.
    pub items: Vec<InputView>,
}

impl From<RunInput> for InputView {
    fn from(input: RunInput) -> Self {
        let RunInput {
            seq,
            run,
            kind,
            text,
            attachments,
            state,
            created_by,
            created_at_ms,
            acknowledged_at_ms,
        } = input;
        let attachments = attachments::views(attachments);
        Self {
            seq,
            run_id: run,
            kind,
            text,
            attachments,
            state,
            created_by,
            created_at_ms,
            acknowledged_at_ms,
        }
    }
}

/// The idempotency key of a request that has no query.
pub(crate) struct Repeatable(pub(crate) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Repeatable {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        NoParams::from_request_parts(parts, state).await?;
        idempotency_key(&parts.headers).map(Self)
    }
}

/// Send an input to a run
///
/// The agent of a running run is told something, or what it does is ended. How far the input is tell events: `input.accepted` now,
/// then `input.held` (of what waits for the turn's end), `input.delivered` or `input.undelivered`. Repeating the request with the same
/// `Idempotency-Key` finds the same input.
#[utoipa::path(
    post, path = "/v1/runs/{id}/inputs", tag = "runs", operation_id = "send_input",
    request_body = CreateInput,
    params(
        ("id" = String, Path, description = "The run's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters, for this run alone", pattern = "^[!-~]{1,255}$"),
    ),
    responses(
        (status = 202, description = "It is on its way", body = InputView, headers(
            ("Idempotent-Replayed" = String, description = "`true` if it was accepted before"),
        )),
        (status = 400, description = "Not JSON, or a header that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The run is not live: it waits, publishes, ends now or has ended; or it was sent 100 inputs; or there is no room for its attachments", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 21 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "8 inputs (and an interrupt besides), or 16 MiB of attachments, are on their way; come again when one has reached the agent", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn send_input(
    State(app): State<App>,
    Writer(caller): Writer,
    RunPath(id): RunPath,
    Repeatable(idempotency_key): Repeatable,
    AttachedObject { fields, place: _held }: AttachedObject,
) -> Result<Response, ApiError> {
    let new = read(fields, caller.key, idempotency_key)?;
    let (input, replayed) = match app.store().send_input(&caller.project, &id, &new).await? {
        SendInput::Unknown => return Err(unknown_run()),
        SendInput::NotLive(run) => return Err(not_live(&run)),
        SendInput::Full => return Err(ApiError::InputsFull),
        SendInput::Spent => return Err(spent()),
        SendInput::AttachmentsFull(full) => return Err(attachments::no_room(full)),
        SendInput::KeyReused => return Err(ApiError::KeyReused),
        SendInput::Sent(input) => (input, false),
        SendInput::Replayed(input) => (input, true),
    };
    let replayed = replayed.then_some([(REPLAYED, "true")]);
    Ok((StatusCode::ACCEPTED, replayed, Json(InputView::from(input))).into_response())
}

/// List a run's inputs
#[utoipa::path(
    get, path = "/v1/runs/{id}/inputs", tag = "runs", operation_id = "list_inputs",
    params(("id" = String, Path, description = "The run's id")),
    responses(
        (status = 200, description = "The inputs, oldest first", body = InputList),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_inputs(
    State(app): State<App>,
    Reader(caller): Reader,
    RunPath(id): RunPath,
    _: NoParams,
) -> Result<Json<InputList>, ApiError> {
    let inputs = app.store().inputs(&caller.project, &id).await?.ok_or_else(unknown_run)?;
    Ok(Json(InputList { items: inputs.into_iter().map(InputView::from).collect() }))
}

fn read(mut fields: Fields, by: ApiKeyId, idempotency_key: Option<String>) -> Result<NewInput, ApiError> {
    let mut faults = Faults::default();
    let kind = fields.require::<String>("kind", &mut faults).and_then(|kind| {
        let parsed = kind.parse::<InputKind>();
        parsed.map_err(|error| faults.add("kind", "invalid_value", error.to_string())).ok()
    });
    let text: Option<String> = fields.take("text", &mut faults);
    let attachments = attachments::take(&mut fields, &mut faults);
    let attachments = attachments::check(attachments, &mut faults);
    fields.finish(&mut faults);
    if let Some(text) = &text {
        check_text("text", text, INPUT_TEXT_BYTES, &mut faults);
    } else if kind.is_some_and(InputKind::needs_text) && !faults.mention("text") {
        faults.add("text", "missing_field", "it is required, unless the agent is only to be interrupted");
    } else if !attachments.is_empty() && !faults.mention("text") {
        faults.add(
            "text",
            "missing_field",
            "attachments go with a text; say what the agent should do with them",
        );
    }
    match kind {
        Some(kind) if faults.is_empty() => Ok(NewInput { kind, text, by, idempotency_key, attachments }),
        Some(_) | None => Err(ApiError::InvalidInput(faults)),
    }
}

/// Notes what is wrong with a text that an agent is to be told.
pub(crate) fn check_text(field: &str, text: &str, most_bytes: usize, faults: &mut Faults) {
    if text.trim().is_empty() {
        faults.add(field, "blank", "it is blank");
    } else if text.len() > most_bytes {
        let message = format!("it has {} bytes; at most {most_bytes} are taken", text.len());
        faults.add(field, "too_long", message);
    } else if text.contains('\0') {
        faults.add(field, "nul", "it holds the character NUL, which no text may");
    }
}

fn spent() -> ApiError {
    let detail = format!(
        "the run was sent {RUN_INPUTS} inputs and takes no more; tell the rest to a run that follows it"
    );
    ApiError::Conflict { code: "inputs_spent", detail }
}

fn not_live(run: &Run) -> ApiError {
    let why = match run.status {
        RunStatus::Queued => "it waits for its start",
        RunStatus::Running => "its agent has finished, or ends now",
        RunStatus::Succeeded | RunStatus::Failed | RunStatus::Cancelled => "it has ended",
    };
    let detail = format!("the run takes no inputs: {why}; only a running one with an agent at work does");
    ApiError::Conflict { code: "run_not_live", detail }
}
