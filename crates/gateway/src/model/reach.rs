//! Reaching the model API: one call, tried again before its first byte while that may help, and given up for good with an
//! answer that makes the agent stop at once.

use std::sync::Arc;
use std::time::Duration;

use caisson_domain::budget::OverBudget;
use caisson_domain::event::EventKind;
use caisson_domain::run::{Failure, FailureKind};
use caisson_store::DoorRun;
use http::StatusCode;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::account::Account;
use super::ask::Ask;
use super::meter::Meter;
use super::retry::{Advice, Tries, may_pass};
use super::share::NoShare;
use super::stream::Reply;
use super::words::words;
use crate::credentials::ModelRoute;
use crate::hold::hold;
use crate::problem::Refusal;
use crate::shared::{Door, Shared};

/// Why there is no reply.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// No connection: upstream saw nothing.
    Connect,
    /// The connection broke before the reply.
    Broken,
    /// No reply in time.
    Timeout,
    /// The client left, and waiting longer would help nobody.
    Abandoned,
}

/// Why a try gave nothing to pass on.
enum Trouble {
    Fault(Fault),
    /// A refusal that may pass, or that the agent could not understand.
    Refused {
        status: StatusCode,
        words: String,
        advice: Advice,
    },
}

/// Tries until there is a reply to pass on; an access token that is refused is renewed once, without a word if the call can be
/// tried once more, and each other try is sent with the credential that counts by then, which `route` is afterwards. Each try
/// has a row of its own, so that every request that upstream saw is counted.
pub(super) async fn reach(
    (door, run): (&Door, &DoorRun),
    route: &mut ModelRoute,
    ask: Option<Ask>,
    mut tries: Tries,
    reply: &mut Reply,
) -> Result<(Account, reqwest::Response), Refusal> {
    let shared = &door.shared;
    // An access token that was refused is had anew, once.
    let mut renewed = false;
    loop {
        let mut account = begin((door, run), ask.clone(), reply).await?;
        let Some(request) = tries.next() else {
            account.settle_free(0).await;
            return Err(unsent());
        };
        let trouble = match send(shared, (&route.client, request), reply).await {
            Ok(upstream) if passes(upstream.status()) => {
                account.answered();
                return Ok((account, upstream));
            }
            Ok(upstream) => {
                account.answered();
                let (status, advice) = (upstream.status(), Advice::of(upstream.headers()));
                account.settle_free(status.as_u16()).await;
                let words = words(upstream, &door.secrets.redactor()).await;
                Trouble::Refused { status, words, advice }
            }
            Err(fault) => {
                settle_fault(&mut account, fault).await;
                Trouble::Fault(fault)
            }
        };
        if !renewed && trouble.status() == StatusCode::UNAUTHORIZED.as_u16() {
            match route.renewed(shared, run).await {
                Some(other) if tries.renew(&other.header) => {
                    (*route, renewed) = (other, true);
                    continue;
                }
                Some(_) => {
                    trouble.tell(door, run, None).await;
                    return Err(renewed_too_late());
                }
                None => {}
            }
        }
        let wait = trouble.advice().and_then(|advice| tries.wait(advice, account.spread()));
        trouble.tell(door, run, wait).await;
        match wait {
            Some(wait) => {
                pause(shared, wait, reply).await?;
                follow((door, run), route, &mut tries).await?;
            }
            None => return Err(give_up((door, run), route, &trouble, &tries.told()).await),
        }
    }
}

async fn begin(
    (door, run): (&Door, &DoorRun),
    ask: Option<Ask>,
    reply: &mut Reply,
) -> Result<Account, Refusal> {
    match Account::begin(Arc::clone(&door.shared), run, ask, reply).await {
        Ok(account) => Ok(account),
        Err(NoShare::NoRun) => Err(Refusal::no_run()),
        Err(NoShare::Left) => Err(unsent()),
        Err(NoShare::Store(error)) => Err(Refusal::store(&error)),
        Err(NoShare::Budget(over)) => Err(over_budget((door, run), &over).await),
    }
}

