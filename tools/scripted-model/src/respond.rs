//! Answers requests: reads them, judges them, picks the step and starts its delivery.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::acts::{self, Act, Context};
use crate::catalogue::Catalogue;
use crate::conversation::Conversation;
use crate::delivery::{self, DelayScale, MAX_SILENCE, Manner};
use crate::gathering::Gathering;
use crate::images;
use crate::key::{KeyDigest, SeenKeys};
use crate::listen::CutBeforeHeaders;
use crate::record::{Outcome, Record, ScriptPlace, Serving, Witness, unix_ms};
use crate::server::Options;
use crate::step::{Cut, ErrorBody, Fault, Step};
use crate::tries::{Tries, TryKey};

/// Largest request body, in bytes: the model API's own limit. A larger one is answered 413.
pub const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// Longest time a request's body may take to come in.
pub const BODY_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of a request that count as one token.
const BYTES_PER_TOKEN: usize = 4;
const MODELS: [&str; 4] = ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-fable-5-2"];
const SESSION_HEADER: &str = "x-claude-code-session-id";
const RECORDED_HEADERS: [&str; 9] = [
    "accept",
    "accept-encoding",
    "anthropic-beta",
    "anthropic-version",
    "content-encoding",
    "content-type",
    "user-agent",
    SESSION_HEADER,
    "x-stainless-retry-count",
];
const JSON: &str = "application/json";
const HTML: &str = "text/html";
const EVENTS: &str = "text/event-stream; charset=utf-8";
const GARBAGE: &str = "<html><body>This is not the API.</body></html>";

/// Everything that decides about replies.
#[derive(Debug)]
pub(crate) struct Responder {
    catalogue: Catalogue,
    default_scenario: String,
    required_keys: Vec<KeyDigest>,
    scale: DelayScale,
    gzip: bool,
    tries: Tries,
    gathering: Arc<Gathering>,
    witness: Arc<Witness>,
    /// Keeps the identifiers of two servers apart.
    started_at_ms: u64,
}

/// A request that has come in wholly.
struct Asked {
    parts: Parts,
    body: Bytes,
    body_sha256: String,
    target: Target,
    keys: SeenKeys,
}

/// What a request's path says.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    scenario: Option<String>,
    run: Option<String>,
    rest: String,
}

/// A reply of which nothing has been sent.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    headers: HeaderMap,
    acts: VecDeque<Act>,
    delay_ms: u64,
    manner: Manner,
    silence: Option<Silence>,
}

/// A reply that never begins.
#[derive(Clone, Copy)]
enum Silence {
    Hang,
    CutBeforeHeaders,
}

/// A messages request with the step that answers it.
struct Played<'a> {
    conversation: Conversation,
    place: ScriptPlace,
    step: &'a Step,
    fault: Option<&'a Fault>,
}

pub(crate) fn router(responder: Responder) -> Router {
    Router::new()
        .route("/__log", get(log))
        .route("/__health", get(health))
        .fallback(serve)
        .with_state(Arc::new(responder))
}

async fn log(State(responder): State<Arc<Responder>>) -> Json<Value> {
    let witness = &responder.witness;
    Json(json!({"records": witness.records(), "dropped": witness.dropped()}))
}

async fn health(State(responder): State<Arc<Responder>>) -> (StatusCode, Json<Value>) {
    if responder.witness.is_sound() {
        (StatusCode::OK, Json(json!({"status": "ok"})))
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"status": "log_failed"})))
    }
}

async fn serve(State(responder): State<Arc<Responder>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (body, refused) = match read_body(body).await {
        Ok(body) => (body, None),
        Err(refusal) => (Bytes::new(), Some(refusal)),
    };
    let asked = Asked {
        body_sha256: hex::encode(Sha256::digest(&body)),
        target: Target::of(parts.uri.path()),
        keys: SeenKeys::of(&parts.headers, &responder.required_keys),
        parts,
        body,
    };
    let played = match refused {
        Some(refusal) => Err(refusal),
        None if !asked.keys.accepted => Err(Refusal::NotAuthentic),
        None => responder.play(&asked),
    };
    let serving = responder.witness.begin(asked.record(played.as_ref().ok()));
    let context = responder.context(&asked, played.as_ref().ok(), &serving);
    if let Ok(played) = &played
        && played.is_first()
    {
        responder.gathering.join(&asked.conversation(&serving)).await;
    }
    let answer = match &played {
        Ok(played) => responder.perform(played, &context),
        Err(refusal) => responder.simple(refusal, &asked, &context),
    };
    answer.deliver(&context, serving).await
}

