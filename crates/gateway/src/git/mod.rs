//! `/git/origin`: the run's repository by smart HTTP. Fetches of it, and pushes to the run's own branch
//! alone.

mod advert;
mod again;
mod answer;
mod apart;
mod base;
mod brought;
mod clean;
mod commit;
mod compare;
mod directories;
mod early;
mod fault;
mod fetched;
mod finding;
mod forward;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod gitmodules;
mod heads;
mod helper;
mod http;
mod inflate;
mod inspect;
mod lease;
mod links;
mod local;
mod objects;
mod pktline;
mod process;
mod push;
mod quarantine;
mod receive;
mod remote;
mod report;
mod scan;
mod secrets;
mod settle;
mod submodules;
mod trusted;
mod under_way;

use std::path::PathBuf;
use std::sync::Arc;

use ::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use caisson_domain::event::EventKind;
use caisson_domain::git::{AllowList, BranchName, Repository};
use caisson_domain::redact::Redactor;
use caisson_domain::run::Run;
use caisson_store::BoxError;
use futures_util::stream::{self, StreamExt};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use url::Url;

pub(crate) use self::answer::carried;
use self::fault::Fault;
use self::http::HttpRepository;
use self::inspect::{Inspector, Parts};
use self::local::LocalRepository;
use self::process::Programs;
pub(crate) use self::settle::{before_outcome, resume};
pub(crate) use self::under_way::Pushes;
use crate::body::{self, Body, BodyFault, Chunks};
use crate::config::{
    GatewayError, GitCredential, GitUpstreams, ModelUpstream, check_url, client, secret_header,
};
use crate::credentials::basic;
use crate::grants;
use crate::problem::{Refusal, Unanswered};
use crate::shared::{Door, Shared};

/// The git hosts as this gateway reaches them.
pub(crate) struct GitSide {
    pub(crate) client: reqwest::Client,
    credentials: Vec<GitCredential>,
    allow: AllowList,
    /// Resolved.
    forbidden: Vec<PathBuf>,
    programs: Programs,
    /// [`crate::bounds::LOCAL_GIT`].
    processes: Arc<Semaphore>,
    /// None if no repository is allowed, so that nothing can be pushed.
    inspector: Option<Inspector>,
}

/// What the git hosts' side needs of the rest of the configuration.
pub(crate) struct Beside<'a> {
    /// The model API, whose credential must not be pushed.
    pub(crate) model: &'a ModelUpstream,
    /// Where pushes are looked at; none if nothing is to be started.
    pub(crate) quarantine_dir: Option<PathBuf>,
    /// [`crate::bounds::LOCAL_GIT`].
    pub(crate) processes: usize,
    /// [`crate::bounds::INSPECTIONS`].
    pub(crate) inspections: usize,
}

