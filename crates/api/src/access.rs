//! What is remembered of callers between their requests, all of it within bounds: how much each key and each address has
//! used up, which keys opened something lately, and whether the keys of open streams still do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use caisson_domain::grant::TokenHash;
use caisson_domain::id::ApiKeyId;
use caisson_store::{Store, StoreError};
use tokio::time::Instant;

use crate::config::ApiLimits;
use crate::denials::Denials;
use crate::problem::ApiError;
use crate::quota::Quotas;

/// How long a key that opened something is let through while its address has failed too often.
const GOOD_FOR: Duration = Duration::from_mins(10);
/// Keys that are remembered as good.
const GOOD_KEYS: usize = 10_000;
/// How long it is taken for granted that a key of a stream is still valid. With the pause between two looks of a stream,
/// which is as long, a revoked key's streams end within a second.
pub(crate) const VALID_FOR: Duration = Duration::from_millis(400);

/// Whose connection it is. All of a network that one customer gets counts as one: else a single machine would have
/// billions of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer(IpAddr);

impl Peer {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Access {
    /// Requests of each key.
    pub(crate) requests: Quotas<ApiKeyId>,
    /// Failed authentications of each address.
    pub(crate) failures: Quotas<Peer>,
    /// What the audit log knows of keys that lack a scope.
    pub(crate) denials: Denials,
    good: Mutex<HashMap<String, Instant>>,
    valid: Mutex<HashMap<ApiKeyId, (Instant, bool)>>,
    streams: usize,
}

impl Access {
    pub(crate) fn new(limits: &ApiLimits) -> Self {
        Self {
            requests: Quotas::per_minute(limits.rate_per_minute),
            failures: Quotas::per_minute(limits.failures_per_minute),
            denials: Denials::default(),
            good: Mutex::default(),
            valid: Mutex::default(),
            streams: limits.streams,
        }
    }

    /// Notes that a key opened something.
    pub(crate) fn note_good(&self, key: &TokenHash) {
        let now = Instant::now();
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= GOOD_KEYS && !good.contains_key(key.as_str()) {
            good.retain(|_, at| now.duration_since(*at) < GOOD_FOR);
            if good.len() >= GOOD_KEYS {
                return;
            }
        }
        good.insert(key.as_str().to_owned(), now);
    }

    /// Whether a key opened something lately. It says nothing about whether it does now.
    pub(crate) fn was_good(&self, key: &TokenHash) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.get(key.as_str()).is_some_and(|at| at.elapsed() < GOOD_FOR)
    }

    /// Refuses who has waited, if their key was revoked or has expired meanwhile; as [`Access::is_valid`].
    ///
    /// # Errors
    /// [`ApiError::KeyRefused`]; as every read of the store.
    pub(crate) async fn still_opens(&self, store: &Store, key: &ApiKeyId) -> Result<(), ApiError> {
        if self.is_valid(store, key).await? { Ok(()) } else { Err(ApiError::KeyRefused) }
    }

    /// Whether the key of an open stream, or of whoever waits, is still valid, as the store had it within [`VALID_FOR`]: all
    /// that one key has open share an answer.
    ///
    /// # Errors
    /// As every read of the store.
    pub(crate) async fn is_valid(&self, store: &Store, key: &ApiKeyId) -> Result<bool, StoreError> {
        let known = self.valid.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        if let Some((at, valid)) = known
            && (!valid || at.elapsed() < VALID_FOR)
        {
            return Ok(valid);
        }
        let asked_at = Instant::now();
        let valid = store.is_key_valid(key).await?;
        let mut all = self.valid.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.streams.max(1) {
            // No more streams than that are open, so what is left over belongs to none.
            all.retain(|_, (at, _)| at.elapsed() < VALID_FOR);
        }
        all.insert(key.clone(), (asked_at, valid));
        Ok(valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_one_customer_is_one_peer() {
        let peer = |text: &str| Peer::of(text.parse().unwrap());
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_key_is_remembered_for_its_time_and_within_the_bound() {
        let access = Access::new(&ApiLimits::default());
        let key = |number: usize| TokenHash::from_stored(number.to_string());
        for number in 0..=GOOD_KEYS {
            access.note_good(&key(number));
        }
        assert!(access.was_good(&key(0)) && access.was_good(&key(GOOD_KEYS - 1)));
        assert!(!access.was_good(&key(GOOD_KEYS)), "there is no room for one more");
        tokio::time::advance(GOOD_FOR).await;
        assert!(!access.was_good(&key(0)));
        access.note_good(&key(GOOD_KEYS));
        assert!(access.was_good(&key(GOOD_KEYS)), "the old ones made room");
        assert_eq!(access.good.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn no_more_keys_are_remembered_than_streams_may_be_open_and_an_ended_one_stays_ended() {
        let directory = tempfile::tempdir().unwrap();
        let clock = caisson_store::Clock::system();
        let store = Store::open(&directory.path().join("db"), clock).await.unwrap();
        let access = Access::new(&ApiLimits { streams: 2, ..ApiLimits::default() });
        let mut keys = Vec::new();
        for _ in 0..6 {
            keys.push(store.create_api_key(&"default".parse().unwrap(), "k", &[]).await.unwrap().0);
        }
        for round in keys.chunks(2) {
            for key in round {
                assert!(access.is_valid(&store, key).await.unwrap());
            }
            assert_eq!(access.valid.lock().unwrap().len(), 2);
            tokio::time::sleep(VALID_FOR).await;
        }
        store.revoke_api_key(&keys[5]).await.unwrap();
        assert!(!access.is_valid(&store, &keys[5]).await.unwrap());
        assert!(!access.is_valid(&store, &keys[5]).await.unwrap());
    }
}
