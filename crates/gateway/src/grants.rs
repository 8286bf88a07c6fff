//! Grants: the second hurdle of the door, after "which socket".

use caisson_domain::checks::{Check, stands};
use caisson_domain::event::EventKind;
use caisson_domain::grant::{GrantKind, TokenHash};
use caisson_domain::run::Run;
use caisson_store::{DoorRun, Knock, RefusedGrant, StoreError};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, PROXY_AUTHORIZATION};
use serde_json::json;

use crate::credentials::ToldCredential;
use crate::hold::hold;
use crate::problem::Refusal;
use crate::shared::Door;

/// What of a sandbox is told of with model calls.
const MODEL: &str = "model call";
/// Longest grant that is hashed, in bytes.
const GRANT_BYTES: usize = 256;

/// The presented grant: exactly one `Authorization: Bearer …`, or a field of that form with another name.
fn presented(headers: &HeaderMap, field: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(field).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, secret) = value.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() && secret.len() <= GRANT_BYTES)
        .then_some(secret)
}

/// Whether the request carries this sandbox's living grant of that kind. Asked of the store for every
/// request, so that a revocation acts at once.
async fn holds(door: &Door, kind: GrantKind, presented: Option<&str>) -> Result<bool, StoreError> {
    match presented {
        _ if !stands(Check::Grant) => Ok(true),
        None => Ok(false),
        Some(secret) => {
            let hash = TokenHash::of(secret);
            door.shared.store.check_grant(&door.sandbox, kind, &hash).await
        }
    }
}

/// Tells of a grant that opened nothing, and makes the refusal of it. Neither the grant nor anything of it is told.
async fn refuse(door: &Door, what: &'static str, presented: Option<&str>) -> Refusal {
    let refusal = Refusal::grant();
    let hash = presented.map(TokenHash::of);
    match door.shared.store.refused_grant(&door.sandbox, hash.as_ref()).await {
        Ok(Some(RefusedGrant { run, is_own })) => {
            let rule = match (presented, is_own) {
                (None, _) => "no_grant",
                (Some(_), true) => "grant_of_another_kind",
                (Some(_), false) => "unknown_grant",
            };
            let data = json!({"what": what, "rule": rule, "remedy": refusal.message});
            door.tell(&run, EventKind::GatewayDenied, data).await;
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(sandbox.id = %door.sandbox, error = %error, "a refused grant was not written down");
        }
    }
    refusal
}

/// Refuses a request without the control grant.
pub(crate) async fn control(door: &Door, headers: &HeaderMap) -> Result<(), Refusal> {
    let presented = presented(headers, AUTHORIZATION);
    match holds(door, GrantKind::Control, presented).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(refuse(door, "control", presented).await),
        Err(error) => Err(Refusal::store(&error)),
    }
}

/// Refuses a request for `what` without the agent grant; answers the run that is running in the sandbox. While the
/// database is away the request is held for a bounded time.
pub(crate) async fn agent(door: &Door, what: &'static str, headers: &HeaderMap) -> Result<Run, Refusal> {
    run_of(door, what, presented(headers, AUTHORIZATION)).await
}

/// The same for a request to the outside, whose `Authorization` is meant for the host there: the grant is in
/// `Proxy-Authorization`, which goes no further.
pub(crate) async fn tool(door: &Door, headers: &HeaderMap) -> Result<Run, Refusal> {
    run_of(door, "outside", presented(headers, PROXY_AUTHORIZATION)).await
}

async fn run_of(door: &Door, what: &'static str, presented: Option<&str>) -> Result<Run, Refusal> {
    let (cancel, patience) = (&door.shared.cancel, door.shared.bounds.store_hold);
    let open = hold(cancel, patience, || holds(door, GrantKind::Agent, presented)).await;
    if !open.map_err(|error| Refusal::store(&error))? {
        return Err(refuse(door, what, presented).await);
    }
    let run = hold(cancel, patience, || door.shared.store.door_run(&door.sandbox)).await;
    run.map_err(|error| Refusal::store(&error))?.ok_or_else(Refusal::no_run)
}

/// Refuses a look at whether somebody is there that has no grant at all, as some agents take one before their first call: that is
/// nothing to tell of.
pub(crate) fn not_bare(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(AUTHORIZATION) || !stands(Check::Grant) { Ok(()) } else { Err(Refusal::grant()) }
}

/// As [`agent`], for model calls, which need to know of the run who it is and no more: a single small read, which tells of
/// the credential as well.
pub(crate) async fn knock(
    door: &Door,
    headers: &HeaderMap,
) -> Result<(DoorRun, Option<ToldCredential>), Refusal> {
    let presented = presented(headers, AUTHORIZATION);
    if !stands(Check::Grant) {
        let run = run_of(door, MODEL, presented).await?;
        return Ok((DoorRun { id: run.id, project: run.project }, None));
    }
    let Some(secret) = presented else { return Err(refuse(door, MODEL, None).await) };
    let hash = TokenHash::of(secret);
    let (cancel, patience) = (&door.shared.cancel, door.shared.bounds.store_hold);
    let knock = hold(cancel, patience, || door.shared.store.knock(&door.sandbox, &hash)).await;
    match knock.map_err(|error| Refusal::store(&error))? {
        Knock::Refused => Err(refuse(door, MODEL, presented).await),
        Knock::NoRun => Err(Refusal::no_run()),
        Knock::Open { run, model_credential } => Ok((run, Some(ToldCredential::now(model_credential)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        presented(&headers, AUTHORIZATION).map(str::to_owned)
    }

    #[test]
    fn a_grant_is_one_bearer_token_within_its_bound() {
        assert_eq!(of(&["Bearer csa_1"]).as_deref(), Some("csa_1"));
        assert_eq!(of(&["bearer  csa_1 "]).as_deref(), Some("csa_1"));
        assert!(of(&[&format!("Bearer {}", "x".repeat(GRANT_BYTES))]).is_some());
        let long = format!("Bearer {}", "x".repeat(GRANT_BYTES + 1));
        for bad in
            [&[][..], &["Basic eDp5"], &["Bearer "], &["Bearer"], &["Bearer a", "Bearer a"], &[long.as_str()]]
        {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }
}
