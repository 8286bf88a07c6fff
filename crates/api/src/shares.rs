//! What one API key may hold at once of something that all callers share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_domain::id::ApiKeyId;

/// Shares of something. A key that holds nothing takes no memory.
#[derive(Debug, Clone)]
pub(crate) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    held: Mutex<HashMap<ApiKeyId, usize>>,
}

/// One of what a key holds, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Shares,
    key: ApiKeyId,
}

impl Shares {
    /// At most so many for each key, and one at least.
    pub(crate) fn of(most: usize) -> Self {
        Self(Arc::new(Inner { most: most.max(1), held: Mutex::default() }))
    }

    /// One for `key`; none if it holds as many as it may.
    pub(crate) fn take(&self, key: &ApiKeyId) -> Option<Share> {
        let mut held = self.lock();
        let count = held.get(key).copied().unwrap_or(0);
        if count >= self.0.most {
            return None;
        }
        held.insert(key.clone(), count + 1);
        Some(Share { shares: self.clone(), key: key.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ApiKeyId, usize>> {
        // A panic elsewhere leaves the map whole: each change to it is a single one.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        match held.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_as_many_as_it_may_and_others_are_not_held_up() {
        let shares = Shares::of(2);
        let (one, other) = (ApiKeyId::new(1, [1; 10]), ApiKeyId::new(1, [2; 10]));
        let first = shares.take(&one).unwrap();
        let second = shares.take(&one).unwrap();
        assert!(shares.take(&one).is_none());
        let others = shares.take(&other).unwrap();
        drop(first);
        let third = shares.take(&one).unwrap();
        assert!(shares.take(&one).is_none());
        drop((second, third, others));
        assert_eq!(shares.lock().len(), 0);
        assert!(Shares::of(0).take(&one).is_some(), "nobody is kept out wholly");
    }
}