/// A refusal of a call that a budget has no room for, written down as the run's failure.
pub(super) async fn over_budget((door, run): (&Door, &DoorRun), over: &OverBudget) -> Refusal {
    let data = json!({
        "what": "model call",
        "rule": "budget",
        "scope": over.scope,
        "budget_micro_usd": over.budget_micro_usd,
        "spent_micro_usd": over.spent_micro_usd,
        "reserved_micro_usd": over.reserved_micro_usd,
        "needed_micro_usd": over.needed_micro_usd,
    });
    door.tell(&run.id, EventKind::GatewayDenied, data).await;
    stop_run((door, run), Failure::new(FailureKind::Budget, over.to_string())).await
}

/// Notes why the run's calls are given up and makes the answer that ends the agent: 429 with a long wait, since Claude Code
/// 2.1.330 tries every other status again, but for 403, which it takes for its own credential's fault. The word in front
/// of the sentence is the failure's.
async fn stop_run((door, run): (&Door, &DoorRun), failure: Failure) -> Refusal {
    let shared = &door.shared;
    let noted =
        hold(&shared.cancel, shared.bounds.store_hold, || shared.store.note_model_failure(&run.id, &failure))
            .await;
    if let Err(error) = noted {
        tracing::warn!(run.id = %run.id, error = %error, "why {}'s model calls are given up was not written", run.id);
    }
    tracing::info!(run.id = %run.id, failure.kind = %failure.kind, "gave up a model call of {}: {}", run.id, failure.message);
    let (status, code) = if failure.kind == FailureKind::ProviderAuth {
        (StatusCode::FORBIDDEN, "model_auth")
    } else {
        (StatusCode::TOO_MANY_REQUESTS, "model_given_up")
    };
    Refusal::new(status, code, format!("{}: {}", failure.kind, failure.message))
}

/// The client left, or the server stops: nobody reads this.
fn unsent() -> Refusal {
    let message = "the call was not waited for any longer";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
}

/// Has the next try sent with what counts now, and counts that it is: a credential that was rotated or removed while a call
/// waited for its next try is sent no more.
async fn follow(
    (door, run): (&Door, &DoorRun),
    route: &mut ModelRoute,
    tries: &mut Tries,
) -> Result<(), Refusal> {
    let other = super::noted_route(door, run, None).await?;
    // Elsewhere, or with more than a key, it is another request than the one that is kept, also where the key is the same.
    if !other.goes_as(route) {
        return Err(renewed_too_late());
    }
    if other.header != route.header {
        tries.replace(&route.header.0, &other.header);
    }
    *route = other;
    Ok(())
}

/// There is a good token now, and no copy of the call: the agent has one, and tries a server that is busy again at once.
fn renewed_too_late() -> Refusal {
    let message =
        "the server's credential for the model API is another one since the call was made; try again";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "token_renewed", message)
}

/// Whether a reply is passed on as it is: all but what may pass, what names our credential, and what leads elsewhere.
fn passes(status: StatusCode) -> bool {
    !may_pass(status) && status != StatusCode::UNAUTHORIZED && !status.is_redirection()
}

/// Sends the request and waits for the head of the reply.
async fn send(
    shared: &Shared,
    (client, request): (&reqwest::Client, reqwest::Request),
    reply: &mut Reply,
) -> Result<reqwest::Response, Fault> {
    let answer = timeout(shared.bounds.first_byte, client.execute(request));
    tokio::select! {
        answer = answer => match answer {
            Ok(Ok(upstream)) => Ok(upstream),
            Ok(Err(error)) if error.is_connect() => Err(Fault::Connect),
            Ok(Err(error)) => {
                tracing::debug!(error = %error.without_url(), "the model API broke off");
                Err(Fault::Broken)
            }
            Err(_) => Err(Fault::Timeout),
        },
        () = shared.patience(reply.closed(), shared.bounds.drain) => Err(Fault::Abandoned),
    }
}

/// There is no reply: only a call that never left costs nothing for sure.
async fn settle_fault(account: &mut Account, fault: Fault) {
    match fault {
        Fault::Connect => account.settle_free(0).await,
        Fault::Broken | Fault::Timeout | Fault::Abandoned => {
            account.settle(0, Meter::blind().reading()).await;
        }
    }
}

/// Waits for the next try, unless nobody waits for it.
async fn pause(shared: &Shared, wait: Duration, reply: &mut Reply) -> Result<(), Refusal> {
    tokio::select! {
        () = sleep(wait) => Ok(()),
        () = reply.closed() => Err(unsent()),
        () = shared.cancel.cancelled() => Err(unsent()),
    }
}

