//! Refusals, as problem documents (RFC 9457).

use axum::response::{IntoResponse, Response};
use caisson_domain::json::JSON_VALUES;
use caisson_domain::principal::Scope;
use caisson_domain::run::cut;
use caisson_domain::server::PlacementProblem;
use caisson_store::StoreError;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Media type of a problem document.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Most faults of one request that are told one by one.
pub(crate) const FAULTS: usize = 50;
/// Longest field name or message in a fault, in bytes.
const FAULT_TEXT_BYTES: usize = 1024;
/// When to come again after a 429 or 503, in seconds.
const RETRY_AFTER_S: u64 = 10;
/// The same where inputs are on their way, which takes less than a second unless they wait for the turn's end.
const INPUTS_RETRY_AFTER_S: u64 = 1;

/// Any error, kept as the source of ours.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a request was refused. Every response of status 400 and above has this body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the `code` says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    pub kind: String,
    /// The status in words.
    #[schema(example = "Unprocessable Entity")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 422)]
    pub status: u16,
    /// What is wrong and what to do; left out for faults of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Stable, for programs. With a single fault it is that fault's code.
    #[schema(example = "unknown_workflow")]
    pub code: String,
    /// Each fault of the request, or each problem of the servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// Names this request in the server's log.
    pub request_id: String,
}

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// The field or parameter, with dots between levels; left out when none is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "resources.memory_mib")]
    pub field: Option<String>,
    /// Stable, for programs.
    #[schema(example = "out_of_range")]
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// The faults found in one request, at most [`FAULTS`] of them; further ones are counted.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    items: Vec<Fault>,
    left_out: usize,
}

impl Faults {
    pub(crate) fn add(&mut self, field: &str, code: &'static str, message: impl Into<String>) {
        if self.items.len() == FAULTS {
            self.left_out += 1;
            return;
        }
        let short = |text: &str| cut(text, FAULT_TEXT_BYTES).to_owned();
        self.items.push(Fault {
            field: Some(short(field)),
            code: code.to_owned(),
            message: short(&message.into()),
        });
    }

