//! `/git/origin`: the run's repository by smart HTTP. Fetches of it, and pushes to the run's own branch
//! alone.

mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod http;
mod inflate;
mod local;
mod pktline;
mod process;
mod push;
mod receive;
mod report;
mod settle;
mod under_way;

use std::path::PathBuf;
use std::sync::Arc;

use ::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use caisson_domain::event::EventKind;
use caisson_domain::git::{AllowList, BranchName, Repository};
use caisson_domain::protocol::paths;
use caisson_domain::run::{Phase, Run};
use caisson_store::CredentialUse;
use futures_util::stream::{self, StreamExt};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use self::fault::Fault;
use self::http::HttpRepository;
use self::local::LocalRepository;
pub(crate) use self::settle::{before_outcome, resume};
pub(crate) use self::under_way::Pushes;
use crate::body::{self, Body, Chunks};
use crate::config::{
    GatewayError, GitCredential, GitUpstreams, check_url, client, find_program, secret_header,
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
    program: PathBuf,
    /// [`crate::bounds::LOCAL_GIT`].
    processes: Arc<Semaphore>,
}

impl GitSide {
    pub(crate) fn new(upstreams: GitUpstreams, processes: usize) -> Result<Self, GatewayError> {
        for credential in &upstreams.credentials {
            check_url("a git credential's URL prefix", &credential.url_prefix)?;
            secret_header("a git credential", &basic(&credential.username, &credential.token))?;
        }
        let client =
            client("git hosts", upstreams.outbound_proxy.as_ref(), upstreams.extra_ca_pem.as_deref())?;
        let GitUpstreams { credentials, allow, forbidden, git_program, .. } = upstreams;
        let forbidden = forbidden
            .into_iter()
            .map(|directory| {
                directory.canonicalize().map_err(|source| GatewayError::Forbidden { directory, source })
            })
            .collect::<Result<_, _>>()?;
        // Git hosts are reached without it.
        let program = if allow.has_directories() { find_program(&git_program)? } else { git_program };
        Ok(Self {
            client,
            credentials,
            allow,
            forbidden,
            program,
            processes: Arc::new(Semaphore::new(processes)),
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
}

/// A git host's answer: a service's own bytes.
struct Answer {
    chunks: Chunks,
    encoding: Option<HeaderValue>,
}

/// The repository behind the door.
enum Upstream {
    Http(HttpRepository),
    Local(LocalRepository),
}

impl Upstream {
    /// The run's repository, if the allow-list (still) has it.
    async fn of(shared: &Arc<Shared>, run: &Run, repository: &Repository) -> Result<Self, Fault> {
        if !shared.git.allow.allows(repository) {
            return Err(Fault::NotAllowed);
        }
        match repository {
            Repository::Url(url) => Ok(Self::Http(HttpRepository::new(shared, run, url.clone()).await?)),
            Repository::Path(path) => {
                Ok(Self::Local(LocalRepository::open(Arc::clone(shared), path.clone()).await?))
            }
        }
    }

    /// What is recorded of the credential that goes along; none if none does.
    fn credential_use(&self, pushing: bool) -> Option<CredentialUse> {
        let purpose = if pushing { "git push" } else { "git fetch" };
        match self {
            Self::Http(repository) => repository.credential_use(purpose),
            Self::Local(_) => None,
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
        Err(refusal) => Ok(refusal.without(&door.shared.secrets).into_git_response(for_git)),
    }
}

async fn serve(door: &Arc<Door>, request: Request<Incoming>, rest: &str) -> Result<Response<Body>, Refusal> {
    let operation = operation(request.method(), rest, request.uri().query())?;
    let run = grants::agent(door, request.headers()).await?;
    let Some(repository) = &run.spec.repository else {
        let message = "this run has no repository; name one when you create a run";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "no_repository", message));
    };
    let pushing = matches!(operation, Operation::Push | Operation::Advertise(Service::ReceivePack));
    if pushing && !run.spec.workflow.caisson.publish.pushes() {
        return Err(tell(door, &run, Fault::PublishesNothing).await);
    }
    let shared = &door.shared;
    let slot = timeout(shared.bounds.store_hold, Arc::clone(&door.exchanges).acquire_owned()).await;
    let Ok(Ok(slot)) = slot else {
        let message = "too many git requests of this sandbox are under way; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    let upstream = match Upstream::of(shared, &run, repository).await {
        Ok(upstream) => upstream,
        Err(fault) => return Err(tell(door, &run, fault).await),
    };
    // Told before the agent has begun, and not after its work was paid for.
    if let Some(branch) =
        to_be_pushed(&run).filter(|_| operation == Operation::Advertise(Service::UploadPack))
        && upstream.is_checked_out(branch).await
    {
        return Err(tell(door, &run, Fault::CheckedOut { branch: branch.to_string() }).await);
    }
    if let Some(used) = upstream.credential_use(pushing) {
        shared.note_use(&run.id, &used).await?;
    }
    let protocol = protocol(request.headers());
    let answered = match operation {
        Operation::Push => return push::answer(door, (run, slot), upstream, request).await,
        Operation::Advertise(service) => upstream.advertise(service, protocol.as_deref()).await,
        Operation::Fetch => match fetch_request(shared, request) {
            Ok(exchange) => upstream.exchange(Service::UploadPack, protocol.as_deref(), exchange).await,
            Err(fault) => Err(fault),
        },
    };
    match answered {
        Ok(answer) => Ok(respond(operation, Answer { chunks: holding(slot, answer.chunks), ..answer })),
        Err(fault) => Err(tell(door, &run, fault).await),
    }
}

/// The branch that the run will push, while its workspace is prepared.
fn to_be_pushed(run: &Run) -> Option<&BranchName> {
    let pushes = run.spec.workflow.caisson.publish.pushes() && run.phase == Some(Phase::Prepare);
    run.spec.branch.as_ref().filter(|_| pushes)
}

/// The chunks, with a slot that is free again when they were read or dropped.
fn holding(slot: OwnedSemaphorePermit, chunks: Chunks) -> Chunks {
    stream::unfold((slot, chunks), |(slot, mut chunks)| async move {
        let chunk = chunks.next().await?;
        Some((chunk, (slot, chunks)))
    })
    .boxed()
}

fn operation(method: &Method, rest: &str, query: Option<&str>) -> Result<Operation, Refusal> {
    let path = rest.strip_prefix(paths::GIT_REMOTE).and_then(|path| path.strip_prefix('/'));
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

/// The request's body, within its bounds. It is decoded, so that its bound is one of what it says.
fn fetch_request(shared: &Shared, request: Request<Incoming>) -> Result<Exchange, Fault> {
    let bound = shared.bounds.fetch_request_bytes;
    let exchange = incoming(shared, request)?;
    if exchange.length.is_some_and(|length| length > bound) {
        return Err(Fault::TooLarge { bytes: bound });
    }
    Ok(Exchange { chunks: body::bounded(exchange.chunks, bound), ..exchange })
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
            Ok(Exchange { chunks, length })
        }
        Some("gzip" | "x-gzip") => Ok(Exchange { chunks: inflate::gunzip(chunks), length: None }),
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
mod tests {
    use super::*;

    #[test]
    fn only_gits_smart_requests_to_origin_are_there() {
        let of = |method: Method, rest: &str, query: Option<&str>| operation(&method, rest, query);
        let found = of(Method::GET, "origin/info/refs", Some("service=git-upload-pack"));
        assert_eq!(found.unwrap(), Operation::Advertise(Service::UploadPack));
        assert_eq!(of(Method::POST, "origin/git-receive-pack", None).unwrap(), Operation::Push);
        for query in [None, Some("service=git-upload-archive"), Some("service=")] {
            assert_eq!(of(Method::GET, "origin/info/refs", query).unwrap_err().code, "dumb_protocol");
        }
        assert_eq!(of(Method::POST, "origin/info/refs", None).unwrap_err().status.as_u16(), 405);
        for path in ["origin/HEAD", "origin/objects/info/packs", "other/info/refs", "origin", ""] {
            assert_eq!(of(Method::GET, path, None).unwrap_err().status.as_u16(), 404, "{path}");
        }
    }

    #[tokio::test]
    async fn a_slot_is_held_until_the_answer_is_read_or_dropped() {
        let slots = Arc::new(tokio::sync::Semaphore::new(2));
        let answer = || stream::iter([Ok(bytes::Bytes::new())]).boxed();
        let mut read = holding(Arc::clone(&slots).try_acquire_owned().unwrap(), answer());
        let dropped = holding(Arc::clone(&slots).try_acquire_owned().unwrap(), answer());
        assert!(read.next().await.is_some());
        assert_eq!(slots.available_permits(), 0);
        drop(dropped);
        assert!(read.next().await.is_none());
        assert_eq!(slots.available_permits(), 2);
    }

    #[test]
    fn only_gits_own_protocol_versions_are_passed_on() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("git-protocol", value.parse().unwrap());
            protocol(&headers)
        };
        assert_eq!(of("version=2").as_deref(), Some("version=2"));
        assert_eq!(of("version=2:x=y"), None);
    }
}
