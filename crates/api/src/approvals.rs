//! `/v1/runs/{id}/approvals`: what agents ask before they use a tool, and the answers.

use axum::Json;
use axum::extract::State;
use caisson_domain::approval::{
    APPROVAL_MESSAGE_BYTES, Answer, ApprovalState, CHANGED_INPUT_BYTES, DefaultAnswer,
};
use caisson_domain::id::{ApprovalId, RunId};
use caisson_store::{AnswerApproval, Answered, Approval};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::auth::{Reader, Writer};
use crate::extract::{
    ApprovalPath, Fields, JsonObject, NoParams, Params, RunPath, unknown_approval, unknown_run,
};
use crate::inputs::check_text;
use crate::listing::{encode, take_cursor};
use crate::problem::{ApiError, Faults, Problem};
use crate::state::App;

/// Bytes of what was asked and answered after which the list ends; the approval that reaches them is still in it.
const LIST_BYTES: usize = 4 * 1024 * 1024;
/// What the agent is told of a denial without a message.
const DENIED: &str = "Somebody said no. Go on without it.";

/// The answer to an approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerRequest {
    /// `allow` or `deny`.
    #[schema(value_type = crate::schema::DefaultAnswer)]
    pub decision: DefaultAnswer,
    /// With `deny`: what the agent is told, at most 8 KiB, not blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^[^\x00]*[^\x00\s][^\x00]*$")]
    pub message: Option<String>,
    /// With `allow`: what the tool is given in place of what the agent wanted, all of it, at most 256 KiB of JSON. The agent's own
    /// questions (`AskUserQuestion`) are answered by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub input: Option<Map<String, Value>>,
}

/// What an agent asks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApprovalView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ApprovalId,
    /// The run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// The tool that the agent wants to use.
    pub tool: String,
    /// What the agent says of it.
    pub description: Option<String>,
    /// What it wants to give to the tool, as it was written; its text if it lies deeper than 100 lists and objects, and the beginning of
    /// that if it is longer than 64 KiB.
    #[schema(value_type = Object)]
    pub input: Box<RawValue>,
    /// Bytes that are not shown of it.
    pub input_cut_bytes: i64,
    /// Where it stands.
    #[schema(value_type = crate::schema::ApprovalState)]
    pub state: ApprovalState,
    /// What it comes to if nobody answers.
    #[schema(value_type = crate::schema::DefaultAnswer)]
    pub default: DefaultAnswer,
    /// Unix ms.
    pub requested_at_ms: i64,
    /// When it has the default answer, Unix ms.
    pub expires_at_ms: i64,
    /// When it was answered or withdrawn, Unix ms.
    pub decided_at_ms: Option<i64>,
    /// The key that answered.
    pub decided_by: Option<String>,
    /// The answer: `allow` or `deny`.
    #[schema(value_type = Option<crate::schema::DefaultAnswer>)]
    pub decision: Option<DefaultAnswer>,
    /// What the agent was told with a denial.
    pub message: Option<String>,
    /// What the tool was given in place of what the agent wanted.
    #[schema(value_type = Option<Object>)]
    pub changed_input: Option<Box<RawValue>>,
}

/// What the agent of a run asked.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApprovalList {
    /// Oldest first; all of it, at most 200, unless it is longer than 4 MiB.
    pub items: Vec<ApprovalView>,
    /// Asks for what follows, as `cursor`; none at the end.
    pub next_cursor: Option<String>,
}

impl From<Approval> for ApprovalView {
    fn from(approval: Approval) -> Self {
        let input = approval.input();
        let (decision, message, changed_input) = match approval.answer {
            None => (None, None, None),
            Some(Answered::Allow { input }) => {
                let input = input.and_then(|input| RawValue::from_string(input).ok());
                (Some(DefaultAnswer::Allow), None, input)
            }
            Some(Answered::Deny { message }) => (Some(DefaultAnswer::Deny), Some(message), None),
        };
        Self {
            id: approval.id,
            run_id: approval.run,
            tool: approval.asked.tool,
            description: approval.asked.description,
            input,
            input_cut_bytes: approval.asked.cut_bytes,
            state: approval.state,
            default: approval.default,
            requested_at_ms: approval.requested_at_ms,
            expires_at_ms: approval.expires_at_ms,
            decided_at_ms: approval.decided_at_ms,
            decided_by: approval.decided_by,
            decision,
            message,
            changed_input,
        }
    }
}

