//! Required keys and the keys that requests carry; only digests are kept.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

use crate::record::SeenKey;

/// SHA-256 of a key that requests may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Digests a key. The key is not kept.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }
}

/// The keys of one request.
#[derive(Debug, Clone)]
pub(crate) struct SeenKeys {
    pub(crate) x_api_key: Option<SeenKey>,
    pub(crate) authorization: Option<SeenKey>,
    /// Whether one of them is required, or none is.
    pub(crate) accepted: bool,
}

impl SeenKeys {
    pub(crate) fn of(headers: &HeaderMap, required: &[KeyDigest]) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION).map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
        let seen = |key: Option<&str>| {
            key.map(|key| {
                let digest = KeyDigest::of(key);
                let matched = (!required.is_empty()).then(|| required.contains(&digest));
                SeenKey { sha256: hex::encode(digest.0), matched }
            })
        };
        let (x_api_key, authorization) =
            (seen(text("x-api-key".parse().expect("a header name"))), seen(bearer));
        let matched = [&x_api_key, &authorization].into_iter().flatten().any(|key| key.matched == Some(true));
        Self { x_api_key, authorization, accepted: required.is_empty() || matched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &'static str, value: &'static str, required: &[&str]) -> SeenKeys {
        let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        let required: Vec<KeyDigest> = required.iter().map(|key| KeyDigest::of(key)).collect();
        SeenKeys::of(&headers, &required)
    }

    #[test]
    fn either_header_may_carry_any_required_key() {
        assert!(seen("x-api-key", "two", &["one", "two"]).accepted);
        assert!(seen("authorization", "Bearer one", &["one", "two"]).accepted);
        let wrong = seen("x-api-key", "three", &["one"]);
        assert!(!wrong.accepted);
        assert_eq!(wrong.x_api_key.unwrap().matched, Some(false));
        assert!(!seen("x-other", "one", &["one"]).accepted);
    }

    #[test]
    fn without_required_keys_every_request_is_accepted_and_none_matched() {
        let any = seen("authorization", "Bearer x", &[]);
        assert!(any.accepted);
        let key = any.authorization.unwrap();
        assert_eq!((key.matched, key.sha256), (None, hex::encode(Sha256::digest("x"))));
    }
}
