//! The way outside for tools: `CONNECT` and absolute-form requests, to hosts that the operator allows.
//!
//! Nothing passes without a rule. A name is resolved here, once; its addresses are checked, and the connection goes to
//! what was checked. What is in a tunnel is encrypted end to end and is not looked into; a plain request may be sent on over
//! TLS that is made here. Every denial is told, and so is every host that was reached, with its bytes.

mod address;
mod config;
mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod http;
mod ledger;
mod policy;
mod reach;
mod run;
mod target;
mod tls;
mod tunnel;
#[cfg(feature = "checks-off")]
mod unframed;

use std::sync::Arc;

use ::http::{Request, Response, StatusCode};
use caisson_domain::egress::{Rule, Via, Wanted};
use caisson_domain::event::EventKind;
use caisson_domain::run::{Run, cut};
use caisson_store::{CredentialUse, DoorRun};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use serde_json::json;

pub use self::config::{EgressCredential, EgressUpstreams};
pub(crate) use self::fault::Fault;
use self::policy::{Ground, Policy};
pub(crate) use self::reach::{Dial, Reach, Resolve, system, tcp};
pub(crate) use self::run::{RunEgress, before_outcome};
use self::tls::Tls;
#[cfg(feature = "checks-off")]
pub(crate) use self::unframed::unframed;
use crate::body::{self, Body};
use crate::bounds::EXCERPT_BYTES;
use crate::config::GatewayError;
use crate::credentials::{self, CredentialFault, RegistryLogin};
use crate::grants;
use crate::problem::Refusal;
use crate::shared::{Door, Shared};

/// The outside as this gateway reaches it.
pub(crate) struct EgressSide {
    policy: Policy,
    reach: Reach,
    tls: Tls,
}

impl EgressSide {
    pub(crate) fn new(upstreams: &EgressUpstreams, net: (Resolve, Dial)) -> Result<Self, GatewayError> {
        let tls = Tls::new(upstreams.extra_ca_pem.as_deref())?;
        Ok(Self { policy: Policy::new(upstreams)?, reach: Reach::new(upstreams, net), tls })
    }
}

/// What is told of a fault on the way of what is learned. Of a name that no rule has nobody is told where it leads, nor whether there
/// is one: whoever chose it may have it lead to any address, and no list should open that one, nor may names inside be looked up
/// for the asking.
fn unlearned(wanted: &Wanted, ground: Ground, fault: Fault) -> Fault {
    match (ground, fault) {
        (Ground::Learning, Fault::PrivateAddress { .. } | Fault::Unresolved | Fault::ResolveTimeout) => {
            Fault::NotAllowed { rule: Rule::exactly(wanted).to_string() }
        }
        (Ground::Learning | Ground::Rule, fault) => fault,
    }
}

/// Answers a request whose line names a host.
pub(crate) async fn answer(door: &Arc<Door>, request: Request<Incoming>) -> Response<Body> {
    let refused = match grants::tool(door, request.headers()).await {
        Ok(run) => match serve(door, &run, request).await {
            Ok(response) => return response,
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    };
    // Of a refused CONNECT most tools show the status line alone.
    let reason = ReasonPhrase::try_from(format!("Refused by the sandbox: {}", refused.code));
    let mut response = refused.without(&door.secrets).into_response();
    if let Ok(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    response
}

async fn serve(door: &Arc<Door>, run: &Run, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let egress = RunEgress::of(door, run).await.map_err(|error| Refusal::store(&error))?;
    let asked = request.uri().to_string();
    let asked = cut(&asked, EXCERPT_BYTES);
    let wanted = match target::wanted(request.method(), request.uri(), request.headers()) {
        Ok(wanted) => door.shared.egress.policy.way(chosen(run), wanted),
        Err(fault) => return Err(refuse(door, &egress, (run, asked, None), fault).await),
    };
    match pass(door, &egress, run, &wanted, request).await {
        Ok(response) => Ok(response),
        Err(Stop::Fault(fault)) => {
            let target = wanted.target.to_string();
            Err(refuse(door, &egress, (run, &target, Some(&wanted)), fault).await)
        }
        Err(Stop::Store(refusal)) => Err(refusal),
    }
}

/// What the run's workflow chose; none if it has no list.
fn chosen(run: &Run) -> Option<&[String]> {
    run.spec.workflow.caisson.egress.as_deref()
}

/// Why a request does not pass.
enum Stop {
    Fault(Fault),
    Store(Refusal),
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
                (StatusCode::INTERNAL_SERVER_ERROR, "egress_credential")
            }
        };
        Self::Store(Refusal::new(status, code, fault.message()))
    }
}