impl GitSide {
    pub(crate) fn new(upstreams: GitUpstreams, beside: Beside<'_>) -> Result<Self, GatewayError> {
        for credential in &upstreams.credentials {
            check_url("a git credential's URL prefix", &credential.url_prefix)?;
            secret_header("a git credential", &basic(&credential.username, &credential.token))?;
        }
        let client =
            client("git hosts", upstreams.outbound_proxy.as_ref(), upstreams.extra_ca_pem.as_deref())?;
        let Beside { model, quarantine_dir, processes, inspections } = beside;
        let used = !upstreams.allow.is_empty();
        let program = &upstreams.git_program;
        let programs = if used { Programs::find(program)? } else { Programs::named(program) };
        let proxies: Vec<&Url> =
            [&model.outbound_proxy, &upstreams.outbound_proxy].into_iter().flatten().collect();
        let parts = used.then(|| Parts::new(&programs.git, &upstreams, model.credential.as_ref(), &proxies));
        let inspector = match (parts.transpose()?, quarantine_dir) {
            (Some(parts), Some(directory)) => Some(Inspector::new(parts, directory, inspections)?),
            (_, _) => None,
        };
        let GitUpstreams { credentials, allow, forbidden, .. } = upstreams;
        let forbidden = forbidden
            .into_iter()
            .map(|directory| {
                directory.canonicalize().map_err(|source| GatewayError::Forbidden { directory, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            client,
            credentials,
            allow,
            forbidden,
            programs,
            processes: Arc::new(Semaphore::new(processes)),
            inspector,
        })
    }
}

/// Git's two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    UploadPack,
    ReceivePack,
}

impl Service {
    fn of(name: &str) -> Option<Self> {
        match name {
            "git-upload-pack" => Some(Self::UploadPack),
            "git-receive-pack" => Some(Self::ReceivePack),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    /// What the record of a credential says that it was used for.
    const fn purpose(self) -> &'static str {
        match self {
            Self::UploadPack => "git fetch",
            Self::ReceivePack => "git push",
        }
    }
}

/// What is asked of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// `GET info/refs?service=…`
    Advertise(Service),
    /// `POST git-upload-pack`
    Fetch,
    /// `POST git-receive-pack`
    Push,
}

/// A request to a service, decoded.
struct Exchange {
    chunks: Chunks,
    /// Its length, if it is known beforehand.
    length: Option<u64>,
    /// Whether a push may take commits away from its branch, which was found to be right.
    rewrites: bool,
}

/// A git host's answer: a service's own bytes.
struct Answer {
    chunks: Chunks,
    encoding: Option<HeaderValue>,
}

/// The repository behind the door.
enum Upstream {
    Http(Box<HttpRepository>),
    Local(LocalRepository),
}

impl Upstream {
    /// The run's repository, if the allow-list (still) has it. `own` is the process that its sandbox has for itself.
    async fn of(
        shared: &Arc<Shared>,
        run: &Run,
        repository: &Repository,
        own: Option<&Arc<Semaphore>>,
    ) -> Result<Self, Fault> {
        if !shared.git.allow.allows(repository) {
            return Err(Fault::NotAllowed);
        }
        match repository {
            Repository::Url(url) => {
                Ok(Self::Http(Box::new(HttpRepository::new(shared, run, url.clone()).await?)))
            }
            Repository::Path(path) => {
                let (own, project) = (own.map(Arc::clone), run.project.clone());
                Ok(Self::Local(LocalRepository::open(Arc::clone(shared), project, path.clone(), own).await?))
            }
        }
    }

    /// What takes live secrets out of what the repository's side says.
    fn redactor(&self) -> Arc<Redactor> {
        match self {
            Self::Http(repository) => repository.redactor(),
            Self::Local(repository) => repository.redactor(),
        }
    }

    async fn advertise(&self, service: Service, protocol: Option<&str>) -> Result<Answer, Fault> {
        match self {
            Self::Http(repository) => repository.advertise(service, protocol).await,
            Self::Local(repository) => repository.advertise(service, protocol).await,
        }
    }

    /// Whether a push to the branch would be refused since somebody has it checked out; a host keeps no checkouts.
    async fn is_checked_out(&self, branch: &BranchName) -> bool {
        match self {
            Self::Http(_) => false,
            Self::Local(repository) => repository.is_checked_out(branch).await,
        }
    }