    /// Whether a fault of this very field is known already.
    pub(crate) fn mention(&self, field: &str) -> bool {
        self.items.iter().any(|fault| fault.field.as_deref() == Some(field))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn into_items(self) -> Vec<Fault> {
        self.items
    }

    /// The only fault's code, else `several`.
    fn code(&self, several: &'static str) -> String {
        match self.items.as_slice() {
            [only] => only.code.clone(),
            _ => several.to_owned(),
        }
    }

    fn count(&self) -> String {
        match (self.items.len(), self.left_out) {
            (1, 0) => "1 fault".to_owned(),
            (told, 0) => format!("{told} faults"),
            (told, left_out) => format!("{} faults, of which {told} are told", told + left_out),
        }
    }
}

/// Why a request is refused, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the body is not JSON: {0}")]
    Malformed(String),
    #[error("the body cannot be used: {0}")]
    Body(String),
    #[error("the request's body broke off")]
    BodyBroken,
    #[error("the request's body did not arrive in time; send it faster, or less at once")]
    BodyTimeout,
    #[error("as many large bodies are being dealt with as may be at once; send it again in a while")]
    LargeBodiesFull,
    #[error("as many conversations and runs are being read as may be at once; ask again in a while")]
    LongReadsFull,
    #[error("the request's body is longer than {0} bytes")]
    BodyTooLarge(usize),
    #[error(
        "the request's body has more than {JSON_VALUES} values: members of objects and items of lists, at any depth"
    )]
    BodyTooComplex,
    #[error("the request's body must be JSON: send it with Content-Type: application/json")]
    MediaType,
    #[error("the query cannot be used: {}", .0.count())]
    Query(Faults),
    #[error("{message}")]
    Header { code: &'static str, message: String },
    #[error("an API key is needed: send it as Authorization: Bearer csk_… or in the x-api-key header")]
    KeyMissing,
    #[error("the API key opens nothing: it is unknown, revoked or mistyped")]
    KeyRefused,
    #[error("the API key has used up its requests of this minute; come again in {retry_after_s} s")]
    RateLimited { retry_after_s: u64 },
    #[error(
        "too many API keys that open nothing came from this address; come again in {retry_after_s} s, with a valid key"
    )]
    FailedTooOften { retry_after_s: u64 },
    #[error("the API key lacks the scope {0}")]
    ScopeMissing(Scope),
    #[error("{detail}")]
    Unknown { code: &'static str, detail: String },
    #[error("this path answers with {}", .0.join(" or "))]
    NotAcceptable(&'static [&'static str]),
    #[error("the run was not accepted: {}", .0.count())]
    Invalid(Faults),
    #[error("the request cannot be used: {}", .0.count())]
    InvalidInput(Faults),
    #[error("as many inputs are on their way to the agent as may be; wait for the events that tell of them")]
    InputsFull,
    #[error("pages of other origins may not use this path")]
    OriginRefused,
    #[error("the budget was not set: {}", .0.count())]
    InvalidBudget(Faults),
    #[error("the retention was not set: {}", .0.count())]
    InvalidRetention(Faults),
    #[error("the credential was not accepted: {}", .0.count())]
    InvalidCredential(Faults),
    #[error("the workflow was not accepted: {}", .0.count())]
    InvalidWorkflow(Faults),
    #[error("{detail}")]
    Conflict { code: &'static str, detail: String },
    #[error("the idempotency key was used with another request before; use a new key for a new request")]
    KeyReused,
    #[error("the key was not made: {}", .0.count())]
    InvalidKey(Faults),
    #[error(
        "the project has {} valid keys; revoke those that nobody needs",
        caisson_domain::limits::API_KEYS
    )]
    KeysFull,
    #[error("the project was not made: {}", .0.count())]
    InvalidProject(Faults),
    #[error(
        "projects are made with a key of the default project, or by the operator: `caisson project create`"
    )]
    DefaultProjectOnly,
    #[error("servers are listed with a key of the default project")]
    ServersOfDefaultProject,
    #[error("as many runs wait already as may (queue.max_queued); come again later")]
    QueueFull,
    #[error(
        "as many runs of the project wait already, those that start later among them, as may: its max_queued, else \
         queue.max_queued_per_project, else half of queue.max_queued where there are several projects; come again later, or \
         cancel some"
    )]
    ProjectQueueFull,
    #[error("the queue was not changed: {}", .0.count())]
    InvalidQueue(Faults),
    #[error("the session was not forked: {}", .0.count())]
    InvalidFork(Faults),
    #[error(
        "the project has {} forks without a run; give one of them a run, or have one deleted that nobody needs",
        caisson_domain::limits::FORKS_WITHOUT_RUN
    )]
    ForksFull,
    #[error("the queue belongs to all projects: use a key of the default project, with the scope admin")]
    OperatorsOnly,
    #[error("the usage of other projects is shown to keys of the default project, with the scope admin")]
    UsageOfOthers,
    #[error("too many event streams are open; come again later, or read pages")]
    StreamsFull,
    #[error(
        "the API key has as many event streams open as one key may (api.key_percent of all); close some, or read pages"
    )]
    StreamsOfKeyFull,
    #[error(
        "the API key has as many connections open as one key may (api.key_percent of all); close some, or use those that are open"
    )]
    ConnectionsOfKeyFull,
    #[error("{}", unplaceable(.0))]
    Unplaceable(Vec<PlacementProblem>),
    #[error(
        "the database gave this server no connection for a while: calls are refused at once, and it is looked for again by itself"
    )]
    DatabaseAway,
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the server failed")]
    Internal(#[source] BoxError),
}

/// The code and the sentence for servers that cannot place runs; none at all is a problem as well.
fn unplaceable(problems: &[PlacementProblem]) -> String {
    match problems {
        [] => "no server is alive that could place runs; start one with `caisson serve`".to_owned(),
        [only] => only.message.clone(),
        _ => format!("no server can place runs: {} problems", problems.len()),
    }
}

/// What the outermost layer makes a problem document of; it alone knows the request id.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    status: StatusCode,
    code: String,
    detail: Option<String>,
    errors: Vec<Fault>,
}

impl Told {
    /// What is told of a refusal that came without an explanation of ours.
    pub(crate) fn bare(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => {
                ("unknown_route", Some("there is nothing at this path; /docs shows what there is"))
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method_not_allowed", Some("this path has other methods; see the Allow header"))
            }
            _ if status.is_server_error() => ("internal", None),
            _ => ("bad_request", Some("the request cannot be understood")),
        };
        Self { status, code: code.to_owned(), detail: detail.map(str::to_owned), errors: Vec::new() }
    }

    /// A refusal of the compatible API.
    pub(crate) fn new(status: StatusCode, code: &str, detail: Option<String>, errors: Vec<Fault>) -> Self {
        Self { status, code: code.to_owned(), detail, errors }
    }

    pub(crate) fn with_request_id(self, request_id: &str) -> Problem {
        Problem {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code,
            errors: self.errors,
            request_id: request_id.to_owned(),
        }
    }
}

