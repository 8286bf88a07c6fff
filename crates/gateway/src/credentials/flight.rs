//! One token call at a time for a credential: whoever comes meanwhile waits for it and takes what it brought.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::CredentialId;
use secrecy::SecretString;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::token::TokenFault;
use crate::bounds::{FLIGHTS, RENEWAL_PAUSE, TOKEN_PAUSE};

/// What is known of a credential's tokens, for one at a time.
#[derive(Debug, Default)]
pub(super) struct Flight {
    failed: Option<(i64, Instant, TokenFault)>,
    /// The version that the last refresh made, and when.
    brought: Option<(i64, Instant)>,
    /// An installation token, the version of the credential it was had with, and when it ends (Unix ms).
    pub(super) minted: Option<(i64, SecretString, i64)>,
}

impl Flight {
    /// Why there was no token just now: the endpoint is not asked again for [`TOKEN_PAUSE`], unless the
    /// credential was changed.
    pub(super) fn failed_just_now(&self, version: i64) -> Option<TokenFault> {
        let (of, at, fault) = self.failed?;
        (of == version && at.elapsed() < TOKEN_PAUSE).then_some(fault)
    }

    /// Whether this version's token was had just now, [`RENEWAL_PAUSE`] ago at most.
    pub(super) fn brought_just_now(&self, version: i64) -> bool {
        self.brought.is_some_and(|(of, at)| of == version && at.elapsed() < RENEWAL_PAUSE)
    }

    pub(super) fn note(&mut self, version: i64, fault: Option<TokenFault>) {
        self.failed = fault.map(|fault| (version, Instant::now(), fault));
    }

    pub(super) fn note_brought(&mut self, version: i64) {
        self.brought = Some((version, Instant::now()));
    }
}

type Shared = Arc<tokio::sync::Mutex<Flight>>;

/// A flight for each credential whose tokens somebody wants or that has one, [`FLIGHTS`] at most.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<CredentialId, Shared>>);

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<CredentialId, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else has the credential's flight.
    pub(super) async fn take(&self, id: &CredentialId) -> OwnedMutexGuard<Flight> {
        let flight = {
            let mut flights = self.lock();
            if flights.len() >= FLIGHTS && !flights.contains_key(id) {
                // Whoever is not asked for now loses a token that can be had again.
                flights.retain(|_, flight| Arc::strong_count(flight) > 1);
            }
            if flights.len() < FLIGHTS || flights.contains_key(id) {
                Arc::clone(flights.entry(id.clone()).or_default())
            } else {
                Shared::default()
            }
        };
        flight.lock_owned().await
    }

    /// Forgets a token that was refused.
    pub(super) fn forget(&self, id: &CredentialId) {
        self.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> CredentialId {
        CredentialId::new(i64::try_from(number).unwrap(), [0; 10])
    }

    #[tokio::test]
    async fn flights_are_bounded_and_those_under_way_stay() {
        let flights = Flights::default();
        let busy = flights.take(&id(0)).await;
        for number in 1..=FLIGHTS {
            drop(flights.take(&id(number)).await);
            assert!(flights.lock().len() <= FLIGHTS);
        }
        assert!(flights.lock().contains_key(&id(0)), "it is under way");
        drop(busy);
        let mut held = Vec::new();
        for number in 0..FLIGHTS + 5 {
            held.push(flights.take(&id(number)).await);
        }
        assert_eq!(flights.lock().len(), FLIGHTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_new_for_its_pause_and_its_version() {
        let mut flight = Flight::default();
        assert!(!flight.brought_just_now(2));
        flight.note_brought(2);
        assert!(flight.brought_just_now(2));
        assert!(!flight.brought_just_now(3), "a rotated credential is another one");
        tokio::time::advance(RENEWAL_PAUSE).await;
        assert!(!flight.brought_just_now(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_for_its_pause_and_its_version() {
        let mut flight = Flight::default();
        flight.note(1, Some(TokenFault::Unreachable));
        assert_eq!(flight.failed_just_now(1), Some(TokenFault::Unreachable));
        assert_eq!(flight.failed_just_now(2), None, "a rotated credential is tried at once");
        tokio::time::advance(TOKEN_PAUSE).await;
        assert_eq!(flight.failed_just_now(1), None);
        flight.note(1, Some(TokenFault::Unreachable));
        flight.note(1, None);
        assert_eq!(flight.failed_just_now(1), None);
    }
}