/// Why a request is not answered from a scenario.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("request exceeds the maximum size")]
    TooLarge,
    #[error("the request body did not come in")]
    Incomplete,
    #[error("invalid x-api-key")]
    NotAuthentic,
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
    #[error("no scenario named {0}")]
    NoScenario(String),
    #[error("another endpoint than messages")]
    OtherEndpoint,
}

impl Refusal {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::Incomplete => (StatusCode::REQUEST_TIMEOUT, "timeout_error"),
            Self::NotAuthentic => (StatusCode::UNAUTHORIZED, "authentication_error"),
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            Self::NoScenario(_) | Self::OtherEndpoint => (StatusCode::NOT_FOUND, "not_found_error"),
        }
    }
}

async fn read_body(body: Body) -> Result<Bytes, Refusal> {
    let read = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge),
        Ok(Err(_)) | Err(_) => Err(Refusal::Incomplete),
    }
}

impl Responder {
    pub(crate) fn new(
        catalogue: Catalogue,
        options: &Options,
        witness: Arc<Witness>,
        gathering: Arc<Gathering>,
    ) -> Self {
        Self {
            catalogue,
            default_scenario: options.default_scenario.clone(),
            required_keys: options.required_keys.clone(),
            scale: options.delay_scale,
            gzip: options.gzip,
            tries: Tries::default(),
            gathering,
            witness,
            started_at_ms: unix_ms(),
        }
    }

    /// Finds the step for a messages request: the prompt's marker decides before the path, the path before the default.
    fn play(&self, asked: &Asked) -> Result<Played<'_>, Refusal> {
        if asked.parts.method != Method::POST || asked.target.rest != "/v1/messages" {
            return Err(Refusal::OtherEndpoint);
        }
        let conversation = Conversation::parse(&asked.body)?;
        let named = conversation.scenario.as_ref().or(asked.target.scenario.as_ref());
        let scenario = named.unwrap_or(&self.default_scenario).clone();
        let Some(script) = self.catalogue.find(&scenario) else { return Err(Refusal::NoScenario(scenario)) };
        let choice = script.choose(&conversation.prompts, conversation.answered);
        let place = ScriptPlace { scenario, prompt: choice.prompt, step: choice.request };
        let fault = choice.step.fault.as_ref().filter(|_| self.fails_now(asked, choice.step, &place));
        Ok(Played { conversation, place, step: choice.step, fault })
    }

    fn fails_now(&self, asked: &Asked, step: &Step, place: &ScriptPlace) -> bool {
        let Some(times) = step.fault_times else { return true };
        self.tries.count(TryKey::new(asked.target.run.as_deref(), asked.session(), place)) <= times
    }

    fn context(&self, asked: &Asked, played: Option<&Played<'_>>, serving: &Serving) -> Context {
        let conversation = played.map(|played| &played.conversation);
        Context {
            model: conversation.map(|conversation| conversation.model.clone()).unwrap_or_default(),
            directory: conversation.and_then(|conversation| conversation.directory.clone()),
            salt: format!("{}/{}/{}", self.started_at_ms, serving.seq(), asked.body_sha256),
        }
    }

    fn answer(&self, status: StatusCode, content_type: &'static str, acts: VecDeque<Act>) -> Answer {
        let manner = Manner { chunk_delay_ms: 0, scale: self.scale, gzip: self.gzip };
        let headers = HeaderMap::new();
        Answer { status, content_type, headers, acts, delay_ms: 0, manner, silence: None }
    }

    fn json(&self, status: StatusCode, body: &Value) -> Answer {
        self.answer(status, JSON, acts::plain(body.to_string()))
    }

    /// Answers from a scenario.
    fn perform(&self, played: &Played<'_>, context: &Context) -> Answer {
        let (step, fault) = (played.step, played.fault);
        let nothing = VecDeque::new();
        let mut answer = match fault {
            Some(Fault::Status(error)) => {
                let mut answer = self.json(error.status, &acts::error_json(&error.body, context));
                answer.headers.clone_from(&error.headers);
                answer
            }
            Some(Fault::Garbage) => self.answer(StatusCode::OK, HTML, acts::plain(GARBAGE)),
            Some(Fault::Hang) => {
                Answer { silence: Some(Silence::Hang), ..self.answer(StatusCode::OK, JSON, nothing) }
            }
            Some(Fault::Cut(Cut::Headers)) => Answer {
                silence: Some(Silence::CutBeforeHeaders),
                ..self.answer(StatusCode::OK, JSON, nothing)
            },
            Some(Fault::Cut(_) | Fault::Stall | Fault::StreamError(_)) | None => {
                if played.conversation.stream {
                    self.answer(StatusCode::OK, EVENTS, acts::stream(&step.reply, fault, context))
                } else {
                    self.answer(StatusCode::OK, JSON, acts::whole(&step.reply, context))
                }
            }
        };
        answer.delay_ms = step.delay_ms;
        answer.manner.chunk_delay_ms = step.chunk_delay_ms;
        answer.manner.gzip = step.gzip.unwrap_or(self.gzip);
        answer
    }

    /// Answers without a scenario: the other endpoints, and what is refused.
    fn simple(&self, refusal: &Refusal, asked: &Asked, context: &Context) -> Answer {
        let rest = asked.target.rest.as_str();
        match (refusal, &asked.parts.method, rest) {
            // A connectivity check carries no key.
            (_, &Method::HEAD, _) => self.answer(StatusCode::OK, JSON, VecDeque::new()),
            (Refusal::OtherEndpoint, &Method::POST, "/v1/messages/count_tokens") => {
                let tokens = asked.body.len().div_ceil(BYTES_PER_TOKEN);
                self.json(StatusCode::OK, &json!({"input_tokens": tokens}))
            }
            (Refusal::OtherEndpoint, &Method::GET, "/v1/models") => self.json(StatusCode::OK, &models()),
            _ => {
                let (status, error_type) = refusal.parts();
                let body = ErrorBody { error_type: error_type.to_owned(), message: refusal.to_string() };
                self.json(status, &acts::error_json(&body, context))
            }
        }
    }
}