impl Trouble {
    /// What is said about another try; none if there is to be none whatever is said.
    fn advice(&self) -> Option<Advice> {
        match self {
            Self::Fault(Fault::Connect | Fault::Broken) => Some(Advice::default()),
            // Its time is over.
            Self::Fault(Fault::Timeout | Fault::Abandoned) => None,
            Self::Refused { status, advice, .. } => may_pass(*status).then_some(*advice),
        }
    }

    fn may_pass(&self) -> bool {
        match self {
            Self::Fault(_) => true,
            Self::Refused { status, .. } => may_pass(*status),
        }
    }

    const fn status(&self) -> u16 {
        match self {
            Self::Fault(_) => 0,
            Self::Refused { status, .. } => status.as_u16(),
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Fault(Fault::Connect) => "connect",
            Self::Fault(Fault::Broken) => "broken",
            Self::Fault(Fault::Timeout) => "timeout",
            Self::Fault(Fault::Abandoned) => "abandoned",
            Self::Refused { status: StatusCode::UNAUTHORIZED, .. } => "auth",
            Self::Refused { status: StatusCode::TOO_MANY_REQUESTS, .. } => "limit",
            Self::Refused { status, .. } if status.as_u16() < 400 => "redirect",
            Self::Refused { .. } => "failed",
        }
    }

    async fn tell(&self, door: &Door, run: &DoorRun, wait: Option<Duration>) {
        if matches!(self, Self::Fault(Fault::Abandoned)) {
            return;
        }
        let mut data = json!({"upstream": "model", "kind": self.word(), "status": self.status()});
        if let Self::Refused { words, .. } = self {
            data["words"] = words.as_str().into();
        }
        if let Some(wait) = wait {
            data["retry_in_ms"] = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).into();
        }
        door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
    }
}

/// The last answer of a call that came to nothing.
async fn give_up(
    (door, run): (&Door, &DoorRun),
    route: &ModelRoute,
    trouble: &Trouble,
    tries: &str,
) -> Refusal {
    // What may pass is left to the next server; what is the request's own fault is not.
    let left = door.shared.cancel.is_cancelled() && trouble.may_pass();
    if left || matches!(trouble, Trouble::Fault(Fault::Abandoned)) {
        return unsent();
    }
    let failure = match trouble {
        Trouble::Fault(fault) => {
            let what = match fault {
                Fault::Connect => "cannot be reached from the server",
                Fault::Broken => "breaks the connection off before it answers",
                Fault::Timeout | Fault::Abandoned => "did not answer in time",
            };
            Failure::new(
                FailureKind::ProviderDown,
                format!("the model API {what} ({tries}); see the server's model.base_url"),
            )
        }
        Trouble::Refused { status, words, .. } => refused(route, *status, words, tries),
    };
    stop_run((door, run), failure).await
}

/// What a refusal means for the run, with the model API's own words.
fn refused(route: &ModelRoute, status: StatusCode, words: &str, tries: &str) -> Failure {
    let (kind, message) = if status == StatusCode::UNAUTHORIZED {
        let (credential, replace) = (route.credential_text(), route.replace_text());
        (FailureKind::ProviderAuth, format!("the model API refused {credential}; {replace}"))
    } else if status.is_redirection() {
        let message = "the model API's URL redirects; set the final URL in the server's configuration";
        (FailureKind::ProviderDown, message.to_owned())
    } else if status == StatusCode::TOO_MANY_REQUESTS {
        let message = format!("the model API's limit was reached and did not pass {tries}");
        (FailureKind::ProviderLimit, message)
    } else {
        (FailureKind::ProviderDown, format!("the model API failed and did not recover {tries}"))
    };
    Failure::new(kind, format!("{message} ({words})")).with_evidence(words)
}

/// A refusal that is passed on as it is, and that no later call will fare better with.
pub(super) async fn note_forbidden((door, run): (&Door, &DoorRun), route: &ModelRoute) {
    let data = json!({"upstream": "model", "kind": "auth", "status": StatusCode::FORBIDDEN.as_u16()});
    door.tell(&run.id, EventKind::GatewayUpstreamFailed, data).await;
    let (credential, replace) = (route.credential_text(), route.replace_text());
    let message =
        format!("the model API does not let {credential} do this; give it the rights, or {replace}");
    drop(stop_run((door, run), Failure::new(FailureKind::ProviderAuth, message)).await);
}
