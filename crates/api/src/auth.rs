//! Who calls, and whether they may.

use axum::extract::FromRequestParts;
use caisson_domain::grant::TOKEN_BYTES;
use caisson_domain::principal::{Principal, Scope};
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};

use crate::problem::ApiError;
use crate::state::App;

/// The second header that takes a key, for clients that cannot set `Authorization`.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const PREFIX: &str = "csk_";

/// A caller who may read.
pub(crate) struct Reader(pub(crate) Principal);

/// A caller who may create and cancel.
pub(crate) struct Writer(pub(crate) Principal);

/// A caller who may add, rotate, list and remove credentials.
pub(crate) struct Keeper(pub(crate) Principal);

impl FromRequestParts<App> for Keeper {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        caller(&parts.headers, app, Scope::Credentials).await.map(Self)
    }
}

impl FromRequestParts<App> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        caller(&parts.headers, app, Scope::RunsRead).await.map(Self)
    }
}

impl FromRequestParts<App> for Writer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        caller(&parts.headers, app, Scope::RunsWrite).await.map(Self)
    }
}

async fn caller(headers: &HeaderMap, app: &App, scope: Scope) -> Result<Principal, ApiError> {
    let secret = presented(headers)?;
    // A text that cannot be a key costs no look-up.
    if !is_key(secret) {
        return Err(ApiError::KeyRefused);
    }
    let principal = app.store().authenticate(secret).await?.ok_or(ApiError::KeyRefused)?;
    if principal.may(scope) { Ok(principal) } else { Err(ApiError::ScopeMissing(scope)) }
}

/// The one key that the headers hold; two different ones are refused, so that nobody can be mistaken about which
/// counts.
fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut keys = Vec::new();
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
        assert_eq!(presented(&headers(&ok)).unwrap(), "k1");
        assert_eq!(presented(&headers(&ok[..1])).unwrap(), "k1");
        assert_eq!(presented(&headers(&ok[1..])).unwrap(), "k1");
        assert!(matches!(presented(&headers(&[])), Err(ApiError::KeyMissing)));
        for bad in [
            [(header::AUTHORIZATION, "Bearer k1"), (API_KEY, "k2")],
            [(API_KEY, "k1"), (API_KEY, "k2")],
            [(header::AUTHORIZATION, "Basic k1"), (API_KEY, "k1")],
            [(header::AUTHORIZATION, "k1"), (API_KEY, "k1")],
        ] {
            assert!(matches!(presented(&headers(&bad)), Err(ApiError::KeyRefused)));
        }
    }
}