fn models() -> Value {
    let model =
        |id| json!({"type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z"});
    let (first, last) = (MODELS[0], MODELS[MODELS.len() - 1]);
    json!({"data": MODELS.map(model), "has_more": false, "first_id": first, "last_id": last})
}

impl Played<'_> {
    /// Whether it is the first request of its conversation.
    fn is_first(&self) -> bool {
        self.place.prompt == 1 && self.place.step == 0
    }
}

impl Asked {
    fn session(&self) -> Option<&str> {
        self.parts.headers.get(SESSION_HEADER)?.to_str().ok()
    }

    /// What stands for its conversation; a request that does not say is one of its own.
    fn conversation(&self, serving: &Serving) -> String {
        self.session().map_or_else(|| serving.seq().to_string(), str::to_owned)
    }

    fn record(&self, played: Option<&Played<'_>>) -> Record {
        let text = |name: &str| {
            let value = self.parts.headers.get(name)?;
            Some((name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        };
        let uri = &self.parts.uri;
        Record {
            seq: 0,
            at_ms: unix_ms(),
            ended_at_ms: None,
            method: self.parts.method.to_string(),
            path: uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string),
            run: self.target.run.clone(),
            script: played.map(|played| played.place.clone()),
            model: played.map(|played| played.conversation.model.clone()),
            stream: played.map(|played| played.conversation.stream),
            body_bytes: self.body.len() as u64,
            body_sha256: self.body_sha256.clone(),
            images: played.map_or_else(Vec::new, |_| images::of(&self.body)),
            x_api_key: self.keys.x_api_key.clone(),
            authorization: self.keys.authorization.clone(),
            headers: RECORDED_HEADERS.into_iter().filter_map(text).collect(),
            status: None,
            usage: None,
            usage_final: false,
            bytes_served: 0,
            outcome: Outcome::Open,
        }
    }
}

impl Target {
    /// Reads `/s/SCENARIO/RUN` off the front of a path.
    fn of(path: &str) -> Self {
        let prefixed = path.strip_prefix("/s/").and_then(|path| {
            let (scenario, path) = path.split_once('/')?;
            let (run, rest) = path.split_once('/').unwrap_or((path, ""));
            let named = !scenario.is_empty() && !run.is_empty();
            named.then(|| (scenario.to_owned(), run.to_owned(), format!("/{rest}")))
        });
        match prefixed {
            Some((scenario, run, rest)) => Self { scenario: Some(scenario), run: Some(run), rest },
            None => Self { scenario: None, run: None, rest: path.to_owned() },
        }
    }
}

impl Answer {
    /// Waits as the step says, then starts the reply.
    async fn deliver(self, context: &Context, mut serving: Serving) -> Response<Body> {
        self.manner.scale.wait(self.delay_ms).await;
        match self.silence {
            None => self.head(context, serving),
            Some(Silence::CutBeforeHeaders) => {
                serving.finish(Outcome::Cut);
                cut()
            }
            Some(Silence::Hang) => {
                serving.expect_drop(Outcome::Hung);
                tokio::time::sleep(MAX_SILENCE).await;
                serving.finish(Outcome::Hung);
                cut()
            }
        }
    }

