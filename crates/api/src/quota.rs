//! How often somebody may do something: the generic cell rate algorithm, which is a token bucket kept as one instant.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Those whose use is remembered at the same time; whoever has used nothing lately needs no memory.
pub(crate) const QUOTA_ENTRIES: usize = 10_000;
/// The time in which a quota comes back as a whole.
pub(crate) const WINDOW: Duration = Duration::from_mins(1);

/// What is left of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// The whole of it.
    pub(crate) limit: u32,
    /// What is left now.
    pub(crate) remaining: u32,
    /// Until all of it is back, in whole seconds, rounded up.
    pub(crate) reset_s: u64,
    /// If nothing is left: until something is, in whole seconds, rounded up.
    pub(crate) retry_after_s: Option<u64>,
}

/// A quota for each `K`: all of it at once, and back at an even pace within [`WINDOW`].
#[derive(Debug)]
pub(crate) struct Quotas<K> {
    limit: u32,
    /// The time in which one comes back.
    pace: Duration,
    entries: usize,
    /// When each has all of its quota back.
    full_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Hash + Eq + Clone> Quotas<K> {
    /// `limit` for each in a minute; 0 stands for no limit.
    pub(crate) fn per_minute(limit: u32) -> Self {
        Self::with_entries(limit, QUOTA_ENTRIES)
    }

    fn with_entries(limit: u32, entries: usize) -> Self {
        let pace = WINDOW.checked_div(limit).unwrap_or_default();
        Self { limit, pace, entries, full_at: Mutex::default() }
    }

    /// Takes one, if one is left; none without a limit.
    pub(crate) fn take(&self, who: &K) -> Option<Quota> {
        if self.limit == 0 {
            return None;
        }
        let now = Instant::now();
        let mut full_at = self.lock();
        let before = full_at.get(who).copied().unwrap_or(now).max(now);
        let after = before + self.pace;
        let quota = self.left(after.duration_since(now));
        if quota.retry_after_s.is_some() {
            // Nothing is taken: trying again and again makes nobody wait longer.
            return Some(Quota { reset_s: whole_seconds(before.duration_since(now)), ..quota });
        }
        make_room(&mut full_at, self.entries, who, now);
        full_at.insert(who.clone(), after);
        Some(quota)
    }

    /// Whether nothing is left, and how long that lasts, in whole seconds.
    pub(crate) fn spent(&self, who: &K) -> Option<u64> {
        let now = Instant::now();
        let full_at = *self.lock().get(who)?;
        self.left((full_at + self.pace).saturating_duration_since(now)).retry_after_s
    }

    /// What is left if all of it is back `after`.
    fn left(&self, after: Duration) -> Quota {
        let whole = self.pace * self.limit;
        let missing = after.saturating_sub(whole);
        let free = whole.saturating_sub(after);
        let remaining = free.as_nanos().checked_div(self.pace.as_nanos()).unwrap_or(0);
        Quota {
            limit: self.limit,
            remaining: u32::try_from(remaining).unwrap_or(self.limit),
            reset_s: whole_seconds(after),
            retry_after_s: (!missing.is_zero()).then(|| whole_seconds(missing)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        // Each change is a single insertion or removal.
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the map within its bound: whoever has all of the quota back is forgotten, and if that is nobody, whoever is the
/// nearest to it.
fn make_room<K: Hash + Eq + Clone>(full_at: &mut HashMap<K, Instant>, entries: usize, who: &K, now: Instant) {
    if full_at.len() < entries || full_at.contains_key(who) {
        return;
    }
    full_at.retain(|_, at| *at > now);
    if full_at.len() >= entries
        && let Some(nearest) = full_at.iter().min_by_key(|(_, at)| **at).map(|(who, _)| who.clone())
    {
        full_at.remove(&nearest);
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_there_at_once_and_comes_back_at_an_even_pace() {
        let quotas = Quotas::per_minute(6);
        for left in (0..6).rev() {
            let quota = quotas.take(&1).unwrap();
            assert_eq!((quota.limit, quota.remaining, quota.retry_after_s), (6, left, None));
        }
        for _ in 0..3 {
            let refused = quotas.take(&1).unwrap();
            assert_eq!((refused.remaining, refused.reset_s, refused.retry_after_s), (0, 60, Some(10)));
        }
        assert_eq!(quotas.spent(&1), Some(10));
        assert_eq!(quotas.take(&2).unwrap().remaining, 5, "another one has a quota of their own");
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(quotas.take(&1).unwrap().retry_after_s, Some(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(quotas.spent(&1), None);
        assert_eq!(quotas.take(&1).unwrap().retry_after_s, None);
        assert_eq!(quotas.take(&1).unwrap().retry_after_s, Some(10));
        tokio::time::advance(WINDOW * 9).await;
        assert_eq!(quotas.take(&1).unwrap().remaining, 5, "no more than the whole is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_takes_any_number() {
        let quotas = Quotas::per_minute(0);
        for _ in 0..1_000 {
            assert_eq!(quotas.take(&1), None);
        }
        assert_eq!(quotas.spent(&1), None);
        assert_eq!(quotas.lock().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_the_one_nearest_to_a_whole_quota_is_forgotten() {
        let quotas = Quotas::with_entries(60, 3);
        for who in [1, 1, 1, 2, 3, 3] {
            quotas.take(&who);
        }
        quotas.take(&4);
        assert_eq!(quotas.lock().len(), 3);
        assert!(!quotas.lock().contains_key(&2));
        assert_eq!(quotas.take(&1).unwrap().remaining, 56, "the others are remembered");
        tokio::time::advance(WINDOW).await;
        quotas.take(&5);
        assert_eq!(quotas.lock().len(), 1, "whoever has all of it back is forgotten");
    }
}
