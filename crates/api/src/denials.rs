//! What is told of callers that are refused: a counter of them all, and in the audit log those whose key is good for less than
//! they ask.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use caisson_domain::id::ApiKeyId;
use caisson_domain::principal::Principal;
use caisson_store::meters::API_REFUSED;
use caisson_store::{Actor, NewAudit, Store};
use tokio::time::Instant;

use crate::problem::ApiError;

/// How long the audit log is not told again that a key was refused for the same.
const TOLD_FOR: Duration = Duration::from_hours(1);
/// Keys and what they were refused for that are remembered. What comes beyond within [`TOLD_FOR`] is counted alone.
const TOLD: usize = 10_000;

/// What the audit log was told of within [`TOLD_FOR`].
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<HashMap<(ApiKeyId, &'static str), Instant>>);

impl Denials {
    /// Records what a caller's key is not good for, a scope or the code of a refusal, once in [`TOLD_FOR`] for both: whoever asks for ever fills no log. A
    /// record that cannot be written is for the server's log, and refused they are all the same.
    ///
    /// # Cancel safety
    /// A dropped call may have written none; the next one is written after [`TOLD_FOR`].
    pub(crate) async fn record(&self, store: &Store, caller: &Principal, lacking: &'static str) {
        let entry = (caller.key.clone(), lacking);
        if !self.is_due(entry.clone()) {
            return;
        }
        let actor = Actor::Key(caller.key.clone());
        let record = NewAudit {
            decision: Some("denied"),
            ..NewAudit::new(&caller.project, actor, "api.denied", lacking)
        };
        if let Err(error) = store.append_audit(&record).await {
            self.lock().remove(&entry);
            let key = &caller.key;
            tracing::warn!(key.id = %key, error = %error, "that {key} was refused is not in the audit log");
        }
    }

    /// Whether it is to be told, which is remembered.
    fn is_due(&self, entry: (ApiKeyId, &'static str)) -> bool {
        let now = Instant::now();
        let mut told = self.lock();
        if told.get(&entry).is_some_and(|at| now.duration_since(*at) < TOLD_FOR) {
            return false;
        }
        if told.len() >= TOLD && !told.contains_key(&entry) {
            told.retain(|_, at| now.duration_since(*at) < TOLD_FOR);
            if told.len() >= TOLD {
                return false;
            }
        }
        told.insert(entry, now);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ApiKeyId, &'static str), Instant>> {
        // Every change is a single one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts who was not let in, by why. Who sends no key, or has used up a limit, guesses nothing.
pub(crate) fn count(store: &Store, refused: &ApiError) {
    if let Some(reason) = reason(refused) {
        store.meters().add(&API_REFUSED, vec![("reason", reason.to_owned())], 1);
    }
}

/// Why somebody was not let in; none if that is not what it says.
pub(crate) fn reason(refused: &ApiError) -> Option<&'static str> {
    let reason = if matches!(refused, ApiError::KeyRefused) {
        "key_refused"
    } else if matches!(refused, ApiError::FailedTooOften { .. }) {
        "failed_too_often"
    } else if matches!(refused, ApiError::ScopeMissing(_)) {
        "scope_missing"
    } else if matches!(refused, ApiError::OperatorsOnly) {
        // What is the operators' alone.
        "operators_only"
    } else if matches!(
        refused,
        ApiError::DefaultProjectOnly | ApiError::ServersOfDefaultProject | ApiError::UsageOfOthers
    ) {
        // What keys of the default project alone see.
        "default_project_only"
    } else {
        return None;
    };
    Some(reason)
}

#[cfg(test)]
mod tests {
    use caisson_domain::principal::Scope;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_told_again_after_its_time_and_within_the_bound() {
        let denials = Denials::default();
        let entry = |number: usize, scope: Scope| {
            (ApiKeyId::new(i64::try_from(number).unwrap(), [0; 10]), scope.as_str())
        };
        assert!(denials.is_due(entry(0, Scope::Audit)) && !denials.is_due(entry(0, Scope::Audit)));
        assert!(denials.is_due(entry(0, Scope::Admin)), "each scope by itself");
        for number in 2..TOLD {
            assert!(denials.is_due(entry(number, Scope::Audit)));
        }
        assert_eq!(denials.lock().len(), TOLD);
        assert!(!denials.is_due(entry(TOLD, Scope::Audit)), "there is no room for one more");
        tokio::time::advance(Duration::from_mins(59)).await;
        assert!(!denials.is_due(entry(0, Scope::Audit)));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(denials.is_due(entry(TOLD, Scope::Audit)) && denials.is_due(entry(0, Scope::Audit)));
        assert_eq!(denials.lock().len(), 2);
    }
}