    fn head(self, context: &Context, mut serving: Serving) -> Response<Body> {
        serving.status(self.status.as_u16());
        let mut headers = self.headers;
        let mut put = |name, value: String| {
            headers.insert(name, HeaderValue::try_from(value).expect("made of visible ASCII"));
        };
        put(header::CONTENT_TYPE, self.content_type.to_owned());
        put("request-id".parse().expect("a header name"), context.request_id());
        if self.manner.gzip {
            put(header::CONTENT_ENCODING, "gzip".to_owned());
        }
        if self.content_type == EVENTS {
            put(header::CACHE_CONTROL, "no-cache".to_owned());
        } else if let (Some(Act::Send(piece)), false) = (self.acts.front(), self.manner.gzip) {
            put(header::CONTENT_LENGTH, piece.bytes.len().to_string());
        }
        let body = if self.acts.is_empty() {
            serving.finish(Outcome::Complete);
            Body::empty()
        } else {
            delivery::body(self.acts, self.manner, serving)
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

fn cut() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(CutBeforeHeaders);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_names_scenario_and_run() {
        let target = |scenario: &str, run: &str, rest: &str| Target {
            scenario: Some(scenario.to_owned()),
            run: Some(run.to_owned()),
            rest: rest.to_owned(),
        };
        assert_eq!(Target::of("/s/text/r1/v1/messages"), target("text", "r1", "/v1/messages"));
        assert_eq!(Target::of("/s/text/r1"), target("text", "r1", "/"));
        for plain in ["/v1/messages", "/s/text", "/s//r/v1/messages"] {
            assert_eq!(Target::of(plain), Target { scenario: None, run: None, rest: plain.to_owned() });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_in_is_given_up() {
        let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let started = tokio::time::Instant::now();
        assert!(matches!(read_body(never).await, Err(Refusal::Incomplete)));
        assert_eq!(started.elapsed(), BODY_TIMEOUT);
        let broken = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        assert!(matches!(read_body(Body::from_stream(broken)).await, Err(Refusal::Incomplete)));
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_the_bound() {
        let read = read_body(Body::from(vec![b'x'; MAX_BODY_BYTES])).await;
        assert_eq!(read.map(|body| body.len()).ok(), Some(MAX_BODY_BYTES));
        let too_large = read_body(Body::from(vec![b'x'; MAX_BODY_BYTES + 1])).await;
        assert!(matches!(too_large, Err(Refusal::TooLarge)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hang_is_cut_after_the_longest_silence() {
        let witness = Witness::open(None, tokio_util::sync::CancellationToken::new()).unwrap();
        let responder =
            Responder::new(Catalogue::built_in(), &Options::default(), Arc::clone(&witness), Arc::default());
        let request = Request::post("/s/hang/r/v1/messages").body(Body::from(r#"{"messages": []}"#)).unwrap();
        let started = tokio::time::Instant::now();
        let response = serve(State(Arc::new(responder)), request).await;
        assert!(response.extensions().get::<CutBeforeHeaders>().is_some());
        assert_eq!(started.elapsed(), MAX_SILENCE);
        assert_eq!(witness.records()[0].outcome, Outcome::Hung);
    }
}
