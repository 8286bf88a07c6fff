//! What is on record already, so that a request does not ask the store for it again.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use caisson_domain::id::RunId;
use caisson_store::CredentialUse;

/// Uses that are remembered at most. Beyond it all are forgotten: the store knows them.
const NOTED: usize = 4_096;

/// The uses of credentials of which the audit log is known to tell.
#[derive(Debug, Default)]
pub(crate) struct Noted(Mutex<HashSet<(RunId, CredentialUse)>>);

impl Noted {
    pub(crate) fn has(&self, run: &RunId, used: &CredentialUse) -> bool {
        self.lock().contains(&(run.clone(), used.clone()))
    }

    /// To be called only once the record is written.
    pub(crate) fn add(&self, run: &RunId, used: &CredentialUse) {
        let mut noted = self.lock();
        if noted.len() >= NOTED {
            noted.clear();
        }
        noted.insert((run.clone(), used.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(RunId, CredentialUse)>> {
        // Every change is a single insertion, or forgets.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_remembered_up_to_the_bound() {
        let noted = Noted::default();
        let run = RunId::new(1, [1; 10]);
        let used = |number: usize| CredentialUse {
            credential: number.to_string(),
            host: "api.example".to_owned(),
            purpose: "model",
        };
        for number in 0..NOTED {
            assert!(!noted.has(&run, &used(number)));
            noted.add(&run, &used(number));
        }
        assert!(noted.has(&run, &used(0)) && noted.has(&run, &used(NOTED - 1)), "at the bound");
        assert!(!noted.has(&RunId::new(2, [1; 10]), &used(0)), "each run has its own record");
        assert!(!noted.has(&run, &CredentialUse { purpose: "mcp", ..used(0) }));
        noted.add(&run, &used(NOTED));
        assert!(noted.has(&run, &used(NOTED)) && !noted.has(&run, &used(0)));
    }
}