impl ApiError {
    pub(crate) fn internal(source: impl Into<BoxError>) -> Self {
        Self::Internal(source.into())
    }

    /// What callers are told who are not the operators: of servers that cannot place runs the classes of their problems, each once,
    /// and no word of paths, sockets and ids.
    pub(crate) fn in_general(self) -> Self {
        if let Self::Unplaceable(problems) = self {
            let mut general: Vec<PlacementProblem> = Vec::new();
            for PlacementProblem { code, .. } in problems {
                if general.iter().all(|known| known.code != code) {
                    general.push(PlacementProblem { code, message: code.remedy().to_owned() });
                }
            }
            return Self::Unplaceable(general);
        }
        self
    }

    fn status_and_code(&self) -> (StatusCode, String) {
        let invalid = |faults: &Faults, code| (StatusCode::UNPROCESSABLE_ENTITY, faults.code(code));
        let (status, code) = match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "malformed_json"),
            Self::Body(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_body"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::LargeBodiesFull => (StatusCode::TOO_MANY_REQUESTS, "large_bodies_full"),
            Self::LongReadsFull => (StatusCode::TOO_MANY_REQUESTS, "long_reads_full"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTooComplex => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_complex"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::Query(_) => (StatusCode::BAD_REQUEST, "invalid_query"),
            Self::Header { code, .. } => (StatusCode::BAD_REQUEST, *code),
            Self::KeyMissing | Self::KeyRefused => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Self::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::FailedTooOften { .. } => (StatusCode::TOO_MANY_REQUESTS, "failed_too_often"),
            Self::InvalidKey(faults) => return invalid(faults, "invalid_key"),
            Self::KeysFull => (StatusCode::CONFLICT, "keys_full"),
            Self::InvalidProject(faults) => return invalid(faults, "invalid_project"),
            Self::DefaultProjectOnly | Self::ServersOfDefaultProject | Self::UsageOfOthers => {
                (StatusCode::FORBIDDEN, "default_project_only")
            }
            Self::ScopeMissing(_) => (StatusCode::FORBIDDEN, "scope_missing"),
            Self::Unknown { code, .. } => (StatusCode::NOT_FOUND, *code),
            Self::NotAcceptable(_) => (StatusCode::NOT_ACCEPTABLE, "not_acceptable"),
            Self::Invalid(faults) => return invalid(faults, "invalid_run"),
            Self::InvalidInput(faults) => return invalid(faults, "invalid_input"),
            Self::InputsFull => (StatusCode::TOO_MANY_REQUESTS, "inputs_full"),
            Self::OriginRefused => (StatusCode::FORBIDDEN, "origin_refused"),
            Self::InvalidBudget(faults) => return invalid(faults, "invalid_budget"),
            Self::InvalidRetention(faults) => return invalid(faults, "invalid_retention"),
            Self::InvalidCredential(faults) => return invalid(faults, "invalid_credential"),
            Self::InvalidWorkflow(faults) => return invalid(faults, "invalid_workflow"),
            Self::Conflict { code, .. } => (StatusCode::CONFLICT, *code),
            Self::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::ProjectQueueFull => (StatusCode::TOO_MANY_REQUESTS, "project_queue_full"),
            Self::InvalidQueue(faults) => return invalid(faults, "invalid_queue"),
            Self::InvalidFork(faults) => return invalid(faults, "invalid_fork"),
            Self::ForksFull => (StatusCode::TOO_MANY_REQUESTS, "forks_full"),
            Self::OperatorsOnly => (StatusCode::FORBIDDEN, "operators_only"),
            Self::StreamsFull => (StatusCode::TOO_MANY_REQUESTS, "streams_full"),
            Self::StreamsOfKeyFull => (StatusCode::TOO_MANY_REQUESTS, "streams_of_key_full"),
            Self::ConnectionsOfKeyFull => (StatusCode::TOO_MANY_REQUESTS, "connections_of_key_full"),
            Self::Unplaceable(problems) => {
                (StatusCode::SERVICE_UNAVAILABLE, problems.first().map_or("no_server", |p| p.code.as_str()))
            }
            Self::DatabaseAway => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            // A server whose database a later version has migrated ends in a moment.
            Self::Store(StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Migration(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
            }
            Self::Store(StoreError::Corrupt { .. }) | Self::Internal(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        (status, code.to_owned())
    }

    /// The refusal for a caller who reads no problem documents. A fault of the server is logged, and tells nothing.
    pub(crate) fn into_fault(self) -> Fault {
        let (status, code) = self.status_and_code();
        if let Self::Store(error) = &self {
            tracing::error!(error = error as &dyn std::error::Error, "the store failed");
        } else if let Self::Internal(error) = &self {
            tracing::error!(error = &**error as &dyn std::error::Error, "a request failed");
        }
        let Told { code, detail, errors, .. } = self.into_told(status, code);
        let mut message = detail.unwrap_or_else(|| "a fault of the server; its log says more".to_owned());
        for fault in errors {
            let field = fault.field.map(|field| format!("{field}: ")).unwrap_or_default();
            message = format!("{message}\n{field}{}", fault.message);
        }
        Fault { field: None, code, message }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let challenge = |text: &'static str| Some((header::WWW_AUTHENTICATE, HeaderValue::from_static(text)));
        match self {
            Self::KeyMissing => challenge("Bearer realm=\"caisson\""),
            Self::KeyRefused => challenge("Bearer realm=\"caisson\", error=\"invalid_token\""),
            Self::ScopeMissing(_) => challenge("Bearer realm=\"caisson\", error=\"insufficient_scope\""),
            Self::RateLimited { retry_after_s } | Self::FailedTooOften { retry_after_s } => {
                Some((header::RETRY_AFTER, HeaderValue::from(*retry_after_s)))
            }
            Self::InputsFull => Some((header::RETRY_AFTER, HeaderValue::from(INPUTS_RETRY_AFTER_S))),
            Self::LargeBodiesFull
            | Self::LongReadsFull
            | Self::QueueFull
            | Self::ProjectQueueFull
            | Self::StreamsFull
            | Self::StreamsOfKeyFull
            | Self::ConnectionsOfKeyFull
            | Self::ForksFull
            | Self::Unplaceable(_)
            | Self::DatabaseAway
            | Self::Store(StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Migration(_)) => {
                Some((header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S)))
            }
            Self::Malformed(_)
            | Self::Body(_)
            | Self::BodyBroken
            | Self::BodyTimeout
            | Self::BodyTooLarge(_)
            | Self::BodyTooComplex
            | Self::MediaType
            | Self::Query(_)
            | Self::Header { .. }
            | Self::Unknown { .. }
            | Self::NotAcceptable(_)
            | Self::Invalid(_)
            | Self::InvalidInput(_)
            | Self::OriginRefused
            | Self::InvalidKey(_)
            | Self::KeysFull
            | Self::InvalidProject(_)
            | Self::DefaultProjectOnly
            | Self::OperatorsOnly
            | Self::UsageOfOthers
            | Self::InvalidQueue(_)
            | Self::InvalidFork(_)
            | Self::ServersOfDefaultProject
            | Self::InvalidBudget(_)
            | Self::InvalidRetention(_)
            | Self::InvalidCredential(_)
            | Self::InvalidWorkflow(_)
            | Self::Conflict { .. }
            | Self::KeyReused
            | Self::Store(StoreError::Corrupt { .. })
            | Self::Internal(_) => None,
        }
    }

    fn into_told(self, status: StatusCode, code: String) -> Told {
        let ours = matches!(self, Self::Store(_) | Self::Internal(_));
        let detail = (!ours).then(|| self.to_string());
        let errors = if let Self::Query(faults)
        | Self::Invalid(faults)
        | Self::InvalidInput(faults)
        | Self::InvalidKey(faults)
        | Self::InvalidProject(faults)
        | Self::InvalidBudget(faults)
        | Self::InvalidQueue(faults)
        | Self::InvalidFork(faults)
        | Self::InvalidRetention(faults)
        | Self::InvalidCredential(faults)
        | Self::InvalidWorkflow(faults) = self
        {
            faults.into_items()
        } else if let Self::Unplaceable(problems) = self {
            problems.into_iter().map(Fault::from).collect()
        } else {
            Vec::new()
        };
        Told { status, code, detail, errors }
    }
}

impl From<PlacementProblem> for Fault {
    fn from(problem: PlacementProblem) -> Self {
        Self { field: None, code: problem.code.as_str().to_owned(), message: problem.message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if let Self::Store(error) = &self {
            tracing::error!(error = error as &dyn std::error::Error, "the store failed");
        } else if let Self::Internal(error) = &self {
            tracing::error!(error = &**error as &dyn std::error::Error, "a request failed");
        }
        let mut response = status.into_response();
        if matches!(self, Self::StreamsFull | Self::StreamsOfKeyFull | Self::ConnectionsOfKeyFull) {
            // Connections are scarcer than requests: one that got no stream, or no place, is not kept for the next try.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some((name, value)) = self.header() {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(self.into_told(status, code));
        response
    }
}

#[cfg(test)]
#[path = "problem_tests.rs"]
mod tests;