async fn pass(
    door: &Arc<Door>,
    egress: &Arc<RunEgress>,
    run: &Run,
    wanted: &Wanted,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Stop> {
    let shared = &door.shared;
    let side = &shared.egress;
    let ground = side.policy.judge(chosen(run), wanted)?;
    let (passage, record) = egress.admit(wanted, ground)?;
    // Nobody goes out unrecorded.
    let recorded = record.ensure(shared, || egress.audit_use(&shared.store, wanted, ground)).await;
    recorded.map_err(|error| Stop::Store(Refusal::store(&error)))?;
    let login = match (&wanted.via, ground) {
        // Whom no rule names is told no credential.
        (Via::Tunnel, _) | (Via::Http { .. } | Via::Https { .. }, Ground::Learning) => None,
        // Nobody outside waits for the store.
        (Via::Http { .. } | Via::Https { .. }, Ground::Rule) => login(shared, run, wanted).await?,
    };
    let request_of = (wanted, login.as_ref().map(|login| &login.authorization));
    let outside = side.reach.connect(&wanted.target, ground, &shared.bounds).await;
    let outside = outside.map_err(|fault| unlearned(wanted, ground, fault))?;
    match &wanted.via {
        Via::Tunnel => {}
        Via::Http { .. } => return Ok(http::exchange(door, outside, passage, request_of, request).await?),
        Via::Https { .. } => {
            let outside = side.tls.over(outside, &wanted.target, &shared.bounds).await?;
            return Ok(http::exchange(door, outside, passage, request_of, request).await?);
        }
    }
    let upgrade = hyper::upgrade::on(&mut request);
    shared.tracker.spawn(tunnel::carry(Arc::clone(door), upgrade, outside, passage));
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

/// What the host gets now, the store's before the configuration's; its use is written down before.
async fn login(shared: &Arc<Shared>, run: &Run, wanted: &Wanted) -> Result<Option<RegistryLogin>, Stop> {
    let of_run = DoorRun { id: run.id.clone(), project: run.project.clone() };
    let stored = credentials::registry(shared, &of_run, wanted).await?;
    let of_settings = || shared.egress.policy.credential(wanted).cloned();
    let (is_stored, found) = (stored.is_some(), stored.or_else(of_settings));
    let Some(login) = found else { return Ok(None) };
    let host = wanted.target.host.to_string();
    let used = CredentialUse { credential: login.name.clone(), host, purpose: "registry" };
    shared.note_use(&run.id, &used).await.map_err(Stop::Store)?;
    if !is_stored {
        credentials::used_configured(shared, &login.name, &of_run).await?;
    }
    Ok(Some(login))
}

/// Tells of a fault and makes the refusal of it.
async fn refuse(
    door: &Door,
    egress: &RunEgress,
    (run, asked, wanted): (&Run, &str, Option<&Wanted>),
    fault: Fault,
) -> Refusal {
    let refusal = fault.refusal(asked);
    if fault.is_denial() {
        egress.deny(&door.shared, asked, wanted, &fault).await;
    } else {
        let data = json!({
            "upstream": "egress", "kind": refusal.code, "status": refusal.status.as_u16(), "message": refusal.message,
        });
        door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
    }
    refusal
}
