//! The way to the workflow's HTTP MCP servers: `/mcp/<name>`, and nothing below.
//!
//! The name stands for a URL that only the workflow has; the sandbox can add nothing to it. The host has to be among those
//! that the operator lets workflows name, its address is checked as that of every way outside, and the server's credential is
//! asked of the store for each request and added here.

mod bounds;
mod config;
mod exchange;
mod fault;
mod names;
mod run;
mod tools;

use std::ops::ControlFlow;
use std::sync::Arc;

use caisson_domain::checks::{Check, stands};
use caisson_domain::egress::{Host, Rule, Target, Via, Wanted};
use caisson_domain::mcp;
use caisson_domain::run::{Run, cut};
use caisson_store::{CredentialUse, DoorRun, StoredWorkflow};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;
use url::Url;

pub(crate) use self::bounds::McpBounds;
pub use self::config::McpUpstreams;
use self::fault::Fault;
use self::names::Names;
pub(crate) use self::run::{RunMcp, before_outcome};
use self::tools::{Denied, Head, MessageFault};
use crate::body::{Body, BodyFault, collect, empty, full};
use crate::bounds::Bounds;
use crate::config::{GatewayError, build_client};
use crate::credentials::{self, CredentialFault, McpHeader};
use crate::egress::{EgressUpstreams, Reach, Resolve, tcp};
use crate::grants;
use crate::problem::Refusal;
use crate::shared::{Door, Shared};

/// MCP servers as this gateway reaches them.
pub(crate) struct McpSide {
    allow: Vec<Rule>,
    reach: Arc<Reach>,
    client: reqwest::Client,
}

impl McpSide {
    pub(crate) fn new(
        upstreams: &McpUpstreams,
        resolve: Resolve,
        bounds: &Bounds,
    ) -> Result<Self, GatewayError> {
        let addresses = EgressUpstreams {
            allow_private: upstreams.allow_private.clone(),
            hosts: upstreams.hosts.clone(),
            ..EgressUpstreams::default()
        };
        let reach = Arc::new(Reach::new(&addresses, (resolve, tcp())));
        let names = Names { reach: Arc::clone(&reach), bounds: bounds.clone() };
        let builder = reqwest::Client::builder().dns_resolver(Arc::new(names));
        let client = build_client("MCP servers", builder, None, upstreams.extra_ca_pem.as_deref())?;
        Ok(Self { allow: upstreams.allow.clone(), reach, client })
    }

    /// Refuses hosts that the operator's rules do not have, and addresses that may not be reached. Those of names are looked at
    /// when a connection is made.
    async fn judge(&self, target: &Target, bounds: &Bounds) -> Result<(), Fault> {
        let wanted = Wanted { target: target.clone(), via: Via::Tunnel };
        if stands(Check::McpHosts) && !self.allow.iter().any(|rule| rule.allows(&wanted)) {
            return Err(Fault::NotAllowed { rule: Rule::exactly(&wanted).to_string() });
        }
        if matches!(target.host, Host::Address(_)) {
            self.reach.addresses(target, bounds).await?;
        }
        Ok(())
    }
}

/// What a request asks for: one server of the run's workflow.
#[derive(Debug, Clone)]
struct Asked {
    server: String,
    url: Url,
    target: Target,
}