    async fn exchange(
        &self,
        service: Service,
        protocol: Option<&str>,
        exchange: Exchange,
    ) -> Result<Answer, Fault> {
        match self {
            Self::Http(repository) => repository.exchange(service, protocol, exchange).await,
            Self::Local(repository) => repository.exchange(service, protocol, exchange).await,
        }
    }
}

/// Answers a request below `/git`; `rest` is its path there.
///
/// # Errors
/// [`Unanswered`] if the server stops before there is an answer.
pub(crate) async fn answer(
    door: &Arc<Door>,
    request: Request<Incoming>,
    rest: &str,
) -> Result<Response<Body>, Unanswered> {
    let agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
    let for_git = agent.is_some_and(|agent| agent.starts_with("git/"));
    match serve(door, request, rest).await {
        Ok(response) => Ok(response),
        Err(refusal) if door.shared.leaves(&refusal) => Err(Unanswered),
        Err(refusal) => Ok(refusal.without(&door.secrets).into_git_response(for_git)),
    }
}

async fn serve(door: &Arc<Door>, request: Request<Incoming>, rest: &str) -> Result<Response<Body>, Refusal> {
    let run = grants::agent(door, "git", request.headers()).await?;
    let found = operation(request.method(), rest, request.uri().query());
    let operation = remote::told(door, &run, rest, found).await?;
    let Some(repository) = &run.spec.repository else {
        let message = "this run has no repository; name one when you create a run";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "no_repository", message));
    };
    let repository = &remote::named(rest, repository);
    let pushing = matches!(operation, Operation::Push | Operation::Advertise(Service::ReceivePack));
    if pushing && !run.spec.workflow.caisson.publish.pushes() {
        return Err(tell(door, &run, Fault::PublishesNothing).await);
    }
    fetched::room(door, &run, operation).await?;
    let shared = &door.shared;
    let protocol = protocol(request.headers());
    // Whoever keeps a request back takes nobody's place.
    let begun = match operation {
        Operation::Advertise(_) => None,
        Operation::Fetch | Operation::Push => match incoming(shared, request) {
            Ok(exchange) => Some(begun(exchange).await?),
            Err(fault) => return Err(tell(door, &run, fault).await),
        },
    };
    let slot = slot_of(door, &door.exchanges).await?;
    let upstream = match Upstream::of(shared, &run, repository, Some(&door.git_process)).await {
        Ok(upstream) => upstream,
        Err(fault) => return Err(tell(door, &run, fault).await),
    };
    if operation == Operation::Advertise(Service::UploadPack)
        && let Some(fault) = early::unpushable(shared, &run, &upstream).await
    {
        return Err(tell(door, &run, fault).await);
    }
    let answered = match (operation, begun) {
        (Operation::Push, Some(exchange)) => {
            return push::answer(door, (run, slot), upstream, exchange).await;
        }
        (Operation::Fetch, Some(exchange)) => {
            // The sandbox's share of memory is free again when the request was sent.
            let (exchange, _share) = match gathered(door, exchange).await? {
                Ok(gathered) => gathered,
                Err(fault) => return Err(tell(door, &run, fault).await),
            };
            upstream.exchange(Service::UploadPack, protocol.as_deref(), exchange).await
        }
        (Operation::Advertise(service), _) => upstream.advertise(service, protocol.as_deref()).await,
        (Operation::Fetch | Operation::Push, None) => {
            return Err(Refusal::bad_request("the request has no body"));
        }
    };
    match answered {
        Ok(answer) => {
            let offered = offered(operation, &answer);
            let chunks = fetched::counted(door, &run, operation, offered(answer.chunks));
            let chunks = carried(&shared.tracker, &shared.bounds, slot, chunks);
            Ok(respond(operation, Answer { chunks, ..answer }))
        }
        Err(fault) => Err(tell(door, &run, fault).await),
    }
}

/// A place among the sandbox's own; it is waited for, but not for long.
async fn slot_of(door: &Door, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    let slot = timeout(door.shared.bounds.store_hold, Arc::clone(places).acquire_owned()).await;
    slot.ok().and_then(Result::ok).ok_or_else(|| {
        let message = "too many git requests of this sandbox are under way; try again";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    })
}

/// Waits until the request's body has begun.
async fn begun(exchange: Exchange) -> Result<Exchange, Refusal> {
    let Exchange { mut chunks, .. } = exchange;
    let Some(first) = chunks.next().await else {
        return Ok(Exchange { chunks: stream::empty().boxed(), ..exchange });
    };
    let first = first.map_err(|error| refused_body(error, 0))?;
    Ok(Exchange { chunks: stream::iter([Ok(first)]).chain(chunks).boxed(), ..exchange })
}

fn refused_body(error: BoxError, bound: u64) -> Refusal {
    let fault = error.downcast::<BodyFault>().map_or_else(BodyFault::Broken, |fault| *fault);
    Refusal::body(&fault, bound)
}

/// The whole request in memory, within the sandbox's share of it: no process waits for the rest of one. The outer error
/// is the sender's fault, the inner one told of.
async fn gathered(
    door: &Door,
    exchange: Exchange,
) -> Result<Result<(Exchange, Vec<OwnedSemaphorePermit>), Fault>, Refusal> {
    let bounds = &door.shared.bounds;
    let bound = bounds.fetch_request_bytes;
    if exchange.length.is_some_and(|length| length > bound) {
        return Ok(Err(Fault::TooLarge { bytes: bound }));
    }
    let mut chunks = body::bounded(exchange.chunks, bound);
    let (mut pieces, mut share, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => match refused_body(error, bound) {
                refusal if refusal.status == StatusCode::PAYLOAD_TOO_LARGE => {
                    return Ok(Err(Fault::TooLarge { bytes: bound }));
                }
                refusal => return Err(refusal),
            },
        };
        let size = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let permit = timeout(bounds.store_hold, Arc::clone(&door.bodies).acquire_many_owned(size)).await;
        let Ok(Ok(permit)) = permit else {
            let message = "too many large requests of this sandbox are under way; try again";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
        };
        share.push(permit);
        bytes += u64::from(size);
        pieces.push(Ok(chunk));
    }
    let exchange = Exchange { chunks: stream::iter(pieces).boxed(), length: Some(bytes), rewrites: false };
    Ok(Ok((exchange, share)))
}

