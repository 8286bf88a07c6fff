//! Who calls, and whether they may.

use axum::extract::FromRequestParts;
use caisson_domain::grant::{TOKEN_BYTES, TokenHash};
use caisson_domain::id::{ApiKeyId, DEFAULT_PROJECT};
use caisson_domain::principal::{Principal, Scope};
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};

use crate::access::Peer;
use crate::automagik;
use crate::denials;
use crate::gate::Entry;
use crate::middleware::Meter;
use crate::problem::ApiError;
use crate::state::App;

/// The second header that takes a key, for clients that cannot set `Authorization`.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const PREFIX: &str = "csk_";

macro_rules! callers {
    ($($(#[$doc:meta])* $name:ident: $scope:ident;)+) => { $(
        $(#[$doc])*
        pub(crate) struct $name(pub(crate) Principal);

        impl FromRequestParts<App> for $name {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
                caller(parts, app, Scope::$scope).await.map(Self)
            }
        }
    )+ };
}

callers! {
    /// A caller who may read.
    Reader: RunsRead;
    /// A caller who may create and cancel.
    Writer: RunsWrite;
    /// A caller who may add, rotate, list and remove credentials.
    Keeper: Credentials;
    /// A caller who may change workflows.
    WorkflowKeeper: Workflows;
    /// A caller who may read the audit log.
    Auditor: Audit;
    /// A caller who may do everything in the project.
    Administrator: Admin;
}

/// The key that a request was let in with: for what goes on long after that.
#[derive(Debug, Clone)]
pub(crate) struct Opener(pub(crate) ApiKeyId);

/// Refuses a caller whose key lacks the scope, which is counted, and in the audit log.
///
/// # Errors
/// [`ApiError::ScopeMissing`].
/// # Cancel safety
/// As [`denials::Denials::record`].
pub(crate) async fn require(app: &App, caller: &Principal, scope: Scope) -> Result<(), ApiError> {
    if caller.may(scope) {
        return Ok(());
    }
    let refused = ApiError::ScopeMissing(scope);
    denials::count(app.store(), &refused);
    app.access().denials.record(app.store(), caller, scope.as_str()).await;
    Err(refused)
}

/// Lets keys of the default project pass; any other is counted, in the audit log, and refused as `refused` says.
///
/// # Errors
/// `refused`.
/// # Cancel safety
/// As [`denials::Denials::record`].
pub(crate) async fn require_default_project(
    app: &App,
    caller: &Principal,
    refused: ApiError,
) -> Result<(), ApiError> {
    if is_of_the_default_project(caller) {
        return Ok(());
    }
    Err(note_border(app, caller, refused).await)
}

/// Counts and records a try across the border of the caller's project, and gives back what it is refused with.
///
/// # Cancel safety
/// As [`denials::Denials::record`].
pub(crate) async fn note_border(app: &App, caller: &Principal, refused: ApiError) -> ApiError {
    denials::count(app.store(), &refused);
    if let Some(lacking) = denials::reason(&refused) {
        app.access().denials.record(app.store(), caller, lacking).await;
    }
    refused
}

/// Whether it is a key of the operators: of the default project, with the scope `admin`.
pub(crate) fn is_operator(caller: &Principal) -> bool {
    is_of_the_default_project(caller) && caller.may(Scope::Admin)
}

/// Whether the key is of the default project.
pub(crate) fn is_of_the_default_project(caller: &Principal) -> bool {
    caller.project.as_str() == DEFAULT_PROJECT
}

/// Whether the request came with a key of the operators, where none is needed and none is refused. It does not count as a request of
/// the key; one that is wrong counts as a failure of the address as anywhere.
pub(crate) async fn comes_from_operator(parts: &Parts, app: &App) -> bool {
    let access = app.access();
    let Some(secret) = presented(&parts.headers, None).ok().filter(|text| is_key(text)) else { return false };
    let hash = TokenHash::of(secret);
    let peer = parts.extensions.get::<Peer>();
    if peer.is_some_and(|peer| access.failures.spent(peer).is_some()) && !access.was_good(&hash) {
        return false;
    }
    match app.store().authenticate(secret).await {
        Ok(Some(caller)) => {
            access.note_good(&hash);
            is_operator(&caller)
        }
        Ok(None) => {
            if let Some(peer) = peer {
                access.failures.take(peer);
            }
            denials::count(app.store(), &ApiError::KeyRefused);
            false
        }
        Err(_) => false,
    }
}

/// Who calls. Who is refused is counted, and in the audit log if it is a key that lacks the scope.
async fn caller(parts: &mut Parts, app: &App, scope: Scope) -> Result<Principal, ApiError> {
    let principal = known_caller(parts, app).await.inspect_err(|error| denials::count(app.store(), error))?;
    require(app, &principal, scope).await?;
    parts.extensions.insert(Opener(principal.key.clone()));
    Ok(principal)
}

/// Who calls, whatever for, within the limits of the key and of the address it comes from.
async fn known_caller(parts: &mut Parts, app: &App) -> Result<Principal, ApiError> {
    let access = app.access();
    let peer = parts.extensions.get::<Peer>();
    let failed = |error: &ApiError| {
        // Who sends no key guesses none.
        if let (Some(peer), ApiError::KeyRefused) = (peer, error) {
            access.failures.take(peer);
        }
    };
    // A text that cannot be a key costs no look-up.
    let in_query = automagik::key_in_query(&parts.uri);
    let secret = presented(&parts.headers, in_query.as_deref())
        .and_then(|text| is_key(text).then_some(text).ok_or(ApiError::KeyRefused))
        .inspect_err(failed)?;
    let hash = TokenHash::of(secret);
    // Whoever shares an address with one who guesses is let through, and the guesses cost no look-up.
    if let Some(retry_after_s) = peer.and_then(|peer| access.failures.spent(peer))
        && !access.was_good(&hash)
    {
        return Err(ApiError::FailedTooOften { retry_after_s });
    }
    let known = app.store().authenticate(secret).await?;
    let principal = known.ok_or(ApiError::KeyRefused).inspect_err(failed)?;
    access.note_good(&hash);
    let has_place = parts.extensions.get::<Entry>().is_none_or(|entry| entry.prove(&principal.key));
    if let Some(quota) = access.requests.take(&principal.key) {
        if let Some(meter) = parts.extensions.get::<Meter>() {
            meter.note(quota);
        }
        if let Some(retry_after_s) = quota.retry_after_s {
            return Err(ApiError::RateLimited { retry_after_s });
        }
    }
    if !has_place {
        return Err(ApiError::ConnectionsOfKeyFull);
    }
    Ok(principal)
}

/// The one key that the headers hold, or the query where it may; two different ones are refused, so that nobody can be mistaken about which
/// counts.
fn presented<'k>(headers: &'k HeaderMap, in_query: Option<&'k str>) -> Result<&'k str, ApiError> {
    let mut keys: Vec<&str> = in_query.into_iter().collect();
    for value in headers.get_all(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| ApiError::KeyRefused)?;
        let (scheme, rest) = text.split_once(' ').ok_or(ApiError::KeyRefused)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::KeyRefused);
        }
        keys.push(rest.trim());
    }
    for value in headers.get_all(API_KEY) {
        keys.push(value.to_str().map_err(|_| ApiError::KeyRefused)?.trim());
    }
    match keys.split_first() {
        None => Err(ApiError::KeyMissing),
        Some((first, rest)) if rest.iter().all(|key| key == first) => Ok(first),
        Some(_) => Err(ApiError::KeyRefused),
    }
}