/// List what a run's agent asked
#[utoipa::path(
    get, path = "/v1/runs/{id}/approvals", tag = "runs", operation_id = "list_approvals",
    params(
        ("id" = String, Path, description = "The run's id"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "The approvals, oldest first", body = ApprovalList),
        (status = 400, description = "A parameter that cannot be used", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such run", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list_approvals(
    State(app): State<App>,
    Reader(caller): Reader,
    RunPath(id): RunPath,
    mut params: Params,
) -> Result<Json<ApprovalList>, ApiError> {
    let after = take_cursor::<ApprovalId>(&mut params);
    params.finish()?;
    let found = app.store().approvals(&caller.project, (&id, after.as_ref()), LIST_BYTES).await?;
    let page = found.ok_or_else(unknown_run)?;
    let next_cursor = page.items.last().filter(|_| page.more).map(|last| encode(last.id.as_str()));
    Ok(Json(ApprovalList { items: page.items.into_iter().map(ApprovalView::from).collect(), next_cursor }))
}

/// Answer what a run's agent asked
///
/// The first answer counts, also over the one that it has at its expiry.
#[utoipa::path(
    post, path = "/v1/runs/{id}/approvals/{approval}", tag = "runs", operation_id = "answer_approval",
    request_body = AnswerRequest,
    params(
        ("id" = String, Path, description = "The run's id"),
        ("approval" = String, Path, description = "The approval's id"),
    ),
    responses(
        (status = 200, description = "The answer is on its way to the agent", body = ApprovalView),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "The project has no such run, or the run no such approval", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It was answered before, has expired, or is withdrawn", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is longer than 4 MiB, or has more than 20000 values", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not called JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Faults in the request, told together", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn answer_approval(
    State(app): State<App>,
    Writer(caller): Writer,
    ApprovalPath(run, approval): ApprovalPath,
    _: NoParams,
    JsonObject(fields): JsonObject,
) -> Result<Json<ApprovalView>, ApiError> {
    let answer = read(fields)?;
    let of = (&run, &approval);
    match app.store().answer_approval(&caller.project, of, &answer, &caller.key).await? {
        AnswerApproval::Unknown => Err(unknown_approval()),
        AnswerApproval::Over(approval) => Err(over(&approval)),
        AnswerApproval::Answered(approval) => Ok(Json((*approval).into())),
    }
}

fn read(mut fields: Fields) -> Result<Answer, ApiError> {
    let mut faults = Faults::default();
    let decision = fields.require::<String>("decision", &mut faults).and_then(|decision| {
        let parsed = decision.parse::<DefaultAnswer>();
        parsed.map_err(|error| faults.add("decision", "invalid_value", error.to_string())).ok()
    });
    let message: Option<String> = fields.take("message", &mut faults);
    let input: Option<std::collections::BTreeMap<String, Value>> = fields.take("input", &mut faults);
    fields.finish(&mut faults);
    if let Some(message) = &message {
        check_text("message", message, APPROVAL_MESSAGE_BYTES, &mut faults);
    }
    let input: Option<Map<String, Value>> = input.map(|input| input.into_iter().collect());
    let bytes =
        input.as_ref().and_then(|input| serde_json::to_string(input).ok()).map_or(0, |json| json.len());
    if bytes > CHANGED_INPUT_BYTES {
        let told = format!("it has {bytes} bytes of JSON; at most {CHANGED_INPUT_BYTES} are taken");
        faults.add("input", "too_long", told);
    }
    if decision == Some(DefaultAnswer::Allow) && message.is_some() {
        faults.add("message", "not_with_allow", "a message goes with a denial alone");
    }
    if decision == Some(DefaultAnswer::Deny) && input.is_some() {
        faults.add("input", "not_with_deny", "an input goes with `allow` alone");
    }
    match decision {
        Some(DefaultAnswer::Allow) if faults.is_empty() => Ok(Answer::Allow { input }),
        Some(DefaultAnswer::Deny) if faults.is_empty() => {
            Ok(Answer::Deny { message: message.unwrap_or_else(|| DENIED.to_owned()) })
        }
        Some(_) | None => Err(ApiError::InvalidInput(faults)),
    }
}

fn over(approval: &Approval) -> ApiError {
    let how = match approval.state {
        ApprovalState::Allowed => "somebody allowed it",
        ApprovalState::Denied => "somebody denied it",
        ApprovalState::Expired => "nobody answered in time, and it has its default answer",
        ApprovalState::Withdrawn => "the agent no longer waits for it",
        ApprovalState::Waiting => "its run ends now",
    };
    ApiError::Conflict { code: "approval_over", detail: format!("the approval waits for no answer: {how}") }
}