/// What makes of a service's answer what the gateway offers.
fn offered(operation: Operation, answer: &Answer) -> fn(Chunks) -> Chunks {
    if operation == Operation::Advertise(Service::ReceivePack) && answer.encoding.is_none() {
        advert::asking_for_whole_packs
    } else {
        std::convert::identity
    }
}

fn operation(method: &Method, rest: &str, query: Option<&str>) -> Result<Operation, Refusal> {
    let named = rest.split_once('/').filter(|(name, _)| remote::is_own(name));
    let path = named.map(|(_, path)| path);
    match (method, path) {
        (&Method::GET, Some("info/refs")) => {
            let query = query.unwrap_or_default();
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            let service = pairs.find(|(key, _)| key == "service").and_then(|(_, name)| Service::of(&name));
            service.map(Operation::Advertise).ok_or_else(|| {
                let message =
                    "only git's smart protocol passes the door; use a git that is not older than 1.6.6";
                Refusal::new(StatusCode::FORBIDDEN, "dumb_protocol", message)
            })
        }
        (&Method::POST, Some("git-upload-pack")) => Ok(Operation::Fetch),
        (&Method::POST, Some("git-receive-pack")) => Ok(Operation::Push),
        (_, Some("info/refs" | "git-upload-pack" | "git-receive-pack")) => Err(Refusal::method()),
        _ => Err(Refusal::not_found()),
    }
}

/// The protocol version that git asks for, if it is one of git's.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("git-protocol")?.to_str().ok()?;
    matches!(value, "version=0" | "version=1" | "version=2").then(|| value.to_owned())
}

/// A request's body: silence in it is bounded, and a compressed one is decoded as it comes.
fn incoming(shared: &Shared, request: Request<Incoming>) -> Result<Exchange, Fault> {
    let (parts, body) = request.into_parts();
    let bounds = &shared.bounds;
    let chunks = body::timed(body::frames(body), bounds.body_idle, bounds.exchange);
    let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text(CONTENT_ENCODING).map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") => {
            let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
            Ok(Exchange { chunks, length, rewrites: false })
        }
        Some("gzip" | "x-gzip") => {
            Ok(Exchange { chunks: inflate::gunzip(chunks), length: None, rewrites: false })
        }
        Some(_) => Err(Fault::Encoding),
    }
}

/// The answer as git expects it.
fn respond(operation: Operation, answer: Answer) -> Response<Body> {
    let kind = match operation {
        Operation::Advertise(Service::UploadPack) => "application/x-git-upload-pack-advertisement",
        Operation::Advertise(Service::ReceivePack) => "application/x-git-receive-pack-advertisement",
        Operation::Fetch => "application/x-git-upload-pack-result",
        Operation::Push => "application/x-git-receive-pack-result",
    };
    let mut response = Response::new(body::from_stream(answer.chunks));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(encoding) = answer.encoding {
        headers.insert(CONTENT_ENCODING, encoding);
    }
    response
}

/// Writes the event that tells of a fault and makes the refusal of it.
async fn tell(door: &Door, run: &Run, fault: Fault) -> Refusal {
    let refusal = fault.refusal();
    let (kind, data) = match fault.status() {
        None => {
            let data = json!({"what": "git", "rule": refusal.code, "remedy": refusal.message});
            (EventKind::GatewayDenied, data)
        }
        Some(status) => {
            let data = json!({
                "upstream": "git", "kind": refusal.code, "status": status, "message": refusal.message,
            });
            (EventKind::GatewayUpstreamFailed, data)
        }
    };
    door.tell(&run.id, kind, data).await;
    refusal
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;