fn is_key(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == 2 * TOKEN_BYTES && digits.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use caisson_domain::grant::Token;

    use super::*;

    #[test]
    fn a_made_key_has_the_shape_of_a_key() {
        assert!(is_key(Token::api_key([0xab; TOKEN_BYTES]).expose()));
        for bad in ["", "csk_", &format!("csk_{}", "a".repeat(63)), &format!("csa_{}", "a".repeat(64))] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    #[test]
    fn one_key_may_come_in_either_header_but_not_two_keys() {
        let headers = |pairs: &[(HeaderName, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, http::HeaderValue::from_static(value));
            }
            headers
        };
        let ok = [(header::AUTHORIZATION, "bearer k1"), (API_KEY, "k1")];
        assert_eq!(presented(&headers(&ok), None).unwrap(), "k1");
        assert_eq!(presented(&headers(&ok[..1]), None).unwrap(), "k1");
        assert_eq!(presented(&headers(&ok[1..]), None).unwrap(), "k1");
        assert!(matches!(presented(&headers(&[]), None), Err(ApiError::KeyMissing)));
        for bad in [
            [(header::AUTHORIZATION, "Bearer k1"), (API_KEY, "k2")],
            [(API_KEY, "k1"), (API_KEY, "k2")],
            [(header::AUTHORIZATION, "Basic k1"), (API_KEY, "k1")],
            [(header::AUTHORIZATION, "k1"), (API_KEY, "k1")],
        ] {
            assert!(matches!(presented(&headers(&bad), None), Err(ApiError::KeyRefused)));
        }
    }
}