/// Answers a request below `/mcp/`; `rest` is what follows it.
pub(crate) async fn answer(door: &Arc<Door>, request: Request<Incoming>, rest: &str) -> Response<Body> {
    let refused = match grants::agent(door, "mcp", request.headers()).await {
        Ok(run) => match serve(door, &run, request, rest).await {
            Ok(response) => return response,
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    };
    refused.without(&door.secrets).into_response()
}

async fn serve(
    door: &Arc<Door>,
    run: &Run,
    request: Request<Incoming>,
    rest: &str,
) -> Result<Response<Body>, Refusal> {
    let mcp = RunMcp::of(door, run).await.map_err(|error| Refusal::store(&error))?;
    let asked = match find(&door.shared, run, &request, rest).await {
        Ok(asked) => asked,
        Err(fault) => {
            let shown = cut(rest, mcp::NAME_BYTES);
            // What is asked for by mistake is one kind of refusal, whatever it is called.
            mcp.tell(door, "", None, &fault).await;
            return Err(fault.refusal(shown, ""));
        }
    };
    match pass(door, &mcp, run, &asked, request).await {
        Ok(response) => Ok(response),
        Err(Stop::Fault(fault)) => {
            mcp.tell(door, &asked.server, Some(&asked.target), &fault).await;
            Err(fault.refusal(&asked.server, &asked.target.to_string()))
        }
        Err(Stop::Other(refusal)) => Err(refusal),
    }
}

/// The server that the path names: its whole name, and nothing behind it.
async fn find(shared: &Shared, run: &Run, request: &Request<Incoming>, rest: &str) -> Result<Asked, Fault> {
    let name = if stands(Check::McpPath) { rest } else { rest.split('/').next().unwrap_or_default() };
    if !mcp::is_name(name) || (request.uri().query().is_some() && stands(Check::McpPath)) {
        return Err(Fault::Path);
    }
    if !matches!(*request.method(), Method::POST | Method::GET | Method::DELETE) {
        return Err(Fault::Method);
    }
    let mut written = run.spec.workflow.mcp_servers.get(name).cloned();
    if written.is_none() && !stands(Check::McpServers) {
        let look = |mut other: StoredWorkflow| {
            written = other.workflow.mcp_servers.remove(name);
            if written.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        shared.store.each_workflow(&run.project, look).await.ok();
    }
    match written.as_ref().map(mcp::Server::read) {
        Some(Ok(mcp::Server { reach: mcp::Reach::Http(url), .. })) => {
            let host = Host::parse(url.host_str().unwrap_or_default()).map_err(|_| Fault::Unknown)?;
            let port = url.port_or_known_default().ok_or(Fault::Unknown)?;
            Ok(Asked { server: name.to_owned(), url, target: Target { host, port } })
        }
        // One inside the sandbox, or one that another version wrote.
        Some(Ok(_) | Err(_)) | None => Err(Fault::Unknown),
    }
}

/// Why a request does not pass.
enum Stop {
    Fault(Fault),
    Other(Refusal),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<CredentialFault> for Stop {
    fn from(fault: CredentialFault) -> Self {
        let (status, code) = match fault {
            CredentialFault::Away => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            CredentialFault::Internal | CredentialFault::Unusable { .. } | CredentialFault::Token { .. } => {
                (StatusCode::FAILED_DEPENDENCY, "mcp_credential")
            }
        };
        Self::Other(Refusal::new(status, code, fault.message()))
    }
}

async fn pass(
    door: &Arc<Door>,
    mcp: &Arc<RunMcp>,
    run: &Run,
    asked: &Asked,
    request: Request<Incoming>,
) -> Result<Response<Body>, Stop> {
    let shared = &door.shared;
    shared.mcp.judge(&asked.target, &shared.bounds).await?;
    let (passage, record) = mcp.admit(&asked.server, &asked.target)?;
    // Nobody is asked unrecorded.
    let recorded = record.ensure(shared, || mcp.audit_use(&shared.store, &asked.server, &asked.target)).await;
    recorded.map_err(|error| Stop::Other(Refusal::store(&error)))?;
    let request = without_denied_tools(shared, mcp, run, asked, request).await?;
    let credential = credential(shared, run, asked).await?;
    Ok(exchange::exchange(door, passage, asked, credential.as_ref(), request).await?)
}

/// The request, if it calls no tool that the workflow takes away. It is read as a whole only where that may be.
async fn without_denied_tools(
    shared: &Shared,
    mcp: &RunMcp,
    run: &Run,
    asked: &Asked,
    request: Request<Incoming>,
) -> Result<Request<Body>, Fault> {
    if *request.method() != Method::POST {
        // Only a POST has a message.
        return Ok(request.map(|_| empty()));
    }
    let denied = Denied::of(&asked.server, &run.spec.workflow.disallowed_tools);
    let Some(denied) = denied.filter(|_| stands(Check::McpTools)) else {
        return Ok(request.map(|body| body.map_err(Into::into).boxed_unsync()));
    };
    let (mut parts, body) = request.into_parts();
    let (bound, idle) = (shared.bounds.mcp.request_bytes, shared.bounds.body_idle);
    let reading = collect(body, usize::try_from(bound).unwrap_or(usize::MAX), idle);
    let whole = tokio::select! {
        biased;
        () = mcp.over() => return Err(Fault::Over),
        whole = timeout(shared.bounds.mcp.total, reading) => whole.unwrap_or(Err(BodyFault::TimedOut)),
    };
    let whole = whole.map_err(|fault| match fault {
        BodyFault::TooLarge => Fault::RequestTooLarge { bound },
        BodyFault::TimedOut | BodyFault::Broken(_) => Fault::Message(MessageFault::Broken),
    })?;
    let (head, message) = (Head::of(&parts.headers), whole.clone());
    // Patterns and names may be long, and others wait for this thread.
    let judged = tokio::task::spawn_blocking(move || denied.judge(&head, &message)).await;
    judged.unwrap_or(Err(MessageFault::Unclear)).map_err(Fault::Message)?;
    // It was read as that, and nobody is to read it as another charset.
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(Request::from_parts(parts, full(whole)))
}

/// The header that the server gets now; its use is written down before.
async fn credential(shared: &Arc<Shared>, run: &Run, asked: &Asked) -> Result<Option<McpHeader>, Stop> {
    let of_run = DoorRun { id: run.id.clone(), project: run.project.clone() };
    let Some(found) = credentials::mcp(shared, &of_run, &asked.url).await? else { return Ok(None) };
    let (credential, host) = (found.recorded.clone(), asked.target.host.to_string());
    let used = CredentialUse { credential, host, purpose: "mcp" };
    shared.note_use(&run.id, &used).await.map_err(Stop::Other)?;
    Ok(Some(found))
}
